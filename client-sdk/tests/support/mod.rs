//! Scripted registries on an in-memory network: each call and each stream is handed to the test, which answers it.
//!
//! A registry can be missing, be killed (its connections end), or freeze (its connections stay and say nothing).
#![allow(dead_code, unreachable_pub, missing_docs)] // each test binary uses its own half of this

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use client_sdk::{
    client::{RegistryClient, RegistryClientBuilder},
    model::{Address, Endpoint},
    registration::{Registration, RegistrationBuilder},
    runtime::{BoxFuture, Connect, Io, Runtime, TokioClock, TokioSpawn},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use registry_proto::{
    Frame, digest,
    server::registry_server::{Registry, RegistryServer},
    v1::{self, lease_exception, subscribe_request, subscribe_response},
};
use tokio::{
    io::DuplexStream,
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tower::Service as _;

/// An in-memory network.
#[derive(Clone, Default)]
pub struct Net {
    hosts: Arc<Mutex<HashMap<Address, mpsc::Sender<DuplexStream>>>>,
}

impl Connect for Net {
    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
        Box::pin(async move {
            let (near, far) = tokio::io::duplex(1 << 20);
            let host = self.hosts.lock().expect("not poisoned").get(address).cloned();
            let host = host.ok_or(io::ErrorKind::ConnectionRefused)?;
            host.send(far).await.map_err(|_| io::ErrorKind::ConnectionRefused)?;
            Ok(Box::new(near) as Box<dyn Io>)
        })
    }
}

impl Net {
    pub fn runtime(&self, seed: u64) -> Runtime {
        Runtime::new(TokioClock::default(), self.clone(), TokioSpawn, seed)
    }

    pub fn client_builder(&self, endpoints: &[&str], seed: u64) -> RegistryClientBuilder {
        RegistryClient::builder()
            .endpoints(endpoints.iter().map(|endpoint| address(endpoint)))
            .runtime(self.runtime(seed))
    }

    pub fn client(&self, endpoints: &[&str]) -> RegistryClient {
        self.client_builder(endpoints, 1).build().expect("a client")
    }

    pub fn start(&self, name: &str) -> Fake {
        let (accept, mut connections) = mpsc::channel::<DuplexStream>(64);
        let (script, mut fake) = script(address(name));
        self.hosts.lock().expect("not poisoned").insert(address(name), accept);
        fake.net = Some(self.clone());
        let frozen = Arc::clone(&fake.frozen);
        fake.tasks.spawn(async move {
            let mut serving = JoinSet::new();
            while let Some(io) = connections.recv().await {
                serving.spawn(serve(io, script.clone(), Arc::clone(&frozen)));
            }
        });
        fake
    }
}

/// A scripted registry. Dropping it kills it.
pub struct Fake {
    pub address: Address,
    net: Option<Net>,
    frozen: Arc<AtomicBool>,
    tasks: JoinSet<()>,
    registers: mpsc::Receiver<Call<v1::RegisterRequest, v1::RegisterResponse>>,
    deregisters: mpsc::Receiver<Call<v1::DeregisterRequest, v1::DeregisterResponse>>,
    applied: mpsc::Receiver<Call<v1::WaitAppliedRequest, v1::WaitAppliedResponse>>,
    renewals: mpsc::Receiver<Renewals>,
    subscriptions: mpsc::Receiver<Subscription>,
}

/// A call that waits for its answer.
pub struct Call<Q, A> {
    pub request: Q,
    reply: oneshot::Sender<Result<A, Status>>,
}

impl<Q, A> Call<Q, A> {
    pub fn answer(self, answer: Result<A, Status>) {
        let _ = self.reply.send(answer);
    }
}

/// Whatever a registration may ask.
pub enum Question {
    Register(Call<v1::RegisterRequest, v1::RegisterResponse>),
    Deregister(Call<v1::DeregisterRequest, v1::DeregisterResponse>),
    WaitApplied(Call<v1::WaitAppliedRequest, v1::WaitAppliedResponse>),
    KeepAlive(Renewals),
}

/// An open stream of renewals.
pub struct Renewals {
    requests: Streaming<v1::KeepAliveRequest>,
    responses: mpsc::Sender<Result<v1::KeepAliveResponse, Status>>,
}

/// An open stream of changes.
pub struct Subscription {
    pub requests: Streaming<v1::SubscribeRequest>,
    responses: mpsc::Sender<Result<Frame, Status>>,
}

impl Fake {
    /// On a real socket.
    pub async fn on_tcp() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (script, mut fake) = script(listener.local_addr().expect("bound").into());
        let frozen = Arc::clone(&fake.frozen);
        fake.tasks.spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((io, _)) = listener.accept().await {
                serving.spawn(serve(io, script.clone(), Arc::clone(&frozen)));
            }
        });
        fake
    }

    /// From now on its connections stay and say nothing, and new ones are accepted and not served.
    pub fn freeze(&self) {
        self.frozen.store(true, Ordering::SeqCst);
    }

    /// What a registration asks next.
    pub async fn asked(&mut self) -> Question {
        tokio::select! {
            Some(call) = self.registers.recv() => Question::Register(call),
            Some(call) = self.deregisters.recv() => Question::Deregister(call),
            Some(call) = self.applied.recv() => Question::WaitApplied(call),
            Some(renewals) = self.renewals.recv() => Question::KeepAlive(renewals),
            else => std::future::pending().await,
        }
    }

    pub async fn register(&mut self) -> Call<v1::RegisterRequest, v1::RegisterResponse> {
        soon(self.registers.recv()).await.expect("a registration")
    }

    /// Answers the next registration, and returns it.
    pub async fn registered(&mut self, revision: u64) -> v1::RegisterRequest {
        let call = self.register().await;
        let request = call.request.clone();
        let ttl = request.ttl;
        call.answer(Ok(v1::RegisterResponse { epoch: "e".into(), revision, ttl, instances: vec![] }));
        request
    }

    /// A registration that is registered and was renewed once, what it asked for, and the stream of its renewals.
    pub async fn leased(
        &mut self,
        builder: RegistrationBuilder,
    ) -> (Registration, v1::RegisterRequest, Renewals) {
        let (registration, request) = tokio::join!(builder.register(), self.registered(1));
        let mut renewals = self.renewals().await;
        let renewal = renewals.next().await;
        renewals.answer(&renewal, &[]).await;
        (registration.expect("registered"), request, renewals)
    }

    pub async fn deregister(&mut self) -> Call<v1::DeregisterRequest, v1::DeregisterResponse> {
        soon(self.deregisters.recv()).await.expect("a deregistration")
    }

    pub async fn wait_applied(&mut self) -> Call<v1::WaitAppliedRequest, v1::WaitAppliedResponse> {
        soon(self.applied.recv()).await.expect("a wait")
    }

    pub async fn renewals(&mut self) -> Renewals {
        soon(self.renewals.recv()).await.expect("a stream of renewals")
    }

    /// A new stream of changes, after its hello.
    pub async fn subscription(&mut self) -> Subscription {
        self.greeted().await.0
    }

    /// A new stream of changes, and its hello.
    pub async fn greeted(&mut self) -> (Subscription, v1::Hello) {
        let mut subscription = soon(self.subscriptions.recv()).await.expect("a stream of changes");
        let hello = soon(subscription.requests.message()).await.expect("open").expect("a hello");
        match hello.request {
            Some(subscribe_request::Request::Hello(hello)) => (subscription, hello),
            other => panic!("{other:?} is no hello"),
        }
    }

    /// Whether nothing at all is being asked.
    pub fn is_quiet(&mut self) -> bool {
        self.registers.try_recv().is_err()
            && self.deregisters.try_recv().is_err()
            && self.renewals.try_recv().is_err()
            && self.subscriptions.try_recv().is_err()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(net) = &self.net {
            net.hosts.lock().expect("not poisoned").remove(&self.address);
        }
    }
}

impl Renewals {
    pub async fn next(&mut self) -> v1::KeepAliveRequest {
        soon(self.requests.message()).await.expect("open").expect("a renewal")
    }

    /// The next renewal; `None`: the client is gone.
    pub async fn heard(&mut self) -> Option<v1::KeepAliveRequest> {
        self.requests.message().await.ok().flatten()
    }

    /// Answers anything. False: the client is gone.
    pub async fn say(&self, response: Result<v1::KeepAliveResponse, Status>) -> bool {
        self.responses.send(response).await.is_ok()
    }

    /// Answers with exceptions of the lease.
    pub async fn answer(
        &self,
        request: &v1::KeepAliveRequest,
        exceptions: &[(lease_exception::Kind, Vec<v1::LostInstance>)],
    ) {
        let exceptions = exceptions.iter().map(|(kind, lost)| v1::LeaseException {
            lease_id: request.lease_ids[0].clone(),
            kind: (*kind).into(),
            lost: lost.clone(),
            moved_to: String::new(),
        });
        let response = v1::KeepAliveResponse {
            request_id: request.request_id,
            epoch: "e".into(),
            exceptions: exceptions.collect(),
        };
        self.responses.send(Ok(response)).await.expect("open");
    }
}

impl Subscription {
    pub async fn next(&mut self) -> subscribe_request::Request {
        let request = soon(self.requests.message()).await.expect("open").expect("a request");
        request.request.expect("of a known kind")
    }

    /// The next subscription: the view, its service and the request.
    pub async fn subscribe(&mut self) -> (u32, String, v1::WatchRequest) {
        match self.next().await {
            subscribe_request::Request::Subscribe(subscribe) => {
                let watch = subscribe.watch.expect("set");
                let Some(v1::watch_request::Scope::Key(key)) = watch.scope.clone() else {
                    panic!("{watch:?}")
                };
                (subscribe.view_id, key.service, watch)
            }
            other => panic!("{other:?} is not a subscription"),
        }
    }

    pub async fn send(&self, view_id: u32, response: subscribe_response::Response) {
        let message = v1::SubscribeResponse { view_id, response: Some(response) };
        self.responses.send(Ok(Frame::of(&message))).await.expect("open");
    }

    /// Bytes in the place of a message.
    pub async fn raw(&self, bytes: Vec<u8>) {
        self.responses.send(Ok(Frame { prefix: bytes.into(), ..Frame::default() })).await.expect("open");
    }

    pub async fn change(&self, view_id: u32, change: v1::Change) {
        self.send(view_id, subscribe_response::Response::Change(change)).await;
    }

    pub async fn bookmark(&self, epoch: &str, revision: u64) {
        let bookmark = v1::Bookmark { epoch: epoch.into(), revision, ack_requested: false };
        self.send(0, subscribe_response::Response::Bookmark(bookmark)).await;
    }

    /// A bookmark that asks for an ack.
    pub async fn ask(&self, epoch: &str, revision: u64) {
        let bookmark = v1::Bookmark { epoch: epoch.into(), revision, ack_requested: true };
        self.send(0, subscribe_response::Response::Bookmark(bookmark)).await;
    }

    /// The next request is an ack: its epoch and revision.
    pub async fn acked(&mut self) -> (String, u64) {
        match self.next().await {
            subscribe_request::Request::Ack(ack) => (ack.epoch, ack.revision),
            other => panic!("{other:?} is not an ack"),
        }
    }

    pub async fn go_away(&self, delay: Duration) {
        let go_away = v1::GoAway { delay: delay.try_into().ok() };
        self.send(0, subscribe_response::Response::GoAway(go_away)).await;
    }

    pub async fn fail(self, status: Status) {
        let _ = self.responses.send(Err(status)).await;
    }

    /// The stream is open, and the client is at the other end.
    pub fn is_open(&self) -> bool {
        !self.responses.is_closed()
    }

    /// Until the client has closed its end.
    pub async fn closed(&self) {
        soon(self.responses.closed()).await;
    }
}

/// What comes within a minute of (usually paused) time.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_mins(1), future).await.expect("within a minute")
}

pub fn address(text: &str) -> Address {
    text.parse().expect("an address")
}

pub fn endpoint(service: &str) -> Endpoint {
    Endpoint::new(service)
}

/// An instance `name` with the name as its address's host.
pub fn instance(name: &str, weight: u32, revision: u64) -> v1::Instance {
    v1::Instance {
        id: name.into(),
        address: format!("{name}:80"),
        weight: Some(weight),
        create_revision: revision,
        mod_revision: revision,
        ..v1::Instance::default()
    }
}

pub fn snapshot(epoch: &str, revision: u64, all: Vec<v1::Instance>) -> v1::Change {
    v1::Change {
        kind: v1::ChangeKind::Snapshot.into(),
        epoch: epoch.into(),
        revision,
        digest: sum(&all),
        service_instances: u32::try_from(all.len()).expect("few"),
        exists: true,
        all,
        ..v1::Change::default()
    }
}

/// A delta that adds; `after` is the view that it leads to.
pub fn adding(
    epoch: &str,
    revisions: (u64, u64),
    added: Vec<v1::Instance>,
    after: &[v1::Instance],
) -> v1::Change {
    v1::Change {
        kind: v1::ChangeKind::Delta.into(),
        epoch: epoch.into(),
        previous_revision: revisions.0,
        revision: revisions.1,
        added,
        digest: sum(after),
        service_instances: u32::try_from(after.len()).expect("few"),
        exists: true,
        ..v1::Change::default()
    }
}

fn sum(all: &[v1::Instance]) -> u64 {
    all.iter().fold(0, |sum, i| sum.wrapping_add(digest::of(&i.id, i.create_revision, i.mod_revision)))
}

async fn serve(
    io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    script: Script,
    frozen: Arc<AtomicBool>,
) {
    let server = RegistryServer::new(script);
    let service = hyper::service::service_fn(move |request| {
        let mut server = server.clone();
        async move { server.call(request).await }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    poll_fn(|cx| {
        if frozen.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        connection.as_mut().poll(cx).map(|_| ())
    })
    .await;
}

fn script(address: Address) -> (Script, Fake) {
    let (registers, on_register) = mpsc::channel(64);
    let (deregisters, on_deregister) = mpsc::channel(64);
    let (applied, on_applied) = mpsc::channel(64);
    let (renewals, on_renewals) = mpsc::channel(64);
    let (subscriptions, on_subscription) = mpsc::channel(64);
    let fake = Fake {
        address,
        net: None,
        frozen: Arc::default(),
        tasks: JoinSet::new(),
        registers: on_register,
        deregisters: on_deregister,
        applied: on_applied,
        renewals: on_renewals,
        subscriptions: on_subscription,
    };
    (Script { registers, deregisters, applied, renewals, subscriptions }, fake)
}

#[derive(Clone)]
struct Script {
    registers: mpsc::Sender<Call<v1::RegisterRequest, v1::RegisterResponse>>,
    deregisters: mpsc::Sender<Call<v1::DeregisterRequest, v1::DeregisterResponse>>,
    applied: mpsc::Sender<Call<v1::WaitAppliedRequest, v1::WaitAppliedResponse>>,
    renewals: mpsc::Sender<Renewals>,
    subscriptions: mpsc::Sender<Subscription>,
}

async fn ask<Q, A>(to: &mpsc::Sender<Call<Q, A>>, request: Request<Q>) -> Result<Response<A>, Status> {
    let (reply, answer) = oneshot::channel();
    let call = Call { request: request.into_inner(), reply };
    to.send(call).await.map_err(|_| Status::unavailable("the test is over"))?;
    answer.await.map_err(|_| Status::unavailable("the test did not answer"))?.map(Response::new)
}

fn no<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not in this script"))
}

type Stream<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Registry for Script {
    type KeepAliveStream = Stream<v1::KeepAliveResponse>;
    type WatchStream = Stream<Frame>;
    type SubscribeStream = Stream<Frame>;

    async fn register(
        &self,
        r: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        ask(&self.registers, r).await
    }

    async fn keep_alive(
        &self,
        request: Request<Streaming<v1::KeepAliveRequest>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        let (responses, receiver) = mpsc::channel(64);
        let renewals = Renewals { requests: request.into_inner(), responses };
        self.renewals.send(renewals).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn deregister(
        &self,
        r: Request<v1::DeregisterRequest>,
    ) -> Result<Response<v1::DeregisterResponse>, Status> {
        ask(&self.deregisters, r).await
    }

    async fn set_override(
        &self,
        _: Request<v1::SetOverrideRequest>,
    ) -> Result<Response<v1::SetOverrideResponse>, Status> {
        no()
    }

    async fn list_overrides(
        &self,
        _: Request<v1::ListOverridesRequest>,
    ) -> Result<Response<v1::ListOverridesResponse>, Status> {
        no()
    }

    async fn resolve_hold(
        &self,
        _: Request<v1::ResolveHoldRequest>,
    ) -> Result<Response<v1::ResolveHoldResponse>, Status> {
        no()
    }

    async fn discover(&self, _: Request<v1::DiscoverRequest>) -> Result<Response<Frame>, Status> {
        no()
    }

    async fn list_services(
        &self,
        _: Request<v1::ListServicesRequest>,
    ) -> Result<Response<v1::ListServicesResponse>, Status> {
        no()
    }

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        no()
    }

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (responses, receiver) = mpsc::channel(64);
        let subscription = Subscription { requests: request.into_inner(), responses };
        self.subscriptions.send(subscription).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn wait_applied(
        &self,
        r: Request<v1::WaitAppliedRequest>,
    ) -> Result<Response<v1::WaitAppliedResponse>, Status> {
        ask(&self.applied, r).await
    }

    async fn explain(&self, _: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        no()
    }
}
