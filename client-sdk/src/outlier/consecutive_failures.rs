//! Ejects by failures in a row: so many without one success between them. The only algorithm that does not wait for the
//! interval, and does not ask how many instances there are.

use std::sync::atomic::{AtomicU32, Ordering};

/// How many requests of one instance failed since one last succeeded.
#[derive(Debug)]
pub(super) struct Streak {
    /// How many are too many. `None`: it does not matter.
    limit: Option<u32>,
    failures: AtomicU32,
}

impl Streak {
    pub(super) fn new(limit: Option<u32>) -> Self {
        Self { limit, failures: AtomicU32::new(0) }
    }

    pub(super) fn succeeded(&self) {
        // Mostly there is nothing to write, and then nothing is written.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.clear();
        }
    }

    /// Whether this failure makes it so many in a row. Says so once for each so many.
    pub(super) fn failed(&self) -> bool {
        let Some(limit) = self.limit else { return false };
        let struck = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1) == limit;
        if struck {
            self.clear();
        }
        struck
    }

    pub(super) fn clear(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_in_a_row_strike_and_a_success_between_them_starts_over() {
        let streak = Streak::new(Some(5));
        let fail = |times: u32| (0..times).map(|_| streak.failed()).collect::<Vec<_>>();
        assert_eq!(fail(4), [false; 4]);
        streak.succeeded();
        assert_eq!(fail(5), [false, false, false, false, true]);
        assert_eq!(fail(5), [false, false, false, false, true], "and again after as many");
        assert!(Streak::new(Some(1)).failed());
        let off = Streak::new(None);
        assert!((0..100).all(|_| !off.failed()));
    }
}
