//! What one stream sends next: its views' steps in turn, then a bookmark, then silence.
//!
//! Shared by `Watch` (one view) and `Subscribe` (many). When somebody waits for the stream's client, a bookmark is due as
//! soon as nothing else is to be said, and asks for an ack. It also says to [`crate::applied`] which views there are. Keeps W7: the head is read before the marks, and a change is
//! marked before it becomes the head; so with no mark left, everything up to that head was delivered. And W1: what is
//! marked may be ahead of the head for a moment, and a bookmark waits for the head rather than go back behind it.
//!
//! A change costs a stream two looks at its marks and one at its view: timers, and whatever else its stream waits for, are
//! polled only when they rang (see [`Signal`]).

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use registry_proto::v1::ResetReason;
use tokio::time::{Sleep, sleep};

use super::decode::Watched;
use crate::{
    applied::{Watcher, Watchers},
    core::{Revision, ServiceKey},
    hub::{Cursor, Hub, Signal, Step, ViewRefused},
    runtime::Runtime,
};

/// A bookmark comes this often.
pub(super) const BOOKMARK_INTERVAL: Duration = Duration::from_secs(5);
/// A stream that has said something of its views begins to say more of them about this much later at the earliest: what happens
/// meanwhile comes as one (W6). In milliseconds.
pub(super) const REST: u64 = 1;
/// While there is always more, each rest is twice as long as the one before, up to this. So however fast the registry
/// changes, a watcher costs few messages a second, and writes have the rest of the machine. In milliseconds.
pub(super) const LONGEST_REST: u64 = 40;
/// What comes no later than this after a rest lengthens the next one too, up to as much: who is woken late, because there is much
/// to do, should not for that reason say more. In milliseconds.
pub(super) const SOON: u64 = 10;

/// Views on one stream.
const MAX_VIEWS: usize = 10_000;
/// Of them, of one service: more than it may have selectors. What a change costs that somebody waits for grows with it.
pub(super) const MAX_VIEWS_OF_SERVICE: usize = 256;

/// What a stream sends.
#[derive(Debug)]
pub(super) enum Fed {
    Step(u32, Step),
    Bookmark { revision: Revision, ack_requested: bool },
}

pub(super) struct Feeder {
    hub: Hub,
    runtime: Runtime,
    signal: Arc<Signal>,
    /// The signal's bell, for whatever is polled seldom.
    bell: Waker,
    watcher: Watcher,
    /// Boxed, for most streams have one or few, and the map keeps room for more.
    views: BTreeMap<u32, Box<Cursor>>,
    /// How many of them are of a service.
    of_service: HashMap<ServiceKey, usize>,
    timer: Pin<Box<Sleep>>,
    /// A bookmark is due as soon as nothing else is to be said.
    owed: bool,
    /// The newest revision that was sent.
    sent: Revision,
    /// The newest bookmark that was sent.
    told: Revision,
    /// It said something, and may have more.
    speaking: bool,
    /// Nothing more is said before this, in mono ms.
    rests_until: u64,
    /// How long the next rest is, in ms.
    next_rest: u64,
    /// It rests, and has something to say: rings when it may.
    rest: Option<Pin<Box<Sleep>>>,
    /// Resolves when the head is at `sent`.
    catching_up: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Feeder {
    pub(super) fn new(hub: Hub, watchers: &Watchers, runtime: Runtime) -> Self {
        let timer = Box::pin(sleep(BOOKMARK_INTERVAL));
        let signal = Signal::new();
        Self {
            hub,
            runtime,
            watcher: watchers.join(Arc::clone(&signal)),
            bell: Waker::from(Arc::clone(&signal)),
            signal,
            views: BTreeMap::new(),
            of_service: HashMap::new(),
            timer,
            owed: false,
            sent: 0,
            told: 0,
            speaking: false,
            rests_until: 0,
            next_rest: REST,
            rest: None,
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
        self.views.insert(view_id, Box::new(cursor));
        *self.of_service.entry(key.clone()).or_default() += 1;
        self.owed = true;
        // What was asked for is answered at once, however lately something was said.
        self.speaking = true;
        Ok(())
    }

    /// The client has no such view any more.
    pub(super) fn close(&mut self, view_id: u32) {
        self.stop(view_id);
        self.watcher.closed(view_id);
    }

    /// Sends nothing more of a view that is about to be opened anew, or closed. Until then its client has it.
    pub(super) fn stop(&mut self, view_id: u32) {
        let Some(cursor) = self.views.remove(&view_id) else { return };
        if let Some(count) = self.of_service.get_mut(cursor.key()) {
            *count -= 1;
            if *count == 0 {
                self.of_service.remove(cursor.key());
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

    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn views(&self) -> usize {
        self.views.len()
    }

    /// Which bound one more view of a service would break, beside these that are not open yet.
    pub(super) fn beyond<'a>(
        &self,
        ahead: impl Iterator<Item = &'a ServiceKey> + Clone,
        key: &ServiceKey,
    ) -> Option<String> {
        if self.views.len() + ahead.clone().count() >= MAX_VIEWS {
            return Some(format!(
                "this stream has {MAX_VIEWS} views, which is the limit; open another stream"
            ));
        }
        let open = self.of_service.get(key).copied().unwrap_or_default();
        (open + ahead.filter(|it| *it == key).count() >= MAX_VIEWS_OF_SERVICE)
            .then(|| format!("this stream has {MAX_VIEWS_OF_SERVICE} views of {key}, which is the limit"))
    }

    pub(super) fn is_without_views(&self) -> bool {
        self.views.is_empty()
    }

    /// Whether no view is known to have something to say.
    pub(super) fn is_clear(&self) -> bool {
        self.signal.is_clear()
    }

    /// From now on, marks and the bell wake this task. To be called when there is nothing to say; then look once more.
    pub(super) fn listen(&self, cx: &mut Context<'_>) {
        self.signal.register(cx.waker());
    }

    /// Whether the bell rang: then all that is not a view's step is to be polled with [`Self::bell`].
    pub(super) fn rang(&mut self) -> bool {
        let rang = self.signal.rang();
        if rang {
            self.poll_bookmark_due();
        }
        rang
    }

    /// What rings: the waker for all that comes seldom.
    pub(super) fn bell(&self) -> Waker {
        self.bell.clone()
    }

    /// Something that comes seldom was not looked at to its end: it has its turn after the next thing that is sent.
    pub(super) fn look_again(&self) {
        self.signal.ring_again();
    }

    /// The next thing to send, after [`Self::rang`]. `hold_bookmark`: some view of the stream is not open yet.
    pub(super) fn poll(&mut self, hold_bookmark: bool) -> Poll<Fed> {
        loop {
            if !self.signal.is_clear() && self.poll_rested().is_pending() {
                return Poll::Pending;
            }
            while let Some(view_id) = self.signal.take() {
                let Some(cursor) = self.views.get_mut(&view_id) else { continue };
                if let Some(step) = cursor.next_step() {
                    self.sent = self.sent.max(cursor.revision());
                    if step.reset_reason == Some(ResetReason::Initial) {
                        self.watcher.began(view_id, step.revision);
                    }
                    self.speaking = true;
                    return Poll::Ready(Fed::Step(view_id, step));
                }
            }
            self.speaking = false;
            if !(self.owed || self.watcher.is_prompted()) || hold_bookmark {
                return Poll::Pending;
            }
            let head = self.hub.head();
            if !self.signal.is_clear() {
                continue; // the head may be one that it is about
            }
            if head >= self.sent {
                self.catching_up = None;
                let ack_requested = self.watcher.asking(head);
                if !self.owed && !ack_requested {
                    return Poll::Pending; // whoever waited has gone
                }
                self.owed = false;
                self.told = head;
                self.rearm();
                return Poll::Ready(Fed::Bookmark { revision: head, ack_requested });
            }
            if self.poll_catching_up().is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Whether it may say something of its views.
    fn poll_rested(&mut self) -> Poll<()> {
        if self.speaking {
            return Poll::Ready(());
        }
        let now = self.runtime.mono();
        if now < self.rests_until {
            let left = Duration::from_millis(self.rests_until - now);
            let rest = self.rest.get_or_insert_with(|| Box::pin(sleep(left)));
            if rest.as_mut().poll(&mut Context::from_waker(&self.bell)).is_pending() {
                return Poll::Pending;
            }
        }
        let had_to_wait = self.rest.take().is_some();
        let soon = now < self.rests_until.saturating_add(SOON);
        let longest = if had_to_wait { LONGEST_REST } else { SOON };
        self.next_rest = if had_to_wait || soon { (self.next_rest * 2).min(longest) } else { REST };
        self.rests_until = now.saturating_add(self.next_rest);
        Poll::Ready(())
    }

    fn poll_bookmark_due(&mut self) {
        if self.timer.as_mut().poll(&mut Context::from_waker(&self.bell)).is_ready() {
            self.rearm();
            self.owed = true;
        }
    }

    fn poll_catching_up(&mut self) -> Poll<()> {
        let (hub, sent) = (&self.hub, self.sent);
        let catching_up = self.catching_up.get_or_insert_with(|| {
            let mut head = hub.follow_head();
            Box::pin(async move {
                // An error means that the hub is gone, and this stream with it.
                let _ = head.wait_for(|head| *head >= sent).await;
            })
        });
        let caught_up = catching_up.as_mut().poll(&mut Context::from_waker(&self.bell));
        if caught_up.is_ready() {
            self.catching_up = None;
        }
        caught_up
    }

    fn rearm(&mut self) {
        self.timer.set(sleep(BOOKMARK_INTERVAL));
        // Registers the new timer; it is not ready yet.
        let _ = self.timer.as_mut().poll(&mut Context::from_waker(&self.bell));
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
        let mut feeder = Feeder::new(publisher.hub.clone(), &publisher.watchers, Runtime::tokio());
        let watched = decode::watch(&watch_service(), Path::Root).expect("a good request");
        feeder.open(1, &watched).expect("the first view");
        let publishing = std::thread::spawn(move || (0..CHANGES).for_each(|_| publisher.register()));
        let mut delivered = 0;
        while delivered < CHANGES {
            feeder.owed = true;
            let next = |cx: &mut Context<'_>| {
                feeder.listen(cx);
                feeder.rang();
                feeder.poll(false)
            };
            match std::future::poll_fn(next).await {
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
