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
//! A lease is *quiet* if its last renewal found nothing to tell its registrant, and nothing that concerns it was committed
//! since: the next renewal then has nothing to look up but the deadline. Whoever joins the clock to the durable state
//! ([`super::Core`]) says what disturbs which lease.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use super::{FixedMap, LeaseId};

/// How far ahead of now outdated queue entries are corrected, in ms: bounds both how often the loop wakes for a lease
/// that was renewed long ago (ten times a second) and how many entries one wake-up corrects.
const LOOKAHEAD: u64 = 100;

/// Leases taken out of the queue at once because they are due: enough that many of one service are among them, and no more than are
/// looked through in a few milliseconds.
const DUE_AT_ONCE: usize = 8_000;

/// Entries of the queue that do not count and are left alone at least.
const OUTDATED: usize = 64;

/// Deadlines of leases, in mono ms.
#[derive(Clone, Debug, Default)]
pub struct LeaseClock {
    entries: FixedMap<LeaseId, Entry>,
    /// (a moment at or before the deadline, lease), for every running lease, the earliest first. One counts if it is what
    /// the lease's entry says; the first always counts.
    queue: BinaryHeap<Reverse<(u64, LeaseId)>>,
    /// How many of the queue do not count, or a few less.
    outdated: usize,
    /// What was taken out of the queue because it was due, and has not gone yet. Those that ended since, begun anew or were
    /// renewed are among them until it is their turn.
    due: VecDeque<LeaseId>,
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
    /// [`NEVER`]: dormant, everything it carries is held.
    deadline: u64,
    /// How long before its deadline it stands in the queue. [`NOWHERE`]: it does not: dormant, taken because it is due, or in
    /// flight.
    early: u32,
    /// How long a renewal of a quiet lease lasts; 0: it is not quiet. [`IN_FLIGHT`]: its expiry (or the end of its hold) was
    /// proposed and is neither committed nor abandoned.
    quiet_ttl: u32,
}

/// Of [`Entry::early`].
const NOWHERE: u32 = u32::MAX;
/// Of [`Entry::quiet_ttl`].
const IN_FLIGHT: u32 = u32::MAX;

impl Entry {
    const DORMANT: Self = Self { deadline: NEVER, early: NOWHERE, quiet_ttl: 0 };

    /// Where it stands in the queue, or [`NEVER`].
    fn queued(&self) -> u64 {
        if self.early == NOWHERE { NEVER } else { self.deadline - u64::from(self.early) }
    }

    fn in_flight(&self) -> bool {
        self.quiet_ttl == IN_FLIGHT
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
    /// Starts or restarts a lease, whatever it was: it runs out at `deadline`.
    pub(super) fn grant(&mut self, id: LeaseId, deadline: u64) {
        let deadline = moment(deadline, self.shift);
        let entry = self.entries.entry(id).or_insert(Entry::DORMANT);
        let queued = entry.queued();
        let early = deadline.checked_sub(queued).and_then(|early| u32::try_from(early).ok());
        *entry =
            Entry { deadline, early: early.filter(|early| *early != NOWHERE).unwrap_or(0), quiet_ttl: 0 };
        if entry.queued() != queued {
            self.enqueue(deadline, id);
            self.outdate(queued);
        }
    }

    /// A full TTL from `now` for a running lease, if it is quiet. False, and nothing happens, if it is not.
    pub(super) fn renew_quiet(&mut self, id: &LeaseId, now: u64) -> bool {
        let Some(entry) = self.entries.get_mut(id) else { return false };
        if entry.quiet_ttl == 0 || entry.in_flight() {
            return false;
        }
        let deadline = moment(now.saturating_add(entry.quiet_ttl.into()), self.shift);
        if !postpone(entry, deadline) {
            self.queue_anew(*id, deadline);
        }
        true
    }

    /// A running lease runs out at `deadline`, or later. Nothing happens if it is unknown or in flight.
    pub(super) fn renew(&mut self, id: &LeaseId, deadline: u64) {
        let deadline = moment(deadline, self.shift);
        if let Some(entry) = self.entries.get_mut(id)
            && !entry.in_flight()
            && !postpone(entry, deadline)
        {
            self.queue_anew(*id, deadline);
        }
    }

    /// A renewal had nothing to tell: until something [disturbs](Self::disturb) the lease, none has. (One of a TTL that is
    /// longer than an entry has room for, 49 days, is never quiet.)
    pub(super) fn quieten(&mut self, id: &LeaseId, ttl: u64) {
        if let Some(entry) = self.entries.get_mut(id).filter(|entry| !entry.in_flight()) {
            entry.quiet_ttl = u32::try_from(ttl).ok().filter(|ttl| *ttl != IN_FLIGHT).unwrap_or(0);
        }
    }

    /// Something happened that the lease's registrant may have to be told.
    pub(super) fn disturb(&mut self, id: &LeaseId) {
        if let Some(entry) = self.entries.get_mut(id).filter(|entry| !entry.in_flight()) {
            entry.quiet_ttl = 0;
        }
    }

    /// No deadline until the next grant: everything the lease carries is held.
    pub(super) fn suspend(&mut self, id: &LeaseId) {
        if let Some(entry) = self.entries.insert(*id, Entry::DORMANT) {
            self.outdate(entry.queued());
        }
    }

    /// Forgets a lease that ended.
    pub(super) fn remove(&mut self, id: &LeaseId) {
        if let Some(entry) = self.entries.remove(id) {
            self.outdate(entry.queued());
        }
    }

    /// Takes what is due by `now` out of the queue, up to [`DUE_AT_ONCE`], those that have been for longest; corrects outdated
    /// queue entries on the way. Nothing if some are left of what was taken before. Gives what was taken, to be put in the
    /// order in which it is to go.
    pub(super) fn take_due(&mut self, now: u64) -> Option<&mut [LeaseId]> {
        if !self.due.is_empty() {
            return None;
        }
        let now = now.saturating_sub(self.shift);
        while let Some(Reverse((queued, id))) = self.queue.peek().copied() {
            if queued > now.saturating_add(LOOKAHEAD) || self.due.len() == DUE_AT_ONCE {
                break;
            }
            match self.entries.get_mut(&id) {
                Some(entry) if entry.queued() == queued => {
                    let deadline = entry.deadline;
                    if deadline != queued {
                        entry.early = 0;
                        self.queue.pop();
                        self.enqueue(deadline, id);
                    } else if queued <= now {
                        entry.early = NOWHERE;
                        self.queue.pop();
                        if self.due.is_empty() {
                            self.due_since = queued;
                        }
                        self.due.push_back(id);
                    } else {
                        break;
                    }
                }
                _ => self.drop_first(),
            }
        }
        self.tidy();
        (!self.due.is_empty()).then(|| self.due.make_contiguous())
    }

    /// The lease that is to go next, of those due by `now`.
    pub(super) fn next_due(&mut self, now: u64) -> Option<LeaseId> {
        loop {
            self.take_due(now);
            let id = *self.due.front()?;
            let due = moment(now, self.shift);
            // Since it was taken it may have ended, begun anew, or been renewed.
            if let Some(entry) = self.entries.get_mut(&id)
                && entry.early == NOWHERE
                && entry.deadline != NEVER
                && !entry.in_flight()
            {
                let deadline = entry.deadline;
                if deadline <= due {
                    return Some(id);
                }
                entry.early = 0;
                self.enqueue(deadline, id);
            }
            self.due.pop_front();
        }
    }

    /// The lease's end was proposed: until that is committed or abandoned it cannot be renewed, nor is it due again.
    pub(super) fn begin(&mut self, id: &LeaseId) {
        if let Some(entry) = self.entries.get_mut(id) {
            let queued = entry.queued();
            (entry.early, entry.quiet_ttl) = (NOWHERE, IN_FLIGHT);
            if self.due.front() == Some(id) {
                self.due.pop_front();
            }
            self.outdate(queued);
        }
    }

    /// What was proposed will not be committed: as before [`begin`](Self::begin).
    pub(super) fn abandon(&mut self, id: &LeaseId) {
        if let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.in_flight()) {
            entry.quiet_ttl = 0;
            if entry.deadline != NEVER {
                entry.early = 0;
                let deadline = entry.deadline;
                self.enqueue(deadline, *id);
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
        let queued = self.queue.peek().map(|Reverse((at, _))| *at);
        let taken = (!self.due.is_empty()).then_some(self.due_since);
        queued.into_iter().chain(taken).min().map(|at| at.saturating_add(self.shift))
    }

    /// When a lease runs out, in mono ms. `None`: unknown, or everything it carries is held.
    pub fn deadline(&self, id: &LeaseId) -> Option<u64> {
        let deadline = self.entries.get(id)?.deadline;
        (deadline != NEVER).then(|| deadline.saturating_add(self.shift))
    }

    /// Whether the lease's end is proposed and neither committed nor abandoned.
    pub fn in_flight(&self, id: &LeaseId) -> bool {
        self.entries.get(id).is_some_and(Entry::in_flight)
    }

    /// As after a grant: where it stands is more before its deadline than an entry can say (49 days).
    fn queue_anew(&mut self, id: LeaseId, deadline: u64) {
        if let Some(entry) = self.entries.get_mut(&id) {
            let queued = entry.queued();
            (entry.deadline, entry.early) = (deadline, 0);
            self.enqueue(deadline, id);
            self.outdate(queued);
        }
    }

    fn enqueue(&mut self, at: u64, id: LeaseId) {
        if self.queue.len() == self.queue.capacity() {
            // By an eighth, not twice as much.
            self.queue.reserve_exact(self.queue.len() / 8 + OUTDATED);
        }
        self.queue.push(Reverse((at, id)));
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
            self.queue = counting.map(|(id, entry)| Reverse((entry.queued(), *id))).collect();
            self.outdated = 0;
        }
    }

    /// So that the first of the queue counts.
    fn tidy(&mut self) {
        while let Some(Reverse((at, id))) = self.queue.peek()
            && self.entries.get(id).is_none_or(|entry| entry.queued() != *at)
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
        self.entries.values_mut().filter(|entry| !entry.in_flight()).for_each(|entry| entry.quiet_ttl = 0);
    }
}

#[cfg(test)]
mod tests {
    use super::{LeaseClock, OUTDATED};
    use crate::core::LeaseId;

    #[test]
    fn leases_that_ended_leave_no_more_behind_than_there_are() {
        const ALIVE: u64 = 100;
        let id = |n: u64| LeaseId(u128::from(n).to_be_bytes());
        let mut clock = LeaseClock::default();
        // The first stays, and stays in front: nothing behind it goes because it comes to the front.
        clock.grant(id(0), 1);
        for n in 1..20_000 {
            clock.grant(id(n), 1_000 + n);
            if let Some(old) = n.checked_sub(ALIVE).filter(|old| *old > 0) {
                clock.remove(&id(old));
            }
            assert_eq!(clock.next(), Some(1));
            let alive = usize::try_from(ALIVE + 1).expect("small");
            assert!(clock.queue.len() <= 2 * (alive + OUTDATED), "{} in the queue", clock.queue.len());
        }
        clock.remove(&id(0));
        assert_eq!(clock.next(), Some(1_000 + 20_000 - ALIVE), "the earliest of those that are left");
        (1..20_000).for_each(|n| clock.remove(&id(n)));
        assert_eq!(clock.next(), None);
    }

    #[test]
    fn what_is_taken_because_it_is_due_is_renewed_like_any_other_until_it_goes() {
        let id = |n: u8| LeaseId([n; 16]);
        let mut clock = LeaseClock::default();
        (1..=6).for_each(|n| clock.grant(id(n), u64::from(n)));
        assert_eq!(clock.take_due(5).map(|due| due.len()), Some(5));
        assert_eq!((clock.next(), clock.take_due(6)), (Some(1), None));
        clock.renew(&id(1), 20);
        clock.grant(id(2), 30);
        clock.remove(&id(3));
        clock.suspend(&id(4));
        assert_eq!(clock.next_due(6), Some(id(5)));
        clock.begin(&id(5));
        assert_eq!((clock.next(), clock.next_due(6)), (Some(6), Some(id(6))));
        clock.shift(10);
        assert_eq!((clock.next(), clock.next_due(15)), (Some(16), None), "a stall counts for them, too");
        for (n, deadline) in [(6, 16), (1, 30), (2, 40)] {
            assert_eq!((clock.deadline(&id(n)), clock.next_due(deadline - 1)), (Some(deadline), None));
            assert_eq!(clock.next_due(deadline), Some(id(n)));
            clock.begin(&id(n));
        }
        assert_eq!((clock.next(), clock.next_due(100)), (None, None));
    }

    #[test]
    fn a_deadline_may_be_as_far_away_as_one_likes() {
        let id = LeaseId([1; 16]);
        let mut clock = LeaseClock::default();
        clock.grant(id, 10);
        for deadline in [11, 1 << 31, 1 << 32, (1 << 32) + 5, 1 << 40, u64::MAX - 1] {
            clock.renew(&id, deadline);
            assert_eq!((clock.deadline(&id), clock.next_due(deadline - 1)), (Some(deadline), None));
            assert_eq!(clock.next(), Some(deadline), "where it stands was corrected");
        }
        clock.grant(id, 5);
        clock.grant(id, 1 << 33);
        assert_eq!((clock.deadline(&id), clock.next_due((1 << 33) - 1)), (Some(1 << 33), None));
        assert_eq!(clock.next_due(1 << 33), Some(id));
    }

    #[test]
    fn what_was_given_up_is_due_again_and_once() {
        let id = LeaseId([1; 16]);
        let mut clock = LeaseClock::default();
        clock.grant(LeaseId([2; 16]), 5);
        clock.grant(id, 10);
        for _ in 0..3 {
            clock.begin(&id);
            assert_eq!((clock.next(), clock.next_due(4)), (Some(5), None));
            clock.abandon(&id);
        }
        clock.remove(&LeaseId([2; 16]));
        assert_eq!(clock.next_due(10), Some(id));
        clock.begin(&id);
        assert_eq!((clock.next(), clock.next_due(10)), (None, None));
    }
}
