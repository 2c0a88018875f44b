//! The lower floors of simulation, over many seeds: every promise, whatever happens.

use std::{collections::BTreeSet, panic::catch_unwind};

use integration_tests::{
    floors::{self, Floor, Verdict},
    history::{Answer, Event, History},
};

/// A seed's verdict. One that ends in a panic is named, too.
fn played(floor: fn(u64) -> Verdict, seed: u64) -> Verdict {
    catch_unwind(|| floor(seed)).unwrap_or_else(|_| panic!("seed {seed} ended in the panic above"))
}

fn kept(floor: fn(u64) -> Verdict, seeds: impl IntoIterator<Item = u64>) {
    let seeds = seeds.into_iter().map(|seed| played(floor, seed));
    let broken: Vec<String> =
        seeds.filter(|verdict| !verdict.is_kept()).map(|verdict| verdict.to_string()).collect();
    assert!(broken.is_empty(), "{} seeds broke promises:\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn every_promise_is_kept_by_the_rules_alone() {
    kept(floors::core, 0..200);
}

#[test]
fn every_promise_is_kept_by_the_writers_loop_on_a_bad_disk() {
    kept(floors::writer, 0..100);
}

/// They found that the store refuses what no disk leaves that writes sectors whole: logs torn within a sector. The disk of
/// the floor tore so; it does no more.
#[test]
fn seeds_that_tore_logs_within_a_sector() {
    kept(floors::writer, [31, 36, 57, 89, 159]);
}

/// They found faults of the floor and of a validator: two writes of one batch asked at the same time, and a service forgotten
/// of which it was said that nobody registered it.
#[test]
fn seeds_that_asked_twice_at_once_or_forgot_a_service() {
    kept(floors::core, [2_027, 2_615]);
}

/// What a history shows that happened, in words.
fn happened(history: &History) -> impl Iterator<Item = String> + '_ {
    let causes = history.commits.iter().map(|commit| format!("{:?}", commit.cause));
    let events = history.watchers.iter().flat_map(|watcher| &watcher.events);
    let told = events.filter_map(|event| match event {
        Event::Told(told) if told.snapshot => Some(format!("{:?}", told.reason)),
        Event::Told(told) if told.parts > 1 => Some("a delta in parts".to_owned()),
        _ => None,
    });
    let answers = history.asked.iter().filter_map(|asked| {
        asked.answer.as_ref().map(|(_, _, answer)| match answer {
            Answer::Exception(exception) => exception.clone(),
            Answer::Done(_) => "Done".to_owned(),
            other => format!("{other:?}"),
        })
    });
    let survivors = history.commits.iter().any(|commit| commit.run == 0);
    let others = [
        (survivors, "what nobody was answered for, and is there"),
        (history.runs.iter().any(|run| run.failed.is_some()), "a store that failed"),
        (!history.stalls.is_empty(), "a stall"),
    ];
    let others = others.into_iter().filter(|(so, _)| *so).map(|(_, what)| what.to_owned());
    causes.chain(told).chain(answers).chain(others)
}

/// A floor on which little happens proves little.
#[test]
fn everything_that_can_happen_does_on_the_floors() {
    let causes = [
        "Register",
        "Deregister",
        "Expire",
        "Override",
        "OverrideExpire",
        "RenewHeld",
        "HoldExpire",
        "ResolveHold",
    ];
    let both =
        ["Done", "Refused", "Renewed", "Superseded", "Unknown", "Initial", "Requested", "Lagged", "a stall"];
    let survivors = "what nobody was answered for, and is there";
    let of_core = ["EpochChanged", "HistoryGone", "SnapshotReplaced", "a delta in parts", survivors];
    let of_writer = ["StoreFailed", "a store that failed", survivors];
    let seen = |record: fn(u64) -> Floor, seeds: u64| -> BTreeSet<String> {
        (0..seeds).flat_map(|seed| happened(&record(seed).history).collect::<Vec<_>>()).collect()
    };
    for (floor, seen, own) in [
        ("core", seen(floors::record_core, 60), &of_core[..]),
        ("writer", seen(floors::record_writer, 60), &of_writer[..]),
    ] {
        let missing: Vec<_> =
            causes.iter().chain(&both).chain(own).filter(|what| !seen.contains(**what)).collect();
        assert!(missing.is_empty(), "on the floor {floor} there never was {missing:?}");
    }
}
