//! Servers to call, servers that misbehave on purpose, and a view that a test sets by hand.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use client_sdk::{
    balance::{Pick, PickContext, PickError, Picker, Policy},
    channel::BalancedChannel,
    discover::{Discover, View, ViewReceiver, ViewState},
    model::{Address, Change, Endpoint, Instance, InstanceBuilder, InstanceList},
    runtime::{BoxFuture, Connect, Io, Runtime, TokioClock, TokioSpawn},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixListener},
    sync::{Notify, Semaphore, watch},
};
use tokio_stream::{Stream, StreamExt, wrappers::UnixListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::server::TcpIncoming};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse,
    server_reflection_server::{ServerReflection, ServerReflectionServer},
};

/// A gRPC server on a runtime of its own, so that it can be killed like a process.
pub(crate) struct Server {
    pub(crate) address: Address,
    pub(crate) desk: Arc<Desk>,
    runtime: Option<tokio::runtime::Runtime>,
    home: Option<tempfile::TempDir>,
}

/// What a server's handlers share with the test.
pub(crate) struct Desk {
    name: &'static str,
    /// How many calls came.
    pub(crate) calls: AtomicUsize,
    /// Gets a permit as each blocking call arrives.
    pub(crate) arrived: Semaphore,
    /// A permit lets one blocking call, or one stream, go on.
    pub(crate) gate: Semaphore,
}

impl Server {
    /// On a port.
    pub(crate) fn start(name: &'static str) -> Self {
        Self::listening(name, None)
    }

    fn listening(name: &'static str, streams: Option<u32>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("bound").into();
        let mut server = Self::new(name, address, None);
        server.serve(streams, async move {
            TcpIncoming::from(TcpListener::from_std(listener).expect("nonblocking"))
        });
        server
    }

    /// On a port, with so many streams at once on a connection.
    pub(crate) fn limited(name: &'static str, streams: u32) -> Self {
        Self::listening(name, Some(streams))
    }

    /// On a socket in the file system, which nobody else can take while the server is dead.
    pub(crate) fn mortal(name: &'static str) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let address = home.path().join("socket").try_into().expect("absolute");
        let mut server = Self::new(name, address, Some(home));
        server.revive();
        server
    }

    /// Starts a mortal server again, where it was.
    pub(crate) fn revive(&mut self) {
        let path = self.home.as_ref().expect("mortal").path().join("socket");
        let _ = std::fs::remove_file(&path); // none yet
        let listener = std::os::unix::net::UnixListener::bind(path).expect("free");
        listener.set_nonblocking(true).expect("a socket");
        self.serve(None, async move {
            UnixListenerStream::new(UnixListener::from_std(listener).expect("nonblocking"))
        });
    }

    fn new(name: &'static str, address: Address, home: Option<tempfile::TempDir>) -> Self {
        let desk = Arc::new(Desk {
            name,
            calls: AtomicUsize::new(0),
            arrived: Semaphore::new(0),
            gate: Semaphore::new(0),
        });
        Self { address, desk, runtime: None, home }
    }

    fn serve<I, S>(&mut self, streams: Option<u32>, incoming: impl Future<Output = I> + Send + 'static)
    where
        I: Stream<Item = io::Result<S>> + Send + 'static,
        S: Io + tonic::transport::server::Connected,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let service = Arc::clone(&self.desk);
        runtime.spawn(async move {
            tonic::transport::Server::builder()
                .max_concurrent_streams(streams)
                .add_service(HealthServer::from_arc(Arc::clone(&service)))
                .add_service(ServerReflectionServer::from_arc(service))
                .serve_with_incoming(incoming.await)
                .await
                .expect("serves");
        });
        self.runtime = Some(runtime);
    }

    /// An instance there, with the server's name as its id.
    pub(crate) fn instance(&self) -> InstanceBuilder {
        Instance::builder(self.address.clone()).id(self.desk.name)
    }

    /// As SIGKILL: its connections break at once.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub(crate) fn calls(&self) -> usize {
        self.desk.calls.load(Ordering::SeqCst)
    }

    /// Waits for a blocking call.
    pub(crate) async fn arrived(&self) {
        self.desk.arrived.acquire().await.expect("never closed").forget();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn serving() -> HealthCheckResponse {
    HealthCheckResponse { status: 1 }
}

#[tonic::async_trait]
impl Health for Desk {
    /// Answers at once, or for the service `block` when the gate opens; says who in the metadata.
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if request.get_ref().service == "block" {
            self.arrived.add_permits(1);
            self.gate.acquire().await.expect("never closed").forget();
        }
        let mut response = Response::new(serving());
        response.metadata_mut().insert("who", self.name.parse().expect("ascii"));
        let length = request.get_ref().service.len().to_string();
        response.metadata_mut().insert("length", length.parse().expect("ascii"));
        Ok(response)
    }

    type WatchStream = Answers<HealthCheckResponse>;

    /// One answer at once, which the test sees, then nothing for ever.
    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let mut response: Response<Self::WatchStream> =
            Response::new(Box::pin(tokio_stream::once(Ok(serving())).chain(tokio_stream::pending())));
        response.metadata_mut().insert("who", self.name.parse().expect("ascii"));
        Ok(response)
    }
}

#[tonic::async_trait]
impl ServerReflection for Desk {
    type ServerReflectionInfoStream = Answers<ServerReflectionResponse>;

    /// Echoes each request's host.
    async fn server_reflection_info(
        &self,
        request: Request<Streaming<ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let echo = request.into_inner().map(|request| {
            request.map(|request| ServerReflectionResponse { valid_host: request.host, ..Default::default() })
        });
        Ok(Response::new(Box::pin(echo)))
    }
}

/// A unary call; who answered it.
pub(crate) async fn who(channel: &BalancedChannel) -> Result<String, Status> {
    check(channel, "").await
}

/// A unary call that blocks until the gate opens.
pub(crate) async fn blocking(channel: &BalancedChannel) -> Result<String, Status> {
    check(channel, "block").await
}

pub(crate) async fn check(channel: &BalancedChannel, service: &str) -> Result<String, Status> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let response = HealthClient::new(channel.clone()).check(request).await?;
    assert_eq!(response.metadata().get("length").expect("said"), &service.len().to_string());
    Ok(response.metadata().get("who").expect("said").to_str().expect("ascii").to_owned())
}

/// A view that the test sets.
#[derive(Clone)]
pub(crate) struct Fleet(Arc<watch::Sender<ViewState>>);

impl Fleet {
    /// Nothing known yet.
    pub(crate) fn unknown() -> Self {
        Self(Arc::new(watch::channel(ViewState::default()).0))
    }

    pub(crate) fn of(instances: impl IntoIterator<Item = InstanceBuilder>) -> Self {
        let fleet = Self::unknown();
        fleet.set(instances);
        fleet
    }

    pub(crate) fn set(&self, instances: impl IntoIterator<Item = InstanceBuilder>) {
        let instances: InstanceList = instances.into_iter().map(|i| Arc::new(i.build())).collect();
        self.0.send_replace(ViewState { view: Some(View { instances, version: None }), error: None });
    }

    /// Keeps the last good view.
    pub(crate) fn fail(&self, error: &str) {
        self.0.send_modify(|state| state.error = Some(Arc::new(io::Error::other(error.to_owned()))));
    }
}

impl Discover for Fleet {
    type Key = ();
    type Error = Infallible;

    async fn discover(&self, _: &Endpoint) -> Result<Vec<Arc<Instance>>, Infallible> {
        Ok(self.0.borrow().view.as_ref().map(|view| view.instances.to_vec()).unwrap_or_default())
    }

    fn key(&self, _: &Endpoint) {}

    fn watch(&self) -> Option<async_broadcast::Receiver<Change<()>>> {
        None
    }

    fn view(&self, _: &Endpoint) -> Option<ViewReceiver> {
        Some(self.0.subscribe())
    }
}

/// Always the instance of this id, if it is there; else the first.
pub(crate) struct Always(pub(crate) &'static str);

pub(crate) struct Chosen(Arc<Instance>);

impl Policy for Always {
    type Picker = Chosen;

    fn build(&self, instances: &InstanceList) -> Chosen {
        let named = instances.iter().find(|instance| &*instance.id == self.0);
        Chosen(Arc::clone(named.unwrap_or(&instances[0])))
    }
}

impl Picker for Chosen {
    fn pick(&self, _: &PickContext) -> Result<Pick<'_>, PickError> {
        Ok(Pick::of(Arc::clone(&self.0)))
    }
}

/// Counts how often it is asked to build.
#[derive(Clone, Default)]
pub(crate) struct Counting(pub(crate) Arc<AtomicUsize>);

impl Policy for Counting {
    type Picker = Chosen;

    fn build(&self, instances: &InstanceList) -> Chosen {
        self.0.fetch_add(1, Ordering::SeqCst);
        Chosen(Arc::clone(&instances[0]))
    }
}

/// What a [`Peer`] does with a request that it read to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// `RST_STREAM(REFUSED_STREAM)`.
    Refuse,
    /// GOAWAY that names no stream as processed; the connection stays open.
    GoAway,
    /// Closes the connection.
    Close,
    /// `grpc-status: 5`.
    NotFound,
    /// `grpc-status: 14`.
    Unavailable,
    /// The answer's headers, and nothing after them.
    Begin,
    /// Allows one stream at a time and never answers; closes the connection when told to.
    Hold,
    /// Says nothing after its greeting, not even that it got a ping.
    Stuck,
}

/// A peer that speaks HTTP/2 frame by frame, and does what the test says.
pub(crate) struct Peer {
    pub(crate) address: Address,
    pub(crate) seen: Arc<AtomicUsize>,
    pub(crate) open: watch::Receiver<usize>,
    /// Closes a connection that is held.
    pub(crate) close: Arc<Notify>,
}

impl Peer {
    /// `act` gets the number of the connection, from 0.
    pub(crate) async fn start(act: impl Fn(usize) -> Act + Send + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("bound").into();
        let seen = Arc::new(AtomicUsize::new(0));
        let (count, open) = watch::channel(0);
        let counted = Arc::clone(&seen);
        let close = Arc::new(Notify::new());
        let closed = Arc::clone(&close);
        tokio::spawn(async move {
            for number in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (act, seen, count) = (act(number), Arc::clone(&counted), count.clone());
                count.send_modify(|open| *open += 1);
                let closed = Arc::clone(&closed);
                tokio::spawn(async move {
                    tokio::select! {
                        _ = speak(stream, || act, &seen) => {} // it ends when the other side does
                        () = closed.notified() => {}
                    }
                    count.send_modify(|open| *open -= 1);
                });
            }
        });
        Self { address, seen, open, close }
    }

    pub(crate) fn instance(&self, id: &'static str) -> InstanceBuilder {
        Instance::builder(self.address.clone()).id(id)
    }

    pub(crate) fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }
}

/// A world without a network: whatever the address, a peer is there that does so. For tests with time of their own.
pub(crate) fn world(act: Act) -> Runtime {
    inside(act, None)
}

/// As [`world`], but there is one address where nobody answers, and nobody says so.
pub(crate) fn world_but(act: Act, nobody: &Address) -> Runtime {
    inside(act, Some(nobody.clone()))
}

fn inside(act: Act, nobody: Option<Address>) -> Runtime {
    struct Inside(Act, Option<Address>);

    impl Connect for Inside {
        fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
            Box::pin(async move {
                if self.1.as_ref() == Some(address) {
                    std::future::pending::<()>().await;
                }
                let (near, far) = tokio::io::duplex(1 << 16);
                let act = self.0;
                tokio::spawn(async move { speak(far, || act, &AtomicUsize::new(0)).await });
                Ok(Box::new(near) as Box<dyn Io>)
            })
        }
    }

    Runtime::new(TokioClock::default(), Inside(act, nobody), TokioSpawn, 7)
}

/// A world without a network in which each address does as the test says, from one moment to the next.
#[derive(Clone, Default)]
pub(crate) struct Cast(Arc<Mutex<HashMap<Address, Role>>>);

#[derive(Clone)]
struct Role {
    /// `None`: nobody is there.
    act: Option<Act>,
    seen: Arc<AtomicUsize>,
}

impl Cast {
    /// From now on this address, made of the id, does so.
    pub(crate) fn set(&self, id: &str, act: impl Into<Option<Act>>) {
        let mut roles = self.0.lock().expect("no panic");
        let role = roles.entry(Self::address(id)).or_insert(Role { act: None, seen: Arc::default() });
        role.act = act.into();
    }

    pub(crate) fn instance(id: &str) -> InstanceBuilder {
        Instance::builder(Self::address(id)).id(id)
    }

    /// How many requests came there.
    pub(crate) fn seen(&self, id: &str) -> usize {
        self.role(&Self::address(id)).map_or(0, |role| role.seen.load(Ordering::SeqCst))
    }

    pub(crate) fn runtime(&self) -> Runtime {
        Runtime::new(TokioClock::default(), self.clone(), TokioSpawn, 7)
    }

    fn address(id: &str) -> Address {
        format!("{id}:1").parse().expect("valid")
    }

    fn role(&self, address: &Address) -> Option<Role> {
        self.0.lock().expect("no panic").get(address).cloned()
    }
}

impl Connect for Cast {
    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
        Box::pin(async move {
            let Some(Role { act: Some(_), seen }) = self.role(address) else {
                return Err(io::ErrorKind::ConnectionRefused.into());
            };
            let (near, far) = tokio::io::duplex(1 << 16);
            let (cast, address) = (self.clone(), address.clone());
            tokio::spawn(async move {
                let act = || cast.role(&address).and_then(|role| role.act).unwrap_or(Act::Close);
                speak(far, act, &seen).await
            });
            Ok(Box::new(near) as Box<dyn Io>)
        })
    }
}

async fn speak(mut stream: impl Io, act: impl Fn() -> Act, seen: &AtomicUsize) -> io::Result<()> {
    const DATA: u8 = 0;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    stream.read_exact(&mut [0; 24]).await?;
    let one_stream: &[u8] = &[0, 3, 0, 0, 0, 1];
    let settings = if act() == Act::Hold { one_stream } else { &[] };
    stream.write_all(&frame(SETTINGS, 0, 0, settings)).await?;
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header).await?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await?;
        let id = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
        let act = act();
        match (header[3], header[4] & 1) {
            _ if act == Act::Stuck => {}
            (SETTINGS, 0) => stream.write_all(&frame(SETTINGS, 1, 0, &[])).await?,
            (PING, 0) => stream.write_all(&frame(PING, 1, 0, &payload)).await?,
            (DATA, 1) => {
                seen.fetch_add(1, Ordering::SeqCst);
                match act {
                    Act::Refuse => stream.write_all(&frame(3, 0, id, &[0, 0, 0, 7])).await?,
                    Act::GoAway => stream.write_all(&frame(7, 0, 0, &[0; 8])).await?,
                    Act::Close => return Ok(()),
                    Act::Hold | Act::Stuck => {}
                    Act::NotFound | Act::Unavailable | Act::Begin => {
                        let mut block = vec![0x88]; // :status 200
                        let status = if act == Act::NotFound { "5" } else { "14" };
                        let headers = [("content-type", "application/grpc"), ("grpc-status", status)];
                        let begins = act == Act::Begin;
                        for (name, value) in headers.into_iter().take(if begins { 1 } else { 2 }) {
                            block.push(0);
                            for text in [name, value] {
                                block.push(u8::try_from(text.len()).expect("short"));
                                block.extend(text.as_bytes());
                            }
                        }
                        let flags = if begins { 4 } else { 5 };
                        stream.write_all(&frame(1, flags, id, &block)).await?;
                    }
                }
            }
            _ => {}
        }
    }
}

pub(crate) fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).expect("short").to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(id.to_be_bytes());
    frame.extend(payload);
    frame
}
