//! Whom a caller wants to reach.

use std::{collections::HashMap, sync::Arc};

use super::{Address, Selector};

/// Names the callee: a service, which of its instances, and what a policy may need to choose one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Endpoint {
    /// The namespace. Default `default`.
    pub namespace: Arc<str>,
    /// The service.
    pub service: Arc<str>,
    /// Which of its instances. Default: all.
    pub selector: Selector,
    /// If set, every call goes there: no discovery, no balancing.
    pub address: Option<Address>,
    /// Free text for the caller's own use.
    pub tags: HashMap<Arc<str>, Arc<str>>,
    /// What hash policies hash by.
    pub hash_key: Option<u64>,
}

impl Endpoint {
    /// All instances of a service in the namespace `default`.
    ///
    /// ```
    /// use client_sdk::model::{Endpoint, Selector};
    /// let endpoint = Endpoint::builder("greeter").namespace("shop").selector(Selector::all().tag("v", "2")).build();
    /// assert_eq!(endpoint.to_string(), "shop/greeter");
    /// ```
    pub fn new(service: impl Into<Arc<str>>) -> Self {
        Self::builder(service).build()
    }

    /// Builds an endpoint.
    pub fn builder(service: impl Into<Arc<str>>) -> EndpointBuilder {
        EndpointBuilder(Self {
            namespace: "default".into(),
            service: service.into(),
            selector: Selector::all(),
            address: None,
            tags: HashMap::new(),
            hash_key: None,
        })
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service)
    }
}

/// Builds an [`Endpoint`].
#[derive(Clone, Debug)]
pub struct EndpointBuilder(Endpoint);

impl EndpointBuilder {
    /// Sets the namespace. Empty is read as `default`.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<Arc<str>>) -> Self {
        let namespace = namespace.into();
        self.0.namespace = if namespace.is_empty() { "default".into() } else { namespace };
        self
    }

    /// Sets which instances to reach.
    #[must_use]
    pub fn selector(mut self, selector: Selector) -> Self {
        self.0.selector = selector;
        self
    }

    /// Sends every call to this address.
    #[must_use]
    pub fn address(mut self, address: Address) -> Self {
        self.0.address = Some(address);
        self
    }

    /// Adds a tag.
    #[must_use]
    pub fn tag(mut self, key: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        self.0.tags.insert(key.into(), value.into());
        self
    }

    /// Sets the hash key.
    #[must_use]
    pub fn hash_key(mut self, key: u64) -> Self {
        self.0.hash_key = Some(key);
        self
    }

    /// The endpoint.
    pub fn build(self) -> Endpoint {
        self.0
    }
}
