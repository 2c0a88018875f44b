//! One reachable copy of a service, as callers see it.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use super::Address;

/// Whether an instance takes new requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Status {
    /// Takes requests.
    #[default]
    Up,
    /// Finishes what it has; takes no new requests.
    Draining,
    /// Registered, but not to be called.
    Down,
}

/// Where an instance runs. Empty: unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    /// For example `eu-central`.
    pub region: Arc<str>,
    /// For example `eu-central-1b`.
    pub zone: Arc<str>,
}

impl Locality {
    /// A zone in a region.
    pub fn new(region: impl Into<Arc<str>>, zone: impl Into<Arc<str>>) -> Self {
        Self { region: region.into(), zone: zone.into() }
    }
}

/// One reachable copy of a service. Made by [`Instance::builder`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Instance {
    /// Unique in its service. Load state is kept by it.
    pub id: Arc<str>,
    /// Where it listens.
    pub address: Address,
    /// Share of the traffic relative to the others; 0 takes none. Default 1.
    pub weight: u32,
    /// Free text by key.
    pub tags: HashMap<Cow<'static, str>, Cow<'static, str>>,
    /// Where it runs.
    pub locality: Locality,
    /// Whether it takes requests.
    pub status: Status,
    /// Its lease ran out, but the registry's guard keeps it. Chosen only when nothing better is there.
    pub held: bool,
    /// Names the incarnation; 0 if it does not come from a registry.
    pub create_revision: u64,
    /// Of its last change; 0 if it does not come from a registry.
    pub mod_revision: u64,
}

impl Instance {
    /// An instance at `address`, with the address as its id, weight 1, `Up`.
    ///
    /// ```
    /// use client_sdk::model::Instance;
    /// let instance = Instance::builder("10.0.0.7:8080".parse()?).weight(3).tag("version", "2").build();
    /// assert_eq!((&*instance.id, instance.weight), ("10.0.0.7:8080", 3));
    /// # Ok::<(), client_sdk::model::AddressError>(())
    /// ```
    pub fn builder(address: Address) -> InstanceBuilder {
        InstanceBuilder(Self {
            id: address.as_str().into(),
            address,
            weight: 1,
            tags: HashMap::new(),
            locality: Locality::default(),
            status: Status::Up,
            held: false,
            create_revision: 0,
            mod_revision: 0,
        })
    }

    /// Whether it may get a new request at all (C2): up, and of a weight above 0.
    pub fn takes_requests(&self) -> bool {
        self.status == Status::Up && self.weight > 0
    }
}

/// Builds an [`Instance`].
#[derive(Clone, Debug)]
pub struct InstanceBuilder(Instance);

impl InstanceBuilder {
    /// Sets the id. Default: the address.
    #[must_use]
    pub fn id(mut self, id: impl Into<Arc<str>>) -> Self {
        self.0.id = id.into();
        self
    }

    /// Sets the weight, 0 to 65,535 in the registry. Default 1.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.0.weight = weight;
        self
    }

    /// Adds a tag.
    #[must_use]
    pub fn tag(mut self, key: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) -> Self {
        self.0.tags.insert(key.into(), value.into());
        self
    }

    /// Sets the locality.
    #[must_use]
    pub fn locality(mut self, region: impl Into<Arc<str>>, zone: impl Into<Arc<str>>) -> Self {
        self.0.locality = Locality::new(region, zone);
        self
    }

    /// Sets the status. Default `Up`.
    #[must_use]
    pub fn status(mut self, status: Status) -> Self {
        self.0.status = status;
        self
    }

    /// Marks it as held. Default false.
    #[must_use]
    pub fn held(mut self, held: bool) -> Self {
        self.0.held = held;
        self
    }

    /// Sets the incarnation and the revision of the last change. Default 0.
    #[must_use]
    pub fn revisions(mut self, create: u64, modified: u64) -> Self {
        self.0.create_revision = create;
        self.0.mod_revision = modified;
        self
    }

    /// The instance.
    pub fn build(self) -> Instance {
        self.0
    }
}
