//! W5 over restarts, on the embedded store with logs so small that they are folded all the time: what a watcher could
//! resume from in the life before, it can resume from in the next.

use std::{collections::BTreeMap, time::Duration};

use registry_proto::v1::{self, ResetReason};

use super::*;
use crate::{
    core::{Registrant, Selector, ServiceKey, Spec, Status},
    hub::{LogLimits, Signal, Start},
    runtime::{SimulatedClock, TokioSpawn},
    store::{EmbeddedOptions, EmbeddedStore},
};

const SERVICES: u64 = 3;
const WALL: u64 = 1_000_000_000;

struct World {
    directory: tempfile::TempDir,
    limits: LogLimits,
    /// Of the wall clock at the next start.
    wall: u64,
}

/// What a watcher is told at once when it resumes.
#[derive(Debug, PartialEq, Eq)]
enum Resumed {
    Current,
    Delta { previous: Revision, revision: Revision, digest: u64 },
    Reset(ResetReason),
}

impl World {
    fn new(count: usize, age: Duration) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self { directory, limits: LogLimits { count, age, bytes: 1 << 20 }, wall: WALL }
    }

    fn start(&self) -> (Registry, WriterTask) {
        let options = EmbeddedOptions {
            segment_bytes: 2_000,
            grow_bytes: 0,
            history_records: self.limits.count as u64,
            history_age: self.limits.age,
            history_bytes: 1 << 20,
            ..EmbeddedOptions::new(crate::server::fold(&Settings::default()), 7)
        };
        let store = EmbeddedStore::open(self.directory.path(), options).expect("it opens");
        store.settle();
        let settings = HubSettings { log: self.limits.clone(), ..HubSettings::default() };
        let runtime = Runtime::new(SimulatedClock::starting_at(self.wall), TokioSpawn, 1);
        let (registry, _, task) =
            Registry::start(Box::new(store), Settings::default(), settings, &runtime).expect("it starts");
        (registry, task)
    }

    /// The revision of the newest base.
    fn folded(&self) -> Revision {
        let names = std::fs::read_dir(self.directory.path()).expect("a directory");
        let names = names.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"));
        names.filter_map(|name| name.strip_prefix("base-")?.parse().ok()).max().unwrap_or(0)
    }
}

fn key(service: u64) -> ServiceKey {
    ServiceKey { namespace: "n".into(), service: format!("s{service}").into() }
}

fn register(service: u64, id: u64, weight: u16) -> Command {
    let spec = Spec {
        address: "127.0.0.1:1".into(),
        weight,
        tags: BTreeMap::new().into(),
        region: "".into(),
        zone: "".into(),
        status: Status::Up,
    };
    Command::Register {
        lease: LeaseId(u128::from(service).to_be_bytes()),
        registrant: Registrant { uid: format!("r{service}").into(), generation: 1 },
        ttl: 86_400_000,
        instances: vec![(key(service), format!("i{id}").into(), Arc::new(spec))],
    }
}

fn remove(service: u64, id: u64) -> Command {
    let instances = vec![(key(service), format!("i{id}").into(), 0)];
    Command::Deregister { lease: None, instances, actor: "a".into() }
}

fn resume(registry: &Registry, service: u64, revision: Revision) -> Resumed {
    let hub = registry.hub();
    let start = Start::Resume { epoch: hub.epoch().to_owned(), revision };
    let mut cursor =
        hub.watch(&key(service), &Selector::default(), false, &start, &Signal::new(), 0).expect("a view");
    let Some(step) = cursor.next_step() else { return Resumed::Current };
    if let Some(reason) = step.reset_reason {
        return Resumed::Reset(reason);
    }
    let delta: v1::Change = prost::Message::decode(step.part.as_message()).expect("a change");
    Resumed::Delta { previous: delta.previous_revision, revision: delta.revision, digest: delta.digest }
}

/// Writes what a seed says: instances that come, change and go, services that empty among them.
async fn write_some(registry: &Registry, random: &mut fastrand::Rng, writes: usize) {
    for _ in 0..writes {
        let (service, id) = (random.u64(..SERVICES), random.u64(..3));
        let command = if random.bool() { remove(service, id) } else { register(service, id, random.u16(..)) };
        registry.write(command).await.expect("written");
    }
}

fn resumptions(registry: &Registry) -> Vec<((u64, Revision), Resumed)> {
    let all = (0..SERVICES).flat_map(|service| (0..=registry.hub().head()).map(move |at| (service, at)));
    all.map(|(service, at)| ((service, at), resume(registry, service, at))).collect()
}

#[tokio::test(start_paused = true)]
async fn w5_a_restart_forgets_nothing_that_the_life_before_knew() {
    for (seed, count) in (0..).zip([1, 7, 30, 120, 10_000]) {
        let (world, mut random) =
            (World::new(count, Duration::from_mins(10)), fastrand::Rng::with_seed(seed));
        let mut compared = 0;
        for _ in 0..5 {
            let (registry, task) = world.start();
            write_some(&registry, &mut random, 60).await;
            let before = resumptions(&registry);
            drop(registry);
            task.stop().await;
            let (registry, task) = world.start();
            for ((service, at), was) in before {
                let is = resume(&registry, service, at);
                if was == Resumed::Reset(ResetReason::HistoryGone) {
                    // The store may keep rather more than the recent log did; it never says that nothing happened.
                    assert_ne!(is, Resumed::Current, "seed {seed}: s{service} at {at}");
                } else {
                    assert_eq!(is, was, "seed {seed}: s{service} at {at}");
                    compared += 1;
                }
            }
            drop(registry);
            task.stop().await;
        }
        assert!(compared > 0);
        assert_eq!(world.folded() > 0, count < 10_000, "seed {seed}: what was to be folded was, or was not");
    }
}

#[tokio::test(start_paused = true)]
async fn w5_a_removal_before_the_base_is_known_by_its_revision_and_one_after_it_in_full() {
    let world = World::new(20, Duration::from_mins(10));
    let (registry, task) = world.start();
    let came = registry.write(register(0, 0, 1)).await.expect("written").revision;
    let went = registry.write(remove(0, 0)).await.expect("written").revision;
    for weight in 0..200 {
        registry.write(register(1, 0, weight)).await.expect("written");
    }
    let late = registry.write(register(2, 0, 1)).await.expect("written").revision;
    let gone = registry.write(remove(2, 0)).await.expect("written").revision;
    drop(registry);
    task.stop().await;
    let (registry, _task) = world.start();
    assert!(world.folded() > went, "the removal was folded");
    assert_eq!(resume(&registry, 0, came), Resumed::Reset(ResetReason::HistoryGone));
    assert_eq!(resume(&registry, 0, went), Resumed::Current, "at the last change nothing is new");
    assert_eq!(resume(&registry, 0, late), Resumed::Current);
    assert!(world.folded() < late, "the other one was not");
    assert_eq!(resume(&registry, 2, late), Resumed::Delta { previous: late, revision: gone, digest: 0 });
    assert_eq!(resume(&registry, 2, gone), Resumed::Current);
}

#[tokio::test(start_paused = true)]
async fn w5_age_goes_by_the_wall_time_of_the_records_also_while_nothing_ran() {
    let mut world = World::new(10_000, Duration::from_mins(1));
    let (registry, task) = world.start();
    let old = registry.write(register(0, 0, 1)).await.expect("written").revision;
    registry.write(register(0, 0, 2)).await.expect("written");
    tokio::time::sleep(Duration::from_secs(50)).await;
    let young = registry.write(register(1, 0, 1)).await.expect("written").revision;
    let last = registry.write(register(1, 0, 2)).await.expect("written").revision;
    drop(registry);
    task.stop().await;
    for (away, first_is_known, second_is_known) in [(55, true, true), (70, false, true), (120, false, false)]
    {
        world.wall = WALL + away * 1_000;
        let (registry, task) = world.start();
        let known = |service, at| match resume(&registry, service, at) {
            Resumed::Delta { .. } => true,
            Resumed::Reset(ResetReason::HistoryGone) => false,
            other => panic!("{away} s: s{service} at {at}: {other:?}"),
        };
        assert_eq!((known(0, old), known(1, young)), (first_is_known, second_is_known), "after {away} s");
        assert_eq!(
            resume(&registry, 1, last),
            Resumed::Current,
            "the last change is known however old it is"
        );
        drop(registry);
        task.stop().await;
    }
}
