//! What a caller is told. What a builder refuses is [`SettingsError`](crate::sizing::SettingsError).

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
