//! What requests and their driver share.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};

use super::{
    Chooser, Member, Meters, Overflow, Room, RouteError, Settings, Snapshot, aperture::Ahead, routes::Routes,
};
use crate::{
    balance::{CallerOrder, Connects},
    model::Endpoint,
    runtime::Runtime,
};

pub(crate) struct Shared<M> {
    pub(crate) endpoint: Endpoint,
    pub(crate) runtime: Runtime,
    pub(super) settings: Settings,
    /// In which order this caller prefers instances.
    pub(super) caller: CallerOrder,
    pub(super) chooser: Chooser,
    /// How many instances are connected by themselves.
    pub(super) ahead: Ahead,
    pub(super) routes: ArcSwap<Routes<M>>,
    /// The version of the routes, for whoever waits for the next.
    pub(super) published: watch::Sender<u64>,
    pub(crate) meters: Arc<Meters>,
    /// Told of every change of a member.
    pub(super) wake: Arc<Notify>,
    /// Told by members that are no longer busy.
    pub(crate) room: Arc<Room>,
    waiting: AtomicUsize,
    /// Those of them that wait because all are full.
    pending: AtomicUsize,
}

/// A place in the queue of requests that wait for an instance.
pub(super) struct Place<M>(Arc<Shared<M>>);

/// A place among the requests that wait because all instances have as many as they may.
pub(super) struct Pending<M>(Arc<Shared<M>>);

impl<M: Member> Shared<M> {
    pub(crate) fn new(
        endpoint: Endpoint,
        settings: Settings,
        caller: CallerOrder,
        runtime: Runtime,
        chooser: Chooser,
    ) -> Self {
        let is_ahead = chooser.connects() == Connects::Ahead;
        if settings.aperture.is_some() && !is_ahead {
            tracing::warn!(
                %endpoint,
                "the aperture is ignored: this policy may choose any instance, and has it connected on demand; take a policy that \
                 chooses among whatever is connected"
            );
        }
        Self {
            meters: Arc::new(Meters::new(&endpoint)),
            ahead: Ahead::new(&settings, is_ahead, &runtime),
            endpoint,
            settings,
            runtime,
            caller,
            room: Arc::new(Room::new(chooser.takes_any())),
            chooser,
            routes: ArcSwap::from_pointee(Routes::unknown()),
            published: watch::channel(0).0,
            wake: Arc::new(Notify::new()),
            waiting: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
        }
    }

    /// What is known and done right now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot::of(self, &self.routes.load())
    }

    /// Waits until things look as asked. Looks again whenever the view, an instance's standing or its connection changed.
    pub(crate) async fn wait_until(&self, mut looks: impl FnMut(&Snapshot) -> bool) -> Snapshot {
        let mut published = self.published.subscribe();
        loop {
            published.mark_unchanged();
            let snapshot = self.snapshot();
            if looks(&snapshot) {
                return snapshot;
            }
            if published.changed().await.is_err() {
                // The sender lives as long as this.
                return snapshot;
            }
        }
    }

    pub(super) fn publish(&self, routes: Routes<M>) {
        let version = routes.version;
        self.routes.store(Arc::new(routes));
        self.published.send_replace(version);
    }

    /// How many requests wait for an instance.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Queues a request.
    pub(super) fn queue(self: &Arc<Self>) -> Result<Place<M>, RouteError> {
        let limit = self.settings.queue_limit;
        let place = Place(Arc::clone(self));
        self.meters.waits();
        if let Some(occupancy) = self.ahead.occupancy() {
            occupancy.wait();
        }
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= limit {
            return Err(RouteError::QueueFull { endpoint: self.endpoint.to_string(), limit });
        }
        Ok(place)
    }

    /// Lets a request wait because all instances have as many as they may, if it may.
    pub(super) fn pend(self: &Arc<Self>) -> Result<Pending<M>, RouteError> {
        let pending = Pending(Arc::clone(self));
        let before = self.pending.fetch_add(1, Ordering::AcqRel);
        match self.may_pend() {
            Some(most) if before < most => Ok(pending),
            _ => Err(self.overloaded()),
        }
    }

    /// What a request is told that may not, or no longer, wait for an instance with a place.
    pub(super) fn overloaded(&self) -> RouteError {
        let limit = self.settings.max_in_flight.unwrap_or(usize::MAX);
        RouteError::Overloaded { endpoint: self.endpoint.to_string(), limit, pending: self.may_pend() }
    }

    /// How many requests may wait because all instances have as many as they may. `None`: none may.
    fn may_pend(&self) -> Option<usize> {
        match self.settings.overflow {
            Overflow::Wait => Some(self.settings.max_pending.unwrap_or(self.settings.queue_limit)),
            Overflow::Fail => None,
        }
    }
}

impl<M> Drop for Pending<M> {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<M> Drop for Place<M> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
        if let Some(occupancy) = self.0.ahead.occupancy() {
            occupancy.wait_no_more();
        }
        self.0.meters.waits_no_more();
    }
}
