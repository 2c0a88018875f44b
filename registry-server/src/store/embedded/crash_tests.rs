//! Crash consistency: power is lost, the disk fails or is full at every single operation on it (each write, fsync, rename,
//! removal, truncation and fsync of the directory; of appends, of compaction, of the start and of recovery itself), in many
//! ways each. Nothing that was acknowledged is missing, nothing is there by half, nothing comes back, and the store goes on.

use super::*;
use crate::store::{
    disk::faulty::{Fault, FaultyDisk},
    samples::{fold, large_record, visible},
};

fn options(grow_bytes: u64) -> EmbeddedOptions {
    EmbeddedOptions {
        segment_bytes: 2_500,
        grow_bytes,
        history_records: 3,
        ..EmbeddedOptions::new(fold(), 0xE)
    }
}

/// What a run got to.
#[derive(Default)]
struct Run {
    /// Why it ended early.
    error: Option<StoreError>,
    /// Acknowledged, by wall time.
    acknowledged: Vec<u64>,
    /// Appended without an answer.
    unanswered: Vec<u64>,
}

/// Opens, appends groups of one to three records so that logs are sealed and folded on the way, and stops at the first
/// failure.
fn run(disk: &FaultyDisk, grow_bytes: u64, from: u64) -> Run {
    let mut run = Run::default();
    let mut store = match EmbeddedStore::open_on(Arc::new(disk.clone()), options(grow_bytes)) {
        Ok(store) => store,
        Err(error) => return Run { error: Some(error), ..run },
    };
    store.settle();
    let mut next = from;
    for size in [1, 3, 2, 1, 1, 3, 2, 1] {
        let walls: Vec<_> = (next..next + size).collect();
        next += size;
        let group: Vec<_> = walls.iter().map(|wall| large_record(*wall)).collect();
        if let Err(error) = store.append(&group) {
            (run.unanswered, run.error) = (walls, Some(error));
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
fn d1_power_may_fail_again_at_every_operation_of_a_recovery() {
    for first in 0.. {
        let disk = FaultyDisk::default();
        disk.fail_at(first, Fault::PowerLoss);
        let run = run(&disk, 256, 0);
        if !disk.faulted() {
            return;
        }
        for seed in 0..2 {
            for second in 0.. {
                let disk = disk.after_power_loss(seed);
                disk.fail_at(second, Fault::PowerLoss);
                if let Ok(store) = EmbeddedStore::open_on(Arc::new(disk.clone()), options(256)) {
                    store.settle();
                }
                let kept = walls(&disk.after_power_loss(seed + 1), 256);
                check_kept(&kept, &run, &format!("operations {first} and {second}, seed {seed}"));
                if !disk.faulted() {
                    break;
                }
            }
        }
    }
}

/// A log with a group of some sectors at its end, which neither begins nor ends with one; and where that begins.
fn last_group(grow_bytes: u64) -> (FaultyDisk, usize) {
    let disk = FaultyDisk::default();
    let options = EmbeddedOptions { segment_bytes: 1 << 20, ..options(grow_bytes) };
    let mut store = EmbeddedStore::open_on(Arc::new(disk.clone()), options).unwrap();
    store.append(&[large_record(1)]).unwrap();
    let start = usize::try_from(store.active.end).unwrap();
    store.append(&[large_record(2), large_record(3)]).unwrap();
    let end = usize::try_from(store.active.end).unwrap();
    assert!(start % 512 != 0 && end % 512 != 0 && end - start > 2_000);
    store.unmarked = false;
    drop(store);
    let mut files = disk.contents();
    files.get_mut(&log_name(0)).unwrap().truncate(end);
    (FaultyDisk::with(&files), start)
}

#[test]
fn d1_whatever_survived_of_the_last_write_it_is_whole_or_nothing_and_opens() {
    for grow_bytes in [0, 4_096] {
        let (disk, start) = last_group(grow_bytes);
        let whole = disk.contents()[&log_name(0)].clone();
        let survived = |bytes: Vec<u8>, context: &str| {
            let complete = bytes.starts_with(&whole);
            let files = [(log_name(0), bytes)].into();
            let kept = walls(&FaultyDisk::with(&files), grow_bytes);
            assert_eq!(kept, if complete { vec![1, 2, 3] } else { vec![1] }, "{context}");
        };
        // Any first part of it, the rest zeros or not there.
        for cut in start..=whole.len() {
            survived(whole[..cut].to_vec(), &format!("cut at {cut}"));
            let mut zeros = whole[..cut].to_vec();
            zeros.resize(8_192, 0);
            survived(zeros, &format!("zeros from {cut} on"));
        }
        // Any of its sectors, later ones without earlier ones too.
        let sectors: Vec<_> = (start / 512..=whole.len() / 512).map(|sector| sector * 512).collect();
        for survivors in 0_u32..1 << sectors.len() {
            let mut holes = whole.clone();
            holes.resize(8_192, 0);
            for (nth, sector) in sectors.iter().enumerate() {
                if (survivors >> nth) & 1 == 0 {
                    holes[start.max(*sector)..sector + 512].fill(0);
                }
            }
            survived(holes, &format!("sectors {survivors:b}"));
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
            // What a start has found after the failure is certain, although the system may only have shown it.
            let disk = disk.after_kill();
            let kept = walls(&disk, 256);
            for seed in 0..8 {
                let again = walls(&disk.after_power_loss(seed), 256);
                assert_eq!(again, kept, "operation {operation}, power lost after a start, seed {seed}");
            }
            let more = self::run(&disk, 256, 1_000);
            let again = walls(&disk.after_power_loss(seed), 256);
            assert_eq!(again, [kept, more.acknowledged].concat(), "operation {operation}, seed {seed}");
        }
    });
}

#[test]
fn d4_a_start_that_fails_at_any_operation_says_so_and_the_next_one_works() {
    let (torn, _) = last_group(256);
    let mut files = torn.contents();
    files.get_mut(&log_name(0)).unwrap().pop();
    files.insert("base-00000000000000000009.tmp".to_owned(), vec![1; 99]);
    for fault in [Fault::Error, Fault::Full] {
        for operation in 0.. {
            let disk = FaultyDisk::with(&files);
            disk.fail_at(operation, fault);
            let opened = EmbeddedStore::open_on(Arc::new(disk.clone()), options(256));
            if !disk.faulted() {
                assert!(operation > 4, "recovery has more operations than {operation}");
                break;
            }
            // A start on a full disk needs no room.
            assert_eq!(opened.is_ok(), fault == Fault::Full, "operation {operation}");
            if let Err(error) = opened {
                let said = error.to_string();
                assert!(said.contains("disk/") && said.contains("start the server again"), "{said}");
            }
            assert_eq!(walls(&disk.after_kill(), 256), [1], "operation {operation}");
        }
    }
}

#[test]
fn d4_a_full_disk_refuses_writes_keeps_what_was_acknowledged_and_works_again_with_room() {
    for grow_bytes in [0, 256] {
        every_operation(Fault::Full, grow_bytes, |disk, run, operation| {
            let context = format!("operation {operation}");
            // What needs no room (compaction may have failed beside it) goes on.
            if let Some(error) = &run.error {
                let said = error.to_string();
                assert!(said.contains("no storage space") && said.contains("disk/"), "{context}: {said}");
                assert!(said.contains("has room") && said.contains("start the server"), "{context}: {said}");
            }
            let left = files::list(disk).unwrap().temporary;
            assert!(left.is_empty(), "{context}: {left:?} fill a disk that is full");
            let kept = walls(&disk.after_kill(), grow_bytes);
            check_kept(&kept, run, &context);
            let disk = disk.after_kill();
            let more = self::run(&disk, grow_bytes, 1_000);
            assert_eq!(more.error, None, "{context}");
            assert_eq!(walls(&disk, grow_bytes), [kept, more.acknowledged].concat(), "{context}");
        });
    }
}

#[test]
fn what_cannot_be_read_is_named_and_left() {
    let (disk, _) = last_group(256);
    for name in [String::new(), log_name(0)] {
        let disk = disk.after_kill();
        let files = disk.contents();
        disk.fail_reads_of(&name);
        let error = EmbeddedStore::open_on(Arc::new(disk.clone()), options(256)).unwrap_err().to_string();
        assert!(error.contains(&format!("disk/{name}")) && error.contains("read and write"), "{error}");
        assert_eq!(disk.after_kill().contents(), files);
    }
}
