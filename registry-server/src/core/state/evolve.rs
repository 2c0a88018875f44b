//! How events change the state: see [`State::evolve`].
//!
//! Owns what follows from one event, and the net effect of a record. Keeps D3: each instance changes once a record,
//! however many events touch it, and what ends as it began did not change.

use std::{mem, sync::Arc};

use super::{Before, Service, State, Touch};
use crate::core::{
    Carried, Committed, Event, FixedMap, Held, Instance, InstanceId, ItemChange, Lease, LeaseId, Loss,
    Override, RareMap, Registrant, ServiceChange, ServiceKey, Spec, view::digest_of,
};

impl State {
    /// What happened, in order. What ends together is applied step by step for all: each step is mostly waiting for memory that was
    /// not read for long, and such waits overlap.
    pub(super) fn apply_all(&mut self, committed: &Committed, before: &mut Before) {
        let alike = |a: &Event, b: &Event| {
            let kinds = (a, b);
            matches!(kinds, (Event::Removed { .. }, Event::Removed { .. }))
                || matches!(kinds, (Event::LeaseEnded { .. }, Event::LeaseEnded { .. }))
        };
        for run in committed.record.events.chunk_by(alike) {
            match &run[0] {
                Event::Removed { .. } => {
                    let removed = run.iter().filter_map(|event| match event {
                        Event::Removed { key, id, loss } => Some((key, id, *loss)),
                        _ => None,
                    });
                    self.remove(removed, before);
                }
                Event::LeaseEnded { .. } => {
                    let ended = run.iter().filter_map(|event| match event {
                        Event::LeaseEnded { lease } => Some(lease),
                        _ => None,
                    });
                    self.end(ended, before);
                }
                event => self.apply(event, committed, before),
            }
        }
    }

    fn apply(&mut self, event: &Event, committed: &Committed, before: &mut Before) {
        match event {
            // In runs.
            Event::Removed { .. } | Event::LeaseEnded { .. } => {}
            Event::LeaseGranted { lease, registrant, ttl } => self.grant(*lease, registrant.clone(), *ttl),
            Event::Registered { key, id, spec, lease } => {
                self.register(key, id, spec, *lease, committed, before);
            }
            Event::Held { key, id, held } => {
                self.hold(key, id, Some(Box::new(held.clone())), committed, before);
            }
            Event::Released { key, id } => self.hold(key, id, None, committed, before),
            Event::OverrideSet { key, id, over } => {
                let over = Arc::new(Override { revision: committed.revision, ..over.clone() });
                self.overrides.insert((key.clone(), id.clone()), over.clone());
                self.lay_over(key, id, Some(over), committed, before);
            }
            Event::OverrideCleared { key, id } => {
                self.overrides.remove(&(key.clone(), id.clone()));
                self.lay_over(key, id, None, committed, before);
            }
        }
    }

    pub(super) fn grant(&mut self, id: LeaseId, registrant: Registrant, ttl: u64) {
        let Some(lease) = self.leases.get_mut(&id) else {
            self.registrants.insert(&registrant, id, &self.leases);
            let lease = Lease { registrant, ttl, instances: Carried::default(), lost: RareMap::default() };
            self.leases.insert(id, Box::new(lease));
            return;
        };
        let old_ttl = mem::replace(&mut lease.ttl, ttl);
        let old = mem::replace(&mut lease.registrant, registrant.clone());
        if old_ttl != ttl {
            for (key, _) in lease.instances.iter() {
                if let Some(service) = self.services.get_mut(key) {
                    service.uncount_ttl(old_ttl);
                    service.count_ttl(ttl);
                }
            }
        }
        if old != registrant {
            self.registrants.remove(&old, id);
            self.registrants.insert(&registrant, id, &self.leases);
        }
    }

    fn end<'a>(&mut self, leases: impl Iterator<Item = &'a LeaseId>, before: &mut Before) {
        let mut ended = Vec::with_capacity(leases.size_hint().1.unwrap_or(0));
        for id in leases {
            if self.leases.get(id).is_some_and(|lease| !lease.instances.is_empty()) {
                self.remove_all_of(id, before);
            }
            ended.extend(self.leases.remove(id).map(|lease| (*id, lease)));
        }
        for (id, lease) in &ended {
            self.registrants.remove(&lease.registrant, *id);
        }
    }

    /// What a lease still carries, which then carries nothing.
    fn remove_all_of(&mut self, id: &LeaseId, before: &mut Before) {
        let Some(lease) = self.leases.get(id) else { return };
        let left = lease.instances.clone();
        self.remove(left.iter().map(|(key, instance)| (key, instance, None)), before);
    }

    /// Takes instances out, and keeps everything that follows from it, save the services' digests.
    fn remove<'a>(
        &mut self,
        named: impl Iterator<Item = (&'a ServiceKey, &'a InstanceId, Option<Loss>)>,
        before: &mut Before,
    ) {
        let first = before.len();
        let room = named.size_hint().1.unwrap_or(0);
        before.reserve(room);
        let mut losses = Vec::with_capacity(room);
        let mut service: Option<&mut Service> = None;
        for (key, id, loss) in named {
            if service.as_ref().is_none_or(|service| *service.key != *key) {
                service = self.services.get_mut(key);
            }
            let Some(service) = &mut service else { continue };
            let Some(old) = service.instances.remove(id) else { continue };
            let (key, id) = (Arc::clone(&service.key), old.id.clone());
            before.push(Touch { key, id, before: Some(old) });
            losses.push(loss);
        }
        let mut service: Option<&mut Service> = None;
        for (Touch { key, id, before }, loss) in before[first..].iter().zip(losses) {
            let Some(old) = before else { continue };
            self.instances -= 1;
            if old.held.is_some() {
                uncount(&mut self.held, &old.lease);
            }
            let Some(lease) = self.leases.get_mut(&old.lease) else { continue };
            lease.instances.remove(key, id);
            if let Some(loss) = loss {
                lease.lost.insert(((**key).clone(), id.clone()), loss);
            }
            if service.as_ref().is_none_or(|service| !Arc::ptr_eq(&service.key, key)) {
                service = self.services.get_mut(key);
            }
            if let Some(service) = &mut service {
                service.uncount_ttl(lease.ttl);
            }
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
        let Some(carrier) = self.leases.get_mut(&lease) else { return };
        if !carrier.lost.is_empty() {
            carrier.lost.remove(&(key.clone(), id.clone()));
        }
        let old = self.instance(key, id).cloned();
        let same_incarnation = old.as_ref().filter(|old| old.lease == lease);
        let next = Instance {
            // Not the copy that a request brought along, if there is one that stays in any case.
            id: old.as_ref().map_or(id, |old| &old.id).clone(),
            spec: spec.clone(),
            lease,
            create_revision: same_incarnation.map_or(committed.revision, |old| old.create_revision),
            registered_at: same_incarnation.map_or(committed.record.wall, |old| old.registered_at),
            // If the record's net effect is none, what was there before is put back.
            mod_revision: committed.revision,
            changed_at: committed.record.wall,
            held: None,
            over: self.override_of(key, id).cloned(),
        };
        self.put(key, Arc::new(next), before);
        if let Some(old) = old.filter(|old| old.lease != lease) {
            self.lose(&old.lease, key, id, Loss::TakenOver);
        }
    }

    fn hold(
        &mut self,
        key: &ServiceKey,
        id: &InstanceId,
        held: Option<Box<Held>>,
        committed: &Committed,
        before: &mut Before,
    ) {
        if let Some(instance) = self.instance(key, id) {
            let next = Instance { held, ..stamped(instance, committed) };
            self.put(key, Arc::new(next), before);
        }
    }

    fn lay_over(
        &mut self,
        key: &ServiceKey,
        id: &InstanceId,
        over: Option<Arc<Override>>,
        committed: &Committed,
        before: &mut Before,
    ) {
        if let Some(instance) = self.instance(key, id) {
            let next = Instance { over, ..stamped(instance, committed) };
            self.put(key, Arc::new(next), before);
        }
    }

    fn lose(&mut self, lease: &LeaseId, key: &ServiceKey, id: &InstanceId, loss: Loss) {
        if let Some(lease) = self.leases.get_mut(lease) {
            lease.lost.insert((key.clone(), id.clone()), loss);
        }
    }

    /// Puts `next` in its place and keeps everything that follows from it, save the service's digest.
    pub(super) fn put(&mut self, key: &ServiceKey, next: Arc<Instance>, before: &mut Before) {
        let service = self.services.get_or_begin(key);
        let key = Arc::clone(&service.key);
        let next_lease = next.lease;
        let next_held = next.held.is_some();
        // The id as it stays, not a copy of it.
        let id = next.id.clone();
        let old = service.instances.insert(next);
        if let Some(old) = &old {
            self.instances -= 1;
            if old.held.is_some() {
                uncount(&mut self.held, &old.lease);
            }
            if let Some(lease) = self.leases.get_mut(&old.lease) {
                service.uncount_ttl(lease.ttl);
                if next_lease != old.lease {
                    lease.instances.remove(&key, &id);
                }
            }
        }
        self.instances += 1;
        if next_held {
            *self.held.entry(next_lease).or_default() += 1;
        }
        if let Some(lease) = self.leases.get_mut(&next_lease) {
            service.count_ttl(lease.ttl);
            if old.as_ref().is_none_or(|old| next_lease != old.lease) {
                lease.instances.insert(Arc::clone(&key), id.clone());
            }
        }
        before.push(Touch { key, id, before: old });
    }

    /// The net effect of a record on one service: puts back what did not change, stamps and all. `ends`: all that was touched is gone.
    pub(super) fn conclude(
        &mut self,
        touched: impl Iterator<Item = Touch>,
        ends: bool,
        committed: &Committed,
    ) -> Option<ServiceChange> {
        let mut touched = touched.peekable();
        let key = &*Arc::clone(&touched.peek()?.key);
        let service = self.services.get_mut(key)?;
        let last_change = service.last_change;
        let mut items = Vec::with_capacity(touched.size_hint().0);
        for Touch { id, before, .. } in touched {
            let after = if ends { None } else { service.instances.get(&id).cloned() };
            match (&before, &after) {
                (None, None) => continue,
                (Some(before), Some(after)) if same(before, after) => {
                    service.instances.insert(Arc::clone(before));
                    continue;
                }
                (_, Some(after)) => service.digest = service.digest.wrapping_add(digest_of(after)),
                (Some(_), None) => {}
            }
            if let Some(before) = &before {
                service.digest = service.digest.wrapping_sub(digest_of(before));
            }
            items.push(ItemChange { id, before, after });
        }
        if items.is_empty() {
            if last_change == 0 {
                self.services.remove(key);
            }
            return None;
        }
        let previous = if last_change == 0 { self.forgotten_through } else { last_change };
        service.last_change = committed.revision;
        service.changed_at = committed.record.wall;
        let instances = service.instances.len();
        if !self.empty.is_empty() {
            self.empty.remove(&(last_change, key.clone()));
        }
        if instances == 0 {
            self.empty.insert((committed.revision, key.clone()));
        }
        Some(ServiceChange {
            key: key.clone(),
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

/// An instance about to change by this record.
fn stamped(instance: &Instance, committed: &Committed) -> Instance {
    let Committed { revision, record } = committed;
    Instance { mod_revision: *revision, changed_at: record.wall, ..instance.clone() }
}

/// Whether two stages of an instance look the same to everyone.
fn same(before: &Instance, after: &Instance) -> bool {
    before.create_revision == after.create_revision
        && before.lease == after.lease
        && before.held == after.held
        && before.over == after.over
        && before.spec == after.spec
}

fn uncount(counts: &mut FixedMap<LeaseId, usize>, lease: &LeaseId) {
    if let Some(count) = counts.get_mut(lease) {
        *count -= 1;
        if *count == 0 {
            counts.remove(lease);
        }
    }
}
