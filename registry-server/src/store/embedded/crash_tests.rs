//! Crash consistency: power is lost at every single operation on the disk, in many ways each, and nothing that was
//! acknowledged is missing, nothing is there by half, and the store goes on.

use super::*;
use crate::store::{
    disk::faulty::{Fault, FaultyDisk},
    samples::{fold, record, visible},
};

fn options(grow_bytes: u64) -> EmbeddedOptions {
    EmbeddedOptions {
        segment_bytes: 400,
        grow_bytes,
        history_records: 3,
        ..EmbeddedOptions::new(fold(), 0xE)
    }
}

/// What a run got to.
#[derive(Default)]
struct Run {
    /// Acknowledged, by wall time.
    acknowledged: Vec<u64>,
    /// Appended without an answer.
    unanswered: Vec<u64>,
}

/// Opens, appends groups of one to three records so that logs are sealed and folded on the way, and stops at the first
/// failure.
fn run(disk: &FaultyDisk, grow_bytes: u64, from: u64) -> Run {
    let mut run = Run::default();
    let Ok(mut store) = EmbeddedStore::open_on(Arc::new(disk.clone()), options(grow_bytes)) else {
        return run;
    };
    store.settle();
    let mut next = from;
    for size in [1, 3, 2, 1, 1, 3, 2, 1] {
        let walls: Vec<_> = (next..next + size).collect();
        next += size;
        let group: Vec<_> = walls.iter().map(|wall| record(*wall)).collect();
        if store.append(&group).is_err() {
            run.unanswered = walls;
            break;
        }
        run.acknowledged.extend(walls);
        store.settle();
    }
    run
}

fn walls(disk: &FaultyDisk, grow_bytes: u64) -> Vec<u64> {
    let mut store = EmbeddedStore::open_on(Arc::new(disk.clone()), options(grow_bytes)).unwrap();
    let loaded = store.load().unwrap();
    store.settle();
    visible(&loaded).into_iter().map(|(_, wall)| wall).collect()
}

fn every_operation(fault: Fault, grow_bytes: u64, check: impl Fn(&FaultyDisk, &Run, usize)) {
    for operation in 0.. {
        let disk = FaultyDisk::default();
        disk.fail_at(operation, fault);
        let run = run(&disk, grow_bytes, 0);
        if !disk.faulted() {
            assert!(operation > 60, "the run is too short to show anything: {operation}");
            return;
        }
        check(&disk, &run, operation);
    }
}

fn check_kept(kept: &[u64], run: &Run, context: &str) {
    let mut whole = run.acknowledged.clone();
    whole.extend(&run.unanswered);
    assert!(
        kept == run.acknowledged || kept == whole,
        "{context}: acknowledged {:?}, unanswered {:?}, kept {kept:?}",
        run.acknowledged,
        run.unanswered
    );
}

#[test]
fn d1_an_acknowledged_write_survives_power_loss_at_every_operation() {
    for grow_bytes in [0, 256] {
        every_operation(Fault::PowerLoss, grow_bytes, |disk, run, operation| {
            for seed in 0..12 {
                let disk = disk.after_power_loss(seed);
                let kept = walls(&disk, grow_bytes);
                check_kept(&kept, run, &format!("operation {operation}, seed {seed}"));
                // What was shown once stays, and the store goes on.
                let more = self::run(&disk, grow_bytes, 1_000);
                let again = walls(&disk.after_power_loss(seed), grow_bytes);
                assert_eq!(again, [kept, more.acknowledged].concat(), "operation {operation}, seed {seed}");
            }
        });
    }
}

#[test]
fn d1_power_may_fail_again_while_the_store_recovers() {
    for first in (0..).step_by(5) {
        let disk = FaultyDisk::default();
        disk.fail_at(first, Fault::PowerLoss);
        let run = run(&disk, 256, 0);
        if !disk.faulted() {
            return;
        }
        for seed in 0..3 {
            for second in 0..12 {
                let disk = disk.after_power_loss(seed);
                disk.fail_at(second, Fault::PowerLoss);
                drop(EmbeddedStore::open_on(Arc::new(disk.clone()), options(256)));
                let kept = walls(&disk.after_power_loss(seed + 1), 256);
                check_kept(&kept, &run, &format!("operations {first} and {second}, seed {seed}"));
            }
        }
    }
}

#[test]
fn d4_a_failed_operation_loses_nothing_that_was_acknowledged() {
    every_operation(Fault::Error, 256, |disk, run, operation| {
        check_kept(&walls(&disk.after_kill(), 256), run, &format!("operation {operation}, killed"));
        for seed in 0..6 {
            let kept = walls(&disk.after_power_loss(seed), 256);
            check_kept(&kept, run, &format!("operation {operation}, power lost, seed {seed}"));
        }
    });
}
