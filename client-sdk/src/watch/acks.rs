//! What a stream owes the registry in acks: which one is asked for, which one waits, and which one may be sent (C4).
//!
//! ```text
//!   bookmark asks ──▶ asked ── every view that is shown is there ──▶ applying ── the sink says so ──▶ due ──▶ sent
//!                       ▲ a newer one takes its place                  │ one at a time, so that newer ones starve none
//! ```
//!
//! An ack says that nothing older than its revision is in use in this process. So it waits for views that are being read anew,
//! and for whoever acts on them. A view that nobody was shown yet holds nothing up; but from when the sink is asked on, it is
//! not shown before it is as new ([`Acks::holds_back`]).

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use registry_proto::v1;

use super::Sink;
use crate::{runtime::BoxFuture, view::Cursor};

#[derive(Default)]
pub(super) struct Acks {
    /// The newest that the registry asked for, if its turn has not come.
    asked: Option<Cursor>,
    /// The sink is asked whether everybody has applied it.
    applying: Option<(Cursor, BoxFuture<'static, ()>)>,
    /// To be sent.
    due: Option<Cursor>,
    /// The newest that the sink was asked about. It outlives the stream: nothing older is shown any more.
    floor: Option<Cursor>,
}

impl Acks {
    /// Another stream: what was asked for on the one before is owed to nobody.
    pub(super) fn stream_begins(&mut self) {
        (self.asked, self.applying, self.due) = (None, None, None);
    }

    /// A bookmark asks for an ack.
    pub(super) fn ask(&mut self, bookmark: v1::Bookmark) {
        self.asked = Some(Cursor { epoch: bookmark.epoch.into(), revision: bookmark.revision });
    }

    /// Goes on, if an ack is asked for and `is_shown` says that nothing older than that is shown.
    pub(super) fn go_on(&mut self, is_shown: impl FnOnce(&Cursor) -> bool, sink: &mut impl Sink) {
        if self.applying.is_none()
            && let Some(point) = self.asked.take_if(|point| is_shown(point))
        {
            self.floor = Some(point.clone());
            self.applying = Some((point, sink.applied()));
        }
    }

    /// Whether something of this revision is older than what was, or is about to be, acked.
    pub(super) fn holds_back(&self, cursor: &Cursor) -> bool {
        self.floor.as_ref().is_some_and(|floor| !reaches(cursor, floor) && floor.epoch == cursor.epoch)
    }

    /// Waits until what is being applied has been: then an ack is due. For ever, if nothing is.
    pub(super) async fn applied(&mut self) {
        poll_fn(|cx| self.poll_applied(cx)).await;
    }

    pub(super) fn is_due(&self) -> bool {
        self.due.is_some()
    }

    /// The ack to send.
    pub(super) fn next(&mut self) -> Option<v1::Ack> {
        let Cursor { epoch, revision } = self.due.take()?;
        Some(v1::Ack { epoch: epoch.to_string(), revision })
    }

    fn poll_applied(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some((_, applied)) = &mut self.applying else { return Poll::Pending };
        ready!(Pin::new(applied).poll(cx));
        self.due = self.applying.take().map(|(point, _)| point);
        Poll::Ready(())
    }
}

/// Whether a view at this cursor shows nothing older than that point.
pub(super) fn reaches(cursor: &Cursor, point: &Cursor) -> bool {
    cursor.epoch == point.epoch && cursor.revision >= point.revision
}
