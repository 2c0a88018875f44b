//! Choosing an instance.
//!
//! Two faces over one machinery: [`LoadBalance`], which anyone can implement, and [`Policy`] / [`Picker`] / [`Pick`] for
//! whoever wants speed. Keeps C2: an instance that is gone, draining, down or of weight 0 gets no new request.

mod balancer;
mod cache;
mod candidates;
mod driver;
mod eligible;
mod entry;
mod random;
mod round_robin;
mod weighted_random;

pub use balancer::{Balancer, BalancerBuilder, Handle};
pub use cache::Cached;
pub use candidates::Candidates;
pub(crate) use driver::rebalance;
pub use driver::{Addresses, Balanced, Driver};
pub use eligible::{Eligible, Refused};
pub use round_robin::{RoundRobin, RoundRobinPicker};
pub use weighted_random::{WeightedRandom, WeightedRandomPicker};

use std::{future::Future, sync::Arc};

use crate::{
    discover::Discover,
    model::{Address, Change, Endpoint, Instance, InstanceList},
};

/// Chooses instances of an endpoint, in the order in which to try them.
pub trait LoadBalance<D: Discover>: Send + Sync + 'static {
    /// Addresses in the order in which to try them; a retry takes the next one.
    type InstanceIter: Iterator<Item = Address> + Send;

    /// Addresses for one request.
    fn get_picker(
        &self,
        endpoint: &Endpoint,
        discover: &D,
    ) -> impl Future<Output = Result<Self::InstanceIter, LoadBalanceError>> + Send;

    /// Takes in a change of a view.
    fn rebalance(&self, changes: Change<D::Key>);
}

/// Why no instance can be chosen.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadBalanceError {
    /// The view is empty, or not one of its instances takes requests.
    #[error("no instance of {endpoint} takes requests: {reason}")]
    NoInstances {
        /// The endpoint.
        endpoint: String,
        /// For people: how many there are, and why none of them is chosen.
        reason: String,
    },
    /// The discovery cannot tell.
    #[error("cannot discover {endpoint}: {source}")]
    Discover {
        /// The endpoint.
        endpoint: String,
        /// The discovery's own error.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Another reason, of an implementation outside this crate.
    #[error("{0}")]
    Other(Arc<dyn std::error::Error + Send + Sync>),
}

/// How to choose among instances: builds a [`Picker`] each time the instances change.
///
/// `instances` holds only those that may be chosen (C2), at least one; the picker answers by index into it.
pub trait Policy: Send + Sync + 'static {
    /// What chooses.
    type Picker: Picker;

    /// A picker over `instances`. Called outside any lock; may take its time.
    fn build(&self, instances: &InstanceList) -> Self::Picker;
}

/// Chooses, synchronously: no lock, no allocation, no waiting.
pub trait Picker: Send + Sync + 'static {
    /// An instance, among those that the picker was built over.
    fn pick(&self, context: &PickContext) -> Result<Pick, PickError>;
}

/// What a picker may know of the request.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct PickContext {
    /// What hash policies hash by.
    pub hash_key: Option<u64>,
}

/// A chosen instance.
#[derive(Debug)]
#[non_exhaustive]
pub struct Pick {
    /// The instance.
    pub instance: Arc<Instance>,
}

impl Pick {
    /// The instance, with nothing to report to.
    pub fn new(instance: Arc<Instance>) -> Self {
        Self { instance }
    }
}

/// Why a picker did not choose.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickError {
    /// Not one instance takes requests.
    #[error("no instance takes requests")]
    NoInstances,
    /// The policy hashes, and the request names no hash key.
    #[error(
        "the policy needs a hash key and the request has none; set `Endpoint::hash_key` or `PickContext::hash_key`"
    )]
    NoHashKey,
}
