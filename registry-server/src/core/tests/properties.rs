//! The promises over random histories: a few leases, registrants, services and ids, so that collisions are common, and
//! time that passes, stalls and restarts.
//!
//! Each history is driven against naive models that are written from the promises, not from the code; a failed check
//! prints the promise's name.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::{collection::vec, option, prelude::*, sample::Index};

use super::support::*;
use crate::core::{
    view::{Selector, apply, digest, net},
    *,
};

const LEASES: u8 = 5;
const SERVICES: u8 = 2;
const IDS: u8 = 7;
const LONGEST_TTL: u64 = 3_000;

type View = BTreeMap<InstanceId, Arc<Instance>>;

#[derive(Clone, Debug)]
enum Op {
    Command(Draw),
    Renew(u8),
    Advance(u64),
    Stall(u64),
    /// Time passes, and what is due waits in flight while others renew; then it is committed or abandoned.
    InFlight {
        ms: u64,
        wait: u64,
        abandon: bool,
    },
    /// From a base taken at some record, and the records since.
    Restart {
        cut: Index,
        down: u64,
    },
}

/// A command whose incarnations are drawn from the state at hand.
#[derive(Clone, Debug)]
enum Draw {
    Register { lease: u8, uid: u8, generation: u64, ttl: u64, instances: BTreeMap<(u8, u8), u16> },
    Deregister { lease: Option<u8>, instances: Vec<(u8, u8, bool)> },
    Override { service: u8, id: u8, set: Option<OverrideSpec> },
    Resolve { service: u8, ids: Vec<u8>, evict: bool },
}

fn draw() -> impl Strategy<Value = Draw> {
    let named = || (0..SERVICES, 0..IDS);
    prop_oneof![
        6 => (0..LEASES, 0..10u8, 1..3u64, 1..=3u64, proptest::collection::btree_map(named(), 0..4u16, 1..8)).prop_map(
            |(lease, uid, generation, ttl, instances)| Draw::Register {
                lease,
                // Mostly the lease's own registrant, two leases a registrant; now and then somebody else.
                uid: if uid == 0 { 9 } else { lease / 2 },
                generation,
                ttl: ttl * 1_000,
                instances,
            }
        ),
        2 => (option::of(0..LEASES), vec((0..SERVICES, 0..IDS, any::<bool>()), 0..3))
            .prop_map(|(lease, instances)| Draw::Deregister { lease, instances }),
        2 => (0..SERVICES, 0..IDS, option::of((option::of(0..3u16), option::of(500..4_000u64)))).prop_map(
            |(service, id, set)| Draw::Override {
                service,
                id,
                set: set.map(|(weight, expires_in)| OverrideSpec {
                    weight,
                    status: weight.is_none().then_some(Status::Down),
                    expires_in,
                }),
            }
        ),
        1 => (0..SERVICES, vec(0..IDS, 0..2), any::<bool>())
            .prop_map(|(service, ids, evict)| Draw::Resolve { service, ids, evict }),
    ]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        8 => draw().prop_map(Op::Command),
        4 => (0..LEASES).prop_map(Op::Renew),
        4 => (1..2_500u64).prop_map(Op::Advance),
        1 => (0..4_000u64).prop_map(Op::Stall),
        2 => (1..2_500u64, 0..200u64, any::<bool>())
            .prop_map(|(ms, wait, abandon)| Op::InFlight { ms, wait, abandon }),
        1 => (any::<Index>(), 0..9_000u64).prop_map(|(cut, down)| Op::Restart { cut, down }),
    ];
    vec(op, 1..60)
}

fn selector() -> impl Strategy<Value = Selector> {
    let parity = option::of(prop_oneof![Just("even"), Just("odd")]);
    let status = prop_oneof![Just(Status::Up), Just(Status::Draining), Just(Status::Down)];
    (parity, option::of(0..3u8), vec(status, 0..3)).prop_map(|(parity, zone, statuses)| {
        let tags = parity.map(|value| (Arc::from("parity"), Arc::from(value)));
        Selector::new(tags, zone.map_or(String::new(), |zone| format!("z{zone}")), statuses)
    })
}

fn settings() -> Settings {
    Settings { hold_time: 8_000, remembered_services: 1, ..Settings::default() }
}

/// A history in the making, and what each promise says about it.
struct World {
    sim: Sim,
    /// L1, L2: when each lease runs out, as its registrant was told.
    deadlines: BTreeMap<LeaseId, u64>,
    /// L4: what operators set.
    overrides: BTreeMap<(ServiceKey, InstanceId), Override>,
    /// L5: per service: end, base and removed of its window.
    windows: BTreeMap<ServiceKey, (u64, usize, usize)>,
    /// W2: per service, the changes applied one by one.
    views: BTreeMap<ServiceKey, View>,
    woke: u64,
    /// When the server last was restarted or noticed a stall: holds do not end within a TTL from then.
    resumed: u64,
}

impl World {
    fn new() -> Self {
        let sim = Sim::new(settings());
        let woke = sim.now.mono;
        Self {
            sim,
            deadlines: BTreeMap::new(),
            overrides: BTreeMap::new(),
            windows: BTreeMap::new(),
            views: BTreeMap::new(),
            woke,
            resumed: 0,
        }
    }

    fn state(&self) -> &State {
        self.sim.core.state()
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Command(draw) => self.command(draw),
            Op::Renew(n) => self.renew(*n),
            Op::Advance(ms) => self.advance(*ms),
            Op::Stall(ms) => self.stall(*ms),
            Op::InFlight { ms, wait, abandon } => self.in_flight(*ms, *wait, *abandon),
            Op::Restart { cut, down } => self.restart(*cut, *down),
        }
        self.check();
    }

    fn command(&mut self, draw: &Draw) {
        let command = match draw {
            Draw::Register { lease, uid, generation, ttl, instances } => register_with(
                *lease,
                registrant(*uid, *generation),
                *ttl,
                instances.iter().map(|((service, name), weight)| (*service, *name, *weight)),
            ),
            Draw::Deregister { lease, instances } => {
                let expected = |service, name, wrong| match self.sim.at(service, name) {
                    Some(there) => there.create_revision - u64::from(wrong && there.create_revision > 1),
                    None => 0,
                };
                let named: Vec<_> = instances
                    .iter()
                    .map(|(service, name, wrong)| (*service, *name, expected(*service, *name, *wrong)))
                    .collect();
                deregister(*lease, &named)
            }
            Draw::Override { service, id, set } => override_with(*service, *id, set.clone()),
            Draw::Resolve { service, ids, evict } => resolve(*service, ids, *evict),
        };
        self.run(&command);
    }

    fn run(&mut self, command: &Command) {
        let now = self.sim.now;
        let before = self.state().clone();
        let decided = self.sim.core.decide(now, command);
        assert_eq!(self.state(), &before, "decide changes nothing");
        let Ok(proposal) = decided else { return };
        Self::fenced(command, &proposal, &before);
        if let Command::SetOverride { key, id, set, .. } = command {
            self.operator(key, id, set.as_ref(), &proposal);
        }
        let records = self.sim.log.len();
        if proposal.record.events.is_empty() {
            if let Command::Register { lease, .. } = command {
                self.sim.core.touch(now, lease);
            }
        } else {
            self.commit(proposal);
        }
        assert!(self.sim.log.len() <= records + 1, "D3: one command is one revision");
        if let Command::Register { lease, ttl, .. } = command {
            self.deadlines.insert(*lease, now.mono + ttl);
        }
    }

    fn operator(
        &mut self,
        key: &ServiceKey,
        id: &InstanceId,
        set: Option<&OverrideSpec>,
        proposal: &Proposal,
    ) {
        let name = (key.clone(), id.clone());
        let Some(set) = set else {
            self.overrides.remove(&name);
            return;
        };
        for event in &proposal.record.events {
            let Event::OverrideSet { over, .. } = event else { panic!("{event:?}") };
            assert_eq!((over.weight, over.status), (set.weight, set.status), "L4");
            assert_eq!(over.expires_at, set.expires_in.map(|lasts| self.sim.now.wall + lasts), "L4");
            self.overrides.insert(name.clone(), over.clone());
        }
    }

    /// L3: nothing older removes or changes anything newer.
    fn fenced(command: &Command, proposal: &Proposal, before: &State) {
        match command {
            Command::Register { lease, registrant, .. } => {
                let generations = before.leases().filter(|(_, it)| it.registrant.uid == registrant.uid);
                let highest = generations.map(|(_, it)| it.registrant.generation).max().unwrap_or(0);
                assert!(registrant.generation >= highest, "L3: generation");
                assert!(
                    before.lease(lease).is_none_or(|it| it.registrant.uid == registrant.uid),
                    "L3: registrant"
                );
            }
            Command::Deregister { lease, instances, .. } => {
                for event in &proposal.record.events {
                    let Event::Removed { key, id, .. } = event else { continue };
                    let there = before.instance(key, id).unwrap();
                    assert!(lease.is_none_or(|lease| lease == there.lease), "L3: lease");
                    let named = instances.iter().find(|(k, i, _)| (k, i) == (key, id));
                    assert!(
                        named.is_none_or(|(_, _, expected)| [0, there.create_revision].contains(expected)),
                        "L3: incarnation"
                    );
                }
            }
            _ => {}
        }
    }

    fn commit(&mut self, proposal: Proposal) {
        let now = self.sim.now;
        let cause = proposal.record.cause;
        let before = self.state().clone();
        let waited: Vec<_> = before.leases().map(|(id, _)| *id).filter(|id| before.is_dormant(id)).collect();
        for event in &proposal.record.events {
            if let Event::Released { key, id } = event {
                let lease = before.instance(key, id).unwrap().lease;
                self.deadlines.insert(lease, now.mono + before.lease(&lease).unwrap().ttl);
            }
            if let Event::OverrideCleared { key, id } = event {
                self.overrides.remove(&(key.clone(), id.clone()));
            }
            if let Event::OverrideSet { key, id, .. } = event {
                let revision = self.next_revision();
                self.overrides.entry((key.clone(), id.clone())).and_modify(|over| over.revision = revision);
            }
        }
        let changes = self.sim.commit(proposal);
        for change in &changes {
            self.publish(change, &before);
            if matches!(cause, Cause::Deregister | Cause::ResolveHold) {
                let left = change.items.iter().filter(|item| item.after.is_none()).count();
                self.windows
                    .entry(change.key.clone())
                    .and_modify(|(_, base, _)| *base = base.saturating_sub(left));
            }
        }
        self.drop_overdue_holds();
        let after = self.sim.core.state();
        self.deadlines.retain(|id, _| after.lease(id).is_some());
        for id in waited {
            if let Some(lease) = after.lease(&id).filter(|_| !after.is_dormant(&id)) {
                self.deadlines.entry(id).or_insert(now.mono + lease.ttl);
            }
        }
    }

    /// A lease of which everything is held has nothing to lose at its deadline.
    fn drop_overdue_holds(&mut self) {
        let (state, now) = (self.sim.core.state(), self.sim.now.mono);
        self.deadlines.retain(|id, deadline| *deadline > now || !state.is_dormant(id));
    }

    fn next_revision(&self) -> Revision {
        self.sim.next_revision()
    }

    /// W2: the view is the fold of the changes, and each is what it says.
    fn publish(&mut self, change: &ServiceChange, before: &State) {
        let expected = before.service(&change.key).map_or(before.forgotten_through(), |it| it.last_change);
        assert_eq!(change.previous, expected, "W2: previous");
        assert!(change.revision > change.previous, "W1");
        assert!(!change.items.is_empty());
        let view = self.views.entry(change.key.clone()).or_default();
        for item in &change.items {
            assert_eq!(view.get(&item.id), item.before.as_ref(), "W2: before");
            assert_ne!(item.before, item.after);
            match &item.after {
                Some(after) => {
                    assert_eq!(after.mod_revision, change.revision);
                    view.insert(item.id.clone(), after.clone());
                }
                None => {
                    view.remove(&item.id);
                }
            }
        }
        assert_eq!(view.len(), change.instances);
    }

    fn renew(&mut self, n: u8) {
        let id = lease(n);
        let dormant = self.state().is_dormant(&id);
        let renewal = self.sim.renew_core(&id);
        let Some(known) = self.state().lease(&id) else {
            assert_eq!(renewal, Renewal::Unknown);
            return;
        };
        let ttl = known.ttl;
        match renewal {
            Renewal::Unknown => panic!("nothing is in flight"),
            Renewal::Superseded => {}
            Renewal::Renewed | Renewal::Partial(_) => self.renewed(id, ttl),
            Renewal::RenewedHeld => {
                if !dormant {
                    self.renewed(id, ttl);
                }
                self.run(&Command::RenewHeld { lease: id });
                assert_eq!(self.state().held_of(&id), 0, "L5: a renewal releases");
            }
        }
    }

    fn renewed(&mut self, id: LeaseId, ttl: u64) {
        let deadline = self.deadlines.get_mut(&id).expect("a lease that can be renewed has a deadline");
        *deadline = (*deadline).max(self.sim.now.mono + ttl);
    }

    fn wake(&mut self, due: u64) -> u64 {
        let stall = self.sim.core.wake(self.sim.now, due);
        let slept = self.sim.now.mono - self.woke;
        let late = self.sim.now.mono.saturating_sub(due.max(self.woke));
        assert_eq!(stall, if late > 500 { slept } else { 0 }, "L1: stall");
        for deadline in self.deadlines.values_mut() {
            *deadline += stall;
        }
        self.woke = self.sim.now.mono;
        if stall > 0 {
            self.resumed = self.woke;
        }
        stall
    }

    fn advance(&mut self, ms: u64) {
        let target = self.sim.now.mono + ms;
        loop {
            let due = self.sim.core.next_deadline().filter(|due| *due <= target);
            let at = due.unwrap_or(target).max(self.sim.now.mono);
            self.sim.pass(at - self.sim.now.mono);
            self.wake(at);
            self.tick();
            if due.is_none() {
                return;
            }
        }
    }

    fn propose(&mut self, max: usize) -> Option<Proposal> {
        let before = self.state().clone();
        let proposal = self.sim.core.tick(self.sim.now, max);
        self.drop_overdue_holds();
        let proposal = proposal?;
        assert_eq!(self.state(), &before, "tick changes nothing durable");
        if proposal.record.cause == Cause::Expire {
            for touched in &proposal.touches {
                if let Touched::Lease(id) = touched {
                    assert!(self.deadlines[id] <= self.sim.now.mono, "L1: {id} early");
                }
            }
            for event in &proposal.record.events {
                self.guarded(event, &before);
            }
        }
        Some(proposal)
    }

    /// L5, from the words of the promise.
    fn guarded(&mut self, event: &Event, before: &State) {
        let (Event::Removed { key, .. } | Event::Held { key, .. }) = event else { return };
        let now = self.sim.now.mono;
        let there = before.service(key).unwrap();
        if self.windows.get(key).is_none_or(|(end, ..)| *end <= now) {
            let ttls = there.instances.values().map(|it| before.lease(&it.lease).unwrap().ttl);
            self.windows.insert(key.clone(), (now + ttls.max().unwrap(), there.instances.len(), 0));
        }
        let (_, base, removed) = self.windows.get_mut(key).unwrap();
        if matches!(event, Event::Removed { .. }) {
            *removed += 1;
            assert!(*base < 4 || *removed <= *base / 2, "L5: {removed} of {base}");
        } else {
            assert!(*base >= 4 && *removed >= *base / 2, "L5: held needlessly: {removed} of {base} gone");
        }
    }

    fn tick(&mut self) {
        while let Some(proposal) = self.propose(3) {
            self.commit(proposal);
        }
        let now = self.sim.now;
        for (id, deadline) in &self.deadlines {
            assert!(*deadline > now.mono || self.state().is_dormant(id), "L2: {id} late");
        }
        let next = self.sim.core.next_deadline().unwrap_or(u64::MAX);
        let running = self.deadlines.iter().filter(|(id, _)| !self.state().is_dormant(id));
        assert!(
            running.map(|(_, deadline)| *deadline).min().is_none_or(|first| next <= first),
            "L2: next_deadline"
        );
        for ((_, id), over) in self.state().overrides_after(None) {
            assert!(over.expires_at.is_none_or(|at| at > now.wall), "L4: {id} overridden for too long");
        }
        let grace = self.resumed + LONGEST_TTL + WALL;
        for (_, service) in self.state().services_after(None) {
            for held in service.instances.values().filter_map(|it| it.held.as_ref()) {
                assert!(held.until.max(grace) > now.wall, "L5: held for too long");
            }
        }
    }

    fn stall(&mut self, ms: u64) {
        let Some(due) = self.sim.core.next_deadline() else { return };
        let due = due.max(self.sim.now.mono);
        self.sim.pass(due - self.sim.now.mono + 501 + ms);
        assert!(self.wake(due) > 500);
        self.tick();
    }

    fn in_flight(&mut self, ms: u64, wait: u64, abandon: bool) {
        self.sim.pass(ms);
        let due = self.sim.core.next_deadline().unwrap_or(u64::MAX);
        // The loop is busy, not stalled.
        self.wake(due.max(self.sim.now.mono));
        let windows = self.windows.clone();
        let Some(proposal) = self.propose(3) else { return };
        self.sim.pass(wait);
        for n in 0..LEASES {
            if proposal.touches.contains(&Touched::Lease(lease(n))) {
                let renewal = self.sim.renew_core(&lease(n));
                assert_eq!(renewal, Renewal::Unknown, "L1: no promise for what is about to end");
            } else if self.state().lease(&lease(n)).is_some_and(|_| self.state().held_of(&lease(n)) == 0) {
                self.renew(n);
            }
        }
        if abandon {
            self.sim.core.abandon(&proposal);
            for (key, (end, _, removed)) in &mut self.windows {
                let before = windows.get(key).filter(|before| before.0 == *end);
                *removed = before.map_or(0, |before| before.2);
            }
        } else {
            self.commit(proposal);
        }
        self.tick();
    }

    fn restart(&mut self, cut: Index, down: u64) {
        self.sim.pass(down);
        let now = self.sim.now;
        let cut = cut.index(self.sim.log.len() + 1);
        let mut base = State::default().with_remembered(settings().remembered_services);
        for committed in &self.sim.log[..cut] {
            base.evolve(committed);
        }
        let tail = self.sim.log[cut..].to_vec();
        let core = Core::restore(settings(), base.to_base(), tail, now);
        assert_eq!(core.state(), self.state(), "evolve(log) = state");
        self.sim.core = core;
        self.woke = now.mono;
        self.resumed = now.mono;
        self.windows.clear();
        self.deadlines.clear();
        for (id, lease) in self.sim.core.state().leases() {
            let deadline = self.sim.core.leases().deadline(id);
            assert_eq!(deadline.is_none(), self.state().is_dormant(id));
            let Some(deadline) = deadline else { continue };
            assert!((lease.ttl..=lease.ttl * 6 / 5).contains(&(deadline - now.mono)), "L1: restart");
            self.deadlines.insert(*id, deadline);
        }
        self.tick();
    }

    fn check(&self) {
        let state = self.state();
        let mut counted = 0;
        for (key, service) in state.services_after(None) {
            let view = self.views.get(key).cloned().unwrap_or_default();
            assert!(service.instances.iter().eq(&view), "W2: {key}");
            assert_eq!(service.digest, digest(service.instances.values()), "W8: {key}");
            let ttls = service.instances.values().map(|it| state.lease(&it.lease).unwrap().ttl);
            assert_eq!(service.longest_ttl(), ttls.max().unwrap_or(0));
            counted += service.instances.len();
            for (id, instance) in service.instances.iter() {
                let name = (key.clone(), id.clone());
                assert!(state.lease(&instance.lease).unwrap().instances.contains(&name));
                assert_eq!(instance.over.as_deref(), self.overrides.get(&name), "L4: {key} {id}");
            }
        }
        assert_eq!(counted, state.instance_count());
        for (key, view) in &self.views {
            assert!(view.is_empty() || state.service(key).is_some(), "W2: {key}");
        }
        let carried: usize = state.leases().map(|(_, lease)| lease.instances.len()).sum();
        assert_eq!(carried, counted);
        let kept: BTreeMap<_, _> =
            state.overrides_after(None).map(|(name, over)| (name.clone(), (**over).clone())).collect();
        assert_eq!(kept, self.overrides, "L4: overrides last");
        for (id, lease) in state.leases() {
            assert!(lease.instances.len() + lease.lost.len() > 0, "{id} is a lease of nothing");
            let running = self.sim.core.leases().deadline(id);
            if state.is_dormant(id) && !self.deadlines.contains_key(id) {
                assert_eq!(running, None);
            } else {
                assert_eq!(running, self.deadlines.get(id).copied(), "L1: {id}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Everything that `World` holds to.
    #[test]
    fn promises_hold_over_random_histories(ops in ops()) {
        let mut world = World::new();
        for op in &ops {
            world.step(op);
        }
        // All of it ends by itself when nobody renews.
        world.advance(60_000);
        world.check();
        prop_assert_eq!((world.state().instance_count(), world.state().lease_count()), (0, 0));
    }

    /// Replay from nothing, from a base at any record, and through plain data and back.
    #[test]
    fn replay_equals_live(ops in ops(), cut in any::<Index>()) {
        let mut world = World::new();
        for op in &ops {
            world.step(op);
        }
        let log = &world.sim.log;
        let cut = cut.index(log.len() + 1);
        let mut replayed = State::default().with_remembered(settings().remembered_services);
        let mut changes = Vec::new();
        for (n, committed) in log.iter().enumerate() {
            if n == cut {
                let copy = State::from_base(replayed.to_base()).with_remembered(settings().remembered_services);
                prop_assert_eq!(&copy, &replayed);
                replayed = copy;
            }
            changes.extend(replayed.evolve(committed));
        }
        prop_assert_eq!(&replayed, world.state());
        prop_assert_eq!(&changes, &world.sim.changes);
    }

    /// W6, for any run of changes and any selector; and the kinds say what they mean.
    #[test]
    fn coalesced_equals_one_by_one(ops in ops(), selector in selector(), from in any::<Index>(), to in any::<Index>()) {
        let mut world = World::new();
        for op in &ops {
            world.step(op);
        }
        for service in 0..SERVICES {
            let all: Vec<_> = world.sim.changes.iter().filter(|change| change.key == key(service)).collect();
            let (from, to) = (from.index(all.len() + 1), to.index(all.len() + 1));
            let (from, to) = (from.min(to), from.max(to));
            let selected = |upto: usize| {
                let mut view = View::new();
                for change in &all[..upto] {
                    for item in &change.items {
                        view.remove(&item.id);
                        view.extend(item.after.iter().map(|after| (after.id.clone(), after.clone())));
                    }
                }
                view.retain(|_, instance| selector.matches(instance));
                view
            };
            let before = selected(from);
            let delta = net(all[from..to].iter().copied(), &selector);
            let mut coalesced = before.clone();
            apply(&mut coalesced, &delta);
            prop_assert_eq!(&coalesced, &selected(to), "W6");
            let mut stepwise = before.clone();
            for change in &all[from..to] {
                apply(&mut stepwise, &net([*change], &selector));
            }
            prop_assert_eq!(&stepwise, &coalesced, "W6");
            prop_assert!(delta.added.iter().all(|it| !before.contains_key(&it.id)));
            prop_assert!(delta.updated.iter().all(|it| before.contains_key(&it.id) && before[&it.id] != *it));
            prop_assert!(delta.removed.iter().all(|(id, _)| before.contains_key(id) && !coalesced.contains_key(id)));
            prop_assert_eq!(delta.is_empty(), before == coalesced);
        }
    }

    /// A selector is its meaning, however it was written.
    #[test]
    fn selectors_are_canonical(order in Just(vec![Status::Up, Status::Draining, Status::Down]).prop_shuffle()) {
        prop_assert_eq!(Selector::new([], "", order.clone()), Selector::default());
        let twice: BTreeSet<_> = order[..2].iter().copied().collect();
        let repeated = order[..2].iter().chain(&order[..2]).copied();
        prop_assert_eq!(Selector::new([], "", repeated), Selector::new([], "", twice));
    }
}
