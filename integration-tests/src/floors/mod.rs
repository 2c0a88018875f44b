//! The floors of the simulation: each runs something of the registry from a seed, and says what was judged and broken.

use std::fmt;

use crate::validate::{Broken, Promise};

pub mod system;

/// What the validators say of one seed.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The floor's name, as the soak takes it.
    pub floor: &'static str,
    /// The seed, which plays the same again.
    pub seed: u64,
    /// The promises that were broken.
    pub broken: Vec<Broken>,
    /// How many revisions were committed.
    pub commits: usize,
    /// How many messages watchers were told.
    pub told: usize,
}

impl Verdict {
    /// A seed that ended in a panic: a host that failed, or something that nobody may be told.
    pub fn panicked(floor: &'static str, seed: u64, message: &str) -> Self {
        let broken = Broken { promise: Promise::Sound, what: message.to_owned() };
        Self { floor, seed, broken: vec![broken], commits: 0, told: 0 }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { floor, seed, broken, commits, told } = self;
        write!(f, "floor {floor}, seed {seed}: {commits} revisions, {told} messages")?;
        broken.iter().try_for_each(|broken| write!(f, "\n  broken: {broken}"))
    }
}

/// Plays a seed on the highest floor: whole systems, servers and SDK, on a simulated network.
pub fn system(seed: u64) -> Verdict {
    system::play(seed).verdict(seed)
}
