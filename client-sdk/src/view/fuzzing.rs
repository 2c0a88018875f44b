//! What holds of a view whatever a registry sends, as checks that panic: for tests that make messages up, and for fuzzers.

use std::{collections::BTreeMap, sync::Arc};

use registry_proto::v1;

use super::{
    LocalView, Resync, ViewKey,
    size::{Limits, Total},
};
use crate::model::{Change, Instance, Selector};

/// Small limits, so that they are reached.
pub(crate) const LIMITS: Limits = Limits { instances: 16, bytes: 16 << 10 };

/// A view that is checked after each message.
pub(crate) struct Checked {
    pub(crate) view: LocalView,
    version: u64,
}

impl Checked {
    /// Of which nothing is known.
    pub(crate) fn new() -> Self {
        let key = ViewKey { namespace: "default".into(), service: "s".into(), selector: Selector::all() };
        let mut view = LocalView::new(key);
        view.limit(LIMITS);
        Self { view, version: 0 }
    }

    /// Takes a message in.
    pub(crate) fn apply(&mut self, message: v1::Change) -> Result<Option<Change<ViewKey>>, Resync> {
        let before = self.view.instances().clone();
        let service_instances = message.service_instances;
        self.version += 1;
        let applied = self.view.apply(message, || self.version);
        match &applied {
            Ok(Some(change)) => {
                assert_eq!(change.version, Some(self.version));
                assert_eq!(&change.all, self.view.instances());
                assert_differences(&before, change);
                // What is there and cannot be called is not there for callers: those before it are gone all the same (C2).
                let empty = service_instances == 0 || !self.view.unreadable.is_empty();
                assert!(!change.all.is_empty() || empty, "W9: emptied although the service is not");
            }
            Ok(None) => assert_eq!(&before, self.view.instances(), "changed without a word"),
            Err(_) => {
                assert!(self.view.needs_snapshot());
                assert_eq!(&before, self.view.instances(), "C1: the last good view stays");
            }
        }
        assert_sound(&self.view);
        applied
    }
}

/// Whether the service has instances that cannot be called.
pub(crate) fn has_unreadable(view: &LocalView) -> bool {
    !view.unreadable.is_empty()
}

/// What holds of any view at any time.
pub(crate) fn assert_sound(view: &LocalView) {
    assert!(view.instances().is_sorted_by(|a, b| a.id < b.id), "ordered by id, each once");
    let mut total = Total::of(&**view.instances());
    for (id, revisions) in &view.unreadable {
        total.add_unreadable(id, *revisions);
    }
    assert_eq!(view.total, total, "W8: kept up to date is as from scratch");
    assert!(view.total.bytes <= view.limits.bytes, "{} bytes", view.total.bytes);
    assert!(view.instances().len() + view.unreadable.len() <= view.limits.instances);
    assert!(view.pending_bytes() <= view.limits.bytes, "{} bytes are half received", view.pending_bytes());
}

/// The differences lead from what was shown to what is.
fn assert_differences(before: &[Arc<Instance>], change: &Change<ViewKey>) {
    let mut mirror: BTreeMap<_, _> = before.iter().map(|it| (Arc::clone(&it.id), Arc::clone(it))).collect();
    for gone in change.removed.iter() {
        assert!(mirror.remove(&gone.id).is_some(), "removed, and was not there");
    }
    for new in change.added.iter() {
        assert!(mirror.insert(Arc::clone(&new.id), Arc::clone(new)).is_none(), "added, and was there");
    }
    for new in change.updated.iter() {
        assert!(mirror.insert(Arc::clone(&new.id), Arc::clone(new)).is_some(), "updated, and was not there");
    }
    assert!(mirror.into_values().eq(change.all.iter().cloned()), "the differences do not add up");
}
