//! Collections sized for what is usual: a set of one, a map of none.
//!
//! There is one of each in every lease, or every instance, and a registry holds them by the hundred thousand: a
//! `BTreeSet` of one element allocates room for eleven, and an empty map takes three words where one says as much. Both are
//! the standard library's as soon as there is more in them, so nothing grows slow with size.

use std::{collections::BTreeMap, collections::BTreeSet, mem};

/// An ordered set that is nearly always of one element, which it then keeps in its own place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::core) struct Few<T>(Size<T>);

/// Equal sets are of equal shape: one element is never in `Other`, and no set in there is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::box_collection)] // so that the usual shape is no larger for it
enum Size<T> {
    One(T),
    Other(Option<Box<BTreeSet<T>>>),
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Size::Other(None))
    }
}

impl<T: Ord> Few<T> {
    /// Adds an element, if it is not there already.
    pub(in crate::core) fn insert(&mut self, element: T) {
        match &mut self.0 {
            Size::One(there) if *there == element => {}
            Size::Other(Some(set)) => {
                set.insert(element);
            }
            _ => {
                self.0 = match mem::take(self).0 {
                    Size::One(there) => Size::Other(Some(Box::new(BTreeSet::from([there, element])))),
                    Size::Other(_) => Size::One(element),
                }
            }
        }
    }

    /// Takes an element out, if it is there.
    pub(in crate::core) fn remove(&mut self, element: &T) {
        match &mut self.0 {
            Size::One(there) if there == element => *self = Self::default(),
            Size::Other(Some(set)) => {
                set.remove(element);
                if set.len() == 1
                    && let Some(last) = set.pop_first()
                {
                    self.0 = Size::One(last);
                }
            }
            _ => {}
        }
    }

    pub(in crate::core) fn contains(&self, element: &T) -> bool {
        match &self.0 {
            Size::One(there) => there == element,
            Size::Other(set) => set.as_ref().is_some_and(|set| set.contains(element)),
        }
    }

    pub(in crate::core) fn len(&self) -> usize {
        match &self.0 {
            Size::One(_) => 1,
            Size::Other(set) => set.as_ref().map_or(0, |set| set.len()),
        }
    }

    pub(in crate::core) fn is_empty(&self) -> bool {
        matches!(self.0, Size::Other(None))
    }

    /// In order.
    pub(in crate::core) fn iter(&self) -> impl Iterator<Item = &T> {
        let (one, more) = match &self.0 {
            Size::One(there) => (Some(there), None),
            Size::Other(set) => (None, set.as_deref()),
        };
        one.into_iter().chain(more.into_iter().flatten())
    }
}

/// An ordered map that is nearly always empty, and then takes one word.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::box_collection)] // the point of it
pub struct RareMap<K, V>(Option<Box<BTreeMap<K, V>>>);

impl<K, V> Default for RareMap<K, V> {
    fn default() -> Self {
        Self(None)
    }
}

impl<K: Ord, V> RareMap<K, V> {
    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.0.as_ref()?.get(key)
    }

    /// Sets the value of a key.
    pub fn insert(&mut self, key: K, value: V) {
        self.0.get_or_insert_default().insert(key, value);
    }

    /// Takes a key out, if it is there.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q)
    where
        K: std::borrow::Borrow<Q>,
    {
        if let Some(map) = &mut self.0 {
            map.remove(key);
            if map.is_empty() {
                self.0 = None;
            }
        }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |map| map.len())
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Keys and values, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().flat_map(|map| map.iter())
    }

    /// The values, in the order of the keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K, V> From<BTreeMap<K, V>> for RareMap<K, V> {
    fn from(map: BTreeMap<K, V>) -> Self {
        Self((!map.is_empty()).then(|| Box::new(map)))
    }
}

impl<K: Ord, V, const N: usize> From<[(K, V); N]> for RareMap<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        BTreeMap::from(entries).into()
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for RareMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        entries.into_iter().collect::<BTreeMap<_, _>>().into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::{collection, prelude::*};

    use super::{Few, RareMap};

    proptest! {
        #[test]
        fn a_set_of_few_is_a_set(steps in collection::vec((any::<bool>(), 0..4u8), 0..40)) {
            let (mut few, mut set) = (Few::default(), BTreeSet::new());
            for (add, element) in steps {
                if add {
                    few.insert(element);
                    set.insert(element);
                } else {
                    few.remove(&element);
                    set.remove(&element);
                }
                prop_assert!(few.iter().eq(&set));
                prop_assert_eq!((few.len(), few.is_empty()), (set.len(), set.is_empty()));
                prop_assert!((0..4).all(|it| few.contains(&it) == set.contains(&it)));
                // Whatever it went through, it is what it is.
                let mut straight = Few::default();
                for element in &set {
                    straight.insert(*element);
                }
                prop_assert_eq!(&few, &straight);
            }
        }

        #[test]
        fn a_rare_map_is_a_map(steps in collection::vec((any::<bool>(), 0..4u8, any::<u8>()), 0..40)) {
            let (mut rare, mut map) = (RareMap::default(), BTreeMap::new());
            for (add, key, value) in steps {
                if add {
                    rare.insert(key, value);
                    map.insert(key, value);
                } else {
                    rare.remove(&key);
                    map.remove(&key);
                }
                prop_assert!(rare.iter().eq(&map) && rare.values().eq(map.values()));
                prop_assert_eq!((rare.len(), rare.is_empty()), (map.len(), map.is_empty()));
                prop_assert!((0..4).all(|key| rare.get(&key) == map.get(&key)));
                prop_assert_eq!(&rare, &RareMap::from(map.clone()));
                prop_assert_eq!(&rare, &map.iter().map(|(key, value)| (*key, *value)).collect());
            }
        }
    }

    #[test]
    fn what_is_usual_takes_little() {
        use crate::core::{Carried, Instance, Lease, Spec};
        let word = size_of::<usize>();
        assert_eq!(size_of::<RareMap<u64, u64>>(), word);
        assert_eq!(size_of::<Carried>(), 3 * word, "one instance, no tag");
        assert_eq!(size_of::<Lease>(), 8 * word);
        assert_eq!(size_of::<Instance>(), 11 * word);
        assert_eq!(size_of::<Spec>(), 8 * word);
    }
}
