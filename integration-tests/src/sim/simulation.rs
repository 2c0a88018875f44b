//! The hosts together, stepped through a script.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{mpsc, watch};

use super::{
    disk::SimulatedDisk,
    hosts::{self, Given},
    instance::{InstanceSettings, Orders, instance},
    notebook::Notebook,
    raw::{self, Raw, Stage},
    repeat::Named,
    script::{Fault, Hosts, Script},
    settings::{Settings, Storage},
    trace::{Event, Trace},
    world::Clock,
};
use crate::history::History;

/// Messages take up to this long.
const USUAL_LATENCY: Duration = Duration::from_millis(20);
/// Processes that end within a millisecond at most.
const ENDED: usize = 1_024;
/// By then everyone is at work.
const AT_WORK: Duration = Duration::from_secs(5);

/// What a simulation leaves.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// What everyone saw.
    pub trace: Trace,
    /// What those who speak the protocol by hand wrote down.
    pub history: History,
    /// When it ended.
    pub until: Duration,
}

/// A running system.
pub struct Simulation {
    sim: turmoil::Sim<'static>,
    settings: Settings,
    trace: Trace,
    notebook: Notebook,
    stage: watch::Sender<Stage>,
    disks: BTreeMap<String, SimulatedDisk>,
    weights: BTreeMap<String, watch::Sender<u32>>,
    /// Drains of instances and stops of registries.
    orders: BTreeMap<String, watch::Sender<u64>>,
    hosts: Vec<String>,
    /// What of the network is cut.
    cuts: Vec<Fault>,
    /// Whose process ended in good order.
    ended: (mpsc::Sender<String>, mpsc::Receiver<String>),
    _named: Named,
}

impl Simulation {
    /// All hosts, started.
    pub fn new(settings: Settings) -> Self {
        let sim = turmoil::Builder::new()
            .rng_seed(settings.seed)
            .tick_duration(Duration::from_millis(1))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(USUAL_LATENCY)
            .tcp_capacity(1 << 16)
            .simulation_duration(Duration::MAX)
            .enable_random_order()
            .build();
        let mut it = Self {
            sim,
            trace: Trace::default(),
            notebook: Notebook::default(),
            stage: watch::channel(Stage::Work).0,
            disks: BTreeMap::new(),
            weights: BTreeMap::new(),
            orders: BTreeMap::new(),
            hosts: Vec::new(),
            cuts: Vec::new(),
            ended: mpsc::channel(ENDED),
            _named: Named { seed: settings.seed },
            settings,
        };
        let mut random = fastrand::Rng::with_seed(it.settings.seed);
        it.start_registries(&mut random);
        it.start_instances(&mut random);
        it.start_clients(&mut random);
        if it.settings.raw {
            it.start_raw(&mut random);
        }
        it
    }

    fn start_registries(&mut self, random: &mut fastrand::Rng) {
        for (number, name) in names("registry", self.settings.registries).into_iter().enumerate() {
            let storage = match (self.settings.storage, number) {
                (Storage::Disk, _) | (Storage::Mixed, 0) => {
                    let disk = SimulatedDisk::default();
                    self.disks.insert(name.clone(), disk.clone());
                    hosts::Storage::Disk(disk)
                }
                (Storage::Memory | Storage::Mixed, _) => hosts::Storage::Memory,
            };
            let (order, stops) = watch::channel(0);
            self.orders.insert(name.clone(), order);
            let host = self.host(&name, random);
            let notebook = self.settings.raw.then(|| self.notebook.clone());
            self.sim.host(name, move || {
                let (given, storage, stops) = (host.given(), storage.clone(), stops.clone());
                let notebook = notebook.clone();
                async move {
                    if let Some(notebook) = notebook {
                        tokio::spawn(raw::witness(given.clone(), notebook));
                    }
                    hosts::registry(given, storage, stops).await
                }
            });
        }
    }

    fn start_instances(&mut self, random: &mut fastrand::Rng) {
        for name in names("instance", self.settings.instances) {
            let (asked, weight) = watch::channel(1);
            self.weights.insert(name.clone(), asked);
            let (order, drains) = watch::channel(0);
            self.orders.insert(name.clone(), order);
            let orders = Orders { weight, drains, ended: self.ended.0.clone() };
            let settings = InstanceSettings {
                registries: names("registry", self.settings.registries),
                ttl: self.settings.ttl,
                work: self.settings.work,
            };
            let host = self.host(&name, random);
            self.sim.host(name, move || instance(host.given(), settings.clone(), orders.clone()));
        }
    }

    fn start_clients(&mut self, random: &mut fastrand::Rng) {
        let registries = names("registry", self.settings.registries);
        for name in names("watcher", self.settings.watchers) {
            let (host, registries) = (self.host(&name, random), registries.clone());
            self.sim.host(name, move || hosts::watcher(host.given(), registries.clone()));
        }
        for name in names("caller", self.settings.callers) {
            let (host, registries) = (self.host(&name, random), registries.clone());
            let pause = self.settings.pause;
            self.sim.host(name, move || hosts::caller(host.given(), registries.clone(), pause));
        }
    }

    fn start_raw(&mut self, random: &mut fastrand::Rng) {
        let raw = |it: &mut Self, name: &str, random: &mut fastrand::Rng| {
            let (host, stage, notebook) = (it.host(name, random), it.stage.subscribe(), it.notebook.clone());
            move || Raw {
                given: host.given(),
                registry: "registry-0".to_owned(),
                notebook: notebook.clone(),
                stage: stage.clone(),
            }
        };
        let trace = self.trace.clone();
        let run = move || trace.starts("registry-0");
        let watchers = raw(self, "raw-watchers", random);
        self.sim.host("raw-watchers", move || raw::watchers(watchers()));
        let (writers, runs) = (raw(self, "raw-writers", random), run.clone());
        self.sim.host("raw-writers", move || raw::writers(writers(), runs.clone()));
        let office = raw(self, "raw-office", random);
        self.sim.host("raw-office", move || raw::office(office(), run.clone()));
    }

    fn host(&mut self, name: &str, random: &mut fastrand::Rng) -> Host {
        self.hosts.push(name.to_owned());
        let seeds = Seeds(Arc::new(AtomicU64::new(random.u64(..))));
        // Seeds of everything else stay what they are without drift.
        let clock = Clock::drawn(&mut fastrand::Rng::with_seed(seeds.next()), self.settings.drift);
        Host { name: name.to_owned(), seeds, clock, trace: self.trace.clone() }
    }

    /// So many faults from the seed, on these hosts, beginning when everyone is at work, each over before the next.
    pub fn random_script(&self, faults: usize) -> Script {
        self.script(|hosts| Script::random(self.settings.seed, AT_WORK, faults, hosts))
    }

    /// Whatever may go wrong, for so long, from the seed.
    pub fn chaos(&self, lasts: Duration) -> Script {
        self.script(|hosts| Script::chaos(self.settings.seed, AT_WORK, lasts, hosts))
    }

    /// Everyone is replaced in turn.
    pub fn rolling(&self) -> Script {
        self.script(|hosts| Script::rolling(self.settings.seed, AT_WORK, hosts))
    }

    fn script(&self, draw: impl FnOnce(&Hosts<'_>) -> Script) -> Script {
        let (registries, instances) =
            (names("registry", self.settings.registries), names("instance", self.settings.instances));
        let mut clients = names("watcher", self.settings.watchers);
        clients.extend(names("caller", self.settings.callers));
        let raw: &[String] =
            if self.settings.raw { &["raw-watchers".to_owned(), "raw-writers".to_owned()] } else { &[] };
        draw(&Hosts { registries: &registries, instances: &instances, clients: &clients, raw })
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
            Fault::Partition(..) | Fault::OneWay(..) => {
                self.cut(fault);
                self.cuts.push(fault.clone());
            }
            Fault::Loss(a, b, share) => self.sim.set_link_fail_rate(a.clone(), b.clone(), *share),
            Fault::Slow(a, b, latency) => {
                self.sim.set_link_max_message_latency(a.clone(), b.clone(), *latency);
            }
            Fault::Repair(a, b) => {
                self.sim.set_link_fail_rate(a.clone(), b.clone(), 0.0);
                self.sim.set_link_max_message_latency(a.clone(), b.clone(), USUAL_LATENCY);
                self.sim.repair(a.clone(), b.clone());
                self.cuts.retain(|cut| !on_link(cut, a, b));
            }
            Fault::Crash(host) => {
                if let Some(disk) = self.disks.get(host) {
                    disk.cut_power();
                }
                self.silently(host, turmoil::Sim::crash);
            }
            Fault::Start(host) => {
                if let Some(disk) = self.disks.get(host) {
                    disk.restore_power();
                }
                self.silently(host, turmoil::Sim::bounce);
            }
            Fault::Restart(host) | Fault::Drain(host) => {
                if let Some(order) = self.orders.get(host) {
                    order.send_modify(|count| *count += 1);
                }
            }
            Fault::Weight(instance, weight) => {
                if let Some(asked) = self.weights.get(instance) {
                    asked.send_replace(*weight);
                }
            }
        }
    }

    /// Goes on to a later stage.
    pub fn enter(&mut self, stage: Stage) {
        self.stage.send_replace(stage);
    }

    /// Ends it.
    pub fn finish(self) -> Recorded {
        let until = self.now();
        let Self { sim, trace, notebook, .. } = self;
        // Whoever is still at work puts back what it wrote.
        notebook.conclude();
        drop(sim);
        Recorded { trace, history: notebook.into_history(), until }
    }

    /// The weights asked for last, of all instances.
    pub fn weights(&self) -> super::trace::Seen {
        self.weights.iter().map(|(name, weight)| (name.clone(), *weight.borrow())).collect()
    }

    fn step(&mut self) {
        if let Err(error) = self.sim.step() {
            panic!("a host ended with {error}\n{}", self.trace);
        }
        while let Ok(host) = self.ended.1.try_recv() {
            self.silently(&host, turmoil::Sim::bounce);
        }
    }

    /// Ends a host's software, or starts it anew, without its connections saying so to anyone: as when the power goes. In
    /// which order they would say so no seed rules, for tokio drops tasks in the order of numbers that all simulations of a process share.
    fn silently(&mut self, host: &str, act: fn(&mut turmoil::Sim<'static>, String)) {
        let others: Vec<String> = self.hosts.iter().filter(|other| *other != host).cloned().collect();
        for other in &others {
            self.sim.partition(host, other.clone());
        }
        act(&mut self.sim, host.to_owned());
        for other in &others {
            self.sim.repair(host, other.clone());
        }
        for fault in self.cuts.clone() {
            self.cut(&fault);
        }
    }

    fn cut(&self, fault: &Fault) {
        match fault {
            Fault::Partition(a, b) => self.sim.partition(a.clone(), b.clone()),
            Fault::OneWay(from, to) => self.sim.partition_oneway(from.clone(), to.clone()),
            _ => {}
        }
    }
}

impl std::fmt::Debug for Simulation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulation").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What a host is given at each start.
struct Host {
    name: String,
    seeds: Seeds,
    clock: Clock,
    trace: Trace,
}

impl Host {
    fn given(&self) -> Given {
        let (name, trace) = (self.name.clone(), self.trace.clone());
        Given { name, seed: self.seeds.next(), clock: self.clock, trace }
    }
}

/// A host's seeds: another one at each start.
struct Seeds(Arc<AtomicU64>);

impl Seeds {
    fn next(&self) -> u64 {
        self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed)
    }
}

fn on_link(fault: &Fault, one: &String, other: &String) -> bool {
    match fault {
        Fault::Partition(a, b) | Fault::OneWay(a, b) => (a, b) == (one, other) || (a, b) == (other, one),
        _ => false,
    }
}

fn names(kind: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{kind}-{number}")).collect()
}
