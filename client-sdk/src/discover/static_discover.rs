//! Discoveries whose instances are known from the start and never change: for tests, and for those few peers that are
//! written in a configuration.
//!
//! One list serves every endpoint, whatever service it names; the endpoint's selector still chooses among it.

use std::{convert::Infallible, sync::Arc};

use super::{Discover, View, ViewReceiver, ViewState};
use crate::model::{Address, AddressError, Change, Endpoint, Instance, InstanceList, Selector};

/// A fixed list of addresses, each of weight 1.
///
/// ```
/// use client_sdk::discover::StaticDiscover;
/// let peers = StaticDiscover::parse(["10.0.0.7:8080", "10.0.0.8:8080"])?;
/// # Ok::<(), client_sdk::model::AddressError>(())
/// ```
#[derive(Clone, Debug)]
pub struct StaticDiscover(WeightedStaticDiscover);

/// A fixed list of instances with weights and whatever else they have.
///
/// ```
/// use client_sdk::{discover::WeightedStaticDiscover, model::Address};
/// let big: Address = "10.0.0.7:8080".parse()?;
/// let small: Address = "10.0.0.8:8080".parse()?;
/// let peers: WeightedStaticDiscover = [(big, 3), (small, 1)].into_iter().collect();
/// # Ok::<(), client_sdk::model::AddressError>(())
/// ```
#[derive(Clone, Debug)]
pub struct WeightedStaticDiscover(InstanceList);

impl StaticDiscover {
    /// The addresses that the texts say, or what is wrong with the first that is none.
    pub fn parse<'a>(addresses: impl IntoIterator<Item = &'a str>) -> Result<Self, AddressError> {
        addresses.into_iter().map(str::parse).collect()
    }
}

impl FromIterator<Address> for StaticDiscover {
    fn from_iter<I: IntoIterator<Item = Address>>(addresses: I) -> Self {
        Self(addresses.into_iter().map(|address| (address, 1)).collect())
    }
}

impl FromIterator<(Address, u32)> for WeightedStaticDiscover {
    fn from_iter<I: IntoIterator<Item = (Address, u32)>>(weighted: I) -> Self {
        weighted
            .into_iter()
            .map(|(address, weight)| Instance::builder(address).weight(weight).build())
            .collect()
    }
}

impl FromIterator<Instance> for WeightedStaticDiscover {
    fn from_iter<I: IntoIterator<Item = Instance>>(instances: I) -> Self {
        Self(instances.into_iter().map(Arc::new).collect())
    }
}

impl Discover for StaticDiscover {
    type Key = Selector;
    type Error = Infallible;

    async fn discover(&self, endpoint: &Endpoint) -> Result<Vec<Arc<Instance>>, Infallible> {
        self.0.discover(endpoint).await
    }

    fn key(&self, endpoint: &Endpoint) -> Selector {
        self.0.key(endpoint)
    }

    fn watch(&self) -> Option<async_broadcast::Receiver<Change<Selector>>> {
        None
    }

    fn view(&self, endpoint: &Endpoint) -> Option<ViewReceiver> {
        self.0.view(endpoint)
    }
}

impl Discover for WeightedStaticDiscover {
    type Key = Selector;
    type Error = Infallible;

    async fn discover(&self, endpoint: &Endpoint) -> Result<Vec<Arc<Instance>>, Infallible> {
        Ok(self.0.iter().filter(|instance| endpoint.selector.matches(instance)).cloned().collect())
    }

    fn key(&self, endpoint: &Endpoint) -> Selector {
        endpoint.selector.clone()
    }

    fn watch(&self) -> Option<async_broadcast::Receiver<Change<Selector>>> {
        None
    }

    fn view(&self, endpoint: &Endpoint) -> Option<ViewReceiver> {
        let instances =
            self.0.iter().filter(|instance| endpoint.selector.matches(instance)).cloned().collect();
        let view = Some(View { instances, version: None });
        Some(tokio::sync::watch::channel(ViewState { view, error: None }).1)
    }
}
