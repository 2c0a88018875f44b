//! A discovery, a policy, and the task that keeps them together: what most programs hold.
//!
//! ```text
//!   Discover ──changes, answers──► tracker ──views──► cache ──pickers──► Handle::pick
//! ```
//!
//! The tracker reads each key once however many callers wait, reads again what was lost, and keeps the last good view
//! (C1); it does so in its own task, so that a caller that gives up, or is not polled, holds up nobody.

use std::{sync::Arc, time::Duration};

use super::{
    Cached, CallerOrder, Candidates, LoadBalance, LoadBalanceError, Pick, PickContext, PickError, Picker,
    Policy, Refused,
    cache::IDLE,
    entry::{Current, Entry},
    shape::{Filter, PanicThreshold, Shaper, Shaping},
};
use crate::{
    discover::{
        Discover, Follower, SharedError, View,
        track::{Put, Sink, Tracker},
    },
    model::{Change, Endpoint, Instance},
    runtime::{Runtime, Task},
};

/// Balances over whatever a discovery names, by one policy.
///
/// Dropping it ends its task; handles keep answering from what they last knew.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use client_sdk::{balance::{Balancer, PickContext, RoundRobin}, discover::StaticDiscover, model::Endpoint, runtime::Runtime};
///
/// let runtime = Runtime::tokio();
/// let peers = Arc::new(StaticDiscover::parse(["10.0.0.7:8080", "10.0.0.8:8080"])?);
/// let balancer = Balancer::builder(peers, RoundRobin::new(&runtime)).runtime(runtime).build();
/// let mut greeter = balancer.handle(&Endpoint::new("greeter")).await?;
/// let pick = greeter.pick(&PickContext::default())?;
/// println!("call {}", pick.instance().address);
/// # Ok(())
/// # }
/// ```
pub struct Balancer<D: Discover, P: Policy> {
    discover: Arc<D>,
    cache: Arc<Cached<P, D::Key>>,
    runtime: Runtime,
    tracker: Tracker<D::Key>,
    /// Builds again what is due, if anything ever is.
    _clock: Option<Task>,
}

/// Builds a [`Balancer`].
pub struct BalancerBuilder<D, P> {
    discover: Arc<D>,
    policy: P,
    shaping: Shaping,
    caller: Option<CallerOrder>,
    runtime: Runtime,
    idle: Duration,
}

/// Picks among the instances of one endpoint: synchronously, without a lock, without an allocation. Cheap to clone.
///
/// It follows the instances for as long as its [`Balancer`] lives. Each pick is made on the newest instances; a handle
/// keeps the picker that it used last, so that finding out that it is still the newest is all that a pick costs beyond
/// the policy's own. That is why picking wants the handle for itself: whoever shares it clones it.
pub struct Handle<P: Policy> {
    entry: Arc<Entry<P>>,
    cache: Current<P>,
    /// The endpoint's own.
    hash_key: Option<u64>,
}

impl<D: Discover, P: Policy> Balancer<D, P> {
    /// Builds a balancer.
    pub fn builder(discover: Arc<D>, policy: P) -> BalancerBuilder<D, P> {
        let (shaping, caller) = (Shaping::new(), None);
        BalancerBuilder { discover, policy, shaping, caller, runtime: Runtime::tokio(), idle: IDLE }
    }

    /// A handle on the endpoint's instances, as soon as something is known of them.
    ///
    /// It fails if the discovery fails and nothing is known yet; the balancer goes on trying with backoff, and until an
    /// attempt succeeds callers see the last error at once. An empty view is no failure here: then
    /// [`pick`](Handle::pick) says so, until instances come.
    pub async fn handle(&self, endpoint: &Endpoint) -> Result<Handle<P>, LoadBalanceError> {
        if let Some(address) = &endpoint.address {
            let entry = Entry::fixed(self.runtime.random());
            let instances = [Arc::new(Instance::builder(address.clone()).build())].into();
            entry.offer(View { instances, version: None });
            entry.build(self.cache.recipe());
            return Ok(Handle::new(entry, endpoint));
        }
        self.entry(endpoint).await.map(|entry| Handle::new(entry, endpoint))
    }

    /// Addresses for one request, in the order in which to try them.
    pub async fn get(&self, endpoint: &Endpoint) -> Result<Candidates<P>, LoadBalanceError> {
        if let Some(address) = &endpoint.address {
            return Ok(Candidates::fixed(address.clone()));
        }
        let entry = self.entry(endpoint).await?;
        Candidates::of(entry.load().as_deref(), entry.way(), endpoint)
    }

    /// The keys that it holds now.
    pub fn keys(&self) -> usize {
        self.cache.len()
    }

    async fn entry(&self, endpoint: &Endpoint) -> Result<Arc<Entry<P>>, LoadBalanceError> {
        let key = self.discover.key(endpoint);
        let entry = self.cache.entry(&key);
        if entry.is_ready() {
            return Ok(entry);
        }
        if !self.tracker.track(key, endpoint.clone()).await {
            return Err(LoadBalanceError::Other(Arc::new(Ended)));
        }
        let ready = tokio::select! {
            biased;
            ready = entry.ready() => ready,
            () = self.tracker.ended() => return Err(LoadBalanceError::Other(Arc::new(Ended))),
        };
        match ready {
            Ok(()) => Ok(entry),
            Err(source) => Err(LoadBalanceError::Discover { endpoint: endpoint.to_string(), source }),
        }
    }
}

impl<D: Discover, P: Policy> BalancerBuilder<D, P> {
    /// Sets the outside world. Default: tokio's.
    #[must_use]
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = runtime;
        self
    }

    /// Sets how long a key stays that nobody asks for and no handle holds; it goes after twice that at the latest. Default
    /// 10 min.
    #[must_use]
    pub fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// Adds a filter, after those that are there: see [`shape`](super::shape). Default: none. An endpoint with an address
    /// passes it by.
    #[must_use]
    pub fn filter(mut self, filter: impl Filter) -> Self {
        self.shaping = self.shaping.filter(filter);
        self
    }

    /// Adds a shaper, after those that are there: see [`shape`](super::shape). Default: none. An endpoint with an address
    /// passes it by.
    #[must_use]
    pub fn shaper(mut self, shaper: impl Shaper) -> Self {
        self.shaping = self.shaping.shaper(shaper);
        self
    }

    /// Sets when `held` is ignored: of connections and ejections a balancer knows nothing. Default: with fewer than 50 %
    /// of the instances not held.
    #[must_use]
    pub fn panic_threshold(mut self, threshold: PanicThreshold) -> Self {
        self.shaping = self.shaping.panic_threshold(threshold);
        self
    }

    /// Whose instances the filters choose. Default: a random caller's. Give it the process's stable name, so that it has the
    /// same instances after a restart.
    #[must_use]
    pub fn caller(mut self, caller: CallerOrder) -> Self {
        self.caller = Some(caller);
        self
    }

    /// The balancer. Starts its task, so it must be called where the runtime can spawn: with tokio's, inside of it.
    pub fn build(self) -> Balancer<D, P> {
        let Self { discover, policy, shaping, caller, runtime, idle } = self;
        let mut cache = Cached::new(policy, &runtime).idle(idle).shaping(shaping);
        if let Some(caller) = caller {
            cache = cache.caller(caller);
        }
        let cache = Arc::new(cache);
        let clock = cache.recipe().keeps_time().then(|| {
            let clock = keep_time(Arc::clone(&cache), runtime.clone());
            runtime.spawn(clock)
        });
        let sink = ToCache { cache: Arc::clone(&cache), runtime: runtime.clone() };
        let changes = discover.watch_viewed();
        let tracker = Tracker::spawn(changes, Arc::clone(&discover), sink, [], Some(idle), &runtime);
        Balancer { discover, cache, runtime, tracker, _clock: clock }
    }
}

impl<D: Discover, P: Policy> LoadBalance<D> for Balancer<D, P> {
    type InstanceIter = Candidates<P>;

    /// As [`get`](Balancer::get): the balancer asks the discovery that it was built with.
    async fn get_picker(&self, endpoint: &Endpoint, _: &D) -> Result<Candidates<P>, LoadBalanceError> {
        self.get(endpoint).await
    }

    fn rebalance(&self, changes: Change<D::Key>) {
        LoadBalance::<D>::rebalance(&*self.cache, changes);
    }
}

impl<P: Policy> Handle<P> {
    fn new(entry: Arc<Entry<P>>, endpoint: &Endpoint) -> Self {
        Self { cache: Entry::cached(&entry), entry, hash_key: endpoint.hash_key }
    }

    /// An instance for one request. A request without a hash key has the endpoint's, if that has one. The pick borrows from the handle; [`Pick::into_owned`] ends that.
    #[inline]
    pub fn pick(&mut self, context: &PickContext) -> Result<Pick<'_>, PickError> {
        match self.cache.load().as_ref().and_then(|built| built.picker.as_ref()) {
            Some(picker) => {
                let hash_key = context.hash_key.or(self.hash_key);
                picker.pick(&PickContext { hash_key, ..*context })
            }
            None => Err(PickError::NoInstances),
        }
    }

    /// How many instances may not be picked now, and why: for the message when [`pick`](Self::pick) finds none.
    pub fn refused(&self) -> Refused {
        self.entry.load().as_ref().map(|built| built.eligible.refused()).unwrap_or_default()
    }
}

impl<P: Policy> Clone for Handle<P> {
    fn clone(&self) -> Self {
        Self { entry: Arc::clone(&self.entry), cache: self.cache.clone(), hash_key: self.hash_key }
    }
}

impl<P: Policy> std::fmt::Debug for Handle<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("refused", &self.refused()).finish_non_exhaustive()
    }
}

impl<D: Discover, P: Policy> std::fmt::Debug for Balancer<D, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Balancer").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl<D, P> std::fmt::Debug for BalancerBuilder<D, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BalancerBuilder").field("idle", &self.idle).finish_non_exhaustive()
    }
}

/// Builds again what is due, whenever the first of all keys is.
async fn keep_time<P: Policy, K>(cache: Arc<Cached<P, K>>, runtime: Runtime)
where
    K: std::hash::Hash + Eq + Clone + Send + Sync + 'static,
{
    loop {
        cache.recipe().alarm.rings(&runtime).await;
        for (key, entry) in cache.due(runtime.now()) {
            build_aside(&cache, key, entry, &runtime);
        }
    }
}

/// Builds aside, so that one that takes long delays no other key. It ends by itself.
fn build_aside<P: Policy, K>(cache: &Arc<Cached<P, K>>, key: K, entry: Arc<Entry<P>>, runtime: &Runtime)
where
    K: std::hash::Hash + Eq + Clone + Send + Sync + 'static,
{
    let cache = Arc::clone(cache);
    runtime.detach(async move { cache.build(&key, &entry) });
}

/// Brings the tracker's views into the cache.
struct ToCache<P: Policy, K> {
    cache: Arc<Cached<P, K>>,
    runtime: Runtime,
}

impl<P: Policy, K: std::hash::Hash + Eq + Clone + Send + Sync + 'static> Sink<K> for ToCache<P, K> {
    fn changed(&mut self, change: Change<K>) -> Put {
        // Forgotten: nobody picks from it.
        let Some(entry) = self.cache.get(&change.key) else { return Put::InUse };
        if entry.offer(View { instances: change.all, version: change.version }) {
            build_aside(&self.cache, change.key, entry, &self.runtime);
        }
        // Whoever builds tells the follower.
        Put::Later
    }

    fn follows(
        &mut self,
        key: &K,
        follower: impl FnOnce() -> Option<Arc<Follower>>,
    ) -> Option<Arc<Follower>> {
        let (entry, follower) = (self.cache.get(key)?, follower()?);
        entry.tell(&follower);
        Some(follower)
    }

    fn failed(&mut self, key: &K, error: SharedError) {
        if let Some(entry) = self.cache.get(key) {
            entry.fail(error);
        }
    }

    fn sweep(&mut self) {
        self.cache.sweep();
    }

    fn keeps(&mut self, key: &K) -> bool {
        self.cache.contains(key)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the balancer's task ended, with the runtime it was spawned on; build a new balancer")]
struct Ended;
