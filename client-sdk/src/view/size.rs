//! What a view adds up to, kept up to date as instances come and go: its digest (W8) and its size; and how large it may be.
//!
//! The limits are far beyond what honest registries send. They are there so that whatever is sent, a view takes a bounded
//! amount of memory.

use std::sync::Arc;

use prost::Message as _;
use registry_proto::{digest, v1};

use crate::model::Instance;

/// At most this many instances in one change or one view: far more than any service has.
pub(crate) const MAX_INSTANCES: usize = 1_000_000;
/// At most this many bytes in one change or one view, counted as they take up memory: 256 MiB.
pub(crate) const MAX_BYTES: usize = 256 << 20;
/// At most this many bytes in an epoch, of which each view keeps one; registries take no longer ones either.
pub(crate) const LONGEST_EPOCH: usize = 253;
/// At most this many parts.
pub(super) const MAX_PARTS: u32 = 1024;

/// How much one view, and one change of it, may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) instances: usize,
    pub(crate) bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { instances: MAX_INSTANCES, bytes: MAX_BYTES }
    }
}

/// What instances add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Total {
    pub(super) digest: u64,
    pub(super) bytes: usize,
}

impl Total {
    /// Of these.
    pub(super) fn of<'a>(instances: impl IntoIterator<Item = &'a Arc<Instance>>) -> Self {
        let mut total = Self::default();
        instances.into_iter().for_each(|instance| total.add(instance));
        total
    }

    /// One comes.
    pub(super) fn add(&mut self, instance: &Instance) {
        self.digest = self.digest.wrapping_add(hash(instance));
        self.bytes = self.bytes.saturating_add(size(instance));
    }

    /// One of them goes.
    pub(super) fn subtract(&mut self, instance: &Instance) {
        self.digest = self.digest.wrapping_sub(hash(instance));
        self.bytes = self.bytes.saturating_sub(size(instance));
    }

    /// One comes of which no more is kept than its revisions.
    pub(super) fn add_unreadable(&mut self, id: &str, (created, modified): (u64, u64)) {
        self.digest = self.digest.wrapping_add(digest::of(id, created, modified));
        self.bytes = self.bytes.saturating_add(unreadable_size(id));
    }

    /// One of those goes.
    pub(super) fn subtract_unreadable(&mut self, id: &str, (created, modified): (u64, u64)) {
        self.digest = self.digest.wrapping_sub(digest::of(id, created, modified));
        self.bytes = self.bytes.saturating_sub(unreadable_size(id));
    }
}

/// About what a received change takes up: its text, and the structures around it.
pub(super) fn of_change(change: &v1::Change) -> usize {
    let instances = change.all.len() + change.added.len() + change.updated.len();
    change.encoded_len()
        + instances * size_of::<v1::Instance>()
        + change.removed.len() * size_of::<v1::Removed>()
}

fn hash(instance: &Instance) -> u64 {
    digest::of(&instance.id, instance.create_revision, instance.mod_revision)
}

/// About what an instance takes up.
fn size(instance: &Instance) -> usize {
    const TAG: usize = 64;
    let tags: usize = instance.tags.iter().map(|(key, value)| TAG + key.len() + value.len()).sum();
    let text = instance.id.len()
        + instance.address.as_str().len()
        + instance.locality.region.len()
        + instance.locality.zone.len();
    size_of::<Instance>() + text + tags
}

fn unreadable_size(id: &str) -> usize {
    const ENTRY: usize = 64;
    ENTRY + id.len()
}
