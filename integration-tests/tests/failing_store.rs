//! D4 on the wire: a server whose store fails, over a socket, with a store that fails when the test says so.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use integration_tests::{
    history::Recorder,
    process::{Client, within},
    requests::{self, instance, key, register},
    stream::Stream,
    writers,
};
use registry_proto::v1;
use registry_server::{
    core::{Record, Revision},
    runtime::Runtime,
    server::{self, Config, ServerError},
    store::{Loaded, MemoryStore, Store, StoreError},
};
use tokio::{net::TcpListener, sync::oneshot, task::JoinSet};
use tokio_stream::StreamExt;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, server::TcpIncoming},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt;

const SERVICE: &str = "kept";
const WRITES: &str = "registry.v1.Registry.writes";
const READS: [&str; 3] = ["", "registry.v1.Registry", "registry.v1.Registry.reads"];
const CAUSE: &str = "fsync: the disk is full";
/// What takes longer than this never comes.
const PATIENCE: Duration = Duration::from_mins(1);

/// What the test does to the store, and how often the store was asked to write.
#[derive(Debug, Default)]
struct Script {
    fails: AtomicBool,
    asked: AtomicUsize,
}

/// Keeps what memory keeps, until it is told to fail.
struct Failing {
    inner: MemoryStore,
    script: Arc<Script>,
}

impl Store for Failing {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.inner.load()
    }

    fn append(&mut self, group: &[Record]) -> Result<Vec<Revision>, StoreError> {
        self.script.asked.fetch_add(1, Ordering::SeqCst);
        if self.script.fails.load(Ordering::SeqCst) {
            return Err(StoreError::Closed { cause: CAUSE.to_owned() });
        }
        self.inner.append(group)
    }

    fn blocks(&self) -> bool {
        true
    }
}

/// A server in this process. It stops when `stop` is used or dropped.
struct Running {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    server: JoinSet<Result<(), ServerError>>,
}

impl Running {
    async fn start(script: &Arc<Script>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move {
            // An error means that the test is over.
            let _ = stopped.await;
        };
        let store = Box::new(Failing { inner: MemoryStore::new(7), script: Arc::clone(script) });
        let config = Config { grace: Duration::from_secs(1), ..Config::default() };
        let mut server = JoinSet::new();
        server.spawn(server::run_on(store, config, incoming, Runtime::tokio(), shutdown, |_| {}));
        Self { address, stop, server }
    }

    async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("an address");
        endpoint.connect().await.expect("the server takes connections")
    }

    async fn ended(mut self) -> Result<(), ServerError> {
        self.stop.send(()).expect("the server runs");
        let ended = within("the server's end", PATIENCE, self.server.join_next()).await;
        ended.expect("it was started").expect("it does not panic")
    }
}

/// One write of each kind, all of which would change something or be looked up in the store's state.
async fn every_write(client: &Client) -> Vec<(&'static str, Result<(), Status>)> {
    let mut client = client.clone();
    let hold = v1::ResolveHoldRequest { key: Some(key(SERVICE)), action: 1, ..Default::default() };
    vec![
        ("Register", client.register(register(2, SERVICE, vec![instance("late")])).await.map(drop)),
        ("Deregister", client.deregister(requests::deregister(SERVICE, &["a".into()])).await.map(drop)),
        ("SetOverride", client.set_override(requests::override_weight(SERVICE, "a", 9)).await.map(drop)),
        ("ResolveHold", client.resolve_hold(hold).await.map(drop)),
    ]
}

fn assert_refused(what: &str, answer: Result<(), Status>) {
    let Err(status) = answer else { panic!("D4 fail-stop: {what} was taken although the store failed") };
    let found = (status.code(), requests::reason(&status));
    assert_eq!(found, (Code::Unavailable, "STORE_FAILED".into()), "D4 fail-stop: {what}: {status:?}");
    let retry = status.get_error_details().retry_info().and_then(|retry| retry.retry_delay);
    assert!(retry.is_some_and(|delay| !delay.is_zero()), "D4 fail-stop: {what} does not say when to retry");
    let message = status.message();
    assert!(message.contains(CAUSE) && message.contains("restart"), "D4 fail-stop: {what}: `{message}`");
}

async fn status_of(health: &mut HealthClient<Channel>, name: &str) -> ServingStatus {
    let asked = HealthCheckRequest { service: name.into() };
    let answer = health.check(asked).await.unwrap_or_else(|error| panic!("D4: health of `{name}`: {error}"));
    answer.into_inner().status()
}

#[tokio::test]
async fn d4_a_failed_store_refuses_every_write_and_reads_and_watches_go_on() {
    let script = Arc::new(Script::default());
    let server = Running::start(&script).await;
    let client = Client::new(server.channel().await);
    let recorder = Recorder::default();
    let written = client.clone().register(register(1, SERVICE, vec![instance("a"), instance("b")])).await;
    let last = written.expect("the store works").into_inner().revision;
    let before = writers::read(&client, SERVICE, 1, &recorder).await.expect("a reading");
    assert_eq!((before.revision, before.items.len()), (last, 2));

    let mut health = HealthClient::new(server.channel().await);
    let asked = HealthCheckRequest { service: WRITES.into() };
    let mut writable = health.watch(asked).await.expect("health").into_inner();
    let first = writable.next().await.expect("a status").expect("a status").status();
    assert_eq!(first, ServingStatus::Serving, "the store works");
    let mut opened_before = Stream::open(&client).await.expect("a stream");
    opened_before.ask(requests::subscribe(1, requests::watch(SERVICE))).await;
    assert_eq!(opened_before.change(1).await.all.len(), 2);
    opened_before.bookmark().await;

    // The first to fail is told, not only whoever comes after it.
    script.fails.store(true, Ordering::SeqCst);
    let asked_before = script.asked.load(Ordering::SeqCst);
    let answer = client.clone().register(register(2, SERVICE, vec![instance("late")])).await.map(drop);
    assert_refused("the write that failed", answer);
    assert_eq!(script.asked.load(Ordering::SeqCst), asked_before + 1);

    // From now on it would work, and must not be tried: what the disk has is known only after a restart.
    script.fails.store(false, Ordering::SeqCst);
    for _ in 0..3 {
        for (what, answer) in every_write(&client).await {
            assert_refused(what, answer);
        }
    }
    let asked_again = script.asked.load(Ordering::SeqCst) - asked_before - 1;
    assert_eq!(asked_again, 0, "D4 fail-stop: a failed store was asked again");

    let next = within("D4: health to say that writes fail", PATIENCE, writable.next()).await;
    let next = next.expect("a status").expect("a status").status();
    assert_eq!(next, ServingStatus::NotServing, "D4 fail-stop: health says that writes are taken");
    assert_eq!(status_of(&mut health, WRITES).await, ServingStatus::NotServing, "D4 fail-stop: {WRITES}");
    for name in READS {
        assert_eq!(status_of(&mut health, name).await, ServingStatus::Serving, "D4: reads go on: `{name}`");
    }

    // Reads, watches and renewals go on, at the last commit.
    let after = writers::read(&client, SERVICE, 1, &recorder).await.expect("D4: reads go on");
    assert_eq!((after.revision, after.digest, &after.items), (last, before.digest, &before.items), "D4");
    let list =
        client.clone().list_services(v1::ListServicesRequest::default()).await.expect("D4: reads go on");
    assert_eq!(list.into_inner().revision, last, "D4: lists are at the last commit");
    let (bookmark, changes) = opened_before.bookmark().await;
    assert_eq!((bookmark.revision, changes), (last, vec![]), "D4: a stream goes on at the last commit");
    let mut opened_after = Stream::open(&client).await.expect("D4: streams are still opened");
    opened_after.ask(requests::subscribe(1, requests::watch(SERVICE))).await;
    let snapshot = opened_after.change(1).await;
    assert_eq!((snapshot.revision, snapshot.all.len()), (last, 2), "D4: watches go on at the last commit");
    let renew = v1::KeepAliveRequest { lease_ids: vec![requests::lease(1)], request_id: 1 };
    let mut renewals = client.clone().keep_alive(tokio_stream::once(renew)).await.expect("D4").into_inner();
    let renewed = renewals.message().await.expect("D4: renewals go on").expect("an answer");
    assert_eq!(renewed.exceptions, [], "D4: the lease is renewed");

    // Nothing of it keeps the server from stopping in order.
    drop((opened_before, opened_after, writable, health, renewals, client));
    server.ended().await.expect("D4: it ends in order");
}
