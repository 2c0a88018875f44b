//! What a channel may be told, and the defaults.

use std::time::Duration;

use crate::runtime::Runtime;

/// A channel's settings; the builder documents each.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) wait_for_ready: bool,
    pub(super) max_wait: Option<Duration>,
    pub(super) queue_limit: usize,
    pub(super) replay_limit: usize,
    pub(super) connect_timeout: Duration,
    pub(super) keepalive_interval: Duration,
    pub(super) keepalive_timeout: Duration,
    pub(super) keepalive_while_idle: bool,
    pub(super) backoff: Backoff,
}

/// How long to leave an instance alone after it could not be reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    pub(super) base: Duration,
    pub(super) max: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            wait_for_ready: false,
            max_wait: None,
            queue_limit: 1024,
            replay_limit: 64 * 1024,
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(5),
            keepalive_while_idle: true,
            backoff: Backoff { base: Duration::from_millis(100), max: Duration::from_secs(30) },
        }
    }
}

impl Settings {
    /// How long a call without a deadline waits for an instance.
    pub(super) fn longest_wait(&self) -> Duration {
        let default = if self.wait_for_ready { Duration::from_secs(30) } else { self.connect_timeout };
        self.max_wait.unwrap_or(default)
    }
}

impl Backoff {
    /// After the `failures`th failure in a row: doubling from the base, half of it random, so that callers who lost an
    /// instance together do not come back together.
    pub(super) fn delay(&self, failures: u32, runtime: &Runtime) -> Duration {
        let doubled = self.base.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1).min(30)));
        let half = doubled.min(self.max) / 2;
        half + runtime.jitter(half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_to_its_maximum_and_is_at_least_half_certain() {
        let backoff = Backoff { base: Duration::from_millis(100), max: Duration::from_secs(30) };
        let runtime = Runtime::tokio();
        for (failures, top) in [(1, 100), (2, 200), (5, 1600), (9, 25_600), (10, 30_000), (u32::MAX, 30_000)]
        {
            let top = Duration::from_millis(top);
            for _ in 0..50 {
                let delay = backoff.delay(failures, &runtime);
                assert!(top / 2 <= delay && delay <= top, "{failures}: {delay:?}");
            }
        }
    }
}
