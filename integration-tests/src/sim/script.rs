//! What goes wrong, and when: written down, or drawn from a seed.

use std::time::Duration;

/// One thing that the script does.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Everything between the two hosts is lost.
    Partition(String, String),
    /// Messages between the two hosts, this share of them, are lost; what is lost breaks its connection.
    Loss(String, String, f64),
    /// The network between the two hosts is whole again.
    Repair(String, String),
    /// The host's process is gone, its connections with it. A registry's disk loses power.
    Crash(String),
    /// The host's process is started again.
    Start(String),
    /// The instance asks for another weight.
    Weight(String, u32),
}

/// Faults in the order of their times.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Script(Vec<(Duration, Fault)>);

/// Who may be hit.
#[derive(Clone, Debug)]
pub struct Hosts<'a> {
    /// Registries. They may crash, all the time.
    pub registries: &'a [String],
    /// Instances. They may be cut off for a while.
    pub instances: &'a [String],
    /// Callers and watchers. They may be cut off for a while.
    pub clients: &'a [String],
}

/// The pause between two faults: long enough that everyone is well again, so that outages do not add up.
const PAUSE: std::ops::Range<u64> = 7_000..10_000;
/// The longest outage of a random script, in milliseconds. With the pauses it leaves each registrant the time to renew
/// within the default TTL of 15 s.
const OUTAGE: std::ops::Range<u64> = 200..4_000;

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
            let until = at + Duration::from_millis(random.u64(OUTAGE));
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
            at = until + Duration::from_millis(random.u64(PAUSE));
        }
        script
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

fn choose(random: &mut fastrand::Rng, from: &[String]) -> String {
    from[random.usize(..from.len())].clone()
}
