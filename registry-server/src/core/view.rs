//! Which instances of a service a view contains, and what a run of changes did to it.
//!
//! Pure: knows nothing of watchers, encodings or revisions' history. Keeps W6: the net effect of changes is the same as
//! the changes one by one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use registry_proto::digest;

use super::{Instance, InstanceId, Revision, ServiceChange, Status};

/// Which instances of a service a view contains, in canonical form: equal meanings compare equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    tags: BTreeMap<Arc<str>, Arc<str>>,
    zone: Arc<str>,
    statuses: BTreeSet<Status>,
}

impl Selector {
    /// `tags` must be equal (of one key, the last value counts); `zone` empty: any; `statuses` empty: any.
    pub fn new(
        tags: impl IntoIterator<Item = (Arc<str>, Arc<str>)>,
        zone: impl Into<Arc<str>>,
        statuses: impl IntoIterator<Item = Status>,
    ) -> Self {
        let mut statuses: BTreeSet<Status> = statuses.into_iter().collect();
        if [Status::Up, Status::Draining, Status::Down].iter().all(|status| statuses.contains(status)) {
            statuses.clear();
        }
        Self { tags: tags.into_iter().collect(), zone: zone.into(), statuses }
    }

    /// Whether every instance matches.
    pub fn is_all(&self) -> bool {
        self.tags.is_empty() && self.zone.is_empty() && self.statuses.is_empty()
    }

    /// The tags that must be equal.
    pub fn tags(&self) -> &BTreeMap<Arc<str>, Arc<str>> {
        &self.tags
    }

    /// The zone; empty: any.
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// The effective statuses; empty: any.
    pub fn statuses(&self) -> &BTreeSet<Status> {
        &self.statuses
    }

    /// Whether the view contains the instance. Looks at the effective status; whether it is held does not matter.
    pub fn matches(&self, instance: &Instance) -> bool {
        (self.statuses.is_empty() || self.statuses.contains(&instance.status()))
            && (self.zone.is_empty() || self.zone == instance.spec.zone)
            && self.tags.iter().all(|(key, value)| instance.spec.tags.get(key) == Some(value))
    }
}

/// What changes did to a view. Every list is in the order of the ids; no id is in two of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Instances that entered the view.
    pub added: Vec<Arc<Instance>>,
    /// Instances of the view that changed, a new incarnation included.
    pub updated: Vec<Arc<Instance>>,
    /// Instances that left the view, with the newest incarnation that the changes spoke of.
    pub removed: Vec<(InstanceId, Revision)>,
}

impl Delta {
    /// Whether nothing changed. Such a delta is still worth sending: it moves the cursor.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.updated.is_empty() && self.removed.is_empty()
    }
}

/// The net effect of one service's changes, oldest first, on the view of a selector.
///
/// It applies to the view as it was before the first of the changes: what came and went in between is left out.
pub fn net<'a>(changes: impl IntoIterator<Item = &'a ServiceChange>, selector: &Selector) -> Delta {
    struct Span<'a> {
        before: Option<&'a Arc<Instance>>,
        after: Option<&'a Arc<Instance>>,
        incarnation: Revision,
    }
    let mut spans: BTreeMap<&InstanceId, Span<'_>> = BTreeMap::new();
    for item in changes.into_iter().flat_map(|change| &change.items) {
        let incarnation =
            [&item.before, &item.after].into_iter().flatten().map(|it| it.create_revision).max().unwrap_or(0);
        let span = spans.entry(&item.id).or_insert(Span {
            before: item.before.as_ref(),
            after: None,
            incarnation: 0,
        });
        span.after = item.after.as_ref();
        span.incarnation = span.incarnation.max(incarnation);
    }
    let mut delta = Delta::default();
    for (id, span) in spans {
        let before = span.before.filter(|instance| selector.matches(instance));
        let after = span.after.filter(|instance| selector.matches(instance));
        match (before, after) {
            (None, None) => {}
            (None, Some(after)) => delta.added.push(after.clone()),
            (Some(_), None) => delta.removed.push((id.clone(), span.incarnation)),
            (Some(before), Some(after)) => {
                if (before.create_revision, before.mod_revision)
                    != (after.create_revision, after.mod_revision)
                {
                    delta.updated.push(after.clone());
                }
            }
        }
    }
    delta
}

/// Applies a delta to a view, as a client does: an incarnation newer than the removed one stays.
pub fn apply(view: &mut BTreeMap<InstanceId, Arc<Instance>>, delta: &Delta) {
    for (id, incarnation) in &delta.removed {
        if view.get(id).is_some_and(|instance| instance.create_revision <= *incarnation) {
            view.remove(id);
        }
    }
    for instance in delta.added.iter().chain(&delta.updated) {
        view.insert(instance.id.clone(), instance.clone());
    }
}

/// The digest of a view: see [`registry_proto::digest`].
pub fn digest<'a>(instances: impl IntoIterator<Item = &'a Arc<Instance>>) -> u64 {
    instances.into_iter().fold(0, |sum, instance| sum.wrapping_add(digest_of(instance)))
}

/// What one instance adds to the digest of its view.
pub fn digest_of(instance: &Instance) -> u64 {
    digest::of(&instance.id, instance.create_revision, instance.mod_revision)
}
