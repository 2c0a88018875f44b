//! A connection is served as its client sees it; and the word of who rang, from many threads.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{client::conn::http2::SendRequest, service::service_fn};
use hyper_util::rt::TokioExecutor;
use tokio::{io::duplex, sync::Semaphore, task::JoinHandle};

use super::{calls::PLACES, *};
use crate::runtime::Runtime;

/// What calls do by their path.
struct Host {
    /// `/wait` waits for one of these.
    permits: Semaphore,
    waiting: AtomicUsize,
}

impl Host {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        match request.uri().path() {
            "/panic" => panic!("as it was asked to"),
            "/wait" => {
                self.waiting.fetch_add(1, Ordering::AcqRel);
                self.permits.acquire().await.expect("it is never closed").forget();
            }
            _ => tokio::task::yield_now().await,
        }
        Ok(Response::new(Body::empty()))
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
    let host = Arc::new(Host { permits: Semaphore::new(0), waiting: AtomicUsize::new(0) });
    let (near, far) = duplex(1 << 16);
    let (close, closing) = watch::channel(false);
    let answering = Arc::clone(&host);
    let service = service_fn(move |request| Arc::clone(&answering).answer(request));
    let runtime = Runtime::tokio();
    let server = runtime.spawn(Connection::new(far, service, closing));
    let (client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(near))
            .await
            .expect("HTTP/2");
    runtime.spawn(async move {
        let _ = connection.await;
    });
    Served { host, client, close, server }
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
