//! One watcher of one view: where it stands, and what it is sent next.
//!
//! ```text
//!            open ──► Live ◄──────────── last part sent ───────────┐
//!              │       │ ▲                                         │
//!   no resume  │       │ └── one part: sent at once                │
//!              ▼       ├── several parts ──────────────────► Delta { next part }
//!            Reset ◄───┤ history gone (LAGGED)                     │ dropped meanwhile ──► Live
//!              │       │
//!              └──► Snapshot { generation, next part } ── last part sent ──► Live
//!                      └── generation dropped (SNAPSHOT_REPLACED) ──► Reset
//! ```
//!
//! A cursor pins nothing but its view (W10): of a snapshot it keeps the number, of a delta a weak reference.

use std::sync::{Arc, Weak};

use registry_proto::v1::ResetReason;

use super::{
    Hub,
    encode::Part,
    feed::{Between, Feed, ViewId},
    signal::{Signal, Subscription},
    view::{Delta, Latest, Newest},
};
use crate::core::{Revision, ServiceKey};

/// Where a watcher starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// It knows nothing.
    Fresh,
    /// It was told everything up to this revision of this epoch. The revision is not ahead of the head.
    Resume {
        /// The history.
        epoch: String,
        /// The revision.
        revision: Revision,
    },
    /// It wants a snapshot although it could resume.
    Forced,
}

/// What a watcher is sent next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The bytes.
    pub part: Part,
    /// What the change that this is a part of makes the view's revision.
    pub revision: Revision,
    /// On each part of a snapshot: why it is one.
    pub reset_reason: Option<ResetReason>,
}

/// A watcher. Dropping it takes it out of its view.
#[derive(Debug)]
pub struct Cursor {
    hub: Hub,
    feed: Arc<Feed>,
    view: ViewId,
    subscription_id: u64,
    subscription: Arc<Subscription>,
    latest: Arc<Latest>,
    revision: Revision,
    position: Position,
}

#[derive(Debug)]
enum Position {
    Live,
    Reset(ResetReason),
    Snapshot { generation: u64, next: usize, reason: ResetReason },
    Delta { delta: Weak<Delta>, next: usize },
}

impl Cursor {
    /// `None`: the view went away before the watcher was in it.
    pub(super) fn open(
        hub: Hub,
        feed: Arc<Feed>,
        view: ViewId,
        start: &Start,
        signal: &Arc<Signal>,
        slot: u32,
    ) -> Option<Self> {
        let (subscription_id, subscription, latest) = feed.subscribe(view, signal, slot)?;
        let (revision, position) = match start {
            Start::Fresh => (0, Position::Reset(ResetReason::Initial)),
            Start::Forced => (0, Position::Reset(ResetReason::Requested)),
            Start::Resume { epoch, .. } if epoch != hub.epoch() => {
                (0, Position::Reset(ResetReason::EpochChanged))
            }
            Start::Resume { revision, .. } if feed.can_resume(view, *revision) => (*revision, Position::Live),
            Start::Resume { .. } => (0, Position::Reset(ResetReason::HistoryGone)),
        };
        // There may be something to say at once.
        subscription.mark_surely();
        Some(Self { hub, feed, view, subscription_id, subscription, latest, revision, position })
    }

    /// What to send next. `None`: the watcher is told everything; its stream's signal will name it when that changes.
    pub fn next_step(&mut self) -> Option<Step> {
        self.subscription.clear();
        let (step, whole) = self.step()?;
        if !whole {
            // There may be more; the stream's other views come first.
            self.subscription.mark_surely();
        }
        Some(step)
    }

    /// The service that it is about.
    pub fn key(&self) -> &ServiceKey {
        &self.feed.key
    }

    /// Up to here, what was returned is whole.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// What to send next, and whether the watcher is told everything with it: what happens from now on marks it again.
    fn step(&mut self) -> Option<(Step, bool)> {
        loop {
            match &self.position {
                Position::Live => {
                    let between = match self.latest.after(self.revision) {
                        Some(Newest::Whole(part, revision)) => {
                            self.revision = revision;
                            return Some((Step { part, revision, reset_reason: None }, true));
                        }
                        Some(Newest::Delta(delta)) => Between::Delta { delta, newest: true },
                        None => self.feed.between(self.view, self.revision, &self.hub.inner.epoch),
                    };
                    match between {
                        Between::Nothing => return None,
                        Between::Unknown => self.position = Position::Reset(ResetReason::Lagged),
                        Between::Delta { delta, newest } => {
                            let step = self.send_delta(&delta, 0)?;
                            let whole = newest && matches!(self.position, Position::Live);
                            return Some((step, whole));
                        }
                    }
                }
                Position::Delta { delta, next } => {
                    let (delta, next) = (delta.upgrade(), *next);
                    self.position = Position::Live;
                    if let Some(delta) = delta {
                        return self.send_delta(&delta, next).map(|step| (step, false));
                    }
                }
                Position::Reset(reason) => {
                    let reason = *reason;
                    let head = self.hub.head();
                    let hub = &self.hub;
                    let joined =
                        self.feed.join(self.view, &hub.inner.epoch, head, || hub.next_generation())?;
                    self.position = Position::Snapshot { generation: joined.number, next: 0, reason };
                }
                Position::Snapshot { generation, next, reason } => {
                    let (number, next, reason) = (*generation, *next, *reason);
                    let Some(generation) = self.feed.generation(self.view, number) else {
                        self.position = Position::Reset(ResetReason::SnapshotReplaced);
                        continue;
                    };
                    let parts = generation.parts();
                    if next + 1 < parts.len() {
                        self.position = Position::Snapshot { generation: number, next: next + 1, reason };
                    } else {
                        self.position = Position::Live;
                        self.revision = generation.revision;
                    }
                    let part = parts.get(next)?.clone();
                    let revision = generation.revision;
                    return Some((Step { part, revision, reset_reason: Some(reason) }, false));
                }
            }
        }
    }

    fn send_delta(&mut self, delta: &Arc<Delta>, next: usize) -> Option<Step> {
        let parts = delta.parts();
        if next + 1 < parts.len() {
            self.position = Position::Delta { delta: Arc::downgrade(delta), next: next + 1 };
        } else {
            self.position = Position::Live;
            self.revision = delta.revision;
        }
        parts.get(next).map(|part| Step { part: part.clone(), revision: delta.revision, reset_reason: None })
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.feed.unsubscribe(self.view, self.subscription_id);
        self.hub.drop_if_unused(&self.feed);
    }
}
