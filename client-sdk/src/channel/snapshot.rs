//! What a channel shows of itself.

use std::sync::Arc;

use super::{
    connection::ConnectionState,
    routes::{Routes, Standing},
    shared::Shared,
};
use crate::model::{Endpoint, Instance};

/// What a channel knows and does right now.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ChannelSnapshot {
    /// Whom it calls.
    pub endpoint: Endpoint,
    /// Whether a view is known.
    pub discovered: bool,
    /// Why the view may be out of date, or is not there.
    pub discovery_error: Option<String>,
    /// How many calls wait for an instance.
    pub waiting: usize,
    /// The instances of the view in its order, then those that left it and still finish what they have.
    pub instances: Vec<InstanceSnapshot>,
}

/// One instance of a [`ChannelSnapshot`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct InstanceSnapshot {
    /// The instance, its weight included.
    pub instance: Arc<Instance>,
    /// Of its connection.
    pub state: ConnectionState,
    /// Whether it is chosen, and why not.
    pub standing: Standing,
    /// Calls that were sent and have not ended.
    pub in_flight: usize,
    /// How many HTTP/2 connections to it are open and take calls.
    pub connections: usize,
    /// How often it was connected, all connections together.
    pub connects: u64,
    /// Why it could not be connected, if it could not.
    pub last_error: Option<String>,
}

impl ChannelSnapshot {
    pub(super) fn of(shared: &Shared, routes: &Routes) -> Self {
        let instances = routes.entries.iter().map(|entry| InstanceSnapshot {
            instance: Arc::clone(&entry.instance),
            state: entry.connection.state(),
            standing: routes.standing(entry),
            in_flight: entry.connection.in_flight(),
            connections: entry.connection.lanes(),
            connects: entry.connection.opened(),
            last_error: entry.connection.last_error().map(|error| error.to_string()),
        });
        Self {
            endpoint: shared.endpoint.clone(),
            discovered: routes.discovered,
            discovery_error: routes.error.as_ref().map(ToString::to_string),
            waiting: shared.waiting(),
            instances: instances.collect(),
        }
    }

    /// How many instances calls are spread over.
    pub fn chosen(&self) -> usize {
        self.instances.iter().filter(|instance| instance.standing == Standing::Chosen).count()
    }

    /// The instance of this id that is in the view, or the last one that left it.
    pub fn instance(&self, id: &str) -> Option<&InstanceSnapshot> {
        self.instances.iter().find(|instance| &*instance.instance.id == id)
    }
}
