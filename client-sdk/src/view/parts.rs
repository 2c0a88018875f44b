//! Puts the parts of a large change together again, in bounded memory.

use registry_proto::v1;

use super::Resync;

/// At most this many parts: of 1 MiB each, a gibibyte.
pub(crate) const MAX_PARTS: u32 = 1024;
/// At most this many instances in one change or one view: far more than any service has.
pub(crate) const MAX_INSTANCES: usize = 1_000_000;

/// The change being received. Messages of other views may come in between; another change of the same view may not,
/// except one that starts over from part 0.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pending: Option<v1::Change>,
}

impl Parts {
    /// Adds a part. `Some`: the change is complete.
    pub(crate) fn add(&mut self, part: v1::Change) -> Result<Option<v1::Change>, Resync> {
        if part.part == 0 {
            // Whatever was half there was replaced.
            self.pending = None;
        }
        let mut whole = match (self.pending.take(), part.part) {
            (None, 0) => head(&part),
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
        if whole.all.len() + whole.added.len() + whole.updated.len() + whole.removed.len() > MAX_INSTANCES {
            return Err(Resync::TooLarge);
        }
        if whole.part == whole.last_part {
            // What counts of these is what the last part says.
            whole.digest = part.digest;
            whole.service_instances = part.service_instances;
            whole.exists = part.exists;
            return Ok(Some(whole));
        }
        self.pending = Some(whole);
        Ok(None)
    }

    /// Whether a change is half there.
    pub(crate) fn has_half(&self) -> bool {
        self.pending.is_some()
    }

    /// Forgets a half change, as a new stream starts over.
    pub(crate) fn clear(&mut self) {
        self.pending = None;
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
