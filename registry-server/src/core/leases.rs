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
//!
//! A lease is *quiet* if its last renewal found nothing to tell its registrant, and nothing that concerns it was committed
//! since: the next renewal then has nothing to look up but the deadline. Whoever joins the clock to the durable state
//! ([`super::Core`]) says what disturbs which lease.

use std::{collections::BTreeSet, mem};

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

/// No moment. A word less each than an `Option`: there is one entry a lease.
const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// How long a renewal lasts.
    ttl: u64,
    /// [`NEVER`]: dormant, everything it carries is held.
    deadline: u64,
    /// Where it stands in the queue. [`NEVER`]: dormant or in flight.
    queued: u64,
    /// Its expiry (or the end of its hold) was proposed and is neither committed nor abandoned.
    in_flight: bool,
    /// A renewal has nothing to look up but this.
    quiet: bool,
}

impl Entry {
    fn new(ttl: u64) -> Self {
        Self { ttl, deadline: NEVER, queued: NEVER, in_flight: false, quiet: false }
    }

    fn renew(&mut self, now: u64, shift: u64) {
        if self.deadline != NEVER {
            // Never earlier: a restart may have given more than a TTL.
            self.deadline = self.deadline.max(moment(now.saturating_add(self.ttl), shift));
        }
    }
}

/// As it is kept: without the total of all stalls, and before [`NEVER`].
fn moment(at: u64, shift: u64) -> u64 {
    at.saturating_sub(shift).min(NEVER - 1)
}

impl LeaseClock {
    /// Starts or restarts a lease, whatever it was: it runs out at `deadline`.
    pub(super) fn grant(&mut self, id: LeaseId, ttl: u64, deadline: u64) {
        let deadline = moment(deadline, self.shift);
        let entry = self.entries.entry(id).or_insert_with(|| Entry::new(ttl));
        *entry = Entry { queued: entry.queued, deadline, ..Entry::new(ttl) };
        if entry.queued > deadline {
            let queued = mem::replace(&mut entry.queued, deadline);
            if queued != NEVER {
                self.queue.remove(&(queued, id));
            }
            self.queue.insert((deadline, id));
        }
    }

    /// A full TTL from `now` for a running lease, if it is quiet. False, and nothing happens, if it is not.
    pub(super) fn renew_quiet(&mut self, id: &LeaseId, now: u64) -> bool {
        let quiet = self.entries.get_mut(id).filter(|entry| entry.quiet && !entry.in_flight);
        quiet.map(|entry| entry.renew(now, self.shift)).is_some()
    }

    /// A full TTL from `now` for a running lease. Nothing happens if it is unknown or in flight.
    pub(super) fn renew(&mut self, id: &LeaseId, now: u64) {
        if let Some(entry) = self.entries.get_mut(id).filter(|entry| !entry.in_flight) {
            entry.renew(now, self.shift);
        }
    }

    /// A renewal had nothing to tell: until something [disturbs](Self::disturb) the lease, none has.
    pub(super) fn quieten(&mut self, id: &LeaseId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.quiet = true;
        }
    }

    /// Something happened that the lease's registrant may have to be told.
    pub(super) fn disturb(&mut self, id: &LeaseId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.quiet = false;
        }
    }

    /// No deadline until the next grant: everything the lease carries is held.
    pub(super) fn suspend(&mut self, id: &LeaseId, ttl: u64) {
        let entry = self.entries.entry(*id).or_insert_with(|| Entry::new(ttl));
        let queued = entry.queued;
        *entry = Entry::new(entry.ttl);
        self.dequeue(queued, id);
    }

    /// Forgets a lease that ended.
    pub(super) fn remove(&mut self, id: &LeaseId) {
        if let Some(entry) = self.entries.remove(id) {
            self.dequeue(entry.queued, id);
        }
    }

    /// The lease that is due by `now` and has been for longest. Corrects outdated queue entries on the way.
    pub(super) fn next_due(&mut self, now: u64) -> Option<LeaseId> {
        let now = now.saturating_sub(self.shift);
        while let Some((queued, id)) = self.queue.first().copied() {
            if queued > now.saturating_add(LOOKAHEAD) {
                return None;
            }
            let entry = self.entries.get_mut(&id);
            if entry.as_ref().is_some_and(|entry| entry.deadline == queued) {
                return (queued <= now).then_some(id);
            }
            self.queue.remove(&(queued, id));
            if let Some(entry) = entry.filter(|entry| entry.deadline != NEVER) {
                entry.queued = entry.deadline;
                self.queue.insert((entry.deadline, id));
            }
        }
        None
    }

    /// The lease's end was proposed: until that is committed or abandoned it cannot be renewed, nor is it due again.
    pub(super) fn begin(&mut self, id: &LeaseId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.in_flight = true;
            let queued = mem::replace(&mut entry.queued, NEVER);
            self.dequeue(queued, id);
        }
    }

    /// What was proposed will not be committed: as before [`begin`](Self::begin).
    pub(super) fn abandon(&mut self, id: &LeaseId) {
        if let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.in_flight) {
            entry.in_flight = false;
            if entry.deadline != NEVER {
                entry.queued = entry.deadline;
                self.queue.insert((entry.deadline, *id));
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
        let deadline = self.entries.get(id)?.deadline;
        (deadline != NEVER).then(|| deadline.saturating_add(self.shift))
    }

    /// Whether the lease's end is proposed and neither committed nor abandoned.
    pub fn in_flight(&self, id: &LeaseId) -> bool {
        self.entries.get(id).is_some_and(|entry| entry.in_flight)
    }

    fn dequeue(&mut self, queued: u64, id: &LeaseId) {
        if queued != NEVER {
            self.queue.remove(&(queued, *id));
        }
    }

    /// As if every renewal since the start had had something to tell.
    #[cfg(test)]
    pub(super) fn disturb_all(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.quiet = false);
    }
}
