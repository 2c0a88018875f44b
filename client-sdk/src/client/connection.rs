//! One HTTP/2 connection to one registry endpoint, as a service that a generated client runs on.
//!
//! It does not reconnect, buffer or retry: a failed connection stays failed, and whoever owns it asks
//! [`Endpoints`](super::endpoints::Endpoints) for another. Every failure of the transport is an `UNAVAILABLE` status.

use std::{
    fmt,
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http_body_util::BodyExt as _;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use registry_proto::v1::registry_client;
use tonic::{Status, body::Body};

use crate::{
    model::{Address, AddressKind},
    runtime::{BoxFuture, Io, Runtime, Task},
};

/// The generated client over one connection.
pub(crate) type Grpc = registry_client::RegistryClient<Connection>;

/// A shared connection. The last clone to go closes it.
#[derive(Clone)]
pub(crate) struct Connection {
    send: http2::SendRequest<Body>,
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: Address,
    origin: http::Uri,
    retired: AtomicBool,
    _driver: Task,
}

/// When to look whether the peer is still there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keepalive {
    /// After this much time without a sign of life, ping.
    pub(crate) interval: Duration,
    /// Without an answer to the ping for this long, the connection is dead.
    pub(crate) timeout: Duration,
}

impl Connection {
    /// Speaks HTTP/2 on `io`. (TLS would wrap `io` just before.)
    pub(crate) async fn open(
        runtime: &Runtime,
        endpoint: &Address,
        io: Box<dyn Io>,
        keepalive: Keepalive,
    ) -> io::Result<Self> {
        let (send, connection) = http2::Builder::new(Executor(runtime.clone()))
            .timer(TokioTimer::new())
            .keep_alive_interval(keepalive.interval)
            .keep_alive_timeout(keepalive.timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .handshake(TokioIo::new(io))
            .await
            .map_err(io::Error::other)?;
        let name = endpoint.clone();
        let driver = runtime.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(endpoint = %name, %error, "the connection to the registry ended");
            }
        });
        let authority = match endpoint.kind() {
            AddressKind::Tcp { .. } => endpoint.as_str(),
            AddressKind::Unix(_) => "localhost",
        };
        let origin = format!("http://{authority}").parse().map_err(io::Error::other)?;
        let shared =
            Shared { endpoint: endpoint.clone(), origin, retired: AtomicBool::new(false), _driver: driver };
        Ok(Self { send, shared: Arc::new(shared) })
    }

    /// Where it leads.
    pub(crate) fn endpoint(&self) -> &Address {
        &self.shared.endpoint
    }

    /// From now on nothing new is begun on it. What is under way goes on for as long as its owner holds the connection.
    pub(crate) fn retire(&self) {
        self.shared.retired.store(true, Ordering::Relaxed);
    }

    /// Whether something new may be begun on it.
    pub(crate) fn is_usable(&self) -> bool {
        !self.shared.retired.load(Ordering::Relaxed) && !self.send.is_closed()
    }

    /// The generated client.
    pub(crate) fn grpc(&self) -> Grpc {
        Grpc::with_origin(self.clone(), self.shared.origin.clone())
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("endpoint", self.endpoint()).finish_non_exhaustive()
    }
}

impl tower::Service<http::Request<Body>> for Connection {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        // Whether the connection still works is known only once it was asked: `call` says so.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = self.send.send_request(request);
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let failed = move |error: hyper::Error| {
                let endpoint = &shared.endpoint;
                Status::unavailable(format!("the connection to {endpoint} failed: {}", chain(&error)))
            };
            match answer.await {
                Ok(response) => Ok(response.map(|body| Body::new(body.map_err(failed)))),
                Err(error) => Err(failed(error)),
            }
        })
    }
}

/// Runs hyper's stream tasks, which end with their connection.
#[derive(Clone)]
struct Executor(Runtime);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Executor {
    fn execute(&self, task: F) {
        self.0.detach(task);
    }
}

/// An error with all its sources: hyper's own text alone never says what happened.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
