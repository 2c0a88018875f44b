//! The hosts together, stepped through a script.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::{
    disk::SimulatedDisk,
    hosts,
    script::{Fault, Hosts, Script},
    trace::{Event, Trace},
};

/// Whether registries keep what they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Over restarts, not.
    Memory,
    /// Over power losses.
    Disk,
}

/// How many of everything there are.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of everything random: latencies, the order of hosts, jitter, picks.
    pub seed: u64,
    /// Registries, each a registry of its own. Their names: `registry-0` and so on.
    pub registries: usize,
    /// Whether they keep what they hold.
    pub storage: Storage,
    /// Instances: `instance-0` and so on, registered with every registry.
    pub instances: usize,
    /// Their TTL.
    pub ttl: Duration,
    /// Watchers: `watcher-0` and so on.
    pub watchers: usize,
    /// Callers: `caller-0` and so on.
    pub callers: usize,
    /// The pause between two calls.
    pub pause: Duration,
}

impl Settings {
    /// One durable registry, three instances, a watcher, a caller.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            registries: 1,
            storage: Storage::Disk,
            instances: 3,
            ttl: Duration::from_secs(15),
            watchers: 1,
            callers: 1,
            pause: Duration::from_millis(100),
        }
    }
}

/// A running system.
pub struct Simulation {
    sim: turmoil::Sim<'static>,
    settings: Settings,
    trace: Trace,
    disks: BTreeMap<String, SimulatedDisk>,
    weights: BTreeMap<String, watch::Sender<u32>>,
}

impl Simulation {
    /// All hosts, started.
    pub fn new(settings: Settings) -> Self {
        let mut sim = turmoil::Builder::new()
            .rng_seed(settings.seed)
            .tick_duration(Duration::from_millis(1))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(20))
            .tcp_capacity(1 << 16)
            .simulation_duration(Duration::MAX)
            .enable_random_order()
            .build();
        let trace = Trace::default();
        let mut random = fastrand::Rng::with_seed(settings.seed);
        let registries = names("registry", settings.registries);
        let mut disks = BTreeMap::new();
        for name in registries.clone() {
            let storage = match settings.storage {
                Storage::Memory => hosts::Storage::Memory,
                Storage::Disk => {
                    let disk = SimulatedDisk::default();
                    disks.insert(name.clone(), disk.clone());
                    hosts::Storage::Disk(disk)
                }
            };
            let (seeds, trace) = (Seeds::new(&mut random), trace.clone());
            sim.host(name.clone(), move || {
                hosts::registry(name.clone(), storage.clone(), seeds.next(), trace.clone())
            });
        }
        let mut weights = BTreeMap::new();
        for name in names("instance", settings.instances) {
            let (asked, weight) = watch::channel(1);
            weights.insert(name.clone(), asked);
            let (seeds, trace, ttl) = (Seeds::new(&mut random), trace.clone(), settings.ttl);
            let registries = registries.clone();
            sim.host(name.clone(), move || {
                let (registries, weight) = (registries.clone(), weight.clone());
                hosts::instance(name.clone(), registries, weight, ttl, seeds.next(), trace.clone())
            });
        }
        for name in names("watcher", settings.watchers) {
            let (seeds, trace, registries) = (Seeds::new(&mut random), trace.clone(), registries.clone());
            sim.host(name.clone(), move || {
                hosts::watcher(name.clone(), registries.clone(), seeds.next(), trace.clone())
            });
        }
        for name in names("caller", settings.callers) {
            let (seeds, trace, registries) = (Seeds::new(&mut random), trace.clone(), registries.clone());
            let pause = settings.pause;
            sim.host(name.clone(), move || {
                hosts::caller(name.clone(), registries.clone(), seeds.next(), pause, trace.clone())
            });
        }
        Self { sim, settings, trace, disks, weights }
    }

    /// So many faults from the seed, on these hosts, beginning when everyone is at work.
    pub fn random_script(&self, faults: usize) -> Script {
        let (registries, instances) =
            (names("registry", self.settings.registries), names("instance", self.settings.instances));
        let mut clients = names("watcher", self.settings.watchers);
        clients.extend(names("caller", self.settings.callers));
        let hosts = Hosts { registries: &registries, instances: &instances, clients: &clients };
        Script::random(self.settings.seed, Duration::from_secs(5), faults, &hosts)
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.sim.elapsed()
    }

    /// What everyone saw so far.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Runs the script, and on until then.
    pub fn run(&mut self, script: &Script, until: Duration) {
        for (at, fault) in script.faults() {
            self.run_until(*at);
            self.apply(fault);
        }
        self.run_until(until);
    }

    /// Runs until then.
    pub fn run_until(&mut self, until: Duration) {
        while self.now() < until {
            self.step();
        }
    }

    /// Runs until the trace is such, and panics if it is not within `limit`.
    pub fn run_until_seen(&mut self, what: &str, limit: Duration, seen: impl Fn(&Trace) -> bool) -> Duration {
        let last = self.now() + limit;
        while !seen(&self.trace) {
            assert!(self.now() < last, "{what}: not within {limit:?}\n{}", self.trace);
            self.step();
        }
        self.now()
    }

    /// Does it now.
    pub fn apply(&mut self, fault: &Fault) {
        self.trace.add(self.now(), Event::Fault(fault.clone()));
        match fault {
            Fault::Partition(a, b) => self.sim.partition(a.clone(), b.clone()),
            Fault::Loss(a, b, share) => self.sim.set_link_fail_rate(a.clone(), b.clone(), *share),
            Fault::Repair(a, b) => {
                self.sim.set_link_fail_rate(a.clone(), b.clone(), 0.0);
                self.sim.repair(a.clone(), b.clone());
            }
            Fault::Crash(host) => {
                if let Some(disk) = self.disks.get(host) {
                    disk.cut_power();
                }
                self.sim.crash(host.clone());
            }
            Fault::Start(host) => {
                if let Some(disk) = self.disks.get(host) {
                    disk.restore_power();
                }
                self.sim.bounce(host.clone());
            }
            Fault::Weight(instance, weight) => {
                if let Some(asked) = self.weights.get(instance) {
                    asked.send_replace(*weight);
                }
            }
        }
    }

    /// The weights asked for last, of all instances.
    pub fn weights(&self) -> super::trace::Seen {
        self.weights.iter().map(|(name, weight)| (name.clone(), *weight.borrow())).collect()
    }

    fn step(&mut self) {
        if let Err(error) = self.sim.step() {
            panic!("a host ended with {error}\n{}", self.trace);
        }
    }
}

impl std::fmt::Debug for Simulation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulation").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// A host's seeds: another one at each start.
#[derive(Clone)]
struct Seeds(Arc<AtomicU64>);

impl Seeds {
    fn new(random: &mut fastrand::Rng) -> Self {
        Self(Arc::new(AtomicU64::new(random.u64(..))))
    }

    fn next(&self) -> u64 {
        self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed)
    }
}

fn names(kind: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{kind}-{number}")).collect()
}
