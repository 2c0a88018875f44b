//! One view as this process knows it: messages in, [`Change`] out. Pure: no clock, no I/O, no randomness.
//!
//! Owns the acceptance rule (W2), the assembling of parts (W4), the check of the digest (W8) and the disbelief in
//! emptiness (W9). Does not own streams: what to do about a [`Resync`] is [`watch`](crate::watch)'s business. Whatever a
//! server sends, the last good view stays until a better one is complete, and memory stays bounded: a view and what is half
//! received of its next one are each at most a million instances and 256 MiB (`size`).
//!
//! ```text
//!            complete snapshot, digest true
//!   Empty ───────────────────────────────────▶ Good ◀──┐ delta with previous ≤ cursor < revision, digest true;
//!     │                                         │  └───┘ snapshot; bookmark (moves the cursor only)
//!     │ anything else                           │ gap, other epoch, digest false, parts missing …
//!     ▼                                         ▼
//!   Resync: deltas and bookmarks are ignored, the last good view stays, until a snapshot is good
//! ```

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod parts;
pub(crate) mod size;
pub(crate) mod wire;

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, sync::Arc};

use parts::Parts;
use registry_proto::v1;
use size::{LONGEST_EPOCH, Limits, MAX_BYTES, MAX_INSTANCES, Total};

use crate::model::{Change, Endpoint, Instance, InstanceList, Selector};

/// Names a view: the instances of one service after one selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewKey {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The service.
    pub service: Arc<str>,
    /// Which of its instances.
    pub selector: Selector,
}

impl From<&Endpoint> for ViewKey {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            namespace: Arc::clone(&endpoint.namespace),
            service: Arc::clone(&endpoint.service),
            selector: endpoint.selector.clone(),
        }
    }
}

impl fmt::Display for ViewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service)
    }
}

/// The revision up to which a view was told everything, and the history that the revision belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The history. Compared for equality only.
    pub epoch: Arc<str>,
    /// The revision.
    pub revision: u64,
}

/// Why a view needs a fresh snapshot. The last good view stays meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Resync {
    /// A delta came before any snapshot.
    #[error("a delta came before the first snapshot")]
    NoBase,
    /// A delta starts beyond the cursor: something in between was not received.
    #[error("a delta starts at revision {previous}, but this view is at {cursor}")]
    Gap {
        /// Where the delta starts.
        previous: u64,
        /// Where the view is.
        cursor: u64,
    },
    /// A delta of another epoch: only a snapshot can change the epoch.
    #[error("a delta is of epoch `{0}`, which is not this view's")]
    Epoch(String),
    /// A snapshot is older than what this view already shows, in the same epoch.
    #[error("a snapshot is of revision {offered}, older than what is known at {known}")]
    Older {
        /// The snapshot's revision.
        offered: u64,
        /// The revision of the last change that was applied.
        known: u64,
    },
    /// The instances do not add up to the digest that was sent (W8).
    #[error("the digest does not match at revision {0}")]
    Digest(u64),
    /// An empty view, although the service has instances and the view selects them all (W9).
    #[error("an empty view of a service with {0} instances")]
    FalselyEmpty(u32),
    /// The parts of a change do not fit together.
    #[error("the parts of a change do not fit together: {0}")]
    Parts(&'static str),
    /// More than any view can have.
    #[error("more than {MAX_INSTANCES} instances or {MAX_BYTES} bytes")]
    TooLarge,
    /// A change that no registry sends: of no known kind, or with an instance twice.
    #[error("a malformed change: {0}")]
    Malformed(&'static str),
}

/// One view as this process knows it.
#[derive(Debug)]
pub struct LocalView {
    key: ViewKey,
    /// Ordered by id.
    all: InstanceList,
    /// Instances that this version of the SDK cannot call (their address is of a form it does not know), by id, with
    /// their revisions: they count for the digest.
    unreadable: BTreeMap<Arc<str>, (u64, u64)>,
    total: Total,
    limits: Limits,
    cursor: Option<Cursor>,
    /// The revision of the last snapshot or delta that was applied.
    applied: u64,
    parts: Parts,
    needs_snapshot: bool,
}

/// What a change does to one id.
enum Edit {
    Put(Arc<Instance>),
    /// `create_revision` and `mod_revision` of an instance that cannot be called.
    Unreadable(u64, u64),
    /// The incarnation that left; a newer one stays.
    Remove(u64),
}

/// What a change says of the view that it leads to.
struct Claim {
    digest: u64,
    revision: u64,
    service_instances: u32,
}

impl LocalView {
    /// A view of which nothing is known.
    pub fn new(key: ViewKey) -> Self {
        Self {
            key,
            all: [].into(),
            unreadable: BTreeMap::new(),
            total: Total::default(),
            limits: Limits::default(),
            cursor: None,
            applied: 0,
            parts: Parts::default(),
            needs_snapshot: false,
        }
    }

    /// A view as it was when its cursor was there, for example from a cache file.
    pub fn restored(
        key: ViewKey,
        cursor: Cursor,
        instances: impl IntoIterator<Item = Arc<Instance>>,
    ) -> Self {
        let by_id: BTreeMap<Arc<str>, Arc<Instance>> =
            instances.into_iter().map(|instance| (Arc::clone(&instance.id), instance)).collect();
        let all: InstanceList = by_id.into_values().collect();
        let (total, applied) = (Total::of(&*all), cursor.revision);
        Self { all, total, cursor: Some(cursor), applied, ..Self::new(key) }
    }

    /// Which view it is.
    pub fn key(&self) -> &ViewKey {
        &self.key
    }

    /// The last good view, ordered by id.
    pub fn instances(&self) -> &InstanceList {
        &self.all
    }

    /// Where to resume. `None`: nothing good was received yet.
    pub fn cursor(&self) -> Option<&Cursor> {
        self.cursor.as_ref()
    }

    /// Whether only a snapshot can help. Ask for one with `force_snapshot`.
    pub fn needs_snapshot(&self) -> bool {
        self.needs_snapshot
    }

    /// A new stream begins: what was half received comes again from the start.
    pub fn stream_reset(&mut self) {
        self.parts.clear();
    }

    /// About what is half received of a change takes up, in bytes.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.parts.bytes()
    }

    /// Other limits than the usual ones.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn limit(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Forgets what is half received: a snapshot is needed.
    pub(crate) fn give_up_parts(&mut self) {
        self.parts.clear();
        self.needs_snapshot = true;
    }

    /// Takes a change in. `Some`: the view is another one, stamped with the version that `version` gives; the first
    /// snapshot always is one, and so is every later one, even if its lists of differences are empty.
    pub fn apply(
        &mut self,
        message: v1::Change,
        version: impl FnOnce() -> u64,
    ) -> Result<Option<Change<ViewKey>>, Resync> {
        let applied = self.try_apply(message, version);
        if applied.is_err() {
            self.give_up_parts();
        }
        applied
    }

    /// Takes a bookmark in: everything up to its revision was delivered (W7). One that comes in the middle of a change is not
    /// believed.
    pub fn bookmark(&mut self, epoch: &str, revision: u64) {
        if self.needs_snapshot || self.parts.has_half() {
            return;
        }
        if let Some(cursor) = self.cursor.as_mut().filter(|cursor| *cursor.epoch == *epoch) {
            cursor.revision = cursor.revision.max(revision);
        }
    }

    fn try_apply(
        &mut self,
        message: v1::Change,
        version: impl FnOnce() -> u64,
    ) -> Result<Option<Change<ViewKey>>, Resync> {
        if message.epoch.len() > LONGEST_EPOCH {
            return Err(Resync::Malformed("`epoch` is longer than any registry's"));
        }
        match message.kind() {
            v1::ChangeKind::Snapshot => match self.parts.add(message, self.limits)? {
                Some(whole) => self.snapshot(whole, version).map(Some),
                None => Ok(None),
            },
            v1::ChangeKind::Delta if self.needs_snapshot => Ok(None),
            v1::ChangeKind::Delta => {
                if !self.is_due(&message)? {
                    return Ok(None);
                }
                match self.parts.add(message, self.limits)? {
                    Some(whole) => self.delta(whole, version),
                    None => Ok(None),
                }
            }
            v1::ChangeKind::Bookmark => {
                self.bookmark(&message.epoch, message.revision);
                Ok(None)
            }
            v1::ChangeKind::Unspecified => Err(Resync::Malformed("of no known kind")),
        }
    }

    /// The acceptance rule. `false`: known already.
    fn is_due(&self, delta: &v1::Change) -> Result<bool, Resync> {
        let cursor = self.cursor.as_ref().ok_or(Resync::NoBase)?;
        if *cursor.epoch != *delta.epoch {
            return Err(Resync::Epoch(delta.epoch.clone()));
        }
        if delta.revision <= cursor.revision {
            return Ok(false);
        }
        if delta.previous_revision > cursor.revision {
            return Err(Resync::Gap { previous: delta.previous_revision, cursor: cursor.revision });
        }
        Ok(true)
    }

    fn snapshot(
        &mut self,
        whole: v1::Change,
        version: impl FnOnce() -> u64,
    ) -> Result<Change<ViewKey>, Resync> {
        if let Some(cursor) = self.cursor.as_ref().filter(|cursor| *cursor.epoch == *whole.epoch)
            && whole.revision < self.applied.min(cursor.revision)
        {
            return Err(Resync::Older { offered: whole.revision, known: self.applied });
        }
        let claim = claim(&whole);
        let count = whole.all.len();
        let read = self.read(whole.all);
        if read.len() != count {
            return Err(Resync::Malformed("an instance twice in a snapshot"));
        }
        let mut all = Vec::with_capacity(count);
        let mut unreadable = BTreeMap::new();
        let mut total = Total::default();
        for (id, edit) in read {
            match edit {
                Edit::Put(instance) => {
                    total.add(&instance);
                    all.push(instance);
                }
                Edit::Unreadable(created, modified) => {
                    total.add_unreadable(&id, (created, modified));
                    unreadable.insert(id, (created, modified));
                }
                Edit::Remove(_) => {}
            }
        }
        self.check(count, total, &claim)?;
        let change = Change::between(self.key.clone(), &self.all, all.into(), Some(version()));
        self.all = Arc::clone(&change.all);
        self.unreadable = unreadable;
        self.moved(whole.epoch.into(), whole.revision, total);
        Ok(change)
    }

    /// Applies a delta in one pass over its edits; what lies between them is copied.
    fn delta(
        &mut self,
        whole: v1::Change,
        version: impl FnOnce() -> u64,
    ) -> Result<Option<Change<ViewKey>>, Resync> {
        let claim = claim(&whole);
        let removed =
            whole.removed.into_iter().map(|gone| (gone.id.into(), Edit::Remove(gone.create_revision)));
        let mut edits: BTreeMap<Arc<str>, Edit> = removed.collect();
        edits.extend(self.read(whole.added));
        edits.extend(self.read(whole.updated));

        let mut all = Vec::with_capacity(self.all.len() + edits.len());
        let mut unreadable = self.unreadable.clone();
        let mut total = self.total;
        let (mut added, mut updated, mut removed) = (Vec::new(), Vec::new(), Vec::new());
        let mut rest: &[Arc<Instance>] = &self.all;
        for (id, edit) in edits {
            let (at, old) = match rest.binary_search_by(|instance| instance.id.cmp(&id)) {
                Ok(at) => (at, Some(&rest[at])),
                Err(at) => (at, None),
            };
            all.extend_from_slice(&rest[..at]);
            rest = &rest[at + usize::from(old.is_some())..];
            if let Edit::Remove(incarnation) = edit
                && let Some(newer) = old.filter(|old| old.create_revision > incarnation)
            {
                all.push(Arc::clone(newer));
                continue;
            }
            if let Some(old) = old {
                total.subtract(old);
            }
            if let Some(revisions) = unreadable.remove(&id) {
                total.subtract_unreadable(&id, revisions);
            }
            if let Edit::Put(new) = edit {
                total.add(&new);
                match old {
                    None => added.push(Arc::clone(&new)),
                    Some(old) if *old != new => updated.push(Arc::clone(&new)),
                    Some(_) => {}
                }
                all.push(new);
                continue;
            }
            removed.extend(old.cloned());
            if let Edit::Unreadable(created, modified) = edit {
                total.add_unreadable(&id, (created, modified));
                unreadable.insert(id, (created, modified));
            }
        }
        all.extend_from_slice(rest);
        self.check(all.len() + unreadable.len(), total, &claim)?;

        self.all = all.into();
        self.unreadable = unreadable;
        self.moved(whole.epoch.into(), whole.revision, total);
        if added.is_empty() && updated.is_empty() && removed.is_empty() {
            return Ok(None);
        }
        Ok(Some(Change {
            key: self.key.clone(),
            all: Arc::clone(&self.all),
            added: added.into(),
            updated: updated.into(),
            removed: removed.into(),
            version: Some(version()),
        }))
    }

    /// Reads instances, ordered by id; of two with the same id, the later one.
    fn read(&self, instances: Vec<v1::Instance>) -> BTreeMap<Arc<str>, Edit> {
        let read = |instance: v1::Instance| -> (Arc<str>, Edit) {
            let id = if instance.id.is_empty() { &instance.address } else { &instance.id };
            let id: Arc<str> = id.as_str().into();
            let (created, modified) = (instance.create_revision, instance.mod_revision);
            match wire::instance(instance) {
                Ok(instance) => (id, Edit::Put(Arc::new(instance))),
                Err(error) => {
                    tracing::warn!(view = %self.key, %id, %error, "an instance is left out");
                    (id, Edit::Unreadable(created, modified))
                }
            }
        };
        instances.into_iter().map(read).collect()
    }

    /// Whether a view of `count` instances that add up to `total` may be believed.
    fn check(&self, count: usize, total: Total, claim: &Claim) -> Result<(), Resync> {
        if count > self.limits.instances || total.bytes > self.limits.bytes {
            return Err(Resync::TooLarge);
        }
        if total.digest != claim.digest {
            return Err(Resync::Digest(claim.revision));
        }
        if count == 0 && self.key.selector == Selector::all() && claim.service_instances > 0 {
            return Err(Resync::FalselyEmpty(claim.service_instances));
        }
        Ok(())
    }

    fn moved(&mut self, epoch: Arc<str>, revision: u64, total: Total) {
        self.cursor = Some(Cursor { epoch, revision });
        self.applied = revision;
        self.total = total;
        self.needs_snapshot = false;
    }
}

fn claim(whole: &v1::Change) -> Claim {
    Claim { digest: whole.digest, revision: whole.revision, service_instances: whole.service_instances }
}
