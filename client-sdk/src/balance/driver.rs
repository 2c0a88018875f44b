//! Feeds any [`LoadBalance`], written by anyone, with the changes of any [`Discover`].
//!
//! A balancer that only reads `watch()` loses changes when the broadcast overflows, and what happened between its own
//! `discover` and its first change. The [`Driver`] makes up for both: it reads the views it tracks once more and hands the
//! difference to [`rebalance`](LoadBalance::rebalance), so a balancer need not know of either.

use std::{
    hash::Hash,
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;

use super::{LoadBalance, LoadBalanceError, cache::IDLE};
use crate::{
    discover::{
        Discover, Follower, SharedError,
        track::{Put, Sink, Tracker},
    },
    model::{Address, Change, Endpoint},
    runtime::Runtime,
};

/// A task that calls a balancer's `rebalance`. Dropping it ends the task.
pub struct Driver<D: Discover> {
    discover: Arc<D>,
    tracker: Tracker<D::Key>,
    seen: Arc<Seen<D::Key>>,
}

/// A discovery and a balancer that belong together, and their [`Driver`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use client_sdk::{balance::{Balanced, Cached, WeightedRandom}, discover::StaticDiscover, model::Endpoint, runtime::Runtime};
///
/// let runtime = Runtime::tokio();
/// let peers = Arc::new(StaticDiscover::parse(["10.0.0.7:8080"])?);
/// let policy = Arc::new(Cached::new(WeightedRandom::new(&runtime), &runtime)); // or a balancer of your own
/// let balanced = Balanced::new(peers, policy, &runtime);
/// for address in balanced.get(&Endpoint::new("greeter")).await? {
///     println!("try {address}");
/// }
/// # Ok(())
/// # }
/// ```
pub struct Balanced<D: Discover, L> {
    balancer: Arc<L>,
    driver: Driver<D>,
}

/// Addresses in the order in which to try them.
#[derive(Clone, Debug)]
pub enum Addresses<I> {
    /// The address that the endpoint names.
    Fixed(Option<Address>),
    /// What the balancer chose.
    Balanced(I),
}

type Seen<K> = DashMap<K, Use>;

/// How a key is used.
#[derive(Debug)]
struct Use {
    recently: AtomicBool,
    /// The balancer answered for it, and what it may have missed meanwhile was repeated.
    settled: AtomicBool,
}

impl<D: Discover> Driver<D> {
    /// Starts the task. Changes are subscribed to at once, so a balancer that is asked only afterwards misses none.
    pub fn spawn<L: LoadBalance<D>>(balancer: Arc<L>, discover: Arc<D>, runtime: &Runtime) -> Self {
        Self::with_idle(balancer, discover, IDLE, runtime)
    }

    /// As [`spawn`](Self::spawn), with the time after which keys are no longer read again that nobody asked for. Default
    /// 10 min.
    pub fn with_idle<L: LoadBalance<D>>(
        balancer: Arc<L>,
        discover: Arc<D>,
        idle: Duration,
        runtime: &Runtime,
    ) -> Self {
        let seen = Arc::new(Seen::new());
        let sink = ToBalancer { balancer, seen: Arc::clone(&seen), _discover: PhantomData::<fn() -> D> };
        // All of them: a balancer may have been asked for a key that is not tracked.
        let changes = discover.watch();
        let tracker = Tracker::spawn(changes, Arc::clone(&discover), sink, [], Some(idle), runtime);
        Self { discover, tracker, seen }
    }

    /// Has the endpoint's view read now and whenever changes were lost. To be called before the balancer is asked for the
    /// endpoint for the first time, and each time it is asked: a key that is not asked for goes.
    pub async fn track(&self, endpoint: &Endpoint) {
        let key = self.discover.key(endpoint);
        if let Some(used) = self.seen.get(&key) {
            used.recently.store(true, Ordering::Relaxed);
            return;
        }
        // Tracked first: cancelled in between, the next caller does it once more.
        self.tracker.track(key.clone(), endpoint.clone()).await;
        self.seen
            .entry(key)
            .or_insert_with(|| Use { recently: AtomicBool::new(true), settled: AtomicBool::new(false) });
    }

    /// Repeats to the balancer what is known of the endpoint's view, once: a change that came while the balancer was at its
    /// own first `discover` may have found it without an entry to put it in.
    pub async fn settle(&self, endpoint: &Endpoint) {
        let key = self.discover.key(endpoint);
        let settled = self.seen.get(&key).is_none_or(|used| used.settled.load(Ordering::Relaxed));
        if !settled
            && self.tracker.track(key.clone(), endpoint.clone()).await
            && let Some(used) = self.seen.get(&key)
        {
            used.settled.store(true, Ordering::Relaxed);
        }
    }
}

impl<D: Discover, L: LoadBalance<D>> Balanced<D, L> {
    /// Brings the two together and starts their driver.
    pub fn new(discover: Arc<D>, balancer: Arc<L>, runtime: &Runtime) -> Self {
        Self { driver: Driver::spawn(Arc::clone(&balancer), discover, runtime), balancer }
    }

    /// Addresses for one request, in the order in which to try them.
    pub async fn get(&self, endpoint: &Endpoint) -> Result<Addresses<L::InstanceIter>, LoadBalanceError> {
        if let Some(address) = &endpoint.address {
            return Ok(Addresses::Fixed(Some(address.clone())));
        }
        self.driver.track(endpoint).await;
        let addresses = self.balancer.get_picker(endpoint, &self.driver.discover).await?;
        self.driver.settle(endpoint).await;
        Ok(Addresses::Balanced(addresses))
    }

    /// The balancer.
    pub fn balancer(&self) -> &Arc<L> {
        &self.balancer
    }
}

impl<I: Iterator<Item = Address>> Iterator for Addresses<I> {
    type Item = Address;

    fn next(&mut self) -> Option<Address> {
        match self {
            Self::Fixed(address) => address.take(),
            Self::Balanced(addresses) => addresses.next(),
        }
    }
}

impl<D: Discover> std::fmt::Debug for Driver<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("keys", &self.seen.len()).finish_non_exhaustive()
    }
}

impl<D: Discover, L> std::fmt::Debug for Balanced<D, L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Balanced").field("driver", &self.driver).finish_non_exhaustive()
    }
}

/// Hands a change to a balancer. One that panics over it must get the next one all the same.
pub(crate) fn rebalance<D: Discover>(balancer: &impl LoadBalance<D>, change: Change<D::Key>) -> Put {
    if catch_unwind(AssertUnwindSafe(|| balancer.rebalance(change))).is_err() {
        tracing::error!("the balancer panicked in `rebalance`; it is told the next change all the same");
        return Put::Later;
    }
    Put::InUse
}

/// Brings the tracker's views to a balancer.
struct ToBalancer<L, K, D> {
    balancer: Arc<L>,
    seen: Arc<Seen<K>>,
    _discover: PhantomData<fn() -> D>,
}

impl<D: Discover, L: LoadBalance<D>> Sink<D::Key> for ToBalancer<L, D::Key, D>
where
    D::Key: Hash,
{
    fn changed(&mut self, change: Change<D::Key>) -> Put {
        rebalance(&*self.balancer, change)
    }

    fn follows(
        &mut self,
        _: &D::Key,
        follower: impl FnOnce() -> Option<Arc<Follower>>,
    ) -> Option<Arc<Follower>> {
        follower()
    }

    fn untracked(&mut self, change: Change<D::Key>) {
        rebalance(&*self.balancer, change);
    }

    fn failed(&mut self, _: &D::Key, error: SharedError) {
        tracing::warn!(%error, "cannot read a view; it is tried again");
    }

    fn keeps(&mut self, key: &D::Key) -> bool {
        self.seen.remove_if(key, |_, used| !used.recently.swap(false, Ordering::Relaxed)).is_none()
    }
}
