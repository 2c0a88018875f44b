//! What members may be told, whatever they are made of; the builders document each.

use std::time::Duration;

use super::Aperture;
use crate::{balance::shape::Shaping, outlier::OutlierDetection};

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
    /// By what that many instances are connected instead.
    pub(crate) aperture: Option<Aperture>,
    /// `None`: nobody is judged.
    pub(crate) outlier_detection: Option<OutlierDetection>,
    /// How many requests an instance may have at once.
    pub(crate) max_in_flight: Option<usize>,
    /// How many requests may wait because all instances have as many as they may. `None`: as the queue has places.
    pub(crate) max_pending: Option<usize>,
    pub(crate) overflow: Overflow,
    /// What instances go through before the policy.
    pub(crate) shaping: Shaping,
}

/// What becomes of a request when each instance that it could go to has as many as it may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// It waits until one of them has a place, as long as requests may wait at all.
    #[default]
    Wait,
    /// It fails at once, with [`RouteError::Overloaded`](super::RouteError::Overloaded).
    Fail,
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
            aperture: None,
            outlier_detection: Some(OutlierDetection::default()),
            max_in_flight: None,
            max_pending: None,
            overflow: Overflow::default(),
            shaping: Shaping::default(),
        }
    }
}

impl Settings {
    /// How long a request without a deadline waits for an instance.
    pub(super) fn longest_wait(&self) -> Duration {
        self.max_wait.unwrap_or(if self.wait_for_ready { LONGEST } else { self.default_wait })
    }
}
