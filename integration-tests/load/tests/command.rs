//! The command itself, with little load: real servers, every scenario, the table, the JSON lines.

use std::process::{Command, Output};

fn load(arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().expect("a directory");
    Command::new(env!("CARGO_BIN_EXE_load"))
        .args(["--less", "100", "--runs", "1", "--dir"])
        .arg(directory.path())
        .args(arguments)
        .output()
        .expect("it can be started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_scenario_measures_ours_and_the_floor_and_nothing_is_lost() {
    let directory = tempfile::tempdir().expect("a directory");
    let json = directory.path().join("figures");
    let done = load(&["--peers", "ours,floor", "--json", &json.display().to_string()]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let table = text(&done.stdout);
    let has = |row: &str| table.lines().any(|line| line.starts_with(row));
    for scenario in ["register", "renew", "discover", "watch", "burst", "churn", "expiry", "recover", "flat"]
    {
        assert!(has(&format!("| {scenario} | ")), "{scenario} is not in the table:\n{table}");
    }
    assert!(has("| scenario | case | figure | ours | floor | ours / floor |"), "{table}");
    let lines = std::fs::read_to_string(json).expect("figures");
    let figures: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    let of = |name: &str| -> Vec<f64> {
        let named = figures.iter().filter(|figure| figure["figure"] == name);
        named.map(|figure| figure["value"].as_f64().expect("a number")).collect()
    };
    assert_eq!(of("lost"), [0.0, 0.0], "killed twice");
    assert_eq!(of("memory an instance").len(), 2, "in two sizes: {lines}");
    assert!(of("early").iter().all(|early| *early == 0.0), "no lease ends early: {lines}");
    assert!(of("held").iter().any(|held| *held > 0.0), "the guard holds: {lines}");
}

#[test]
fn a_peer_that_is_not_there_is_left_out_and_that_is_said() {
    let done = load(&[
        "register",
        "--peers",
        "ours,etcd,zookeeper",
        "--etcd",
        "/nowhere/etcd",
        "--zookeeper",
        "/nowhere/zk",
    ]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let said = text(&done.stderr);
    for (who, program) in [("Etcd", "/nowhere/etcd"), ("Zookeeper", "/nowhere/zk")] {
        assert!(said.contains(&format!("left out: {who}: {program} is not there")), "{said}");
        let table = text(&done.stdout);
        assert!(table.contains(&format!("Left out: {who}: {program} is not there")), "{table}");
    }
    assert!(text(&done.stdout).contains("| register |"));
}

#[test]
fn a_newer_etcd_is_measured_beside_the_other_or_left_out_with_what_to_do() {
    let done = load(&["register", "--peers", "etcd-3.7,floor", "--etcd-3.7", "/nowhere/etcd"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(
        text(&done.stderr).contains("left out: etcd-3.7: /nowhere/etcd is not there"),
        "{}",
        text(&done.stderr)
    );
    let done = load(&["register", "--peers", "etcd-3.7,floor"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    if cfg!(feature = "etcd-3.7") {
        assert!(text(&done.stdout).contains(" etcd-3.7 |"), "{}", text(&done.stdout));
    } else {
        assert!(text(&done.stderr).contains("build with `--features etcd-3.7`"), "{}", text(&done.stderr));
    }
    let done = load(&["register", "--peers", "etcd-3.7", "--etcd-3.7", "/bin/false"]);
    assert!(!done.status.success(), "it is started by the program that was named");
    assert!(text(&done.stderr).contains("etcd-3.7 ended at its start"), "{}", text(&done.stderr));
}

#[test]
fn a_server_that_cannot_start_is_an_error_with_its_own_words_and_the_others_are_measured() {
    let done = load(&["register", "--peers", "etcd,floor", "--etcd", "/bin/false"]);
    assert!(!done.status.success());
    assert!(text(&done.stderr).contains("etcd ended at its start"), "{}", text(&done.stderr));
    let table = text(&done.stdout);
    assert!(table.contains("| register | 64 callers | rate, /s |"), "{table}");
    assert!(table.contains("Left out: run 1 register etcd: etcd ended at its start"), "{table}");
}
