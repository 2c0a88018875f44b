//! How long to wait before trying again.
//!
//! Owns the one rule for it, whatever is tried: doubling from a base to a maximum, of which a random half is kept (AWS
//! architecture blog, "Exponential Backoff And Jitter", there called equal jitter), so that many who failed together come
//! back spread out and none of them at once.

use std::time::Duration;

use crate::runtime::Runtime;

/// Between which times to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// The first wait is at most this long.
    pub(crate) base: Duration,
    /// No wait is longer than this.
    pub(crate) max: Duration,
}

/// A wait for each failure in a row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backoff {
    bounds: Bounds,
    failures: u32,
}

impl Default for Bounds {
    /// 100 ms and 10 s.
    fn default() -> Self {
        Self { base: Duration::from_millis(100), max: Duration::from_secs(10) }
    }
}

impl Bounds {
    /// How long to wait after so many failures in a row, counted from 1.
    pub(crate) fn pause(self, failures: u32, runtime: &Runtime) -> Duration {
        let doubled = self.base.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
        let half = doubled.min(self.max) / 2;
        half + runtime.jitter(half)
    }
}

impl Backoff {
    /// Waits between other times than the usual ones.
    pub(crate) fn within(bounds: Bounds) -> Self {
        Self { bounds, failures: 0 }
    }

    /// After a failure: how long to wait.
    pub(crate) fn next(&mut self, runtime: &Runtime) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.bounds.pause(self.failures, runtime)
    }

    /// After a success: the next wait is a short one again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{TokioClock, TokioConnect, TokioSpawn};

    fn runtime() -> Runtime {
        Runtime::new(TokioClock::default(), TokioConnect, TokioSpawn, 7)
    }

    #[test]
    fn it_doubles_to_its_maximum_and_is_at_least_half_certain() {
        let (bounds, runtime) =
            (Bounds { base: Duration::from_millis(100), max: Duration::from_secs(30) }, runtime());
        for (failures, top) in [(1, 100), (2, 200), (5, 1600), (9, 25_600), (10, 30_000), (u32::MAX, 30_000)]
        {
            let top = Duration::from_millis(top);
            for _ in 0..50 {
                let pause = bounds.pause(failures, &runtime);
                assert!(top / 2 <= pause && pause <= top, "{failures}: {pause:?}");
            }
        }
    }

    #[test]
    fn a_success_starts_it_over() {
        let (mut backoff, runtime, bounds) = (Backoff::default(), runtime(), Bounds::default());
        for failures in 0..40 {
            let whole = (bounds.base * (1 << failures.min(20))).min(bounds.max);
            let wait = backoff.next(&runtime);
            assert!(wait >= whole / 2 && wait <= whole, "{wait:?} of {whole:?}");
        }
        backoff.reset();
        assert!(backoff.next(&runtime) <= bounds.base);
    }
}
