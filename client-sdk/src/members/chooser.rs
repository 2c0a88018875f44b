//! How requests choose: a policy, or somebody's [`LoadBalance`], without their types.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    balance::{Connects, LoadBalance, LoadBalanceError, Picker, Policy, rebalance, shape::SOONEST},
    discover::{Discover, View},
    model::{Address, Change, Endpoint, Instance, InstanceList},
    runtime::BoxFuture,
};

/// Addresses in the order in which to try them.
pub(crate) type Addresses = Box<dyn Iterator<Item = Address> + Send>;

/// How requests choose. Cheap to clone: its clones share what the policy or the load balancer keeps.
#[derive(Clone)]
pub(crate) enum Chooser {
    /// A policy, and when to connect what it may pick: it is asked once.
    Policy(Arc<dyn AnyPolicy>, Connects),
    LoadBalance(Arc<dyn AnyLoadBalance>),
}

/// Any [`Policy`].
pub(crate) trait AnyPolicy: Send + Sync {
    fn build(&self, instances: &InstanceList) -> Box<dyn Picker>;

    fn rebuild_every(&self) -> Option<Duration>;
}

/// Any [`LoadBalance`], with its discovery.
pub(crate) trait AnyLoadBalance: Send + Sync {
    fn addresses<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, Result<Addresses, LoadBalanceError>>;

    /// Passes a change of the view on.
    fn changed(&self, endpoint: &Endpoint, before: &[Arc<Instance>], after: &View);
}

impl Chooser {
    /// A policy.
    pub(crate) fn policy(policy: impl Policy) -> Self {
        let connects = policy.connects();
        Self::Policy(Arc::new(policy), connects)
    }

    /// Somebody's load balancer, which asks this discovery.
    pub(crate) fn load_balance<D: Discover>(discover: Arc<D>, balance: impl LoadBalance<D>) -> Self {
        Self::LoadBalance(Arc::new(WithDiscovery::new(discover, balance)))
    }

    /// Whether any request can go to any instance that may be chosen: to none in particular by a key or a name.
    pub(super) fn takes_any(&self) -> bool {
        matches!(self, Self::Policy(_, Connects::Ahead))
    }

    /// How often a picker is built anew though nothing changed.
    pub(super) fn rebuild_every(&self) -> Option<Duration> {
        match self {
            Self::Policy(policy, _) => policy.rebuild_every().map(|pause| pause.max(SOONEST)),
            Self::LoadBalance(_) => None,
        }
    }

    /// When to connect what may be chosen.
    pub(super) fn connects(&self) -> Connects {
        match self {
            Self::Policy(_, connects) => *connects,
            Self::LoadBalance(_) => Connects::Ahead,
        }
    }
}

impl<P: Policy> AnyPolicy for P {
    fn build(&self, instances: &InstanceList) -> Box<dyn Picker> {
        Box::new(Policy::build(self, instances))
    }

    fn rebuild_every(&self) -> Option<Duration> {
        Policy::rebuild_every(self)
    }
}

/// A load balancer and the discovery that it asks.
struct WithDiscovery<D, L> {
    discover: Arc<D>,
    balance: L,
    told: Mutex<Told>,
}

/// What the load balancer was told. Held while it is told, so that it is told in order.
#[derive(Default)]
struct Told {
    view: Option<View>,
    /// How many changes.
    changes: u64,
    /// At how many changes it was told the view once more.
    repeated: u64,
}

impl<D: Discover, L: LoadBalance<D>> WithDiscovery<D, L> {
    fn new(discover: Arc<D>, balance: L) -> Self {
        Self { discover, balance, told: Mutex::default() }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the view once more if it changed since there had been `before` changes: the load balancer may have been at a
    /// `discover` of its own that began earlier, and have had no place yet to put the change in.
    fn repeat(&self, endpoint: &Endpoint, before: u64) -> bool {
        let mut told = self.told();
        if told.changes == before || told.changes == told.repeated {
            return false;
        }
        told.repeated = told.changes;
        let Some(View { instances, version }) = told.view.clone() else { return false };
        rebalance(&self.balance, Change::between(self.discover.key(endpoint), &[], instances, version));
        true
    }
}

impl<D: Discover, L: LoadBalance<D>> AnyLoadBalance for WithDiscovery<D, L> {
    fn addresses<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, Result<Addresses, LoadBalanceError>> {
        Box::pin(async move {
            let before = self.told().changes;
            let mut addresses = self.balance.get_picker(endpoint, &self.discover).await?;
            if self.repeat(endpoint, before) {
                addresses = self.balance.get_picker(endpoint, &self.discover).await?;
            }
            Ok(Box::new(addresses) as Addresses)
        })
    }

    fn changed(&self, endpoint: &Endpoint, before: &[Arc<Instance>], after: &View) {
        let key = self.discover.key(endpoint);
        let change = Change::between(key, before, Arc::clone(&after.instances), after.version);
        let mut told = self.told();
        told.view = Some(after.clone());
        if !change.is_empty() {
            told.changes += 1;
            rebalance(&self.balance, change);
        }
    }
}
