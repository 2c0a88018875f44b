//! What a caller is told, and what a builder refuses.

use std::{error::Error, sync::Arc, time::Duration};

use tower::BoxError;

/// Why a request to a pool failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// The pool has no service, and the last attempt to make one failed. It goes on trying.
    #[error("the pool has no service, and none could be made: {0}")]
    Make(#[source] Arc<dyn Error + Send + Sync>),
    /// The service that was given the request failed it. The request may have been processed.
    #[error("the service failed the request: {0}")]
    Service(#[source] BoxError),
    /// The service that was given the request panicked. The request may have been processed.
    #[error("the service panicked when it was given the request")]
    Panicked,
    /// The request waited for as long as it may, and no service was free.
    #[error(
        "no service of the pool was free within {} ms; allow more services, or a longer wait",
        after.as_millis()
    )]
    Waited {
        /// How long it waited.
        after: Duration,
    },
    /// Too many requests wait already.
    #[error(
        "{limit} requests wait for a service of the pool already, which is the queue limit; try again later"
    )]
    QueueFull {
        /// The limit.
        limit: usize,
    },
    /// A classic pool was called although its `poll_ready` had not said that it is ready.
    #[error("the pool was called before it was ready; call `poll_ready` before each call")]
    NotReady,
    /// The pool's task was ended, as by a runtime that shuts down.
    #[error("the pool's task has ended with its runtime")]
    Ended,
}

impl PoolError {
    /// Whether the request certainly was given to no service, so that even one that is not idempotent may be made again.
    pub fn never_left(&self) -> bool {
        match self {
            Self::Make(_) | Self::Waited { .. } | Self::QueueFull { .. } | Self::NotReady => true,
            // The worker may have ended between giving it and saying so.
            Self::Service(_) | Self::Panicked | Self::Ended => false,
        }
    }

    /// The service's own error, if it is one and of this type.
    pub fn of_service<E: Error + 'static>(&self) -> Option<&E> {
        match self {
            Self::Service(source) => source.downcast_ref(),
            _ => None,
        }
    }

    /// The reason in a word, for counting.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Make(_) => "no_service",
            Self::Waited { .. } => "waited",
            Self::QueueFull { .. } => "queue_full",
            Self::Service(_) | Self::Panicked | Self::NotReady | Self::Ended => "other",
        }
    }
}

/// A setting that no pool can be built with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A share is none.
    #[error("{setting} is {value}; it is a share: give a number between 0 and 1")]
    NotAShare {
        /// The setting.
        setting: &'static str,
        /// What it was set to.
        value: f64,
    },
    /// A number is none, or too small.
    #[error("{setting} is {value}; give a number above {above}")]
    TooSmall {
        /// The setting.
        setting: &'static str,
        /// What it was set to.
        value: f64,
        /// What it must be above.
        above: f64,
    },
    /// Two settings contradict each other.
    #[error("{lower} is {low}, above {upper}, which is {high}; give them the other way round")]
    Order {
        /// The setting that must not be above the other.
        lower: &'static str,
        /// What it was set to.
        low: f64,
        /// The other.
        upper: &'static str,
        /// What that was set to.
        high: f64,
    },
    /// Nothing could be served.
    #[error("{setting} is 0, with which no request could be served; give at least 1")]
    Zero {
        /// The setting.
        setting: &'static str,
    },
    /// A time is none.
    #[error("{setting} takes no time at all; give more than 0")]
    NoTime {
        /// The setting.
        setting: &'static str,
    },
}

/// Refuses what is no share.
pub(super) fn share(setting: &'static str, value: f64) -> Result<(), SettingsError> {
    // Not a number is in no range.
    if (0.0..=1.0).contains(&value) { Ok(()) } else { Err(SettingsError::NotAShare { setting, value }) }
}

/// Refuses zero.
pub(super) fn at_least_one(setting: &'static str, value: usize) -> Result<(), SettingsError> {
    if value == 0 { Err(SettingsError::Zero { setting }) } else { Ok(()) }
}

/// Refuses two that are in the wrong order.
pub(super) fn in_order(lower: (&'static str, f64), upper: (&'static str, f64)) -> Result<(), SettingsError> {
    if lower.1 <= upper.1 {
        return Ok(());
    }
    Err(SettingsError::Order { lower: lower.0, low: lower.1, upper: upper.0, high: upper.1 })
}

/// Refuses no time.
pub(super) fn some_time(setting: &'static str, value: Duration) -> Result<(), SettingsError> {
    if value.is_zero() { Err(SettingsError::NoTime { setting }) } else { Ok(()) }
}
