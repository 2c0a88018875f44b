//! The structure, as tests: who may know whom, and what every file owes its reader.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Lines of production code in one file.
const LONGEST: usize = 450;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// All Rust files below a folder of the workspace, with their text.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() && !path.ends_with("target") {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("text");
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), &mut found);
    assert!(!found.is_empty(), "{folder} has no sources: was it moved?");
    found
}

fn is_test(path: &Path) -> bool {
    // Only what is below the workspace counts: it may itself lie in a folder called `tests`.
    let path = path.strip_prefix(root()).unwrap_or(path);
    let named = |name: &str| name == "tests" || name == "tests.rs" || name.ends_with("_tests.rs");
    path.components().any(|part| named(&part.as_os_str().to_string_lossy()))
}

/// The lines before a test module that is written out in the file. A mere `mod tests;` ends nothing.
fn before_tests(text: &str) -> impl Iterator<Item = &str> {
    let written_out =
        |rest: &str| rest.lines().nth(1).is_some_and(|line| line.starts_with("mod ") && line.ends_with('{'));
    let end = text.match_indices("#[cfg(test)]\n").map(|(at, _)| at).find(|at| written_out(&text[*at..]));
    text[..end.unwrap_or(text.len())].lines()
}

/// Lines that are neither comments nor tests.
fn production(text: &str) -> impl Iterator<Item = &str> {
    before_tests(text).map(str::trim).filter(|line| !line.starts_with("//"))
}

fn no_file_says(folder: &str, words: &[&str]) {
    let mut guilty = Vec::new();
    for (path, text) in sources(folder).iter().filter(|(path, _)| !is_test(path)) {
        for word in words.iter().filter(|word| production(text).any(|line| line.contains(**word))) {
            guilty.push(format!("{} says `{word}`", path.display()));
        }
    }
    assert!(guilty.is_empty(), "{guilty:#?}");
}

#[test]
fn the_core_knows_nobody() {
    let rooms =
        ["crate::store", "crate::hub", "crate::registry", "crate::grpc", "crate::server", "crate::runtime"];
    no_file_says("registry-server/src/core", &rooms);
    no_file_says(
        "registry-server/src/core",
        &["std::time", "std::io", "std::fs", "HashMap::new(", "HashSet::new("],
    );
    for (path, text) in sources("registry-server/src/core").iter().filter(|(path, _)| !is_test(path)) {
        for line in
            production(text).filter_map(|line| line.strip_prefix("use ").or(line.strip_prefix("pub use ")))
        {
            let known = ["std", "registry_proto", "crate::core", "super", "self"]
                .iter()
                .any(|it| line.starts_with(it));
            let own_module = line.chars().next().is_some_and(char::is_lowercase)
                && text.contains(&format!("mod {};", line.split("::").next().unwrap_or_default()));
            assert!(known || own_module, "{} uses {line}", path.display());
        }
    }
}

#[test]
fn dependencies_point_one_way() {
    let server = ["crate::grpc", "crate::server", "tonic::"];
    no_file_says("registry-server/src/registry", &server);
    no_file_says("registry-server/src/hub", &server);
    no_file_says("registry-server/src/hub", &["crate::store", "crate::registry"]);
    no_file_says("registry-server/src/applied", &server);
    no_file_says("registry-server/src/applied", &["crate::store", "crate::registry"]);
    no_file_says("registry-server/src/store", &server);
    no_file_says("registry-server/src/store", &["crate::hub", "crate::registry", "tokio"]);
    no_file_says("registry-server/src/grpc", &["crate::store", "crate::server"]);
    no_file_says(
        "client-sdk/src/view",
        &["tokio", "crate::watch", "crate::client", "crate::balance", "crate::channel"],
    );
    no_file_says(
        "client-sdk/src/balance",
        &["crate::channel", "crate::client", "crate::watch", "crate::registration"],
    );
    no_file_says(
        "client-sdk/src/outlier",
        &["tokio", "crate::members", "crate::runtime", "crate::channel", "std::time::Instant"],
    );
    no_file_says("client-sdk/src/sizing", &["tokio", "crate::", "std::time::Instant"]);
    no_file_says("client-sdk/src/members", &["crate::pool"]);
    let faces = ["crate::channel", "crate::layer", "tonic::", "h2::", "hyper::"];
    no_file_says("client-sdk/src/members", &faces);
    no_file_says("client-sdk/src/layer", &["crate::channel", "tonic::", "h2::", "hyper::"]);
    no_file_says("client-sdk/src/model", &["tokio", "crate::"]);
}

#[test]
fn server_and_sdk_share_only_the_protocol() {
    let manifest = |name: &str| fs::read_to_string(root().join(name).join("Cargo.toml")).expect("a manifest");
    let normal = |text: String| text.split("[dev-dependencies]").next().unwrap_or_default().to_owned();
    assert!(!normal(manifest("client-sdk")).contains("registry-server.workspace"));
    assert!(!normal(manifest("registry-server")).contains("client-sdk"));
    assert!(!manifest("proto").contains("registry-server") && !manifest("proto").contains("client-sdk"));
}

#[test]
fn every_module_says_what_it_owns_and_is_short() {
    for folder in
        ["proto/src", "registry-server/src", "client-sdk/src", "integration-tests/src", "examples/src"]
    {
        for (path, text) in sources(folder) {
            assert!(text.starts_with("//!"), "{} does not open with what it owns", path.display());
            let lines = before_tests(&text).count();
            assert!(
                is_test(&path) || lines <= LONGEST,
                "{} has {lines} lines of production code",
                path.display()
            );
        }
    }
}

#[test]
fn nothing_is_left_half_done() {
    for folder in ["proto/src", "registry-server", "client-sdk", "integration-tests", "examples"] {
        for (path, text) in sources(folder).iter().filter(|(path, _)| !path.ends_with("tests/tidy.rs")) {
            for word in ["todo!(", "unimplemented!(", "FIXME", "#[ignore"] {
                assert!(!text.contains(word), "{} says `{word}`", path.display());
            }
        }
    }
}

/// A table of promises is worth what its tests are: each name in it must be a function that is there.
#[test]
fn what_the_guarantees_name_is_there() {
    let text = fs::read_to_string(root().join("docs/guarantees.md")).expect("the guarantees");
    let code: Vec<String> = ["registry-server/src", "client-sdk", "integration-tests", "examples"]
        .iter()
        .flat_map(|folder| sources(folder))
        .map(|(_, text)| text)
        .collect();
    let words = |cell: &str| {
        let named = |word: &&str| word.len() > 8 && word.contains('_');
        let of_code = |word: &&str| word.chars().all(|it| it.is_ascii_alphanumeric() || it == '_');
        cell.split('`')
            .skip(1)
            .step_by(2)
            .filter(of_code)
            .filter(named)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let mut missing = Vec::new();
    for line in text.lines() {
        for name in words(line) {
            let function = format!("fn {name}(");
            if !code.iter().any(|text| text.contains(&function)) {
                missing.push(name);
            }
        }
    }
    assert!(missing.is_empty(), "docs/guarantees.md names what is not there: {missing:#?}");
    for row in text
        .lines()
        .filter(|line| line.starts_with("| W") || line.starts_with("| D") || line.starts_with("| L"))
    {
        let cells: Vec<_> = row.split(" | ").collect();
        assert!(cells.len() >= 4 && words(cells[2]).len() == 1, "no validator in: {row}");
        assert!(!words(cells[3]).is_empty(), "no test in: {row}");
    }
}
