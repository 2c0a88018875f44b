//! What is under a lease: the registrant's own words, as they are sent to the registry again and again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use registry_proto::v1;

use super::{LostInstance, LostReason};
use crate::{model::Instance, view::wire};

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
    pub(super) instances: BTreeMap<Slot, Instance>,
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

    /// Takes the TTL in that the registry granted.
    pub(super) fn granted(&mut self, response: &v1::RegisterResponse) {
        let granted = response.ttl.and_then(|ttl| ttl.try_into().ok());
        self.revision = response.revision;
        self.granted = granted.filter(|ttl: &Duration| !ttl.is_zero()).unwrap_or(self.ttl);
    }

    /// Changes the words of each instance; its id stays.
    pub(super) fn change(&mut self, change: &mut dyn FnMut(&mut Instance)) {
        for (slot, instance) in &mut self.instances {
            change(instance);
            instance.id = Arc::clone(&slot.id);
        }
    }

    /// The services that it has instances of.
    pub(super) fn services(&self) -> Vec<v1::ServiceKey> {
        let mut keys: Vec<_> = self.instances.keys().map(service_key).collect();
        keys.dedup();
        keys
    }

    /// Takes out what is lost for good. Anything else that the registry misses is to be registered again.
    pub(super) fn lose(&mut self, lost: Vec<v1::LostInstance>) -> Vec<LostInstance> {
        use v1::lost_instance::Reason;
        let mut gone = Vec::new();
        for instance in lost {
            let reason = match instance.reason() {
                Reason::TakenOver => LostReason::TakenOver,
                Reason::Deregistered => LostReason::Deregistered,
                Reason::Unspecified | Reason::Expired | Reason::Evicted => continue,
            };
            let key = instance.key.unwrap_or_default();
            let namespace = if key.namespace.is_empty() { "default".into() } else { key.namespace.into() };
            let slot = Slot { namespace, service: key.service.into(), id: instance.id.into() };
            if self.instances.remove(&slot).is_some() {
                let Slot { namespace, service, id } = slot;
                gone.push(LostInstance { namespace, service, id, reason });
            }
        }
        gone
    }
}

fn service_key(slot: &Slot) -> v1::ServiceKey {
    v1::ServiceKey { namespace: slot.namespace.to_string(), service: slot.service.to_string() }
}
