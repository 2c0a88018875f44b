//! What changed in a view.

use std::sync::Arc;

use super::Instance;

/// Instances that many hold at once: clones in O(1), reads as a slice.
pub type InstanceList = Arc<[Arc<Instance>]>;

/// One change of one view: the whole of it, and what is different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<K> {
    /// The view.
    pub key: K,
    /// The whole view after the change.
    pub all: InstanceList,
    /// What entered.
    pub added: InstanceList,
    /// What stayed and changed, with its new content.
    pub updated: InstanceList,
    /// What left, as it was.
    pub removed: InstanceList,
    /// Local to this process and this key, strictly growing. `None` if the discovery does not version its views.
    pub version: Option<u64>,
}

impl<K> Change<K> {
    /// The change from one list to another: by id, with `updated` wherever anything at all differs.
    pub fn between(key: K, before: &[Arc<Instance>], all: InstanceList, version: Option<u64>) -> Self {
        let old: std::collections::HashMap<&str, &Arc<Instance>> =
            before.iter().map(|i| (&*i.id, i)).collect();
        let new: std::collections::HashSet<&str> = all.iter().map(|i| &*i.id).collect();
        let added = all.iter().filter(|i| !old.contains_key(&*i.id)).cloned().collect();
        let updated = all
            .iter()
            .filter(|i| old.get(&*i.id).is_some_and(|o| o.as_ref() != i.as_ref()))
            .cloned()
            .collect();
        let removed = before.iter().filter(|i| !new.contains(&*i.id)).cloned().collect();
        Self { key, all, added, updated, removed, version }
    }

    /// Whether nothing is different.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.updated.is_empty() && self.removed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(port: u16, weight: u32, tag: &'static str) -> Arc<Instance> {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port)).into();
        Instance::builder(address).weight(weight).tag("t", tag).build().into()
    }

    #[test]
    fn a_diff_sees_changes_of_weight_and_of_tags_only() {
        let before = [instance(1, 1, "a"), instance(2, 1, "a"), instance(3, 1, "a"), instance(4, 1, "a")];
        let after: InstanceList =
            [instance(1, 1, "a"), instance(2, 9, "a"), instance(3, 1, "b"), instance(5, 1, "a")].into();
        let change = Change::between((), &before, Arc::clone(&after), None);
        assert_eq!(&*change.updated, &after[1..3]);
        assert_eq!(&*change.added, &after[3..]);
        assert_eq!(&*change.removed, &before[3..]);
        assert!(Change::between((), &after, Arc::clone(&after), None).is_empty());
    }
}
