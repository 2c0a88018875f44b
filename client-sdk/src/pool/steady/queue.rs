//! Requests that wait for a service, in the order in which they came.
//!
//! Whoever goes away takes its request along, so there are none in the queue but those that somebody waits for: the bound is
//! one of live requests, and the order one of those.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, oneshot};

use super::{guarded::discard, member::InFlight};
use crate::pool::error::PoolError;

/// What a caller gets: the service's future, and the place in it that the request has.
pub(super) struct Given<F> {
    pub(super) future: F,
    pub(super) in_flight: InFlight,
}

pub(super) struct Waiting<F, Req> {
    pub(super) request: Req,
    pub(super) answer: oneshot::Sender<Result<Given<F>, PoolError>>,
    pub(super) since: Duration,
}

pub(super) struct Queue<F, Req> {
    inside: Mutex<Inside<F, Req>>,
    limit: usize,
    /// Wakes the worker.
    work: Arc<Notify>,
}

struct Inside<F, Req> {
    /// By their numbers, which only grow.
    waiting: BTreeMap<u64, Waiting<F, Req>>,
    next: u64,
    /// Whether nobody serves it any more.
    closed: bool,
}

/// A request's place. Dropping it takes the request back, if no service was given it.
pub(super) struct Place<'a, F, Req> {
    queue: &'a Queue<F, Req>,
    number: u64,
    pub(super) answer: oneshot::Receiver<Result<Given<F>, PoolError>>,
}

impl<F, Req> Queue<F, Req> {
    pub(super) fn new(limit: usize, work: Arc<Notify>) -> Self {
        Self { inside: Mutex::new(Inside { waiting: BTreeMap::new(), next: 0, closed: false }), limit, work }
    }

    /// Takes a place at the end.
    pub(super) fn enter(&self, request: Req, now: Duration) -> Result<Place<'_, F, Req>, PoolError> {
        let (answer, answered) = oneshot::channel();
        let mut inside = self.lock();
        let refused = match inside.closed {
            true => Some(PoolError::Ended),
            false if inside.waiting.len() >= self.limit => Some(PoolError::QueueFull { limit: self.limit }),
            false => None,
        };
        if let Some(refused) = refused {
            // The request is dropped after the lock.
            drop(inside);
            return Err(refused);
        }
        let number = inside.next;
        inside.next += 1;
        inside.waiting.insert(number, Waiting { request, answer, since: now });
        drop(inside);
        self.work.notify_one();
        Ok(Place { queue: self, number, answer: answered })
    }

    pub(super) fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Takes the one that waits longest.
    pub(super) fn take(&self) -> Option<Waiting<F, Req>> {
        self.lock().waiting.pop_first().map(|(_, waiting)| waiting)
    }

    /// Since when the one waits that waits longest.
    pub(super) fn oldest(&self) -> Option<Duration> {
        self.lock().waiting.first_key_value().map(|(_, waiting)| waiting.since)
    }

    /// Refuses whoever waits and whoever comes.
    pub(super) fn close(&self) {
        let mut inside = self.lock();
        inside.closed = true;
        let waiting = std::mem::take(&mut inside.waiting);
        drop(inside);
        discard(waiting);
    }

    fn lock(&self) -> MutexGuard<'_, Inside<F, Req>> {
        // Nobody's code but ours runs under it.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F, Req> Drop for Place<'_, F, Req> {
    fn drop(&mut self) {
        let taken_back = self.queue.lock().waiting.remove(&self.number);
        if taken_back.is_some() {
            // There is less demand.
            self.queue.work.notify_one();
        }
    }
}
