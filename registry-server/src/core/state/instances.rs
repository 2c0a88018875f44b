//! The instances of one service, by id. Owns how they are found, and nothing of what an instance is.

use std::{
    borrow::Borrow,
    collections::HashSet,
    fmt,
    hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use crate::core::{Instance, InstanceId};

/// Of a table with fewer places none is given back.
const SMALL: usize = 64;

/// The instances of a service. A map whose keys are in its values, which is a third of the size; and hashed, since to find one in a
/// tree compares the id with a dozen others, each somewhere else in memory. Who wants them in order has them sorted.
#[derive(Clone, Default)]
pub struct Instances(HashSet<ById, BuildHasherDefault<DefaultHasher>>);

#[derive(Clone)]
struct ById(Arc<Instance>);

impl Instances {
    /// The instance of an id.
    pub fn get(&self, id: &str) -> Option<&Arc<Instance>> {
        self.0.get(id).map(|ById(instance)| instance)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The instances, in no order that means anything.
    pub fn in_any_order(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.0.iter().map(|ById(instance)| instance)
    }

    /// The ids, in order. O(n log n).
    pub fn keys(&self) -> impl Iterator<Item = &InstanceId> {
        self.values().map(|instance| &instance.id)
    }

    /// The instances, in the order of their ids. O(n log n).
    pub fn values(&self) -> impl Iterator<Item = &Arc<Instance>> {
        let mut all: Vec<_> = self.in_any_order().collect();
        all.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        all.into_iter()
    }

    /// Ids and instances, in the order of the ids. O(n log n).
    pub fn iter(&self) -> impl Iterator<Item = (&InstanceId, &Arc<Instance>)> {
        self.values().map(|instance| (&instance.id, instance))
    }

    /// Puts an instance in the place of the one with its id, and returns that.
    pub(super) fn insert(&mut self, instance: Arc<Instance>) -> Option<Arc<Instance>> {
        self.0.replace(ById(instance)).map(|ById(old)| old)
    }

    /// Takes an instance out.
    pub(super) fn remove(&mut self, id: &str) -> Option<Arc<Instance>> {
        let ById(old) = self.0.take(id)?;
        // What was a large service and is none any more keeps no large table.
        if self.0.capacity() > SMALL && self.0.len() < self.0.capacity() / 8 {
            self.0.shrink_to(2 * self.0.len());
        }
        Some(old)
    }
}

impl fmt::Debug for Instances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// The whole instances are compared, not only their ids.
impl PartialEq for Instances {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.in_any_order().all(|it| other.get(&it.id) == Some(it))
    }
}

impl Eq for Instances {}

impl Borrow<str> for ById {
    fn borrow(&self) -> &str {
        &self.0.id
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

/// As its id, by which it is looked up.
impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}
