//! How many of everything there is in a simulation, and how it is set.

use std::time::Duration;

/// Whether registries keep what they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Over restarts, not.
    Memory,
    /// Over power losses.
    Disk,
    /// The first one does, over power losses; the others do not.
    Mixed,
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
    /// A request takes an instance up to this long.
    pub work: Duration,
    /// Watchers: `watcher-0` and so on.
    pub watchers: usize,
    /// Callers: `caller-0` and so on.
    pub callers: usize,
    /// The pause between two calls.
    pub pause: Duration,
    /// By what share clocks run too fast or too slow at most; walls are off by up to an hour. 0: all clocks are right.
    pub drift: f64,
    /// Whether there are hosts that speak the protocol by hand (see [`super::raw`]), with the first registry, and a witness on
    /// every registry's host. The first registry has to be on a disk then.
    pub raw: bool,
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
            work: Duration::ZERO,
            watchers: 1,
            callers: 1,
            pause: Duration::from_millis(100),
            drift: 0.0,
            raw: false,
        }
    }

    /// A system drawn from the seed, with everything that there is.
    pub fn random(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed ^ 0x5eed);
        Self {
            registries: random.usize(1..=2),
            storage: if random.bool() { Storage::Disk } else { Storage::Mixed },
            instances: random.usize(3..=6),
            ttl: Duration::from_secs(random.u64(5..=15)),
            work: Duration::from_millis(random.u64(..=150)),
            watchers: random.usize(1..=2),
            callers: random.usize(1..=2),
            pause: Duration::from_millis(random.u64(80..=250)),
            drift: 0.02,
            raw: true,
            ..Self::new(seed)
        }
    }
}
