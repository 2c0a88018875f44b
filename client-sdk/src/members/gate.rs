//! What stands before one instance: how many requests it may have at once, and whether it is on probation.
//!
//! ```text
//!   enter ---> a permit ---> finished, lost, or dropped: the place is free, and whoever waits is told
//!     |
//!     +------> full, or another request is the probe: passed over, as one that is busy
//! ```
//!
//! The count never passes the limit: it is compared and added to in one step. No wake-up is lost: whoever leaves a full
//! gate says so in the turn of the [`Room`] before it wakes, and whoever leaves or enters one that still has places wakes the
//! next if anybody waits. A gate outlives its member's connections, and two members of one instance share it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use tokio::sync::Notify;

use super::{Room, aperture::Occupancy};
use crate::{
    balance::Outcome,
    outlier::{Passage, Probe, Tally, Told},
};

/// Before one instance.
#[derive(Debug)]
pub(super) struct Gate {
    /// How many requests may be in at once. `None`: any number, and nobody counts.
    limit: Option<usize>,
    inside: AtomicUsize,
    /// `None`: nobody is judged.
    tally: Option<Arc<Tally>>,
    room: Arc<Room>,
    /// The driver's: told that there is something to settle.
    wake: Arc<Notify>,
    /// All instances' together. `None`: nobody goes by it.
    occupancy: Option<Arc<Occupancy>>,
}

/// The right of one request to be with an instance. Dropped, the request was given up.
#[derive(Debug)]
pub(super) struct Permit {
    gate: Arc<Gate>,
    probe: Option<Probe>,
    /// Whether it was said how the request ended.
    told: bool,
}

/// Why a request may not enter right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// As many as may be are inside.
    Full,
    /// Another request shows whether the instance is well again.
    Probed,
}

impl Gate {
    pub(super) fn new(
        limit: Option<usize>,
        tally: Option<Arc<Tally>>,
        room: Arc<Room>,
        wake: Arc<Notify>,
    ) -> Self {
        Self { limit, inside: AtomicUsize::new(0), tally, room, wake, occupancy: None }
    }

    /// Has what is inside counted among what all instances have.
    pub(super) fn counted(self, occupancy: Option<Arc<Occupancy>>) -> Self {
        Self { occupancy, ..self }
    }

    /// Lets a request in. `on_probation`: the instance is, as far as the request knows; `heeded`: whether that matters, or
    /// it may go there anyway.
    pub(super) fn enter(self: &Arc<Self>, on_probation: bool, heeded: bool) -> Result<Permit, Refused> {
        let tally = self.tally.as_ref().filter(|_| on_probation);
        // Looked at before a place is taken and given back: that would wake those who wait, for nothing, again and again.
        if heeded && tally.is_some_and(|tally| !tally.is_open()) {
            return Err(Refused::Probed);
        }
        if let Some(limit) = self.limit {
            let entered = self.inside.fetch_update(SeqCst, SeqCst, |n| (n < limit).then_some(n + 1));
            let before = entered.map_err(|_| Refused::Full)?;
            if before + 1 < limit {
                self.room.still_free();
            }
        }
        if let Some(occupancy) = &self.occupancy {
            occupancy.begin();
        }
        let mut permit = Permit { gate: Arc::clone(self), probe: None, told: false };
        if let Some(tally) = tally {
            match tally.enter() {
                Some(Passage::Probe(probe)) => permit.probe = Some(probe),
                None if heeded => {
                    permit.told = true;
                    return Err(Refused::Probed);
                }
                Some(Passage::Free) | None => {}
            }
        }
        Ok(permit)
    }

    /// Whether as many are inside as may be.
    pub(super) fn is_full(&self) -> bool {
        self.limit.is_some_and(|limit| self.inside.load(SeqCst) >= limit)
    }

    fn leave(&self) {
        if let Some(occupancy) = &self.occupancy {
            occupancy.end();
        }
        let Some(limit) = self.limit else { return };
        if self.inside.fetch_sub(1, SeqCst) >= limit {
            self.room.vacated();
        } else {
            self.room.still_free();
        }
    }
}

impl Permit {
    /// Its answer began.
    pub(super) fn answered(&self) {
        if let (Some(tally), Some(probe)) = (&self.gate.tally, &self.probe) {
            tally.answered(probe);
        }
    }

    /// The request ended, and how.
    pub(super) fn finish(mut self, outcome: Outcome) {
        self.tell(outcome);
    }

    fn tell(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let Some(tally) = &self.gate.tally else { return };
        let Told { settle, free } = tally.finished(outcome, self.probe.take());
        if settle {
            self.gate.wake.notify_one();
        }
        if free {
            self.gate.room.vacated();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.tell(Outcome::Cancelled);
        self.gate.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        sync::atomic::AtomicBool,
        task::{Context, Waker},
        time::Duration,
    };

    use super::*;
    use crate::{
        model::Instance,
        outlier::{Detector, Judgement, OutlierDetection},
    };

    fn gate(limit: Option<usize>) -> Arc<Gate> {
        Arc::new(Gate::new(limit, None, Arc::new(Room::new(true)), Arc::default()))
    }

    #[test]
    fn on_many_threads_the_count_never_passes_the_limit_and_ends_at_nothing() {
        let (gate, most) = (gate(Some(3)), AtomicUsize::new(0));
        let (inside, entered) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let refused = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        match gate.enter(false, true) {
                            Ok(permit) => {
                                most.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
                                entered.fetch_add(1, SeqCst);
                                std::thread::yield_now();
                                inside.fetch_sub(1, SeqCst);
                                permit.finish(Outcome::Success);
                            }
                            Err(why) => {
                                assert_eq!(why, Refused::Full);
                                refused.store(true, SeqCst);
                                std::thread::yield_now();
                            }
                        }
                    }
                });
            }
        });
        assert!(most.load(SeqCst) <= 3, "{most:?}");
        assert!(entered.load(SeqCst) > 0 && refused.load(SeqCst), "it was tried");
        assert_eq!(gate.inside.load(SeqCst), 0);
    }

    #[test]
    fn whoever_leaves_a_full_gate_says_so() {
        let gate = gate(Some(1));
        let (permit, turn) = (gate.enter(false, true).expect("free"), gate.room.turn());
        assert_eq!(gate.enter(false, true).expect_err("full"), Refused::Full);
        drop(permit);
        assert_ne!(gate.room.turn(), turn);
    }

    #[test]
    fn whoever_leaves_or_enters_with_a_place_to_spare_wakes_the_next_that_waits() {
        let gate = gate(Some(3));
        let room = Arc::clone(&gate.room);
        let turn = room.turn();
        let mut waits: Vec<_> = (0..4).map(|_| Box::pin(room.vacancy(turn, true))).collect();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(waits.iter_mut().all(|wait| wait.as_mut().poll(&mut cx).is_pending()));
        // One that was woken is done and waits no more.
        let mut woken = || {
            let before = waits.len();
            waits.retain_mut(|wait| wait.as_mut().poll(&mut cx).is_pending());
            before - waits.len()
        };
        let enter = || gate.enter(false, true).expect("a place");
        let first = enter();
        assert_eq!(woken(), 1, "entered, and two places are left");
        let second = enter();
        assert_eq!(woken(), 1, "and one is left");
        let third = enter();
        assert_eq!(woken(), 0, "and none is left");
        drop(first);
        assert_eq!(woken(), 1, "left a full gate");
        drop(second);
        assert_eq!(woken(), 1, "left one that was not full");
        let turn = gate.room.turn();
        drop(third);
        drop(enter());
        assert_eq!(gate.room.turn(), turn, "nobody waits, and nobody is told");
    }

    /// Before an instance whose ejection is over.
    fn on_probation(limit: Option<usize>) -> (Arc<Gate>, Detector, Arc<Instance>) {
        let [a, b] = ["a:1", "b:1"].map(|it| Arc::new(Instance::builder(it.parse().expect("valid")).build()));
        let mut detector = Detector::new(OutlierDetection::default(), Duration::ZERO, 0);
        detector.follow(&[Arc::clone(&a), b]);
        let tally = Arc::clone(detector.tally(&a).expect("there"));
        for _ in 0..5 {
            let _ = tally.finished(Outcome::Failure, None);
        }
        detector.settle(Duration::ZERO);
        detector.tick(Duration::from_secs(30));
        let gate = Gate::new(limit, Some(tally), Arc::new(Room::new(true)), Arc::default());
        (Arc::new(gate), detector, a)
    }

    #[test]
    fn one_at_a_time_enters_on_probation_and_its_end_is_told() {
        let (gate, mut detector, instance) = on_probation(Some(5));
        let probe = gate.enter(true, true).expect("the probe");
        let turn = gate.room.turn();
        assert_eq!(gate.enter(true, true).expect_err("one at a time"), Refused::Probed);
        assert_eq!(gate.room.turn(), turn, "and nobody is woken for that");
        let anyway = gate.enter(true, false).expect("where ejection does not matter");
        anyway.finish(Outcome::Failure);
        drop(probe);
        assert_ne!(gate.room.turn(), turn, "given up: the next may come");
        let probe = gate.enter(true, true).expect("the next probe");
        probe.finish(Outcome::Success);
        assert!(gate.enter(true, true).is_ok() && gate.enter(true, true).is_ok(), "all may");
        assert_eq!(detector.settle(Duration::from_secs(31)).len(), 1);
        assert_eq!(detector.judgement(&instance), Judgement::Admitted);
        assert_eq!(gate.inside.load(SeqCst), 0);
    }

    #[test]
    fn on_many_threads_one_request_at_a_time_is_the_probe() {
        let (gate, detector, _) = on_probation(None);
        let (inside, entered) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50_000 {
                        let Ok(permit) = gate.enter(true, true) else { continue };
                        assert_eq!(inside.fetch_add(1, SeqCst), 0, "alone");
                        entered.fetch_add(1, SeqCst);
                        inside.fetch_sub(1, SeqCst);
                        drop(permit);
                    }
                });
            }
        });
        assert!(entered.load(SeqCst) > 0);
        assert!(!detector.has_news(), "those that were given up say nothing");
    }

    #[test]
    fn without_a_limit_nobody_counts() {
        let gate = gate(None);
        let permits: Vec<_> = (0..100).map(|_| gate.enter(true, true).expect("open")).collect();
        assert_eq!(gate.inside.load(SeqCst), 0);
        drop(permits);
        assert_eq!(gate.room.turn(), 0, "and nobody is woken");
    }
}
