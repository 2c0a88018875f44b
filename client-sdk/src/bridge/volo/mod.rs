//! Any of our discoveries as volo's.
//!
//! Owns the mapping of volo's endpoint to ours and the [`VoloDiscover`] trait's promises; `convert` says what an instance
//! is to volo, `views` what volo was told. Keeps C1, and C2 towards a balancer that knows of no status.

mod convert;
mod views;

use std::{fmt, sync::Arc, time::Duration};

use ::volo::{
    context::Endpoint as VoloEndpoint,
    discovery::{Change as VoloChange, Discover as VoloDiscovery, Instance as VoloInstance},
    loadbalance::error::LoadBalanceError as VoloError,
    net::Address as VoloAddress,
};

use self::{
    convert::Told,
    views::{Look, ToVolo, Views},
};
use crate::{
    balance::Refused,
    discover::{Discover, track::Tracker},
    model::{Endpoint, Selector},
    runtime::{Runtime, Task},
};

/// Without a listener, keys go that nobody asked for in so long.
const IDLE: Duration = Duration::from_mins(10);

/// A [`volo::discovery::Discover`](VoloDiscovery) over any of ours. Cheap to clone; the last clone to go ends its tasks.
///
/// To volo an instance is an address, a weight and tags; it sends requests to whatever it is given, weight 0 included. So
/// it is given those only that take requests; held ones only while there are no others.
///
/// Addresses are IP addresses or Unix sockets there. An instance that is registered by host name is left out, and traced:
/// volo would keep the IP address it once had, wherever the name moves to. Register IP addresses for volo's callers. An
/// address that is registered under two ids is one instance: the newer incarnation.
///
/// volo's endpoint says the service by its `service_name`; the namespace and the selector are the builder's, unless its
/// `tags` hold a [`VoloNamespace`] or a [`Selector`](crate::model::Selector). One that names an address is that one
/// instance.
///
/// - `discover` answers from what is known; at first it waits for the first view. While none is known, it fails with the
///   last error of the discovery, which is tried again with backoff meanwhile. A view of which none takes requests is an
///   error too, that says why: volo would keep an empty answer and report that its retries were used up.
/// - `watch` hears of every key that was asked for, whichever keys it names: volo's balancers skip the others. What such a
///   balancer may have missed, at its first `discover` or by an overflow of 1,024 changes, is repeated a second later.
/// - A view is followed for as long as anyone listens; without a listener those go that nobody asked for in 10 min.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use client_sdk::{bridge::VoloDiscover, discover::StaticDiscover};
/// use volo::{context::Endpoint, loadbalance::{LoadBalance, random::WeightedRandomBalance}};
///
/// let peers = Arc::new(StaticDiscover::parse(["10.0.0.7:8080", "10.0.0.8:8080"])?); // or a `RegistryDiscover`
/// let discover = VoloDiscover::builder(peers).namespace("shop").build();
/// let balance = WeightedRandomBalance::with_discover(&discover); // both go into a volo client's builder
/// for address in balance.get_picker(&Endpoint::new("greeter".into()), &discover).await? {
///     println!("try {address}");
/// }
/// # Ok(())
/// # }
/// ```
pub struct VoloDiscover<D: Discover>(Arc<Inner<D>>);

struct Inner<D: Discover> {
    discover: Arc<D>,
    namespace: Arc<str>,
    selector: Selector,
    views: Arc<Views<D::Key>>,
    tracker: Tracker<D::Key>,
    _repeater: Task,
}

/// Builds a [`VoloDiscover`].
pub struct VoloDiscoverBuilder<D> {
    discover: Arc<D>,
    namespace: Arc<str>,
    selector: Selector,
    runtime: Runtime,
}

/// What volo's balancers keep their lists by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum VoloKey<K> {
    /// A view of the discovery.
    View(K),
    /// The address that an endpoint names.
    Address(VoloAddress),
}

/// In the `tags` of volo's endpoint: the namespace of its service. Empty is read as `default`.
///
/// ```
/// use client_sdk::bridge::VoloNamespace;
/// let mut endpoint = volo::context::Endpoint::new("greeter".into());
/// endpoint.insert(VoloNamespace("shop".into()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoloNamespace(pub Arc<str>);

/// Why volo is given no instance.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VoloDiscoverError {
    /// The view is known, and not one of its instances is one that volo could call.
    #[error("no instance of {endpoint} takes requests from volo: {reason}{}", unusable_hint(*.unusable))]
    NoInstances {
        /// The endpoint.
        endpoint: String,
        /// Which there are, and why they take none.
        reason: Refused,
        /// How many more there are that take requests, but at a host name or a path of a socket that volo cannot call.
        unusable: usize,
    },
    /// The discovery fails, and nothing is known yet. It is tried again.
    #[error("cannot discover {endpoint}: {source}")]
    Discover {
        /// The endpoint.
        endpoint: String,
        /// What the discovery said.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Its task is gone, with the runtime that it ran on.
    #[error(
        "cannot discover {endpoint}: the runtime that the discovery ran on has ended; build it on one that lives"
    )]
    Ended {
        /// The endpoint.
        endpoint: String,
    },
}

impl<D: Discover> VoloDiscover<D> {
    /// Builds it over `discover`.
    pub fn builder(discover: Arc<D>) -> VoloDiscoverBuilder<D> {
        let (namespace, selector) = (Arc::from("default"), Selector::all());
        VoloDiscoverBuilder { discover, namespace, selector, runtime: Runtime::tokio() }
    }

    /// The discovery that it is over.
    pub fn inner(&self) -> &Arc<D> {
        &self.0.discover
    }

    /// volo's endpoint in our words.
    fn endpoint(&self, endpoint: &VoloEndpoint) -> Endpoint {
        let namespace = endpoint.get::<VoloNamespace>().map_or(&self.0.namespace, |VoloNamespace(name)| name);
        let selector = endpoint.get::<Selector>().unwrap_or(&self.0.selector);
        Endpoint::builder(endpoint.service_name_ref())
            .namespace(Arc::clone(namespace))
            .selector(selector.clone())
            .build()
    }
}

impl<D> VoloDiscoverBuilder<D> {
    /// Sets the namespace of services whose endpoint does not say one. Default `default`.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<Arc<str>>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Sets which instances to reach where the endpoint does not say it. Default: all.
    #[must_use]
    pub fn selector(mut self, selector: Selector) -> Self {
        self.selector = selector;
        self
    }

    /// Sets the outside world. Default: tokio's.
    #[must_use]
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = runtime;
        self
    }
}

impl<D: Discover> VoloDiscoverBuilder<D> {
    /// The discovery for volo. Starts its tasks, so it must be called where the runtime can spawn: with tokio's, inside of
    /// it.
    pub fn build(self) -> VoloDiscover<D> {
        let Self { discover, namespace, selector, runtime } = self;
        let views = Arc::new(Views::new(&runtime));
        let (changes, sink) = (discover.watch_viewed(), ToVolo(Arc::clone(&views)));
        let tracker = Tracker::spawn(changes, Arc::clone(&discover), sink, [], Some(IDLE), &runtime);
        let repeater = runtime.spawn(Arc::clone(&views).keep_repeating());
        VoloDiscover(Arc::new(Inner { discover, namespace, selector, views, tracker, _repeater: repeater }))
    }
}

impl<D: Discover> VoloDiscovery for VoloDiscover<D> {
    type Key = VoloKey<D::Key>;
    type Error = VoloDiscoverError;

    async fn discover<'s>(
        &'s self,
        endpoint: &'s VoloEndpoint,
    ) -> Result<Vec<Arc<VoloInstance>>, VoloDiscoverError> {
        if let Some(address) = endpoint.address() {
            return Ok(vec![Arc::new(VoloInstance { address, weight: 1, tags: [].into() })]);
        }
        let Inner { discover, views, tracker, .. } = &*self.0;
        let endpoint = self.endpoint(endpoint);
        let key = discover.key(&endpoint);
        loop {
            let mut progress = match views.look(&key) {
                Look::Known(told) => return answer(told, &endpoint),
                Look::Failed(source) => {
                    return Err(VoloDiscoverError::Discover { endpoint: endpoint.to_string(), source });
                }
                Look::Unknown(progress) => progress,
            };
            let tracked = tracker.track(key.clone(), endpoint.clone()).await;
            let ended = async {
                if tracked {
                    tracker.ended().await;
                }
            };
            tokio::select! {
                biased;
                // An error means that the key was forgotten meanwhile: it is asked for anew.
                _ = progress.changed() => {}
                () = ended => return Err(VoloDiscoverError::Ended { endpoint: endpoint.to_string() }),
            }
        }
    }

    fn key(&self, endpoint: &VoloEndpoint) -> VoloKey<D::Key> {
        match endpoint.address() {
            Some(address) => VoloKey::Address(address),
            None => VoloKey::View(self.0.discover.key(&self.endpoint(endpoint))),
        }
    }

    fn watch(
        &self,
        _: Option<&[VoloKey<D::Key>]>,
    ) -> Option<async_broadcast::Receiver<VoloChange<VoloKey<D::Key>>>> {
        Some(self.0.views.listen())
    }
}

impl<D: Discover> Clone for VoloDiscover<D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<D: Discover> fmt::Debug for VoloDiscover<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VoloDiscover").field("keys", &self.0.views.len()).finish_non_exhaustive()
    }
}

impl<D> fmt::Debug for VoloDiscoverBuilder<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, selector, .. } = self;
        f.debug_struct("VoloDiscoverBuilder")
            .field("namespace", namespace)
            .field("selector", selector)
            .finish_non_exhaustive()
    }
}

impl From<VoloDiscoverError> for VoloError {
    fn from(error: VoloDiscoverError) -> Self {
        Self::Discover(error.into())
    }
}

fn answer(told: Told, endpoint: &Endpoint) -> Result<Vec<Arc<VoloInstance>>, VoloDiscoverError> {
    let Told { instances, refused: reason, unusable } = told;
    if instances.is_empty() {
        return Err(VoloDiscoverError::NoInstances { endpoint: endpoint.to_string(), reason, unusable });
    }
    Ok(instances.to_vec())
}

fn unusable_hint(unusable: usize) -> String {
    match unusable {
        0 => String::new(),
        some => {
            format!("; {some} at host names or socket paths that volo cannot call: register IP addresses")
        }
    }
}
