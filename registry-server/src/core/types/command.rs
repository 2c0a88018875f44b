//! What can be asked of the registry, and how it answers.

use std::sync::Arc;

use super::{InstanceId, LeaseId, Loss, Registrant, Revision, ServiceKey, Spec, Status};

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
