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
//! The queue keeps one entry a lease that counts, at or before its deadline; an entry that turns out to be too early is moved
//! when it comes to the front. What no longer counts is left in it until it comes to the front or half of the queue is of
//! that kind: a heap in one block takes half of what a search tree takes, and is written at its end. Deadlines are kept minus the total of all stalls, so a stall moves all of them at once.
//!
//! Each lease has a place, which the queue names: what is due is found without looking up a single id. What comes
//! of that is in [`due`](self::due).
//!
//! A lease is *quiet* if its last renewal found nothing to tell its registrant, and nothing that concerns it was committed
//! since: the next renewal then has nothing to look up but the deadline. Whoever joins the clock to the durable state
//! ([`super::Core`]) says what disturbs which lease.

mod due;
mod entries;
mod places;
mod trail;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

pub use self::trail::Trail;
use self::{entries::Entries, places::Places};
use super::LeaseId;

/// Entries of the queue that do not count and are left alone at least.
const OUTDATED: usize = 64;

/// Where a lease's entry is among all.
type Place = u32;

/// Deadlines of leases, in mono ms.
#[derive(Clone, Debug, Default)]
pub struct LeaseClock {
    places: Places,
    /// What is in none of `places` is in `vacant`.
    entries: Entries,
    vacant: Vec<Place>,
    /// (a moment at or before the deadline, place), for every running lease, the earliest first. One counts if it is what
    /// the entry there says; the first always counts.
    queue: BinaryHeap<Reverse<(u64, Place)>>,
    /// How many of the queue do not count, or a few less.
    outdated: usize,
    /// What was taken out of the queue because it was due, and has not gone yet. Those that ended since, begun anew or were
    /// renewed are among them until it is their turn.
    due: VecDeque<Place>,
    /// Where the first of them stood.
    due_since: u64,
    /// The total of all stalls: what is kept is a real moment minus this.
    shift: u64,
}

/// No moment. A word less each than an `Option`: there is one entry a lease.
const NEVER: u64 = u64::MAX;

/// What there is of each lease, and so no larger than it must be.
#[derive(Clone, Copy, Debug)]
struct Entry {
    id: LeaseId,
    /// [`NEVER`]: dormant, everything it carries is held; or there is no such lease any more.
    deadline: u64,
    /// How long before its deadline it stands in the queue. [`NOWHERE`]: it does not: dormant, taken because it is due, or in
    /// flight.
    early: u32,
    /// How long a renewal of a quiet lease lasts; 0: it is not quiet. [`IN_FLIGHT`]: its expiry (or the end of its hold) was
    /// proposed and is neither committed nor abandoned.
    quiet_ttl: u32,
    /// Of several that are due, those with the same one go together.
    kin: u32,
    /// Where the lease is that was renewed after it the last time: see [`trail`].
    next: Place,
}

/// Of [`Entry::early`].
const NOWHERE: u32 = u32::MAX;
/// Of [`Entry::quiet_ttl`].
const IN_FLIGHT: u32 = u32::MAX;

impl Entry {
    fn dormant(id: LeaseId, kin: u32) -> Self {
        Self { id, deadline: NEVER, early: NOWHERE, quiet_ttl: 0, kin, next: 0 }
    }

    /// Where it stands in the queue, or [`NEVER`].
    fn queued(&self) -> u64 {
        if self.early == NOWHERE { NEVER } else { self.deadline - u64::from(self.early) }
    }

    fn in_flight(&self) -> bool {
        self.quiet_ttl == IN_FLIGHT
    }

    fn is_quiet(&self) -> bool {
        self.quiet_ttl != 0 && !self.in_flight()
    }
}

/// As it is kept: without the total of all stalls, and before [`NEVER`].
fn moment(at: u64, shift: u64) -> u64 {
    at.saturating_sub(shift).min(NEVER - 1)
}

/// Moves the deadline of a running lease to `until`, if that is later: a restart may have given more than a TTL. False, and
/// nothing happens, if the entry has no room to say so.
fn postpone(entry: &mut Entry, until: u64) -> bool {
    if entry.deadline != NEVER && until > entry.deadline {
        if entry.early != NOWHERE {
            let more = u32::try_from(until - entry.deadline).ok();
            let early = more.and_then(|more| entry.early.checked_add(more)).filter(|early| *early != NOWHERE);
            let Some(early) = early else { return false };
            entry.early = early;
        }
        entry.deadline = until;
    }
    true
}

impl LeaseClock {
    /// Starts or restarts a lease, whatever it was: it runs out at `deadline`. `kin` is asked of a lease that was unknown: of
    /// several that are due, those with the same one go together.
    pub(super) fn grant(&mut self, id: LeaseId, deadline: u64, kin: impl FnOnce() -> u32) {
        let deadline = moment(deadline, self.shift);
        let place = self.find_or_begin(id, kin);
        let entry = &mut self.entries[place];
        let queued = entry.queued();
        let early = deadline.checked_sub(queued).and_then(|early| u32::try_from(early).ok());
        entry.early = early.filter(|early| *early != NOWHERE).unwrap_or(0);
        (entry.deadline, entry.quiet_ttl) = (deadline, 0);
        if entry.queued() != queued {
            self.enqueue(deadline, place);
            self.outdate(queued);
        }
    }

    /// A full TTL from `now` for a running lease, if it is quiet. False, and nothing happens, if it is not.
    pub(super) fn renew_quiet(&mut self, id: &LeaseId, now: u64, trail: &mut Trail) -> bool {
        let Some(place) = self.follow(id, trail) else { return false };
        let entry = &mut self.entries[place];
        if !entry.is_quiet() {
            return false;
        }
        let deadline = moment(now.saturating_add(entry.quiet_ttl.into()), self.shift);
        if !postpone(entry, deadline) {
            self.queue_anew(place, deadline);
        }
        true
    }

    /// A running lease runs out at `deadline`, or later. Nothing happens if it is unknown or in flight.
    pub(super) fn renew(&mut self, id: &LeaseId, deadline: u64) {
        let deadline = moment(deadline, self.shift);
        let Some(place) = self.places.get(id, &self.entries) else { return };
        let entry = &mut self.entries[place];
        if !entry.in_flight() && !postpone(entry, deadline) {
            self.queue_anew(place, deadline);
        }
    }

    /// A renewal had nothing to tell: until something [disturbs](Self::disturb) the lease, none has. (One of a TTL that is
    /// longer than an entry has room for, 49 days, is never quiet.)
    pub(super) fn quieten(&mut self, id: &LeaseId, ttl: u64) {
        if let Some(entry) = self.find_mut(id).filter(|entry| !entry.in_flight()) {
            entry.quiet_ttl = u32::try_from(ttl).ok().filter(|ttl| *ttl != IN_FLIGHT).unwrap_or(0);
        }
    }

    /// Something happened that the lease's registrant may have to be told.
    pub(super) fn disturb(&mut self, id: &LeaseId) {
        if let Some(entry) = self.find_mut(id).filter(|entry| !entry.in_flight()) {
            entry.quiet_ttl = 0;
        }
    }

    /// No deadline until the next grant: everything the lease carries is held. `kin` as in [`grant`](Self::grant).
    pub(super) fn suspend(&mut self, id: &LeaseId, kin: impl FnOnce() -> u32) {
        let place = self.find_or_begin(*id, kin);
        let entry = &mut self.entries[place];
        let queued = entry.queued();
        *entry = Entry::dormant(*id, entry.kin);
        if self.due.front() == Some(&place) {
            self.due.pop_front();
        }
        self.outdate(queued);
    }

    /// Forgets a lease that ended.
    pub(super) fn remove(&mut self, id: &LeaseId) {
        if let Some(place) = self.places.remove(id, &self.entries) {
            let entry = &mut self.entries[place];
            let queued = entry.queued();
            *entry = Entry::dormant(*id, 0);
            self.vacant.push(place);
            self.outdate(queued);
        }
    }

    /// The lease's end was proposed: until that is committed or abandoned it cannot be renewed, nor is it due again.
    pub(super) fn begin(&mut self, id: &LeaseId) {
        if let Some(place) = self.places.get(id, &self.entries) {
            let entry = &mut self.entries[place];
            let queued = entry.queued();
            (entry.early, entry.quiet_ttl) = (NOWHERE, IN_FLIGHT);
            if self.due.front() == Some(&place) {
                self.due.pop_front();
            }
            self.outdate(queued);
        }
    }

    /// What was proposed will not be committed: as before [`begin`](Self::begin).
    pub(super) fn abandon(&mut self, id: &LeaseId) {
        let Some(place) = self.places.get(id, &self.entries) else { return };
        let entry = &mut self.entries[place];
        if entry.in_flight() {
            entry.quiet_ttl = 0;
            if entry.deadline != NEVER {
                entry.early = 0;
                let deadline = entry.deadline;
                self.enqueue(deadline, place);
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

    /// A moment at or before the earliest deadline, never later. An outdated one is corrected by the next look at
    /// [what is due](Self::upcoming).
    pub(super) fn next(&self) -> Option<u64> {
        let queued = self.queue.peek().map(|Reverse((at, _))| *at);
        let taken = (!self.due.is_empty()).then_some(self.due_since);
        queued.into_iter().chain(taken).min().map(|at| at.saturating_add(self.shift))
    }

    /// When a lease runs out, in mono ms. `None`: unknown, or everything it carries is held.
    pub fn deadline(&self, id: &LeaseId) -> Option<u64> {
        let deadline = self.find(id)?.deadline;
        (deadline != NEVER).then(|| deadline.saturating_add(self.shift))
    }

    /// Whether the lease's end is proposed and neither committed nor abandoned.
    pub fn in_flight(&self, id: &LeaseId) -> bool {
        self.find(id).is_some_and(Entry::in_flight)
    }

    fn find(&self, id: &LeaseId) -> Option<&Entry> {
        self.places.get(id, &self.entries).map(|place| &self.entries[place])
    }

    fn find_mut(&mut self, id: &LeaseId) -> Option<&mut Entry> {
        self.places.get(id, &self.entries).map(|place| &mut self.entries[place])
    }

    /// The place of a lease, which begins as a dormant one if it is not there.
    fn find_or_begin(&mut self, id: LeaseId, kin: impl FnOnce() -> u32) -> Place {
        if let Some(place) = self.places.get(&id, &self.entries) {
            return place;
        }
        let entry = Entry::dormant(id, kin());
        let place = if let Some(place) = self.vacant.pop() {
            self.entries[place] = entry;
            place
        } else {
            self.entries.push(entry)
        };
        self.places.insert(&id, place);
        place
    }

    /// As after a grant: where it stands is more before its deadline than an entry can say (49 days).
    fn queue_anew(&mut self, place: Place, deadline: u64) {
        let entry = &mut self.entries[place];
        let queued = entry.queued();
        (entry.deadline, entry.early) = (deadline, 0);
        self.enqueue(deadline, place);
        self.outdate(queued);
    }

    fn enqueue(&mut self, at: u64, place: Place) {
        if self.queue.len() == self.queue.capacity() {
            // By an eighth, not twice as much.
            self.queue.reserve_exact(self.queue.len() / 8 + OUTDATED);
        }
        self.queue.push(Reverse((at, place)));
    }

    /// What stands at `queued`, if anything does, does not count any more: the lease's entry says otherwise already.
    fn outdate(&mut self, queued: u64) {
        if queued == NEVER {
            return;
        }
        self.outdated += 1;
        self.tidy();
        if self.outdated > OUTDATED + self.queue.len() / 2 {
            let counting = self.entries.iter().filter(|(_, entry)| entry.early != NOWHERE);
            self.queue = counting.map(|(place, entry)| Reverse((entry.queued(), place))).collect();
            self.outdated = 0;
        }
    }

    /// So that the first of the queue counts.
    fn tidy(&mut self) {
        while let Some(Reverse((at, place))) = self.queue.peek()
            && self.entries[*place].queued() != *at
        {
            self.drop_first();
        }
    }

    /// The first of the queue does not count.
    fn drop_first(&mut self) {
        self.queue.pop();
        self.outdated = self.outdated.saturating_sub(1);
    }

    /// As if every renewal since the start had had something to tell.
    #[cfg(test)]
    pub(super) fn disturb_all(&mut self) {
        self.entries.iter_mut().filter(|entry| !entry.in_flight()).for_each(|entry| entry.quiet_ttl = 0);
    }
}

#[cfg(test)]
mod tests;
