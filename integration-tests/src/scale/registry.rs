//! The rules and what is published, as the writer's loop drives them, one thing after the other: commands in groups, renewals,
//! what is due. Owns the simulated time and what each step took of the processor; knows no watchers.

use std::{collections::BTreeSet, ops::Range, sync::Arc, time::Duration};

use registry_server::{
    core::{
        Base, Command, Committed, Core, LeaseId, Now, Proposal, Registrant, Rejection, Renewal,
        ServiceChange, ServiceKey, Settings, Spec, State, Status,
    },
    hub::{Hub, HubSettings, LogLimits},
    registry::EXPIRED_AT_ONCE,
};

use super::{Untrue, meter::spend, sizes::Sizes};

/// How long every lease lives.
pub(super) const TTL: u64 = 15_000;
/// How often it is renewed.
pub(super) const RENEWED: u64 = TTL / 3;
/// Commands that are decided and committed together: as many as there are busy callers.
pub(super) const GROUP: usize = 64;
/// Wall time at the beginning.
const WALL: u64 = 1_700_000_000_000;
const EPOCH: &str = "simulated";

/// What each kind of work took of the processor.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    pub(super) decided: Duration,
    pub(super) applied: Duration,
    pub(super) published: Duration,
    pub(super) renewed: Duration,
    pub(super) due: Duration,
    /// Revisions that came to be.
    pub(super) revisions: usize,
    /// Renewals that were answered.
    pub(super) renewals: usize,
}

impl Spent {
    /// All of it.
    pub(super) fn all(&self) -> Duration {
        self.decided + self.applied + self.published + self.renewed + self.due
    }
}

/// The rules and, once there is one, the hub.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) sizes: Sizes,
    pub(super) core: Core,
    pub(super) hub: Hub,
    pub(super) now: u64,
    revision: u64,
    /// So that no change says what was said already.
    changes: u32,
    pub(super) rng: fastrand::Rng,
}

impl Registry {
    /// All instances, registered within one interval of renewal, and a hub that shows them. `looked`: called when the rules
    /// have all instances, before there is a hub.
    pub(super) fn load(
        sizes: Sizes,
        spent: &mut Spent,
        started: &mut Duration,
        looked: impl FnOnce(),
    ) -> Result<Self, Untrue> {
        let core = Core::new(Settings::default());
        let hub = hub_of(core.state(), 0, sizes);
        let rng = fastrand::Rng::with_seed(1);
        let mut registry = Self { sizes, core, hub, now: 0, revision: 0, changes: 0, rng };
        let all = sizes.all();
        let mut first = 0;
        while first < all {
            let last = all.min(first + u32::try_from(GROUP).unwrap_or(u32::MAX));
            let group: Vec<Command> = (first..last).map(|it| registry.register(it, 1)).collect();
            registry.now = RENEWED * u64::from(first) / u64::from(all);
            registry.commit(&group, spent)?;
            first = last;
        }
        registry.now = RENEWED;
        looked();
        registry.hub = spend(started, || hub_of(registry.core.state(), registry.now, sizes));
        Ok(registry)
    }

    /// A new start of the registry from what a store would have kept. Says how long the rules and the hub took.
    pub(super) fn restart(self, rules: &mut Duration, shown: &mut Duration) -> Self {
        let Self { sizes, core, hub, now, revision, changes, rng } = self;
        let base: Base = core.state().to_base();
        drop((core, hub));
        let time = Now { mono: now, wall: WALL + now };
        let core = spend(rules, || Core::restore(Settings::default(), base, [], time));
        let hub = spend(shown, || hub_of(core.state(), now, sizes));
        Self { sizes, core, hub, now, revision, changes, rng }
    }

    /// The name of a service.
    pub(super) fn key(service: u32) -> ServiceKey {
        ServiceKey { namespace: "default".into(), service: format!("service-{service:06}").into() }
    }

    /// A new change of an instance.
    pub(super) fn change(&mut self, instance: u32) -> Command {
        self.changes += 1;
        let weight = u16::try_from(2 + self.changes % 60_000).unwrap_or(u16::MAX);
        self.register(instance, weight)
    }

    /// So many changes of different instances, drawn among all.
    pub(super) fn changes(&mut self, count: usize) -> Vec<Command> {
        let all = self.sizes.all();
        let count = count.min(usize::try_from(all).unwrap_or(usize::MAX));
        let mut drawn = BTreeSet::new();
        while drawn.len() < count {
            drawn.insert(self.rng.u32(..all));
        }
        drawn.into_iter().map(|instance| self.change(instance)).collect()
    }

    /// Decides and applies a group of commands that have nothing to do with each other.
    pub(super) fn commit(
        &mut self,
        group: &[Command],
        spent: &mut Spent,
    ) -> Result<Vec<ServiceChange>, Untrue> {
        let (core, now) = (&self.core, self.time());
        let proposals = spend(&mut spent.decided, || {
            group
                .iter()
                .map(|command| core.decide(now, command))
                .collect::<Result<Vec<Proposal>, Rejection>>()
        });
        let proposals = proposals.map_err(|refused| Untrue(format!("a command was refused: {refused:?}")))?;
        Ok(self.apply(proposals, spent))
    }

    /// Publishes what commits did, and lets go of it.
    pub(super) fn publish(&self, changes: Vec<ServiceChange>, spent: &mut Spent) {
        let head = self.core.state().revision();
        spend(&mut spent.published, || {
            self.hub.publish(&changes, head);
            drop(changes);
        });
    }

    /// Renews leases; each must live.
    pub(super) fn renew(&mut self, leases: Range<u32>, spent: &mut Spent) -> Result<(), Untrue> {
        let ids: Vec<LeaseId> = leases.map(lease_of).collect();
        let (now, core) = (self.time(), &mut self.core);
        let refused = spend(&mut spent.renewed, || {
            ids.iter().filter(|lease| core.renew(now, lease) != Renewal::Renewed).count()
        });
        spent.renewals += ids.len();
        match refused {
            0 => Ok(()),
            _ => Err(Untrue(format!(
                "L1: {refused} of {} leases that were renewed in time are gone",
                ids.len()
            ))),
        }
    }

    /// Simulated time passes; then what is due is applied and published. Says how many instances that concerned.
    pub(super) fn pass(&mut self, ms: u64, spent: &mut Spent) -> usize {
        let due = self.core.next_deadline().unwrap_or(u64::MAX);
        self.now += ms;
        self.core.wake(self.time(), due);
        let mut concerned = 0;
        while let Some(proposal) = self.due(spent) {
            let changes = self.apply(vec![proposal], spent);
            concerned += changes.iter().map(|change| change.items.len()).sum::<usize>();
            self.publish(changes, spent);
        }
        concerned
    }

    fn due(&mut self, spent: &mut Spent) -> Option<Proposal> {
        let (now, core) = (self.time(), &mut self.core);
        spend(&mut spent.due, || core.tick(now, EXPIRED_AT_ONCE))
    }

    fn apply(&mut self, proposals: Vec<Proposal>, spent: &mut Spent) -> Vec<ServiceChange> {
        let (now, core) = (self.time(), &mut self.core);
        let (revision, revisions) = (&mut self.revision, &mut spent.revisions);
        spend(&mut spent.applied, || {
            let mut changes = Vec::with_capacity(proposals.len());
            // What changes nothing is answered without a revision.
            for Proposal { record, .. } in proposals.into_iter().filter(|it| !it.record.events.is_empty()) {
                *revision += 1;
                *revisions += 1;
                changes.extend(core.evolve(now, &Committed { revision: *revision, record }));
            }
            changes
        })
    }

    fn time(&self) -> Now {
        Now { mono: self.now, wall: WALL + self.now }
    }

    /// As the edge makes it of a request: every text is a copy of its own.
    fn register(&self, instance: u32, weight: u16) -> Command {
        let [_, a, b, c] = instance.to_be_bytes();
        let tags = [("version", "1.4.2"), ("team", "payments")];
        let spec = Spec {
            address: format!("10.{a}.{b}.{c}:8080").into(),
            weight,
            tags: tags.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
            region: "eu-west-1".into(),
            zone: "eu-west-1a".into(),
            status: Status::Up,
        };
        let id: Arc<str> = format!("i-{instance:08}").into();
        Command::Register {
            lease: lease_of(instance),
            registrant: Registrant { uid: format!("registrant-{instance:08}").into(), generation: 1 },
            ttl: TTL,
            instances: vec![(Self::key(self.sizes.service_of(instance)), id, Arc::new(spec))],
        }
    }
}

fn hub_of(state: &State, now: u64, sizes: Sizes) -> Hub {
    let count = usize::try_from(sizes.history).unwrap_or(usize::MAX);
    let log = LogLimits { count, ..LogLimits::default() };
    Hub::new(EPOCH, state, WALL + now, HubSettings { log, ..HubSettings::default() })
}

/// An instance's lease: 128 bits without order, as registrants draw them.
fn lease_of(instance: u32) -> LeaseId {
    LeaseId((u128::from(instance) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835).to_be_bytes())
}
