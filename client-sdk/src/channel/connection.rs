//! One connection to one instance: an actor that opens it, keeps it, opens it again, and drains it.
//!
//! ```text
//!          Connect                    SETTINGS received
//!   Idle ----------> Connecting -----------------------> Ready
//!    ^                |  ^                                 | | closed after it had been up for a while:
//!    | Rest           |  | backoff passed,                 | |   Connecting at once
//!    |                v  | or a new incarnation            | |
//!    +---------- TransientFailure <------------------------+ | closed at once
//!                                                            |
//!   any of them, on Drain --> Draining --> in flight = 0, gone
//! ```
//!
//! *Ready* is known, not guessed: it begins when the peer's own SETTINGS frame is here and ends when the connection
//! takes no more requests. Draining is hyper's: with every sender gone the connection finishes its streams, says
//! GOAWAY and closes. Owns no choice among instances.

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use http::uri::Authority;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Notify, watch};

use super::{
    greeting::{Greeting, greeted},
    request_body::RequestBody,
    settings::Settings,
};
use crate::{
    balance::Outcome,
    members::{ConnectionState, Member, Meters, Ongoing, Open, Order, SharedError},
    model::{Address, AddressKind, Instance},
    runtime::{BoxFuture, Runtime, Task},
};

/// Why a connection could not be opened, or did not last.
#[derive(Debug, thiserror::Error)]
#[error("{address}: {problem}")]
pub struct ConnectError {
    address: Address,
    #[source]
    problem: ConnectProblem,
}

#[derive(Debug, thiserror::Error)]
enum ConnectProblem {
    #[error("{0}")]
    Io(io::Error),
    #[error("no connection within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("HTTP/2 handshake failed: {0}")]
    Handshake(hyper::Error),
    #[error("closed before its HTTP/2 greeting; is it an HTTP/2 server?")]
    NoGreeting,
    #[error("closed {} ms after it was opened", .0.as_millis())]
    Brief(Duration),
}

/// A connection that breaks sooner than this after its greeting counts as a failure, so that a peer that greets and
/// closes is not connected to in a hot loop.
const SETTLED: Duration = Duration::from_secs(1);

/// What the service and the driver see of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    address: Address,
    authority: Authority,
    phase: ArcSwap<Phase>,
    /// How often it was opened: names the current connection among those to this instance.
    opened: AtomicU64,
    /// The last one that said GOAWAY to a call.
    retired: AtomicU64,
    retire: Notify,
    in_flight: AtomicUsize,
    settled: Notify,
    gone: AtomicBool,
}

#[derive(Debug)]
enum Phase {
    Idle,
    Connecting { last: Option<Arc<ConnectError>> },
    Ready { sender: SendRequest<RequestBody>, nth: u64 },
    TransientFailure { error: Arc<ConnectError> },
    Draining,
}

/// A call in flight.
#[derive(Debug)]
pub(super) struct InFlight {
    connection: Arc<Connection>,
    call: Option<Ongoing>,
}

/// Opens connections.
pub(super) struct Connector {
    pub(super) settings: Arc<Settings>,
    pub(super) runtime: Runtime,
    pub(super) meters: Arc<Meters>,
}

impl Open for Connector {
    type Member = Connection;

    fn open(
        &self,
        instance: &Arc<Instance>,
        orders: watch::Receiver<Order>,
        wake: Arc<Notify>,
    ) -> (Arc<Connection>, Task) {
        let address = instance.address.clone();
        let authority = match address.kind() {
            AddressKind::Tcp { .. } => address.as_str().parse().ok(),
            AddressKind::Unix(_) => None,
        };
        let connection = Arc::new(Connection {
            address,
            authority: authority.unwrap_or_else(|| Authority::from_static("localhost")),
            phase: ArcSwap::from_pointee(Phase::Idle),
            opened: AtomicU64::new(0),
            retired: AtomicU64::new(0),
            retire: Notify::new(),
            in_flight: AtomicUsize::new(0),
            settled: Notify::new(),
            gone: AtomicBool::new(false),
        });
        let (settings, runtime) = (Arc::clone(&self.settings), self.runtime.clone());
        let meters = Arc::clone(&self.meters);
        let actor = Actor { connection: Arc::clone(&connection), settings, runtime, meters, wake };
        (connection, self.runtime.spawn(actor.run(orders)))
    }
}

impl Member for Connection {
    fn address(&self) -> &Address {
        &self.address
    }

    fn state(&self) -> ConnectionState {
        match &**self.phase.load() {
            Phase::Idle => ConnectionState::Idle,
            Phase::Ready { sender, nth } if self.accepts(sender, *nth) => ConnectionState::Ready,
            // Of those that were ready: it ended, and the actor is about to open another.
            Phase::Connecting { .. } | Phase::Ready { .. } => ConnectionState::Connecting,
            Phase::TransientFailure { .. } => ConnectionState::TransientFailure,
            Phase::Draining => ConnectionState::Draining,
        }
    }

    fn is_hopeful(&self) -> bool {
        match &**self.phase.load() {
            Phase::Idle | Phase::Connecting { last: None } => true,
            Phase::Ready { sender, nth } => !self.accepts(sender, *nth),
            Phase::Connecting { .. } | Phase::TransientFailure { .. } | Phase::Draining => false,
        }
    }

    fn opened(&self) -> u64 {
        self.opened.load(Ordering::Acquire)
    }

    fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    fn last_error(&self) -> Option<SharedError> {
        match &**self.phase.load() {
            Phase::Connecting { last } => last.clone().map(|error| error as SharedError),
            Phase::TransientFailure { error } => Some(Arc::clone(error) as SharedError),
            Phase::Idle | Phase::Ready { .. } | Phase::Draining => None,
        }
    }
}

impl Connection {
    pub(super) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Where to send requests, if it is ready, and how often it had been opened. Hold it no longer than sending takes.
    pub(super) fn sender(&self) -> Option<(SendRequest<RequestBody>, u64)> {
        match &**self.phase.load() {
            Phase::Ready { sender, nth } if self.accepts(sender, *nth) => Some((sender.clone(), *nth)),
            _ => None,
        }
    }

    /// The nth connection told a call that it goes away: another is to be opened, while that one finishes its calls.
    /// hyper itself looks for a GOAWAY only when the next request comes.
    pub(super) fn retire(&self, nth: u64) {
        self.retired.fetch_max(nth, Ordering::AcqRel);
        self.retire.notify_one();
    }

    fn accepts(&self, sender: &SendRequest<RequestBody>, nth: u64) -> bool {
        !sender.is_closed() && nth > self.retired.load(Ordering::Acquire)
    }

    /// Counts a call.
    pub(super) fn begin(self: &Arc<Self>, call: Ongoing) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight { connection: Arc::clone(self), call: Some(call) }
    }
}

impl InFlight {
    pub(super) fn address(&self) -> &Address {
        &self.connection.address
    }

    /// The call has ended, and how. One that is dropped was given up.
    pub(super) fn finish(mut self, outcome: Outcome) {
        if let Some(call) = self.call.take() {
            call.finish(outcome);
        }
    }

    /// The instance did not take the call.
    pub(super) fn not_taken(mut self) {
        if let Some(call) = self.call.take() {
            call.not_taken();
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.connection.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.connection.settled.notify_one();
        }
    }
}

struct Actor {
    connection: Arc<Connection>,
    settings: Arc<Settings>,
    runtime: Runtime,
    meters: Arc<Meters>,
    wake: Arc<Notify>,
}

type Opened = (SendRequest<RequestBody>, BoxFuture<'static, hyper::Result<()>>);

impl Actor {
    async fn run(self, mut orders: watch::Receiver<Order>) {
        let mut failures = 0u32;
        let mut last = None;
        loop {
            let order = *orders.borrow_and_update();
            match order {
                Order::Drain => break,
                Order::Rest => {
                    self.set(Phase::Idle);
                    (failures, last) = (0, None);
                    if orders.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                Order::Connect { .. } => {}
            }
            self.set(Phase::Connecting { last: last.clone() });
            let opened = tokio::select! {
                biased;
                opened = self.open() => opened,
                _ = until(&mut orders, |order| !matches!(order, Order::Connect { .. })) => continue,
            };
            let problem = match opened {
                Ok((sender, connection)) => {
                    let since = self.runtime.now();
                    let nth = self.connection.opened.fetch_add(1, Ordering::AcqRel) + 1;
                    self.meters.connected();
                    self.set(Phase::Ready { sender, nth });
                    self.keep(connection, nth, &mut orders).await;
                    let lasted = self.runtime.now().saturating_sub(since);
                    if lasted >= SETTLED {
                        (failures, last) = (0, None);
                        continue;
                    }
                    ConnectProblem::Brief(lasted)
                }
                Err(problem) => problem,
            };
            if *orders.borrow() == Order::Drain {
                break;
            }
            failures = failures.saturating_add(1);
            self.meters.not_connected();
            let error = Arc::new(ConnectError { address: self.connection.address.clone(), problem });
            tracing::debug!(%error, failures, "not connected");
            self.set(Phase::TransientFailure { error: Arc::clone(&error) });
            last = Some(error);
            let delay = self.settings.backoff.pause(failures, &self.runtime);
            let before = *orders.borrow();
            tokio::select! {
                biased;
                changed = until(&mut orders, |order| *order != before) => match changed {
                    Ok(()) => (failures, last) = (0, None),
                    Err(_) => return,
                },
                () = tokio::time::sleep(delay) => {}
            }
        }
        self.set(Phase::Draining);
        self.finish().await;
    }

    /// Until it takes no more requests. Drained, it gets no new ones and those that it has are sent off.
    async fn keep(
        &self,
        mut connection: BoxFuture<'static, hyper::Result<()>>,
        nth: u64,
        orders: &mut watch::Receiver<Order>,
    ) {
        let ended = tokio::select! {
            biased;
            ended = &mut connection => ended,
            // Dropping it leaves its calls to finish by themselves.
            () = self.retired(nth) => Ok(()),
            _ = until(orders, |order| *order == Order::Drain) => {
                // Without our sender the connection ends once the calls that hold theirs have sent their requests.
                self.set(Phase::Draining);
                connection.await
            }
        };
        tracing::debug!(address = %self.connection.address, ?ended, "connection takes no more requests");
    }

    async fn retired(&self, nth: u64) {
        while self.connection.retired.load(Ordering::Acquire) < nth {
            self.connection.retire.notified().await;
        }
    }

    /// Until nothing is in flight.
    async fn finish(&self) {
        loop {
            let settled = self.connection.settled.notified();
            if self.connection.in_flight() == 0 {
                break;
            }
            settled.await;
        }
        self.connection.gone.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    async fn open(&self) -> Result<Opened, ConnectProblem> {
        let limit = self.settings.connect_timeout;
        match tokio::time::timeout(limit, self.handshake()).await {
            Ok(opened) => opened,
            Err(_) => Err(ConnectProblem::Timeout(limit)),
        }
    }

    async fn handshake(&self) -> Result<Opened, ConnectProblem> {
        // The place of TLS: what is connected here may be wrapped before anything is written to it.
        let io = self.runtime.connect(&self.connection.address).await.map_err(ConnectProblem::Io)?;
        let (io, greeting) = Greeting::new(io);
        let (sender, connection) = http2::Builder::new(Executor(self.runtime.clone()))
            .timer(TokioTimer::new())
            .keep_alive_interval(self.settings.keepalive_interval)
            .keep_alive_timeout(self.settings.keepalive_timeout)
            .keep_alive_while_idle(self.settings.keepalive_while_idle)
            .handshake(TokioIo::new(io))
            .await
            .map_err(ConnectProblem::Handshake)?;
        let mut connection: BoxFuture<'static, _> = Box::pin(connection);
        tokio::select! {
            biased;
            here = greeted(greeting) => here.then_some((sender, connection)),
            _ = &mut connection => None,
        }
        .ok_or(ConnectProblem::NoGreeting)
    }

    fn set(&self, phase: Phase) {
        self.connection.phase.store(Arc::new(phase));
        self.wake.notify_one();
    }
}

/// Until the orders are such. Fails if nobody gives orders any more.
async fn until(
    orders: &mut watch::Receiver<Order>,
    such: impl FnMut(&Order) -> bool,
) -> Result<(), watch::error::RecvError> {
    orders.wait_for(such).await.map(|_| ())
}

/// hyper's tasks, on our runtime. They end with their connection.
#[derive(Clone)]
struct Executor(Runtime);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Executor {
    fn execute(&self, task: F) {
        self.0.detach(task);
    }
}
