//! The durable state: what a restart brings back.
//!
//! Owns services, leases, overrides and the revision, and how events change them: [`State::evolve`] is the only way,
//! for the server's own writes and for replay alike, so both end at the same state. Knows no deadlines. Keeps D3 (all
//! events of a record are one revision), L4 (overrides stand beside the instances and outlive them) and the memory
//! behind W5 (each service keeps the revision of its last change, removals included).
//!
//! Rules that the design leaves open:
//! - A service that lost its last instance is remembered up to a number that belongs to the state
//!   ([`State::with_remembered`]). If a restart sets another number, replay may remember other services than before;
//!   what it says about each stays true, because forgetting always raises `forgotten_through`.
//! - An event that cannot be (an instance under no lease) changes nothing: an instance that nobody keeps alive would
//!   never leave.

mod evolve;
mod instances;
mod registrants;
mod services;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

pub use self::instances::Instances;
use self::{
    registrants::{Leases, Registrants},
    services::Services,
};
use super::{
    Base, Carried, Committed, Event, FixedMap, Instance, InstanceId, Lease, LeaseId, Override, Registrant,
    Revision, ServiceChange, ServiceKey, Settings,
};

/// A service that has instances, or had some not long ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name, as everything that outlasts a request has it: what requests bring along are copies.
    key: Arc<ServiceKey>,
    /// Its instances.
    pub instances: Instances,
    /// The revision of its last change, removals included.
    pub last_change: Revision,
    /// Wall time of `last_change`.
    pub changed_at: u64,
    /// The digest of all its instances, see [`registry_proto::digest`].
    pub digest: u64,
    /// How many instances have which TTL.
    ttls: BTreeMap<u64, usize>,
}

impl Service {
    fn new(key: ServiceKey) -> Self {
        Self {
            key: Arc::new(key),
            instances: Instances::default(),
            last_change: 0,
            changed_at: 0,
            digest: 0,
            ttls: BTreeMap::new(),
        }
    }

    /// The longest TTL, in ms, among the leases of its instances; 0 without instances.
    pub fn longest_ttl(&self) -> u64 {
        self.ttls.last_key_value().map_or(0, |(ttl, _)| *ttl)
    }

    fn count_ttl(&mut self, ttl: u64) {
        *self.ttls.entry(ttl).or_default() += 1;
    }

    fn uncount_ttl(&mut self, ttl: u64) {
        if let Some(count) = self.ttls.get_mut(&ttl) {
            *count -= 1;
            if *count == 0 {
                self.ttls.remove(&ttl);
            }
        }
    }
}

/// The durable state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    revision: Revision,
    forgotten_through: Revision,
    services: Services,
    /// Boxed, since a hash table has room for up to twice as many as it holds.
    leases: Leases,
    overrides: BTreeMap<(ServiceKey, InstanceId), Arc<Override>>,
    /// How many services without instances are remembered.
    remembered: usize,
    /// Services without instances, the one empty for longest first. Follows from `services`.
    empty: BTreeSet<(Revision, ServiceKey)>,
    /// The leases of each registrant. Follows from `leases`.
    registrants: Registrants,
    /// How many instances of a lease are held, where any is. Follows from `services`.
    held: FixedMap<LeaseId, usize>,
    /// How many instances there are. Follows from `services`.
    instances: usize,
}

/// What a record did to instances, one after the other: each as it was before.
type Before = Vec<Touch>;

/// One instance, and what was in its place.
#[derive(Debug)]
struct Touch {
    key: Arc<ServiceKey>,
    id: InstanceId,
    before: Option<Arc<Instance>>,
}

impl Touch {
    /// Tells services apart without comparing names: the key is the one that the service itself has.
    fn place(&self) -> usize {
        Arc::as_ptr(&self.key).addr()
    }
}

impl Default for State {
    fn default() -> Self {
        Self::from_base(Base::default())
    }
}

impl State {
    /// The state that a base describes. Takes what [`to_base`](Self::to_base) gave; an instance whose lease is not
    /// there is left out.
    pub fn from_base(base: Base) -> Self {
        let mut state = Self {
            revision: base.revision,
            forgotten_through: base.forgotten_through,
            services: Services::default(),
            leases: Leases::default(),
            overrides: BTreeMap::new(),
            remembered: Settings::default().remembered_services,
            empty: BTreeSet::new(),
            registrants: Registrants::default(),
            held: FixedMap::default(),
            instances: 0,
        };
        for (key, id, over) in base.overrides {
            state.overrides.insert((key, id), Arc::new(over));
        }
        for (id, lease) in base.leases {
            state.grant(id, lease.registrant, lease.ttl);
            if let Some(granted) = state.leases.get_mut(&id) {
                granted.lost = lease.lost;
            }
        }
        for (key, last_change, changed_at) in base.services {
            let service = state.services.get_or_begin(&key);
            (service.last_change, service.changed_at) = (last_change, changed_at);
        }
        let mut before = Before::new();
        for (key, mut instance) in base.instances {
            if state.leases.contains_key(&instance.lease) {
                let id = instance.id.clone();
                instance.over = state.override_of(&key, &id).cloned();
                state.put(&key, Arc::new(instance), &mut before);
                before.clear();
            }
        }
        for (key, service) in state.services.iter_mut() {
            service.digest = super::view::digest(service.instances.in_any_order());
            if service.instances.is_empty() {
                state.empty.insert((service.last_change, key.clone()));
            }
        }
        state
    }

    /// Sets how many services without instances are remembered. Default: as in [`Settings::default`].
    #[must_use]
    pub fn with_remembered(mut self, services: usize) -> Self {
        self.remembered = services;
        self
    }

    /// The state as plain data. O(instances).
    pub fn to_base(&self) -> Base {
        let instances = self.services.after(None).flat_map(|(key, service)| {
            service
                .instances
                .values()
                .map(|instance| (key.clone(), Instance { over: None, ..(**instance).clone() }))
        });
        let leases = self.leases.iter().map(|(id, lease)| {
            let (registrant, lost) = (lease.registrant.clone(), lease.lost.clone());
            (*id, Lease { registrant, ttl: lease.ttl, instances: Carried::default(), lost })
        });
        // In an order that does not depend on the history, so that equal states have equal bases.
        let mut leases: Vec<_> = leases.collect();
        leases.sort_unstable_by_key(|(id, _)| *id);
        let services =
            self.services.after(None).map(|(key, it)| (key.clone(), it.last_change, it.changed_at));
        let overrides =
            self.overrides.iter().map(|((key, id), it)| (key.clone(), id.clone(), (**it).clone()));
        Base {
            revision: self.revision,
            forgotten_through: self.forgotten_through,
            services: services.collect(),
            instances: instances.collect(),
            leases,
            overrides: overrides.collect(),
        }
    }

    /// Applies a committed record: the only way that state changes. Returns one change for each service on which it
    /// had a net effect, in the order of the keys.
    pub fn evolve(&mut self, committed: &Committed) -> Vec<ServiceChange> {
        let mut before = Before::new();
        self.apply_all(committed, &mut before);
        self.revision = self.revision.max(committed.revision);
        let is_end = |event: &Event| matches!(event, Event::Removed { .. } | Event::LeaseEnded { .. });
        let ends = committed.record.events.iter().all(is_end);
        if ends {
            // What is gone cannot go again.
            before.sort_by_key(Touch::place);
        } else if before.len() > 1 {
            // Of what was touched twice, the first stage is what was before.
            before.sort_by(|a, b| a.place().cmp(&b.place()).then_with(|| a.id.cmp(&b.id)));
            before.dedup_by(|later, first| later.place() == first.place() && later.id == first.id);
        }
        let mut changes = Vec::new();
        let mut touched = before.into_iter();
        let one_service = |a: &Touch, b: &Touch| Arc::ptr_eq(&a.key, &b.key);
        while let Some(run) = touched.as_slice().chunk_by(one_service).next().map(<[_]>::len) {
            let mut run = touched.by_ref().take(run);
            changes.extend(self.conclude(&mut run, ends, committed));
            run.for_each(drop);
        }
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        while self.empty.len() > self.remembered {
            if let Some((last_change, key)) = self.empty.pop_first() {
                self.services.remove(&key);
                self.forgotten_through = self.forgotten_through.max(last_change);
            }
        }
        changes
    }

    /// The revision of the last record.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// See [`Base::forgotten_through`].
    pub fn forgotten_through(&self) -> Revision {
        self.forgotten_through
    }

    /// A service that has instances or is remembered.
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key)
    }

    /// The services in the order of their keys, from the first one behind `after`.
    pub fn services_after(
        &self,
        after: Option<&ServiceKey>,
    ) -> impl Iterator<Item = (&ServiceKey, &Service)> {
        self.services.after(after)
    }

    /// An instance.
    pub fn instance(&self, key: &ServiceKey, id: &str) -> Option<&Arc<Instance>> {
        self.services.get(key)?.instances.get(id)
    }

    /// A lease.
    pub fn lease(&self, id: &LeaseId) -> Option<&Lease> {
        self.leases.get(id).map(|lease| &**lease)
    }

    /// The leases, in no order that means anything.
    pub fn leases(&self) -> impl Iterator<Item = (&LeaseId, &Lease)> {
        self.leases.iter().map(|(id, lease)| (id, &**lease))
    }

    /// How many instances of a lease are held.
    pub fn held_of(&self, lease: &LeaseId) -> usize {
        if self.held.is_empty() { 0 } else { self.held.get(lease).copied().unwrap_or(0) }
    }

    /// Whether everything that a lease carries is held, so that it waits for its registrant without a deadline.
    pub fn is_dormant(&self, lease: &LeaseId) -> bool {
        let held = self.held_of(lease);
        held > 0 && self.leases.get(lease).is_some_and(|lease| lease.instances.len() == held)
    }

    /// The highest generation of a registrant that has a lease.
    pub fn highest_generation(&self, uid: &str) -> Option<u64> {
        self.registrants.highest_generation(uid, &self.leases)
    }

    /// The leases of a registrant's highest generation, if that is lower than this one.
    pub(super) fn newest_before(&self, registrant: &Registrant) -> Vec<LeaseId> {
        let newest = self.registrants.newest(&registrant.uid, &self.leases);
        newest.filter(|(highest, _)| *highest < registrant.generation).map(|(_, ids)| ids).unwrap_or_default()
    }

    /// The override of an instance, registered or not.
    pub fn override_of(&self, key: &ServiceKey, id: &InstanceId) -> Option<&Arc<Override>> {
        // There nearly never is one at all.
        if self.overrides.is_empty() { None } else { self.overrides.get(&(key.clone(), id.clone())) }
    }

    /// The overrides in the order of key and id, from the first one behind `after`.
    pub fn overrides_after(
        &self,
        after: Option<&(ServiceKey, InstanceId)>,
    ) -> impl Iterator<Item = (&(ServiceKey, InstanceId), &Arc<Override>)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.overrides.range((from, Bound::Unbounded))
    }

    /// How many services there are, those without instances that are remembered included.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// How many instances there are.
    pub fn instance_count(&self) -> usize {
        self.instances
    }

    /// How many leases there are.
    pub fn lease_count(&self) -> usize {
        self.leases.len()
    }

    /// How many overrides there are.
    pub fn override_count(&self) -> usize {
        self.overrides.len()
    }
}
