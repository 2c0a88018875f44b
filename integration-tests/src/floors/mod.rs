//! The floors of simulation: parts of the server on simulated time, from a seed; and whole systems on a simulated network. How
//! many seeds a second each plays is in `docs/guarantees.md`.
//!
//! ```text
//!   seed ──► play ──► History ──► validate::judge ──► Verdict: which promises were broken, by name
//! ```
//!
//! | module | what it owns |
//! |---|---|
//! | `core` | the rules and what is published, alone: commands, time, stalls, crashes, slow watchers |
//! | `writer` | the writer's loop over the embedded store, with writers, registrants and watchers beside each other |
//! | `clients` | who they are |
//! | `process` | the process that the server runs in: its clock and its disk's pace |
//! | `disk` | a disk that fails, tears and loses power |
//! | `draw` | what is asked, drawn from the seed |
//! | `watching` | watchers and readers of a hub |
//! | `witness` | what the registry committed, as everyone is to see it |
//! | `recording` | the history in the making |
//! | [`system`] | servers, SDK clients and registrants in a [`crate::sim`] |
//! | [`reached`] | what happened in a run of it |

mod clients;
mod core;
mod disk;
mod draw;
mod process;
pub mod reached;
mod recording;
pub mod system;
mod watching;
mod witness;
mod writer;

use std::fmt;

use crate::{
    history::History,
    validate::{self, Broken},
};

/// What a floor came to.
#[derive(Clone, Debug)]
pub struct Floor {
    /// All that happened.
    pub history: History,
    /// What was broken so badly that no history can tell it.
    pub broken: Vec<Broken>,
}

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
    /// Whether every promise was kept.
    pub fn is_kept(&self) -> bool {
        self.broken.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { floor, seed, broken, commits, told } = self;
        write!(f, "floor {floor}, seed {seed}: {commits} revisions, {told} messages")?;
        broken.iter().try_for_each(|broken| write!(f, "\n  broken: {broken}"))?;
        if broken.is_empty() {
            Ok(())
        } else {
            write!(f, "\n  to repeat it: {}", how_to_repeat(floor, *seed))
        }
    }
}

/// The command that plays a seed of a floor once more, and says what it broke.
pub fn how_to_repeat(floor: &str, seed: u64) -> String {
    format!("cargo run --release -p integration-tests --bin soak -- --floor {floor} --seed {seed}")
}

/// Plays a seed on the first floor: the rules and what is published, alone.
pub fn core(seed: u64) -> Verdict {
    verdict("core", seed, record_core(seed))
}

/// Plays a seed on the second floor: the writer's loop over a bad disk.
pub fn writer(seed: u64) -> Verdict {
    verdict("writer", seed, record_writer(seed))
}

/// All that happens on the second floor with a seed.
pub fn record_writer(seed: u64) -> Floor {
    writer::play(seed)
}

/// All that happens on the first floor with a seed.
pub fn record_core(seed: u64) -> Floor {
    core::play(seed)
}

fn verdict(floor: &'static str, seed: u64, played: Floor) -> Verdict {
    let Floor { history, mut broken } = played;
    broken.extend(validate::judge(&history));
    let told = history.watchers.iter().map(|watcher| watcher.events.len()).sum();
    Verdict { floor, seed, broken, commits: history.commits.len(), told }
}
