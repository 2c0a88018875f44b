//! How a channel chooses: a policy, or somebody's [`LoadBalance`], without their types.

use std::sync::Arc;

use crate::{
    balance::{LoadBalance, LoadBalanceError, Picker, Policy},
    discover::{Discover, View},
    model::{Address, Change, Endpoint, Instance, InstanceList},
    runtime::BoxFuture,
};

/// Addresses in the order in which to try them.
pub(super) type Addresses = Box<dyn Iterator<Item = Address> + Send>;

/// How calls choose.
pub(super) enum Chooser {
    Policy(Box<dyn AnyPolicy>),
    LoadBalance(Box<dyn AnyLoadBalance>),
}

/// Any [`Policy`].
pub(super) trait AnyPolicy: Send + Sync {
    fn build(&self, instances: &InstanceList) -> Box<dyn Picker>;
}

/// Any [`LoadBalance`], with its discovery.
pub(super) trait AnyLoadBalance: Send + Sync {
    fn addresses<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, Result<Addresses, LoadBalanceError>>;

    /// Passes a change of the view on.
    fn changed(&self, endpoint: &Endpoint, before: &[Arc<Instance>], after: &View);
}

impl<P: Policy> AnyPolicy for P {
    fn build(&self, instances: &InstanceList) -> Box<dyn Picker> {
        Box::new(Policy::build(self, instances))
    }
}

/// A load balancer and the discovery that it asks.
pub(super) struct WithDiscovery<D, L> {
    pub(super) discover: Arc<D>,
    pub(super) balance: L,
}

impl<D: Discover, L: LoadBalance<D>> AnyLoadBalance for WithDiscovery<D, L> {
    fn addresses<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, Result<Addresses, LoadBalanceError>> {
        Box::pin(async move {
            let addresses = self.balance.get_picker(endpoint, &self.discover).await?;
            Ok(Box::new(addresses) as Addresses)
        })
    }

    fn changed(&self, endpoint: &Endpoint, before: &[Arc<Instance>], after: &View) {
        let key = self.discover.key(endpoint);
        let change = Change::between(key, before, Arc::clone(&after.instances), after.version);
        if !change.is_empty() {
            self.balance.rebalance(change);
        }
    }
}
