//! Proposals that commit together: each decided on a state that still holds when all of them commit.

use std::{collections::HashSet, hash::BuildHasher, mem};

use foldhash::fast::RandomState;

use super::writer::Pending;
use crate::{
    core::{Cause, Proposal, Record, Revision, Touched},
    store::StoreError,
};

/// Proposals in one group at most.
const MAX_PROPOSALS: usize = 1_024;
/// Events in one group, once reached, end it.
const MAX_EVENTS: usize = 20_000;
/// Room for so many hashes is kept from group to group: more than a usual one has.
const KEPT: usize = 4 * MAX_PROPOSALS;

/// A group in the making.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// Hashes stand for what was touched, or each would be copied. Of two things with the same hash the second waits for the
    /// next group; the hash has a random key, so that nobody can bring that about.
    touched: HashSet<u64, RandomState>,
    /// What the group before this one touches, while that is in flight.
    before: HashSet<u64, RandomState>,
    /// Something but expiry is in flight.
    others_before: bool,
    hasher: RandomState,
    records: Vec<Record>,
    members: Vec<Member>,
    events: usize,
    noted: Vec<Part>,
    closed: bool,
}

/// What goes into a group at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// What is due.
    Due,
    /// What is held of leases that were renewed.
    Released,
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

    /// Records.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.closed || self.records.len() >= MAX_PROPOSALS || self.events >= MAX_EVENTS
    }

    /// Takes no more.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Whether that was noted.
    pub(super) fn has(&self, part: Part) -> bool {
        self.noted.contains(&part)
    }

    /// It is in this group now, as far as it can be.
    pub(super) fn note(&mut self, part: Part) {
        self.noted.push(part);
    }

    /// Whether the proposal rests on something that this group or the one in flight is about to change: it must be decided
    /// anew after that.
    pub(super) fn conflicts(&self, proposal: &Proposal) -> bool {
        if self.touched.is_empty() && self.before.is_empty() {
            return false;
        }
        let mut hashes = proposal.touches.iter().map(|touched| self.hasher.hash_one(touched));
        hashes.any(|hash| self.touched.contains(&hash) || self.before.contains(&hash))
    }

    /// Whether what the guard (L5) goes by is about to change: how many instances there are of a service, and their TTLs. What
    /// expiry itself is about to remove it knows.
    pub(super) fn moves_the_guard(&self) -> bool {
        self.others_before || !self.records.is_empty()
    }

    pub(super) fn add(&mut self, proposal: Proposal, pending: Option<Pending>) {
        self.touched.extend(proposal.touches.iter().map(|touched| self.hasher.hash_one(touched)));
        self.events += proposal.record.events.len();
        self.records.push(proposal.record);
        self.members.push(Member { touches: proposal.touches, pending });
    }

    /// The records, and a member for each. What is left is the next group, which is empty and minds what this one touches. It keeps
    /// the room that this one took: under load it will be about as large.
    pub(super) fn hand_over(&mut self) -> (Vec<Record>, Vec<Member>) {
        mem::swap(&mut self.before, &mut self.touched);
        self.touched.clear();
        self.others_before = self.records.iter().any(|record| record.cause != Cause::Expire);
        self.events = 0;
        self.noted.clear();
        self.closed = false;
        let room = self.records.len();
        let records = mem::replace(&mut self.records, Vec::with_capacity(room));
        (records, mem::replace(&mut self.members, Vec::with_capacity(room)))
    }

    /// Nothing is in flight any more: what touched something of it may come now.
    pub(super) fn settled(&mut self) {
        if self.before.capacity() > KEPT {
            self.before = HashSet::default();
        }
        self.before.clear();
        self.others_before = false;
        self.noted.clear();
        self.closed = false;
    }
}

/// A revision for each record, or what is wrong with the store.
pub(super) fn named(
    appended: Result<Vec<Revision>, StoreError>,
    records: usize,
) -> Result<Vec<Revision>, String> {
    match appended {
        Ok(revisions) if revisions.len() == records => Ok(revisions),
        Ok(_) => Err("it did not name a revision for each record".to_owned()),
        Err(failure) => Err(failure.to_string()),
    }
}
