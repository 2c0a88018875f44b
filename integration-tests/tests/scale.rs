//! The simulation of scale, small: everyone ends with the truth in every case, and each figure is there. What it takes is not judged.

use std::process::{Command, Output};

fn scale(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scale")).args(arguments).output().expect("it can be started")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_small_registry_ends_with_the_truth_in_every_case() {
    let small = ["--instances", "4000", "--watchers", "1000", "--services", "100", "--history", "200"];
    let done = scale(&small);
    assert!(done.status.success(), "{}", said(&done));
    let table = String::from_utf8_lossy(&done.stdout).into_owned();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| "))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    let row = |name: &str| {
        let found = rows.iter().find(|row| row[1] == name);
        found.unwrap_or_else(|| panic!("no {name} in:\n{table}"))[2..6].to_vec()
    };
    assert_eq!(row("instances"), ["4000", "400", "760", "4000"]);
    assert_eq!(row("watchers"), ["1000", "100", "1000", "1000"]);
    assert_eq!(row("changes kept"), ["200", "200", "200", "20"]);
    assert_eq!(row("leases that ran out at once"), ["400"; 4], "the same services in each case");
    assert_eq!(row("removed, the others held"), ["200"; 4], "L5: half of each service");
    for figure in [
        "memory an instance: the rules, B",
        "memory a watcher, B",
        "a change: decided, µs",
        "a change for a watcher: taken by its cursor, µs",
        "a change for a watcher: its bytes, B",
        "a renewal, µs",
        "a lease that ran out: decided, µs",
        "start-up, an instance: the rules, µs",
        "a watcher resumes, µs",
    ] {
        assert!(row(figure).iter().all(|value| value.parse::<f64>().is_ok()), "{figure} in:\n{table}");
    }
    assert!(table.contains("a second of everything together"), "{table}");
    assert!(table.ends_with("all watchers end with the truth\n"), "{table}");
}

#[test]
fn sizes_that_make_no_sense_are_refused() {
    let done = scale(&["--instances", "5", "--services", "10"]);
    assert!(!done.status.success());
    assert!(said(&done).contains("instances must be 10 to 10000000, and is 5"), "{}", said(&done));
}
