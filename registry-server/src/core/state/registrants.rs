//! Which leases each registrant has. Follows from the leases, and keeps as little beside them as can be: nearly every
//! registrant has one, and then all that is kept is that lease's id, under a hash of the registrant's name. What the lease
//! itself says is not repeated.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    ops::RangeInclusive,
    sync::Arc,
};

use crate::core::{FixedMap, Lease, LeaseId, Registrant, hashed::Hashed};

/// The leases, as the state has them.
pub(super) type Leases = FixedMap<LeaseId, Box<Lease>>;

/// The leases of registrants, by a hash of the name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Registrants(HashMap<u64, Of, BuildHasherDefault<Hashed>>);

/// Equal sets are of equal shape: one lease is never in `Several`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::box_collection)] // so that the usual shape is no larger for it
enum Of {
    One(LeaseId),
    /// Of a registrant with several leases, or of several whose names have the same hash: in order of name and generation.
    Several(Box<BTreeSet<(Arc<str>, u64, LeaseId)>>),
}

impl Registrants {
    /// A lease of this registrant. Whatever else is in `leases` is known here already.
    pub(super) fn insert(&mut self, registrant: &Registrant, id: LeaseId, leases: &Leases) {
        self.insert_at(hash(&registrant.uid), registrant, id, leases);
    }

    /// The registrant has this lease no more.
    pub(super) fn remove(&mut self, registrant: &Registrant, id: LeaseId) {
        self.remove_at(hash(&registrant.uid), registrant, id);
    }

    /// The highest generation of a registrant that has a lease.
    pub(super) fn highest_generation(&self, uid: &str, leases: &Leases) -> Option<u64> {
        self.highest_at(hash(uid), uid, leases).map(|(generation, _)| generation)
    }

    /// The highest generation of a registrant that has a lease, and its leases.
    pub(super) fn newest(&self, uid: &str, leases: &Leases) -> Option<(u64, Vec<LeaseId>)> {
        let hash = hash(uid);
        let (highest, one) = self.highest_at(hash, uid, leases)?;
        let ids = match self.0.get(&hash)? {
            Of::One(_) => vec![one],
            Of::Several(all) => all.range(between(uid, highest, highest)).map(|(_, _, id)| *id).collect(),
        };
        Some((highest, ids))
    }

    fn insert_at(&mut self, hash: u64, registrant: &Registrant, id: LeaseId, leases: &Leases) {
        let named = (Arc::clone(&registrant.uid), registrant.generation, id);
        let Some(of) = self.0.get_mut(&hash) else {
            self.0.insert(hash, Of::One(id));
            return;
        };
        match of {
            Of::Several(all) => {
                all.insert(named);
            }
            Of::One(there) => {
                if *there != id
                    && let Some(other) = leases.get(there)
                {
                    let Registrant { uid, generation } = &other.registrant;
                    let all = BTreeSet::from([(Arc::clone(uid), *generation, *there), named]);
                    *of = Of::Several(Box::new(all));
                } else {
                    *there = id;
                }
            }
        }
    }

    fn remove_at(&mut self, hash: u64, registrant: &Registrant, id: LeaseId) {
        match self.0.get_mut(&hash) {
            Some(Of::One(there)) if *there == id => {
                self.0.remove(&hash);
            }
            Some(of) => {
                if let Of::Several(all) = of {
                    all.remove(&(Arc::clone(&registrant.uid), registrant.generation, id));
                    if all.len() == 1
                        && let Some((_, _, last)) = all.pop_first()
                    {
                        *of = Of::One(last);
                    }
                }
            }
            None => {}
        }
    }

    /// The highest generation, and a lease of it.
    fn highest_at(&self, hash: u64, uid: &str, leases: &Leases) -> Option<(u64, LeaseId)> {
        match self.0.get(&hash)? {
            Of::One(id) => {
                let registrant = &leases.get(id)?.registrant;
                (&*registrant.uid == uid).then_some((registrant.generation, *id))
            }
            Of::Several(all) => {
                let (_, highest, id) = all.range(between(uid, 0, u64::MAX)).next_back()?;
                Some((*highest, *id))
            }
        }
    }
}

/// All that `Several` may have of these generations of a registrant.
fn between(uid: &str, first: u64, last: u64) -> RangeInclusive<(Arc<str>, u64, LeaseId)> {
    let uid: Arc<str> = uid.into();
    (Arc::clone(&uid), first, LeaseId([0; 16]))..=(uid, last, LeaseId([u8::MAX; 16]))
}

fn hash(uid: &str) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(uid)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection, prelude::*};

    use super::*;
    use crate::core::{Carried, RareMap};

    fn lease(registrant: Registrant) -> Lease {
        Lease { registrant, ttl: 1, instances: Carried::default(), lost: RareMap::default() }
    }

    proptest! {
        #[test]
        fn it_is_what_the_leases_say(
            steps in collection::vec((any::<bool>(), 0..6u8, 0..3u8, 0..3u64), 0..40),
        ) {
            let (mut registrants, mut leases) = (Registrants::default(), Leases::default());
            for (add, n, uid, generation) in steps {
                let id = LeaseId([n; 16]);
                if let Some(old) = leases.remove(&id) {
                    registrants.remove(&old.registrant, id);
                }
                if add {
                    let registrant = Registrant { uid: format!("u{uid}").into(), generation };
                    registrants.insert(&registrant, id, &leases);
                    leases.insert(id, lease(registrant).into());
                }
                let mut sorted: Vec<_> = leases.iter().collect();
                sorted.sort_unstable_by_key(|(id, _)| **id);
                let mut truth: BTreeMap<&str, BTreeMap<u64, Vec<LeaseId>>> = BTreeMap::new();
                for (id, lease) in sorted {
                    let Registrant { uid, generation } = &lease.registrant;
                    truth.entry(&**uid).or_default().entry(*generation).or_default().push(*id);
                }
                for uid in ["u0", "u1", "u2", "u3"] {
                    let newest = truth.get_mut(uid).and_then(BTreeMap::pop_last);
                    let highest = newest.as_ref().map(|(generation, _)| *generation);
                    prop_assert_eq!(registrants.highest_generation(uid, &leases), highest);
                    prop_assert_eq!(registrants.newest(uid, &leases), newest);
                }
                // Whatever it went through, it is what it is.
                let (mut straight, mut known) = (Registrants::default(), Leases::default());
                for (id, lease) in &leases {
                    straight.insert(&lease.registrant, *id, &known);
                    known.insert(*id, lease.clone());
                }
                prop_assert_eq!(&registrants, &straight);
            }
        }
    }

    #[test]
    fn names_of_the_same_hash_are_told_apart() {
        let named = |uid: &str| Registrant { uid: uid.into(), generation: 3 };
        let (mut registrants, mut leases) = (Registrants::default(), Leases::default());
        let (a, b) = (LeaseId([1; 16]), LeaseId([2; 16]));
        registrants.insert_at(7, &named("a"), a, &leases);
        leases.insert(a, lease(named("a")).into());
        assert_eq!(registrants.highest_at(7, "b", &leases), None);
        registrants.insert_at(7, &named("b"), b, &leases);
        leases.insert(b, lease(named("b")).into());
        assert_eq!(registrants.highest_at(7, "a", &leases), Some((3, a)));
        assert_eq!(registrants.highest_at(7, "b", &leases), Some((3, b)));
        registrants.remove_at(7, &named("a"), a);
        assert_eq!(registrants.highest_at(7, "a", &leases), None);
        assert_eq!(registrants.highest_at(7, "b", &leases), Some((3, b)));
    }
}
