//! What time alone brings about: leases run out, holds and overrides end.
//!
//! Owns the choice of what is due and the proposal that says so. Keeps L2 (what is due is proposed, in few records) and
//! applies the guard's verdict (L5). A proposal marks what it rests on as in flight until it is committed
//! ([`Core::evolve`]) or given up ([`Core::abandon`]).

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Cause, Core, Draft, Event, Guard, Held, Instance, InstanceId, Lease, LeaseId, Loss, Now, Proposal,
    ServiceKey, Settings, State, Touched, decide,
};

impl Core {
    /// What is due by `now`: one proposal of one cause, or nothing. Call it until it returns `None`.
    ///
    /// A proposal ends once it removes or holds `max_instances`; only a single lease that carries more exceeds that,
    /// because a lease is never split. A lease that carries nothing counts as one.
    pub fn tick(&mut self, now: Now, max_instances: usize) -> Option<Proposal> {
        self.expire_leases(now, max_instances)
            // Each lease and each instance is in it once.
            .map(Draft::finish_unsorted)
            .or_else(|| self.expire_holds(now, max_instances).map(Draft::finish))
            .or_else(|| self.expire_overrides(now, max_instances).map(Draft::finish))
    }

    /// A proposal of [`tick`](Self::tick) will not be committed: what it says is due again. Any other proposal may be
    /// abandoned too, and nothing happens.
    pub fn abandon(&mut self, proposal: &Proposal) {
        if !matches!(proposal.record.cause, Cause::Expire | Cause::HoldExpire | Cause::OverrideExpire) {
            return;
        }
        for touched in &proposal.touches {
            if let Touched::Lease(lease) = touched {
                self.leases.abandon(lease);
            }
        }
        for event in &proposal.record.events {
            match event {
                Event::Removed { key, .. } if proposal.record.cause == Cause::Expire => {
                    self.guard.refund(key);
                }
                Event::Removed { key, id, .. } => self.holds.put_back(&(key.clone(), id.clone())),
                Event::OverrideCleared { key, id } => self.overrides.put_back(&(key.clone(), id.clone())),
                _ => {}
            }
        }
    }

    fn expire_leases(&mut self, now: Now, max_instances: usize) -> Option<Draft> {
        loop {
            let upcoming = self.leases.upcoming(now.mono, max_instances.max(1));
            if upcoming.is_empty() {
                return None;
            }
            let draft = self.expire(now, &upcoming, max_instances);
            if !draft.is_empty() {
                return Some(draft);
            }
        }
    }

    /// As many of these as may go together.
    fn expire(&mut self, now: Now, upcoming: &[LeaseId], max_instances: usize) -> Draft {
        // One step for all and then the next: each is mostly waiting for memory that was not read for long, and such waits overlap.
        let leases: Vec<Option<&Lease>> = upcoming.iter().map(|id| self.state.lease(id)).collect();
        let mut expiring = Expiring {
            now,
            state: &self.state,
            settings: &self.settings,
            guard: &mut self.guard,
            reasons: BTreeMap::new(),
            draft: Draft::new(now, Cause::Expire, ""),
            ended: Vec::with_capacity(upcoming.len()),
        };
        expiring.draft.reserve(2 * upcoming.len());
        let mut size = 0;
        for (id, lease) in upcoming.iter().zip(leases) {
            let carried = lease.map_or(0, |lease| lease.instances.len()).max(1);
            if size > 0 && size + carried > max_instances {
                break;
            }
            if self.state.is_dormant(id) {
                // Nothing is left to expire: its holds end by themselves.
                self.leases.suspend(id, || 0);
                continue;
            }
            self.leases.begin_next();
            size += carried;
            expiring.expire(*id, lease);
        }
        expiring.finish()
    }

    fn expire_holds(&mut self, now: Now, max_instances: usize) -> Option<Draft> {
        let mut draft = Draft::new(now, Cause::HoldExpire, "");
        let mut leaving: BTreeMap<LeaseId, usize> = BTreeMap::new();
        let mut size = 0;
        while size < max_instances.max(1)
            && let Some((key, id)) = self.holds.take_due(now.mono)
        {
            let held = self.state.instance(&key, &id).filter(|instance| instance.held.is_some());
            let Some(lease) = held.map(|instance| instance.lease) else {
                self.holds.cancel(&(key, id));
                continue;
            };
            draft.touch_lease(lease);
            draft.touch(&key, &id);
            draft.push(Event::Removed { key, id, loss: Some(Loss::Expired) });
            *leaving.entry(lease).or_default() += 1;
            size += 1;
        }
        for lease in leaving.keys() {
            // A renewal that is answered now would be answered for nothing.
            self.leases.begin(lease);
        }
        decide::end_emptied(&self.state, leaving, &mut draft);
        (!draft.is_empty()).then_some(draft)
    }

    fn expire_overrides(&mut self, now: Now, max_instances: usize) -> Option<Draft> {
        let mut draft = Draft::new(now, Cause::OverrideExpire, "");
        let mut size = 0;
        while size < max_instances.max(1)
            && let Some((key, id)) = self.overrides.take_due(now.mono)
        {
            draft.touch(&key, &id);
            draft.push(Event::OverrideCleared { key, id });
            size += 1;
        }
        (!draft.is_empty()).then_some(draft)
    }
}

/// What runs out together, in the making.
struct Expiring<'a> {
    now: Now,
    state: &'a State,
    settings: &'a Settings,
    guard: &'a mut Guard,
    /// One text a service and record, shared by all that it holds.
    reasons: BTreeMap<ServiceKey, Arc<str>>,
    draft: Draft,
    /// Leases of which nothing is left.
    ended: Vec<LeaseId>,
}

impl Expiring<'_> {
    fn expire(&mut self, id: LeaseId, lease: Option<&Lease>) {
        let Self { now, state, settings, guard, reasons, draft, ended } = self;
        draft.touch_lease(id);
        let may_be_held = state.held_of(&id) > 0;
        let first = draft.events();
        let mut ends = true;
        for (key, instance) in lease.into_iter().flat_map(|lease| lease.instances.iter()) {
            draft.touch(key, instance);
            let is_held = |it: &Arc<Instance>| it.held.is_some();
            if may_be_held && state.instance(key, instance).is_some_and(is_held) {
                ends = false;
                continue;
            }
            let (key, id) = (key.clone(), instance.clone());
            if guard.admit(settings, now.mono, &key, state) {
                draft.push(Event::Removed { key, id, loss: Some(Loss::Expired) });
                continue;
            }
            ends = false;
            let reason = reasons.entry(key.clone()).or_insert_with(|| guard.reason(settings, &key));
            let until = now.wall.saturating_add(settings.hold_time);
            let held = Held { since: now.wall, until, reason: reason.clone() };
            draft.push(Event::Held { key, id, held });
        }
        if ends {
            draft.tell_nobody(first);
            ended.push(id);
        }
    }

    /// The instances' ends first, and then those of leases, so that each is applied in one go.
    fn finish(self) -> Draft {
        let Self { mut draft, ended, .. } = self;
        ended.into_iter().for_each(|lease| draft.push(Event::LeaseEnded { lease }));
        draft
    }
}

/// Names an instance that a timer is about.
pub(super) type Name = (ServiceKey, InstanceId);
