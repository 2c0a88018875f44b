//! The embedded store on a sound disk, and on directories that are not.

use super::*;
use crate::store::{
    conformance,
    disk::faulty::{Fault, FaultyDisk},
    samples::{fold, record, visible},
};

fn options() -> EmbeddedOptions {
    EmbeddedOptions {
        segment_bytes: 600,
        grow_bytes: 0,
        history_records: 4,
        ..EmbeddedOptions::new(fold(), 0xE)
    }
}

fn open(disk: &FaultyDisk, options: EmbeddedOptions) -> Result<EmbeddedStore, StoreError> {
    EmbeddedStore::open_on(Arc::new(disk.clone()), options)
}

/// Ends the store as a kill does: without the mark of an orderly end.
fn kill(mut store: EmbeddedStore) {
    store.settle();
    store.unmarked = false;
}

fn records(from: u64, size: u64) -> Vec<Record> {
    (from..from + size).map(record).collect()
}

struct OnFaultyDisk {
    disk: FaultyDisk,
    options: EmbeddedOptions,
    fault_at: usize,
}

impl conformance::Subject for OnFaultyDisk {
    type Store = EmbeddedStore;
    const DURABLE: bool = true;
    const HISTORY: usize = 4;

    fn open(&mut self, new_epoch: u128) -> EmbeddedStore {
        // A broken disk works again after a restart; what it did not make durable is still only in memory.
        self.disk = self.disk.after_kill();
        open(&self.disk, EmbeddedOptions { new_epoch, ..self.options.clone() }).unwrap()
    }

    fn settle(store: &EmbeddedStore) {
        store.settle();
    }

    fn break_next_append(&mut self) -> bool {
        self.disk.fail_at(self.fault_at, Fault::Error);
        true
    }
}

#[test]
fn conforms() {
    for (segment_bytes, grow_bytes, fault_at) in
        [(600, 0, 0), (600, 0, 1), (1 << 20, 256, 0), (1 << 20, 4096, 1)]
    {
        let options = EmbeddedOptions { segment_bytes, grow_bytes, ..options() };
        conformance::all(|| OnFaultyDisk { disk: FaultyDisk::default(), options: options.clone(), fault_at });
    }
}

struct OnRealDisk(tempfile::TempDir);

impl conformance::Subject for OnRealDisk {
    type Store = EmbeddedStore;
    const DURABLE: bool = true;
    const HISTORY: usize = 6;

    fn open(&mut self, new_epoch: u128) -> EmbeddedStore {
        let options = EmbeddedOptions {
            segment_bytes: 2_000,
            history_records: 6,
            ..EmbeddedOptions::new(fold(), new_epoch)
        };
        EmbeddedStore::open(&self.0.path().join("data"), options).unwrap()
    }

    fn settle(store: &EmbeddedStore) {
        store.settle();
    }
}

#[test]
fn conforms_on_a_real_disk() {
    conformance::all(|| OnRealDisk(tempfile::tempdir().unwrap()));
}

#[test]
fn a_second_server_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let first = EmbeddedStore::open(directory.path(), options()).unwrap();
    let error = EmbeddedStore::open(directory.path(), options()).unwrap_err();
    assert_eq!(error, StoreError::Locked { directory: directory.path().display().to_string() });
    drop(first);
    EmbeddedStore::open(directory.path(), options()).unwrap();
}

#[test]
fn the_log_does_not_grow_for_ever() {
    let disk = FaultyDisk::default();
    let mut store = open(&disk, options()).unwrap();
    for n in 0..200 {
        store.append(&[record(n)]).unwrap();
        store.settle();
    }
    let logs: Vec<_> = disk.contents().into_iter().filter(|(name, _)| name.starts_with("log-")).collect();
    let bases = disk.contents().keys().filter(|name| name.starts_with("base-")).count();
    assert_eq!(bases, 1);
    let bytes: usize = logs.iter().map(|(_, bytes)| bytes.len()).sum();
    let base = usize::try_from(store.compactor.base_size()).unwrap();
    assert!(bytes < 3 * base.max(600), "{bytes} bytes in {} logs beside a base of {base}", logs.len());
    kill(store);
    let loaded = open(&disk.after_kill(), options()).unwrap().load().unwrap();
    assert_eq!(visible(&loaded), (0..200).map(|n| (n + 1, n)).collect::<Vec<_>>());
    assert!(loaded.tail.len() >= 4, "too little history");
    assert!(loaded.base.revision > 0, "nothing was folded");
}

/// So what folding takes of each record does not grow with the number of instances: the logs that follow a base are as large as it is.
#[test]
fn folding_writes_no_more_than_was_appended_and_one_base_however_much_there_is() {
    for many in [50, 1_500] {
        let disk = FaultyDisk::default();
        let mut store = open(&disk, EmbeddedOptions { history_records: 0, ..options() }).unwrap();
        let (mut appended, mut folded, mut folds) = (0, 0, 0);
        for n in 0..many {
            let before = (store.active.start, store.active.end, store.compactor.base_size());
            store.append(&[record(n)]).unwrap();
            store.settle();
            let began = if store.active.start == before.0 { before.1 } else { frame::HEADER as u64 };
            appended += store.active.end - began;
            if store.compactor.base_size() != before.2 {
                folded += store.compactor.base_size();
                folds += 1;
            }
        }
        assert!(folds > 3, "{many} records: {folds} folds are too few to show anything");
        let before = folded - store.compactor.base_size();
        assert!(before <= appended, "{many} records: {before} bytes of bases beside {appended} of logs");
    }
}

/// A disk on which a base finds no room for a while, though the log does.
#[test]
fn a_fold_that_found_no_room_is_tried_again_without_a_restart() {
    let bases = |disk: &FaultyDisk| disk.contents().keys().filter(|name| name.starts_with("base-")).count();
    let log_bytes = |disk: &FaultyDisk| {
        let logs = disk.contents().into_iter().filter(|(name, _)| name.starts_with("log-"));
        logs.map(|(_, bytes)| bytes.len()).sum::<usize>()
    };
    let disk = FaultyDisk::default();
    let mut store = open(&disk, options()).unwrap();
    disk.leave_no_room_for(Some("base-"));
    for n in 0..100 {
        store.append(&[record(n)]).unwrap();
        store.settle();
    }
    assert_eq!(bases(&disk), 0, "not even half of one is left, to take up room");
    let grown = log_bytes(&disk);
    // Killed now, nothing is lost.
    let kept = open(&disk.after_kill(), options()).unwrap().load().unwrap();
    assert_eq!(visible(&kept), (0..100).map(|n| (n + 1, n)).collect::<Vec<_>>());

    disk.leave_no_room_for(None);
    for n in 100..200 {
        store.append(&[record(n)]).unwrap();
        store.settle();
    }
    assert_eq!(bases(&disk), 1, "folded, without a restart");
    assert!(log_bytes(&disk) < grown, "{} bytes of log, and {grown} without a fold", log_bytes(&disk));
    kill(store);
    let loaded = open(&disk.after_power_loss(1), options()).unwrap().load().unwrap();
    assert_eq!(visible(&loaded), (0..200).map(|n| (n + 1, n)).collect::<Vec<_>>());
    assert!(loaded.base.revision > 100 && loaded.tail.len() >= 4);
}

#[test]
fn a_torn_tail_is_cut_off() {
    let disk = FaultyDisk::default();
    let mut store = open(&disk, EmbeddedOptions { segment_bytes: 1 << 20, ..options() }).unwrap();
    store.append(&records(0, 3)).unwrap();
    let whole = disk.contents();
    store.append(&records(3, 2)).unwrap();
    let longer = disk.contents();
    kill(store);
    let name = log_name(0);
    let (start, end) = (whole[&name].len(), longer[&name].len());
    for cut in start + 1..end {
        for zeros in [false, true] {
            let mut torn = longer.clone();
            let log = torn.get_mut(&name).unwrap();
            log.truncate(cut);
            if zeros {
                log.resize(end + 10, 0);
            }
            let disk = FaultyDisk::with(&torn);
            let mut store = open(&disk, options()).unwrap();
            assert_eq!(store.load().unwrap().tail.len(), 3, "cut at {cut}");
            store.append(&records(9, 1)).unwrap();
            kill(store);
            let loaded = open(&disk, options()).unwrap().load().unwrap();
            assert_eq!(visible(&loaded), [(1, 0), (2, 1), (3, 2), (4, 9)]);
        }
    }
}

#[test]
fn after_an_orderly_end_no_damage_passes_for_a_torn_tail() {
    let disk = FaultyDisk::default();
    let mut store = open(&disk, EmbeddedOptions { segment_bytes: 1 << 20, ..options() }).unwrap();
    store.append(&records(0, 3)).unwrap();
    let end = disk.contents()[&log_name(0)].len();
    drop(store);
    for at in 0..end {
        let mut files = disk.contents();
        files.get_mut(&log_name(0)).unwrap()[at] ^= 0x10;
        let damaged = FaultyDisk::with(&files);
        let error = open(&damaged, options()).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{at}: {error}");
        assert!(error.to_string().contains(&log_name(0)) && error.to_string().contains("offset"));
        assert_eq!(damaged.contents(), files, "a damaged store was touched");
    }
}

#[test]
fn damage_across_two_groups_is_no_torn_tail() {
    let disk = FaultyDisk::default();
    let mut store = open(&disk, EmbeddedOptions { segment_bytes: 1 << 20, ..options() }).unwrap();
    store.append(&records(0, 1)).unwrap();
    let middle = disk.contents()[&log_name(0)].len();
    store.append(&records(1, 1)).unwrap();
    kill(store);
    // The end of the first group and the beginning of the second: neither is whole, and nothing whole follows.
    let mut files = disk.contents();
    files.get_mut(&log_name(0)).unwrap()[middle - 5..middle + 5].fill(0xEE);
    let error = open(&FaultyDisk::with(&files), options()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}

#[test]
fn what_a_later_version_wrote_is_refused_and_left() {
    let disk = FaultyDisk::default();
    drop(open(&disk, options()).unwrap());
    let mut files = disk.contents();
    let log = files.get_mut(&log_name(0)).unwrap();
    // A group of one record: revision 1, wall 1, cause 1, and one event whose only field is 99, an empty message.
    let group = [0x12, 11, 0x08, 1, 0x10, 1, 0x18, 1, 0x2A, 3, 0x9A, 0x06, 0, 0x18, 1];
    let at = log.len() as u64;
    frame::push(log, at, |out| out.extend_from_slice(&group)).unwrap();
    let later = FaultyDisk::with(&files);
    let error = open(&later, options()).unwrap_err();
    assert!(matches!(error, StoreError::Newer { offset: 48, .. }), "{error}");
    assert!(error.to_string().contains("written by a newer version"), "{error}");
    assert_eq!(later.contents(), files);
}

#[test]
fn appends_go_on_when_compaction_fails() {
    let disk = FaultyDisk::default();
    let broken = EmbeddedOptions { fold: Arc::new(|_, _| panic!("a fold that fails")), ..options() };
    let mut store = open(&disk, broken).unwrap();
    for n in 0..20 {
        store.append(&[record(n)]).unwrap();
        store.settle();
    }
    kill(store);
    let loaded = open(&disk, options()).unwrap().load().unwrap();
    assert_eq!(visible(&loaded), (0..20).map(|n| (n + 1, n)).collect::<Vec<_>>());
}

#[test]
fn a_failed_sync_is_made_good_by_the_next_start_or_not_believed() {
    let disk = FaultyDisk::default();
    let mut store = open(&disk, options()).unwrap();
    store.append(&records(0, 1)).unwrap();
    disk.fail_at(1, Fault::Error);
    store.append(&records(1, 1)).unwrap_err();
    kill(store);
    // The system shows the group that it never wrote; after this start it is either durable or gone.
    let disk = disk.after_kill();
    let mut store = open(&disk, options()).unwrap();
    let shown = visible(&store.load().unwrap());
    kill(store);
    for seed in 0..20 {
        let loaded = open(&disk.after_power_loss(seed), options()).unwrap().load().unwrap();
        assert_eq!(visible(&loaded), shown);
    }
}

#[test]
fn a_later_format_is_refused_by_both_versions() {
    let disk = FaultyDisk::default();
    drop(open(&disk, options()).unwrap());
    let mut files = disk.contents();
    let log = files.get_mut(&log_name(0)).unwrap();
    log[8] = 2;
    let sum = xxhash_rust::xxh3::xxh3_64(&log[..40]);
    log[40..48].copy_from_slice(&sum.to_le_bytes());
    let later = FaultyDisk::with(&files);
    let error = open(&later, options()).unwrap_err();
    assert!(matches!(error, StoreError::FormatVersion { found: 2, known: 1, .. }), "{error}");
    assert_eq!(later.contents(), files);
}
