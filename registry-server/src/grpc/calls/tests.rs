//! How calls find their way, and that ours is as tonic's.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicUsize, Ordering},
};

use http_body::Frame as HttpFrame;
use http_body_util::{BodyExt, StreamBody};
use proptest::{collection::vec, prelude::*};
use registry_proto::v1;
use tokio::sync::watch;
use tokio_stream::StreamExt;

use super::*;
use crate::{
    core::Settings,
    grpc::GrpcSettings,
    hub::HubSettings,
    registry::{Registry as Writes, WriterTask},
    runtime::Runtime,
    store::MemoryStore,
};

/// Bytes of a request at most, here.
const MOST: usize = 2_000;
const METHODS: [&str; 9] = [
    "Register",
    "Discover",
    "Deregister",
    "SetOverride",
    "ListOverrides",
    "ResolveHold",
    "ListServices",
    "WaitApplied",
    "Explain",
];

/// The services of a server with an empty registry.
struct Server {
    calls: Calls,
    _writer: WriterTask,
    _stopping: watch::Sender<Option<Duration>>,
}

/// How a call ended: its code, and its message without the head if that is 0.
type Ended = (String, Bytes);

impl Server {
    fn new() -> Self {
        let (runtime, store) = (Runtime::tokio(), Box::new(MemoryStore::new(1)));
        let started = Writes::start(store, Settings::default(), HubSettings::default(), &runtime);
        let (registry, _, writer) = started.expect("it starts");
        let (stop, stopping) = watch::channel(None);
        let service = RegistryService::new(registry, GrpcSettings::default(), runtime, stopping);
        let calls = Calls::new(service, MOST, Routes::default());
        Self { calls, _writer: writer, _stopping: stop }
    }

    async fn ask<B>(&self, method: &str, encoding: Option<&str>, body: B) -> Ended
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let mut request = Request::post(format!("http://host/registry.v1.Registry/{method}"));
        if let Some(encoding) = encoding {
            request = request.header("grpc-encoding", encoding);
        }
        let response = self.calls.answer(request.body(body).expect("a request")).await;
        assert_eq!(response.status(), 200, "gRPC says in other places what went wrong");
        assert_eq!(response.headers()["content-type"], "application/grpc");
        let refused = response.headers().get("grpc-status").cloned();
        let said = response.into_body().collect().await.expect("it does not fail");
        let status = refused.or_else(|| said.trailers()?.get("grpc-status").cloned()).expect("a status");
        (status.to_str().expect("text").to_owned(), said.to_bytes())
    }

    /// Of pieces, once in our way and once in tonic's, which takes all that says how it is compressed.
    async fn ask_both(&self, method: &str, pieces: &[Bytes]) -> [Ended; 2] {
        let ours = self.ask(method, None, body(pieces)).await;
        [ours, self.ask(method, Some("identity"), body(pieces)).await]
    }
}

/// A request's body, which ends as it should, or just ends.
struct Pieces {
    left: VecDeque<Bytes>,
    ends: bool,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<HttpFrame<Bytes>, Infallible>>> {
        Poll::Ready(self.left.pop_front().map(|piece| Ok(HttpFrame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.ends && self.left.is_empty()
    }
}

fn body(pieces: &[Bytes]) -> Pieces {
    Pieces { left: pieces.iter().cloned().collect(), ends: true }
}

/// With its head.
fn whole(message: &impl Message) -> Vec<u8> {
    let encoded = message.encode_to_vec();
    let length = u32::try_from(encoded.len()).expect("short");
    [&[0][..], &length.to_be_bytes(), &encoded].concat()
}

fn registration() -> v1::RegisterRequest {
    let key = v1::ServiceKey { namespace: String::new(), service: "s".to_owned() };
    let instance = v1::Instance { address: "10.0.0.1:80".to_owned(), ..v1::Instance::default() };
    v1::RegisterRequest {
        lease_id: vec![7; 16],
        registrant: Some(v1::Registrant { instance_uid: "r".to_owned(), generation: 1 }),
        registrations: vec![v1::Registration { key: Some(key), instance: Some(instance) }],
        ..v1::RegisterRequest::default()
    }
}

#[test]
fn a_deadline_is_read_in_all_its_units_and_nothing_else_is_one() {
    let read = |text: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().expect("a header"));
        timeout(&headers)
    };
    for (text, seconds, nanos) in [
        ("2H", 7_200, 0),
        ("3M", 180, 0),
        ("99999999S", 99_999_999, 0),
        ("82m", 0, 82_000_000),
        ("5u", 0, 5_000),
        ("7n", 0, 7),
        ("0m", 0, 0),
        ("99999999H", 99_999_999 * 3_600, 0),
    ] {
        assert_eq!(read(text), Some(Duration::new(seconds, nanos)), "{text}");
    }
    for text in ["", "S", "1", "1s", "-1S", "+1S", "1.5S", "123456789S", "1 S", "S1"] {
        assert_eq!(read(text), None, "{text:?}");
    }
    assert_eq!(timeout(&HeaderMap::new()), None);
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_deadline_has_passed_says_so() {
    let answering = |answer, left| Answering { answer, deadline: Some(Box::pin(sleep(left))) };
    let late: BoxAnswer = Box::pin(std::future::pending());
    let answer = answering(late, Duration::from_secs(1)).await;
    assert_eq!(answer.headers()["grpc-status"], "4");
    let in_time: BoxAnswer = Box::pin(async { Ok(Response::new(Body::empty())) });
    let answer = answering(in_time, Duration::ZERO).await;
    assert!(!answer.headers().contains_key("grpc-status"), "an answer that is there is given");
}

#[test]
fn a_service_is_named_by_the_whole_first_part_of_a_path() {
    assert_eq!(method_of("/a.B/C", "a.B"), Some("C"));
    assert_eq!(method_of("/a.B/C/D", "a.B"), Some("C/D"));
    for path in ["/a.Bc/C", "/a.B", "a.B/C", "//a.B/C", "", "/"] {
        assert_eq!(method_of(path, "a.B"), None, "{path}");
    }
}

/// A registration is done, and said to be, however its bytes arrive; and a view is read as tonic would have it read.
#[tokio::test]
async fn a_call_is_the_same_in_one_piece_and_in_many_and_as_by_tonic() {
    let server = Server::new();
    let request = whole(&registration());
    let (status, said) = server.ask("Register", None, body(&[request.clone().into()])).await;
    assert_eq!(status, "0");
    let registered = v1::RegisterResponse::decode(&said[5..]).expect("a message");
    assert_eq!((registered.revision, registered.instances[0].id.as_str()), (1, "10.0.0.1:80"));
    assert_eq!(said[..5], whole(&registered)[..5]);
    let mut bytes: Vec<Bytes> = request.chunks(1).map(Bytes::copy_from_slice).collect();
    bytes.insert(3, Bytes::new());
    let [ours, theirs] = server.ask_both("Register", &bytes).await;
    assert_eq!(ours, ("0".to_owned(), said), "the same again, and nothing else was registered");
    assert_eq!(ours, theirs);
    let key = registration().registrations[0].key.clone();
    let read = whole(&v1::DiscoverRequest { key, ..v1::DiscoverRequest::default() });
    let [ours, theirs] = server.ask_both("Discover", &[read.into()]).await;
    assert_eq!(ours, theirs);
    let found = v1::DiscoverResponse::decode(&ours.1[5..]).expect("a message");
    assert_eq!(found.change.expect("a view").all.len(), 1);
}

#[tokio::test]
async fn what_is_no_request_is_refused_with_the_code_that_tonic_has_for_it() {
    let server = Server::new();
    let good = whole(&registration());
    let mut compressed = good.clone();
    compressed[0] = 1;
    let mut strange = good.clone();
    strange[0] = 9;
    let half = good[..good.len() / 2].to_vec();
    let too_long = [&[0][..], &2_001_u32.to_be_bytes(), &[0; 2_001]].concat();
    let garbage = [&[0][..], &3_u32.to_be_bytes(), b"\xff\xff\xff"].concat();
    for method in METHODS {
        for (what, bytes, code) in [
            ("nothing", Vec::new(), "13"),
            ("half a head", good[..3].to_vec(), "13"),
            ("half a message", half.clone(), "13"),
            ("compressed", compressed.clone(), "13"),
            ("a strange beginning", strange.clone(), "13"),
            ("too long", too_long.clone(), "11"),
            ("too long, says its head", too_long[..5].to_vec(), "11"),
            ("no protobuf", garbage.clone(), "13"),
        ] {
            let pieces: Vec<Bytes> = bytes.chunks(7).map(Bytes::copy_from_slice).collect();
            let [(ours, _), (theirs, _)] = server.ask_both(method, &pieces).await;
            assert_eq!((ours.as_str(), theirs.as_str()), (code, code), "{method}: {what}");
        }
        let twice = [good.clone(), good.clone()].concat().into();
        assert_eq!(server.ask(method, None, body(&[twice])).await.0, "13", "{method}: two messages");
    }
    let gzip = server.ask("Register", Some("gzip"), body(&[good.clone().into()])).await;
    assert_eq!(gzip.0, "12", "compression is not implemented");
    assert_eq!(server.ask("Registrieren", None, body(&[good.into()])).await.0, "12", "nor is this method");
    assert_eq!(server.calls.service.epoch().len(), 32);
    let head = server.ask("ListServices", None, body(&[whole(&v1::ListServicesRequest::default()).into()]));
    let listed = v1::ListServicesResponse::decode(&head.await.1[5..]).expect("a message");
    assert!(listed.services.is_empty(), "nothing of all that was done");
}

/// A client that says little and sends much is stopped as soon as it is seen, and no more of it is kept.
#[tokio::test]
async fn a_body_that_is_longer_than_it_says_is_not_read_to_its_end() {
    let server = Server::new();
    let polled = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&polled);
    let frames = (0..1_000).map(move |at| {
        counted.fetch_add(1, Ordering::Relaxed);
        let head: &[u8] = if at == 0 { &[0, 0, 0, 0, 9] } else { &[0; 5] };
        Ok::<_, Infallible>(HttpFrame::data(Bytes::copy_from_slice(head)))
    });
    let endless = StreamBody::new(tokio_stream::iter(frames));
    assert_eq!(server.ask("Register", None, endless).await.0, "13");
    assert_eq!(polled.load(Ordering::Relaxed), 3, "the head, and until there is more than nine bytes");
}

#[tokio::test]
async fn a_request_that_breaks_off_is_not_done() {
    let server = Server::new();
    let good = Bytes::from(whole(&registration()));
    let frames = vec![Ok(HttpFrame::data(good)), Err(Status::unavailable("gone"))];
    let broken = StreamBody::new(tokio_stream::iter(frames));
    assert_eq!(server.ask("Register", None, broken).await.0, "14");
    // Reset for no error, which reads as if nothing more came.
    let reset = Pieces { left: [whole(&registration()).into()].into(), ends: false };
    assert_eq!(server.ask("Register", None, reset).await.0, "1");
    assert_eq!(server.calls.service.registry.hub().head(), 0, "nothing was registered");
}

/// A client that says little and then nothing holds what it said here for a while, and not for ever.
#[tokio::test(start_paused = true)]
async fn a_request_that_does_not_come_to_its_end_is_given_up() {
    let server = Server::new();
    let most = whole(&registration());
    let begun = tokio_stream::iter([Ok::<_, Infallible>(HttpFrame::data(Bytes::from(most).slice(..7)))]);
    let stalled = StreamBody::new(Box::pin(begun.chain(tokio_stream::pending())));
    assert_eq!(server.ask("Register", None, stalled).await.0, "4");
}

proptest! {
    #[test]
    fn whatever_bytes_are_sent_the_answer_is_as_by_tonic(
        method in 0..METHODS.len(),
        begins in 0..3_u8,
        says in 0..40_u32,
        message in vec(any::<u8>(), 0..40),
        cut in 1..9_usize,
    ) {
        let method = METHODS[method];
        prop_assume!(method != "WaitApplied"); // whose answer may take its time
        let bytes = [&[begins / 2][..], &says.to_be_bytes(), &message].concat();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let pieces: Vec<Bytes> = bytes.chunks(cut).map(Bytes::copy_from_slice).collect();
        let [ours, theirs] = runtime.block_on(async { Server::new().ask_both(method, &pieces).await });
        if begins < 2 && message.len() > says as usize {
            prop_assert_eq!(ours.0, "13", "more than one message");
        } else {
            prop_assert_eq!(ours, theirs);
        }
    }
}
