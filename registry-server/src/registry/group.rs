//! Proposals that commit together: each decided on a state that still holds when all of them commit.

use std::{collections::HashSet, hash::BuildHasher};

use foldhash::fast::RandomState;

use super::writer::Pending;
use crate::core::{Proposal, Record, Touched};

/// Proposals in one group at most.
const MAX_PROPOSALS: usize = 1_024;
/// Events in one group, once reached, end it.
const MAX_EVENTS: usize = 20_000;

/// A group in the making.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// Hashes stand for what was touched, or each would be copied. Of two things with the same hash the second waits for the
    /// next group; the hash has a random key, so that nobody can bring that about.
    touched: HashSet<u64, RandomState>,
    hasher: RandomState,
    records: Vec<Record>,
    members: Vec<Member>,
    events: usize,
}

/// Beside a record of the group: what it rests on, and whoever waits for it; nobody if it is the loop's own.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) touches: Vec<Touched>,
    pub(super) pending: Option<Pending>,
}

impl Group {
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.records.len() >= MAX_PROPOSALS || self.events >= MAX_EVENTS
    }

    /// Whether the proposal rests on something that the group is about to change: it must be decided anew after it.
    pub(super) fn conflicts(&self, proposal: &Proposal) -> bool {
        let touched = |touched| self.touched.contains(&self.hasher.hash_one(touched));
        !self.touched.is_empty() && proposal.touches.iter().any(touched)
    }

    pub(super) fn add(&mut self, proposal: Proposal, pending: Option<Pending>) {
        self.touched.extend(proposal.touches.iter().map(|touched| self.hasher.hash_one(touched)));
        self.events += proposal.record.events.len();
        self.records.push(proposal.record);
        self.members.push(Member { touches: proposal.touches, pending });
    }

    /// The records, and a member for each.
    pub(super) fn into_parts(self) -> (Vec<Record>, Vec<Member>) {
        (self.records, self.members)
    }
}
