//! What goes wrong, and when: written down, or drawn from a seed.
//!
//! | drawn by | what goes wrong | so that it can be asked |
//! |---|---|---|
//! | [`Script::random`] | one thing at a time, each shorter than a lease | that nobody is ever lost |
//! | [`Script::chaos`] | several things at once, some longer than a lease | that everyone is well again in the end, and no promise broken |
//! | [`Script::rolling`] | nothing: everything is replaced in turn, as it should be done | that no call fails |

use std::{collections::BTreeMap, time::Duration};

/// One thing that the script does.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Everything between the two hosts is lost.
    Partition(String, String),
    /// Everything from the first host to the second is lost.
    OneWay(String, String),
    /// Messages between the two hosts, this share of them, are lost; what is lost breaks its connection.
    Loss(String, String, f64),
    /// Messages between the two hosts take up to this long, and overtake each other.
    Slow(String, String, Duration),
    /// The network between the two hosts is whole again.
    Repair(String, String),
    /// The host's process is gone, and nothing tells its peers. A registry's disk loses power.
    Crash(String),
    /// The host's process is started again.
    Start(String),
    /// The registry stops as it does on SIGTERM, and is started again at once.
    Restart(String),
    /// The instance asks for another weight.
    Weight(String, u32),
    /// The instance drains, ends, and is started again.
    Drain(String),
}

/// Faults in the order of their times.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Script(Vec<(Duration, Fault)>);

/// Who may be hit.
#[derive(Clone, Copy, Debug)]
pub struct Hosts<'a> {
    /// Registries. They may crash and restart, all the time.
    pub registries: &'a [String],
    /// Instances. They may be cut off, crash and drain.
    pub instances: &'a [String],
    /// Callers and watchers. They may be cut off and crash.
    pub clients: &'a [String],
    /// Those that speak to the first registry by the protocol alone. They may be cut off from it and crash.
    pub raw: &'a [String],
}

/// The pause between two faults: long enough that everyone is well again, so that outages do not add up.
const PAUSE: std::ops::Range<u64> = 7_000..10_000;
/// The longest outage of a random script, in milliseconds. With the pauses it leaves each registrant the time to renew
/// within the default TTL of 15 s.
const OUTAGE: std::ops::Range<u64> = 200..4_000;
/// The pause between two beginnings in chaos, in milliseconds.
const CHAOS_PAUSE: std::ops::Range<u64> = 500..5_000;
/// The pause between two replacements in a rolling script, in milliseconds.
const ROLLING_PAUSE: std::ops::Range<u64> = 2_500..5_000;
/// The longest that a slow link takes, in milliseconds.
const SLOWEST: std::ops::Range<u64> = 50..400;

impl Script {
    /// Adds a fault.
    #[must_use]
    pub fn at(mut self, at: Duration, fault: Fault) -> Self {
        self.0.push((at, fault));
        self.0.sort_by_key(|(at, _)| *at);
        self
    }

    /// So many faults from the seed, the first after `from`. Each is over, and its damage undone, before the next one.
    pub fn random(seed: u64, from: Duration, faults: usize, hosts: &Hosts<'_>) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut script = Self::default();
        let mut at = from;
        for _ in 0..faults {
            let until = at + millis(&mut random, OUTAGE);
            let registry = choose(&mut random, hosts.registries);
            script = match random.u8(..6) {
                0 => script.at(at, Fault::Crash(registry.clone())).at(until, Fault::Start(registry)),
                1 => {
                    let instance = choose(&mut random, hosts.instances);
                    script.at(at, Fault::Weight(instance, random.u32(1..=9)))
                }
                kind => {
                    let (a, b) = match kind {
                        2 => (choose(&mut random, hosts.instances), registry),
                        3 => (choose(&mut random, hosts.clients), choose(&mut random, hosts.instances)),
                        _ => (choose(&mut random, hosts.clients), registry),
                    };
                    let fault = if random.bool() {
                        Fault::Partition(a.clone(), b.clone())
                    } else {
                        Fault::Loss(a.clone(), b.clone(), 0.1 + random.f64() / 2.0)
                    };
                    script.at(at, fault).at(until, Fault::Repair(a, b))
                }
            };
            at = until + millis(&mut random, PAUSE);
        }
        script
    }

    /// Whatever may go wrong from the seed, for so long: several things at once. In the end all is repaired and everyone
    /// started.
    pub fn chaos(seed: u64, from: Duration, lasts: Duration, hosts: &Hosts<'_>) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut script = Self::default();
        let end = from + lasts;
        // What is wrong, and until when, so that nothing is undone twice or too early.
        let mut busy: BTreeMap<String, Duration> = BTreeMap::new();
        let mut at = from;
        while at < end {
            let until = end.min(at + outage(&mut random));
            let (what, hit, undone) = any(&mut random, hosts);
            if busy.get(&what).is_none_or(|until| *until < at) {
                script = script.at(at, hit);
                if let Some(undone) = undone {
                    script = script.at(until, undone);
                    busy.insert(what, until);
                }
            }
            at += millis(&mut random, CHAOS_PAUSE);
        }
        script
    }

    /// Everything is replaced in good order, while weights change, and nothing fails: every instance in turn, every registry in
    /// turn, and one more instance while registries restart.
    pub fn rolling(seed: u64, from: Duration, hosts: &Hosts<'_>) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut script = Self::default();
        let mut at = from;
        for instance in hosts.instances {
            at += millis(&mut random, ROLLING_PAUSE);
            script = script.at(at, Fault::Drain(instance.clone()));
        }
        for registry in hosts.registries.iter().cycle().take(3) {
            at += millis(&mut random, ROLLING_PAUSE);
            script = script.at(at, Fault::Restart(registry.clone()));
        }
        at += millis(&mut random, SLOWEST);
        script = script.at(at, Fault::Drain(choose(&mut random, hosts.instances)));
        let end = at;
        at = from;
        while at < end {
            script = script.at(at, Fault::Weight(choose(&mut random, hosts.instances), random.u32(1..=9)));
            at += millis(&mut random, ROLLING_PAUSE);
        }
        script
    }

    /// Without the restarts of registries in good order. Whom a registry's streams and connections wake first when it stops is
    /// tokio's chance and not the seed's, unless tokio is built with `--cfg tokio_unstable`.
    #[must_use]
    pub fn without_restarts(mut self) -> Self {
        self.0.retain(|(_, fault)| !matches!(fault, Fault::Restart(_)));
        self
    }

    /// When the last fault is over.
    pub fn end(&self) -> Duration {
        self.0.last().map(|(at, _)| *at).unwrap_or_default()
    }

    /// The faults.
    pub fn faults(&self) -> &[(Duration, Fault)] {
        &self.0
    }
}

/// Any fault: what it is on, itself, and what undoes it.
fn any(random: &mut fastrand::Rng, hosts: &Hosts<'_>) -> (String, Fault, Option<Fault>) {
    let registry = choose(random, hosts.registries);
    let crash = |host: String| (host.clone(), Fault::Crash(host.clone()), Some(Fault::Start(host)));
    match random.u8(..20) {
        0 | 1 => crash(registry),
        2 => (registry.clone(), Fault::Restart(registry), None),
        3 => crash(choose(random, hosts.instances)),
        4 => crash(choose(random, hosts.clients)),
        5 if !hosts.raw.is_empty() => crash(choose(random, hosts.raw)),
        6 => {
            let instance = choose(random, hosts.instances);
            (instance.clone(), Fault::Drain(instance), None)
        }
        7 | 8 => {
            let instance = choose(random, hosts.instances);
            (format!("weight of {instance}"), Fault::Weight(instance, random.u32(..=9)), None)
        }
        _ => {
            let (a, b) = match random.u8(..8) {
                0 | 1 => (choose(random, hosts.instances), registry),
                2 | 3 => (choose(random, hosts.clients), choose(random, hosts.instances)),
                4 if !hosts.raw.is_empty() => (choose(random, hosts.raw), hosts.registries[0].clone()),
                _ => (choose(random, hosts.clients), registry),
            };
            let fault = match random.u8(..6) {
                0 | 1 => Fault::Partition(a.clone(), b.clone()),
                2 => Fault::OneWay(a.clone(), b.clone()),
                3 => Fault::OneWay(b.clone(), a.clone()),
                4 => Fault::Loss(a.clone(), b.clone(), 0.05 + random.f64() / 2.0),
                _ => Fault::Slow(a.clone(), b.clone(), millis(random, SLOWEST)),
            };
            (format!("{a} and {b}"), fault, Some(Fault::Repair(a, b)))
        }
    }
}

/// Most outages are short; a few outlast leases and streams.
fn outage(random: &mut fastrand::Rng) -> Duration {
    let range = match random.u8(..10) {
        0..=5 => 200..4_000,
        6..=8 => 4_000..18_000,
        _ => 18_000..45_000,
    };
    millis(random, range)
}

fn millis(random: &mut fastrand::Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(random.u64(range))
}

fn choose(random: &mut fastrand::Rng, from: &[String]) -> String {
    from[random.usize(..from.len())].clone()
}
