//! One view of one client, as far as it matters who has applied what. Owns the facts only; [`super::acks`] changes them.

use std::sync::Arc;

use crate::core::{Revision, Selector};

/// One stream to a watcher. Later ones have higher numbers.
pub(super) type StreamId = u64;

/// From where a view is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The client says that it has nothing.
    Nothing,
    /// It was told everything up to here.
    Cursor(Revision),
    /// It has something, and nobody knows from when.
    Unknown,
}

/// Who a watcher is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    /// One who acks, by its name.
    Client(Arc<str>),
    /// One who does not.
    Stream(StreamId),
}

/// One view of one client.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) place: Place,
    pub(super) selector: Selector,
    /// Applied up to here.
    pub(super) acked: Revision,
    /// The client never had the view as it was before this.
    pub(super) began: Revision,
    /// Opened from nothing, so that `began` is where its first snapshot is.
    pub(super) fresh: bool,
    /// The next ack of the stream speaks of this view too: it does not answer a question from before the view.
    pub(super) covered: bool,
}

/// Where a view is followed, or was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Connected { stream: StreamId, view: u32 },
    Vanished { until: u64, number: u64 },
}

impl Held {
    /// By when it is forgotten, and its number among those that vanished.
    pub(super) fn vanished(&self) -> Option<(u64, u64)> {
        match self.place {
            Place::Vanished { until, number } => Some((until, number)),
            Place::Connected { .. } => None,
        }
    }

    /// It is followed on this stream.
    pub(super) fn is_on(&self, stream: StreamId) -> bool {
        matches!(self.place, Place::Connected { stream: on, .. } if on == stream)
    }

    /// It has nothing, and was sent nothing.
    pub(super) fn told_nothing(&self) -> bool {
        self.fresh && self.began == 0
    }

    /// Whether this is what a view of a stream that ended was resumed as, before anybody noticed that it had.
    pub(super) fn speaks_for(&self, other: &Held, ended: StreamId) -> bool {
        let newer = matches!(self.place, Place::Connected { stream, .. } if stream > ended);
        newer && !self.fresh && self.selector == other.selector
    }
}

pub(super) fn position(held: &[Held], place: Place) -> Option<usize> {
    held.iter().position(|it| it.place == place)
}
