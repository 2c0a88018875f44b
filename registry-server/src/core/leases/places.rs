//! In which place the entry of each lease is.
//!
//! To renew a lease is mostly to wait for memory that was not read for long: once here, and once for the entry. So there is little
//! here, which is rather in a processor's cache than what is twice as large: of the lease's id a half of its hash, and the id itself
//! is in its entry only.

use std::{
    collections::{BTreeMap, HashMap, hash_map},
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
};

use super::{Entries, LeaseId, Place};
use crate::core::hashed::Hashed;

/// Each lease's place, by half of the hash of its id.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    by_half: HashMap<u32, Place, BuildHasherDefault<Hashed>>,
    /// Those that came when another lease had the same half: a few, unless somebody chooses ids to that end.
    others: BTreeMap<LeaseId, Place>,
}

impl Places {
    /// The place of a lease, whose entry is there.
    pub(super) fn get(&self, id: &LeaseId, entries: &Entries) -> Option<Place> {
        let found = self.by_half.get(&half(id)).copied();
        found.filter(|place| entries[*place].id == *id).or_else(|| self.others.get(id).copied())
    }

    /// A lease that has no place has this one.
    pub(super) fn insert(&mut self, id: &LeaseId, place: Place) {
        match self.by_half.entry(half(id)) {
            hash_map::Entry::Occupied(_) => {
                self.others.insert(*id, place);
            }
            hash_map::Entry::Vacant(vacant) => {
                vacant.insert(place);
            }
        }
    }

    /// The place that a lease had, whose entry is there still.
    pub(super) fn remove(&mut self, id: &LeaseId, entries: &Entries) -> Option<Place> {
        let half = half(id);
        if self.by_half.get(&half).is_some_and(|place| entries[*place].id == *id) {
            self.by_half.remove(&half)
        } else {
            self.others.remove(id)
        }
    }
}

fn half(id: &LeaseId) -> u32 {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(id);
    u32::try_from(hash >> 32).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::leases::Entry;

    #[test]
    fn every_lease_has_its_own_place_however_many_come_and_go() {
        let (mut places, mut entries) = (Places::default(), Entries::default());
        let id = |n: u128| LeaseId(n.to_be_bytes());
        for n in 0..5_000 {
            assert_eq!(places.get(&id(n), &entries), None);
            let place = entries.push(Entry::dormant(id(n), 0));
            places.insert(&id(n), place);
        }
        for n in (0..5_000).step_by(3) {
            assert_eq!(places.remove(&id(n), &entries), Some(u32::try_from(n).unwrap()));
            assert_eq!(places.remove(&id(n), &entries), None);
        }
        for n in 0..5_000 {
            let there = (n % 3 != 0).then(|| u32::try_from(n).unwrap());
            assert_eq!(places.get(&id(n), &entries), there);
        }
    }

    #[test]
    fn of_two_leases_with_half_a_hash_in_common_each_has_its_own_place() {
        // Found by trying.
        let mut halves = std::collections::HashMap::new();
        let id = |n: u128| LeaseId(n.to_be_bytes());
        let (one, other) = (0..).find_map(|n| Some((halves.insert(half(&id(n)), n)?, n))).unwrap();
        let (mut places, mut entries) = (Places::default(), Entries::default());
        for n in [one, other] {
            let place = entries.push(Entry::dormant(id(n), 0));
            places.insert(&id(n), place);
        }
        assert_eq!([places.get(&id(one), &entries), places.get(&id(other), &entries)], [Some(0), Some(1)]);
        assert_eq!(places.remove(&id(one), &entries), Some(0));
        assert_eq!([places.get(&id(one), &entries), places.get(&id(other), &entries)], [None, Some(1)]);
        places.insert(&id(one), 0);
        assert_eq!(places.remove(&id(other), &entries), Some(1));
        assert_eq!([places.get(&id(one), &entries), places.get(&id(other), &entries)], [Some(0), None]);
        assert!(places.others.is_empty());
    }
}
