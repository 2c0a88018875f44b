//! C4 on real processes and sockets: each of 20 instances is replaced in turn under constant load, with no sleep anywhere, and
//! no call fails, whether or not calls are ever sent again.
//!
//! An instance is a process that registers itself, and drains when it gets SIGTERM. The callers are in this process, each kind
//! with a client of its own: unary calls and streams over a channel without retries, unary calls over one with
//! retries, and over the tower layer on tonic's own connections. That the load would notice is shown by leaving out the drain.

#![allow(clippy::print_stdout)] // what is counted and not judged

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use client_sdk::{
    BalancedChannel, Endpoint, RegistryClient, RegistryDiscover,
    channel::{Snapshot, Standing},
    layer::{LoadBalanceLayer, LoadBalanced},
    model::Address,
    retry::{Retries, Rule},
};
use integration_tests::{
    fleet::{METHOD, SERVICE, instance::MESSAGES, process::Process},
    process::within,
    server_setup,
};
use tokio::{sync::watch, task::JoinSet};
use tonic::{
    Code, Status,
    body::Body,
    client::GrpcService,
    codegen::{Bytes, StdError, http},
    transport::Channel,
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::BoxError;

const INSTANCES: usize = 20;
/// Between two restarts so many calls go past: none of them is without load.
const CALLS: usize = 100;
/// What takes longer than this never comes.
const PATIENCE: Duration = Duration::from_mins(1);
/// Of all of it.
const LIMIT: Duration = Duration::from_mins(5);

/// The tower layer over tonic's own connections.
type Layered = LoadBalanced<Channel, http::Request<Body>, http::Response<Body>>;

/// Callers at work.
struct Load {
    counts: watch::Sender<Counts>,
    stop: Arc<AtomicBool>,
    callers: JoinSet<()>,
}

/// What became of calls, by kind of caller.
#[derive(Clone, Debug, Default)]
struct Counts {
    well: BTreeMap<&'static str, usize>,
    failed: Vec<String>,
}

/// All that balances, each as one process of its own would.
struct Callers {
    plain: BalancedChannel,
    retrying: BalancedChannel,
    layered: Layered,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c4_a_rolling_restart_of_twenty_instances_under_load_fails_no_call() {
    within("the rolling restart", LIMIT, async {
        let registry = server_setup!().start().await;
        let callers = Callers::of(registry.address());
        let mut old = Vec::new();
        for nth in 0..INSTANCES {
            old.push(start(&format!("old{nth:02}"), registry.address()).await);
        }
        for process in &old {
            callers.choose(process).await;
        }
        let load = Load::start(&callers);
        let mut new = Vec::new();
        for (nth, old) in old.into_iter().enumerate() {
            load.calls(CALLS).await;
            let process = start(&format!("new{nth:02}"), registry.address()).await;
            callers.choose(&process).await;
            new.push(process);
            let name = old.name().to_owned();
            let drained = old.terminated().await;
            assert!(drained.starts_with("Told("), "{name}: {drained}");
            assert!(drained.contains("acked: 3,") && drained.contains("lagging: 0,"), "{name}: {drained}");
        }
        load.calls(CALLS).await;
        let Counts { well, failed } = load.end().await;
        println!("answered well: {well:?}");
        assert!(
            failed.is_empty(),
            "C4: {} calls failed: {:#?}",
            failed.len(),
            &failed[..failed.len().min(5)]
        );
        for kind in ["unary", "stream", "unary with retries", "unary through the layer"] {
            assert!(well.get(kind).is_some_and(|calls| *calls >= INSTANCES), "{kind} took part: {well:?}");
        }
        for process in new {
            process.end().await;
        }
    })
    .await;
}

/// What the test above shows, it shows of the drain: without one, calls fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_drain_calls_do_fail() {
    within("a call that fails", LIMIT, async {
        let registry = server_setup!().start().await;
        let callers = Callers::of(registry.address());
        let stays = start("stays", registry.address()).await;
        callers.choose(&stays).await;
        let load = Load::start(&callers);
        for nth in 0.. {
            let process = start(&format!("quits{nth:02}"), registry.address()).await;
            callers.choose(&process).await;
            load.calls(CALLS).await;
            process.quit().await;
            if !load.counts.borrow().failed.is_empty() {
                break;
            }
        }
        println!("failed: {:?}", load.end().await.failed);
        stays.end().await;
    })
    .await;
}

async fn start(name: &str, registry: SocketAddr) -> Process {
    Process::start(env!("CARGO_BIN_EXE_fleet-instance-under-test"), name, registry).await
}

impl Callers {
    fn of(registry: SocketAddr) -> Self {
        let discover = || {
            let client = RegistryClient::builder().endpoint(registry.into()).build().expect("sound settings");
            Arc::new(RegistryDiscover::builder(client).build())
        };
        let builder = || BalancedChannel::builder(discover(), Endpoint::new(SERVICE));
        let rule = Rule::new()
            .idempotent()
            .codes([Code::Unavailable])
            .and_then(|rule| rule.max_attempts(3))
            .expect("sound");
        let retries = Retries::new().method(METHOD, rule).expect("sound");
        let layer = LoadBalanceLayer::builder(discover(), Endpoint::new(SERVICE));
        Self {
            plain: builder().without_retries().build(),
            retrying: builder().retries(retries).build(),
            layered: layer.service(tower::service_fn(connect)),
        }
    }

    /// Waits until all of them send calls to this process.
    async fn choose(&self, process: &Process) {
        let address = Address::from(process.address());
        let chosen = |snapshot: &Snapshot| {
            snapshot
                .instance(process.name())
                .is_some_and(|it| it.standing == Standing::Chosen && it.instance.address == address)
        };
        within("a process to be chosen", PATIENCE, async {
            self.plain.wait_until(chosen).await;
            self.retrying.wait_until(chosen).await;
            self.layered.wait_until(chosen).await;
        })
        .await;
    }
}

impl Load {
    fn start(callers: &Callers) -> Self {
        let mut load = Self {
            counts: watch::channel(Counts::default()).0,
            stop: Arc::default(),
            callers: JoinSet::new(),
        };
        for _ in 0..4 {
            load.unary("unary", HealthClient::new(callers.plain.clone()));
            load.unary("unary with retries", HealthClient::new(callers.retrying.clone()));
            load.unary("unary through the layer", HealthClient::new(callers.layered.clone()));
        }
        for _ in 0..2 {
            load.stream("stream", HealthClient::new(callers.plain.clone()));
        }
        load
    }

    fn unary<T>(&mut self, kind: &'static str, client: HealthClient<T>)
    where
        T: GrpcService<Body> + Clone + Send + Sync + 'static,
        T::Future: Send,
        T::Error: Into<StdError>,
        T::ResponseBody: tonic::codegen::Body<Data = Bytes> + Send + 'static,
        <T::ResponseBody as tonic::codegen::Body>::Error: Into<StdError> + Send,
    {
        self.spawn(kind, move || {
            let mut client = client.clone();
            async move { client.check(HealthCheckRequest::default()).await.map(drop) }
        });
    }

    /// Each call is a stream that is read to its end.
    fn stream(&mut self, kind: &'static str, client: HealthClient<BalancedChannel>) {
        self.spawn(kind, move || {
            let mut client = client.clone();
            async move {
                let mut messages = client.watch(HealthCheckRequest::default()).await?.into_inner();
                let mut count = 0;
                while messages.message().await?.is_some() {
                    count += 1;
                }
                if count == MESSAGES { Ok(()) } else { Err(Status::data_loss(format!("{count} messages"))) }
            }
        });
    }

    fn spawn<F>(&mut self, kind: &'static str, call: impl Fn() -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<(), Status>> + Send,
    {
        let (counts, stop) = (self.counts.clone(), Arc::clone(&self.stop));
        self.callers.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let answer = call().await;
                counts.send_modify(|counts| match answer {
                    Ok(()) => *counts.well.entry(kind).or_default() += 1,
                    Err(status) => counts.failed.push(format!("{kind}: {status:?}")),
                });
            }
        });
    }

    /// Waits until so many more calls were answered.
    async fn calls(&self, calls: usize) {
        let mut counts = self.counts.subscribe();
        let enough = counts.borrow().answered() + calls;
        let answered = counts.wait_for(|counts| counts.answered() >= enough);
        drop(within("calls to be answered", PATIENCE, answered).await.expect("they are counted"));
    }

    async fn end(mut self) -> Counts {
        self.stop.store(true, Ordering::SeqCst);
        within("the callers to end", PATIENCE, async {
            while let Some(caller) = self.callers.join_next().await {
                caller.expect("no caller panics");
            }
        })
        .await;
        self.counts.borrow().clone()
    }
}

impl Counts {
    fn answered(&self) -> usize {
        self.well.values().sum::<usize>() + self.failed.len()
    }
}

async fn connect(address: Address) -> Result<Channel, BoxError> {
    Ok(tonic::transport::Endpoint::from_shared(format!("http://{address}"))?.connect().await?)
}
