//! What one stream sends next: its views' steps in turn, then a bookmark, then silence.
//!
//! Shared by `Watch` (one view) and `Subscribe` (many). When somebody waits for the stream's client, a bookmark is due as
//! soon as nothing else is to be said, and asks for an ack. It also says to [`crate::applied`] which views there are. Keeps W7: the head is read before the marks, and a change is
//! marked before it becomes the head; so with no mark left, everything up to that head was delivered. And W1: what is
//! marked may be ahead of the head for a moment, and a bookmark waits for the head rather than go back behind it.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use registry_proto::v1::ResetReason;
use tokio::time::{Sleep, sleep};

use super::decode::Watched;
use crate::{
    applied::{Watcher, Watchers},
    core::{Revision, ServiceKey},
    hub::{Cursor, Hub, Signal, Step, ViewRefused},
};

/// A bookmark comes this often.
pub(super) const BOOKMARK_INTERVAL: Duration = Duration::from_secs(5);

/// What a stream sends.
#[derive(Debug)]
pub(super) enum Fed {
    Step(u32, Step),
    Bookmark { revision: Revision, ack_requested: bool },
}

pub(super) struct Feeder {
    hub: Hub,
    signal: Arc<Signal>,
    watcher: Watcher,
    views: HashMap<u32, (ServiceKey, Cursor)>,
    /// How many of them are of a service.
    of_service: HashMap<ServiceKey, usize>,
    timer: Pin<Box<Sleep>>,
    /// A bookmark is due as soon as nothing else is to be said.
    owed: bool,
    /// The newest revision that was sent.
    sent: Revision,
    /// The newest bookmark that was sent.
    told: Revision,
    /// Resolves when the head is at `sent`.
    catching_up: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Feeder {
    pub(super) fn new(hub: Hub, watchers: &Watchers) -> Self {
        let timer = Box::pin(sleep(BOOKMARK_INTERVAL));
        let signal = Signal::new();
        Self {
            hub,
            watcher: watchers.join(Arc::clone(&signal)),
            signal,
            views: HashMap::new(),
            of_service: HashMap::new(),
            timer,
            owed: false,
            sent: 0,
            told: 0,
            catching_up: None,
        }
    }

    /// Adds a view, in place of one of the same id. A bookmark follows its initial state.
    pub(super) fn open(&mut self, view_id: u32, watched: &Watched) -> Result<(), ViewRefused> {
        let Watched { key, selector, include_all, start } = watched;
        // The old one first, so that it does not count against the bound.
        self.stop(view_id);
        let opened = self.hub.watch(key, selector, *include_all, start, &self.signal, view_id);
        let cursor = opened.inspect_err(|_| self.watcher.closed(view_id))?;
        self.watcher.opened(view_id, key, selector, start);
        self.views.insert(view_id, (key.clone(), cursor));
        *self.of_service.entry(key.clone()).or_default() += 1;
        self.owed = true;
        Ok(())
    }

    /// The client has no such view any more.
    pub(super) fn close(&mut self, view_id: u32) {
        self.stop(view_id);
        self.watcher.closed(view_id);
    }

    /// Sends nothing more of a view that is about to be opened anew, or closed. Until then its client has it.
    pub(super) fn stop(&mut self, view_id: u32) {
        let Some((key, _)) = self.views.remove(&view_id) else { return };
        if let Some(count) = self.of_service.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.of_service.remove(&key);
            }
        }
    }

    /// Who gets all this.
    pub(super) fn watcher(&self) -> &Watcher {
        &self.watcher
    }

    /// The newest revision up to which the client was told that it knows everything.
    pub(super) fn told(&self) -> Revision {
        self.told
    }

    pub(super) fn views(&self) -> usize {
        self.views.len()
    }

    /// How many views of a service there are.
    pub(super) fn views_of(&self, key: &ServiceKey) -> usize {
        self.of_service.get(key).copied().unwrap_or_default()
    }

    /// Whether no view is known to have something to say.
    pub(super) fn is_clear(&self) -> bool {
        self.signal.is_clear()
    }

    /// The next thing to send. `hold_bookmark`: some view of the stream is not open yet.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, hold_bookmark: bool) -> Poll<Fed> {
        self.signal.register(cx.waker());
        if self.timer.as_mut().poll(cx).is_ready() {
            self.rearm(cx);
            self.owed = true;
        }
        loop {
            let head = self.hub.head();
            while let Some(view_id) = self.signal.take() {
                let Some((_, cursor)) = self.views.get_mut(&view_id) else { continue };
                if let Some(step) = cursor.next_step() {
                    self.sent = self.sent.max(cursor.revision());
                    if step.reset_reason == Some(ResetReason::Initial) {
                        self.watcher.began(view_id, step.revision);
                    }
                    return Poll::Ready(Fed::Step(view_id, step));
                }
            }
            if !(self.owed || self.watcher.is_prompted()) || hold_bookmark {
                return Poll::Pending;
            }
            if head >= self.sent {
                let ack_requested = self.watcher.asking(head);
                if !self.owed && !ack_requested {
                    return Poll::Pending; // whoever waited has gone
                }
                self.owed = false;
                self.told = head;
                self.rearm(cx);
                return Poll::Ready(Fed::Bookmark { revision: head, ack_requested });
            }
            ready!(self.poll_catching_up(cx));
        }
    }

    fn poll_catching_up(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (hub, sent) = (&self.hub, self.sent);
        let catching_up = self.catching_up.get_or_insert_with(|| {
            let mut head = hub.follow_head();
            Box::pin(async move {
                // An error means that the hub is gone, and this stream with it.
                let _ = head.wait_for(|head| *head >= sent).await;
            })
        });
        ready!(catching_up.as_mut().poll(cx));
        self.catching_up = None;
        Poll::Ready(())
    }

    fn rearm(&mut self, cx: &mut Context<'_>) {
        self.timer.set(sleep(BOOKMARK_INTERVAL));
        // Registers the new timer; it is not ready yet.
        let _ = self.timer.as_mut().poll(cx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::{
        decode,
        fields::Path,
        streams::fuzzing::{Publisher, watch_service},
    };

    /// Each revision changes the view: no bookmark may be ahead of what was delivered, and no wake-up may be lost.
    #[tokio::test]
    async fn w7_a_bookmark_is_true_while_changes_are_published() {
        const CHANGES: Revision = 30_000;
        let mut publisher = Publisher::new();
        let mut feeder = Feeder::new(publisher.hub.clone(), &publisher.watchers);
        let watched = decode::watch(&watch_service(), Path::Root).expect("a good request");
        feeder.open(1, &watched).expect("the first view");
        let publishing = std::thread::spawn(move || (0..CHANGES).for_each(|_| publisher.register()));
        let mut delivered = 0;
        while delivered < CHANGES {
            feeder.owed = true;
            match std::future::poll_fn(|cx| feeder.poll(cx, false)).await {
                Fed::Step(_, step) => {
                    let change: registry_proto::v1::Change =
                        prost::Message::decode(step.part.as_message()).expect("a change");
                    delivered = change.revision;
                }
                Fed::Bookmark { revision, .. } => {
                    assert!(revision <= delivered, "W7: {revision} and {delivered}");
                }
            }
        }
        publishing.join().expect("it ends");
    }
}
