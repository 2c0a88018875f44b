//! What every store has to do, whatever it is made of. Each implementation's tests call [`all`].

use super::{
    Store, StoreError,
    samples::{record, removal, visible},
};
use crate::core::{Record, Revision};

/// An implementation, with whatever it stands on.
pub(super) trait Subject {
    /// The store; its fold, if it has one, is [`fold`](super::samples::fold).
    type Store: Store;
    /// Whether a store that is opened again holds what the one before acknowledged.
    const DURABLE: bool;
    /// How many of the last records stay out of the base for history at least, whatever is compacted.
    const HISTORY: usize;
    /// Opens it, again after the last one was dropped.
    fn open(&mut self, new_epoch: u128) -> Self::Store;
    /// Waits until it has compacted what it was asked to.
    fn settle(_: &Self::Store) {}
    /// Makes the next append fail, if that can be done.
    fn break_next_append(&mut self) -> bool {
        false
    }
}

/// Runs the suite; `make` gives an empty subject each time.
pub(super) fn all<S: Subject>(make: impl Fn() -> S) {
    revisions_strictly_grow(make());
    an_empty_group_is_no_revision(make());
    a_second_load_is_refused(make());
    the_epoch_names_the_history(make());
    what_was_appended_is_loaded_in_order(make());
    compaction_changes_nothing_visible(make());
    history_outlives_compaction_and_restart(make());
    a_failure_closes_the_store(make());
}

fn group(from: u64, size: u64) -> Vec<Record> {
    (from..from + size).map(record).collect()
}

/// Appends groups of 1, 2, .. records; gives what was acknowledged.
fn fill(store: &mut impl Store, from: u64, groups: u64) -> Vec<(Revision, u64)> {
    let mut acknowledged = Vec::new();
    let mut next = from;
    for size in 1..=groups {
        let group = group(next, size);
        let revisions = store.append(&group).unwrap();
        assert_eq!(revisions.len(), group.len(), "one revision a record");
        acknowledged.extend(revisions.into_iter().zip(group.iter().map(|record| record.wall)));
        next += size;
    }
    acknowledged
}

fn revisions_strictly_grow<S: Subject>(mut subject: S) {
    let mut store = subject.open(1);
    store.load().unwrap();
    let mut acknowledged = fill(&mut store, 0, 5);
    drop(store);
    let mut store = subject.open(2);
    store.load().unwrap();
    if !S::DURABLE {
        acknowledged.clear();
    }
    acknowledged.extend(fill(&mut store, 100, 3));
    assert!(acknowledged[0].0 > 0, "0 is the revision of nothing");
    assert!(acknowledged.is_sorted_by(|a, b| a.0 < b.0), "{acknowledged:?}");
}

fn an_empty_group_is_no_revision<S: Subject>(mut subject: S) {
    let mut store = subject.open(1);
    store.load().unwrap();
    assert_eq!(store.append(&[]), Ok(vec![]));
    fill(&mut store, 0, 1);
    assert_eq!(store.append(&[]), Ok(vec![]));
}

fn a_second_load_is_refused<S: Subject>(mut subject: S) {
    let mut store = subject.open(1);
    store.load().unwrap();
    assert_eq!(store.load().err(), Some(StoreError::AlreadyLoaded));
}

fn the_epoch_names_the_history<S: Subject>(mut subject: S) {
    let first = subject.open(0xAB).load().unwrap().epoch;
    assert_eq!(first, "000000000000000000000000000000ab");
    let second = subject.open(0xCD).load().unwrap().epoch;
    assert_eq!(second == first, S::DURABLE, "{first} {second}");
}

fn what_was_appended_is_loaded_in_order<S: Subject>(mut subject: S) {
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let mut store = subject.open(1);
        let loaded = store.load().unwrap();
        if S::DURABLE {
            assert_eq!(visible(&loaded), acknowledged);
        } else {
            assert_eq!((loaded.tail.len(), loaded.base.revision), (0, 0));
        }
        for committed in &loaded.tail {
            assert_eq!(committed.record, record(committed.record.wall), "a record changed");
        }
        acknowledged.extend(fill(&mut store, round * 100, 4));
    }
}

fn compaction_changes_nothing_visible<S: Subject>(mut subject: S) {
    let mut acknowledged = Vec::new();
    for round in 0..4 {
        let mut store = subject.open(1);
        let loaded = store.load().unwrap();
        if S::DURABLE {
            assert_eq!(visible(&loaded), acknowledged);
            assert!(round == 0 || loaded.base.revision > 0, "nothing was compacted");
            let told = loaded.tail.iter().map(|committed| (committed.revision, committed.record.wall));
            assert!(acknowledged.ends_with(&told.collect::<Vec<_>>()), "the history has a gap or ends early");
            assert!(loaded.tail.iter().all(|committed| committed.revision > loaded.base.revision));
        }
        for batch in 0..3 {
            acknowledged.extend(fill(&mut store, round * 100 + batch * 20, 3));
            store.compact(acknowledged.last().unwrap().0).unwrap();
            S::settle(&store);
            acknowledged.extend(fill(&mut store, round * 100 + batch * 20 + 10, 2));
        }
    }
}

/// W5: the last records are there as they were, removals included, so that recent changes can be told from them.
fn history_outlives_compaction_and_restart<S: Subject>(mut subject: S) {
    let mut written: Vec<(Revision, Record)> = Vec::new();
    for round in 0..8 {
        let mut store = subject.open(1);
        let loaded = store.load().unwrap();
        let told: Vec<_> = loaded.tail.into_iter().map(|it| (it.revision, it.record)).collect();
        if !S::DURABLE {
            assert!(told.is_empty(), "a store that keeps nothing has no history");
            written.clear();
        }
        assert!(written.ends_with(&told), "the history is not what was written");
        assert!(told.len() >= S::HISTORY.min(written.len()), "{} of {}", told.len(), written.len());
        assert_eq!(
            loaded.base.revision,
            written.iter().rev().nth(told.len()).map_or(0, |(revision, _)| *revision)
        );
        for n in 0..5 {
            let records = vec![record(round * 10 + n), removal(round * 10 + n)];
            let revisions = store.append(&records).unwrap();
            written.extend(revisions.iter().copied().zip(records));
            store.compact(*revisions.last().unwrap()).unwrap();
            S::settle(&store);
        }
    }
}

fn a_failure_closes_the_store<S: Subject>(mut subject: S) {
    let mut store = subject.open(1);
    store.load().unwrap();
    let acknowledged = fill(&mut store, 0, 3);
    if !subject.break_next_append() {
        return;
    }
    let first = store.append(&group(50, 2)).unwrap_err();
    assert!(matches!(first, StoreError::Closed { .. }), "{first}");
    assert_eq!(store.append(&group(60, 1)), Err(first.clone()), "accepted after a failure");
    assert_eq!(store.append(&[]), Err(first.clone()));
    assert_eq!(store.compact(1), Err(first));
    drop(store);
    let mut store = subject.open(2);
    let loaded = visible(&store.load().unwrap());
    assert!(loaded.starts_with(&acknowledged));
    let more = loaded.len() - acknowledged.len();
    assert!(more == 0 || more == 2, "half a group: {more}");
    fill(&mut store, 70, 1);
}
