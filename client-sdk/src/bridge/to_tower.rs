//! Our instances as a tower `Discover`: a stream of services that come and go, on which tower's own `Balance` runs.
//!
//! ```text
//!   Discover ──follow──► newest view ──eligible, compared with what tower was told──► steps ──make──► Insert, Remove
//!                                    └──weight, tags, …──────────────────────────────────────────► LiveInstance
//! ```
//!
//! Keeps C1: what fails upstream is no item of the stream. Keeps C2 as far as tower lets it: what takes no requests is
//! removed. The backlog is bounded by the size of the view: nothing queues changes, each poll compares with the newest
//! view.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use tokio_stream::{Stream, wrappers::WatchStream};
use tower::discover::Change;

use crate::{
    balance::Eligible,
    discover::{Discover, Followed, ViewReceiver, ViewState, follow},
    model::{Address, Endpoint, Instance, InstanceList},
    runtime::Runtime,
};

/// The instances of an endpoint that take requests, as a [`tower::discover::Discover`] whose keys are their ids.
///
/// - An instance that comes is inserted; one that goes, drains, is down or gets weight 0 is removed. Held ones are there
///   only while there are no others.
/// - One that moves to another address is removed and inserted again: if it were only inserted, tower's `Balance` would
///   use the old service once more, or until the new one is ready.
/// - A change of anything else happens in place, without a new connection: the service reads it from its
///   [`LiveInstance`].
/// - An error of the discovery is traced, and seen through [`view`](Self::view); the stream goes on with what is known.
/// - It ends only when the view cannot change any more (that of a static discovery), and may be polled after that.
///
/// tower's `Balance` drops a service whose `poll_ready` fails and asks for no other, so `make` is to give services that
/// connect again by themselves: `tower::reconnect::Reconnect` makes such a one of any `MakeService`. And it waits for as long
/// as there is no instance: callers bring the timeout.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// use std::{convert::Infallible, sync::Arc};
/// use client_sdk::{bridge::{LiveInstance, ServiceChanges}, discover::StaticDiscover, model::Endpoint, runtime::Runtime};
/// use tower::{ServiceExt, balance::p2c::Balance, load::{CompleteOnResponse, PendingRequestsDiscover}};
///
/// let peers = Arc::new(StaticDiscover::parse(["10.0.0.7:8080", "10.0.0.8:8080"])?);
/// let call = |instance: LiveInstance| {
///     tower::service_fn(move |name: &'static str| {
///         let instance = instance.get();
///         async move { Ok::<_, Infallible>(format!("{name}, from {}", instance.address)) }
///     })
/// };
/// let services = ServiceChanges::new(peers, Endpoint::new("greeter"), &Runtime::tokio(), call);
/// let balance = Balance::new(PendingRequestsDiscover::new(services, CompleteOnResponse::default()));
/// println!("{}", balance.oneshot("hello").await?);
/// # Ok(())
/// # }
/// ```
pub struct ServiceChanges<F> {
    make: F,
    /// `None`: the view does not change any more.
    states: Option<WatchStream<ViewState>>,
    seen: Option<InstanceList>,
    told: BTreeMap<Arc<str>, Told>,
    /// From what was told to what was seen.
    steps: VecDeque<Step>,
    view: ViewReceiver,
    _followed: Followed,
}

/// An instance as it is now. Its weight, tags and so on may change while its service lives; its id and address do not.
///
/// Cheap to clone. After the instance was removed it stays as it was last seen.
#[derive(Clone, Debug)]
pub struct LiveInstance(Arc<ArcSwap<Instance>>);

/// A service that tower has.
struct Told {
    address: Address,
    live: LiveInstance,
}

enum Step {
    Insert(Arc<Instance>),
    Remove(Arc<str>),
}

impl LiveInstance {
    /// The instance, as it is now.
    pub fn get(&self) -> Arc<Instance> {
        self.0.load_full()
    }
}

impl<F> ServiceChanges<F> {
    /// Follows the instances that the endpoint names, from now on; `make` makes a service of each that comes.
    ///
    /// Must be called where the runtime can spawn.
    pub fn new<D: Discover, S>(discover: Arc<D>, endpoint: Endpoint, runtime: &Runtime, make: F) -> Self
    where
        F: FnMut(LiveInstance) -> S,
    {
        let mut followed = follow(discover, endpoint, runtime);
        let view = followed.receiver().clone();
        Self {
            make,
            states: Some(WatchStream::new(view.clone())),
            seen: None,
            told: BTreeMap::new(),
            steps: VecDeque::new(),
            view,
            _followed: followed,
        }
    }

    /// What is known of the view, the last error included. It follows only while the stream lives.
    pub fn view(&self) -> ViewReceiver {
        self.view.clone()
    }

    /// Looks whether the view changed, and has this task woken when it does.
    fn look(&mut self, context: &mut Context<'_>) {
        let mut newest = None;
        while let Some(states) = &mut self.states {
            match Pin::new(states).poll_next(context) {
                Poll::Ready(Some(state)) => newest = Some(state),
                // Not polled again.
                Poll::Ready(None) => self.states = None,
                Poll::Pending => break,
            }
        }
        let Some(ViewState { view, error }) = newest else { return };
        if let Some(error) = error {
            tracing::warn!(%error, "the discovery fails; its services stay as last known");
        }
        if let Some(view) = view
            && self.seen.as_ref().is_none_or(|seen| !Arc::ptr_eq(seen, &view.instances))
        {
            self.plan(&view.instances);
            self.seen = Some(view.instances);
        }
    }

    /// Plans the steps to a view, and shows what changes in place. Those that come are first, so that whoever takes the
    /// steps one by one is not left without a service in between.
    fn plan(&mut self, all: &InstanceList) {
        for instance in all.iter() {
            if let Some(told) = self.told.get(&instance.id)
                && told.address == instance.address
            {
                told.live.0.store(Arc::clone(instance));
            }
        }
        let eligible = Eligible::of(all);
        let mut wanted = HashSet::new();
        self.steps.clear();
        for instance in eligible.first().iter().filter(|instance| wanted.insert(Arc::clone(&instance.id))) {
            match self.told.get(&instance.id) {
                Some(told) if told.address == instance.address => continue,
                Some(_) => self.steps.push_back(Step::Remove(Arc::clone(&instance.id))),
                None => {}
            }
            self.steps.push_back(Step::Insert(Arc::clone(instance)));
        }
        let gone = self.told.keys().filter(|id| !wanted.contains(*id)).cloned().map(Step::Remove);
        self.steps.extend(gone);
    }
}

impl<F: FnMut(LiveInstance) -> S, S> Stream for ServiceChanges<F> {
    type Item = Result<Change<Arc<str>, S>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.look(context);
        match self.steps.pop_front() {
            Some(Step::Insert(instance)) => {
                let id = Arc::clone(&instance.id);
                let address = instance.address.clone();
                let live = LiveInstance(Arc::new(ArcSwap::new(instance)));
                let service = (self.make)(live.clone());
                self.told.insert(Arc::clone(&id), Told { address, live });
                Poll::Ready(Some(Ok(Change::Insert(id, service))))
            }
            Some(Step::Remove(id)) => {
                self.told.remove(&id);
                Poll::Ready(Some(Ok(Change::Remove(id))))
            }
            None if self.states.is_none() => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

/// Nothing in it is pinned.
impl<F> Unpin for ServiceChanges<F> {}

impl<F> fmt::Debug for ServiceChanges<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceChanges")
            .field("services", &self.told.len())
            .field("steps", &self.steps.len())
            .field("ended", &self.states.is_none())
            .finish_non_exhaustive()
    }
}
