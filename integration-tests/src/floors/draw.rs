//! What is asked of a registry, drawn from a seed: few leases, registrants, services and ids, so that collisions are
//! common. Each thing asked can be told from all others by what it leaves behind.
//!
//! Beside them, writers of whole batches that nobody else touches, whose leases never run out: what they wrote is there.

use std::{collections::BTreeMap, sync::Arc};

use registry_server::core::{Command, LeaseId, OverrideSpec, Registrant, ServiceKey, Spec, Status};

use crate::history::{Action, Ask, Granted, Laid, Lease, Millis, Name, VALUE_TAG};

/// Leases that compete.
pub(super) const LEASES: u128 = 6;
/// Services that they compete in.
pub(super) const SERVICES: [&str; 2] = ["s0", "s1"];
const IDS: u8 = 9;
/// Where batches are written.
pub(super) const BATCHES: &str = "b";
/// Batch writers.
pub(super) const WRITERS: usize = 2;
const BATCH: usize = 3;
/// The longest TTL of leases that compete.
pub(super) const LONGEST_TTL: Millis = 3_000;
const DAY: Millis = 24 * 3_600_000;

/// Draws.
#[derive(Debug)]
pub(super) struct Draw {
    pub(super) rng: fastrand::Rng,
    /// Instances so large that few fit into a message.
    pub(super) fat: bool,
    number: u64,
}

/// One batch of one writer.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    lease: Lease,
    pub(super) members: Arc<[String]>,
}

/// A thing to ask, as the registry takes it and as the history keeps it.
#[derive(Clone, Debug)]
pub(super) struct Drawn {
    pub(super) number: u64,
    pub(super) ask: Ask,
    pub(super) command: Command,
}

impl Draw {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let fat = rng.u8(..8) == 0;
        Self { rng, fat, number: 0 }
    }

    /// One in `of`.
    pub(super) fn one_in(&mut self, of: u32) -> bool {
        self.rng.u32(..of) == 0
    }

    /// A number for something asked.
    pub(super) fn number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// Any lease that competes.
    pub(super) fn lease(&mut self) -> Lease {
        self.rng.u128(..LEASES)
    }

    /// A command. `incarnation` says which one of an instance is known; 0: none.
    pub(super) fn command(&mut self, incarnation: &dyn Fn(&Name) -> u64) -> Drawn {
        match self.rng.u8(..20) {
            0..12 => self.register(),
            12..15 => self.deregister(incarnation),
            15..18 => self.operate(),
            _ => self.resolve(),
        }
    }

    /// All the batches there are.
    pub(super) fn batches() -> Vec<Batch> {
        let batch = |writer: usize, batch: usize| Batch {
            lease: 1_000 + writer as Lease,
            members: (0..BATCH).map(|member| format!("w{writer}-b{batch}-{member}")).collect(),
        };
        (0..WRITERS).flat_map(|writer| [batch(writer, 0), batch(writer, 1)]).collect()
    }

    /// The next write of a batch.
    pub(super) fn write(&mut self, batch: &Batch) -> (Drawn, Action) {
        let number = self.number();
        let names: Vec<Name> = batch.members.iter().map(|id| (BATCHES.into(), id.as_str().into())).collect();
        if self.one_in(6) {
            let instances = names.iter().map(|name| (key(&name.0), name.1.clone(), 0)).collect();
            let command = Command::Deregister { lease: None, instances, actor: actor(number) };
            let ask =
                Ask::Deregister { lease: None, names: names.into_iter().map(|name| (name, 0)).collect() };
            return (Drawn { number, ask, command }, Action::Delete);
        }
        let grant =
            Granted { lease: batch.lease, uid: format!("w{}", batch.lease).into(), generation: 1, ttl: DAY };
        let specs = names.into_iter().map(|name| (name, self.spec(number))).collect();
        (registration(number, grant, specs), Action::Put(number))
    }

    fn register(&mut self) -> Drawn {
        let number = self.number();
        let lease = self.lease();
        // Mostly the lease's own registrant, two leases a registrant; now and then somebody else.
        let uid = if self.one_in(10) { 9 } else { lease / 2 };
        let grant = Granted {
            lease,
            uid: format!("u{uid}").into(),
            generation: if self.one_in(8) { 2 } else { 1 },
            ttl: self.rng.u64(1..=LONGEST_TTL / 1_000) * 1_000,
        };
        let mut specs = BTreeMap::new();
        for _ in 0..self.rng.usize(1..7) {
            let name = self.name();
            specs.insert(name, self.spec(number));
        }
        registration(number, grant, specs.into_iter().collect())
    }

    fn deregister(&mut self, incarnation: &dyn Fn(&Name) -> u64) -> Drawn {
        let number = self.number();
        let lease = self.rng.bool().then(|| self.lease());
        let mut names = BTreeMap::new();
        // At least one, unless a lease is to go.
        for _ in 0..self.rng.usize(usize::from(lease.is_none())..3) {
            let name = self.name();
            let known = incarnation(&name);
            // Of another incarnation now and then, which must not be removed.
            let expected = match self.rng.u8(..4) {
                0 => 0,
                1 => known.saturating_sub(1),
                _ => known,
            };
            names.insert(name, expected);
        }
        let instances = names.iter().map(|((service, id), it)| (key(service), id.clone(), *it)).collect();
        let command = Command::Deregister { lease: lease.map(lease_id), instances, actor: actor(number) };
        Drawn { number, ask: Ask::Deregister { lease, names: names.into_iter().collect() }, command }
    }

    fn operate(&mut self) -> Drawn {
        let number = self.number();
        let name = self.name();
        let set = (!self.one_in(3)).then(|| {
            let weight = self.rng.bool().then(|| self.rng.u16(..4));
            let status = (weight.is_none() || self.rng.bool()).then(|| self.status());
            let expires_in = self.rng.bool().then(|| self.rng.u64(300..6_000));
            OverrideSpec { weight, status, expires_in }
        });
        let laid = set.as_ref().map(|set| Laid {
            weight: set.weight.map(u32::from),
            status: set.status.map(super::witness::status),
            until: set.expires_in,
        });
        let command = Command::SetOverride {
            key: key(&name.0),
            id: name.1.clone(),
            set,
            actor: actor(number),
            reason: "drawn".into(),
        };
        Drawn { number, ask: Ask::Override { name, set: laid }, command }
    }

    fn resolve(&mut self) -> Drawn {
        let number = self.number();
        let (service, id) = self.name();
        let ids = if self.rng.bool() { vec![] } else { vec![id] };
        let evict = self.rng.bool();
        let command =
            Command::ResolveHold { key: key(&service), ids: ids.clone(), evict, actor: actor(number) };
        Drawn { number, ask: Ask::Resolve { service, ids, evict }, command }
    }

    fn name(&mut self) -> Name {
        let service = SERVICES[self.rng.usize(..SERVICES.len())];
        (service.into(), format!("i{}", self.rng.u8(..IDS)).into())
    }

    fn status(&mut self) -> Status {
        [Status::Up, Status::Up, Status::Draining, Status::Down][self.rng.usize(..4)]
    }

    fn spec(&mut self, number: u64) -> Arc<Spec> {
        let mut tags = BTreeMap::from([
            (Arc::from(VALUE_TAG), Arc::from(number.to_string())),
            (Arc::from("parity"), Arc::from(if self.rng.bool() { "even" } else { "odd" })),
        ]);
        if self.fat {
            tags.insert("ballast".into(), "x".repeat(self.rng.usize(..60_000)).into());
        }
        Arc::new(Spec {
            address: "10.0.0.1:80".into(),
            weight: self.rng.u16(..4),
            tags: tags.into(),
            region: "r".into(),
            zone: format!("z{}", self.rng.u8(..2)).into(),
            status: self.status(),
        })
    }
}

fn registration(number: u64, grant: Granted, specs: Vec<(Name, Arc<Spec>)>) -> Drawn {
    let names = specs.iter().map(|(name, _)| name.clone()).collect();
    let instances = specs.into_iter().map(|((service, id), spec)| (key(&service), id, spec)).collect();
    let registrant = Registrant { uid: Arc::clone(&grant.uid), generation: grant.generation };
    let command = Command::Register { lease: lease_id(grant.lease), registrant, ttl: grant.ttl, instances };
    Drawn { number, ask: Ask::Register { grant, names }, command }
}

fn actor(number: u64) -> Arc<str> {
    format!("op{number}").into()
}

/// A service, as the registry names it.
pub(super) fn key(service: &str) -> ServiceKey {
    ServiceKey { namespace: "default".into(), service: service.into() }
}

/// A lease, as the registry names it.
pub(super) fn lease_id(lease: Lease) -> LeaseId {
    LeaseId((lease + 1).to_be_bytes())
}

/// A lease, as the history names it.
pub(super) fn lease_number(lease: LeaseId) -> Lease {
    u128::from_be_bytes(lease.0) - 1
}
