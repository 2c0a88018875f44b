//! How much the loop has to do: what can wait (the folding of the log) is put off while that is much. Pure, it is told the time.
//!
//! It goes by what is written: that is what folding competes with for the disk, and what expiry of many leases is. What is read
//! and told does not count; the folding thread is less urgent than whoever does that.

use crate::store::Store;

/// How long one stretch is at least, in ms.
const STRETCH: u64 = 100;
/// Events in one stretch that are much: 2,000 a second, which 1,000 registrations a second are.
const MUCH: usize = 200;
/// How long there has to be little to do before it counts, in ms: whoever does much often does it in bursts.
const LASTING: u64 = 1_000;

/// What was written of late.
#[derive(Debug, Default)]
pub(super) struct Calm {
    /// When the stretch began, in mono ms.
    began: u64,
    /// Events that were written in it.
    events: usize,
    /// When there was much to do last.
    busy: Option<u64>,
}

impl Calm {
    /// So many events are being written.
    pub(super) fn note(&mut self, events: usize) {
        self.events = self.events.saturating_add(events);
    }

    /// Says so to the store, if there is news of it.
    pub(super) fn tell(&mut self, now: u64, store: &mut dyn Store) {
        if let Some(busy) = self.is_busy(now) {
            store.set_busy(busy);
        }
    }

    /// Whether there is much to do, if there is news of that: when it becomes much, and at the end of each stretch.
    fn is_busy(&mut self, now: u64) -> Option<bool> {
        let much = self.events >= MUCH;
        if !much && now < self.began.saturating_add(STRETCH) {
            return None;
        }
        if much {
            self.busy = Some(now);
        }
        (self.began, self.events) = (now, 0);
        Some(self.busy.is_some_and(|busy| now < busy.saturating_add(LASTING)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_is_said_at_once_and_little_when_it_has_lasted() {
        let mut calm = Calm::default();
        assert_eq!(calm.is_busy(99), None);
        assert_eq!(calm.is_busy(100), Some(false));
        calm.note(MUCH - 1);
        assert_eq!(calm.is_busy(199), None);
        calm.note(1);
        assert_eq!(calm.is_busy(199), Some(true), "at once");
        let told: Vec<_> = (200..1_500).filter_map(|now| Some((now, calm.is_busy(now)?))).collect();
        let expected: Vec<_> = (1..=13).map(|n| (199 + 100 * n, n < 10)).collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn a_little_all_the_time_is_little() {
        let mut calm = Calm::default();
        for now in 0..10_000 {
            calm.note(1);
            assert_ne!(calm.is_busy(now), Some(true));
        }
    }

    #[test]
    fn bursts_that_come_again_are_much_all_the_time() {
        let mut calm = Calm::default();
        for now in 0..10_000 {
            calm.note(if now % 900 == 0 { MUCH } else { 0 });
            assert_ne!(calm.is_busy(now), Some(false), "{now}");
        }
    }
}
