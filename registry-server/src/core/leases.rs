//! The lease clock: when each lease runs out. Volatile, and beside the durable state.
//!
//! Owns deadlines, not what happens at them. Keeps L1 (a renewal counts from the moment it is processed; a stall moves
//! every deadline) and L2 (a lease is due at exactly its deadline).
//!
//! ```text
//!            grant                    deadline passed, tick
//!   (none) ────────► running ───────────────────────────────► in flight ──┬── committed: the lease ended ──► (none)
//!                     ▲ │ ▲                                               ├── committed: instances held ──► dormant
//!              renew  └─┘ └───────────────── abandon ─────────────────────┘
//!                       ▲                                                                                     │
//!                       └──────────────────────── grant (released, renewed) ──────────────────────────────────┘
//! ```
//!
//! Renewals are by far the most frequent thing that happens to a registry, so a renewal only writes the new deadline.
//! The queue keeps one entry a lease, at or before its deadline; an entry that turns out to be too early is moved when
//! it comes to the front. Deadlines are kept minus the total of all stalls, so a stall moves all of them at once.

use std::collections::BTreeSet;

use super::{FixedMap, LeaseId};

/// How far ahead of now outdated queue entries are corrected, in ms: bounds both how often the loop wakes for a lease
/// that was renewed long ago (ten times a second) and how many entries one wake-up corrects.
const LOOKAHEAD: u64 = 100;

/// Deadlines of leases, in mono ms.
#[derive(Clone, Debug, Default)]
pub struct LeaseClock {
    entries: FixedMap<LeaseId, Entry>,
    /// (a moment at or before the deadline, lease), for every running lease.
    queue: BTreeSet<(u64, LeaseId)>,
    /// The total of all stalls: what is kept is a real moment minus this.
    shift: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// How long a renewal lasts.
    ttl: u64,
    /// `None`: dormant, everything it carries is held.
    deadline: Option<u64>,
    /// Where it stands in the queue. `None`: dormant or in flight.
    queued: Option<u64>,
    /// Its expiry (or the end of its hold) was proposed and is neither committed nor abandoned.
    in_flight: bool,
}

impl LeaseClock {
    /// Starts or restarts a lease, whatever it was: it runs out at `deadline`.
    pub(super) fn grant(&mut self, id: LeaseId, ttl: u64, deadline: u64) {
        let deadline = deadline.saturating_sub(self.shift);
        let entry =
            self.entries.entry(id).or_insert(Entry { ttl, deadline: None, queued: None, in_flight: false });
        entry.ttl = ttl;
        entry.deadline = Some(deadline);
        entry.in_flight = false;
        if entry.queued.is_none_or(|queued| queued > deadline) {
            if let Some(queued) = entry.queued.replace(deadline) {
                self.queue.remove(&(queued, id));
            }
            self.queue.insert((deadline, id));
        }
    }

    /// A full TTL from `now` for a running lease. Returns the TTL, or `None` if the lease is unknown or in flight.
    pub(super) fn renew(&mut self, id: &LeaseId, now: u64) -> Option<u64> {
        let entry = self.entries.get_mut(id).filter(|entry| !entry.in_flight)?;
        if let Some(deadline) = &mut entry.deadline {
            // Never earlier: a restart may have given more than a TTL.
            *deadline = (*deadline).max(now.saturating_add(entry.ttl).saturating_sub(self.shift));
        }
        Some(entry.ttl)
    }

    /// No deadline until the next grant: everything the lease carries is held.
    pub(super) fn suspend(&mut self, id: &LeaseId, ttl: u64) {
        let entry =
            self.entries.entry(*id).or_insert(Entry { ttl, deadline: None, queued: None, in_flight: false });
        entry.deadline = None;
        entry.in_flight = false;
        if let Some(queued) = entry.queued.take() {
            self.queue.remove(&(queued, *id));
        }
    }

    /// Forgets a lease that ended.
    pub(super) fn remove(&mut self, id: &LeaseId) {
        if let Some(queued) = self.entries.remove(id).and_then(|entry| entry.queued) {
            self.queue.remove(&(queued, *id));
        }
    }

    /// The lease that is due by `now` and has been for longest. Corrects outdated queue entries on the way.
    pub(super) fn next_due(&mut self, now: u64) -> Option<LeaseId> {
        let now = now.saturating_sub(self.shift);
        while let Some((queued, id)) = self.queue.first().copied() {
            if queued > now.saturating_add(LOOKAHEAD) {
                return None;
            }
            let deadline = self.entries.get(&id).and_then(|entry| entry.deadline);
            if deadline == Some(queued) {
                return (queued <= now).then_some(id);
            }
            self.queue.remove(&(queued, id));
            if let (Some(entry), Some(deadline)) = (self.entries.get_mut(&id), deadline) {
                entry.queued = Some(deadline);
                self.queue.insert((deadline, id));
            }
        }
        None
    }

    /// The lease's end was proposed: until that is committed or abandoned it cannot be renewed, nor is it due again.
    pub(super) fn begin(&mut self, id: &LeaseId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.in_flight = true;
            if let Some(queued) = entry.queued.take() {
                self.queue.remove(&(queued, *id));
            }
        }
    }

    /// What was proposed will not be committed: as before [`begin`](Self::begin).
    pub(super) fn abandon(&mut self, id: &LeaseId) {
        if let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.in_flight) {
            entry.in_flight = false;
            if let Some(deadline) = entry.deadline {
                entry.queued = Some(deadline);
                self.queue.insert((deadline, *id));
            }
        }
    }

    /// What was proposed about the lease is committed, and the lease goes on.
    pub(super) fn settle(&mut self, id: &LeaseId) {
        self.abandon(id);
    }

    /// Moves every deadline by `by` ms.
    pub(super) fn shift(&mut self, by: u64) {
        self.shift = self.shift.saturating_add(by);
    }

    /// A moment at or before the earliest deadline, never later. An outdated one is corrected by the next
    /// [`next_due`](Self::next_due).
    pub(super) fn next(&self) -> Option<u64> {
        self.queue.first().map(|(at, _)| at.saturating_add(self.shift))
    }

    /// When a lease runs out, in mono ms. `None`: unknown, or everything it carries is held.
    pub fn deadline(&self, id: &LeaseId) -> Option<u64> {
        Some(self.entries.get(id)?.deadline?.saturating_add(self.shift))
    }

    /// Whether the lease's end is proposed and neither committed nor abandoned.
    pub fn in_flight(&self, id: &LeaseId) -> bool {
        self.entries.get(id).is_some_and(|entry| entry.in_flight)
    }
}
