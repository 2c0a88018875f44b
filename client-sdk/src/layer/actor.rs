//! The life of one instance's services: made, driven, watched, made anew, drained.
//!
//! ```text
//!          Connect             made, and ready
//!   Idle ----------> Making --------------------> Ready <---> busy: not ready for the moment
//!    ^                |  ^                         |  | its readiness failed, after it had been of use:
//!    | Rest           |  | backoff passed,         |  |   Making at once
//!    |                v  | or a new incarnation    |  |
//!    +---------- TransientFailure <----------------+  | failed before that
//!                                                     |
//!   any of them, on Drain --> Draining --> in flight = 0, the service is dropped, gone
//! ```
//!
//! All of it goes on whether or not there are requests. A service that is not ready wakes its actor, as tower demands of it. One
//! that is ready owes nobody a wake-up when its connection breaks, so it is looked at again from time to time, and by each
//! call. Whatever of the user's panics ends the service and not the actor.

use std::{
    future::{Future, poll_fn},
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use tokio::sync::{Notify, watch};
use tower::{BoxError, Service};

use super::{
    Target,
    error::{MakeError, MakeProblem},
    slot::{Phase, Slot},
};
use crate::{
    backoff::Bounds,
    members::{Member, Meters, Open, Order, Room},
    model::Instance,
    runtime::{Runtime, Task},
};

/// A service that lasted this long, or answered a request, had been of use: its end is no failure to be backed off from. So a
/// peer that accepts connections and closes them is not connected to in a hot loop, and one that closes a connection
/// after each answer, or when it was idle, is connected to again at once.
const SETTLED: Duration = Duration::from_secs(1);

/// How often a service that is ready, and has nothing to do, is asked whether it still is. tower has no other way to know.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) make_timeout: Duration,
    pub(super) backoff: Bounds,
}

/// Opens slots.
pub(super) struct Slots<M, T, Req> {
    /// A slot clones it for each service: what makes one need not be ready for another.
    pub(super) make: Arc<Mutex<M>>,
    pub(super) settings: Settings,
    pub(super) runtime: Runtime,
    pub(super) room: Arc<Room>,
    pub(super) meters: Arc<Meters>,
    pub(super) kinds: PhantomData<fn(T, Req)>,
}

struct Actor<M, S, T, Req> {
    slot: Arc<Slot<S>>,
    make: Arc<Mutex<M>>,
    settings: Settings,
    runtime: Runtime,
    meters: Arc<Meters>,
    wake: Arc<Notify>,
    kinds: PhantomData<fn(T, Req)>,
}

/// How a service's life ended.
enum Ended {
    /// There are other orders.
    Told,
    Failed {
        problem: MakeProblem,
        /// Which service it was, if it came to be ready.
        nth: Option<u64>,
        /// Whether it had been of use.
        useful: bool,
    },
    /// Nobody gives orders any more.
    Orphaned,
}

impl<M, S, T, Req> Open for Slots<M, T, Req>
where
    M: Service<T, Response = S> + Clone + Send + 'static,
    M::Error: Into<BoxError>,
    M::Future: Send,
    S: Service<Req> + Send + 'static,
    S::Error: Into<BoxError>,
    T: Target,
    Req: 'static,
{
    type Member = Slot<S>;

    fn open(
        &self,
        instance: &Arc<Instance>,
        orders: watch::Receiver<Order>,
        wake: Arc<Notify>,
    ) -> (Arc<Slot<S>>, Task) {
        let slot = Arc::new(Slot::new(instance, Arc::clone(&self.room)));
        let actor = Actor {
            slot: Arc::clone(&slot),
            make: Arc::clone(&self.make),
            settings: self.settings.clone(),
            runtime: self.runtime.clone(),
            meters: Arc::clone(&self.meters),
            wake,
            kinds: self.kinds,
        };
        (slot, self.runtime.spawn(actor.run(orders)))
    }

    fn update(&self, slot: &Slot<S>, instance: &Arc<Instance>) {
        slot.instance.store(Arc::clone(instance));
        slot.place.shut(!instance.takes_requests());
    }
}

impl<M, S, T, Req> Actor<M, S, T, Req>
where
    M: Service<T, Response = S> + Clone + Send + 'static,
    M::Error: Into<BoxError>,
    M::Future: Send,
    S: Service<Req> + Send + 'static,
    S::Error: Into<BoxError>,
    T: Target,
{
    async fn run(self, mut orders: watch::Receiver<Order>) {
        let (mut failures, mut last, mut answered) = (0u32, None, 0);
        loop {
            let order = *orders.borrow_and_update();
            match order {
                Order::Drain => break,
                Order::Rest => {
                    self.set(Phase::Idle);
                    (failures, last) = (0, None);
                    if orders.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                Order::Connect { .. } => {}
            }
            self.set(Phase::Making { last: last.clone(), hopeful: failures == 0 });
            let ended = caught(self.live(&mut orders)).await;
            if *orders.borrow() == Order::Drain {
                break;
            }
            let _ = catch_unwind(AssertUnwindSafe(|| drop(self.slot.place.clear())));
            let (problem, nth, useful) = match ended {
                Some(Ended::Told) => continue,
                Some(Ended::Orphaned) => return,
                Some(Ended::Failed { problem, nth, useful }) => (problem, nth, useful),
                None => (MakeProblem::Panicked, None, false),
            };
            let error = Arc::new(MakeError { address: self.slot.address().clone(), problem });
            tracing::debug!(%error, failures, useful, "no service");
            last = Some(Arc::clone(&error));
            // One before it may have answered when it had ended already.
            if useful || self.slot.last_answered() > answered {
                failures = 0;
            }
            answered = self.slot.last_answered();
            if useful {
                continue;
            }
            failures = failures.saturating_add(1);
            self.meters.not_connected();
            self.set(Phase::TransientFailure { error });
            let delay = self.settings.backoff.pause(failures, &self.runtime);
            tokio::select! {
                biased;
                changed = until(&mut orders, |now| *now != order) => match changed {
                    Ok(()) => (failures, last) = (0, None),
                    Err(_) => return,
                },
                () = self.slot.has_answered(nth.unwrap_or(u64::MAX)) => failures = 0,
                () = tokio::time::sleep(delay) => {}
            }
        }
        self.set(Phase::Draining);
        self.finish().await;
    }

    /// Makes a service, and keeps it until it fails or the orders are others.
    async fn live(&self, orders: &mut watch::Receiver<Order>) -> Ended {
        let limit = self.settings.make_timeout;
        let made = tokio::select! {
            biased;
            made = tokio::time::timeout(limit, self.make()) => made,
            changed = until(orders, |order| !matches!(order, Order::Connect { .. })) => return told(&changed),
        };
        if let Err(problem) = made.unwrap_or(Err(MakeProblem::Timeout(limit))) {
            return Ended::Failed { problem, nth: None, useful: false };
        }
        let since = self.runtime.now();
        let nth = self.slot.made.fetch_add(1, Ordering::AcqRel) + 1;
        self.meters.connected();
        self.set(Phase::Ready);
        self.slot.room.vacated();
        let problem = loop {
            tokio::select! {
                biased;
                changed = until(orders, |order| *order == Order::Drain) => return told(&changed),
                () = self.slot.place.touched.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            tokio::select! {
                biased;
                changed = until(orders, |order| *order == Order::Drain) => return told(&changed),
                free = self.free() => match free {
                    Ok(true) => self.slot.room.vacated(),
                    Ok(false) => {}
                    Err(problem) => break problem,
                },
            }
        };
        let lasted = self.runtime.now().saturating_sub(since);
        let useful = lasted >= SETTLED || self.slot.last_answered() >= nth;
        Ended::Failed { problem, nth: Some(nth), useful }
    }

    /// A service that is ready, in its place.
    async fn make(&self) -> Result<(), MakeProblem> {
        let mut make = self.make.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let ready = poll_fn(|cx| make.poll_ready(cx)).await;
        ready.map_err(|error| MakeProblem::Make(error.into()))?;
        let target = T::of(&self.slot.instance.load());
        let service = make.call(target).await.map_err(|error| MakeProblem::Make(error.into()))?;
        self.slot.place.put(service);
        self.free().await.map(drop)
    }

    /// Until the service is ready. Says whether it had been busy.
    async fn free(&self) -> Result<bool, MakeProblem> {
        let place = &self.slot.place;
        loop {
            tokio::select! {
                biased;
                free = poll_fn(|cx| place.poll_free(cx)) => return free,
                // Somebody else asked it, and has its wake-up.
                () = place.touched.notified() => {}
            }
        }
    }

    /// Until nothing is in flight. The service gets no more requests, and is kept until then.
    async fn finish(&self) {
        let service = self.slot.place.clear();
        loop {
            let settled = self.slot.settled.notified();
            if self.slot.in_flight() == 0 {
                break;
            }
            settled.await;
        }
        let _ = catch_unwind(AssertUnwindSafe(|| drop(service)));
        self.slot.gone.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    fn set(&self, phase: Phase) {
        self.slot.phase.store(Arc::new(phase));
        self.wake.notify_one();
    }
}

fn told(changed: &Result<(), watch::error::RecvError>) -> Ended {
    if changed.is_ok() { Ended::Told } else { Ended::Orphaned }
}

/// Until the orders are such. Fails if nobody gives orders any more.
async fn until(
    orders: &mut watch::Receiver<Order>,
    such: impl FnMut(&Order) -> bool,
) -> Result<(), watch::error::RecvError> {
    orders.wait_for(such).await.map(|_| ())
}

/// What comes of it, or `None` if it panics.
async fn caught<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(Poll::Ready(output)) => Poll::Ready(Some(output)),
        Ok(Poll::Pending) => Poll::Pending,
        Err(_) => Poll::Ready(None),
    })
    .await
}
