//! When the compactor may go on: folding can wait, up to a bound.
//!
//! Owns the decision, and whoever waits for it. Knows neither time nor what folding is: the writer's loop says whether it has much
//! to do, and the bound is counted in logs.
//!
//! ```text
//!   a log is sealed ─► a fold is asked for ─► waits until the loop says anew that it has little to do,
//!                                             or the next log is half full,           or somebody waits for the fold
//!                                             └─ from then on it goes on without rests ─┘
//! ```
//!
//! So what a fold takes of processors, memory and disk falls into a quiet moment if there is one, and half a log more than without
//! this is kept, and read by a start, at most.

use std::sync::{
    Condvar, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

#[derive(Debug, Default)]
pub(super) struct Gate {
    /// The loop said last that it has little to do, and no fold was asked for since. Apart from the rest, so that a loop that says
    /// the same again and again waits for nobody.
    quiet: AtomicBool,
    /// The log that follows what is to be folded is half full. Apart, as each append may say so.
    late: AtomicBool,
    waits: Mutex<Waits>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waits {
    /// Folds that were asked for and are not done.
    folds: usize,
    /// Who waits for them.
    hurrying: usize,
    /// The store is being closed.
    closing: bool,
    /// The compactor stands at the gate.
    #[cfg(test)]
    held: bool,
}

impl Gate {
    /// The loop says whether it has much to do.
    pub(super) fn set_busy(&self, busy: bool) {
        if self.quiet.load(Ordering::Relaxed) == busy {
            let _waits = self.waits();
            self.quiet.store(!busy, Ordering::Relaxed);
            self.changed.notify_all();
        }
    }

    /// A fold is asked for. What the loop said before this no longer counts: it is writing just now.
    pub(super) fn ask(&self) {
        let mut waits = self.waits();
        waits.folds += 1;
        self.quiet.store(false, Ordering::Relaxed);
        // Of the log that begins now. With two folds to do there is no putting off in any case.
        self.late.store(false, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// The log that follows what is to be folded is half full: nothing is put off any longer, until the next fold is asked for.
    pub(super) fn press(&self) {
        if !self.late.load(Ordering::Relaxed) {
            let _waits = self.waits();
            self.late.store(true, Ordering::Relaxed);
            self.changed.notify_all();
        }
    }

    /// A fold that was asked for is done, or was passed over.
    pub(super) fn done(&self) {
        let mut waits = self.waits();
        waits.folds = waits.folds.saturating_sub(1);
    }

    /// From now on nothing is put off, until [`hurried`](Self::hurried).
    pub(super) fn hurry(&self) {
        self.waits().hurrying += 1;
        self.changed.notify_all();
    }

    /// Takes back one [`hurry`](Self::hurry).
    pub(super) fn hurried(&self) {
        let mut waits = self.waits();
        waits.hurrying = waits.hurrying.saturating_sub(1);
    }

    /// The store is being closed, and waits for a fold that has begun.
    pub(super) fn close(&self) {
        self.waits().closing = true;
        self.changed.notify_all();
    }

    /// Returns when a fold may begin, and whether it is to: one that would only hold up a store that is being closed is left to the
    /// next start.
    pub(super) fn begin(&self) -> bool {
        self.pass();
        !self.waits().closing
    }

    /// Returns when folding may go on: often at once. The compactor asks before each step.
    pub(super) fn pass(&self) {
        // Without the lock, which the loop may want of this less urgent thread.
        if self.quiet.load(Ordering::Relaxed) || self.late.load(Ordering::Relaxed) {
            return;
        }
        let mut waits = self.waits();
        while !self.is_open(&waits) {
            #[cfg(test)]
            {
                waits.held = true;
            }
            waits = self.changed.wait(waits).unwrap_or_else(PoisonError::into_inner);
        }
        #[cfg(test)]
        {
            waits.held = false;
        }
    }

    /// Whether the compactor stands at the gate, and it is shut.
    #[cfg(test)]
    pub(super) fn holds(&self) -> bool {
        let waits = self.waits();
        waits.held && !self.is_open(&waits)
    }

    fn is_open(&self, waits: &Waits) -> bool {
        let pressed = self.late.load(Ordering::Relaxed) || waits.folds > 1;
        self.quiet.load(Ordering::Relaxed) || pressed || waits.hurrying > 0 || waits.closing
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_open(gate: &Gate) -> bool {
        gate.is_open(&gate.waits())
    }

    #[test]
    fn a_fold_waits_for_a_quiet_moment_and_never_beyond_half_of_the_next_log() {
        let gate = Gate::default();
        gate.ask();
        assert!(!is_open(&gate), "nobody has said yet that there is time");
        gate.set_busy(false);
        assert!(is_open(&gate));
        gate.set_busy(true);
        assert!(!is_open(&gate), "one that has begun rests while there is much to do");
        gate.press();
        assert!(is_open(&gate), "another log is half full");
        gate.ask();
        gate.set_busy(true);
        assert!(is_open(&gate), "there are two to do, however much else there is");
        gate.done();
        assert!(!is_open(&gate), "the one of the second log may wait for the third");
        gate.set_busy(false);
        gate.done();
        gate.ask();
        assert!(!is_open(&gate), "what was said before the log was full is of before");
    }

    #[test]
    fn who_waits_for_a_fold_opens_the_gate() {
        let gate = Gate::default();
        gate.ask();
        gate.hurry();
        gate.hurry();
        gate.hurried();
        assert!(is_open(&gate), "somebody waits still");
        gate.hurried();
        assert!(!is_open(&gate));
    }

    #[test]
    fn closing_a_fold_goes_on_to_its_end_and_another_does_not_begin() {
        let gate = Gate::default();
        gate.set_busy(false);
        assert!(gate.begin());
        gate.set_busy(true);
        gate.close();
        gate.pass();
        assert!(!gate.begin());
    }
}
