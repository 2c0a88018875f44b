//! What a channel may be told of its connections and calls, and the defaults.

use std::time::Duration;

use crate::{backoff::Bounds, balance::HashKeys, retry::Retries};

/// A channel's settings; the builder documents each.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) replay_limit: usize,
    pub(super) retries: Retries,
    pub(super) connect_timeout: Duration,
    pub(super) keepalive_interval: Duration,
    pub(super) keepalive_timeout: Duration,
    pub(super) keepalive_while_idle: bool,
    /// Where the hash keys of calls are looked for.
    pub(super) hash_keys: HashKeys,
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
            replay_limit: 64 * 1024,
            retries: Retries::new(),
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(5),
            keepalive_while_idle: true,
            hash_keys: HashKeys::new(),
            connections_per_instance: 1,
            #[cfg(feature = "tls")]
            tls: None,
            backoff: Bounds { base: Duration::from_millis(100), max: Duration::from_secs(30) },
        }
    }
}
