//! A process of the fleet: serves two methods, is registered by the SDK, and behaves as the lines on its standard input say.
//!
//! | it reads | and | and writes |
//! |---|---|---|
//! | | serves and is registered | `ready <address>` |
//! | `well`, `slow`, `errors`, `silent` | behaves so from now on, see [`Conduct`] | the same word |
//! | `calls` | | how many calls it has got |
//! | `leave`, or it gets SIGTERM | drains, finishes what it has, deregisters, ends | `drained <what it knew of its callers>` |
//! | `quit` | deregisters and ends at once, whatever it has: what a drain is there to avoid | |
//! | the end of its input | ends at once, so it outlives no test | |

use std::{
    error::Error,
    io::{BufRead, Write},
    net::SocketAddr,
    process::ExitCode,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use client_sdk::{
    Registration, RegistryClient,
    model::{Address, Instance},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::server::TcpIncoming,
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_server::{Health, HealthServer},
};

use super::{EARLIER, PREVIOUS_ATTEMPTS, SERVICE, WHO};

/// How long a process that is well takes for a call.
pub const WELL: Duration = Duration::from_millis(2);
/// How long a slow one takes: fifty times that.
pub const SLOW: Duration = Duration::from_millis(100);
/// How many messages a stream has, each after [`WELL`].
pub const MESSAGES: usize = 5;

/// How a process treats calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduct {
    /// Answers after [`WELL`].
    Well,
    /// Answers after [`SLOW`].
    Slow,
    /// Answers at once, with `UNAVAILABLE` and `INTERNAL` in turns.
    Errors,
    /// Takes calls, keeps its connections alive and never answers.
    Silent,
}

/// What does not say how to behave.
#[derive(Clone, Debug, thiserror::Error)]
#[error("`{0}` is none of well, slow, errors and silent")]
pub struct NoConduct(String);

/// What calls and orders have in common.
struct Desk {
    name: MetadataValue<Ascii>,
    conduct: watch::Sender<Conduct>,
    calls: AtomicU64,
}

/// The whole process. Its arguments: its name, and the registry's address.
pub fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(name), Some(registry)) = (arguments.next(), arguments.next()) else {
        return failed(&"its arguments are to be a name and the registry's address");
    };
    // One thread, for there are many such processes.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(serve(&name, &registry)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

impl FromStr for Conduct {
    type Err = NoConduct;

    fn from_str(word: &str) -> Result<Self, NoConduct> {
        let all = [Self::Well, Self::Slow, Self::Errors, Self::Silent];
        all.into_iter().find(|it| it.word() == word).ok_or_else(|| NoConduct(word.to_owned()))
    }
}

impl Conduct {
    /// As it is ordered.
    pub fn word(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Slow => "slow",
            Self::Errors => "errors",
            Self::Silent => "silent",
        }
    }
}

async fn serve(name: &str, registry: &str) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let address = listener.local_addr()?;
    let (conduct, _) = watch::channel(Conduct::Well);
    let desk = Arc::new(Desk { name: name.parse()?, conduct, calls: AtomicU64::new(0) });
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tonic::transport::Server::builder()
        .add_service(HealthServer::from_arc(Arc::clone(&desk)))
        .serve_with_incoming_shutdown(incoming, async { _ = stopped.await });
    let serving = tokio::spawn(serving);

    let client = RegistryClient::builder().endpoint(registry.parse()?).build()?;
    let instance = Instance::builder(Address::from(address)).id(name).build();
    let builder = Registration::builder(client).service(SERVICE).instance(instance);
    let registration = builder.register().await?;
    say(&format!("ready {address}"))?;

    let mut orders = orders();
    let mut terminated = signal(SignalKind::terminate())?;
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            _ = terminated.recv() => Some("leave".to_owned()),
        };
        let Some(order) = order else { return Ok(()) };
        match &*order {
            "calls" => say(&desk.calls.load(Ordering::SeqCst).to_string())?,
            "leave" => {
                let finished = async {
                    // Without a receiver it has ended, and that comes out below.
                    _ = stop.send(());
                    serving.await
                };
                let mut served = None;
                let drained = registration.drain_after(async { served = Some(finished.await) }).await?;
                if let Some(served) = served {
                    served??;
                }
                say(&format!("drained {drained:?}"))?;
                return Ok(());
            }
            "quit" => {
                registration.deregister().await?;
                return Ok(());
            }
            conduct => {
                desk.conduct.send_replace(conduct.parse()?);
                say(conduct)?;
            }
        }
    }
}

/// The lines of the standard input, read beside everything else.
fn orders() -> mpsc::Receiver<String> {
    let (order, orders) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if order.blocking_send(line).is_err() {
                return;
            }
        }
    });
    orders
}

fn say(line: &str) -> std::io::Result<()> {
    writeln!(std::io::stdout(), "{line}")
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    // If nobody reads that, nobody minds.
    _ = writeln!(std::io::stderr(), "fleet instance: {error}");
    ExitCode::FAILURE
}

#[tonic::async_trait]
impl Health for Desk {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let nth = self.calls.fetch_add(1, Ordering::SeqCst);
        let conduct = *self.conduct.borrow();
        match conduct {
            Conduct::Well => tokio::time::sleep(WELL).await,
            Conduct::Slow => tokio::time::sleep(SLOW).await,
            Conduct::Errors if nth.is_multiple_of(2) => return Err(Status::unavailable("told to fail")),
            Conduct::Errors => return Err(Status::internal("told to fail")),
            Conduct::Silent => {
                let mut conducts = self.conduct.subscribe();
                // Fails only without a sender, which is here.
                _ = conducts.wait_for(|conduct| *conduct != Conduct::Silent).await;
            }
        }
        let mut response = Response::new(HealthCheckResponse { status: 1 });
        response.metadata_mut().insert(WHO, self.name.clone());
        if let Some(earlier) = request.metadata().get(PREVIOUS_ATTEMPTS) {
            response.metadata_mut().insert(EARLIER, earlier.clone());
        }
        Ok(response)
    }

    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    /// A stream that ends by itself.
    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let (messages, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            for _ in 0..MESSAGES {
                tokio::time::sleep(WELL).await;
                if messages.send(Ok(HealthCheckResponse { status: 1 })).await.is_err() {
                    return;
                }
            }
        });
        let mut response = Response::new(ReceiverStream::new(stream));
        response.metadata_mut().insert(WHO, self.name.clone());
        Ok(response)
    }
}
