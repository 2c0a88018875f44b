//! The words of the core: what is registered (here), what can be asked, what can happen.
//!
//! Owns no behaviour beyond laying an override over a registrant's own words. Strings are shared (`Arc<str>`), so that
//! the state, the log of changes and the published views hold one copy.

mod command;
mod event;
mod few;
mod settings;

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

pub(in crate::core) use self::few::Few;
pub use self::{
    command::{Command, OverrideSpec, Rejection, Renewal},
    event::{Cause, Committed, Event, ItemChange, Proposal, Record, ServiceChange, Touched},
    few::RareMap,
    settings::Settings,
};

/// Strictly grows over the whole registry and may skip. Nobody computes r + 1.
pub type Revision = u64;

/// Two readings of the injected clock, both in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, from an arbitrary start. Deadlines are kept in it.
    pub mono: u64,
    /// Since the Unix epoch. For people, and for what must outlast a restart.
    pub wall: u64,
}

/// Names a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// Never empty: an empty namespace was answered as `default` before it got here.
    pub namespace: Arc<str>,
    /// The service's name.
    pub service: Arc<str>,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service)
    }
}

/// Unique in its service.
pub type InstanceId = Arc<str>;

/// Chosen by the registrant.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseId(pub [u8; 16]);

/// As its bytes: they are always as many, so to hash their number first, as an array does, is work for nothing.
impl Hash for LeaseId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseId({self})")
    }
}

/// The process behind a lease.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Registrant {
    /// Names the process.
    pub uid: Arc<str>,
    /// Grows with every start under the same uid.
    pub generation: u64,
}

/// Whether an instance takes new requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Takes requests.
    #[default]
    Up,
    /// Finishes what it has.
    Draining,
    /// Not to be called.
    Down,
}

/// A registrant's own words about an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// `ip:port`, `host:port` or `unix:/path`.
    pub address: Arc<str>,
    /// Share of the traffic; 0 takes none.
    pub weight: u16,
    /// Free text by key.
    pub tags: RareMap<Arc<str>, Arc<str>>,
    /// Empty: unknown.
    pub region: Arc<str>,
    /// Empty: unknown.
    pub zone: Arc<str>,
    /// Whether it takes requests.
    pub status: Status,
}

/// What an operator laid over an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// In place of the instance's weight.
    pub weight: Option<u16>,
    /// In place of the instance's status.
    pub status: Option<Status>,
    /// Wall time at which it ends by itself.
    pub expires_at: Option<u64>,
    /// Wall time at which it was set.
    pub set_at: u64,
    /// The revision that set it.
    pub revision: Revision,
    /// Who set it.
    pub actor: Arc<str>,
    /// Why.
    pub reason: Arc<str>,
}

/// Why an instance is in the view although its lease ran out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Wall time at which the lease ran out.
    pub since: u64,
    /// Wall time at which the hold ends and the instance goes.
    pub until: u64,
    /// For people.
    pub reason: Arc<str>,
}

/// The effective instance: what watchers see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Unique in its service.
    pub id: InstanceId,
    /// The registrant's own words.
    pub spec: Arc<Spec>,
    /// The lease that carries it.
    pub lease: LeaseId,
    /// Names the incarnation.
    pub create_revision: Revision,
    /// Of the last change to the effective instance.
    pub mod_revision: Revision,
    /// Wall time of `create_revision`.
    pub registered_at: u64,
    /// Wall time of `mod_revision`.
    pub changed_at: u64,
    /// Set while it is held.
    pub held: Option<Box<Held>>,
    /// Set while an operator overrides it.
    pub over: Option<Arc<Override>>,
}

impl Instance {
    /// The weight that callers see.
    pub fn weight(&self) -> u16 {
        self.over.as_ref().and_then(|over| over.weight).unwrap_or(self.spec.weight)
    }

    /// The status that callers see.
    pub fn status(&self) -> Status {
        self.over.as_ref().and_then(|over| over.status).unwrap_or(self.spec.status)
    }
}

/// Why an instance is no longer under a lease that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// Another lease registered the same id.
    TakenOver,
    /// It was deregistered by name.
    Deregistered,
    /// It expired while others of the lease were held.
    Expired,
    /// An operator evicted it.
    Evicted,
}

/// A lease as it is kept durably. Its deadline is not: see [`Core`](super).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Who keeps it alive.
    pub registrant: Registrant,
    /// How long it lives without a renewal, in milliseconds.
    pub ttl: u64,
    /// What it carries.
    pub instances: Carried,
    /// What it carried and lost, until it registers it again.
    pub lost: RareMap<(ServiceKey, InstanceId), Loss>,
}

/// The instances that a lease carries, in the order of key and id. The key of each is its service's own, shared by all of
/// the service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried(Few<(Arc<ServiceKey>, InstanceId)>);

impl Carried {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it carries none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this one is among them.
    pub fn contains(&self, (key, id): &(ServiceKey, InstanceId)) -> bool {
        self.0.contains(&(Arc::new(key.clone()), id.clone()))
    }

    /// Each, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&ServiceKey, &InstanceId)> {
        self.0.iter().map(|(key, id)| (&**key, id))
    }

    pub(in crate::core) fn insert(&mut self, key: Arc<ServiceKey>, id: InstanceId) {
        self.0.insert((key, id));
    }

    pub(in crate::core) fn remove(&mut self, key: &Arc<ServiceKey>, id: &InstanceId) {
        self.0.remove(&(Arc::clone(key), Arc::clone(id)));
    }
}

/// The whole durable state as plain data: what a store keeps as the base of its log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// The revision that this is the state of.
    pub revision: Revision,
    /// Services without instances are forgotten after a while; a cursor at or past this revision is current for any
    /// service that is not listed here, an older one is not known to be.
    pub forgotten_through: Revision,
    /// Every service that is remembered: key, revision and wall time of its last change.
    pub services: Vec<(ServiceKey, Revision, u64)>,
    /// Every instance. `over` is not kept here but in `overrides`.
    pub instances: Vec<(ServiceKey, Instance)>,
    /// Every lease. `Lease::instances` is not kept here but follows from `instances`.
    pub leases: Vec<(LeaseId, Lease)>,
    /// Every override.
    pub overrides: Vec<(ServiceKey, InstanceId, Override)>,
}
