//! `Subscribe`: many views on one stream, what its client asks, and how it ends.
//!
//! ```text
//!               ┌── requests, views ahead, the server's end: read when the bell rang
//!   a turn ─────┤
//!               └── what is to be said: answers first, then the views' steps and bookmarks
//!
//!   ends:  no view left, and the client closed its side   it has left, nobody waits for it (C4)
//!          `go_away` was sent, and its time has come      the server stops
//!          anything else                                  the client has vanished, and may come back
//! ```
//!
//! Owns the answers to requests and the wait for a server that is behind. Does not own what a view says, which is the
//! [`Feeder`]'s, nor who is waited for ([`crate::applied`]).

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use prost::Message;
use registry_proto::{Frame, v1};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_stream::Stream;
use tonic::Status;
use tonic_types::StatusExt;

use super::{BoxFuture, Stopping, leave_margin, stopped};
use crate::{
    applied::Watchers,
    core::Revision,
    grpc::{
        decode::{self, Watched},
        feeder::{Fed, Feeder},
        fields::{self, Path},
        seats::Seat,
        status::{self, Invalid},
    },
    hub::{Hub, Start, Step},
    runtime::Runtime,
};

/// How long a watcher that is ahead of this server waits for it.
pub(in crate::grpc) const BEHIND_WAIT: Duration = Duration::from_secs(5);

/// Requests that are read before other tasks have their turn, whatever little they ask.
const REQUESTS_A_TURN: u32 = 64;

/// A view whose cursor is ahead of this server.
struct Ahead {
    view_id: u32,
    watched: Watched,
    revision: Revision,
    until: Instant,
}

/// The answer to `Subscribe`.
pub(in crate::grpc) struct SubscribeStream<R> {
    feeder: Feeder,
    hub: Hub,
    requests: Option<R>,
    /// The client said that it acks.
    acks: bool,
    outbox: VecDeque<Frame>,
    ahead: Vec<Ahead>,
    /// Wakes when one of `ahead` can open or has waited long enough.
    ahead_changes: Option<BoxFuture<()>>,
    stopping: Option<BoxFuture<Duration>>,
    /// Set once `go_away` was sent: the stream ends then.
    leave: Option<Pin<Box<Sleep>>>,
    /// Requests that may still be read before others have their turn.
    patience: u32,
    /// There is nothing more to say: that time has come, or the client has left.
    left: bool,
    runtime: Runtime,
    _seat: Seat,
}

impl<R> SubscribeStream<R>
where
    R: Stream<Item = Result<v1::SubscribeRequest, Status>> + Unpin,
{
    pub(in crate::grpc) fn new(
        hub: Hub,
        watchers: &Watchers,
        requests: R,
        stopping: Stopping,
        runtime: Runtime,
        seat: Seat,
    ) -> Self {
        Self {
            feeder: Feeder::new(hub.clone(), watchers, runtime.clone()),
            hub,
            requests: Some(requests),
            acks: false,
            outbox: VecDeque::new(),
            ahead: Vec::new(),
            ahead_changes: None,
            stopping: Some(stopped(stopping)),
            leave: None,
            patience: 0,
            left: false,
            runtime,
            _seat: seat,
        }
    }

    /// Reads what the client asks: one request, and more while there is nothing to say. So a client is heard however
    /// much there is to say, and one that asks without reading piles up nothing here (W10). `Ok(true)`: it asks no more
    /// for now. `Err`: the stream is broken.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Result<bool, Status> {
        while let Some(requests) = &mut self.requests {
            match Pin::new(requests).poll_next(cx) {
                Poll::Pending => return Ok(true),
                // The client has nothing more to ask. If it has views it goes on reading; and if it said that it acks, it
                // lags from now on: it may be about to come back on another stream, and goes by what it has.
                Poll::Ready(None) => self.requests = None,
                Poll::Ready(Some(Err(broken))) => return Err(broken),
                Poll::Ready(Some(Ok(request))) => self.take(request),
            }
            self.patience = self.patience.saturating_sub(1);
            if !self.outbox.is_empty() || !self.feeder.is_clear() || self.patience == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Answers that wait to be sent, and views, those that wait for this server included.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn kept(&self) -> (usize, usize) {
        (self.outbox.len(), self.feeder.views() + self.ahead.len())
    }

    /// Whether the client has given up all its views and closed its side: then it has left in good order, and there is
    /// nothing that could still be said. That the stream ends tells it that all this was heard.
    fn has_left(&self) -> bool {
        self.requests.is_none() && self.feeder.is_without_views() && self.ahead.is_empty()
    }

    fn take(&mut self, request: v1::SubscribeRequest) {
        use v1::subscribe_request::Request;
        match request.request {
            Some(Request::Subscribe(view)) => self.subscribe(&view),
            Some(Request::Unsubscribe(view)) => {
                self.feeder.close(view.view_id);
                self.ahead.retain(|ahead| ahead.view_id != view.view_id);
            }
            Some(Request::Hello(hello)) => {
                if let Err(invalid) = self.hello(&hello) {
                    self.refuse(0, &invalid.into());
                }
            }
            Some(Request::Ack(ack)) => {
                if let Err(invalid) = self.ack(&ack) {
                    self.refuse(0, &invalid.into());
                }
            }
            None => self.refuse(0, &Invalid::new("request", "is required").into()),
        }
    }

    fn hello(&mut self, hello: &v1::Hello) -> Result<(), Invalid> {
        let client = decode::hello(hello)?;
        if hello.acks && !self.feeder.watcher().named(client) {
            let problem = "comes after a view; send it first, so that its acks count for all views";
            return Err(Path::Root.field("hello").invalid(problem));
        }
        self.acks |= hello.acks;
        Ok(())
    }

    /// What was not told cannot have been applied: such an ack counts for nothing, and the client is told.
    fn ack(&mut self, ack: &v1::Ack) -> Result<(), Invalid> {
        let root = Path::Root;
        let path = root.field("ack");
        if !self.acks {
            return Err(
                path.invalid("is of no use, for `hello` did not say `acks`; say it at the stream's start")
            );
        }
        let epoch = self.hub.epoch();
        if ack.epoch != epoch {
            let found: String = ack.epoch.chars().take(64).collect();
            return Err(path.field("epoch").invalid(format!("is `{found}`; this stream is about `{epoch}`")));
        }
        let told = self.feeder.told();
        if ack.revision > told {
            let found = ack.revision;
            let problem =
                format!("is {found}, but this stream's newest bookmark says {told}; ack what it says");
            return Err(path.field("revision").invalid(problem));
        }
        self.feeder.watcher().acked(ack.revision);
        Ok(())
    }

    fn subscribe(&mut self, view: &v1::SubscribeView) {
        let root = Path::Root;
        let subscribe = root.field("subscribe");
        let watch = subscribe.field("watch");
        let decoded = fields::required(view.watch.as_ref(), watch)
            .map_err(Status::from)
            .and_then(|request| decode::watch(request, watch));
        // A view of the same id ends, whatever comes of the new one.
        self.feeder.stop(view.view_id);
        self.ahead.retain(|ahead| ahead.view_id != view.view_id);
        match decoded {
            Ok(_) if view.view_id == 0 => {
                let problem = "is 0, which stands for the stream itself; choose 1 or more";
                self.refuse(0, &subscribe.field("view_id").invalid(problem).into());
            }
            Err(refused) => self.refuse_view(view.view_id, &refused),
            Ok(watched) => {
                match self.feeder.beyond(self.ahead.iter().map(|it| &it.watched.key), &watched.key) {
                    Some(problem) => {
                        self.refuse_view(view.view_id, &subscribe.field("view_id").invalid(problem).into());
                    }
                    None => self.open(view.view_id, watched),
                }
            }
        }
    }

    fn open(&mut self, view_id: u32, watched: Watched) {
        match &watched.start {
            Start::Resume { epoch, revision } if epoch == self.hub.epoch() && *revision > self.hub.head() => {
                let (revision, until) = (*revision, after(BEHIND_WAIT));
                self.ahead.push(Ahead { view_id, watched, revision, until });
                self.ahead_changes = None;
            }
            _ => {
                if let Err(refused) = self.feeder.open(view_id, &watched) {
                    self.refuse_view(view_id, &refused.into());
                }
            }
        }
    }

    /// Opens the views that this server has caught up with, and refuses those that waited in vain.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) {
        while !self.ahead.is_empty() {
            let changes = self.ahead_changes.get_or_insert_with(|| {
                let mut head = self.hub.follow_head();
                let lowest = self.ahead.iter().map(|ahead| ahead.revision).min().unwrap_or_default();
                let first =
                    self.ahead.iter().map(|ahead| ahead.until).min().unwrap_or_else(|| after(BEHIND_WAIT));
                Box::pin(async move {
                    tokio::select! {
                        biased;
                        _ = head.wait_for(|head| *head >= lowest) => {}
                        () = sleep_until(first) => {}
                    }
                })
            });
            if changes.as_mut().poll(cx).is_pending() {
                return;
            }
            self.ahead_changes = None;
            let (head, now) = (self.hub.head(), after(Duration::ZERO));
            for ahead in std::mem::take(&mut self.ahead) {
                if ahead.revision <= head {
                    self.open(ahead.view_id, ahead.watched);
                } else if ahead.until <= now {
                    self.refuse_view(ahead.view_id, &status::replica_behind(ahead.revision, head));
                } else {
                    self.ahead.push(ahead);
                }
            }
        }
    }

    fn refuse_view(&mut self, view_id: u32, status: &Status) {
        self.feeder.close(view_id);
        self.refuse(view_id, status);
    }

    fn refuse(&mut self, view_id: u32, status: &Status) {
        let details = status.get_error_details();
        let error = v1::ViewError {
            code: status.code().into(),
            message: status.message().to_owned(),
            reason: details.error_info().map(|info| info.reason.clone()).unwrap_or_default(),
            field: details
                .bad_request()
                .and_then(|bad| bad.field_violations.first())
                .map(|violation| violation.field.clone())
                .unwrap_or_default(),
            retry_after: details
                .retry_info()
                .and_then(|retry| retry.retry_delay)
                .and_then(|delay| delay.try_into().ok()),
        };
        self.say(view_id, v1::subscribe_response::Response::ViewError(error));
    }

    fn say(&mut self, view_id: u32, response: v1::subscribe_response::Response) {
        self.outbox.push_back(Frame::of(&v1::SubscribeResponse { view_id, response: Some(response) }));
    }

    /// Looks at all that rings. `Ok(true)`: the client asks no more for now. `Err`: the stream is broken.
    fn poll_seldom(&mut self) -> Result<bool, Status> {
        let bell = self.feeder.bell();
        let cx = &mut Context::from_waker(&bell);
        let all_heard = self.poll_requests(cx)?;
        if !all_heard {
            self.feeder.look_again();
        }
        self.poll_ahead(cx);
        self.poll_stopping(cx);
        self.left |= self.leave.as_mut().is_some_and(|leave| leave.as_mut().poll(cx).is_ready());
        self.left |= self.has_left();
        Ok(all_heard)
    }

    fn poll_stopping(&mut self, cx: &mut Context<'_>) {
        let Some(stopping) = &mut self.stopping else { return };
        if let Poll::Ready(spread) = stopping.as_mut().poll(cx) {
            self.stopping = None;
            let delay = self.runtime.jitter(spread);
            let go_away = v1::GoAway { delay: delay.try_into().ok() };
            self.say(0, v1::subscribe_response::Response::GoAway(go_away));
            // A client that follows the advice is gone by then; one that does not is sent away.
            self.leave = Some(Box::pin(sleep(delay + leave_margin(spread))));
        }
    }
}

impl<R> Stream for SubscribeStream<R>
where
    R: Stream<Item = Result<v1::SubscribeRequest, Status>> + Unpin,
{
    type Item = Result<Frame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.patience = REQUESTS_A_TURN;
        let mut listening = false;
        let fed = loop {
            let all_heard = !this.feeder.rang() || this.poll_seldom()?;
            if let Some(frame) = this.outbox.pop_front() {
                return Poll::Ready(Some(Ok(frame)));
            }
            if this.left {
                return Poll::Ready(None);
            }
            match this.feeder.poll(!this.ahead.is_empty()) {
                Poll::Ready(fed) => break fed,
                // A view was marked and had nothing to say: the next request is due.
                Poll::Pending if !all_heard && this.patience > 0 => {}
                Poll::Pending if !all_heard => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Pending if listening => return Poll::Pending,
                Poll::Pending => {
                    this.feeder.listen(cx);
                    listening = true;
                }
            }
        };
        let frame = match fed {
            Fed::Step(view_id, Step { part, reset_reason, .. }) => {
                let mut prefix = v1::SubscribeResponse { view_id, response: None }.encode_to_vec();
                if let Some(reason) = reset_reason {
                    // The same embedded message twice is merged: see the hub's encoding.
                    let change = v1::Change { reset_reason: reason.into(), ..v1::Change::default() };
                    let response = Some(v1::subscribe_response::Response::Change(change));
                    prefix.extend(v1::SubscribeResponse { view_id: 0, response }.encode_to_vec());
                }
                Frame { prefix: prefix.into(), shared: part.into_field(), ..Frame::default() }
            }
            Fed::Bookmark { revision, ack_requested } => {
                let bookmark = v1::Bookmark { epoch: this.hub.epoch().to_owned(), revision, ack_requested };
                let response = Some(v1::subscribe_response::Response::Bookmark(bookmark));
                Frame::of(&v1::SubscribeResponse { view_id: 0, response })
            }
        };
        Poll::Ready(Some(Ok(frame)))
    }
}

fn after(duration: Duration) -> Instant {
    // Tokio's own clock: the timer that it is compared with runs on it.
    sleep(duration).deadline()
}
