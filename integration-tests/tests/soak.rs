//! The soak's command: each floor is played, and a soak that played nothing does not say that all is well.

use std::process::{Command, Output};

fn soak(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_soak")).args(arguments).output().expect("it can be started")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn every_floor_is_played() {
    for floor in ["core", "writer", "system"] {
        let played = soak(&["--floor", floor, "--minutes", "0.02"]);
        assert!(played.status.success(), "{}", said(&played));
        let said = said(&played);
        let last = said.lines().rev().find(|line| line.contains(" runs, ")).expect("a summary");
        assert!(last.contains(&format!("{floor}: ")) && !last.contains(": 0 runs"), "{said}");
        assert!(said.contains("no promise was broken"), "{said}");
    }
}

#[test]
fn a_soak_that_played_nothing_fails() {
    let played = soak(&["--minutes", "0"]);
    assert!(!played.status.success(), "{}", said(&played));
    assert!(said(&played).contains("nothing was played of core, writer, system"), "{}", said(&played));
}

#[test]
fn one_seed_of_one_floor_is_repeated() {
    let played = soak(&["--floor", "writer", "--seed", "7"]);
    assert!(played.status.success(), "{}", said(&played));
    assert!(said(&played).contains("seed 7"), "{}", said(&played));
    assert!(!soak(&["--seed", "7"]).status.success(), "of which floor?");
}
