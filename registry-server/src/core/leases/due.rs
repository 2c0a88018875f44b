//! What is due, and in which order it goes. Keeps L2 for many at once: to find what is due looks up no lease by its id, and is
//! done once for all that are.
//!
//! ```text
//!   queue ── take_due: one by one if it is few, else in one sweep ──► due, by kin ── upcoming ──► begin_next
//!     ▲                                                                │
//!     └───────────────────────── renewed since ────────────────────────┘ ended or begun anew since: dropped
//! ```
//!
//! Of those that are due together, those of one kin (one service) go together: a revision then says much of few services, and
//! not little of each, and what is looked up for one is there for the next.

use std::{cmp::Reverse, mem};

use super::{super::FixedMap, IN_FLIGHT, LeaseClock, LeaseId, NEVER, NOWHERE, Place, moment};

/// How far ahead of now outdated queue entries are corrected, in ms: bounds both how often the loop wakes for a lease
/// that was renewed long ago (ten times a second) and how many entries one wake-up corrects.
const LOOKAHEAD: u64 = 100;

/// Taken out of the queue at once because they are due: enough that many of one kin are among them, and no more than take some
/// milliseconds.
const AT_ONCE: usize = 32_768;

/// So many, and one in [`SHARE`] of all, are taken out of the queue one by one.
const FEW: usize = 64;
/// To go through all costs for each less than to take one out of the queue, by about this factor.
const SHARE: usize = 32;

/// What is due: since when, where its entry is, and its kin.
type Taken = (u64, Place, u32);

impl LeaseClock {
    /// The leases that are to go next, of those due by `now`: so many at most, in the order in which they are to go.
    /// [`begin_next`](Self::begin_next) says of each in turn that it does.
    pub(in crate::core) fn upcoming(&mut self, now: u64, most: usize) -> Vec<LeaseId> {
        let until = moment(now, self.shift);
        let mut upcoming = Vec::new();
        loop {
            let since = self.due_since;
            if self.due.is_empty() && !self.take_due(until) {
                break;
            }
            if !upcoming.is_empty() {
                self.due_since = self.due_since.min(since);
            }
            while upcoming.len() < most
                && let Some(place) = self.due.pop_front()
            {
                // Since it was taken it may have ended, begun anew, or been renewed.
                let entry = &mut self.entries[place];
                if entry.early != NOWHERE || entry.deadline == NEVER || entry.in_flight() {
                    continue;
                }
                let deadline = entry.deadline;
                if deadline <= until {
                    upcoming.push(place);
                } else {
                    entry.early = 0;
                    self.enqueue(deadline, place);
                }
            }
            if upcoming.len() >= most {
                break;
            }
        }
        for place in upcoming.iter().rev() {
            self.due.push_front(*place);
        }
        upcoming.into_iter().map(|place| self.entries[place].id).collect()
    }

    /// [Begins](Self::begin) the first of [`upcoming`](Self::upcoming).
    pub(in crate::core) fn begin_next(&mut self) {
        if let Some(place) = self.due.pop_front() {
            // It stands nowhere in the queue since it was taken.
            self.entries[place].quiet_ttl = IN_FLIGHT;
        }
    }

    /// Takes what is due out of the queue, [`AT_ONCE`] at most; corrects outdated queue entries on the way. False if nothing is. To be called when
    /// nothing is left of what was taken before.
    pub(super) fn take_due(&mut self, until: u64) -> bool {
        let few = AT_ONCE.min(FEW + self.queue.len() / SHARE);
        let mut taken = Vec::new();
        while let Some(Reverse((queued, place))) = self.queue.peek().copied() {
            if queued > until.saturating_add(LOOKAHEAD) {
                break;
            }
            if taken.len() == few {
                self.sweep(until, &mut taken);
                break;
            }
            let entry = &mut self.entries[place];
            if entry.queued() != queued {
                self.drop_first();
            } else if entry.deadline != queued {
                entry.early = 0;
                let deadline = entry.deadline;
                self.queue.pop();
                self.enqueue(deadline, place);
            } else if queued <= until {
                entry.early = NOWHERE;
                self.queue.pop();
                taken.push((queued, place, entry.kin));
            } else {
                break;
            }
        }
        self.tidy();
        let Some((first, ..)) = taken.first() else { return false };
        self.due_since = *first;
        self.arrange(&taken);
        true
    }

    /// Takes what is due out of the queue in one go through it.
    fn sweep(&mut self, until: u64, taken: &mut Vec<Taken>) {
        let before = taken.len();
        let mut queue = mem::take(&mut self.queue).into_vec();
        queue.retain_mut(|Reverse((queued, place))| {
            if *queued > until.saturating_add(LOOKAHEAD) || taken.len() >= AT_ONCE {
                return true;
            }
            let entry = &mut self.entries[*place];
            if entry.queued() != *queued {
                self.outdated = self.outdated.saturating_sub(1);
                return false;
            }
            if entry.deadline != *queued {
                entry.early = 0;
                *queued = entry.deadline;
                return true;
            }
            if *queued <= until {
                entry.early = NOWHERE;
                taken.push((*queued, *place, entry.kin));
                return false;
            }
            true
        });
        self.queue = queue.into();
        // They were in no order; and are all due later than those that were taken one by one.
        taken[before..].sort_unstable();
    }

    /// By kin, in the order in which each is met first, so that equal histories have equal records; within it the earliest
    /// first.
    fn arrange(&mut self, taken: &[Taken]) {
        let mut numbers = FixedMap::default();
        let mut by_kin: Vec<Vec<Place>> = Vec::new();
        for (_, place, kin) in taken {
            let number = *numbers.entry(*kin).or_insert_with(|| {
                by_kin.push(Vec::new());
                by_kin.len() - 1
            });
            by_kin[number].push(*place);
        }
        self.due.extend(by_kin.into_iter().flatten());
    }
}
