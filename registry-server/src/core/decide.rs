//! What a command would do: [`decide`] looks, and changes nothing.
//!
//! Owns the rules of who may do what. Keeps L3 (nothing older removes or changes anything newer) and the command's half
//! of D3: it answers with one record, or with a refusal.
//!
//! Rules that the design leaves open:
//! - Of two registrants that register the same id, the later one has it. One registrant with two leases is different:
//!   what its newer lease took over, a `Register` under the older lease (a late duplicate, most likely) cannot take back.
//! - A `Register` under a lease that has held instances renews the lease, so it releases all of them, named or not.
//! - An instance deregistered by name alone stays on its lease's list of losses, and the lease goes on with that list
//!   even if it carries nothing else: its registrant must be told, or it would bring the instance back. The lease
//!   ends when it is not renewed.
//! - A lease that is named in a `Deregister` and carries nothing afterwards ends, whatever it lost before.
//! - Setting an override that is there already, with nothing new to say, changes nothing; one with an expiry is always
//!   set anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Cause, Command, Event, InstanceId, Lease, LeaseId, Loss, Now, Override, OverrideSpec, Proposal, Record,
    Registrant, Rejection, Revision, ServiceKey, Settings, Spec, State, Touched,
};

/// Decides a command on a state. An empty list of events means that it changes nothing.
pub fn decide(
    state: &State,
    settings: &Settings,
    now: Now,
    command: &Command,
) -> Result<Proposal, Rejection> {
    match command {
        Command::Register { lease, registrant, ttl, instances } => {
            register(state, now, *lease, registrant, *ttl, instances)
        }
        Command::Deregister { lease: Some(lease), instances, actor } if instances.is_empty() => {
            Ok(deregister_lease(state, now, *lease, actor))
        }
        Command::Deregister { lease, instances, actor } => {
            deregister_instances(state, now, *lease, instances, actor)
        }
        Command::SetOverride { key, id, set, actor, reason } => {
            set_override(state, settings, now, (key, id), set.as_ref(), (actor, reason))
        }
        Command::ResolveHold { key, ids, evict, actor } => resolve_hold(state, now, key, ids, *evict, actor),
        Command::RenewHeld { lease } => Ok(renew_held(state, now, *lease)),
    }
}

/// Whether someone newer took a lease's place: another lease took over everything that it carried, or a higher
/// generation of its registrant has a lease.
pub(super) fn is_superseded(state: &State, lease: &Lease) -> bool {
    let all_taken = lease.instances.is_empty()
        && !lease.lost.is_empty()
        && lease.lost.values().all(|loss| *loss == Loss::TakenOver);
    all_taken || newer_generation(state, &lease.registrant).is_some()
}

/// A proposal under construction.
pub(super) struct Draft {
    record: Record,
    touches: Vec<Touched>,
}

impl Draft {
    pub(super) fn new(now: Now, cause: Cause, actor: impl Into<Arc<str>>) -> Self {
        let record = Record { wall: now.wall, cause, actor: actor.into(), events: Vec::new() };
        Self { record, touches: Vec::new() }
    }

    pub(super) fn push(&mut self, event: Event) {
        self.record.events.push(event);
    }

    pub(super) fn touch_lease(&mut self, lease: LeaseId) {
        self.touches.push(Touched::Lease(lease));
    }

    pub(super) fn touch(&mut self, key: &ServiceKey, id: &InstanceId) {
        self.touches.push(Touched::Instance(key.clone(), id.clone()));
    }

    /// So many events are to come, and as much is to be touched.
    pub(super) fn reserve(&mut self, events: usize) {
        self.record.events.reserve(events);
        self.touches.reserve(events);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.record.events.is_empty()
    }

    /// How many events there are.
    pub(super) fn events(&self) -> usize {
        self.record.events.len()
    }

    /// The lease that lost what was removed since the first so many events ends with it: there is nobody to be told.
    pub(super) fn tell_nobody(&mut self, since: usize) {
        for event in &mut self.record.events[since..] {
            if let Event::Removed { loss, .. } = event {
                *loss = None;
            }
        }
    }

    pub(super) fn finish(mut self) -> Proposal {
        self.touches.sort_unstable();
        self.touches.dedup();
        self.finish_unsorted()
    }

    /// Of what is in no order that means anything, and not twice.
    pub(super) fn finish_unsorted(self) -> Proposal {
        Proposal { record: self.record, touches: self.touches }
    }
}

fn register(
    state: &State,
    now: Now,
    lease: LeaseId,
    registrant: &Registrant,
    ttl: u64,
    instances: &[(ServiceKey, InstanceId, Arc<Spec>)],
) -> Result<Proposal, Rejection> {
    let mut draft = Draft::new(now, Cause::Register, actor_of(registrant));
    draft.touch_lease(lease);
    draft.touches.push(Touched::Registrant(registrant.uid.clone()));
    let known = state.lease(&lease);
    if let Some(known) = known.filter(|known| known.registrant.uid != registrant.uid) {
        let by =
            format!("the lease {lease} belongs to the registrant {}: choose another", known.registrant.uid);
        return Err(Rejection::Superseded { by });
    }
    if let Some(newer) = newer_generation(state, registrant) {
        let by = format!("generation {newer} of the registrant {} holds a lease", registrant.uid);
        return Err(Rejection::Superseded { by });
    }
    if known.is_none_or(|known| known.registrant != *registrant || known.ttl != ttl) {
        draft.push(Event::LeaseGranted { lease, registrant: registrant.clone(), ttl });
    }
    for (key, id, spec) in instances {
        draft.touch(key, id);
        let there = state.instance(key, id);
        match there {
            Some(there) if there.lease == lease && there.spec == *spec => {
                if there.held.is_some() {
                    draft.push(Event::Released { key: key.clone(), id: id.clone() });
                }
                continue;
            }
            Some(there) if there.lease != lease => {
                draft.touch_lease(there.lease);
                let carrier = state.lease(&there.lease);
                let lost = known.and_then(|known| known.lost.get(&(key.clone(), id.clone())));
                let own = carrier.is_some_and(|carrier| carrier.registrant.uid == registrant.uid);
                if lost == Some(&Loss::TakenOver) && own {
                    let by = format!("the registrant's newer lease {} took over {id} of {key}", there.lease);
                    return Err(Rejection::Superseded { by });
                }
            }
            _ => {}
        }
        draft.push(Event::Registered { key: key.clone(), id: id.clone(), spec: spec.clone(), lease });
    }
    let mut held = held_of(state, lease).peekable();
    let named: BTreeSet<_> =
        held.peek().into_iter().flat_map(|_| instances).map(|(key, id, _)| (key, id)).collect();
    for (key, id) in held {
        draft.touch(key, id);
        if !named.contains(&(key, id)) {
            draft.push(Event::Released { key: key.clone(), id: id.clone() });
        }
    }
    Ok(draft.finish())
}

fn deregister_lease(state: &State, now: Now, id: LeaseId, actor: &Arc<str>) -> Proposal {
    let mut draft = Draft::new(now, Cause::Deregister, actor.clone());
    draft.touch_lease(id);
    if let Some(lease) = state.lease(&id) {
        for (key, instance) in lease.instances.iter() {
            draft.touch(key, instance);
            draft.push(Event::Removed { key: key.clone(), id: instance.clone(), loss: None });
        }
        draft.push(Event::LeaseEnded { lease: id });
    }
    draft.finish()
}

fn deregister_instances(
    state: &State,
    now: Now,
    named: Option<LeaseId>,
    instances: &[(ServiceKey, InstanceId, Revision)],
    actor: &Arc<str>,
) -> Result<Proposal, Rejection> {
    let mut draft = Draft::new(now, Cause::Deregister, actor.clone());
    let mut seen = BTreeSet::new();
    let mut removed = 0;
    if let Some(lease) = named {
        draft.touch_lease(lease);
    }
    for (key, id, expected) in instances {
        draft.touch(key, id);
        let Some(there) = state.instance(key, id) else { continue };
        draft.touch_lease(there.lease);
        if named.is_some_and(|lease| lease != there.lease) {
            return Err(Rejection::LeaseMismatch { key: key.clone(), id: id.clone() });
        }
        if *expected != 0 && *expected != there.create_revision {
            let actual = there.create_revision;
            return Err(Rejection::IncarnationMismatch { key: key.clone(), id: id.clone(), actual });
        }
        if seen.insert((key, id)) {
            let loss = named.is_none().then_some(Loss::Deregistered);
            draft.push(Event::Removed { key: key.clone(), id: id.clone(), loss });
            removed += 1;
        }
    }
    if let Some(id) = named
        && let Some(lease) = state.lease(&id)
        && removed == lease.instances.len()
    {
        draft.push(Event::LeaseEnded { lease: id });
    }
    Ok(draft.finish())
}

fn set_override(
    state: &State,
    settings: &Settings,
    now: Now,
    (key, id): (&ServiceKey, &InstanceId),
    set: Option<&OverrideSpec>,
    (actor, reason): (&Arc<str>, &Arc<str>),
) -> Result<Proposal, Rejection> {
    let mut draft = Draft::new(now, Cause::Override, actor.clone());
    draft.touch(key, id);
    let there = state.override_of(key, id);
    match set {
        None if there.is_none() => {}
        None => draft.push(Event::OverrideCleared { key: key.clone(), id: id.clone() }),
        Some(set) => {
            let over = Override {
                weight: set.weight,
                status: set.status,
                expires_at: set.expires_in.map(|lasts| now.wall.saturating_add(lasts)),
                set_at: now.wall,
                revision: 0,
                actor: actor.clone(),
                reason: reason.clone(),
            };
            if there.is_none() && state.override_count() >= settings.max_overrides {
                return Err(Rejection::TooManyOverrides { limit: settings.max_overrides });
            }
            let nothing_new = over.expires_at.is_none()
                && there.is_some_and(|there| {
                    over == Override { set_at: over.set_at, revision: 0, ..(**there).clone() }
                });
            if !nothing_new {
                draft.push(Event::OverrideSet { key: key.clone(), id: id.clone(), over });
            }
        }
    }
    Ok(draft.finish())
}

fn resolve_hold(
    state: &State,
    now: Now,
    key: &ServiceKey,
    ids: &[InstanceId],
    evict: bool,
    actor: &Arc<str>,
) -> Result<Proposal, Rejection> {
    let mut draft = Draft::new(now, Cause::ResolveHold, actor.clone());
    let mut chosen = BTreeSet::new();
    if ids.is_empty() {
        let all = state.service(key).into_iter().flat_map(|service| service.instances.in_any_order());
        chosen.extend(
            all.filter(|instance| instance.held.is_some()).map(|instance| (&instance.id, instance.lease)),
        );
    }
    for id in ids {
        let held = state.instance(key, id).filter(|instance| instance.held.is_some());
        let Some(held) = held else {
            return Err(Rejection::NotHeld { key: key.clone(), id: id.clone() });
        };
        chosen.insert((id, held.lease));
    }
    let mut leases: BTreeMap<LeaseId, usize> = BTreeMap::new();
    for (id, lease) in chosen {
        draft.touch(key, id);
        draft.touch_lease(lease);
        *leases.entry(lease).or_default() += 1;
        let (key, id) = (key.clone(), id.clone());
        draft.push(if evict {
            Event::Removed { key, id, loss: Some(Loss::Evicted) }
        } else {
            Event::Released { key, id }
        });
    }
    if evict {
        end_emptied(state, leases, &mut draft);
    }
    Ok(draft.finish())
}

fn renew_held(state: &State, now: Now, id: LeaseId) -> Proposal {
    let known = state.lease(&id);
    let actor = known.map_or_else(String::new, |lease| actor_of(&lease.registrant));
    let mut draft = Draft::new(now, Cause::RenewHeld, actor);
    draft.touch_lease(id);
    if let Some(lease) = known {
        draft.touches.push(Touched::Registrant(lease.registrant.uid.clone()));
        if !is_superseded(state, lease) {
            for (key, instance) in held_of(state, id) {
                draft.touch(key, instance);
                draft.push(Event::Released { key: key.clone(), id: instance.clone() });
            }
        }
    }
    draft.finish()
}

/// Ends the leases that carry no more than the given number of instances, all of which leave.
pub(super) fn end_emptied(state: &State, leases: BTreeMap<LeaseId, usize>, draft: &mut Draft) {
    for (id, leaving) in leases {
        if state.lease(&id).is_some_and(|lease| lease.instances.len() <= leaving) {
            draft.push(Event::LeaseEnded { lease: id });
        }
    }
}

/// The held instances of a lease. O(1) if there are none.
pub(super) fn held_of(state: &State, id: LeaseId) -> impl Iterator<Item = (&ServiceKey, &InstanceId)> {
    let held = state.held_of(&id) > 0;
    let lease = held.then(|| state.lease(&id)).flatten();
    let instances = lease.into_iter().flat_map(|lease| lease.instances.iter());
    instances.filter(|(key, id)| state.instance(key, id).is_some_and(|instance| instance.held.is_some()))
}

fn newer_generation(state: &State, registrant: &Registrant) -> Option<u64> {
    state.highest_generation(&registrant.uid).filter(|highest| *highest > registrant.generation)
}

/// `uid#generation`, without the formatter: every registration has one.
fn actor_of(registrant: &Registrant) -> String {
    [&registrant.uid, "#", &registrant.generation.to_string()].concat()
}
