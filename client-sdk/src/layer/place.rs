//! One instance's service under its lock.
//!
//! ```text
//!                    put                    ready                     not ready
//!   Nobody, Failed -------> Busy (polled) ---------> Free (callable) ----------> Busy
//!          ^                  |                       |
//!          +------------------+--- an error, a panic -+
//! ```
//!
//! A busy service is polled by its actor, whose waker it has; a free one by whoever calls it, and a busy one by whoever had
//! its answer, who need no waker: what is not ready then is polled by the actor anew. The lock is held while the
//! service is polled or called, which a tower service does without waiting, and never across an await. How it stands can be
//! read without the lock. A service that panics when it is polled has failed; one that panics when it is called has too,
//! and its caller sees the panic.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
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
    /// Nothing more is to be given to the service, chosen before or not. Written and read under the lock.
    shut: AtomicBool,
    /// Told when somebody else asked a busy service, and has its wake-up, or left behind what is not free: the actor is to
    /// see to it.
    pub(super) touched: Notify,
}

enum Inside<S> {
    Nobody,
    Busy(S),
    Free(S),
    /// The service ended under somebody else's hands. The actor is to say why.
    Failed(MakeProblem),
}

/// A place under its lock, with the service in hand: whatever happens to it, also a panic, the mirror tells the truth
/// afterwards.
struct Held<'a, S> {
    place: &'a Place<S>,
    by_actor: bool,
    was_busy: bool,
    inside: MutexGuard<'a, Inside<S>>,
}

impl<S> Place<S> {
    pub(super) fn empty() -> Self {
        Self {
            inside: Mutex::new(Inside::Nobody),
            mirror: AtomicU8::new(EMPTY),
            shut: AtomicBool::new(false),
            touched: Notify::new(),
        }
    }

    /// From now on the service is given no request, not even one that was chosen for it before; or is again.
    pub(super) fn shut(&self, shut: bool) {
        let _held = self.lock();
        self.shut.store(shut, Ordering::Relaxed);
    }

    /// Whether there is a service.
    pub(super) fn is_taken(&self) -> bool {
        self.mirror.load(Ordering::Acquire) != EMPTY
    }

    /// Whether the service takes a request.
    pub(super) fn is_free(&self) -> bool {
        self.mirror.load(Ordering::Acquire) == FREE
    }

    pub(super) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Relaxed)
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
            Inside::Failed(error) => return Poll::Ready(Err(error)),
            // Only a call that panicked leaves nobody.
            Inside::Nobody => return Poll::Ready(Err(MakeProblem::Panicked)),
        };
        match ask(&mut service, cx) {
            Poll::Ready(Ok(())) => {
                *held.inside = Inside::Free(service);
                Poll::Ready(Ok(was_busy))
            }
            Poll::Ready(Err(problem)) => Poll::Ready(Err(problem)),
            Poll::Pending => {
                *held.inside = Inside::Busy(service);
                Poll::Pending
            }
        }
    }

    /// Whether a busy service is free again, for whoever had its answer: it need not wait for the actor to run.
    pub(super) fn is_free_again<Req>(&self) -> bool
    where
        S: Service<Req>,
        S::Error: Into<BoxError>,
    {
        if self.mirror.load(Ordering::Acquire) != BUSY {
            return false;
        }
        let mut held = self.hold(false);
        *held.inside = match held.take() {
            Inside::Busy(service) => asked(service),
            other => other,
        };
        matches!(*held.inside, Inside::Free(_))
    }

    /// Gives the service the request, if it is free, still ready, and not shut. Else the request comes back.
    pub(super) fn call<Req>(&self, request: Req) -> Result<S::Future, Req>
    where
        S: Service<Req>,
        S::Error: Into<BoxError>,
    {
        let mut held = self.hold(false);
        if self.shut.load(Ordering::Relaxed) {
            return Err(request);
        }
        // It was ready, perhaps long ago.
        *held.inside = match held.take() {
            Inside::Free(service) => asked(service),
            other => other,
        };
        let mut service = match held.take() {
            Inside::Free(service) => service,
            other => {
                *held.inside = other;
                return Err(request);
            }
        };
        let future = service.call(request);
        *held.inside = asked(service);
        Ok(future)
    }

    fn hold(&self, by_actor: bool) -> Held<'_, S> {
        let inside = self.lock();
        Held { place: self, by_actor, was_busy: matches!(*inside, Inside::Busy(_)), inside }
    }

    fn lock(&self) -> MutexGuard<'_, Inside<S>> {
        // What a panic leaves behind is told by what is inside.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks a service whether it is ready. One that panics is not to be asked again.
fn ask<S, Req>(service: &mut S, cx: &mut Context<'_>) -> Poll<Result<(), MakeProblem>>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
{
    match catch_unwind(AssertUnwindSafe(|| service.poll_ready(cx))) {
        Ok(ready) => ready.map_err(|error| MakeProblem::Failed(error.into())),
        Err(_) => Poll::Ready(Err(MakeProblem::Panicked)),
    }
}

/// The service, as it says that it is. Nobody is woken when that changes.
fn asked<S, Req>(mut service: S) -> Inside<S>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
{
    match ask(&mut service, &mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(())) => Inside::Free(service),
        Poll::Ready(Err(problem)) => Inside::Failed(problem),
        Poll::Pending => Inside::Busy(service),
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
        if !self.by_actor && (mirror != FREE || self.was_busy) {
            self.place.touched.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What had been chosen before an instance began to drain must not reach it after its caller has said that it knows.
    #[tokio::test]
    async fn what_is_shut_is_given_nothing_that_was_chosen_before_and_takes_requests_again_later() {
        let place = Place::empty();
        place.put(tower::service_fn(|request: u32| async move { Ok::<_, BoxError>(request) }));
        let free = std::future::poll_fn(|cx| place.poll_free(cx)).await;
        assert!(free.is_ok() && place.is_free(), "chosen");
        place.shut(true);
        assert!(place.is_free(), "it stays as it is");
        assert_eq!(place.call(7).err(), Some(7), "the request comes back");
        place.shut(false);
        let answer = place.call(8).expect("taken");
        assert_eq!(answer.await.expect("answered"), 8);
    }
}
