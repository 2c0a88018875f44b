//! The real disk, where there is something in its way. Works for any user: nothing here rests on permissions, which do
//! not bind root.

use super::*;

fn refused(directory: &Path) -> String {
    RealDisk::open(directory).expect_err("something is in the way").to_string()
}

#[test]
fn what_is_in_the_way_of_the_directory_is_named_with_what_to_do() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    fs::write(&file, b"mine").unwrap();
    let locked = scratch.path().join("locked");
    fs::create_dir_all(locked.join(LOCK)).unwrap();
    // Nobody may create anything in /proc, whoever he is.
    for directory in [file.clone(), file.join("below"), locked.clone(), "/proc".into(), "/proc/below".into()]
    {
        let error = refused(&directory);
        assert!(error.contains(&directory.display().to_string()), "{error}");
        assert!(error.contains("this user may read and write there"), "{error}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    assert!(locked.join(LOCK).is_dir());
}

#[test]
fn what_is_created_on_the_way_to_the_directory_is_made_durable_too() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |below: &str| scratch.path().join(below);
    assert_eq!(parents(&path("a/b/c")), [path("a/b"), path("a"), scratch.path().to_owned()]);
    drop(RealDisk::open(&path("a/b/c")).unwrap());
    assert_eq!(parents(&path("a/b/c")), [path("a/b")], "of what was there before, the parent");
    assert!(path("a/b/c/lock").is_file());
}
