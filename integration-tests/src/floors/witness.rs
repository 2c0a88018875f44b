//! Turns the records that a registry committed into the history's commits: what everyone is to see, at which revision.
//!
//! Owns a state of its own, replayed from those records alone, and words the instances for the wire a second time. So
//! what the hub shows is judged by neither the hub's state nor its encoding.

use std::sync::Arc;

use registry_proto::v1;
use registry_server::core::{Base, Committed, Event, Instance, Settings, State, Status};

use super::draw::lease_number;
use crate::history::{Changed, Commit, Granted, Laid, Millis, Name, Placed, Recorder};

/// The wall clock is this far ahead of simulated time.
pub(super) const WALL: Millis = 1_700_000_000_000;

/// Sees every commit, in order.
#[derive(Debug)]
pub(super) struct Witness {
    epoch: Arc<str>,
    state: State,
    recorder: Recorder,
    pub(super) commits: Vec<Commit>,
}

impl Witness {
    /// Before the first commit of a history.
    pub(super) fn new(epoch: &str, settings: &Settings, recorder: &Recorder) -> Self {
        Self {
            epoch: epoch.into(),
            state: State::from_base(Base::default()).with_remembered(settings.remembered_services),
            recorder: recorder.clone(),
            commits: Vec::new(),
        }
    }

    /// All that happened before is of another history: the registry began anew, empty.
    pub(super) fn begin_anew(&mut self, epoch: &str, settings: &Settings) {
        let before = std::mem::take(&mut self.commits);
        *self = Self { commits: before, ..Self::new(epoch, settings, &self.recorder) };
    }

    /// The state after all that it saw.
    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// A record is durable.
    pub(super) fn saw(&mut self, committed: &Committed, run: u32, at: Millis) {
        let record = &committed.record;
        let mut commit = Commit {
            epoch: Arc::clone(&self.epoch),
            revision: committed.revision,
            stamp: self.recorder.stamp(),
            run,
            decided: record.wall.saturating_sub(WALL),
            at,
            cause: record.cause,
            actor: Arc::clone(&record.actor),
            granted: Vec::new(),
            ended: Vec::new(),
            overrides: Vec::new(),
            changes: Vec::new(),
        };
        for event in &record.events {
            match event {
                Event::LeaseGranted { lease, registrant, ttl } => commit.granted.push(Granted {
                    lease: lease_number(*lease),
                    uid: Arc::clone(&registrant.uid),
                    generation: registrant.generation,
                    ttl: *ttl,
                }),
                Event::LeaseEnded { lease } => commit.ended.push(lease_number(*lease)),
                Event::OverrideSet { key, id, over } => {
                    let laid = Laid {
                        weight: over.weight.map(u32::from),
                        status: over.status.map(status),
                        until: over.expires_at.map(|wall| wall.saturating_sub(WALL)),
                    };
                    commit.overrides.push(((key.service.clone(), id.clone()), Some(laid)));
                }
                Event::OverrideCleared { key, id } => {
                    commit.overrides.push(((key.service.clone(), id.clone()), None));
                }
                Event::Registered { .. }
                | Event::Removed { .. }
                | Event::Held { .. }
                | Event::Released { .. } => {}
            }
        }
        for change in self.state.evolve(committed) {
            for item in change.items {
                let name: Name = (change.key.service.clone(), item.id);
                let placed = |instance: &Arc<Instance>| Placed {
                    item: self.recorder.item(&wire(instance)),
                    lease: lease_number(instance.lease),
                };
                let (before, after) = (item.before.as_ref().map(placed), item.after.as_ref().map(placed));
                commit.changes.push(Changed { name, before, after });
            }
        }
        self.commits.push(commit);
    }
}

pub(super) fn status(status: Status) -> i32 {
    match status {
        Status::Up => v1::InstanceStatus::Up.into(),
        Status::Draining => v1::InstanceStatus::Draining.into(),
        Status::Down => v1::InstanceStatus::Down.into(),
    }
}

fn time(wall: Millis) -> prost_types::Timestamp {
    let nanos = i32::try_from(wall % 1_000).unwrap_or(0) * 1_000_000;
    prost_types::Timestamp { seconds: i64::try_from(wall / 1_000).unwrap_or(i64::MAX), nanos }
}

/// The effective instance, as the protocol words it.
fn wire(instance: &Instance) -> v1::Instance {
    let spec = &instance.spec;
    let over = instance.over.as_deref();
    let held = instance.held.as_ref();
    let placed = !spec.region.is_empty() || !spec.zone.is_empty();
    v1::Instance {
        id: instance.id.to_string(),
        address: spec.address.to_string(),
        weight: Some(over.and_then(|over| over.weight).unwrap_or(spec.weight).into()),
        tags: spec.tags.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        locality: placed
            .then(|| v1::Locality { region: spec.region.to_string(), zone: spec.zone.to_string() }),
        status: status(over.and_then(|over| over.status).unwrap_or(spec.status)),
        create_revision: instance.create_revision,
        mod_revision: instance.mod_revision,
        registered_at: Some(time(instance.registered_at)),
        changed_at: Some(time(instance.changed_at)),
        held: held.map(|held| v1::Held {
            since: Some(time(held.since)),
            until: Some(time(held.until)),
            reason: held.reason.to_string(),
        }),
        r#override: over.map(|over| v1::Override {
            weight: over.weight.map(u32::from),
            status: over.status.map_or(v1::InstanceStatus::Unspecified.into(), status),
            expires_at: over.expires_at.map(time),
            set_at: Some(time(over.set_at)),
            revision: over.revision,
            actor: over.actor.to_string(),
            reason: over.reason.to_string(),
            ..v1::Override::default()
        }),
    }
}
