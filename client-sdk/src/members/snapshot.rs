//! What a channel or a balanced service shows of itself.

use std::sync::Arc;

use super::{ApertureSnapshot, ConnectionState, Member, Shared, Standing, routes::Routes};
use crate::{
    balance::Load,
    model::{Endpoint, Instance},
    outlier::Ejection,
};

/// What is known and done right now.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// Whom it calls.
    pub endpoint: Endpoint,
    /// Whether a view is known.
    pub discovered: bool,
    /// Why the view may be out of date, or is not there.
    pub discovery_error: Option<String>,
    /// How many requests wait for an instance.
    pub waiting: usize,
    /// How many instances are used, and by what. `None`: no aperture was set, or the policy connects on demand.
    pub aperture: Option<ApertureSnapshot>,
    /// The instances of the view in its order, then those that left it and still finish what they have.
    pub instances: Vec<InstanceSnapshot>,
}

/// One instance of a [`Snapshot`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct InstanceSnapshot {
    /// The instance, its weight included.
    pub instance: Arc<Instance>,
    /// Of its connection.
    pub state: ConnectionState,
    /// Whether it is connected and takes no request at this moment, because its service is not ready, or because it has as
    /// many requests as it may have: requests pass it over, and wait if all are.
    pub busy: bool,
    /// Whether it is chosen, and why not.
    pub standing: Standing,
    /// Why it is ejected, or on probation, and until when, by the clock of the runtime. `None`: it is not.
    pub ejection: Option<Ejection>,
    /// Requests that were sent and have not ended.
    pub in_flight: usize,
    /// What the policy knows of its load. `None`: nothing, or it does not choose among such.
    pub load: Option<Load>,
    /// How many connections to it are open and take requests.
    pub connections: usize,
    /// How often it was connected, all connections together.
    pub connects: u64,
    /// Why it could not be connected, if it could not.
    pub last_error: Option<String>,
}

impl Snapshot {
    pub(super) fn of<M: Member>(shared: &Shared<M>, routes: &Routes<M>) -> Self {
        let loads = routes.loads();
        let instances = routes.entries.iter().enumerate().map(|(index, entry)| InstanceSnapshot {
            instance: Arc::clone(&entry.instance),
            state: entry.member.state(),
            busy: entry.member.state() == ConnectionState::Ready
                && (!entry.member.is_free() || entry.gate.is_full()),
            standing: routes.standing(index),
            ejection: entry.judgement.ejection(),
            in_flight: entry.member.in_flight(),
            load: loads.get(&*entry.instance.id).copied().filter(|_| !entry.removed),
            connections: entry.member.connections(),
            connects: entry.member.opened(),
            last_error: entry.member.last_error().map(|error| error.to_string()),
        });
        Self {
            endpoint: shared.endpoint.clone(),
            discovered: routes.discovered,
            discovery_error: routes.error.as_ref().map(ToString::to_string),
            waiting: shared.waiting(),
            aperture: shared.ahead.snapshot(),
            instances: instances.collect(),
        }
    }

    /// How many instances requests are spread over.
    pub fn chosen(&self) -> usize {
        self.instances.iter().filter(|instance| instance.standing == Standing::Chosen).count()
    }

    /// The instance of this id that is in the view, or the last one that left it.
    pub fn instance(&self, id: &str) -> Option<&InstanceSnapshot> {
        self.instances.iter().find(|instance| &*instance.instance.id == id)
    }
}
