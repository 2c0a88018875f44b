//! What a fold reads, when it goes on, and what becomes of one that cannot be finished.

use std::{sync::Mutex, thread::yield_now, time::Duration};

use super::*;
use crate::{
    core::Record,
    store::{
        Store,
        disk::faulty::FaultyDisk,
        embedded::EmbeddedStore,
        frame,
        record::encode_group,
        samples::{fold, record, visible},
    },
};

const EVERYTHING: Bounds = Bounds { records: 0, age: Duration::ZERO, bytes: 0 };

fn records(from: u64, size: u64) -> Vec<Record> {
    (from..from + size).map(record).collect()
}

/// A disk with logs of three groups of four records each, the last of which takes appends.
fn logs(count: u64) -> FaultyDisk {
    let disk = FaultyDisk::default();
    for log in 0..count {
        write_log(&disk, 12 * log, &[4, 4, 4]);
    }
    drop(files::create_log(&disk, 0xE, 12 * count).unwrap());
    disk
}

fn write_log(disk: &FaultyDisk, start: Revision, groups: &[u64]) {
    let mut file = files::create_log(disk, 0xE, start).unwrap();
    let mut bytes = Vec::new();
    let mut last = start;
    for &size in groups {
        let at = (frame::HEADER + bytes.len()) as u64;
        frame::push(&mut bytes, at, |out| encode_group(out, last, &records(last, size))).unwrap();
        last += size;
    }
    file.write_at(frame::HEADER as u64, &bytes).unwrap();
    file.sync().unwrap();
}

fn worker(disk: &FaultyDisk, history: Bounds) -> Worker {
    let gate = Arc::new(Gate::default());
    gate.set_busy(false);
    Worker {
        disk: Arc::new(disk.clone()),
        epoch: 0xE,
        fold: fold(),
        history,
        gate,
        base_size: Arc::default(),
    }
}

#[test]
fn of_the_records_that_are_folded_one_group_is_in_memory_and_of_the_logs_one_file() {
    let disk = logs(3);
    let worker = worker(&disk, EVERYTHING);
    let mut records = Records::new(&worker, vec![0, 12, 24], (2, 33), Interner::default());
    let mut seen = Vec::new();
    while let Some(committed) = records.next() {
        let revision = committed.revision;
        seen.push(revision);
        assert_eq!(records.group.len() as u64, (4 - revision % 4) % 4, "the rest of its own group");
        assert_eq!(records.logs.len() as u64, 2 - (revision - 1) / 12, "later logs are not read yet");
    }
    assert_eq!(seen, (3..=33).collect::<Vec<_>>());
    assert!(records.open.is_none() && records.failed.is_none(), "nothing is kept while the base is written");
    assert_eq!(records.next().map(|committed| committed.revision), None);
}

#[test]
fn what_cannot_be_read_while_it_is_folded_leaves_all_as_it_was() {
    let disk = logs(1);
    // A group of one record with an event of a kind that only later versions know: its head is sound.
    let mut file = files::create_log(&disk, 0xE, 12).unwrap();
    let mut bytes = Vec::new();
    let group = [0x08, 12, 0x12, 11, 0x08, 13, 0x10, 1, 0x18, 1, 0x2A, 3, 0x9A, 0x06, 0, 0x18, 13];
    frame::push(&mut bytes, frame::HEADER as u64, |out| out.extend_from_slice(&group)).unwrap();
    file.write_at(frame::HEADER as u64, &bytes).unwrap();
    write_log(&disk, 13, &[4]);
    let before = disk.contents();
    let error = worker(&disk, EVERYTHING).compact(13).unwrap_err();
    assert!(matches!(error, StoreError::Newer { offset: 48, .. }), "{error}");
    assert_eq!(disk.contents(), before);
}

/// A store whose folds are noted, beside what the test does.
fn noted(disk: &FaultyDisk) -> (EmbeddedStore, Arc<Mutex<Vec<&'static str>>>) {
    let notes: Arc<Mutex<Vec<&'static str>>> = Arc::default();
    let (noted, fold) = (Arc::clone(&notes), fold());
    let options = EmbeddedOptions {
        segment_bytes: 600,
        grow_bytes: 0,
        history_records: 0,
        ..EmbeddedOptions::new(
            Arc::new(move |base, records| {
                noted.lock().unwrap().push("folded");
                fold(base, records)
            }),
            0xE,
        )
    };
    let store = EmbeddedStore::open_on(Arc::new(disk.clone()), options).unwrap();
    store.settle();
    (store, notes)
}

/// Appends until another log is sealed.
fn fill_a_log(store: &mut EmbeddedStore) {
    let start = store.active.start;
    while store.active.start == start {
        store.append(&records(store.last, 1)).unwrap();
    }
}

fn until(done: impl Fn() -> bool) {
    while !done() {
        yield_now();
    }
}

fn folded(notes: &Mutex<Vec<&'static str>>) -> bool {
    notes.lock().unwrap().contains(&"folded")
}

/// Seals a log; it is folded when the loop says anew that it has little to do, and not before.
fn is_folded_once_it_is_quiet_anew(mut store: EmbeddedStore, notes: &Mutex<Vec<&'static str>>) {
    fill_a_log(&mut store);
    // Either it stands at the gate, as it should, or it has not.
    until(|| store.compactor.gate.holds() || folded(notes));
    notes.lock().unwrap().push("quiet");
    store.set_busy(false);
    until(|| folded(notes));
    assert_eq!(*notes.lock().unwrap(), ["quiet", "folded"]);
}

#[test]
fn a_fold_waits_until_there_is_little_to_do() {
    let disk = FaultyDisk::default();
    let (mut store, notes) = noted(&disk);
    store.set_busy(false);
    store.set_busy(true);
    is_folded_once_it_is_quiet_anew(store, &notes);
}

#[test]
fn a_quiet_moment_before_a_log_was_full_says_nothing_of_the_moment_after() {
    let disk = FaultyDisk::default();
    let (mut store, notes) = noted(&disk);
    store.set_busy(false);
    is_folded_once_it_is_quiet_anew(store, &notes);
}

#[test]
fn a_fold_is_put_off_until_the_next_log_is_half_full() {
    let disk = FaultyDisk::default();
    let (mut store, notes) = noted(&disk);
    fill_a_log(&mut store);
    let start = store.active.start;
    store.append(&records(store.last, 1)).unwrap();
    assert!(store.active.end >= 300, "half of it");
    until(|| store.compactor.gate.holds() || folded(&notes));
    notes.lock().unwrap().push("half full");
    store.append(&records(store.last, 1)).unwrap();
    until(|| folded(&notes));
    assert_eq!(*notes.lock().unwrap(), ["half full", "folded"]);
    assert_eq!(store.active.start, start, "that log is not full yet");
}

#[test]
fn however_busy_the_writer_is_one_full_log_waits_at_most() {
    let disk = FaultyDisk::default();
    let (mut store, notes) = noted(&disk);
    for _ in 0..20 {
        store.set_busy(true);
        fill_a_log(&mut store);
        store.set_busy(true);
        // Whatever can be folded is: what is left waits for the gate, and is one log.
        until(|| store.compactor.gate.holds());
        let names = disk.contents().into_keys();
        let logs = names.filter(|name| name.starts_with("log-")).count();
        assert!(logs <= 2, "{logs} logs, the one that takes appends included");
    }
    assert!(folded(&notes));
}

#[test]
fn a_store_that_is_closed_leaves_a_fold_that_was_put_off_to_the_next_start() {
    let disk = FaultyDisk::default();
    let (mut store, notes) = noted(&disk);
    fill_a_log(&mut store);
    let all = store.last;
    drop(store);
    assert!(!folded(&notes));
    let (mut store, notes) = noted(&disk);
    assert!(folded(&notes), "that was asked for when it was opened");
    assert_eq!(visible(&store.load().unwrap()).len() as u64, all);
    drop(store);
    let (mut store, _) = noted(&disk);
    assert_eq!(visible(&store.load().unwrap()).len() as u64, all, "from the base");
}

/// The mark of an orderly end is no reason for it: whoever stops the server would wait for a whole fold.
#[test]
fn a_store_that_is_closed_with_a_log_half_full_or_full_begins_no_fold() {
    for appended in [8, 40] {
        let disk = FaultyDisk::default();
        let (mut store, notes) = noted(&disk);
        fill_a_log(&mut store);
        let start = store.active.start;
        store.append(&records(store.last, appended)).unwrap();
        assert!(store.active.end >= 300, "half of it at once, or all");
        drop(store);
        assert!(!folded(&notes), "{appended} records");
        let logs = disk.contents().into_keys().filter(|name| *name > log_name(start)).count();
        assert_eq!(logs, 0, "and no log");
    }
}

#[test]
fn a_fold_that_does_not_take_all_records_leaves_all_as_it_was() {
    let disk = logs(2);
    let mut worker = worker(&disk, EVERYTHING);
    let fold = fold();
    worker.fold = Arc::new(move |base, records| fold(base, &mut records.take(17)));
    let before = disk.contents();
    let error = worker.compact(24).unwrap_err();
    assert!(
        matches!(error, StoreError::Corrupt { .. }) && error.to_string().contains("up to 17 "),
        "{error}"
    );
    assert_eq!(disk.contents(), before);
}

#[test]
fn what_fails_again_and_again_is_tried_ever_more_seldom_and_what_is_damaged_not_at_all() {
    let mut trouble = Trouble::None;
    let mut tried = Vec::new();
    for chance in 0..40 {
        if !trouble.passes_over() {
            tried.push(chance);
            trouble = trouble.after(&StoreError::Io("no room".to_owned()));
        }
    }
    assert_eq!(tried, [0, 1, 3, 6, 11, 20, 29, 38]);
    let damage = StoreError::Corrupt { file: "f".to_owned(), offset: 0, what: "w".to_owned() };
    let mut lasting = trouble.after(&damage);
    assert!((0..100).all(|_| lasting.passes_over()));
}
