//! The rules of the registry, pure and deterministic: no clock, no I/O, no randomness, no runtime, no wire types.
//!
//! ```text
//!               decide(now, command) ──► Proposal { events, touches } │ Rejection
//!               tick(now) ─────────────► Proposal ── not committed ──► abandon
//!                                           │
//!                     store.append(record) ─┴─► the store names the revision
//!                                           │
//!   evolve(now, Committed { revision, record })   the only way state changes:
//!          │                                      own writes and replay after a restart alike
//!          └──► Vec<ServiceChange>   what the hub publishes
//! ```
//!
//! | file | what it owns | promises |
//! |---|---|---|
//! | `types` | the words | |
//! | `state`, `state::evolve` | the durable state, and how events change it | D3, L4, W5's memory |
//! | `decide` | what a command would do | D3, L3 |
//! | `expiry` | what time alone brings about | L2, L5 |
//! | `leases`, `timers` | when something is due; volatile | L1, L2 |
//! | `guard` | how much of a service expiry may remove; volatile | L5 |
//! | [`view`] | which instances a view contains, and what changes did to it | W6 |
//!
//! This file joins them: it keeps the volatile side in step with the durable one. Deadlines follow from committed
//! records alone: whatever registers under a lease or releases its instances gives it a full TTL from the commit on; a
//! lease of which everything is held has no deadline and waits for its registrant until the hold ends.

mod decide;
mod expiry;
mod guard;
mod hashed;
mod leases;
mod state;
mod timers;
mod types;
pub mod view;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
};

use decide::Draft;
pub use decide::decide;
use expiry::Name;
pub use guard::Guard;
pub use leases::{LeaseClock, Trail};
pub use state::{Instances, Service, State};
use timers::Timers;
pub use types::*;
pub use view::Selector;

/// A map for what is looked up far more often than listed. The hash is fixed, so that the same history gives the same
/// state down to the order of iteration.
type FixedMap<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// The state, and the volatile things beside it.
#[derive(Clone, Debug)]
pub struct Core {
    state: State,
    leases: LeaseClock,
    guard: Guard,
    settings: Settings,
    /// The ends of holds.
    holds: Timers<Name>,
    /// The ends of overrides.
    overrides: Timers<Name>,
    /// The last wake-up, in mono ms.
    woke: Option<u64>,
}

impl Core {
    /// An empty registry.
    pub fn new(settings: Settings) -> Self {
        let state = State::default().with_remembered(settings.remembered_services);
        Self::around(state, settings)
    }

    /// What a store kept, taken up again at `now`. Every lease gets its full TTL, spread by up to 20% so that not all
    /// are due together (by a hash of the lease's id, so that the same data gives the same deadlines).
    ///
    /// Holds and overrides end at their wall times, but a hold not before its lease's TTL from now: time in which
    /// nobody could renew does not count.
    pub fn restore(
        settings: Settings,
        base: Base,
        tail: impl IntoIterator<Item = Committed>,
        now: Now,
    ) -> Self {
        let mut state = State::from_base(base).with_remembered(settings.remembered_services);
        for committed in tail {
            state.evolve(&committed);
        }
        Self::take_up(settings, state, now)
    }

    /// As [`restore`](Self::restore), of a state that was replayed already.
    pub fn take_up(settings: Settings, state: State, now: Now) -> Self {
        let mut core = Self::around(state, settings);
        core.woke = Some(now.mono);
        for (id, lease) in core.state.leases() {
            if core.state.is_dormant(id) {
                core.leases.suspend(id, || kin(lease));
            } else {
                let spread = hash(id) % (lease.ttl / 5 + 1);
                let deadline = now.mono.saturating_add(lease.ttl).saturating_add(spread);
                core.leases.grant(*id, deadline, || kin(lease));
            }
            for (key, instance) in decide::held_of(&core.state, *id) {
                let held = core.state.instance(key, instance).and_then(|instance| instance.held.as_ref());
                let at = held.map_or(now.mono, |held| mono_of(now, held.until));
                core.holds.set((key.clone(), instance.clone()), at.max(now.mono.saturating_add(lease.ttl)));
            }
        }
        for (name, over) in core.state.overrides_after(None) {
            if let Some(expires_at) = over.expires_at {
                core.overrides.set(name.clone(), mono_of(now, expires_at));
            }
        }
        core
    }

    /// The durable state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The deadlines of the leases.
    pub fn leases(&self) -> &LeaseClock {
        &self.leases
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What a command would do: see [`decide`](decide()). If a `Register` changes nothing, it still renews its lease:
    /// [`touch`](Self::touch).
    pub fn decide(&self, now: Now, command: &Command) -> Result<Proposal, Rejection> {
        decide(&self.state, &self.settings, now, command)
    }

    /// Applies a committed record, at the time of its commit.
    pub fn evolve(&mut self, now: Now, committed: &Committed) -> Vec<ServiceChange> {
        let record = &committed.record;
        // What is renewed is named by instance too, and an instance may be gone afterwards.
        let mut renewed = Vec::new();
        let mut concerned = Vec::new();
        for event in &record.events {
            match event {
                Event::LeaseGranted { lease, registrant, .. } => {
                    renewed.push(*lease);
                    // What a newer generation supersedes is no longer as its last renewal found it.
                    for older in self.state.newest_before(registrant) {
                        self.leases.disturb(&older);
                    }
                }
                Event::Registered { lease, .. } => renewed.push(*lease),
                Event::Released { key, id } => {
                    renewed.extend(self.state.instance(key, id).map(|instance| instance.lease));
                }
                Event::LeaseEnded { lease } => concerned.push(*lease),
                Event::OverrideSet { key, id, over } => {
                    let name = (key.clone(), id.clone());
                    match over.expires_at {
                        Some(expires_at) => self.overrides.set(name, mono_of(now, expires_at)),
                        None => self.overrides.cancel(&name),
                    }
                }
                Event::OverrideCleared { key, id } => self.overrides.cancel(&(key.clone(), id.clone())),
                Event::Removed { .. } | Event::Held { .. } => {}
            }
        }
        let changes = self.state.evolve(committed);
        let on_purpose = matches!(record.cause, Cause::Deregister | Cause::ResolveHold);
        for change in &changes {
            for item in &change.items {
                concerned.extend([&item.before, &item.after].into_iter().flatten().map(|it| it.lease));
                self.follow_hold(now, &change.key, item);
            }
            let left = || change.items.iter().filter(|item| item.after.is_none()).count();
            if on_purpose {
                self.guard.deregistered(&change.key, left());
            } else if record.cause == Cause::Expire {
                self.guard.left(&change.key, left());
            }
        }
        each_once(&mut renewed);
        each_once(&mut concerned);
        for id in concerned.iter().filter(|id| renewed.binary_search(id).is_err()) {
            self.follow_lease(now, id, record.cause);
        }
        for id in renewed {
            self.touch(now, &id);
        }
        changes
    }

    /// A full TTL from `now` for a lease that was registered under, whatever it was.
    pub fn touch(&mut self, now: Now, id: &LeaseId) {
        match self.state.lease(id) {
            Some(lease) => self.leases.grant(*id, now.mono.saturating_add(lease.ttl), || kin(lease)),
            None => self.leases.remove(id),
        }
    }

    /// Renews a lease.
    ///
    /// A superseded lease is not renewed: it ends at its deadline. If something of the lease is held, its hold does
    /// not end before a TTL from now, so that the release has time to commit.
    pub fn renew(&mut self, now: Now, id: &LeaseId) -> Renewal {
        if self.renew_quiet(now, id, &mut Trail::default()) {
            return Renewal::Renewed;
        }
        if self.leases.in_flight(id) {
            return Renewal::Unknown;
        }
        let Some(lease) = self.state.lease(id) else { return Renewal::Unknown };
        if decide::is_superseded(&self.state, lease) {
            return Renewal::Superseded;
        }
        self.leases.renew(id, now.mono.saturating_add(lease.ttl));
        if self.state.held_of(id) > 0 {
            for (key, instance) in decide::held_of(&self.state, *id) {
                let name = (key.clone(), instance.clone());
                self.holds.postpone(&name, now.mono.saturating_add(lease.ttl));
            }
            return Renewal::RenewedHeld;
        }
        if lease.lost.is_empty() {
            self.leases.quieten(id, lease.ttl);
            return Renewal::Renewed;
        }
        Renewal::Partial(
            lease.lost.iter().map(|((key, id), loss)| (key.clone(), id.clone(), *loss)).collect(),
        )
    }

    /// Renews a lease of which nothing has to be told. False, and nothing happens, if that is not certain: then
    /// [`renew`](Self::renew) says what there is. `trail` is of whoever renews.
    pub fn renew_quiet(&mut self, now: Now, id: &LeaseId, trail: &mut Trail) -> bool {
        self.leases.renew_quiet(id, now.mono, trail)
    }

    /// When [`tick`](Self::tick) has something to do, in mono ms: never later than the first thing is due. It may be
    /// earlier where leases were renewed since; a tick at that time corrects it.
    pub fn next_deadline(&self) -> Option<u64> {
        [self.leases.next(), self.holds.next(), self.overrides.next()].into_iter().flatten().min()
    }

    /// When it was told of a wake-up last, or taken up, in mono ms.
    pub fn woke(&self) -> Option<u64> {
        self.woke
    }

    /// The loop woke, and had asked to be woken at `due` (`u64::MAX`: by a command only). Call it on every wake-up,
    /// before anything else.
    ///
    /// If it woke more than `stall_after` late, nobody knows when within the sleep the stall began, so all the time
    /// since the wake-up before does not count: every lease deadline moves by it. Returns it in ms, or 0. As after a
    /// restart, no hold ends before its lease's TTL from now: nobody could renew.
    pub fn wake(&mut self, now: Now, due: u64) -> u64 {
        let before = self.woke.replace(now.mono).unwrap_or(due);
        // Something overdue is no stall in itself: it may wait for a commit in progress.
        if now.mono <= due.max(before).saturating_add(self.settings.stall_after) {
            return 0;
        }
        let stall = now.mono.saturating_sub(before);
        self.leases.shift(stall);
        for name in self.holds.waiting() {
            let (key, id) = &name;
            let lease = self.state.instance(key, id).and_then(|instance| self.state.lease(&instance.lease));
            let ttl = lease.map_or(0, |lease| lease.ttl);
            self.holds.postpone(&name, now.mono.saturating_add(ttl));
        }
        stall
    }

    fn around(state: State, settings: Settings) -> Self {
        Self {
            state,
            leases: LeaseClock::default(),
            guard: Guard::default(),
            settings,
            holds: Timers::default(),
            overrides: Timers::default(),
            woke: None,
        }
    }

    fn follow_hold(&mut self, now: Now, key: &ServiceKey, item: &ItemChange) {
        let before = item.before.as_ref().and_then(|instance| instance.held.as_ref());
        let after = item.after.as_ref().and_then(|instance| instance.held.as_ref());
        if before == after {
            return;
        }
        let name = (key.clone(), item.id.clone());
        match after {
            Some(held) => self.holds.set(name, mono_of(now, held.until)),
            None => self.holds.cancel(&name),
        }
    }

    /// A record concerned a lease without renewing it.
    fn follow_lease(&mut self, now: Now, id: &LeaseId, cause: Cause) {
        if self.state.lease(id).is_none() {
            return self.leases.remove(id);
        }
        self.leases.disturb(id);
        let dormant = self.state.is_dormant(id);
        if dormant && cause == Cause::Expire {
            self.leases.suspend(id, || 0);
        } else if !dormant && self.leases.deadline(id).is_none() {
            // The last held one went, and the lease has losses to tell: its registrant has a TTL to come and ask.
            self.touch(now, id);
        } else if cause == Cause::HoldExpire {
            self.leases.settle(id);
        }
    }
}

/// Leases of one service have the same: that of the first instance, when the lease began.
fn kin(lease: &Lease) -> u32 {
    let first = lease.instances.iter().next().map(|(service, _)| service);
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(first);
    u32::try_from(hash & u64::from(u32::MAX)).unwrap_or(0)
}

/// Nearly always one or two, of one lease.
fn each_once(leases: &mut Vec<LeaseId>) {
    leases.sort_unstable();
    leases.dedup();
}

/// A wall time as a mono time, by what remains now: the wall clock may jump later.
fn mono_of(now: Now, wall: u64) -> u64 {
    now.mono.saturating_add(wall.saturating_sub(now.wall))
}

/// A fixed hash: the finalizer of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators",
/// OOPSLA 2014) over both halves of the id.
fn hash(id: &LeaseId) -> u64 {
    let wide = u128::from_be_bytes(id.0);
    #[allow(clippy::cast_possible_truncation)] // both halves are taken, one by one
    let halves = [(wide >> 64) as u64, wide as u64];
    halves.iter().fold(0, |hash, half| {
        let mut mixed = (hash ^ half).wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    })
}
