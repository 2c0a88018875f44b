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

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use super::{
    Base, Committed, Event, Held, Instance, InstanceId, ItemChange, Lease, LeaseId, Loss, Override,
    Registrant, Revision, ServiceChange, ServiceKey, Settings, Spec, view::digest_of,
};

/// A service that has instances, or had some not long ago.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its instances.
    pub instances: BTreeMap<InstanceId, Arc<Instance>>,
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
    services: BTreeMap<ServiceKey, Service>,
    leases: BTreeMap<LeaseId, Lease>,
    overrides: BTreeMap<(ServiceKey, InstanceId), Arc<Override>>,
    /// How many services without instances are remembered.
    remembered: usize,
    /// Services without instances, the one empty for longest first. Follows from `services`.
    empty: BTreeSet<(Revision, ServiceKey)>,
    /// The leases of each registrant, the highest generation last. Follows from `leases`.
    registrants: BTreeMap<Arc<str>, BTreeSet<(u64, LeaseId)>>,
    /// How many instances of a lease are held, where any is. Follows from `services`.
    held: BTreeMap<LeaseId, usize>,
    /// How many instances there are. Follows from `services`.
    instances: usize,
}

/// Each instance that a record touched, as it was before.
type Before = BTreeMap<ServiceKey, BTreeMap<InstanceId, Option<Arc<Instance>>>>;

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
            services: BTreeMap::new(),
            leases: BTreeMap::new(),
            overrides: BTreeMap::new(),
            remembered: Settings::default().remembered_services,
            empty: BTreeSet::new(),
            registrants: BTreeMap::new(),
            held: BTreeMap::new(),
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
            state.services.insert(key, Service { last_change, changed_at, ..Service::default() });
        }
        let mut before = Before::new();
        for (key, mut instance) in base.instances {
            if state.leases.contains_key(&instance.lease) {
                let id = instance.id.clone();
                instance.over = state.overrides.get(&(key.clone(), id.clone())).cloned();
                state.replace(&key, &id, Some(Arc::new(instance)), &mut before);
            }
        }
        for (key, service) in &mut state.services {
            service.digest = super::view::digest(service.instances.values());
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
        let instances = self.services.iter().flat_map(|(key, service)| {
            service
                .instances
                .values()
                .map(|instance| (key.clone(), Instance { over: None, ..(**instance).clone() }))
        });
        let leases = self.leases.iter().map(|(id, lease)| {
            let (registrant, lost) = (lease.registrant.clone(), lease.lost.clone());
            (*id, Lease { registrant, ttl: lease.ttl, instances: BTreeSet::new(), lost })
        });
        let services = self.services.iter().map(|(key, it)| (key.clone(), it.last_change, it.changed_at));
        let overrides =
            self.overrides.iter().map(|((key, id), it)| (key.clone(), id.clone(), (**it).clone()));
        Base {
            revision: self.revision,
            forgotten_through: self.forgotten_through,
            services: services.collect(),
            instances: instances.collect(),
            leases: leases.collect(),
            overrides: overrides.collect(),
        }
    }

    /// Applies a committed record: the only way that state changes. Returns one change for each service on which it
    /// had a net effect, in the order of the keys.
    pub fn evolve(&mut self, committed: &Committed) -> Vec<ServiceChange> {
        let mut before = Before::new();
        for event in &committed.record.events {
            self.apply(event, committed, &mut before);
        }
        self.revision = self.revision.max(committed.revision);
        let changes =
            before.into_iter().filter_map(|(key, items)| self.conclude(key, items, committed)).collect();
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
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.services.range((from, Bound::Unbounded))
    }

    /// An instance.
    pub fn instance(&self, key: &ServiceKey, id: &str) -> Option<&Arc<Instance>> {
        self.services.get(key)?.instances.get(id)
    }

    /// A lease.
    pub fn lease(&self, id: &LeaseId) -> Option<&Lease> {
        self.leases.get(id)
    }

    /// The leases in the order of their ids.
    pub fn leases(&self) -> impl Iterator<Item = (&LeaseId, &Lease)> {
        self.leases.iter()
    }

    /// How many instances of a lease are held.
    pub fn held_of(&self, lease: &LeaseId) -> usize {
        self.held.get(lease).copied().unwrap_or(0)
    }

    /// Whether everything that a lease carries is held, so that it waits for its registrant without a deadline.
    pub fn is_dormant(&self, lease: &LeaseId) -> bool {
        let held = self.held_of(lease);
        held > 0 && self.leases.get(lease).is_some_and(|lease| lease.instances.len() == held)
    }

    /// The highest generation of a registrant that has a lease.
    pub fn highest_generation(&self, uid: &str) -> Option<u64> {
        self.registrants.get(uid)?.last().map(|(generation, _)| *generation)
    }

    /// The override of an instance, registered or not.
    pub fn override_of(&self, key: &ServiceKey, id: &InstanceId) -> Option<&Arc<Override>> {
        self.overrides.get(&(key.clone(), id.clone()))
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

    fn apply(&mut self, event: &Event, committed: &Committed, before: &mut Before) {
        match event {
            Event::LeaseGranted { lease, registrant, ttl } => self.grant(*lease, registrant.clone(), *ttl),
            Event::LeaseEnded { lease } => self.end(lease, before),
            Event::Registered { key, id, spec, lease } => {
                self.register(key, id, spec, *lease, committed, before);
            }
            Event::Removed { key, id, loss } => {
                let Some(instance) = self.replace(key, id, None, before) else { return };
                if let Some(loss) = loss {
                    self.lose(&instance.lease, key, id, *loss);
                }
            }
            Event::Held { key, id, held } => self.hold(key, id, Some(held.clone()), before),
            Event::Released { key, id } => self.hold(key, id, None, before),
            Event::OverrideSet { key, id, over } => {
                let over = Arc::new(Override { revision: committed.revision, ..over.clone() });
                self.overrides.insert((key.clone(), id.clone()), over.clone());
                self.lay_over(key, id, Some(over), before);
            }
            Event::OverrideCleared { key, id } => {
                self.overrides.remove(&(key.clone(), id.clone()));
                self.lay_over(key, id, None, before);
            }
        }
    }

    fn grant(&mut self, id: LeaseId, registrant: Registrant, ttl: u64) {
        self.registrants.entry(registrant.uid.clone()).or_default().insert((registrant.generation, id));
        let Some(lease) = self.leases.get_mut(&id) else {
            let lease = Lease { registrant, ttl, instances: BTreeSet::new(), lost: BTreeMap::new() };
            self.leases.insert(id, lease);
            return;
        };
        let old_ttl = std::mem::replace(&mut lease.ttl, ttl);
        let old = std::mem::replace(&mut lease.registrant, registrant);
        if old != lease.registrant {
            forget_registrant(&mut self.registrants, &old, id);
        }
        if old_ttl != ttl {
            for (key, _) in &lease.instances {
                if let Some(service) = self.services.get_mut(key) {
                    service.uncount_ttl(old_ttl);
                    service.count_ttl(ttl);
                }
            }
        }
    }

    fn end(&mut self, id: &LeaseId, before: &mut Before) {
        let left = self.leases.get(id).map(|lease| lease.instances.clone()).unwrap_or_default();
        for (key, instance) in left {
            self.replace(&key, &instance, None, before);
        }
        if let Some(lease) = self.leases.remove(id) {
            forget_registrant(&mut self.registrants, &lease.registrant, *id);
        }
    }

    fn register(
        &mut self,
        key: &ServiceKey,
        id: &InstanceId,
        spec: &Arc<Spec>,
        lease: LeaseId,
        committed: &Committed,
        before: &mut Before,
    ) {
        let name = (key.clone(), id.clone());
        let Some(carrier) = self.leases.get_mut(&lease) else { return };
        carrier.lost.remove(&name);
        let old = self.instance(key, id).cloned();
        let same_incarnation = old.as_ref().filter(|old| old.lease == lease);
        let next = Instance {
            id: id.clone(),
            spec: spec.clone(),
            lease,
            create_revision: same_incarnation.map_or(committed.revision, |old| old.create_revision),
            registered_at: same_incarnation.map_or(committed.record.wall, |old| old.registered_at),
            // Both are stamped when the record's net effect is known.
            mod_revision: 0,
            changed_at: 0,
            held: None,
            over: self.overrides.get(&name).cloned(),
        };
        self.replace(key, id, Some(Arc::new(next)), before);
        if let Some(old) = old.filter(|old| old.lease != lease) {
            self.lose(&old.lease, key, id, Loss::TakenOver);
        }
    }

    fn hold(&mut self, key: &ServiceKey, id: &InstanceId, held: Option<Held>, before: &mut Before) {
        if let Some(instance) = self.instance(key, id) {
            let next = Instance { held, ..(**instance).clone() };
            self.replace(key, id, Some(Arc::new(next)), before);
        }
    }

    fn lay_over(
        &mut self,
        key: &ServiceKey,
        id: &InstanceId,
        over: Option<Arc<Override>>,
        before: &mut Before,
    ) {
        if let Some(instance) = self.instance(key, id) {
            let next = Instance { over, ..(**instance).clone() };
            self.replace(key, id, Some(Arc::new(next)), before);
        }
    }

    fn lose(&mut self, lease: &LeaseId, key: &ServiceKey, id: &InstanceId, loss: Loss) {
        if let Some(lease) = self.leases.get_mut(lease) {
            lease.lost.insert((key.clone(), id.clone()), loss);
        }
    }

    /// Puts `next` in an instance's place and keeps everything that follows from it, save the service's digest.
    /// Returns what was there.
    fn replace(
        &mut self,
        key: &ServiceKey,
        id: &InstanceId,
        next: Option<Arc<Instance>>,
        before: &mut Before,
    ) -> Option<Arc<Instance>> {
        let old = self.instance(key, id).cloned();
        if old.is_none() && next.is_none() {
            return None;
        }
        let service = self.services.entry(key.clone()).or_default();
        let name = (key.clone(), id.clone());
        if let Some(old) = &old {
            self.instances -= 1;
            if old.held.is_some() {
                uncount(&mut self.held, &old.lease);
            }
            if let Some(lease) = self.leases.get_mut(&old.lease) {
                service.uncount_ttl(lease.ttl);
                if next.as_ref().is_none_or(|next| next.lease != old.lease) {
                    lease.instances.remove(&name);
                }
            }
        }
        if let Some(next) = &next {
            self.instances += 1;
            if next.held.is_some() {
                *self.held.entry(next.lease).or_default() += 1;
            }
            if let Some(lease) = self.leases.get_mut(&next.lease) {
                service.count_ttl(lease.ttl);
                if old.as_ref().is_none_or(|old| next.lease != old.lease) {
                    lease.instances.insert(name);
                }
            }
        }
        match next {
            Some(next) => service.instances.insert(id.clone(), next),
            None => service.instances.remove(id),
        };
        if !before.get(key).is_some_and(|items| items.contains_key(id)) {
            before.entry(key.clone()).or_default().insert(id.clone(), old.clone());
        }
        old
    }

    /// The net effect of a record on one service: stamps what changed, undoes the stamps of what did not.
    fn conclude(
        &mut self,
        key: ServiceKey,
        touched: BTreeMap<InstanceId, Option<Arc<Instance>>>,
        committed: &Committed,
    ) -> Option<ServiceChange> {
        let service = self.services.get_mut(&key)?;
        let was_empty = (service.last_change, key.clone());
        let mut items = Vec::with_capacity(touched.len());
        for (id, before) in touched {
            let after = service.instances.get_mut(&id);
            match (&before, after) {
                (None, None) => continue,
                (Some(before), Some(after)) if same(before, after) => {
                    *after = before.clone();
                    continue;
                }
                (_, Some(after)) => {
                    let stamped = Arc::make_mut(after);
                    stamped.mod_revision = committed.revision;
                    stamped.changed_at = committed.record.wall;
                    service.digest = service.digest.wrapping_add(digest_of(stamped));
                }
                (Some(_), None) => {}
            }
            if let Some(before) = &before {
                service.digest = service.digest.wrapping_sub(digest_of(before));
            }
            let after = service.instances.get(&id).cloned();
            items.push(ItemChange { id, before, after });
        }
        if items.is_empty() {
            if service.last_change == 0 {
                self.services.remove(&key);
            }
            return None;
        }
        let previous = if service.last_change == 0 { self.forgotten_through } else { service.last_change };
        service.last_change = committed.revision;
        service.changed_at = committed.record.wall;
        let instances = service.instances.len();
        self.empty.remove(&was_empty);
        if instances == 0 {
            self.empty.insert((committed.revision, key.clone()));
        }
        Some(ServiceChange {
            key,
            revision: committed.revision,
            previous,
            wall: committed.record.wall,
            cause: committed.record.cause,
            actor: committed.record.actor.clone(),
            items,
            instances,
        })
    }
}

/// Whether two stages of an instance look the same to everyone.
fn same(before: &Instance, after: &Instance) -> bool {
    before.create_revision == after.create_revision
        && before.lease == after.lease
        && before.held == after.held
        && before.over == after.over
        && before.spec == after.spec
}

fn uncount(counts: &mut BTreeMap<LeaseId, usize>, lease: &LeaseId) {
    if let Some(count) = counts.get_mut(lease) {
        *count -= 1;
        if *count == 0 {
            counts.remove(lease);
        }
    }
}

fn forget_registrant(
    registrants: &mut BTreeMap<Arc<str>, BTreeSet<(u64, LeaseId)>>,
    registrant: &Registrant,
    lease: LeaseId,
) {
    if let Some(leases) = registrants.get_mut(&registrant.uid) {
        leases.remove(&(registrant.generation, lease));
        if leases.is_empty() {
            registrants.remove(&registrant.uid);
        }
    }
}
