//! What can happen, and what it means to those who look on.

use std::sync::Arc;

use super::{Held, Instance, InstanceId, LeaseId, Loss, Override, Registrant, Revision, ServiceKey, Spec};

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

/// What one revision did to one service: what the hub publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceChange {
    /// The service.
    pub key: ServiceKey,
    /// The revision.
    pub revision: Revision,
    /// The revision of the service's change before this one. Of a service that was not remembered:
    /// [`Base::forgotten_through`](crate::core::Base::forgotten_through), because it may have had instances before that, and had none since.
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
