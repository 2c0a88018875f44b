//! One instance's service under its lock.
//!
//! ```text
//!                    put                    ready                     not ready
//!   Nobody, Failed -------> Busy (polled) ---------> Free (callable) ----------> Busy
//!          ^                  |                       |
//!          +------------------+--- an error, a panic -+
//! ```
//!
//! A busy service is polled by its actor, whose waker it has; a free one by whoever calls it, who needs no waker: what is not
//! ready after a call goes back to the actor. The lock is held while the service is polled or called, which a tower
//! service does without waiting, and never across an await. How it stands can be read without the lock.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Waker},
};

use tokio::sync::Notify;
use tower::{BoxError, Service};

use super::error::MakeProblem;

const EMPTY: u8 = 0;
const BUSY: u8 = 1;
const FREE: u8 = 2;

pub(super) struct Place<S> {
    inside: Mutex<Inside<S>>,
    /// What is inside.
    mirror: AtomicU8,
    /// Told when a call left behind what is not free any more: the actor is to see to it.
    pub(super) taken: Notify,
}

enum Inside<S> {
    Nobody,
    Busy(S),
    Free(S),
    /// The service ended while it was called. The actor is to say why.
    Failed(BoxError),
}

/// A place under its lock, with the service in hand: whatever happens to it, also a panic, the mirror tells the truth
/// afterwards.
struct Held<'a, S> {
    place: &'a Place<S>,
    by_actor: bool,
    inside: MutexGuard<'a, Inside<S>>,
}

impl<S> Place<S> {
    pub(super) fn empty() -> Self {
        Self { inside: Mutex::new(Inside::Nobody), mirror: AtomicU8::new(EMPTY), taken: Notify::new() }
    }

    /// Whether there is a service.
    pub(super) fn is_taken(&self) -> bool {
        self.mirror.load(Ordering::Acquire) != EMPTY
    }

    /// Whether the service takes a request.
    pub(super) fn is_free(&self) -> bool {
        self.mirror.load(Ordering::Acquire) == FREE
    }

    /// Puts a new service in, which has yet to become ready.
    pub(super) fn put(&self, service: S) {
        *self.hold(true).inside = Inside::Busy(service);
    }

    /// Takes the service out.
    pub(super) fn clear(&self) -> Option<S> {
        match std::mem::replace(&mut *self.hold(true).inside, Inside::Nobody) {
            Inside::Busy(service) | Inside::Free(service) => Some(service),
            Inside::Nobody | Inside::Failed(_) => None,
        }
    }

    /// Until the service is ready, for the actor. Says whether it was busy.
    pub(super) fn poll_free<Req>(&self, cx: &mut Context<'_>) -> Poll<Result<bool, MakeProblem>>
    where
        S: Service<Req>,
        S::Error: Into<BoxError>,
    {
        let mut held = self.hold(true);
        let (mut service, was_busy) = match held.take() {
            Inside::Busy(service) => (service, true),
            Inside::Free(service) => (service, false),
            Inside::Failed(error) => return Poll::Ready(Err(MakeProblem::Failed(error))),
            // Only a panic leaves nobody.
            Inside::Nobody => return Poll::Ready(Err(MakeProblem::Panicked)),
        };
        match service.poll_ready(cx) {
            Poll::Ready(Ok(())) => {
                *held.inside = Inside::Free(service);
                Poll::Ready(Ok(was_busy))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(MakeProblem::Failed(error.into()))),
            Poll::Pending => {
                *held.inside = Inside::Busy(service);
                Poll::Pending
            }
        }
    }

    /// Gives the service the request, if it is free and still ready. Else the request comes back.
    pub(super) fn call<Req>(&self, request: Req) -> Result<S::Future, Req>
    where
        S: Service<Req>,
        S::Error: Into<BoxError>,
    {
        let mut held = self.hold(false);
        let mut service = match held.take() {
            Inside::Free(service) => service,
            other => {
                *held.inside = other;
                return Err(request);
            }
        };
        // It was ready, perhaps long ago.
        match service.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                *held.inside = Inside::Failed(error.into());
                return Err(request);
            }
            Poll::Pending => {
                *held.inside = Inside::Busy(service);
                return Err(request);
            }
        }
        let future = service.call(request);
        *held.inside = match service.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => Inside::Free(service),
            Poll::Ready(Err(error)) => Inside::Failed(error.into()),
            Poll::Pending => Inside::Busy(service),
        };
        Ok(future)
    }

    fn hold(&self, by_actor: bool) -> Held<'_, S> {
        // What a panic leaves behind is told by what is inside.
        let inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        Held { place: self, by_actor, inside }
    }
}

impl<S> Held<'_, S> {
    fn take(&mut self) -> Inside<S> {
        std::mem::replace(&mut *self.inside, Inside::Nobody)
    }
}

impl<S> Drop for Held<'_, S> {
    fn drop(&mut self) {
        let mirror = match *self.inside {
            Inside::Nobody | Inside::Failed(_) => EMPTY,
            Inside::Busy(_) => BUSY,
            Inside::Free(_) => FREE,
        };
        self.place.mirror.store(mirror, Ordering::Release);
        if mirror != FREE && !self.by_actor {
            self.place.taken.notify_one();
        }
    }
}
