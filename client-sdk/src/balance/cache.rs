//! The cache that turns a [`Policy`] into a [`LoadBalance`]: for each key one picker, built when its view changes.
//!
//! It is passive: it discovers when it is asked for a key it does not know, and takes in the changes it is given. Whoever
//! owns it subscribes to changes first and calls [`rebalance`](LoadBalance::rebalance); [`Balancer`](super::Balancer) and
//! [`Driver`](super::Driver) do that. No guard of the map is held across an await, nor while a picker is built.

use std::{
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use foldhash::fast::RandomState;

use super::{
    CallerOrder, Candidates, LoadBalance, LoadBalanceError, Policy, entry::Entry, recipe::Recipe,
    shape::Shaping,
};
use crate::{
    backoff::Bounds,
    discover::{Discover, View},
    model::{Change, Endpoint},
    runtime::Runtime,
};

/// How long a key stays that nobody asks for.
pub(crate) const IDLE: Duration = Duration::from_mins(10);

/// A [`LoadBalance`] made of a policy, for any discovery whose key is `K`.
///
/// However many callers ask for a key at first, one `discover` runs; if its caller gives up, the next one takes over, and
/// if it fails, all who waited for it see its error. A view that is unversioned and empty is asked for again after a
/// backoff, when someone wants it. Keys that nobody asked for in the idle time (10 min unless set) go at the next change or
/// first call after it.
pub struct Cached<P: Policy, K> {
    entries: DashMap<K, Arc<Entry<P>>, RandomState>,
    recipe: Recipe<P>,
    runtime: Runtime,
    idle: Duration,
    /// When to sweep next, in milliseconds of the runtime's clock.
    sweep: AtomicU64,
}

impl<P: Policy, K: Hash + Eq + Clone> Cached<P, K> {
    /// An empty cache.
    pub fn new(policy: P, runtime: &Runtime) -> Self {
        let idle = IDLE;
        let sweep = AtomicU64::new(millis(runtime.now().saturating_add(idle)));
        Self {
            entries: DashMap::default(),
            recipe: Recipe::new(policy, runtime),
            runtime: runtime.clone(),
            idle,
            sweep,
        }
    }

    /// Sets how long a key stays that nobody asks for. Default 10 min.
    #[must_use]
    pub fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self.sweep = AtomicU64::new(millis(self.runtime.now().saturating_add(idle)));
        self
    }

    /// Sets filters, shapers and the panic threshold that the instances go through before the policy. Default: none, and 50 %.
    ///
    /// The cache has no timer: pickers are built when a view changes, and only then. So shares that change with the time
    /// (a [`SlowStart`](super::shape::SlowStart)) stay as they were at the last change, and so does what
    /// [`Policy::rebuild_every`] asks for. A [`Balancer`](super::Balancer) has one.
    #[must_use]
    pub fn shaping(mut self, shaping: Shaping) -> Self {
        self.recipe.shaping = shaping;
        self
    }

    /// Whose instances the filters choose. Default: a random caller's.
    #[must_use]
    pub fn caller(mut self, caller: CallerOrder) -> Self {
        self.recipe.caller = caller;
        self
    }

    /// How many keys it holds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds no key.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn recipe(&self) -> &Recipe<P> {
        &self.recipe
    }

    /// Those whose pickers are to be built again by now. Sets the alarm for the others.
    pub(crate) fn due(&self, now: Duration) -> Vec<Arc<Entry<P>>> {
        let mut due = Vec::new();
        for entry in &self.entries {
            if entry.wake(now) {
                due.push(Arc::clone(&entry));
            } else {
                self.recipe.alarm.set(entry.due());
            }
        }
        due
    }

    /// The key's entry, if there is one.
    pub(crate) fn get(&self, key: &K) -> Option<Arc<Entry<P>>> {
        self.entries.get(key).map(|entry| Arc::clone(&entry))
    }

    /// The key's entry, made if there is none.
    pub(crate) fn entry(&self, key: &K) -> Arc<Entry<P>> {
        if let Some(entry) = self.get(key) {
            entry.touch();
            return entry;
        }
        let new = Entry::new(self.runtime.random());
        Arc::clone(&self.entries.entry(key.clone()).or_insert(new))
    }

    /// Whether there is an entry for the key.
    pub(crate) fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    /// Forgets the keys that nobody used since the last call. One that a handle holds is used.
    pub(crate) fn sweep(&self) {
        // Entries are cloned under the map's lock only, so a count of one cannot grow meanwhile.
        self.entries.retain(|_, entry| entry.was_used() || Arc::strong_count(entry) > 1);
    }

    fn sweep_if_due(&self) {
        let (now, due) = (millis(self.runtime.now()), self.sweep.load(Ordering::Relaxed));
        let next = now.saturating_add(millis(self.idle));
        if now >= due && self.sweep.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            self.sweep();
        }
    }

    /// Discovers, one caller at a time.
    async fn fly<D: Discover<Key = K>>(
        &self,
        entry: &Entry<P>,
        endpoint: &Endpoint,
        discover: &D,
    ) -> Result<(), LoadBalanceError> {
        let failed = |source| LoadBalanceError::Discover { endpoint: endpoint.to_string(), source };
        let arrived = entry.flights();
        // It is never closed: an error would mean that there is no turn to wait for.
        let _turn = entry.turn.acquire().await.ok();
        if !entry.wants_discover(|| self.runtime.now()) {
            return Ok(());
        }
        if entry.flights() != arrived
            && let Some(error) = entry.failure()
        {
            return Err(failed(error));
        }
        let began = entry.begin();
        let again = |fruitless| self.runtime.now() + Bounds::default().pause(fruitless, &self.runtime);
        match discover.discover_versioned(endpoint).await {
            Ok(view) => {
                entry.answer(began, view, again);
                entry.build(&self.recipe);
            }
            Err(error) => {
                entry.put_off(again);
                entry.fail(Arc::new(error));
            }
        }
        entry.flight_ended();
        // Someone else may be building; a change may have come where the discovery failed.
        entry.ready().await.map_err(failed)
    }
}

impl<P: Policy, D: Discover> LoadBalance<D> for Cached<P, D::Key> {
    type InstanceIter = Candidates<P>;

    async fn get_picker(&self, endpoint: &Endpoint, discover: &D) -> Result<Candidates<P>, LoadBalanceError> {
        if let Some(address) = &endpoint.address {
            return Ok(Candidates::fixed(address.clone()));
        }
        let key = discover.key(endpoint);
        // What is known already costs no count of references but the one that keeps it while it is looked at.
        let known = self.entries.get(&key).and_then(|entry| {
            let built = entry.load();
            entry.touch();
            (!entry.wants_more_than(built.as_deref(), || self.runtime.now())).then_some(built)
        });
        if let Some(built) = known {
            return Candidates::of(built, endpoint);
        }
        let entry = self.entry(&key);
        self.sweep_if_due();
        self.fly(&entry, endpoint, discover).await?;
        Candidates::of(entry.load(), endpoint)
    }

    fn rebalance(&self, changes: Change<D::Key>) {
        if let Some(entry) = self.get(&changes.key)
            && entry.offer(View { instances: changes.all, version: changes.version })
        {
            entry.build(&self.recipe);
        }
        self.sweep_if_due();
    }
}

impl<P: Policy, K: Hash + Eq> std::fmt::Debug for Cached<P, K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cached").field("keys", &self.entries.len()).finish_non_exhaustive()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
