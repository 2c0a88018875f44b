//! The lower floors of simulation, over many seeds: every promise, whatever happens.

use std::{collections::BTreeSet, panic::catch_unwind};

use integration_tests::{
    floors::{self, Floor, Verdict, how_to_repeat},
    history::{Answer, Event, History},
};

/// A floor's name, and how it plays a seed.
type Played = (&'static str, fn(u64) -> Verdict);

const CORE: Played = ("core", floors::core);
const WRITER: Played = ("writer", floors::writer);

/// A seed's verdict. One that ends in a panic is named, too.
fn played((floor, play): Played, seed: u64) -> Verdict {
    let panicked = |_| panic!("the panic above ended a seed; to repeat it: {}", how_to_repeat(floor, seed));
    catch_unwind(|| play(seed)).unwrap_or_else(panicked)
}

fn kept(floor: Played, seeds: impl IntoIterator<Item = u64>) {
    let seeds = seeds.into_iter().map(|seed| played(floor, seed));
    let broken: Vec<String> =
        seeds.filter(|verdict| !verdict.is_kept()).map(|verdict| verdict.to_string()).collect();
    assert!(broken.is_empty(), "{} seeds broke promises:\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn every_promise_is_kept_by_the_rules_alone() {
    kept(CORE, 0..200);
}

#[test]
fn every_promise_is_kept_by_the_writers_loop_on_a_bad_disk() {
    kept(WRITER, 0..100);
}

/// They found that the store refuses what no disk leaves that writes sectors whole: logs torn within a sector. The disk of
/// the floor tore so; it does no more.
#[test]
fn seeds_that_tore_logs_within_a_sector() {
    kept(WRITER, [31, 36, 57, 89, 159]);
}

/// They found faults of the floor and of a validator: two writes of one batch asked at the same time, and a service forgotten
/// of which it was said that nobody registered it.
#[test]
fn seeds_that_asked_twice_at_once_or_forgot_a_service() {
    kept(CORE, [2_027, 2_615]);
}

/// It found a fault of a validator: a lease of which something was held was renewed, and superseded for a moment before its
/// instances were released. Nothing is released then until it renews again.
#[test]
fn a_seed_in_which_a_held_lease_was_superseded_for_a_moment() {
    kept(CORE, [13_017]);
}

/// It found that what passed between the load and the loop's first turn counted against leases (L1): a process that was stopped
/// right there expired who could not have renewed.
#[test]
fn a_seed_in_which_the_process_stands_still_right_after_its_load() {
    kept(WRITER, [12_003]);
}

/// The whole of two histories of one seed, part by part.
fn the_same(record: fn(u64) -> Floor, seeds: impl IntoIterator<Item = u64>) {
    for seed in seeds {
        let (one, two) = (record(seed), record(seed));
        macro_rules! same {
            ($($part:ident),*) => {{
                let History { $($part: _),* } = &one.history;
                $({
                    let (one, two) = (format!("{:#?}", one.history.$part), format!("{:#?}", two.history.$part));
                    for (number, (one, two)) in one.lines().zip(two.lines()).enumerate() {
                        let part = stringify!($part);
                        assert_eq!(one, two, "seed {seed}: the histories part at line {number} of {part}");
                    }
                    assert_eq!(one.len(), two.len(), "seed {seed}: one history has more {}", stringify!($part));
                })*
            }};
        }
        same!(
            commits, runs, stalls, asked, writes, watchers, readings, gauges, leases, overrides, expiries,
            rules
        );
        assert_eq!(one.broken, two.broken);
        assert!(!one.history.commits.is_empty() && !one.history.watchers.is_empty(), "nothing happened");
    }
}

#[test]
fn the_same_seed_gives_the_same_history_of_the_rules() {
    the_same(floors::record_core, 0..12);
}

#[test]
fn the_same_seed_gives_the_same_history_of_the_writers_loop() {
    the_same(floors::record_writer, 0..12);
}

/// And the histories are of their seeds.
#[test]
fn another_seed_gives_another_history() {
    for record in [floors::record_core, floors::record_writer] {
        let commits = |seed| format!("{:?}", record(seed).history.commits);
        assert_ne!(commits(1), commits(2));
    }
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
