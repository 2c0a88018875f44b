//! A view put together from what a watcher is told: the acceptance rule, the parts and the digest, written from the
//! protocol alone, a second time beside the SDK's.
//!
//! ```text
//!  v1::Change ─► Assembler ── all parts there ──► Told ─► Replica::accepts? ─► Replica::apply
//! ```

use std::sync::Arc;

use registry_proto::v1;

use crate::history::{Cursor, Item, Items, Recorder, Told};

/// Collects the parts of one view's changes.
#[derive(Debug, Default)]
pub struct Assembler {
    pending: Option<Told>,
}

impl Assembler {
    /// Takes a part. `Some`: the change is whole. `Err`: the part does not belong here.
    pub fn take(&mut self, part: v1::Change, recorder: &Recorder) -> Result<Option<Told>, String> {
        let v1::Change { kind, epoch, revision, previous_revision, all, added, updated, removed, .. } = part;
        let snapshot = match v1::ChangeKind::try_from(kind) {
            Ok(v1::ChangeKind::Snapshot) => true,
            Ok(v1::ChangeKind::Delta) => false,
            _ => return Err(format!("a change of kind {kind}")),
        };
        let reason = v1::ResetReason::try_from(part.reset_reason).unwrap_or_default();
        let mut told = match self.pending.take() {
            // A first part replaces whatever was not finished.
            _ if part.part == 0 => Told {
                snapshot,
                epoch: epoch.into(),
                revision,
                previous: previous_revision,
                reason,
                ..Told::default()
            },
            Some(pending)
                if pending.parts == part.part
                    && (pending.snapshot, pending.revision, &*pending.epoch)
                        == (snapshot, revision, &*epoch) =>
            {
                pending
            }
            other => {
                let had = other.map(|pending| (pending.revision, pending.parts));
                return Err(format!(
                    "part {} of revision {revision} after (revision, parts) {had:?}",
                    part.part
                ));
            }
        };
        told.parts += 1;
        let items = |instances: Vec<v1::Instance>| -> Vec<Arc<Item>> {
            instances.iter().map(|instance| recorder.item(instance)).collect()
        };
        if snapshot {
            told.put.extend(items(all));
        } else {
            told.all.extend(items(all));
            told.put.extend(items(added));
            told.put.extend(items(updated));
            told.removed.extend(removed.into_iter().map(|it| (it.id.into(), it.create_revision)));
        }
        if part.part < part.last_part {
            self.pending = Some(told);
            return Ok(None);
        }
        told.digest = part.digest;
        told.service_instances = part.service_instances;
        told.exists = part.exists;
        Ok(Some(told))
    }
}

/// A view, as far as its watcher was told.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    /// The history; empty before the first snapshot.
    pub epoch: Arc<str>,
    /// Told everything up to here.
    pub cursor: u64,
    /// The instances.
    pub items: Items,
    /// The digest of `items`, computed here.
    pub digest: u64,
    /// A sum over all fields of all instances: equal for equal views.
    pub fingerprint: u64,
}

impl Replica {
    /// Whether the protocol lets a client apply this change to this state.
    pub fn accepts(&self, told: &Told) -> Result<(), String> {
        if told.snapshot {
            return Ok(());
        }
        if told.epoch != self.epoch {
            return Err(format!("a delta of epoch {} to a view of epoch {}", told.epoch, self.epoch));
        }
        if told.previous <= self.cursor && self.cursor < told.revision {
            return Ok(());
        }
        Err(format!("a delta from {} to {} at the cursor {}", told.previous, told.revision, self.cursor))
    }

    /// Applies a change, acceptable or not.
    pub fn apply(&mut self, told: &Told) {
        if told.snapshot {
            *self = Self { epoch: Arc::clone(&told.epoch), ..Self::default() };
        }
        for (id, create_revision) in &told.removed {
            if self.items.get(id).is_some_and(|item| item.create_revision <= *create_revision) {
                let gone = self.items.remove(id);
                self.forget(gone);
            }
        }
        for item in &told.put {
            self.digest = self.digest.wrapping_add(item.digest);
            self.fingerprint = self.fingerprint.wrapping_add(item.fingerprint);
            let before = self.items.insert(Arc::clone(&item.id), Arc::clone(item));
            self.forget(before);
        }
        self.cursor = told.revision;
    }

    /// Takes in that everything up to a bookmark is known.
    pub fn bookmark(&mut self, bookmark: &Cursor) {
        if self.epoch == bookmark.epoch {
            self.cursor = self.cursor.max(bookmark.revision);
        }
    }

    /// Where to resume; `None` before the first snapshot.
    pub fn resume(&self) -> Option<Cursor> {
        let known = !self.epoch.is_empty();
        known.then(|| Cursor { epoch: Arc::clone(&self.epoch), revision: self.cursor })
    }

    fn forget(&mut self, item: Option<Arc<Item>>) {
        if let Some(item) = item {
            self.digest = self.digest.wrapping_sub(item.digest);
            self.fingerprint = self.fingerprint.wrapping_sub(item.fingerprint);
        }
    }
}
