//! What is under a lease: the registrant's own words, as they are sent to the registry again and again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use registry_proto::v1;

use super::{LostInstance, LostReason};
use crate::{
    model::Instance,
    view::{size::LONGEST_EPOCH, wire},
    wire_duration::from_wire,
};

/// No registry grants less.
const SHORTEST_TTL: Duration = Duration::from_secs(1);
/// No registry grants more.
const LONGEST_TTL: Duration = Duration::from_hours(24);

/// Which instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot {
    pub(super) namespace: Arc<str>,
    pub(super) service: Arc<str>,
    pub(super) id: Arc<str>,
}

/// The lease and its words.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub(super) id: [u8; 16],
    pub(super) instance_uid: String,
    pub(super) generation: u64,
    /// What is asked for.
    pub(super) ttl: Duration,
    /// What the registry granted.
    pub(super) granted: Duration,
    /// Of the last registration or update that the registry answered.
    pub(super) revision: u64,
    /// The history that the revision belongs to.
    pub(super) epoch: String,
    pub(super) instances: BTreeMap<Slot, Instance>,
    /// The words that the registry took last.
    pub(super) taken: BTreeMap<Slot, Instance>,
}

/// What a registry says that a lease has lost.
#[derive(Debug)]
pub(super) struct Losses {
    /// Lost for good, and not told before.
    pub(super) gone: Vec<LostInstance>,
    /// Something else is missing, which is to be registered again.
    pub(super) again: bool,
}

impl Lease {
    /// All of it, as a request: repeating it changes nothing.
    pub(super) fn request(&self) -> v1::RegisterRequest {
        let registrations = self.instances.iter().map(|(slot, instance)| {
            let mut instance = wire::to_wire(instance);
            // These are the registry's to say.
            (instance.create_revision, instance.mod_revision, instance.held) = (0, 0, None);
            v1::Registration { key: Some(service_key(slot)), instance: Some(instance) }
        });
        v1::RegisterRequest {
            lease_id: self.id.to_vec(),
            registrant: Some(v1::Registrant {
                instance_uid: self.instance_uid.clone(),
                generation: self.generation,
            }),
            ttl: self.ttl.try_into().ok(),
            registrations: registrations.collect(),
        }
    }

    /// The registry took the words, and granted a TTL.
    pub(super) fn granted(&mut self, response: &v1::RegisterResponse) {
        let granted = response.ttl.and_then(from_wire);
        self.revision = response.revision;
        // Of one that no registry has, nothing is kept: an empty one is not checked.
        self.epoch.clear();
        if response.epoch.len() <= LONGEST_EPOCH {
            self.epoch.push_str(&response.epoch);
        }
        // A third of it is slept between renewals, so one that is next to nothing would be a hot loop, and one that is longer
        // than what was asked for a lease that nobody renews in time at another registry.
        let longest = self.ttl.clamp(SHORTEST_TTL, LONGEST_TTL);
        self.granted = granted.unwrap_or(self.ttl).clamp(SHORTEST_TTL, longest);
        self.taken.clone_from(&self.instances);
    }

    /// Changes the words of each instance; its id stays.
    pub(super) fn change(&mut self, change: &mut dyn FnMut(&mut Instance)) {
        for (slot, instance) in &mut self.instances {
            change(instance);
            instance.id = Arc::clone(&slot.id);
        }
    }

    /// What callers have to apply to know its words, in each service that it has instances of.
    pub(super) fn waits(&self) -> Vec<v1::WaitAppliedRequest> {
        let mut keys: Vec<_> = self.instances.keys().map(service_key).collect();
        keys.dedup();
        let wait = |key| v1::WaitAppliedRequest {
            key: Some(key),
            epoch: self.epoch.clone(),
            revision: self.revision,
            share: 1.0,
            timeout: None,
        };
        keys.into_iter().map(wait).collect()
    }

    /// Goes back to the words that the registry took last. False: these are they.
    pub(super) fn revert(&mut self) -> bool {
        let other = self.instances != self.taken;
        self.instances.clone_from(&self.taken);
        other
    }

    /// Takes out what is lost for good. A registry repeats what a lease has lost with every renewal, so only what is
    /// still among the words counts.
    pub(super) fn lose(&mut self, lost: Vec<v1::LostInstance>) -> Losses {
        use v1::lost_instance::Reason;
        let mut losses = Losses { gone: Vec::new(), again: false };
        for instance in lost {
            let reason = match instance.reason() {
                Reason::TakenOver => Some(LostReason::TakenOver),
                Reason::Deregistered => Some(LostReason::Deregistered),
                Reason::Unspecified | Reason::Expired | Reason::Evicted => None,
            };
            let key = instance.key.unwrap_or_default();
            let namespace = if key.namespace.is_empty() { "default".into() } else { key.namespace.into() };
            let slot = Slot { namespace, service: key.service.into(), id: instance.id.into() };
            match reason {
                Some(reason) => {
                    self.taken.remove(&slot);
                    if self.instances.remove(&slot).is_some() {
                        let Slot { namespace, service, id } = slot;
                        losses.gone.push(LostInstance { namespace, service, id, reason });
                    }
                }
                None => losses.again |= self.instances.contains_key(&slot),
            }
        }
        losses
    }
}

fn service_key(slot: &Slot) -> v1::ServiceKey {
    v1::ServiceKey { namespace: slot.namespace.to_string(), service: slot.service.to_string() }
}
