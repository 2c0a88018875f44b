//! A service as the cache holds it. A panic while it is asked whether it is ready is an error, so that it leaves like any other
//! that failed.

use std::{
    future::{Ready, ready},
    task::{Context, Poll},
};

use tower::{BoxError, Service, load::Load};

use crate::pool::steady::{Panicked, guarded};

/// A service that answers a request with the future of the answer.
pub(super) struct Served<S>(pub(super) S);

/// Why a service left.
pub(super) enum Failure<E> {
    /// It said so itself.
    Failed(E),
    Panicked,
}

impl<S: Load> Served<S> {
    /// Whether it is not more loaded than the other, as the services tell it themselves.
    pub(super) fn is_no_more_loaded_than(&self, other: &Self) -> bool {
        guarded(|| self.0.load() <= other.0.load()).unwrap_or(true)
    }
}

impl<S: Service<Req>, Req> Service<Req> for Served<S> {
    type Response = S::Future;
    type Error = Failure<S::Error>;
    type Future = Ready<Result<S::Future, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        guarded(|| self.0.poll_ready(cx))
            .map_or(Poll::Ready(Err(Failure::Panicked)), |asked| asked.map_err(Failure::Failed))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        ready(Ok(self.0.call(request)))
    }
}

impl<E: Into<BoxError>> From<Failure<E>> for BoxError {
    fn from(failure: Failure<E>) -> Self {
        match failure {
            Failure::Failed(error) => error.into(),
            Failure::Panicked => Panicked.into(),
        }
    }
}
