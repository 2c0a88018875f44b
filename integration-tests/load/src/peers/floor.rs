//! The floor: what gRPC takes by itself, by tonic's own server as it comes, as a process of its own. Ours is of the same libraries, but takes
//! its connections and answers its calls by itself, which may take less.
//! The floor keeps nothing and decides nothing: unary calls answer as many bytes as they ask for, streams echo, and
//! what is published goes to everyone who follows.

use std::{
    convert::Infallible,
    ffi::OsString,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::BoxFuture,
    server::NamedService,
    transport::server::TcpIncoming,
};

use super::{
    Setup,
    grpc::{Answers, Channel, Feed, Requests, frame_bytes},
};
use crate::{
    failure::{During, Failure, Result},
    process::{Process, Recipe, free_address},
};

/// The tool's argument that makes it the floor.
pub(crate) const SERVE: &str = "serve-floor";
/// Streams what is published.
const FOLLOW: &str = "/floor.Floor/Follow";
/// Messages that wait for one follower at most. One that is further behind is let go of: its stream ends.
const QUEUE: usize = 8_192;

/// The floor, started.
#[derive(Debug)]
pub(crate) struct Floor(Process);

/// A connection to it.
#[derive(Clone, Debug)]
pub(crate) struct Client(Channel);

impl Floor {
    /// As in tables.
    pub(crate) const NAME: &'static str = "floor";

    /// Starts one.
    pub(crate) async fn start(setup: &Setup) -> Result<Self> {
        let process = Process::start(&setup.directory, |_| {
            let address = free_address()?;
            let pinned = if setup.pinned { "on" } else { "off" };
            let arguments = [SERVE, &address.to_string(), pinned].map(OsString::from).into();
            let program = std::env::current_exe().during("cannot find this program")?;
            Ok(Recipe { name: Self::NAME, program, arguments, address })
        });
        Ok(Self(process.await?))
    }

    /// Its process.
    pub(crate) fn process(&self) -> &Process {
        &self.0
    }

    /// A connection of its own, for streams.
    pub(crate) fn connect(&self) -> Client {
        Client(Channel::to(self.0.address()))
    }

    /// One for calls, open already.
    pub(crate) async fn caller(&self) -> Result<Client> {
        let client = self.connect();
        client.0.ready_to_call().await?;
        Ok(client)
    }

    /// A follower on a connection of its own, with nothing beside it.
    pub(crate) async fn follow(&self) -> Result<Feed> {
        let mut feed = Feed::alone(self.0.address(), FOLLOW, None).await?;
        feed.begun().await?;
        Ok(feed)
    }
}

impl Client {
    /// A call that is answered with so many bytes.
    pub(crate) async fn unary(&self, bytes: u32) -> Result<Bytes> {
        self.0.unary("/floor.Floor/Unary", frame_bytes(&bytes.to_be_bytes())?).await
    }

    /// Has bytes go to everyone who follows.
    pub(crate) async fn publish(&self, bytes: &[u8]) -> Result<()> {
        self.0.unary("/floor.Floor/Publish", frame_bytes(bytes)?).await.map(drop)
    }

    /// Follows what is published, from when this has returned.
    pub(crate) async fn follow(&self) -> Result<Feed> {
        let mut feed = Feed::among(&self.0, FOLLOW, None).await?;
        feed.begun().await?;
        Ok(feed)
    }

    /// A stream that is echoed.
    pub(crate) async fn echo(&self) -> Result<(Requests, Answers)> {
        self.0.open("/floor.Floor/Echo").await
    }
}

/// Runs the floor until it is killed.
pub(crate) async fn serve(address: SocketAddr) -> Result<()> {
    let incoming = TcpIncoming::bind(address).during("the floor cannot listen")?.with_nodelay(Some(true));
    // As our server: pings find connections that died.
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(Service::default());
    server.serve_with_incoming(incoming).await.during("the floor failed")
}

/// Whoever follows.
type Followers = Arc<Mutex<Vec<mpsc::Sender<std::result::Result<Bytes, Status>>>>>;

#[derive(Clone, Debug)]
struct Service {
    /// What unary calls are answered from.
    bytes: Bytes,
    followers: Followers,
}

impl Default for Service {
    fn default() -> Self {
        Self { bytes: vec![b'x'; 4 << 20].into(), followers: Followers::default() }
    }
}

impl NamedService for Service {
    const NAME: &'static str = "floor.Floor";
}

impl tower::Service<http::Request<Body>> for Service {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Self { bytes, followers } = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Raw);
            Ok(match request.uri().path() {
                "/floor.Floor/Unary" => {
                    let unary = tower::service_fn(move |request: Request<Bytes>| {
                        let asked = request.into_inner();
                        let length = if asked.len() < 4 { 0 } else { asked.clone().get_u32() as usize };
                        let answer = bytes.slice(..length.min(bytes.len()));
                        async move { Ok(Response::new(answer)) }
                    });
                    grpc.unary(unary, request).await
                }
                "/floor.Floor/Publish" => {
                    let publish = tower::service_fn(move |request: Request<Bytes>| {
                        let bytes = request.into_inner();
                        let mut followers = followers.lock().unwrap_or_else(PoisonError::into_inner);
                        followers.retain(|follower| follower.try_send(Ok(bytes.clone())).is_ok());
                        async move { Ok(Response::new(Bytes::new())) }
                    });
                    grpc.unary(publish, request).await
                }
                FOLLOW => {
                    let follow = tower::service_fn(move |_: Request<Streaming<Bytes>>| {
                        let (follower, told) = mpsc::channel(QUEUE);
                        followers.lock().unwrap_or_else(PoisonError::into_inner).push(follower);
                        async move { Ok(Response::new(ReceiverStream::new(told))) }
                    });
                    grpc.streaming(follow, request).await
                }
                "/floor.Floor/Echo" => {
                    let echo = tower::service_fn(|request: Request<Streaming<Bytes>>| async move {
                        Ok(Response::new(request.into_inner().map(|bytes| bytes)))
                    });
                    grpc.streaming(echo, request).await
                }
                _ => Status::unimplemented("the floor has no such method").into_http(),
            })
        })
    }
}

/// Messages that are bytes.
#[derive(Clone, Copy, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, bytes: Bytes, buffer: &mut EncodeBuf<'_>) -> std::result::Result<(), Status> {
        buffer.put(bytes);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> std::result::Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// What the floor of durability is: a write of so many bytes, and its `fdatasync`, one after the other.
pub(crate) fn syncs(directory: &std::path::Path, bytes: usize, times: u32) -> Result<std::time::Duration> {
    use std::io::Write;
    let file = tempfile::tempfile_in(directory).during("cannot make a file")?;
    let written = vec![b'x'; bytes];
    let began = crate::clock::now();
    for _ in 0..times {
        (&file).write_all(&written).during("cannot write")?;
        file.sync_data().during("cannot sync")?;
    }
    if times == 0 {
        return Err(Failure("nothing to measure".to_owned()));
    }
    Ok(began.elapsed() / times)
}
