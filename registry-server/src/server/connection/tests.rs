//! A connection is served as its client sees it; and the word of who rang, from many threads.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, client};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncWriteExt, DuplexStream, duplex},
    sync::Semaphore,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_stream::StreamExt;
use tonic::Status;

use super::{calls::PLACES, *};
use crate::{
    runtime::Runtime,
    server::{GREETS_WHEN_CLOSING, PING_INTERVAL, PING_TIMEOUT},
};

/// What calls do by their path.
struct Host {
    /// `/wait` waits for one of these.
    permits: Semaphore,
    waiting: AtomicUsize,
    /// Pieces of answers that were asked for.
    pieces: AtomicUsize,
    /// Gone from what was waiting, or from answers.
    left: AtomicUsize,
}

/// A piece of an answer's body.
const PIECE: &[u8] = &[b'x'; 1_000];
/// An answer of `/pieces`.
const PIECES: usize = 300;

/// Counts who goes.
struct Leaves(Arc<Host>);

impl Drop for Leaves {
    fn drop(&mut self) {
        self.0.left.fetch_add(1, Ordering::AcqRel);
    }
}

impl Host {
    fn pieces(self: &Arc<Self>, count: usize) -> Body {
        let leaves = Leaves(Arc::clone(self));
        let pieces = (0..count).map(move |_| {
            leaves.0.pieces.fetch_add(1, Ordering::AcqRel);
            Ok::<_, Status>(http_body::Frame::data(Bytes::from_static(PIECE)))
        });
        Body::new(StreamBody::new(tokio_stream::iter(pieces)))
    }

    async fn answer(self: Arc<Self>, request: Request<RequestBody>) -> Response<Body> {
        match request.uri().path() {
            "/panic" => panic!("as it was asked to"),
            "/pieces" => return Response::new(self.pieces(PIECES)),
            "/break" => {
                let breaks = futures_util::stream::once(Box::pin(async {
                    tokio::task::yield_now().await;
                    Err(Status::internal("as it was asked to"))
                }));
                let piece = http_body::Frame::data(Bytes::from_static(PIECE));
                return Response::new(Body::new(StreamBody::new(
                    tokio_stream::iter([Ok(piece)]).chain(breaks),
                )));
            }
            "/read" => {
                let mut body = request.into_body();
                let mut read = 0;
                while let Some(Ok(frame)) = body.frame().await {
                    read += frame.into_data().map_or(0, |data| data.len());
                }
                self.waiting.store(read, Ordering::Release);
                self.left.store(usize::from(http_body::Body::is_end_stream(&body)), Ordering::Release);
            }
            "/wait" => {
                let _leaves = Leaves(Arc::clone(&self));
                self.waiting.fetch_add(1, Ordering::AcqRel);
                self.permits.acquire().await.expect("it is never closed").forget();
            }
            _ => tokio::task::yield_now().await,
        }
        Response::new(Body::empty())
    }
}

/// A client of a connection that is served, and what it takes to end it.
struct Served {
    host: Arc<Host>,
    client: SendRequest<Empty<Bytes>>,
    close: watch::Sender<bool>,
    server: JoinHandle<()>,
}

async fn served() -> Served {
    let (host, near, close, server) = serve();
    let (client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(near))
            .await
            .expect("HTTP/2");
    Runtime::tokio().spawn(async move {
        let _ = connection.await;
    });
    Served { host, client, close, server }
}

/// A connection that is served, and its other end.
fn serve() -> (Arc<Host>, DuplexStream, watch::Sender<bool>, JoinHandle<()>) {
    let host = Arc::new(Host {
        permits: Semaphore::new(0),
        waiting: AtomicUsize::new(0),
        pieces: AtomicUsize::new(0),
        left: AtomicUsize::new(0),
    });
    let (near, far) = duplex(1 << 16);
    let (close, closing) = watch::channel(false);
    let answering = Arc::clone(&host);
    let service = move |request| Arc::clone(&answering).answer(request);
    let server = Runtime::tokio().spawn(Connection::new(far, service, closing));
    (host, near, close, server)
}

/// A client that does what is said here and nothing else.
async fn bare(near: DuplexStream, window: u32) -> client::SendRequest<Bytes> {
    let mut builder = client::Builder::new();
    builder.initial_window_size(window);
    let (client, connection) = builder.handshake(near).await.expect("HTTP/2");
    Runtime::tokio().spawn(async move {
        let _ = connection.await;
    });
    client
}

async fn ask(client: client::SendRequest<Bytes>, path: &str) -> RecvStream {
    let request = Request::get(format!("http://host{path}")).body(()).expect("a request");
    let mut client = client.ready().await.expect("HTTP/2");
    let (answer, _) = client.send_request(request, true).expect("HTTP/2");
    answer.await.expect("an answer").into_body()
}

/// Everybody has done what they can, for time is paused: nothing but this waits for it to pass.
async fn quiet() {
    sleep(Duration::from_millis(1)).await;
}

impl Served {
    fn call(&self, path: &str) -> impl Future<Output = hyper::Result<()>> + use<> {
        let request = Request::get(format!("http://host{path}")).body(Empty::new()).expect("a request");
        let mut client = self.client.clone();
        async move { client.send_request(request).await.map(drop) }
    }

    /// Has so many calls wait.
    async fn begin_waiting(&self, count: usize) -> Vec<JoinHandle<()>> {
        let calls = (0..count).map(|_| {
            let call = self.call("/wait");
            Runtime::tokio().spawn(async move { call.await.expect("an answer") })
        });
        let calls = calls.collect();
        while self.host.waiting.load(Ordering::Acquire) < count {
            tokio::task::yield_now().await;
        }
        calls
    }
}

#[tokio::test]
async fn more_calls_than_there_are_places_wait_at_once_and_hold_nobody_up() {
    let served = served().await;
    let count = PLACES * 2;
    let waiting = served.begin_waiting(count).await;
    for _ in 0..3 {
        served.call("/").await.expect("an answer although the others wait");
    }
    served.host.permits.add_permits(count);
    for call in waiting {
        call.await.expect("an answer");
    }
    // The places are used again.
    let waiting = served.begin_waiting(3).await;
    served.host.permits.add_permits(3);
    for call in waiting {
        call.await.expect("an answer");
    }
}

#[tokio::test]
async fn a_call_that_panics_ends_alone() {
    let served = served().await;
    let waiting = served.begin_waiting(1).await;
    served.call("/panic").await.expect_err("its stream is reset");
    let crowd = served.begin_waiting(PLACES + 1).await;
    served.call("/panic").await.expect_err("that of one in the crowd as well");
    served.call("/").await.expect("an answer as ever");
    served.host.permits.add_permits(PLACES + 2);
    for call in waiting.into_iter().chain(crowd) {
        call.await.expect("an answer");
    }
}

#[tokio::test]
async fn a_connection_that_is_to_close_ends_when_its_calls_have_and_takes_no_more() {
    let served = served().await;
    let mut waiting = served.begin_waiting(2).await;
    served.close.send_replace(true);
    let refused = served.call("/");
    while served.call("/").await.is_ok() {}
    refused.await.expect_err("no more calls");
    assert!(!served.server.is_finished() && served.close.receiver_count() > 0, "two are in flight");
    served.host.permits.add_permits(2);
    for call in waiting.drain(..) {
        call.await.expect("an answer");
    }
    served.server.await.expect("it has ended");
    assert_eq!(served.close.receiver_count(), 0, "whoever closes goes on");
}

#[tokio::test]
async fn a_client_that_goes_takes_its_calls_with_it() {
    let served = served().await;
    let waiting = served.begin_waiting(1).await;
    waiting[0].abort();
    drop(served.client);
    served.server.await.expect("it has ended");
}

/// W10: what a client does not take is not computed, but for one piece in the connection and one in hand.
#[tokio::test(start_paused = true)]
async fn w10_a_client_that_takes_nothing_is_kept_two_pieces() {
    let (host, near, _close, server) = serve();
    let client = bare(near, 10).await;
    let mut answer = ask(client.clone(), "/pieces").await;
    quiet().await;
    assert_eq!(host.pieces.load(Ordering::Acquire), 2);
    // The others of its connection go on meanwhile.
    assert!(ask(client.clone(), "/").await.data().await.is_none());
    let mut read = 0;
    while let Some(data) = answer.data().await {
        let data = data.expect("more of it");
        read += data.len();
        answer.flow_control().release_capacity(data.len()).expect("it has come");
        assert!(host.pieces.load(Ordering::Acquire) <= read / PIECE.len() + 3);
    }
    assert_eq!(read, PIECES * PIECE.len(), "all of it comes");
    assert_eq!(host.left.load(Ordering::Acquire), 1);
    drop((client, answer));
    server.await.expect("it ends");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_resets_its_stream_is_not_computed_for_any_more() {
    let (host, near, _close, _server) = serve();
    let client = bare(near, 10).await;
    let answer = ask(client.clone(), "/pieces").await;
    drop(answer);
    quiet().await;
    assert_eq!(host.left.load(Ordering::Acquire), 1, "the body that was being sent");
    let request = Request::get("http://host/wait").body(()).expect("a request");
    let (answer, stream) = client.clone().send_request(request, true).expect("HTTP/2");
    quiet().await;
    assert_eq!(host.waiting.load(Ordering::Acquire), 1);
    drop((answer, stream));
    quiet().await;
    assert_eq!(host.left.load(Ordering::Acquire), 2, "the call that was being answered");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_reset_and_not_ended() {
    let (_host, near, _close, _server) = serve();
    let mut answer = ask(bare(near, 1 << 16).await, "/break").await;
    assert_eq!(answer.data().await.expect("a piece").expect("a piece"), PIECE);
    let broken = answer.data().await.expect("not its end").expect_err("not a piece");
    assert_eq!(broken.reason(), Some(Reason::INTERNAL_ERROR));
}

/// More than one window of it: what was read makes room for more.
#[tokio::test(start_paused = true)]
async fn a_request_is_read_to_its_end_and_a_broken_one_does_not_seem_to_have_one() {
    const LENGTH: usize = 3 << 20;
    let (host, near, _close, _server) = serve();
    let client = bare(near, 1 << 16).await;
    let request = || Request::post("http://host/read").body(()).expect("a request");
    let (answer, mut stream) = client.clone().send_request(request(), false).expect("HTTP/2");
    stream.send_data(vec![b'x'; LENGTH].into(), true).expect("HTTP/2");
    answer.await.expect("an answer");
    let read = || (host.waiting.load(Ordering::Acquire), host.left.load(Ordering::Acquire));
    assert_eq!(read(), (LENGTH, 1));
    for reason in [Reason::NO_ERROR, Reason::CANCEL] {
        let (_answer, mut stream) = client.clone().send_request(request(), false).expect("HTTP/2");
        stream.send_data(Bytes::from_static(b"123"), false).expect("HTTP/2");
        quiet().await;
        host.left.store(1, Ordering::Release);
        stream.send_reset(reason);
        quiet().await;
        assert_eq!(read(), (3, 0), "{reason:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_very_many_calls_at_once_all_begin() {
    let count = BEGIN as usize * 2 + 1;
    let (host, near, _close, _server) = serve();
    let client = bare(near, 1 << 16).await;
    // By then the client knows how many it may have at a time.
    assert!(ask(client.clone(), "/").await.data().await.is_none());
    let mut asked = Vec::new();
    for _ in 0..count {
        let mut client = client.clone().ready().await.expect("HTTP/2");
        let request = Request::get("http://host/wait").body(()).expect("a request");
        asked.push(client.send_request(request, true).expect("HTTP/2"));
    }
    quiet().await;
    assert_eq!(host.waiting.load(Ordering::Acquire), count);
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_greet_is_no_client() {
    let (_host, _near, _close, mut server) = serve();
    let just_before = PING_INTERVAL.saturating_sub(Duration::from_millis(1));
    timeout(just_before, &mut server).await.expect_err("it may still greet");
    timeout(Duration::from_millis(2), server).await.expect("it did not").expect("it has ended");
}

/// The pong of a client that sends much waits behind what it sends.
#[tokio::test(start_paused = true)]
async fn who_is_heard_of_is_there_although_it_answers_no_ping() {
    // A frame of an unknown type, which says nothing and is skipped (RFC 9113, section 5.5).
    const UNKNOWN: &[u8] = &[0, 0, 0, 0xFA, 0, 0, 0, 0, 0];
    let (_host, mut near, _close, mut server) = serve();
    near.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("it is read");
    // Its settings, which change nothing.
    near.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("it is read");
    for _ in 0..20 {
        timeout(PING_TIMEOUT / 2, &mut server).await.expect_err("it is heard of");
        near.write_all(UNKNOWN).await.expect("it is read");
    }
    timeout(PING_INTERVAL + PING_TIMEOUT * 2, server).await.expect("it has fallen silent").expect("ended");
}

#[tokio::test(start_paused = true)]
async fn who_greets_while_the_server_closes_is_told_so_and_who_does_not_is_not_waited_for() {
    let (_host, near, close, server) = serve();
    close.send_replace(true);
    let _client = bare(near, 1 << 16).await;
    let sooner = GREETS_WHEN_CLOSING / 2;
    timeout(sooner, server).await.expect("it was told, and has nothing to ask").expect("it has ended");

    let (_host, _near, close, server) = serve();
    close.send_replace(true);
    timeout(GREETS_WHEN_CLOSING * 2, server).await.expect("nobody waits for it").expect("ended");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_no_ping_is_gone_and_one_that_does_is_not() {
    let (host, near, _close, mut server) = serve();
    // It greets, and is never heard of again.
    let (client, _connection) = client::handshake(near).await.expect("HTTP/2");
    let just_before = (PING_INTERVAL + PING_TIMEOUT).saturating_sub(Duration::from_millis(1));
    timeout(just_before, &mut server).await.expect_err("it may still answer");
    timeout(Duration::from_millis(5), server).await.expect("it did not").expect("it has ended");
    drop((host, client));

    let (_host, near, _close, mut server) = serve();
    let client = bare(near, 1 << 16).await;
    timeout(PING_INTERVAL * 20, &mut server).await.expect_err("it answers each time");
    assert!(ask(client, "/").await.data().await.is_none());
}

/// Rings come from other threads, all the time: none is lost, and nobody waits for ever.
#[test]
fn nobody_rings_in_vain() {
    const RINGS: u64 = 200_000;
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let turn = Turn::new(0);
    let counts: Arc<[std::sync::atomic::AtomicU64; 3]> = Arc::default();
    let ringing: Vec<_> = (0..3)
        .map(|who| {
            let (turn, counts) = (Arc::clone(&turn), Arc::clone(&counts));
            std::thread::spawn(move || {
                let bell = turn.bell(1 << who);
                for _ in 0..RINGS {
                    counts[who].fetch_add(1, Ordering::AcqRel);
                    bell.wake_by_ref();
                }
            })
        })
        .collect();
    let task = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut seen = [0; 3];
    while seen != [RINGS; 3] {
        let mut rung = turn.begin(&task);
        loop {
            for who in 0..3 {
                if rung & (1 << who) != 0 {
                    seen[who] = counts[who].load(Ordering::Acquire);
                }
            }
            if turn.end() {
                break;
            }
            rung = turn.go_on();
        }
        if seen != [RINGS; 3] {
            std::thread::park();
        }
    }
    for thread in ringing {
        thread.join().expect("it ends");
    }
}
