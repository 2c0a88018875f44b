//! One validator for each promise that a server keeps: each takes a recorded history and says, by the promise's name,
//! what broke it.
//!
//! | file | what it judges | promises |
//! |---|---|---|
//! | `streams` | one watcher by itself | W1–W3, W5, W8 |
//! | `views` | watchers beside each other and beside the writers | W4, W6, W7, W9 |
//! | `writes` | answers and readings | D1–D3 |
//! | [`callers`] | what callers on the SDK saw, on a simulated network | C1–C4 |
//! | [`applications`] | what applications on the SDK saw, and that it ends with the truth | W2, W8, L1 |
//! | `leases` | what became of leases, overrides and holds, as watchers saw it | L1–L5 |
//! | `store` | what the commits prove of the store, and gauges of the hub | D1, D3, D4, W10 |
//! | `truth` | what every view is to show, by the commits | beneath W2, W4–W7, W9, D1, D2 |
//! | `ledger` | commits, answers, runs and stalls, one after the other | beneath D3, L1–L5 |
//! | `expiry`, `guard`, `fences` | when leases end, what expiry may remove, who may change what: worked out a second time | L1–L5 |
//!
//! A history from outside shows what clients saw: order and evidence. One from inside (the floors) has the registry's
//! commits and simulated time too, and is judged to the revision and the millisecond. None of them knows a real clock, so
//! they cannot fail on a slow machine.

pub mod applications;
pub mod callers;
mod expiry;
mod fences;
mod guard;
mod leases;
mod ledger;
mod store;
mod streams;
mod truth;
mod views;
mod writes;

use std::fmt;

pub use self::{
    leases::{l1_no_early_expiry, l2_prompt_expiry, l3_fenced, l4_overrides_last, l5_blast_radius},
    store::{d4_fail_stop, w10_bounded},
    streams::{w1_ordered, w2_gapless, w3_unique, w5_resumable, w8_self_verifying},
    views::{w4_atomic, w6_coalesced, w7_true_bookmarks, w9_empty_safe},
    writes::{d1_durable, d2_read_your_writes, d3_all_or_nothing},
};
use crate::{
    history::{Event, History, WatcherRecord},
    replica::Replica,
};

/// A promise of the design.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the documentation: see docs/architecture.md
pub enum Promise {
    W1,
    W2,
    W3,
    W4,
    W5,
    W6,
    W7,
    W8,
    W9,
    W10,
    D1,
    D2,
    D3,
    D4,
    L1,
    L2,
    L3,
    L4,
    L5,
    C1,
    C2,
    C3,
    C4,
    /// Not one of the design's: nothing panics, and no host ends by itself.
    Sound,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::W1 => "W1 ordered",
            Self::W2 => "W2 gapless",
            Self::W3 => "W3 unique",
            Self::W4 => "W4 atomic",
            Self::W5 => "W5 resumable",
            Self::W6 => "W6 coalesced = applied one by one",
            Self::W7 => "W7 true bookmarks",
            Self::W8 => "W8 self-verifying",
            Self::W9 => "W9 empty-safe",
            Self::W10 => "W10 bounded",
            Self::D1 => "D1 durable",
            Self::D2 => "D2 read your writes",
            Self::D3 => "D3 all or nothing",
            Self::D4 => "D4 fail-stop",
            Self::L1 => "L1 no early expiry",
            Self::L2 => "L2 prompt expiry",
            Self::L3 => "L3 fenced",
            Self::L4 => "L4 overrides last",
            Self::L5 => "L5 blast radius",
            Self::C1 => "C1 last known good",
            Self::C2 => "C2 no dead picks",
            Self::C3 => "C3 never deaf",
            Self::C4 => "C4 drain without a sleep",
            Self::Sound => "soundness",
        })
    }
}

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{promise}: {what}")]
pub struct Broken {
    /// Which.
    pub promise: Promise,
    /// How, and who saw it.
    pub what: String,
}

impl Promise {
    pub(crate) fn broken(self, what: impl Into<String>) -> Broken {
        Broken { promise: self, what: what.into() }
    }
}

/// A validator.
pub type Validator = fn(&History) -> Result<(), Broken>;

/// All of them.
pub const ALL: &[Validator] = &[
    w1_ordered,
    w2_gapless,
    w3_unique,
    w4_atomic,
    w5_resumable,
    w6_coalesced,
    w7_true_bookmarks,
    w8_self_verifying,
    w9_empty_safe,
    w10_bounded,
    d1_durable,
    d2_read_your_writes,
    d3_all_or_nothing,
    d4_fail_stop,
    l1_no_early_expiry,
    l2_prompt_expiry,
    l3_fenced,
    l4_overrides_last,
    l5_blast_radius,
];

/// Every promise that the history shows broken.
pub fn judge(history: &History) -> Vec<Broken> {
    ALL.iter().filter_map(|judge| judge(history).err()).collect()
}

/// Panics with the name of every promise that the history shows broken.
pub fn assert_kept(history: &History) {
    let broken: Vec<String> = judge(history).iter().map(ToString::to_string).collect();
    assert!(broken.is_empty(), "promises were broken:\n{}", broken.join("\n"));
}

/// Plays a watcher's record. `see` gets each event with the view before it and the view after it.
fn play(
    record: &WatcherRecord,
    mut see: impl FnMut(&Event, &Replica, &Replica) -> Result<(), Broken>,
) -> Result<(), Broken> {
    let mut before = Replica::default();
    for event in &record.events {
        let mut after = before.clone();
        match event {
            Event::Told(told) => after.apply(told),
            Event::Bookmark(bookmark) => after.bookmark(bookmark),
            _ => {}
        }
        see(event, &before, &after)?;
        before = after;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
