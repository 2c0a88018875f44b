//! What a channel's calls and its driver share.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};

use super::{
    chooser::Chooser,
    connection::{Order, Owner},
    error::ChannelError,
    routes::Routes,
    settings::Settings,
};
use crate::{
    model::{Endpoint, Instance},
    runtime::Runtime,
};

pub(super) struct Shared {
    pub(super) endpoint: Endpoint,
    pub(super) settings: Arc<Settings>,
    pub(super) runtime: Runtime,
    pub(super) chooser: Chooser,
    pub(super) routes: ArcSwap<Routes>,
    /// The version of the routes, for whoever waits for the next.
    pub(super) published: watch::Sender<u64>,
    /// Told of every change of a connection.
    pub(super) wake: Arc<Notify>,
    waiting: AtomicUsize,
}

/// A place in the queue of calls that wait for an instance.
pub(super) struct Place(Arc<Shared>);

impl Shared {
    pub(super) fn new(endpoint: Endpoint, settings: Settings, runtime: Runtime, chooser: Chooser) -> Self {
        Self {
            endpoint,
            settings: Arc::new(settings),
            runtime,
            chooser,
            routes: ArcSwap::from_pointee(Routes::unknown()),
            published: watch::channel(0).0,
            wake: Arc::new(Notify::new()),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Starts a connection.
    pub(super) fn connect(&self, instance: Arc<Instance>, order: Order) -> Owner {
        Owner::start(instance, order, Arc::clone(&self.settings), &self.runtime, Arc::clone(&self.wake))
    }

    pub(super) fn publish(&self, routes: Routes) {
        let version = routes.version;
        self.routes.store(Arc::new(routes));
        self.published.send_replace(version);
    }

    /// How many calls wait for an instance.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Queues a call.
    pub(super) fn queue(self: &Arc<Self>) -> Result<Place, ChannelError> {
        let limit = self.settings.queue_limit;
        let place = Place(Arc::clone(self));
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= limit {
            return Err(ChannelError::QueueFull { endpoint: self.endpoint.to_string(), limit });
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}
