//! One service, and its requests in flight.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::Notify;
use tower::{BoxError, Service, load::Load};

use super::guarded::{Panicked, discard, guarded};

/// A service whose first second is over, or that answered, was of use: its end is no failure to be backed off from.
const SETTLED: Duration = Duration::from_secs(1);

/// What others may see of a service.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) id: u64,
    in_flight: AtomicUsize,
    answered: AtomicBool,
    pub(super) busy: AtomicBool,
}

/// What all services of a pool have in common.
#[derive(Debug)]
pub(super) struct Total {
    in_flight: AtomicUsize,
    /// Wakes the worker.
    pub(super) work: Arc<Notify>,
}

/// A request that a service has. Dropping it ends that, however it came about.
pub(super) struct InFlight {
    seen: Arc<Seen>,
    total: Arc<Total>,
    answered: bool,
}

pub(super) struct Member<S> {
    service: S,
    pub(super) seen: Arc<Seen>,
    /// Whether it said that it is ready, and was not called since.
    pub(super) free: bool,
    /// Until when it must have been ready for the first time. `None`: it was.
    pub(super) warming_until: Option<Duration>,
    pub(super) made_at: Duration,
}

/// Why a service left.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("no service could be made: {0}")]
    Make(#[source] BoxError),
    #[error("no service was made and ready within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("the service failed: {0}")]
    Failed(#[source] BoxError),
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

impl Total {
    pub(super) fn new(work: Arc<Notify>) -> Self {
        Self { in_flight: AtomicUsize::new(0), work }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }
}

impl Seen {
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }
}

impl InFlight {
    fn new(seen: Arc<Seen>, total: Arc<Total>) -> Self {
        seen.in_flight.fetch_add(1, Ordering::AcqRel);
        total.in_flight.fetch_add(1, Ordering::AcqRel);
        Self { seen, total, answered: false }
    }

    /// The service answered, well or not.
    pub(super) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.answered {
            self.seen.answered.store(true, Ordering::Release);
        }
        self.seen.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.total.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.total.work.notify_one();
    }
}

impl<S> Member<S> {
    pub(super) fn new(id: u64, service: S, now: Duration, warming_until: Duration) -> Self {
        let seen = Seen {
            id,
            in_flight: AtomicUsize::new(0),
            answered: AtomicBool::new(false),
            busy: AtomicBool::new(true),
        };
        Self { service, seen: Arc::new(seen), free: false, warming_until: Some(warming_until), made_at: now }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.seen.in_flight()
    }

    pub(super) fn is_ready(&self) -> bool {
        self.warming_until.is_none()
    }

    pub(super) fn was_of_use(&self, now: Duration) -> bool {
        let lasted = now.saturating_sub(self.made_at) >= SETTLED;
        self.is_ready() && (lasted || self.seen.answered.load(Ordering::Acquire))
    }

    /// Asks the service whether it is ready. Says whether it came to be so for the first time.
    pub(super) fn ask<Req>(&mut self, cx: &mut Context<'_>) -> Result<bool, Problem>
    where
        S: Service<Req>,
        S::Error: Into<BoxError>,
    {
        let asked = guarded(|| self.service.poll_ready(cx)).ok_or(Panicked)?;
        self.free = match asked {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(error)) => return Err(Problem::Failed(error.into())),
            Poll::Pending => false,
        };
        self.seen.busy.store(!self.free, Ordering::Release);
        Ok(self.free && self.warming_until.take().is_some())
    }

    /// Gives it a request.
    pub(super) fn call<Req>(
        &mut self,
        request: Req,
        total: &Arc<Total>,
    ) -> Result<(S::Future, InFlight), Problem>
    where
        S: Service<Req>,
    {
        self.free = false;
        let in_flight = InFlight::new(Arc::clone(&self.seen), Arc::clone(total));
        let future = guarded(|| self.service.call(request)).ok_or(Panicked)?;
        Ok((future, in_flight))
    }

    /// Whether it is not more loaded than the other, as the services tell it themselves.
    pub(super) fn is_no_more_loaded_than(&self, other: &Self) -> bool
    where
        S: Load,
    {
        guarded(|| self.service.load() <= other.service.load()).unwrap_or(true)
    }

    /// Drops the service.
    pub(super) fn end(self) {
        discard(self.service);
    }
}
