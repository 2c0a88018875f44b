//! In which place the entry of each lease is.
//!
//! To renew a lease is mostly to wait for memory that was not read for long: once here, and once for the entry. So there is little
//! here, which is rather in a processor's cache than what is twice as large: of the lease's id a half of its hash, and the id itself
//! is in its entry only.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use hashbrown::HashTable;

use super::{Entries, LeaseId, Place};

/// Half of the hash of each lease's id, beside its place.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(HashTable<(u32, Place)>);

impl Places {
    /// The place of a lease, whose entry is there.
    pub(super) fn get(&self, id: &LeaseId, entries: &Entries) -> Option<Place> {
        let half = half(id);
        self.0.find(whole(half), is(id, half, entries)).map(|(_, place)| *place)
    }

    /// A lease that has no place has this one.
    pub(super) fn insert(&mut self, id: &LeaseId, place: Place) {
        let half = half(id);
        self.0.insert_unique(whole(half), (half, place), |(half, _)| whole(*half));
    }

    /// The place that a lease had, whose entry is there still.
    pub(super) fn remove(&mut self, id: &LeaseId, entries: &Entries) -> Option<Place> {
        let half = half(id);
        let found = self.0.find_entry(whole(half), is(id, half, entries)).ok()?;
        let ((_, place), _) = found.remove();
        Some(place)
    }
}

fn is(id: &LeaseId, half: u32, entries: &Entries) -> impl Fn(&(u32, Place)) -> bool {
    move |(other, place)| *other == half && entries[*place].id == *id
}

fn half(id: &LeaseId) -> u32 {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(id);
    u32::try_from(hash >> 32).unwrap_or_default()
}

/// The table goes by the first bits and by the last.
fn whole(half: u32) -> u64 {
    u64::from(half) << 32 | u64::from(half)
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
        assert_eq!(places.remove(&id(other), &entries), Some(1));
        assert_eq!([places.get(&id(one), &entries), places.get(&id(other), &entries)], [Some(0), None]);
    }
}
