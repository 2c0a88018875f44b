//! A registry without a server: a core, a clock that is set by hand, and a store that is a list.

use std::sync::Arc;

use crate::core::*;

/// Wall time runs this far ahead of mono time.
pub(super) const WALL: u64 = 1_000_000;

pub(super) struct Sim {
    pub(super) core: Core,
    pub(super) now: Now,
    pub(super) log: Vec<Committed>,
    pub(super) changes: Vec<ServiceChange>,
    revision: Revision,
}

impl Sim {
    pub(super) fn new(settings: Settings) -> Self {
        let now = Now { mono: 10_000, wall: 10_000 + WALL };
        let mut core = Core::new(settings);
        core.wake(now, u64::MAX);
        Self { core, now, log: Vec::new(), changes: Vec::new(), revision: 0 }
    }

    pub(super) fn commit(&mut self, proposal: Proposal) -> Vec<ServiceChange> {
        assert!(!proposal.record.events.is_empty(), "an empty record is never committed");
        self.revision = self.next_revision();
        let committed = Committed { revision: self.revision, record: proposal.record };
        let changes = self.core.evolve(self.now, &committed);
        self.log.push(committed);
        self.changes.extend(changes.iter().cloned());
        changes
    }

    /// Revisions grow and may skip.
    pub(super) fn next_revision(&self) -> Revision {
        self.revision + 1 + self.revision % 3
    }

    /// Decides and commits. The events that came of it.
    pub(super) fn run(&mut self, command: &Command) -> Result<Vec<Event>, Rejection> {
        let proposal = self.core.decide(self.now, command)?;
        let events = proposal.record.events.clone();
        if events.is_empty() {
            if let Command::Register { lease, .. } = command {
                self.core.touch(self.now, lease);
            }
        } else {
            self.commit(proposal);
        }
        Ok(events)
    }

    pub(super) fn renew(&mut self, id: u8) -> Renewal {
        let renewal = self.renew_core(&lease(id));
        if renewal == Renewal::RenewedHeld {
            self.run(&Command::RenewHeld { lease: lease(id) }).unwrap();
        }
        renewal
    }

    /// The core's own answer, which is the same whether or not it remembers which leases are quiet.
    pub(super) fn renew_core(&mut self, id: &LeaseId) -> Renewal {
        let mut disturbed = self.core.clone();
        disturbed.leases.disturb_all();
        let renewal = self.core.renew(self.now, id);
        assert_eq!(renewal, disturbed.renew(self.now, id), "{id} is quiet and had something to be told");
        assert_eq!(self.core.leases.deadline(id), disturbed.leases.deadline(id), "L1: {id}");
        renewal
    }

    pub(super) fn pass(&mut self, ms: u64) {
        self.now.mono += ms;
        self.now.wall += ms;
    }

    /// Everything that is due now. How many records it took.
    pub(super) fn tick(&mut self, max: usize) -> usize {
        let mut records = 0;
        while let Some(proposal) = self.core.tick(self.now, max) {
            self.commit(proposal);
            records += 1;
        }
        records
    }

    /// As the loop does: sleeps from deadline to deadline.
    pub(super) fn advance(&mut self, ms: u64) {
        let target = self.now.mono + ms;
        loop {
            let due = self.core.next_deadline().filter(|due| *due <= target);
            let at = due.unwrap_or(target).max(self.now.mono);
            self.pass(at - self.now.mono);
            assert_eq!(self.core.wake(self.now, at), 0);
            self.tick(1_000);
            if due.is_none() {
                return;
            }
        }
    }

    pub(super) fn restart(&mut self) {
        let base = self.core.state().to_base();
        self.core = Core::restore(self.core.settings().clone(), base, [], self.now);
    }

    pub(super) fn ids(&self, service: u8) -> Vec<String> {
        let service = self.core.state().service(&key(service));
        service.into_iter().flat_map(|it| it.instances.keys()).map(ToString::to_string).collect()
    }

    pub(super) fn held(&self, service: u8) -> Vec<String> {
        let all = self.core.state().service(&key(service)).into_iter().flat_map(|it| it.instances.values());
        all.filter(|it| it.held.is_some()).map(|it| it.id.to_string()).collect()
    }

    pub(super) fn at(&self, service: u8, name: u8) -> Option<Arc<Instance>> {
        self.core.state().instance(&key(service), &id(name)).cloned()
    }
}

pub(super) fn key(n: u8) -> ServiceKey {
    ServiceKey { namespace: "default".into(), service: format!("s{n}").into() }
}

pub(super) fn id(n: u8) -> InstanceId {
    format!("i{n}").into()
}

pub(super) fn lease(n: u8) -> LeaseId {
    LeaseId([n; 16])
}

pub(super) fn registrant(uid: u8, generation: u64) -> Registrant {
    Registrant { uid: format!("u{uid}").into(), generation }
}

pub(super) fn spec(weight: u16) -> Arc<Spec> {
    let parity: Arc<str> = if weight.is_multiple_of(2) { "even" } else { "odd" }.into();
    Arc::new(Spec {
        address: "127.0.0.1:80".into(),
        weight,
        tags: [("parity".into(), parity)].into(),
        region: "".into(),
        zone: format!("z{}", weight % 3).into(),
        status: [Status::Up, Status::Up, Status::Draining, Status::Down][usize::from(weight % 4)],
    })
}

/// Registers `instances` (service, id) of weight 1 with a TTL of 1 s.
pub(super) fn register(n: u8, who: Registrant, instances: &[(u8, u8)]) -> Command {
    register_with(n, who, 1_000, instances.iter().map(|(service, name)| (*service, *name, 1)))
}

pub(super) fn register_with(
    n: u8,
    registrant: Registrant,
    ttl: u64,
    instances: impl IntoIterator<Item = (u8, u8, u16)>,
) -> Command {
    let instances =
        instances.into_iter().map(|(service, name, weight)| (key(service), id(name), spec(weight)));
    Command::Register { lease: lease(n), registrant, ttl, instances: instances.collect() }
}

pub(super) fn deregister(n: Option<u8>, instances: &[(u8, u8, Revision)]) -> Command {
    let instances = instances.iter().map(|(service, name, expected)| (key(*service), id(*name), *expected));
    Command::Deregister { lease: n.map(lease), instances: instances.collect(), actor: "someone".into() }
}

pub(super) fn override_with(service: u8, name: u8, set: Option<OverrideSpec>) -> Command {
    Command::SetOverride { key: key(service), id: id(name), set, actor: "operator".into(), reason: "".into() }
}

pub(super) fn down() -> OverrideSpec {
    OverrideSpec { weight: None, status: Some(Status::Down), expires_in: None }
}

pub(super) fn resolve(service: u8, names: &[u8], evict: bool) -> Command {
    let ids = names.iter().map(|name| id(*name)).collect();
    Command::ResolveHold { key: key(service), ids, evict, actor: "operator".into() }
}
