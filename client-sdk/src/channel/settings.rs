//! What a channel may be told, and the defaults.

use std::time::Duration;

use crate::backoff::Bounds;

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
    /// 1 to 1,000.
    pub(super) connections_per_instance: usize,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<super::tls::Tls>,
    /// Of an instance that could not be connected.
    pub(super) backoff: Bounds,
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
            connections_per_instance: 1,
            #[cfg(feature = "tls")]
            tls: None,
            backoff: Bounds { base: Duration::from_millis(100), max: Duration::from_secs(30) },
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
