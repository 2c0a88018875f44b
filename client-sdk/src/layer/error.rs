//! Why a request did not get its answer, and why an instance has no service.

use std::{error::Error, time::Duration};

use tower::BoxError;

use crate::{members::RouteError, model::Address};

/// Why a call of a [`LoadBalanced`](super::LoadBalanced) failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadBalancedError {
    /// No service could be given the request.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The service that was given the request failed it. The request may have been processed.
    #[error("{address} failed the request: {source}")]
    Service {
        /// The instance's address.
        address: Address,
        /// The service's own error.
        source: BoxError,
    },
    /// The service that was given the request had no answer within the per-try timeout, and nothing came of giving it to
    /// another one. It may have been processed.
    #[error("{address} had no answer within {} ms, and no other instance took the request", timeout.as_millis())]
    TooSlow {
        /// The instance's address.
        address: Address,
        /// The per-try timeout.
        timeout: Duration,
    },
}

/// Why an instance has no service, as a [`Snapshot`](super::Snapshot) and a
/// [`RouteError::AllUnavailable`] show it.
#[derive(Debug, thiserror::Error)]
#[error("{address}: {problem}")]
pub struct MakeError {
    pub(super) address: Address,
    #[source]
    pub(super) problem: MakeProblem,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum MakeProblem {
    #[error("no service could be made: {0}")]
    Make(#[source] BoxError),
    #[error("no service was made and ready within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("the service failed: {0}")]
    Failed(#[source] BoxError),
    #[error("the service, or what makes it, panicked")]
    Panicked,
}

impl LoadBalancedError {
    /// Whether the request certainly was given to no service, so that even one that is not idempotent may be made again.
    pub fn never_left(&self) -> bool {
        matches!(self, Self::Route(_))
    }

    /// The service's own error, if it is one and of this type.
    pub fn of_service<E: Error + 'static>(&self) -> Option<&E> {
        match self {
            Self::Service { source, .. } => source.downcast_ref(),
            Self::Route(_) | Self::TooSlow { .. } => None,
        }
    }
}

/// The instance drains, is down or has weight 0 by now.
#[derive(Debug, thiserror::Error)]
#[error("the instance at {0} takes no more requests")]
pub(super) struct TakesNoMore(pub(super) Address);
