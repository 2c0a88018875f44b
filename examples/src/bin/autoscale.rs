//! A pool that starts and stops processes: as many workers as the calls need, each of which registers itself.
//!
//! A [`SteadyPool`] makes services as they are needed, and what "make" means is up to its `MakeService`: here [`Workers`]
//! starts a process, waits until it has registered itself, and connects to it. When the pool does not need a worker any more
//! it gives it no further calls, lets it finish what it has, and drops it; that stops the process, which leaves the
//! registry first. So whoever else looks into the registry sees them come and go, too.
//!
//! The story: nobody calls, and there is one worker. Eight callers come, and there are four. They go, and there is one. The
//! processes are this same program under the name `greeter`, as which it is the example of that name. It needs nothing else to
//! run, takes about ten seconds, and ends by itself:
//!
//! ```text
//! cargo run -p examples --bin autoscale
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr)] // printing is what it is for

#[path = "greeter.rs"]
mod greeter;

use std::{
    path::Path,
    pin::Pin,
    process::{ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use client_sdk::{
    channel::BalancedChannel,
    client::RegistryClient,
    discover::RegistryDiscover,
    model::{Address, Endpoint},
    pool::SteadyPool,
    runtime::{Runtime, Task},
};
use examples::proto::{GreetRequest, GreetResponse, greeter_client::GreeterClient};
use registry_server::server::Config;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpListener,
    process::{Child, Command},
    sync::mpsc,
    task::JoinSet,
};
use tonic::{
    Status,
    transport::{Channel, server::TcpIncoming},
};
use tower::{
    BoxError, Service,
    load::{CompleteOnResponse, PendingRequests},
};

/// The name under which this program is a worker.
const WORKER: &str = "greeter";
/// The whole story takes about ten seconds. If it takes so long, something hangs.
const AT_MOST: Duration = Duration::from_mins(1);
/// How long a worker that was told to stop may take.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);
const CALLERS: usize = 8;

type Outcome<T = ()> = Result<T, BoxError>;

/// Starts workers: a tower `MakeService` whose target is the registry that they are to register at.
#[derive(Clone)]
struct Workers {
    started: Arc<AtomicU32>,
    /// Each worker keeps one until its process has ended.
    running: mpsc::Sender<()>,
}

/// A worker, as a service. Dropping it stops the process.
struct Worker {
    client: GreeterClient<Channel>,
    process: Process,
}

struct Process {
    name: String,
    /// Until it is told to stop.
    child: Option<Child>,
    running: mpsc::Sender<()>,
}

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    let is_worker = Path::new(&name).file_name().is_some_and(|name| name == WORKER);
    let outcome =
        if is_worker { greeter::main().map_err(|error| error.to_string().into()) } else { autoscale() };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn autoscale() -> Outcome {
    match tokio::time::timeout(AT_MOST, story()).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("it is not over after {AT_MOST:?}").into()),
    }
}

async fn story() -> Outcome {
    let directory = tempfile::tempdir()?;
    let (registry, _serving) = registry(directory.path()).await?;
    // What somebody else sees who looks into the registry.
    let client = RegistryClient::builder().endpoint(registry.clone()).build()?;
    let discover = Arc::new(RegistryDiscover::builder(client).build());
    let others = BalancedChannel::builder(discover, Endpoint::new("greeter")).build();

    let (running, mut ended) = mpsc::channel(1);
    let workers = Workers { started: Arc::default(), running };
    let started = Arc::clone(&workers.started);
    let pool = SteadyPool::builder(workers, registry)
        .name("workers")
        .limit(2)
        .max(4)
        // Short, so that there is something to see.
        .smoothing(Duration::from_millis(500))
        .idle_time(Duration::from_secs(1))
        .cool_down(Duration::from_secs(2))
        .build()?;

    println!("nobody calls");
    pool.wait_until(|now| now.ready() == 1).await;
    others.wait_until(|now| now.chosen() == 1).await;
    println!("  1 worker is registered");

    println!("{CALLERS} callers come, and a worker is good for 2 calls at once");
    let (enough, mut callers) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
    for _ in 0..CALLERS {
        callers.spawn(call(pool.clone(), Arc::clone(&enough)));
    }
    let now = pool.wait_until(|now| now.ready() == 4).await;
    others.wait_until(|now| now.chosen() == 4).await;
    println!("  4 workers are registered; the demand is for {:.1}", now.estimate);

    println!("the callers go");
    enough.store(true, Ordering::Relaxed);
    let mut answers = 0;
    while let Some(caller) = callers.join_next().await {
        answers += caller??;
    }
    println!("  {answers} calls were answered, and none failed");
    pool.wait_until(|now| now.services.len() == 1).await;
    others.wait_until(|now| now.chosen() == 1).await;
    println!("  1 worker is registered");

    println!("that was all: the pool is dropped, and its worker stops");
    drop(pool);
    // Nobody sends anything; it ends when the last process has.
    while ended.recv().await.is_some() {}
    println!("  all {} processes that were started have ended", started.load(Ordering::Relaxed));
    Ok(())
}

/// Calls until it is enough, and says how often.
async fn call(
    mut pool: SteadyPool<PendingRequests<Worker>, GreetRequest>,
    enough: Arc<AtomicBool>,
) -> Outcome<u64> {
    let mut answers = 0;
    while !enough.load(Ordering::Relaxed) {
        pool.call(GreetRequest { name: "caller".to_owned() }).await?;
        answers += 1;
    }
    Ok(answers)
}

/// A registry inside this process, until the task is dropped.
async fn registry(directory: &Path) -> Outcome<(Address, Task)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.into();
    let config = Config { data_dir: directory.join("registry-data"), ..Config::default() };
    let serving = async move {
        let (runtime, never) = (registry_server::runtime::Runtime::tokio(), std::future::pending());
        let incoming = TcpIncoming::from(listener);
        if let Err(problem) = registry_server::server::run(config, incoming, runtime, never, |_| {}).await {
            eprintln!("the registry ended: {problem}");
        }
    };
    Ok((address, Runtime::tokio().spawn(serving)))
}

impl Workers {
    /// Starts a process, waits until it has registered itself, and connects to it. If the pool gives this up, or if it fails, the
    /// process is stopped.
    async fn start(self, registry: Address) -> Outcome<PendingRequests<Worker>> {
        let name = format!("worker-{}", self.started.fetch_add(1, Ordering::Relaxed));
        let mut child = Command::new(std::env::current_exe()?)
            .arg0(WORKER)
            .args(["--name", &name, "--takes", "20ms", "--ttl", "3s", "--registry", registry.as_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let said = child.stdout.take().ok_or("the worker's output is not there")?;
        let process = Process { name, child: Some(child), running: self.running };
        let mut said = BufReader::new(said).lines();
        let address: Address = loop {
            let line = said.next_line().await?.ok_or("the worker ended before it was registered")?;
            println!("  {line}");
            let rest = line.split_once(": registered at ").map(|(_, rest)| rest);
            if let Some(address) = rest.and_then(|rest| rest.split(' ').next()) {
                break address.parse()?;
            }
        };
        // Reads on to the end, so that the worker is never stopped by a full pipe.
        Runtime::tokio().detach(async move {
            while let Ok(Some(line)) = said.next_line().await {
                println!("  {line}");
            }
        });
        let channel = Channel::from_shared(format!("http://{address}"))?.connect().await?;
        let worker = Worker { client: GreeterClient::new(channel), process };
        Ok(PendingRequests::new(worker, CompleteOnResponse::default()))
    }
}

impl Service<Address> for Workers {
    type Response = PendingRequests<Worker>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Outcome<PendingRequests<Worker>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Outcome> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, registry: Address) -> Self::Future {
        Box::pin(self.clone().start(registry))
    }
}

impl Service<GreetRequest> for Worker {
    type Response = GreetResponse;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<GreetResponse, Status>> + Send>>;

    /// Ready as long as the process lives. The pool asks at least once a second, and replaces one that has ended.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        match self.process.child.as_mut().map(Child::try_wait) {
            Some(Ok(None)) => Poll::Ready(Ok(())),
            _ => Poll::Ready(Err(Status::unavailable("the worker's process has ended"))),
        }
    }

    fn call(&mut self, request: GreetRequest) -> Self::Future {
        let mut client = self.client.clone();
        Box::pin(async move { client.greet(request).await.map(tonic::Response::into_inner) })
    }
}

impl Drop for Process {
    /// Asks the process to end: it leaves the registry, finishes its calls, and goes. One that does not is killed.
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let told = id.is_some_and(|id| kill_process(id, Signal::TERM).is_ok());
        let (name, running) = (std::mem::take(&mut self.name), self.running.clone());
        Runtime::tokio().detach(async move {
            if told && tokio::time::timeout(LEAVE_WITHIN, child.wait()).await.is_err() {
                println!("  {name} does not end, and is killed");
            }
            // It has ended already, or else this makes sure of it.
            let _ = child.kill().await;
            drop(running);
        });
    }
}
