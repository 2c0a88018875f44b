//! Single moments at which something durable is due: the ends of holds and of overrides.
//!
//! Owns when, not what. Few and seldom moved, unlike leases ([`super::leases`]), so every change goes to the queue at
//! once. A due timer that was proposed is *in flight*: out of the queue until it is cancelled or put back.

use std::collections::{BTreeMap, BTreeSet};

/// Timers by name, in mono ms.
#[derive(Clone, Debug)]
pub(super) struct Timers<K> {
    /// When each is due, in flight or not.
    due: BTreeMap<K, u64>,
    /// Those that are not in flight.
    queue: BTreeSet<(u64, K)>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self { due: BTreeMap::new(), queue: BTreeSet::new() }
    }
}

impl<K: Ord + Clone> Timers<K> {
    /// Sets or moves a timer.
    pub(super) fn set(&mut self, name: K, at: u64) {
        self.cancel(&name);
        self.due.insert(name.clone(), at);
        self.queue.insert((at, name));
    }

    /// Moves a timer that is set and earlier than `at`.
    pub(super) fn postpone(&mut self, name: &K, at: u64) {
        if self.due.get(name).is_some_and(|due| *due < at) {
            self.set(name.clone(), at);
        }
    }

    /// The names of the timers that are not in flight.
    pub(super) fn waiting(&self) -> Vec<K> {
        self.queue.iter().map(|(_, name)| name.clone()).collect()
    }

    /// Forgets a timer.
    pub(super) fn cancel(&mut self, name: &K) {
        if let Some(at) = self.due.remove(name) {
            self.queue.remove(&(at, name.clone()));
        }
    }

    /// Takes the earliest timer due by `now` into flight.
    pub(super) fn take_due(&mut self, now: u64) -> Option<K> {
        if self.next()? > now {
            return None;
        }
        self.queue.pop_first().map(|(_, name)| name)
    }

    /// Puts a timer that is in flight back.
    pub(super) fn put_back(&mut self, name: &K) {
        if let Some(at) = self.due.get(name) {
            self.queue.insert((*at, name.clone()));
        }
    }

    /// The earliest moment at which a timer is due.
    pub(super) fn next(&self) -> Option<u64> {
        self.queue.first().map(|(at, _)| *at)
    }
}
