//! The reconnect state machine, on one page.
//!
//! ```text
//!            first view                      connected, hello and views sent
//!   Idle ───────────────▶ Connecting ─────────────────────────────────────▶ Opening
//!    ▲                     ▲  ▲   │ no connection, refused                     │ first bookmark: the initial
//!    │ last view dropped   │  │   ▼                                            ▼ state is complete
//!    └───────── any ◀──────│──│─ Disconnected { until } ◀── error, end ─────── Live ◀─┐ bookmarks
//!                          │  │      │ backoff over       or 15 s of silence     │ └───┘
//!                          │  └──────┘                                           │ go_away
//!                          └──────────────── delay over, elsewhere ────────── Leaving { until }
//! ```
//!
//! There is no end state: every arrow out of a failure leads back to `Connecting`. The views outlive every stream, and
//! each stream begins by subscribing all of them with their cursors. The backoff is reset by a bookmark, not by a
//! connection: a registry that accepts and then fails is as bad as one that is gone.
//!
//! A stream that is not wanted any more is left in good order ([`super::leave`]): when the last view is dropped, which holds up
//! nothing that is wanted next, and when the watcher is closed or dropped, which is what ends the machine, in whatever state.

use std::{sync::Arc, time::Duration};

use registry_proto::v1;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    Counters, LONGEST_DELAY, Left, SILENCE, Sink, Wanted, WatchError,
    leave::{LeaveError, take_leave},
    views::{Heard, Views},
};
use crate::{
    backoff::Backoff,
    client::{Connection, Refusal, RegistryClient},
    runtime::Runtime,
};

/// How many requests may wait to be written.
const REQUESTS: usize = 64;

/// Where the watch stands.
enum State {
    /// There is nothing to follow.
    Idle,
    /// No stream until then.
    Disconnected { until: Duration },
    /// A connection and a stream are being opened.
    Connecting,
    /// The views are subscribed; not all of them have arrived.
    Opening(Stream),
    /// All views were at the head at least once.
    Live(Stream),
    /// Still listening, until it is time to go elsewhere.
    Leaving { stream: Stream, until: Duration },
}

/// An open stream.
struct Stream {
    connection: Connection,
    requests: mpsc::Sender<v1::SubscribeRequest>,
    responses: Streaming<v1::SubscribeResponse>,
    heard_at: Duration,
}

/// What moves the machine on while a stream is open.
enum Event {
    Bookmark,
    GoAway(Duration),
    TimeToLeave,
    NothingToFollow,
    Closing,
    Failed(WatchError),
}

/// The task behind a [`Watcher`](super::Watcher).
pub(super) struct Machine<S> {
    client: RegistryClient,
    runtime: Runtime,
    /// By which the registry knows this watcher, on whatever stream.
    name: String,
    wanted: Arc<Wanted>,
    counters: Arc<Counters>,
    views: Views<S>,
    backoff: Backoff,
    /// Whether the registry knows what is not followed any more, for all that this task has seen.
    left: Result<(), LeaveError>,
    /// What becomes of the stream that had nothing to follow any more.
    farewell: Option<oneshot::Receiver<Result<(), LeaveError>>>,
    /// By when a watcher that is closed has left, with the registry's consent or without.
    leave_by: Option<Duration>,
}

impl<S: Sink> Machine<S> {
    pub(super) fn new(client: RegistryClient, sink: S, wanted: Arc<Wanted>, counters: Arc<Counters>) -> Self {
        let runtime = client.runtime().clone();
        let views = Views::new(runtime.clone(), sink, Arc::clone(&counters));
        let name = client.watcher_name();
        Self {
            client,
            runtime,
            name,
            wanted,
            counters,
            views,
            backoff: Backoff::default(),
            left: Ok(()),
            farewell: None,
            leave_by: None,
        }
    }

    /// Runs until the watcher is closed or dropped; then leaves the registry, and says how that went.
    pub(super) async fn run(mut self, left: watch::Sender<Left>) {
        let mut state = State::Idle;
        while !self.wanted.is_closing() {
            state = self.step(state).await;
        }
        if let State::Opening(stream) | State::Live(stream) | State::Leaving { stream, .. } = state {
            let (unsubscribe, time) = (self.views.stream_ends(), self.time_to_leave());
            // Whoever it told is not to wait for the registry.
            drop(self.views);
            self.left = leave(self.client, stream, unsubscribe, time).await;
        }
        if let Some(farewell) = self.farewell {
            // It began before this, and so ends in time.
            self.left = self.left.and(farewell.await.unwrap_or(Err(LeaveError::NoStream)));
        }
        left.send_replace(Some(self.left));
    }

    async fn step(&mut self, state: State) -> State {
        match state {
            State::Idle => {
                self.wait_until(None).await;
                if self.views.is_empty() { State::Idle } else { State::Connecting }
            }
            State::Disconnected { until } => {
                self.wait_until(Some(until)).await;
                if self.views.is_empty() {
                    State::Idle
                } else if self.runtime.now() < until {
                    State::Disconnected { until }
                } else {
                    State::Connecting
                }
            }
            State::Connecting => match self.open().await {
                Ok(stream) => State::Opening(stream),
                Err(error) => {
                    if !matches!(error, WatchError::Unreachable(_)) {
                        // Perhaps it has heard what was to be followed.
                        self.left = Err(LeaveError::NoStream);
                    }
                    self.disconnected(&error)
                }
            },
            State::Opening(mut stream) | State::Live(mut stream) => {
                let event = self.listen(&mut stream, None).await;
                self.moved_on(stream, event)
            }
            State::Leaving { mut stream, until } => match self.listen(&mut stream, Some(until)).await {
                Event::Bookmark | Event::GoAway(_) => State::Leaving { stream, until },
                // It was to end anyway: nobody is told.
                Event::Failed(_) => {
                    self.lost(&stream);
                    State::Disconnected { until }
                }
                other => self.moved_on(stream, other),
            },
        }
    }

    fn moved_on(&mut self, stream: Stream, event: Event) -> State {
        match event {
            Event::Bookmark | Event::Closing => State::Live(stream),
            Event::NothingToFollow => {
                self.say_farewell(stream);
                State::Idle
            }
            Event::GoAway(delay) => {
                // A registry that sends every stream away at once must not be asked in a loop.
                let delay = delay.min(LONGEST_DELAY).max(self.backoff.next(&self.runtime));
                State::Leaving { stream, until: self.runtime.now().saturating_add(delay) }
            }
            Event::TimeToLeave => {
                self.lost(&stream);
                State::Connecting
            }
            Event::Failed(error) => {
                self.lost(&stream);
                self.disconnected(&error)
            }
        }
    }

    /// Leaves a stream while the machine goes on: the next view is not to wait for the registry.
    fn say_farewell(&mut self, stream: Stream) {
        let (unsubscribe, time) = (self.views.stream_ends(), self.client.request_timeout());
        let leaving = leave(self.client.clone(), stream, unsubscribe, time);
        let (tell, told) = oneshot::channel();
        (self.left, self.farewell) = (Ok(()), Some(told));
        self.runtime.detach(async move {
            // Nobody may ask.
            let _ = tell.send(leaving.await);
        });
    }

    /// What is left of the time that closing may take.
    fn time_to_leave(&mut self) -> Duration {
        let now = self.runtime.now();
        let by = *self.leave_by.get_or_insert_with(|| now.saturating_add(self.client.request_timeout()));
        by.saturating_sub(now)
    }

    /// The stream ends, and its views are to go on elsewhere: the registry is right to wait for them.
    fn lost(&mut self, stream: &Stream) {
        stream.connection.retire();
        self.left = Err(LeaveError::NoStream);
    }

    fn disconnected(&mut self, error: &WatchError) -> State {
        let pause = self.backoff.next(&self.runtime).max(error.retry_after());
        tracing::warn!(%error, ?pause, "not following the registry; the last known views stay");
        self.views.disconnected(error);
        State::Disconnected { until: self.runtime.now().saturating_add(pause) }
    }

    /// Waits until then, or until the wishes changed, and takes them in.
    async fn wait_until(&mut self, until: Option<Duration>) {
        let now = self.runtime.now();
        let wake = until.into_iter().chain(self.views.next_deadline()).min();
        tokio::select! {
            biased;
            () = self.wanted.changed.notified() => {}
            () = sleep_until(now, wake) => {}
        }
        self.take_wishes();
    }

    fn take_wishes(&mut self) {
        let now = self.runtime.now();
        for (key, wish) in self.wanted.take() {
            self.views.wish(key, wish, now);
        }
        self.views.deadline_passed(now);
        self.views.consider_acks();
    }

    /// Connects, opens the stream, and sends as many subscriptions as fit along with the first bytes.
    async fn open(&mut self) -> Result<Stream, WatchError> {
        self.take_wishes();
        self.views.stream_begins();
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let hello = v1::Hello { client_id: self.name.clone(), acks: true };
        let hello = v1::subscribe_request::Request::Hello(hello);
        let _ = requests.try_send(v1::SubscribeRequest { request: Some(hello) });
        while requests.capacity() > 0
            && let Some(request) = self.views.next_request()
        {
            let _ = requests.try_send(request);
        }
        let client = self.client.clone();
        let open = async move {
            let connection = client.connect().await.map_err(WatchError::Unreachable)?;
            let mut grpc = connection.grpc();
            let answer = grpc.subscribe(ReceiverStream::new(receiver));
            match tokio::time::timeout(SILENCE, answer).await {
                Ok(Ok(response)) => Ok((connection, response.into_inner())),
                Ok(Err(status)) => {
                    connection.retire();
                    Err(WatchError::Ended(Refusal::from_status(&status)))
                }
                Err(_) => {
                    connection.retire();
                    Err(WatchError::Silent(SILENCE))
                }
            }
        };
        let mut open = std::pin::pin!(open);
        let (connection, responses) = loop {
            tokio::select! {
                biased;
                opened = &mut open => break opened?,
                () = self.wait_until(None) => {}
            }
            if self.wanted.is_closing() {
                // What was sent may have been heard: only on the stream can it be taken back.
                let opened = tokio::time::timeout(self.time_to_leave(), &mut open).await;
                break opened.unwrap_or_else(|_| Err(WatchError::Silent(self.client.request_timeout())))?;
            }
        };
        self.counters.streams.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(Stream { connection, requests, responses, heard_at: self.runtime.now() })
    }

    /// Listens until something moves the machine on.
    async fn listen(&mut self, stream: &mut Stream, leave_at: Option<Duration>) -> Event {
        loop {
            self.take_wishes();
            if self.wanted.is_closing() {
                return Event::Closing;
            }
            let now = self.runtime.now();
            if self.views.is_empty() {
                return Event::NothingToFollow;
            }
            if leave_at.is_some_and(|at| at <= now) {
                return Event::TimeToLeave;
            }
            let silent_at = stream.heard_at + SILENCE;
            let wake = leave_at.into_iter().chain(self.views.next_deadline()).chain([silent_at]).min();
            tokio::select! {
                biased;
                () = self.wanted.changed.notified() => {}
                permit = stream.requests.reserve(), if self.views.has_requests() => {
                    let Ok(permit) = permit else { return Event::Failed(WatchError::Closed) };
                    if let Some(request) = self.views.next_request() {
                        permit.send(request);
                    }
                }
                () = self.views.applied() => {}
                message = stream.responses.message() => {
                    stream.heard_at = self.runtime.now();
                    let response = match message {
                        Ok(Some(response)) => response,
                        Ok(None) => return Event::Failed(WatchError::Closed),
                        Err(status) => return Event::Failed(WatchError::Ended(Refusal::from_status(&status))),
                    };
                    match self.views.heard(response) {
                        Heard::Bookmark => {
                            self.backoff.reset();
                            return Event::Bookmark;
                        }
                        Heard::GoAway(delay) => return Event::GoAway(delay),
                        Heard::Behind(refusal) if self.client.endpoint_count() > 1 => {
                            return Event::Failed(WatchError::Ended(refusal));
                        }
                        Heard::Change | Heard::Behind(_) => {}
                    }
                }
                () = sleep_until(now, wake) => {
                    if self.runtime.now() >= silent_at {
                        return Event::Failed(WatchError::Silent(SILENCE));
                    }
                }
            }
        }
    }
}

/// Ends a stream, and with it all that was followed on it, within this time.
async fn leave(
    client: RegistryClient,
    stream: Stream,
    unsubscribe: Vec<u32>,
    time: Duration,
) -> Result<(), LeaveError> {
    let Stream { connection, requests, responses, .. } = stream;
    let left = tokio::time::timeout(time, take_leave(requests, responses, unsubscribe)).await;
    let left = left.unwrap_or_else(|_| Err(LeaveError::Unconfirmed(client.request_timeout())));
    if let Err(error) = &left {
        connection.retire();
        tracing::debug!(%error, "the stream of changes ended");
    }
    left
}

/// Sleeps from `now` to `wake`, or for ever.
async fn sleep_until(now: Duration, wake: Option<Duration>) {
    match wake {
        Some(wake) => tokio::time::sleep(wake.saturating_sub(now)).await,
        None => std::future::pending().await,
    }
}
