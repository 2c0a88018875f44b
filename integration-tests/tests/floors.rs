//! The lower floors of simulation, over many seeds: every promise, whatever happens.

use integration_tests::floors::{self, Verdict};

fn kept(floor: fn(u64) -> Verdict, seeds: std::ops::Range<u64>) {
    let broken: Vec<String> =
        seeds.map(floor).filter(|verdict| !verdict.is_kept()).map(|verdict| verdict.to_string()).collect();
    assert!(broken.is_empty(), "{} seeds broke promises:\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn every_promise_is_kept_by_the_rules_alone() {
    kept(floors::core, 0..400);
}

#[test]
fn every_promise_is_kept_by_the_writers_loop_on_a_bad_disk() {
    kept(floors::writer, 0..300);
}
