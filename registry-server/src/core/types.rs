//! The words of the core: what is registered, what can be asked, what can happen.
//!
//! Owns no behaviour beyond laying an override over a registrant's own words. Strings are shared (`Arc<str>`), so that
//! the state, the log of changes and the published views hold one copy.

use std::{collections::BTreeMap, fmt, sync::Arc};

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
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub [u8; 16]);

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
    pub tags: BTreeMap<Arc<str>, Arc<str>>,
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
    pub held: Option<Held>,
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
    pub instances: std::collections::BTreeSet<(ServiceKey, InstanceId)>,
    /// What it carried and lost, until it registers it again.
    pub lost: BTreeMap<(ServiceKey, InstanceId), Loss>,
}

/// What is asked of the registry. Already validated: names, bounds and defaults are the edge's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Upsert a batch under a lease.
    Register {
        /// The lease, known or new.
        lease: LeaseId,
        /// Who registers.
        registrant: Registrant,
        /// Milliseconds.
        ttl: u64,
        /// At least one; no (key, id) twice.
        instances: Vec<(ServiceKey, InstanceId, Arc<Spec>)>,
    },
    /// Remove a lease (`instances` empty) or single instances.
    Deregister {
        /// The lease to remove, or the lease that must carry `instances`.
        lease: Option<LeaseId>,
        /// Instances with the expected incarnation (0: any).
        instances: Vec<(ServiceKey, InstanceId, Revision)>,
        /// Who asks.
        actor: Arc<str>,
    },
    /// Set (`Some`) or clear (`None`) an override.
    SetOverride {
        /// The service.
        key: ServiceKey,
        /// The instance, registered or not.
        id: InstanceId,
        /// What to set.
        set: Option<OverrideSpec>,
        /// Who asks.
        actor: Arc<str>,
        /// Why.
        reason: Arc<str>,
    },
    /// Release or evict held instances.
    ResolveHold {
        /// The service.
        key: ServiceKey,
        /// Empty: all held ones of the service.
        ids: Vec<InstanceId>,
        /// Evict instead of release.
        evict: bool,
        /// Who asks.
        actor: Arc<str>,
    },
    /// A lease with held instances was renewed: release them.
    RenewHeld {
        /// The lease.
        lease: LeaseId,
    },
}

/// What to override.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverrideSpec {
    /// In place of the weight.
    pub weight: Option<u16>,
    /// In place of the status.
    pub status: Option<Status>,
    /// Milliseconds from now.
    pub expires_in: Option<u64>,
}

/// Why a revision came to be. Kept in every record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A registrant registered or updated instances.
    Register,
    /// Someone deregistered them.
    Deregister,
    /// Leases ran out.
    Expire,
    /// An operator set or cleared an override.
    Override,
    /// An override reached its expiry.
    OverrideExpire,
    /// A held instance renewed.
    RenewHeld,
    /// A hold time passed.
    HoldExpire,
    /// An operator resolved a hold.
    ResolveHold,
}

/// What can happen. Events carry no revisions: the store names those.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A lease was opened, or its registrant's generation or its TTL changed.
    LeaseGranted {
        /// The lease.
        lease: LeaseId,
        /// Who keeps it.
        registrant: Registrant,
        /// Milliseconds.
        ttl: u64,
    },
    /// A lease ended. Its instances have left by events of their own.
    LeaseEnded {
        /// The lease.
        lease: LeaseId,
    },
    /// An instance was registered (no such id, or under another lease: a new incarnation) or updated.
    /// Ends a hold. If another lease carried it, that lease lost it ([`Loss::TakenOver`]).
    Registered {
        /// The service.
        key: ServiceKey,
        /// The instance.
        id: InstanceId,
        /// The registrant's words.
        spec: Arc<Spec>,
        /// The lease that carries it from now on.
        lease: LeaseId,
    },
    /// An instance left.
    Removed {
        /// The service.
        key: ServiceKey,
        /// The instance.
        id: InstanceId,
        /// What its lease is told, if the lease goes on. `None`: nothing, the lease itself gave the instance up.
        loss: Option<Loss>,
    },
    /// An instance's lease ran out, but the guard keeps it.
    Held {
        /// The service.
        key: ServiceKey,
        /// The instance.
        id: InstanceId,
        /// Since when, until when, why.
        held: Held,
    },
    /// A held instance is no longer held.
    Released {
        /// The service.
        key: ServiceKey,
        /// The instance.
        id: InstanceId,
    },
    /// An override was set. `over.revision` is 0 here and stamped when the revision is known.
    OverrideSet {
        /// The service.
        key: ServiceKey,
        /// The instance.
        id: InstanceId,
        /// What was set.
        over: Override,
    },
    /// An override was cleared or expired.
    OverrideCleared {
        /// The service.
        key: ServiceKey,
        /// The instance.
        id: InstanceId,
    },
}

/// One command's outcome, as the store keeps it: one record, one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Wall time of the decision.
    pub wall: u64,
    /// Why.
    pub cause: Cause,
    /// Who: `uid#generation` of a registrant, or an operator's name. Empty: the registry itself.
    pub actor: Arc<str>,
    /// What happened, in order. Never empty.
    pub events: Vec<Event>,
}

/// A record that is durable, with the revision that the store gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Greater than every revision before.
    pub revision: Revision,
    /// What happened.
    pub record: Record,
}

/// What a decision was based on. A group commits only proposals that touch different things, so that each was decided
/// on a state that still holds when it commits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Touched {
    /// A lease and its deadline.
    Lease(LeaseId),
    /// A registrant's generation.
    Registrant(Arc<str>),
    /// An instance, its hold and its override.
    Instance(ServiceKey, InstanceId),
}

/// A decision: what would happen, and what it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// `events` is empty if the command changes nothing: it is answered without a new revision.
    pub record: Record,
    /// Preconditions.
    pub touches: Vec<Touched>,
}

/// Why a command was refused. It changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// A higher generation of the registrant holds a lease, or the lease is another registrant's.
    Superseded {
        /// For people: by whom.
        by: String,
    },
    /// The instance is there in another incarnation than expected.
    IncarnationMismatch {
        /// The service.
        key: ServiceKey,
        /// The instance.
        id: InstanceId,
        /// The incarnation that is there.
        actual: Revision,
    },
    /// The instance is under another lease than the one named.
    LeaseMismatch {
        /// The service.
        key: ServiceKey,
        /// The instance.
        id: InstanceId,
    },
    /// An instance named in `ResolveHold` is not held.
    NotHeld {
        /// The service.
        key: ServiceKey,
        /// The instance.
        id: InstanceId,
    },
    /// No more overrides can be kept.
    TooManyOverrides {
        /// The bound.
        limit: usize,
    },
}

/// What one revision did to one service: what the hub publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceChange {
    /// The service.
    pub key: ServiceKey,
    /// The revision.
    pub revision: Revision,
    /// The revision of the service's change before this one. Of a service that was not remembered:
    /// [`Base::forgotten_through`], because it may have had instances before that, and had none since.
    pub previous: Revision,
    /// Wall time.
    pub wall: u64,
    /// Why.
    pub cause: Cause,
    /// Who.
    pub actor: Arc<str>,
    /// Each instance touched, once: before and after. Never both `None`, never equal.
    pub items: Vec<ItemChange>,
    /// How many instances the service has now.
    pub instances: usize,
}

/// One instance before and after a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemChange {
    /// The instance.
    pub id: InstanceId,
    /// Before; `None` if it was not there.
    pub before: Option<Arc<Instance>>,
    /// After; `None` if it left.
    pub after: Option<Arc<Instance>>,
}

/// The answer to one renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease lives a full TTL from now.
    Renewed,
    /// As `Renewed`; its held instances are to be released by [`Command::RenewHeld`]. Told before `Partial`: what the
    /// lease lost is the answer to the next renewal, when nothing of it is held any more.
    RenewedHeld,
    /// Renewed, but these are no longer under it.
    Partial(Vec<(ServiceKey, InstanceId, Loss)>),
    /// Someone newer took everything.
    Superseded,
    /// No such lease (or it is expiring this very moment).
    Unknown,
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

/// What can be set about the rules.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// L5: hold expired instances beyond `hold_share`. Off: everything that expires goes.
    pub guard: bool,
    /// L5: the share of a service, 0 to 1, that expiry may remove within a window.
    pub hold_share: f64,
    /// L5: services with fewer instances than this at the window's start are not guarded.
    pub hold_min_instances: usize,
    /// L5: milliseconds after which held instances go.
    pub hold_time: u64,
    /// Milliseconds by which the loop may wake late before it counts as a stall.
    pub stall_after: u64,
    /// Services without instances that are remembered, so that their watchers can resume.
    pub remembered_services: usize,
    /// Overrides kept at most.
    pub max_overrides: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            guard: true,
            hold_share: 0.5,
            hold_min_instances: 4,
            hold_time: 300_000,
            stall_after: 500,
            remembered_services: 10_000,
            max_overrides: 100_000,
        }
    }
}
