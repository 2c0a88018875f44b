//! What becomes of a group that is durable: evolve, publish, answer, in this order (D2).
//!
//! Owns what an answer says. A failed group is not its business.

use super::{Writer, told};
use crate::{
    core::{Command, Committed, Event, Now, Record, Revision, ServiceChange},
    registry::{Written, group::Member},
};

/// Records of a group that are settled before their callers are answered; of the next part twice as many, and so on, for each part
/// costs a look at every watcher.
const FIRST_PART: usize = 4;

impl Writer {
    /// A part of the group at a time, so that its first callers go on while the rest is worked on.
    pub(super) fn settle(
        &mut self,
        now: Now,
        records: Vec<Record>,
        revisions: Vec<Revision>,
        members: Vec<Member>,
    ) {
        let mut group = records.into_iter().zip(revisions).zip(members);
        let mut changes: Vec<ServiceChange> = Vec::new();
        let mut at_once = FIRST_PART;
        loop {
            let mut part = Vec::with_capacity(at_once.min(group.len()));
            for ((record, revision), member) in group.by_ref().take(at_once) {
                let committed = Committed { revision, record };
                let done = self.core.evolve(now, &committed);
                told::tell(&committed.record, revision, &done);
                changes.extend(done);
                part.push((committed, member));
            }
            if part.is_empty() {
                break;
            }
            self.hub.publish(&changes, self.core.state().revision());
            changes.clear();
            at_once *= 2;
            for (committed, member) in part {
                if let Some(pending) = member.pending {
                    let written = self.written(&pending.command, &committed.record, Some(committed.revision));
                    pending.answer(Ok(written));
                }
            }
        }
        if self.in_flight.is_none() {
            self.gathering.settled();
        }
        // In the order in which they came.
        for pending in self.deferred.drain(..).rev() {
            self.waiting.push_front(pending);
        }
    }

    /// `revision`: what the command's own record got. What changed nothing is repeated, and was done by then: the revision is
    /// the one at which its instances came to be as they are, so that whoever waits for it waits for the right change.
    pub(super) fn written(&self, command: &Command, record: &Record, revision: Option<Revision>) -> Written {
        let state = self.core.state();
        let instances = match command {
            Command::Register { instances, .. } => instances.as_slice(),
            _ => &[],
        };
        let named: Vec<_> = instances.iter().map(|(key, id, _)| state.instance(key, id)).collect();
        let repeated = || named.iter().flatten().map(|instance| instance.mod_revision).max();
        let revision = revision.or_else(repeated).unwrap_or_else(|| state.revision());
        let incarnations = named.iter().map(|it| it.map_or(0, |instance| instance.create_revision)).collect();
        let affects = |event: &&Event| matches!(event, Event::Removed { .. } | Event::Released { .. });
        let affected = record.events.iter().filter(affects).count();
        Written { revision, incarnations, affected }
    }
}
