//! What requests themselves count of one instance, without a lock and without looking anything up; and its probe.
//!
//! ```text
//!             eject                  time is up              a request enters
//!   Admitted -------> Ejected -------------------> Waiting ------------------> Out, then OutAnswered
//!      ^                 ^                            ^                          |   |   |
//!      | settled         | settled                    | given up, or says nothing|   |   |
//!      |                 |                            +--------------------------+   |   |
//!      |                 +---- Failed <----------------------------------------------+   |
//!      +---------------------- Proven <--------------------------------------------------+
//! ```
//!
//! One word holds the phase and a number that grows with each probe, so that only the request that has the probe decides,
//! and one that was taken from it decides nothing. The detector makes the moves on the left, requests those on the right.

use std::sync::{
    Arc,
    atomic::{
        AtomicBool, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};

use super::consecutive_failures::Streak;
use crate::balance::Outcome;

/// What is counted of one instance.
#[derive(Debug)]
pub struct Tally {
    /// Since the last interval.
    successes: AtomicU64,
    failures: AtomicU64,
    streak: Streak,
    /// Whether there were too many failures in a row.
    struck: AtomicBool,
    /// The phase, and the number of the probe.
    word: AtomicU64,
    /// The detector's: whether it has something to settle.
    bell: Arc<AtomicBool>,
}

/// The right to decide whether an instance that was ejected is well again. Whoever has it says how it went by
/// [`Tally::finished`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "no other request decides as long as this one has not ended"]
pub struct Probe(u64);

/// How a request may go to an instance that is, or was, on probation.
#[derive(Debug, PartialEq, Eq)]
pub enum Passage {
    /// As to any other: it is well again.
    Free,
    /// As the one that decides.
    Probe(Probe),
}

/// Whom a request's end concerns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Told {
    /// The detector has something to [`settle`](super::Detector::settle).
    pub settle: bool,
    /// Requests that waited for this instance may come.
    pub free: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Admitted,
    Ejected,
    /// For a probe.
    Waiting,
    Out,
    /// The probe's answer began, and goes on.
    OutAnswered,
    Proven,
    Failed,
}

const PHASES: [Phase; 7] = {
    use Phase::{Admitted, Ejected, Failed, Out, OutAnswered, Proven, Waiting};
    [Admitted, Ejected, Waiting, Out, OutAnswered, Proven, Failed]
};

impl Tally {
    /// `consecutive_failures`: how many in a row are too many. `bell` is set when the detector has something to settle.
    pub(super) fn new(consecutive_failures: Option<u32>, bell: &Arc<AtomicBool>) -> Self {
        Self {
            successes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            streak: Streak::new(consecutive_failures),
            struck: AtomicBool::new(false),
            word: AtomicU64::new(word(Phase::Admitted, 0)),
            bell: Arc::clone(bell),
        }
    }

    /// Lets a request to an instance on probation, if it may go: all may once it is well again, and one at a time until then.
    pub fn enter(&self) -> Option<Passage> {
        let before = self.word.load(Acquire);
        match phase(before) {
            Phase::Admitted | Phase::Proven => Some(Passage::Free),
            Phase::Waiting => {
                let taken = word(Phase::Out, number(before));
                let entered = self.word.compare_exchange(before, taken, AcqRel, Relaxed).is_ok();
                entered.then(|| Passage::Probe(Probe(number(before))))
            }
            Phase::Ejected | Phase::Out | Phase::OutAnswered | Phase::Failed => None,
        }
    }

    /// Whether a request may enter right now.
    pub fn is_open(&self) -> bool {
        matches!(phase(self.word.load(Acquire)), Phase::Admitted | Phase::Proven | Phase::Waiting)
    }

    /// The probe's answer began, and goes on.
    pub fn answered(&self, probe: &Probe) {
        let _ = self.turn(Phase::Out, Phase::OutAnswered, probe.0, probe.0); // taken from it meanwhile
    }

    /// A request ended. What was given up, or lost with its connection ([`Outcome::Cancelled`]), says nothing; if it was the
    /// probe, the next request is.
    #[allow(clippy::needless_pass_by_value)] // a probe decides once
    pub fn finished(&self, outcome: Outcome, probe: Option<Probe>) -> Told {
        if let Some(Probe(nth)) = probe {
            let (to, next) = match outcome {
                Outcome::Success => (Phase::Proven, nth),
                Outcome::Failure => (Phase::Failed, nth),
                Outcome::Cancelled => (Phase::Waiting, nth + 1),
            };
            if self.turn(Phase::Out, to, nth, next) || self.turn(Phase::OutAnswered, to, nth, next) {
                let settle = outcome != Outcome::Cancelled;
                if settle {
                    self.bell.store(true, Release);
                }
                return Told { settle, free: outcome != Outcome::Failure };
            }
        }
        let struck = match outcome {
            Outcome::Success => {
                self.successes.fetch_add(1, Relaxed);
                self.streak.succeeded();
                false
            }
            Outcome::Failure => {
                self.failures.fetch_add(1, Relaxed);
                self.streak.failed()
            }
            Outcome::Cancelled => false,
        };
        if struck {
            self.struck.store(true, Relaxed);
            self.bell.store(true, Release);
        }
        Told { settle: struck, free: false }
    }

    /// Successes and failures since the last time.
    pub(super) fn take(&self) -> (u64, u64) {
        (self.successes.swap(0, Relaxed), self.failures.swap(0, Relaxed))
    }

    /// Whether there were too many failures in a row since the last time.
    pub(super) fn take_strike(&self) -> bool {
        self.struck.load(Relaxed) && self.struck.swap(false, Relaxed)
    }

    pub(super) fn phase(&self) -> (Phase, u64) {
        let word = self.word.load(Acquire);
        (phase(word), number(word))
    }

    /// From now on no request enters, and none that is on its way decides.
    pub(super) fn eject(&self) {
        let nth = number(self.word.load(Acquire));
        self.word.store(word(Phase::Ejected, nth + 1), Release);
    }

    /// One request may enter, and decide.
    pub(super) fn await_probe(&self) {
        let nth = number(self.word.load(Acquire));
        self.word.store(word(Phase::Waiting, nth + 1), Release);
    }

    /// Takes the nth probe from whoever has it. Whether it was still undecided.
    pub(super) fn recall(&self, nth: u64, to: Phase) -> bool {
        self.turn(Phase::Out, to, nth, nth + 1) || self.turn(Phase::OutAnswered, to, nth, nth + 1)
    }

    /// As any other, and what it did before is forgotten.
    pub(super) fn admit(&self) {
        let _ = self.take();
        self.streak.clear();
        self.struck.store(false, Relaxed);
        self.word.store(word(Phase::Admitted, number(self.word.load(Acquire)) + 1), Release);
    }

    fn turn(&self, from: Phase, to: Phase, nth: u64, next: u64) -> bool {
        self.word.compare_exchange(word(from, nth), word(to, next), AcqRel, Relaxed).is_ok()
    }
}

fn word(phase: Phase, nth: u64) -> u64 {
    nth << 3 | phase as u64
}

fn phase(word: u64) -> Phase {
    PHASES[usize::try_from(word & 7).unwrap_or(0).min(PHASES.len() - 1)]
}

fn number(word: u64) -> u64 {
    word >> 3
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Told = Told { settle: false, free: false };
    const SETTLE: Told = Told { settle: true, free: false };
    const FREE: Told = Told { settle: false, free: true };
    const BOTH: Told = Told { settle: true, free: true };

    fn tally() -> Tally {
        Tally::new(Some(5), &Arc::default())
    }

    fn on_probation() -> Tally {
        let tally = tally();
        tally.eject();
        tally.await_probe();
        tally
    }

    fn probe(tally: &Tally) -> Probe {
        let Some(Passage::Probe(probe)) = tally.enter() else { panic!("no probe") };
        probe
    }

    #[test]
    fn requests_that_end_are_counted_and_five_failures_in_a_row_are_told_of() {
        let tally = tally();
        assert_eq!(tally.finished(Outcome::Success, None), QUIET);
        assert_eq!(tally.finished(Outcome::Cancelled, None), QUIET);
        for _ in 0..4 {
            assert_eq!(tally.finished(Outcome::Failure, None), QUIET);
        }
        assert!(!tally.take_strike());
        assert_eq!(tally.finished(Outcome::Failure, None), SETTLE);
        assert!(tally.bell.load(Acquire) && tally.take_strike() && !tally.take_strike());
        assert_eq!(tally.take(), (1, 5));
        assert_eq!(tally.take(), (0, 0));
    }

    #[test]
    fn one_request_at_a_time_is_the_probe_and_it_alone_decides() {
        let tally = on_probation();
        let first = probe(&tally);
        assert_eq!(tally.enter(), None);
        assert_eq!(tally.finished(Outcome::Success, None), QUIET, "one from before");
        assert_eq!(tally.phase().0, Phase::Out);
        assert_eq!(tally.finished(Outcome::Success, Some(first)), BOTH);
        assert_eq!(
            (tally.phase().0, tally.enter()),
            (Phase::Proven, Some(Passage::Free)),
            "before it is settled"
        );
        tally.admit();
        assert_eq!(tally.take(), (0, 0));

        let tally = on_probation();
        let only = probe(&tally);
        assert_eq!(tally.finished(Outcome::Failure, Some(only)), SETTLE);
        assert_eq!((tally.phase().0, tally.enter()), (Phase::Failed, None));
    }

    #[test]
    fn a_probe_that_is_given_up_lets_the_next_one_be_it() {
        let tally = on_probation();
        let given_up = probe(&tally);
        tally.answered(&given_up);
        assert_eq!(tally.finished(Outcome::Cancelled, Some(given_up)), FREE);
        let next = probe(&tally);
        assert_eq!(tally.finished(Outcome::Success, Some(next)), BOTH);
    }

    #[test]
    fn a_probe_that_was_taken_away_decides_nothing() {
        let tally = on_probation();
        let slow = probe(&tally);
        assert!(tally.recall(slow.0, Phase::Waiting));
        let next = probe(&tally);
        assert_eq!(tally.finished(Outcome::Failure, Some(slow)), QUIET, "it counts as any other");
        assert_eq!((tally.take(), tally.phase().0), ((0, 1), Phase::Out));
        assert_eq!(tally.finished(Outcome::Success, Some(next)), BOTH);
    }

    #[test]
    fn of_many_threads_one_gets_the_probe() {
        let tally = on_probation();
        let entered: usize = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| usize::from(tally.enter().is_some()))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!(entered, 1);
    }
}
