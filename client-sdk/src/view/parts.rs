//! Puts the parts of a large change together again, in bounded memory.

use registry_proto::v1;

use super::{
    Resync,
    size::{self, Limits, MAX_PARTS},
};

/// The change being received. Messages of other views may come in between; another change of the same view may not,
/// except one that starts over from part 0.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pending: Option<v1::Change>,
    /// About what `pending` takes up.
    bytes: usize,
}

impl Parts {
    /// Adds a part. `Some`: the change is complete.
    pub(crate) fn add(&mut self, part: v1::Change, limits: Limits) -> Result<Option<v1::Change>, Resync> {
        if part.part == 0 {
            // Whatever was half there was replaced.
            self.clear();
        }
        let bytes = std::mem::take(&mut self.bytes).saturating_add(size::of_change(&part));
        let mut whole = match (self.pending.take(), part.part) {
            (None, 0) => head(&part),
            // No overflow: a pending part was not the last one, and there are few.
            (Some(pending), n) if continues(&pending, &part) && n == pending.part + 1 => pending,
            _ => return Err(Resync::Parts("a part is missing, or of another change")),
        };
        if part.last_part >= MAX_PARTS || part.part > part.last_part {
            return Err(Resync::Parts("it has more parts than any change can have"));
        }
        whole.part = part.part;
        whole.all.extend(part.all);
        whole.added.extend(part.added);
        whole.updated.extend(part.updated);
        whole.removed.extend(part.removed);
        let count = whole.all.len() + whole.added.len() + whole.updated.len() + whole.removed.len();
        if count > limits.instances || bytes > limits.bytes {
            return Err(Resync::TooLarge);
        }
        if whole.part == whole.last_part {
            // What counts of these is what the last part says.
            whole.digest = part.digest;
            whole.service_instances = part.service_instances;
            whole.exists = part.exists;
            return Ok(Some(whole));
        }
        (self.pending, self.bytes) = (Some(whole), bytes);
        Ok(None)
    }

    /// Whether a change is half there.
    pub(crate) fn has_half(&self) -> bool {
        self.pending.is_some()
    }

    /// Forgets a half change, as a new stream starts over.
    pub(crate) fn clear(&mut self) {
        (self.pending, self.bytes) = (None, 0);
    }

    /// About what is half received takes up, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A change without its lists.
fn head(part: &v1::Change) -> v1::Change {
    v1::Change {
        kind: part.kind,
        epoch: part.epoch.clone(),
        revision: part.revision,
        previous_revision: part.previous_revision,
        reset_reason: part.reset_reason,
        last_part: part.last_part,
        ..v1::Change::default()
    }
}

fn continues(pending: &v1::Change, part: &v1::Change) -> bool {
    pending.kind == part.kind
        && pending.epoch == part.epoch
        && pending.revision == part.revision
        && pending.previous_revision == part.previous_revision
        && pending.last_part == part.last_part
}
