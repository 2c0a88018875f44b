//! Any tower service, balanced: here hyper's HTTP/1 client, one connection to each of two servers.
//!
//! What a [`LoadBalanceLayer`] needs is something that makes a service for an address, a `MakeService<Address, Request>` in
//! tower's words: [`connect`] opens a connection and wraps it in [`Http1`]. The layer keeps one for each instance, connects
//! again what breaks, and gives each request to one that is ready. An HTTP/1 connection takes one request at a time:
//! while it is busy, requests go to the others, and wait if all are.
//!
//! Needs nothing else to run:
//!
//! ```text
//! cargo run -p examples --bin http1
//! ```

#![allow(clippy::print_stdout)] // printing is what it is for

use std::{
    collections::BTreeSet,
    convert::Infallible,
    io,
    net::Ipv4Addr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use client_sdk::{
    discover::StaticDiscover,
    layer::{LoadBalanceLayer, LoadBalanced},
    model::{Address, Endpoint},
    runtime::{Runtime, Task},
};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
    header::HOST,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tower::{BoxError, Layer as _, Service};

/// One HTTP/1 connection as a tower service.
struct Http1(SendRequest<Empty<Bytes>>);

impl Service<Request<Empty<Bytes>>> for Http1 {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Empty<Bytes>>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// All connections as one service.
type Greeters = LoadBalanced<Http1, Request<Empty<Bytes>>, Response<Incoming>>;

/// Connects to an address.
async fn connect(address: Address) -> Result<Http1, BoxError> {
    let stream = TcpStream::connect(address.as_str()).await?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    Runtime::tokio().detach(async {
        // Why it ended shows to whoever asks it whether it is ready.
        let _ = connection.await;
    });
    Ok(Http1(sender))
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (alice, bob) = (HttpGreeter::start("alice").await?, HttpGreeter::start("bob").await?);
    let servers: StaticDiscover = [alice.address.clone(), bob.address.clone()].into_iter().collect();

    let layer = LoadBalanceLayer::builder(Arc::new(servers), Endpoint::new("greeter")).build();
    let balanced = layer.layer(tower::service_fn(connect));

    balanced.wait_until(|now| now.chosen() == 2).await;
    println!("both are connected: 20 requests are answered by {}", ask(&balanced).await?);

    drop(alice);
    balanced.wait_until(|now| now.chosen() == 1).await;
    println!("alice has stopped: 20 requests are answered by {}", ask(&balanced).await?);
    Ok(())
}

/// Asks twenty times, and says who answered.
async fn ask(balanced: &Greeters) -> Result<String, BoxError> {
    let mut who = BTreeSet::new();
    for _ in 0..20 {
        let request = Request::get("/").header(HOST, "greeter").body(Empty::new())?;
        let body = balanced.clone().call(request).await?.into_body().collect().await?;
        who.insert(String::from_utf8(body.to_bytes().to_vec())?);
    }
    Ok(who.into_iter().collect::<Vec<_>>().join(" and "))
}

/// An HTTP/1 server inside this process. Dropping it ends its connections.
struct HttpGreeter {
    address: Address,
    _serving: Task,
}

impl HttpGreeter {
    async fn start(name: &'static str) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?.into();
        let serving = async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let answer = service_fn(move |_| async move {
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(name))))
                });
                let server = hyper::server::conn::http1::Builder::new();
                connections.spawn(server.serve_connection(TokioIo::new(stream), answer));
            }
        };
        Ok(Self { address, _serving: Runtime::tokio().spawn(serving) })
    }
}
