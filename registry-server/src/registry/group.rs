//! Proposals that commit together: each decided on a state that still holds when all of them commit.

use std::collections::HashSet;

use crate::core::{Proposal, Record, Touched};

/// Proposals in one group at most.
const MAX_PROPOSALS: usize = 1_024;
/// Events in one group, once reached, end it.
const MAX_EVENTS: usize = 20_000;

/// A group in the making.
#[derive(Debug, Default)]
pub(super) struct Group {
    touched: HashSet<Touched>,
    records: Vec<Record>,
    events: usize,
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
        !self.touched.is_empty() && proposal.touches.iter().any(|touched| self.touched.contains(touched))
    }

    pub(super) fn add(&mut self, proposal: &Proposal) {
        self.touched.extend(proposal.touches.iter().cloned());
        self.events += proposal.record.events.len();
        self.records.push(proposal.record.clone());
    }

    pub(super) fn into_records(self) -> Vec<Record> {
        self.records
    }
}
