//! The services by name: found by hash, since that is asked with every event, and listed in the order of their keys, page by
//! page. Owns that the two agree.

use std::{collections::BTreeSet, ops::Bound};

use super::Service;
use crate::core::{FixedMap, ServiceKey};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Services {
    by_key: FixedMap<ServiceKey, Service>,
    /// The keys of `by_key`.
    order: BTreeSet<ServiceKey>,
}

impl Services {
    pub(super) fn get(&self, key: &ServiceKey) -> Option<&Service> {
        self.by_key.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &ServiceKey) -> Option<&mut Service> {
        self.by_key.get_mut(key)
    }

    /// The service, which begins if it is not there.
    pub(super) fn get_or_begin(&mut self, key: &ServiceKey) -> &mut Service {
        if !self.by_key.contains_key(key) {
            self.order.insert(key.clone());
            self.by_key.insert(key.clone(), Service::new(key.clone()));
        }
        self.by_key.get_mut(key).expect("it is there by now")
    }

    pub(super) fn remove(&mut self, key: &ServiceKey) {
        self.order.remove(key);
        self.by_key.remove(key);
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// In the order of the keys, from the first one behind `after`.
    pub(super) fn after(&self, after: Option<&ServiceKey>) -> impl Iterator<Item = (&ServiceKey, &Service)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.order.range((from, Bound::Unbounded)).filter_map(|key| self.by_key.get_key_value(key))
    }

    /// In no order that means anything.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&ServiceKey, &mut Service)> {
        self.by_key.iter_mut()
    }
}
