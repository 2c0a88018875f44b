//! Choosing an instance.
//!
//! Two faces over one machinery: [`LoadBalance`], which anyone can implement, and [`Policy`] / [`Picker`] / [`Pick`] for
//! whoever wants speed. What a policy chooses among, and with what weights, is said before it by [`shape`]. Keeps C2: an instance that is gone, draining, down or of weight 0 gets no new request.

mod alias;
mod balancer;
mod bound;
mod bounded;
mod cache;
mod caller_order;
mod candidates;
mod driver;
mod eligible;
mod entry;
mod fading;
mod hash_key;
mod jump;
mod least_request;
mod loads;
mod maglev;
mod peak_ewma;
mod pick;
mod random;
mod recipe;
mod reported_load;
mod ring_hash;
mod round_robin;
pub mod shape;
mod spread;
mod way;
mod weighted_random;

pub use balancer::{Balancer, BalancerBuilder, Handle};
pub use bound::LoadFactorError;
pub use bounded::{Bounded, BoundedPicker};
pub use cache::Cached;
pub use caller_order::CallerOrder;
pub use candidates::Candidates;
pub(crate) use driver::rebalance;
pub use driver::{Addresses, Balanced, Driver};
pub use eligible::{Eligible, Refused};
pub use hash_key::{HashKey, HashKeys, MissingKey};
pub use jump::Places;
pub use least_request::{LeastRequest, LeastRequestPicker};
pub use maglev::{Maglev, MaglevPicker, TableSizeError};
pub use peak_ewma::{PeakEwma, PeakEwmaPicker};
pub use pick::{Outcome, Pick, Report};
pub use reported_load::{PenaltyError, ReportedLoad, ReportedLoadPicker};
pub use ring_hash::{RingHash, RingHashPicker};
pub use round_robin::{RoundRobin, RoundRobinPicker};
pub use weighted_random::{WeightedRandom, WeightedRandomPicker};

use std::{future::Future, sync::Arc, time::Duration};

use crate::{
    discover::Discover,
    model::{Address, Change, Endpoint, InstanceList},
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
    /// The policy did not choose.
    #[error("cannot choose an instance of {endpoint}: {source}")]
    Pick {
        /// The endpoint.
        endpoint: String,
        /// The policy's own error.
        source: PickError,
    },
    /// Another reason, of an implementation outside this crate.
    #[error("{0}")]
    Other(Arc<dyn std::error::Error + Send + Sync>),
}

/// How to choose among instances: builds a [`Picker`] each time the instances change.
///
/// `instances` holds only those that may be chosen (C2), at least one; the picker answers by index into it.
///
/// A policy of one's own: in turns among the instances of the caller's zone, or among all if none is there.
///
/// ```
/// use std::sync::{Arc, atomic::{AtomicUsize, Ordering}};
/// use client_sdk::{balance::{Pick, PickContext, PickError, Picker, Policy}, model::InstanceList};
///
/// struct SameZone(&'static str);
///
/// struct InTurn { instances: InstanceList, turns: Vec<usize>, next: AtomicUsize }
///
/// impl Policy for SameZone {
///     type Picker = InTurn;
///
///     fn build(&self, instances: &InstanceList) -> InTurn {
///         let near = |index: &usize| *instances[*index].locality.zone == *self.0;
///         let all = 0..instances.len();
///         let turns: Vec<usize> = all.clone().filter(near).collect();
///         let turns = if turns.is_empty() { all.collect() } else { turns };
///         InTurn { instances: Arc::clone(instances), turns, next: AtomicUsize::new(0) }
///     }
/// }
///
/// impl Picker for InTurn {
///     fn pick(&self, _: &PickContext) -> Result<Pick<'_>, PickError> {
///         let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.turns.len();
///         Pick::new(&self.instances, self.turns[turn])
///     }
/// }
/// ```
///
/// Weights are the policy's to honour. One that learns hands its picks whom to report to
/// ([`Pick::reporting`]), and keeps what it learnt by instance, beside its pickers.
pub trait Policy: Send + Sync + 'static {
    /// What chooses.
    type Picker: Picker;

    /// A picker over `instances`. Called outside any lock; may take its time.
    fn build(&self, instances: &InstanceList) -> Self::Picker;

    /// Whether its picks are to be connected before they are made. Default: [`Connects::Ahead`].
    fn connects(&self) -> Connects {
        Connects::Ahead
    }

    /// How often a picker is to be built anew though no instance changed: for policies whose weights come from what
    /// instances report. It is asked once; less than 10 ms counts as 10 ms. Default: never.
    ///
    /// A [`Balancer`], a channel and a layer have a timer for it. A [`Cached`] by itself has none: there a picker is built
    /// when the view changes, and only then.
    fn rebuild_every(&self) -> Option<Duration> {
        None
    }
}

/// When a channel connects to the instances that a policy may pick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Connects {
    /// Before any call: the policy picks among the connected ones.
    #[default]
    Ahead,
    /// With the first call that is picked for it: the policy must pick the same instance whether or not it is connected.
    OnDemand,
}

/// What a picker knows of an instance's load.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Load {
    /// Requests that were picked for it and have not ended.
    pub in_flight: u32,
    /// The average of its latency, where the policy keeps one.
    pub latency: Option<Duration>,
}

/// Chooses, synchronously: no lock, no allocation, no waiting.
pub trait Picker: Send + Sync + 'static {
    /// An instance, among those that the picker was built over.
    fn pick(&self, context: &PickContext) -> Result<Pick<'_>, PickError>;

    /// What it knows of the load of the instance at an index: for people who look. Default: nothing.
    fn load(&self, index: usize) -> Option<Load> {
        let _ = index;
        None
    }
}

/// What a picker may know of the request.
///
/// ```
/// use client_sdk::balance::PickContext;
/// let context = PickContext::new().hash_key(42);
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct PickContext {
    /// What hash policies hash by.
    pub hash_key: Option<u64>,
    /// How many picks for this request were not taken: hash policies go on to another instance.
    pub attempt: u32,
    /// The time by the runtime's clock, from whoever knows it already; may be some milliseconds old. `None`: a policy
    /// that wants it reads the clock, which costs about as much as the whole pick.
    pub now: Option<Duration>,
}

impl PickContext {
    /// Of a request that nothing is known of.
    pub const fn new() -> Self {
        Self { hash_key: None, attempt: 0, now: None }
    }

    /// Sets what hash policies hash by.
    #[must_use]
    pub const fn hash_key(mut self, key: u64) -> Self {
        self.hash_key = Some(key);
        self
    }

    /// Sets how many picks for this request were not taken. Default 0.
    #[must_use]
    pub const fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }

    /// Sets the time by the runtime's clock.
    #[must_use]
    pub const fn now(mut self, now: Duration) -> Self {
        self.now = Some(now);
        self
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
        "the policy needs a hash key and the request has none; insert a `HashKey` into its extensions, send the header that \
         `HashKeys::header` names, set `Endpoint::hash_key` or `PickContext::hash_key`, or choose `MissingKey::Random`"
    )]
    NoHashKey,
}
