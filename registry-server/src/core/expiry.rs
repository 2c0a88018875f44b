//! What time alone brings about: leases run out, holds and overrides end.
//!
//! Owns the choice of what is due and the proposal that says so. Keeps L2 (what is due is proposed, in few records) and
//! applies the guard's verdict (L5). A proposal marks what it rests on as in flight until it is committed
//! ([`Core::evolve`]) or given up ([`Core::abandon`]).

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Cause, Core, Draft, Event, FixedMap, Held, Instance, InstanceId, LeaseId, Loss, Now, Proposal,
    ServiceKey, Touched, decide,
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
        let mut draft = Draft::new(now, Cause::Expire, "");
        let mut reasons = BTreeMap::new();
        let mut size = 0;
        while let Some(id) = self.next_due(now) {
            let carried = self.state.lease(&id).map_or(0, |lease| lease.instances.len()).max(1);
            if size > 0 && size + carried > max_instances {
                break;
            }
            if self.state.is_dormant(&id) {
                // Nothing is left to expire: its holds end by themselves.
                self.leases.suspend(&id);
                continue;
            }
            self.leases.begin(&id);
            size += carried;
            self.expire_lease(now, id, &mut reasons, &mut draft);
        }
        (!draft.is_empty()).then_some(draft)
    }

    /// The next lease that is due. Of those that are due together, those of one service go together: a revision then says much of few
    /// services, and not little of each.
    fn next_due(&mut self, now: Now) -> Option<LeaseId> {
        if let Some(due) = self.leases.take_due(now.mono)
            && due.len() > 1
        {
            // Numbered as they are met first, so that equal histories have equal records.
            let mut numbers = FixedMap::default();
            due.sort_by_cached_key(|id| {
                let place = self.state.lease(id).and_then(|lease| lease.instances.place());
                let next = numbers.len();
                *numbers.entry(place).or_insert(next)
            });
        }
        self.leases.next_due(now.mono)
    }

    fn expire_lease(
        &mut self,
        now: Now,
        id: LeaseId,
        reasons: &mut BTreeMap<ServiceKey, Arc<str>>,
        draft: &mut Draft,
    ) {
        draft.touch_lease(id);
        let carried = self.state.lease(&id).into_iter().flat_map(|lease| lease.instances.iter());
        let may_be_held = self.state.held_of(&id) > 0;
        let first = draft.events();
        let mut ends = true;
        for (key, instance) in carried {
            draft.touch(key, instance);
            let is_held = |it: &Arc<Instance>| it.held.is_some();
            if may_be_held && self.state.instance(key, instance).is_some_and(is_held) {
                ends = false;
                continue;
            }
            let (key, id) = (key.clone(), instance.clone());
            if self.guard.admit(&self.settings, now.mono, &key, &self.state) {
                draft.push(Event::Removed { key, id, loss: Some(Loss::Expired) });
                continue;
            }
            ends = false;
            // One text a service and record, shared by all that it holds.
            let reason =
                reasons.entry(key.clone()).or_insert_with(|| self.guard.reason(&self.settings, &key));
            let until = now.wall.saturating_add(self.settings.hold_time);
            let held = Held { since: now.wall, until, reason: reason.clone() };
            draft.push(Event::Held { key, id, held });
        }
        if ends {
            draft.tell_nobody(first);
            draft.push(Event::LeaseEnded { lease: id });
        }
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

/// Names an instance that a timer is about.
pub(super) type Name = (ServiceKey, InstanceId);
