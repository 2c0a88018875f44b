//! What holds of a `Subscribe` stream whatever its client asks, in whatever order, as checks that panic: for tests that make
//! clients up, and for fuzzers. A registry of one service stands behind it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use prost::Message;
use registry_proto::v1::{self, subscribe_request::Request, subscribe_response::Response};
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::Status;

use super::SubscribeStream;
use crate::{
    applied::{Waiting, Watchers},
    core::{
        Command, Committed, LeaseId, Now, Registrant, Revision, ServiceKey, Settings, Spec, State,
        Status as Up, decide,
    },
    grpc::{feeder::LONGEST_REST, seats::Seat},
    hub::{Hub, HubSettings},
    runtime::{Clock, Runtime, TokioSpawn},
};

/// Requests that are there at once, and how many were read.
#[derive(Clone, Default)]
pub(super) struct Asked {
    requests: Arc<Mutex<VecDeque<v1::SubscribeRequest>>>,
    read: Arc<AtomicUsize>,
    polls: Arc<AtomicUsize>,
    /// After these the client closes its side.
    closed: Arc<AtomicBool>,
    reader: Arc<atomic_waker::AtomicWaker>,
}

/// Writes to one service, and publishes.
pub(in crate::grpc) struct Publisher {
    pub(in crate::grpc) hub: Hub,
    pub(in crate::grpc) watchers: Watchers,
    state: State,
}

/// What may happen.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// The client asks something.
    Ask(v1::SubscribeRequest),
    /// The client reads so many messages at most.
    Read(u8),
    /// The service changes.
    Publish,
    /// Somebody waits until the newest change is applied.
    Wait,
    /// The client goes, and comes back on another stream.
    Reconnect,
}

/// Time that passes only when the client reads: as much as a stream ever rests.
#[derive(Clone, Debug, Default)]
struct Readings(Arc<AtomicU64>);

impl Clock for Readings {
    fn now(&self) -> Now {
        let passed = self.0.load(Ordering::Relaxed);
        Now { mono: passed, wall: passed }
    }
}

/// A stream that is checked after each step.
pub(crate) struct Checked {
    publisher: Publisher,
    asked: Asked,
    stream: SubscribeStream<Asked>,
    stop: watch::Sender<Option<Duration>>,
    waiting: Vec<Waiting>,
    /// Views that were asked for on this stream.
    wanted: BTreeSet<u32>,
    /// Of this stream's bookmarks, the newest.
    told: Revision,
    said_acks: bool,
    /// An ack that may count was sent.
    acked: bool,
    clock: Readings,
    runtime: tokio::runtime::Runtime,
}

impl Asked {
    #[cfg(test)]
    pub(super) fn ask(&self, request: Request) {
        self.send(v1::SubscribeRequest { request: Some(request) });
    }

    #[cfg(test)]
    pub(super) fn subscribe(&self, view_id: u32, watch: Option<v1::WatchRequest>) {
        self.ask(Request::Subscribe(v1::SubscribeView { view_id, watch }));
    }

    #[cfg(test)]
    pub(super) fn unsubscribe(&self, view_id: u32) {
        self.ask(Request::Unsubscribe(v1::UnsubscribeView { view_id }));
    }

    #[cfg(test)]
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.reader.wake();
    }

    #[cfg(test)]
    pub(super) fn read(&self) -> usize {
        self.read.load(Ordering::Relaxed)
    }

    /// How often it was looked at.
    #[cfg(test)]
    pub(super) fn polls(&self) -> usize {
        self.polls.load(Ordering::Relaxed)
    }

    fn send(&self, request: v1::SubscribeRequest) {
        self.requests.lock().expect("unpoisoned").push_back(request);
        self.reader.wake();
    }
}

impl Stream for Asked {
    type Item = Result<v1::SubscribeRequest, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.polls.fetch_add(1, Ordering::Relaxed);
        self.reader.register(cx.waker());
        let next = self.requests.lock().expect("unpoisoned").pop_front();
        match next {
            Some(request) => {
                self.read.fetch_add(1, Ordering::Relaxed);
                Poll::Ready(Some(Ok(request)))
            }
            None if self.closed.load(Ordering::Relaxed) => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

impl Publisher {
    pub(in crate::grpc) fn new() -> Self {
        let state = State::default();
        let hub = Hub::new("e", &state, 0, HubSettings::default());
        let watchers = Watchers::new(hub.clone(), Runtime::tokio());
        Self { hub, watchers, state }
    }

    /// One more revision, which changes the service `s`.
    pub(in crate::grpc) fn register(&mut self) {
        let spec = Spec {
            address: "127.0.0.1:1".into(),
            weight: u16::try_from(self.state.revision() % 60_000).expect("it fits"),
            tags: BTreeMap::new().into(),
            region: "".into(),
            zone: "".into(),
            status: Up::Up,
        };
        let command = Command::Register {
            lease: LeaseId([1; 16]),
            registrant: Registrant { uid: "u".into(), generation: 1 },
            ttl: 15_000,
            instances: vec![(service(), "i".into(), Arc::new(spec))],
        };
        let now = Now { mono: 0, wall: 0 };
        let record = decide(&self.state, &Settings::default(), now, &command).expect("accepted").record;
        let changes = self.state.evolve(&Committed { revision: self.state.revision() + 1, record });
        self.hub.publish(&changes, self.state.revision());
    }
}

impl Checked {
    /// A stream that nothing was asked on.
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let inside = runtime.enter();
        let mut publisher = Publisher::new();
        publisher.register();
        let (stop, stopping) = watch::channel(None);
        let asked = Asked::default();
        let clock = Readings::default();
        let stream = open(&publisher, &asked, stopping, clock.clone());
        drop(inside);
        Self {
            publisher,
            asked,
            stream,
            stop,
            waiting: Vec::new(),
            wanted: BTreeSet::new(),
            told: 0,
            said_acks: false,
            acked: false,
            clock,
            runtime,
        }
    }

    /// Does one step and checks.
    pub(crate) fn step(&mut self, step: Step) {
        let handle = self.runtime.handle().clone();
        let _inside = handle.enter();
        match step {
            Step::Ask(request) => {
                match &request.request {
                    Some(Request::Hello(hello)) => self.said_acks |= hello.acks,
                    Some(Request::Subscribe(view)) => {
                        self.wanted.insert(view.view_id);
                    }
                    Some(Request::Ack(ack)) => self.acked |= ack.epoch == self.publisher.hub.epoch(),
                    _ => {}
                }
                self.asked.send(request);
            }
            Step::Read(messages) => {
                for _ in 0..messages {
                    if !self.read() {
                        break;
                    }
                }
            }
            Step::Publish => self.publisher.register(),
            Step::Wait if self.waiting.len() < 8 => {
                let head = self.publisher.hub.head();
                self.waiting.push(self.publisher.watchers.wait(&service(), head, 1.0));
            }
            Step::Wait => self.waiting.clear(),
            Step::Reconnect => {
                self.asked = Asked::default();
                self.stream = open(&self.publisher, &self.asked, self.stop.subscribe(), self.clock.clone());
                (self.told, self.said_acks) = (0, false);
                self.wanted.clear();
            }
        }
        self.check();
    }

    /// How many views the stream has.
    #[cfg(test)]
    pub(super) fn views(&self) -> usize {
        self.stream.kept().1
    }

    /// How far those are whom the newest wait is about.
    #[cfg(test)]
    pub(super) fn waited(&self) -> crate::applied::Counts {
        self.waiting.last().map(Waiting::counts).unwrap_or_default()
    }

    /// Reads a message; false: there is none.
    fn read(&mut self) -> bool {
        self.clock.0.fetch_add(LONGEST_REST, Ordering::Relaxed);
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(frame) = Pin::new(&mut self.stream).poll_next(&mut cx) else { return false };
        let frame = frame.expect("it goes on").expect("no request ends the stream");
        let bytes = [frame.prefix, frame.shared, frame.suffix].concat();
        assert!(bytes.len() < 1 << 20, "a message of {} bytes", bytes.len());
        let said = v1::SubscribeResponse::decode(bytes.as_slice()).expect("a message");
        match said.response.expect("it says something") {
            Response::Change(_) => {
                assert!(said.view_id > 0 && self.wanted.contains(&said.view_id), "nobody asked for it");
            }
            Response::ViewError(error) => {
                assert!((1..1_024).contains(&error.message.len()), "{error:?}");
                assert!(!error.reason.is_empty() && error.code != 0, "{error:?}");
                assert_eq!(error.field.is_empty(), error.reason != "INVALID_FIELD", "{error:?}");
            }
            Response::Bookmark(bookmark) => {
                assert!(bookmark.revision >= self.told, "W1");
                assert!(bookmark.revision <= self.publisher.hub.head(), "W7");
                assert!(self.said_acks || !bookmark.ack_requested, "it cannot ack");
                self.told = bookmark.revision;
            }
            Response::GoAway(_) => panic!("nobody stops"),
        }
        true
    }

    fn check(&self) {
        // Of what is refused, one is answered before the next request is read.
        let (answers, views) = self.stream.kept();
        assert!(answers <= 1, "{answers} answers pile up");
        assert!(views <= self.wanted.len());
        for waiting in &self.waiting {
            let counts = waiting.counts();
            let all = counts.acked + counts.lagging + counts.disconnected + counts.not_acking;
            assert!(counts.acked == 0 || self.acked, "C4: acked without a word: {counts:?}");
            // One stream, and those before it under other names.
            assert!(all <= 512, "{counts:?}");
        }
    }
}

/// A watch of the service.
#[cfg(test)]
pub(in crate::grpc) fn watch_service() -> v1::WatchRequest {
    let key = v1::ServiceKey { namespace: String::new(), service: "s".into() };
    v1::WatchRequest { scope: Some(v1::watch_request::Scope::Key(key)), ..v1::WatchRequest::default() }
}

fn open(
    publisher: &Publisher,
    asked: &Asked,
    stopping: watch::Receiver<Option<Duration>>,
    clock: Readings,
) -> SubscribeStream<Asked> {
    let seat = Seat::take(&Arc::default(), 1).expect("free");
    let (hub, watchers) = (publisher.hub.clone(), &publisher.watchers);
    SubscribeStream::new(hub, watchers, asked.clone(), stopping, Runtime::new(clock, TokioSpawn, 0), seat)
}

fn service() -> ServiceKey {
    ServiceKey { namespace: "default".into(), service: "s".into() }
}
