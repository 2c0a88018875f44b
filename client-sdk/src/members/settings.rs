//! What members may be told, whatever they are made of; the builders document each.

use std::time::Duration;

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) wait_for_ready: bool,
    pub(crate) max_wait: Option<Duration>,
    /// How long a request waits that has no deadline and does not wait for ready: twice what connecting may take, for one
    /// that waits for an instance that nobody answers for is to go on to another.
    pub(crate) default_wait: Duration,
    pub(crate) queue_limit: usize,
    /// How many instances are connected before anyone asks for them.
    pub(crate) connect_ahead: usize,
}

/// How long a request waits that waits for ready and has no deadline.
const LONGEST: Duration = Duration::from_secs(30);

impl Default for Settings {
    fn default() -> Self {
        Self {
            wait_for_ready: false,
            max_wait: None,
            default_wait: Duration::from_secs(10),
            queue_limit: 1024,
            connect_ahead: 100,
        }
    }
}

impl Settings {
    /// How long a request without a deadline waits for an instance.
    pub(super) fn longest_wait(&self) -> Duration {
        self.max_wait.unwrap_or(if self.wait_for_ready { LONGEST } else { self.default_wait })
    }
}
