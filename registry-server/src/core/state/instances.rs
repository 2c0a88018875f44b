//! The instances of one service, by id. Owns the order, and nothing of what an instance is.

use std::{borrow::Borrow, cmp::Ordering, collections::BTreeSet, fmt, sync::Arc};

use crate::core::{Instance, InstanceId};

/// The instances of a service, in the order of their ids. A map whose keys are in its values: a third of the size.
#[derive(Clone, Default)]
pub struct Instances(BTreeSet<ById>);

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

    /// The ids.
    pub fn keys(&self) -> impl Iterator<Item = &InstanceId> {
        self.values().map(|instance| &instance.id)
    }

    /// The instances.
    pub fn values(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.0.iter().map(|ById(instance)| instance)
    }

    /// Ids and instances.
    pub fn iter(&self) -> impl Iterator<Item = (&InstanceId, &Arc<Instance>)> {
        self.values().map(|instance| (&instance.id, instance))
    }

    /// Puts an instance in the place of the one with its id, and returns that.
    pub(super) fn insert(&mut self, instance: Arc<Instance>) -> Option<Arc<Instance>> {
        self.0.replace(ById(instance)).map(|ById(old)| old)
    }

    /// Takes an instance out.
    pub(super) fn remove(&mut self, id: &str) -> Option<Arc<Instance>> {
        self.0.take(id).map(|ById(old)| old)
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
        self.len() == other.len() && self.values().eq(other.values())
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

impl PartialOrd for ById {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ById {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.id.cmp(&other.0.id)
    }
}
