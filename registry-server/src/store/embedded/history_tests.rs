//! What is kept out of the base (W5): whatever happens to the disk while logs are folded and removed, the state is whole
//! and the last records are there as they were.

use std::collections::BTreeMap;

use super::*;
use crate::store::{
    disk::faulty::{Fault, FaultyDisk},
    samples::{fold, record, removal, visible},
};

/// Bounds of the history, and how many records they keep at least of the runs below.
#[derive(Clone, Copy, Debug)]
struct Kept {
    records: u64,
    age: u64,
    bytes: u64,
}

const MUCH: u64 = 1 << 30;
const KEPT: [Kept; 5] = [
    Kept { records: 0, age: MUCH, bytes: MUCH },
    Kept { records: 5, age: MUCH, bytes: MUCH },
    Kept { records: MUCH, age: 6, bytes: MUCH },
    Kept { records: MUCH, age: MUCH, bytes: 500 },
    Kept { records: MUCH, age: MUCH, bytes: MUCH },
];

fn options(kept: Kept) -> EmbeddedOptions {
    EmbeddedOptions {
        segment_bytes: 400,
        grow_bytes: 0,
        history_records: kept.records,
        history_age: Duration::from_millis(kept.age),
        history_bytes: kept.bytes,
        ..EmbeddedOptions::new(fold(), 0xE)
    }
}

/// The nth record that a run appends: registrations and removals in turn, a millisecond apart.
fn nth(n: u64) -> Record {
    Record { wall: n, ..if n.is_multiple_of(2) { record(n) } else { removal(n - 1) } }
}

/// Appends groups over three lives of the server, so that logs are sealed, folded and removed at appends, at starts and
/// on demand; stops at the first failure. Gives how many records were acknowledged, and how many were under way.
fn run(disk: &FaultyDisk, kept: Kept) -> (u64, u64) {
    let mut acknowledged = 0;
    for _ in 0..3 {
        let Ok(mut store) = EmbeddedStore::open_on(Arc::new(disk.clone()), options(kept)) else {
            return (acknowledged, 0);
        };
        store.settle();
        for size in [1, 3, 2, 1, 2] {
            let group: Vec<_> = (acknowledged..acknowledged + size).map(nth).collect();
            if store.append(&group).is_err() {
                return (acknowledged, size);
            }
            acknowledged += size;
            store.settle();
        }
        if store.compact(acknowledged).is_err() {
            return (acknowledged, 0);
        }
        store.settle();
    }
    (acknowledged, 0)
}

/// Opens the store and checks that all is there: the state, and of the history what the bounds say.
fn check(disk: &FaultyDisk, kept: Kept, (acknowledged, under_way): (u64, u64), context: &str) {
    let mut store = EmbeddedStore::open_on(Arc::new(disk.clone()), options(kept))
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    let loaded = store.load().unwrap();
    let all = visible(&loaded);
    let found = all.len() as u64;
    assert!(found == acknowledged || found == acknowledged + under_way, "{context}: {found} records");
    assert_eq!(all, (0..found).map(|n| (n + 1, n)).collect::<Vec<_>>(), "{context}");
    for committed in &loaded.tail {
        assert_eq!(
            committed.record,
            nth(committed.revision - 1),
            "{context}: a record of the history changed"
        );
    }
    // A record of these has less than 150 bytes, and groups have three at most.
    let least =
        kept.records.min(kept.age).min(kept.bytes / 150 - kept.bytes.min(300) / 150).min(acknowledged);
    assert!(
        loaded.tail.len() as u64 >= least,
        "{context}: {} records are kept of {least}",
        loaded.tail.len()
    );
    store.settle();
}

#[test]
fn w5_the_history_is_within_its_bounds_and_the_rest_is_folded() {
    for (kept, most) in KEPT.into_iter().zip([10, 15, 16, 20, 27]) {
        let disk = FaultyDisk::default();
        let all = run(&disk, kept);
        assert_eq!(all, (27, 0));
        check(&disk, kept, all, &format!("{kept:?}"));
        let mut store = EmbeddedStore::open_on(Arc::new(disk), options(kept)).unwrap();
        let loaded = store.load().unwrap();
        assert!(loaded.tail.len() <= most, "{kept:?}: {} records are kept", loaded.tail.len());
    }
}

#[test]
fn w5_d1_power_may_fail_at_every_operation_of_folding_and_removing() {
    for kept in KEPT {
        let mut operations = 0;
        for operation in 0.. {
            let disk = FaultyDisk::default();
            disk.fail_at(operation, Fault::PowerLoss);
            let run = run(&disk, kept);
            if !disk.faulted() {
                break;
            }
            operations += 1;
            for seed in 0..6 {
                let disk = disk.after_power_loss(seed);
                let context = format!("{kept:?}, operation {operation}, seed {seed}");
                check(&disk, kept, run, &context);
                // What a start found stays so, and the store goes on from there.
                check(&disk.after_power_loss(seed), kept, run, &format!("{context}, once more"));
            }
        }
        assert!(operations > 60, "{kept:?}: the run is too short to show anything: {operations}");
    }
}

#[test]
fn w5_d4_an_operation_of_folding_and_removing_that_fails_loses_nothing() {
    for kept in KEPT {
        for operation in 0.. {
            let disk = FaultyDisk::default();
            disk.fail_at(operation, Fault::Error);
            let run = run(&disk, kept);
            if !disk.faulted() {
                break;
            }
            check(&disk.after_kill(), kept, run, &format!("{kept:?}, operation {operation}, killed"));
            for seed in 0..3 {
                let context = format!("{kept:?}, operation {operation}, power lost, seed {seed}");
                check(&disk.after_power_loss(seed), kept, run, &context);
            }
        }
    }
}

/// Old logs may be gone in any order when power failed while they were removed.
#[test]
fn any_of_the_logs_that_the_base_holds_may_be_there_or_not() {
    let disk = FaultyDisk::default();
    let much = KEPT[4];
    let all = run(&disk, much);
    let before = disk.contents();
    let mut store = EmbeddedStore::open_on(Arc::new(disk.clone()), options(KEPT[1])).unwrap();
    store.settle();
    store.unmarked = false;
    drop(store);
    let after = disk.contents();
    let removed: Vec<_> = before.keys().filter(|name| !after.contains_key(*name)).cloned().collect();
    assert!(removed.len() >= 3, "too few to show anything: {removed:?}");
    for kept in 0..1_u32 << removed.len() {
        let mut files: BTreeMap<_, _> = after.clone();
        for (bit, name) in removed.iter().enumerate() {
            if kept & (1 << bit) != 0 {
                files.insert(name.clone(), before[name].clone());
            }
        }
        let disk = FaultyDisk::with(&files);
        check(&disk, KEPT[1], all, &format!("{kept:b} of {removed:?}"));
        assert!(removed.iter().all(|name| !disk.contents().contains_key(name)), "leftovers are cleared away");
    }
}

/// A directory as the version before wrote it: the base ends where the last sealed log does, and there is no history.
#[test]
fn a_base_without_history_is_taken_and_history_gathers_from_there() {
    let disk = FaultyDisk::default();
    run(&disk, KEPT[0]);
    let mut store = EmbeddedStore::open_on(Arc::new(disk.clone()), options(KEPT[4])).unwrap();
    let found = store.load().unwrap().tail.len();
    for n in 27..40 {
        store.append(&[nth(n)]).unwrap();
        store.settle();
    }
    drop(store);
    let mut store = EmbeddedStore::open_on(Arc::new(disk), options(KEPT[4])).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!(loaded.tail.len(), found + 13);
    assert_eq!(visible(&loaded).len(), 40);
}
