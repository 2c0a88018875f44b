//! How long to wait before trying again.
//!
//! Owns the one rule for it: doubling from a base to a maximum, of which a random half is kept (AWS architecture
//! blog, "Exponential Backoff And Jitter", there called equal jitter), so that many clients of a restarted registry
//! come back spread out and none of them at once.

use std::time::Duration;

use crate::runtime::Runtime;

/// The first wait is at most this long.
pub(crate) const BASE: Duration = Duration::from_millis(100);
/// No wait is longer than this.
pub(crate) const MAX: Duration = Duration::from_secs(10);

/// Counts failures in a row.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    base: Duration,
    max: Duration,
    failures: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(BASE, MAX)
    }
}

impl Backoff {
    /// Waits between half of `base` and `max`.
    pub(crate) fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, failures: 0 }
    }

    /// After a failure: how long to wait.
    pub(crate) fn next(&mut self, runtime: &Runtime) -> Duration {
        let whole = self.base.saturating_mul(1 << self.failures.min(20)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        whole / 2 + runtime.jitter(whole / 2)
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

    #[tokio::test]
    async fn it_doubles_up_to_its_maximum_and_starts_over() {
        let runtime = Runtime::new(TokioClock::default(), TokioConnect, TokioSpawn, 7);
        let mut backoff = Backoff::default();
        let mut whole = BASE;
        for _ in 0..40 {
            let wait = backoff.next(&runtime);
            assert!(wait >= whole / 2 && wait <= whole, "{wait:?} of {whole:?}");
            whole = (whole * 2).min(MAX);
        }
        backoff.reset();
        assert!(backoff.next(&runtime) <= BASE);
    }
}
