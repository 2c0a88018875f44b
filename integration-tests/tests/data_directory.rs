//! Data directories as they are in the real world: taken, not there, in the way, damaged, full. Real processes and real
//! files; nothing rests on permissions, which do not bind root, so all of it holds for any user.
//!
//! Each time there is a clear error that names the file and says what to do, nothing is touched, and what was acknowledged
//! is there again once the cause is gone.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use integration_tests::{
    history::Recorder,
    process::{Client, Setup},
    requests::{self, instance, register},
    server_setup, writers,
};
use tonic::Code;

const SERVICE: &str = "kept";

/// All files of a directory.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(directory).expect("a directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.is_file()).map(|path| (path.clone(), fs::read(path).expect("a file"))).collect()
}

async fn registered(client: &Client, number: u64) {
    let named = vec![instance(&format!("i{number}"))];
    client.clone().register(register(number, SERVICE, named)).await.expect("the server takes writes");
}

async fn kept(client: &Client) -> Vec<String> {
    let reading = writers::read(client, SERVICE, 1, &Recorder::default()).await.expect("a reading");
    reading.items.keys().map(ToString::to_string).collect()
}

/// Starts a server that cannot run: it says why, and ends in order.
async fn refused(setup: &Setup, says: &[&str]) {
    let ended = setup.ends().await;
    assert_eq!(ended.status.code(), Some(1), "{}", ended.log);
    assert!(!ended.log.contains("panicked"), "{}", ended.log);
    for text in says {
        assert!(ended.log.contains(text), "`{text}` is not in:\n{}", ended.log);
    }
}

#[tokio::test]
async fn a_second_server_leaves_the_first_alone_and_a_killed_one_leaves_no_lock() {
    let setup = server_setup!();
    let directory = setup.data_dir().display().to_string();
    let first = setup.start().await;
    let client = first.client().await;
    registered(&client, 1).await;
    let before = contents(&setup.data_dir());
    let says = ["in use by another registry server", directory.as_str(), "directory of its own"];
    refused(&setup, &says).await;
    // One that is stopped has not gone.
    first.freeze();
    refused(&setup, &says).await;
    first.thaw();
    assert!(contents(&setup.data_dir()) == before, "the second server wrote to the first one's files");
    registered(&client, 2).await;
    first.kill().await;

    let next = setup.start().await;
    assert_eq!(kept(&next.client().await).await, ["i1", "i2"]);
}

#[tokio::test]
async fn what_is_in_the_way_is_named_and_left() {
    let what_to_do = "this user may read and write there";
    // A file where the directory is to be.
    let setup = server_setup!();
    let directory = setup.data_dir();
    fs::write(&directory, b"mine").expect("a file");
    refused(&setup, &[&directory.display().to_string(), what_to_do]).await;
    assert_eq!(fs::read(&directory).expect("it is still there"), b"mine");

    // A directory in which nobody may create anything, not even root.
    let setup = server_setup!();
    std::os::unix::fs::symlink("/proc", setup.data_dir()).expect("a link");
    refused(&setup, &[&setup.data_dir().display().to_string(), what_to_do]).await;

    // Directories where files are to be: one for each of the server's own.
    for name in
        ["lock", "log-00000000000000000000", "log-00000000000000000000.tmp", "base-00000000000000000007"]
    {
        let setup = server_setup!();
        let path = setup.data_dir().join(name);
        fs::create_dir_all(&path).expect("a directory");
        fs::write(path.join("mine"), b"mine").expect("a file");
        refused(&setup, &[&setup.data_dir().display().to_string()]).await;
        assert!(path.join("mine").is_file(), "{name}");
    }
}

#[tokio::test]
async fn a_damaged_directory_is_refused_as_it_is_and_moved_away_a_new_history_begins() {
    let setup = server_setup!();
    let server = setup.start().await;
    let client = server.client().await;
    for number in 1..=3 {
        registered(&client, number).await;
    }
    let epoch = writers::read(&client, SERVICE, 1, &Recorder::default()).await.expect("a reading").epoch;
    server.kill().await;
    let path = setup.data_dir().join("log-00000000000000000000");
    let sound = fs::read(&path).expect("the log");
    let end = sound.iter().rposition(|byte| *byte != 0).expect("something was written") + 1;

    // In the header, in the middle, and in the last group, which was acknowledged like all others.
    for at in [9, end / 2, end - 3] {
        let mut damaged = sound.clone();
        damaged[at] ^= 1;
        fs::write(&path, &damaged).expect("written");
        let name = path.display().to_string();
        refused(&setup, &[&name, "is corrupt at offset", "nothing was changed", "from a backup"]).await;
        assert!(fs::read(&path).expect("the log") == damaged, "a damaged log was changed");
    }
    for length in [0, 30] {
        fs::write(&path, &sound[..length]).expect("written");
        refused(&setup, &["its header is incomplete"]).await;
    }

    let aside = setup.data_dir().with_extension("aside");
    fs::rename(setup.data_dir(), &aside).expect("moved away");
    let server = setup.start().await;
    let empty =
        writers::read(&server.client().await, SERVICE, 1, &Recorder::default()).await.expect("a reading");
    assert!(empty.items.is_empty() && empty.epoch != epoch, "lost data is another history");
    server.kill().await;

    // The backup.
    fs::remove_dir_all(setup.data_dir()).expect("removed");
    fs::rename(&aside, setup.data_dir()).expect("moved back");
    fs::write(&path, &sound).expect("written");
    let server = setup.start().await;
    assert_eq!(kept(&server.client().await).await, ["i1", "i2", "i3"]);
}

#[tokio::test]
async fn d4_without_room_writes_are_refused_reads_go_on_and_with_room_it_all_works_again() {
    // The log grows in steps of 1 MiB: the third does not fit.
    let setup = server_setup!().with_files_up_to((2 << 20) + 1_024);
    let server = setup.start().await;
    let client = server.client().await;
    let mut acknowledged = Vec::new();
    let failed = loop {
        let number = acknowledged.len() as u64;
        assert!(number < 1_000, "the limit on files is not heeded");
        let text = "no room ".repeat(500);
        let tagged = |tag: u32| (format!("t{tag}"), text.clone());
        let mut large = instance(&format!("i{number:04}"));
        large.tags.extend((0..3).map(tagged));
        match client.clone().register(register(number, SERVICE, vec![large])).await {
            Ok(_) => acknowledged.push(format!("i{number:04}")),
            Err(status) => break status,
        }
    };
    assert!(acknowledged.len() > 100, "{} fitted", acknowledged.len());
    assert_eq!(
        (failed.code(), requests::reason(&failed)),
        (Code::Unavailable, "STORE_FAILED".into()),
        "{failed:?}"
    );
    let said = failed.message();
    assert!(said.contains("log-0000") && said.contains("has room") && said.contains("restart"), "{said}");
    let again = client.clone().register(register(0, SERVICE, vec![instance("late")])).await.unwrap_err();
    assert_eq!(requests::reason(&again), "STORE_FAILED", "it is not tried again");
    assert_eq!(kept(&client).await, acknowledged, "D4: reads go on");
    server.kill().await;

    let server = setup.with_room_again().start().await;
    let client = server.client().await;
    assert_eq!(kept(&client).await, acknowledged, "D1: what was acknowledged is there, and nothing else");
    registered(&client, 5_000).await;
}
