//! The connection to one instance: opened, kept, opened again, and drained. It may be several HTTP/2 connections.
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
//! takes no more requests. Each HTTP/2 connection that is open is a *lane*. The diagram is the first one's; others may
//! be opened beside it while all are full, and the instance is ready as long as any lane is.
//!
//! | file | what it owns |
//! |---|---|
//! | `actor` | the first lane, and the instance's end |
//! | `growth` | the others |
//! | `lane` | one HTTP/2 connection that is open, and its peer's limit of streams |
//! | `wire`, `keepalive` | what drives it, and notices that its peer is gone |
//! | `open` | opening one |
//! | `call` | a call in flight, and which lane it takes |
//! | `error` | why there is none |
//!
//! Owns no choice among instances.

mod actor;
mod call;
mod error;
mod growth;
mod keepalive;
mod lane;
mod open;
mod wire;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, oneshot, watch};

pub use self::error::{ConnectError, ConnectProblem};
use self::{
    actor::Actor,
    growth::Growth,
    lane::Lane,
    open::{Opened, Opener},
};
pub(super) use self::{
    call::{InFlight, Seating},
    open::Origin,
};
use super::settings::Settings;
use crate::{
    members::{ConnectionState, Member, Meters, Ongoing, Open, Order, SharedError},
    model::{Address, Instance},
    runtime::{Runtime, Task},
};

/// What the service and the driver see of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    address: Address,
    /// As it is known to be now; what changed counts from the next lane on.
    instance: ArcSwap<Instance>,
    /// Whether it takes requests, by what is known now.
    takes_requests: AtomicBool,
    phase: ArcSwap<Phase>,
    /// Those that are open; mostly one.
    lanes: ArcSwap<Vec<Arc<Lane>>>,
    /// How many lanes there ever were: names each of them.
    opened: AtomicU64,
    in_flight: AtomicUsize,
    settled: Notify,
    gone: AtomicBool,
    /// Told that all lanes are full.
    demand: Notify,
    /// Whether calls that find all lanes full may hope for another.
    growing: AtomicBool,
    /// Told of what calls that wait for a lane wait for.
    room: Arc<Notify>,
    /// The driver's, told of every change of state.
    wake: Arc<Notify>,
}

/// Of the first lane.
#[derive(Debug)]
enum Phase {
    Idle,
    Connecting { last: Option<Arc<ConnectError>> },
    Open { nth: u64 },
    TransientFailure { error: Arc<ConnectError> },
    Draining,
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
        let connection = Arc::new(Connection {
            address: instance.address.clone(),
            instance: ArcSwap::new(Arc::clone(instance)),
            takes_requests: AtomicBool::new(instance.takes_requests()),
            phase: ArcSwap::from_pointee(Phase::Idle),
            lanes: ArcSwap::default(),
            opened: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            settled: Notify::new(),
            gone: AtomicBool::new(false),
            demand: Notify::new(),
            growing: AtomicBool::new(false),
            room: Arc::default(),
            wake,
        });
        let most = self.settings.connections_per_instance.saturating_sub(1);
        let (settings, meters) = (Arc::clone(&self.settings), Arc::clone(&self.meters));
        let opener = Opener { settings, runtime: self.runtime.clone(), meters };
        let growth = (most > 0).then(|| {
            let growth = Growth { connection: Arc::clone(&connection), opener: opener.clone(), most };
            self.runtime.spawn(growth.run(orders.clone()))
        });
        let actor = Actor { connection: Arc::clone(&connection), opener };
        let actor = self.runtime.spawn(async move {
            let _growth = growth; // ends with the actor
            actor.run(orders).await;
        });
        (connection, actor)
    }

    /// What is open stays as it is.
    fn update(&self, connection: &Connection, instance: &Arc<Instance>) {
        connection.instance.store(Arc::clone(instance));
        let takes = instance.takes_requests();
        if connection.takes_requests.swap(takes, Ordering::AcqRel) && !takes {
            connection.room.notify_waiters();
        }
    }
}

impl Member for Connection {
    fn address(&self) -> &Address {
        &self.address
    }

    fn state(&self) -> ConnectionState {
        let phase = self.phase.load();
        if matches!(**phase, Phase::Draining) {
            return ConnectionState::Draining;
        }
        if self.has_open(|_| true) {
            return ConnectionState::Ready;
        }
        match **phase {
            Phase::Idle => ConnectionState::Idle,
            // Of one that was open: it ended, and the actor is about to open another.
            Phase::Connecting { .. } | Phase::Open { .. } => ConnectionState::Connecting,
            Phase::TransientFailure { .. } => ConnectionState::TransientFailure,
            Phase::Draining => ConnectionState::Draining,
        }
    }

    /// One that drains has no lane that takes requests.
    fn is_ready(&self) -> bool {
        self.has_open(|_| true)
    }

    fn is_hopeful(&self) -> bool {
        match &**self.phase.load() {
            Phase::Idle | Phase::Connecting { last: None } => true,
            Phase::Open { nth } => !self.has_open(|other| other == *nth),
            Phase::Connecting { .. } | Phase::TransientFailure { .. } | Phase::Draining => false,
        }
    }

    fn opened(&self) -> u64 {
        self.opened.load(Ordering::Acquire)
    }

    fn connections(&self) -> usize {
        self.lanes.load().iter().filter(|lane| lane.accepts()).count()
    }

    fn offers(&self, tried: &dyn Fn(u64) -> bool) -> bool {
        self.has_open(|nth| !tried(nth))
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
            Phase::Idle | Phase::Open { .. } | Phase::Draining => None,
        }
    }
}

impl Connection {
    /// Counts a call.
    pub(super) fn begin(self: &Arc<Self>, call: Ongoing) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight::new(Arc::clone(self), call)
    }

    /// Lists a lane over an open connection, and starts what drives it; the receiver ends with that. Whoever does it says
    /// [`changed`](Self::changed) then.
    fn admit(&self, opened: Opened, opener: &Opener) -> (Arc<Lane>, oneshot::Receiver<()>) {
        let nth = self.opened.fetch_add(1, Ordering::AcqRel) + 1;
        let (lane, closed) = wire::start(nth, opened, opener, Arc::clone(&self.room));
        self.lanes.rcu(|lanes| {
            let mut lanes = Vec::clone(lanes);
            lanes.push(Arc::clone(&lane));
            lanes
        });
        (lane, closed)
    }

    /// Whether one of these lanes takes requests.
    fn has_open(&self, which: impl Fn(u64) -> bool) -> bool {
        self.lanes.load().iter().any(|lane| lane.accepts() && which(lane.nth))
    }

    /// Takes a lane off the list.
    fn dismiss(&self, nth: u64) {
        self.lanes.rcu(|lanes| -> Vec<Arc<Lane>> {
            lanes.iter().filter(|lane| lane.nth != nth).cloned().collect()
        });
        self.changed();
    }

    /// Tells everybody who looks at states.
    fn changed(&self) {
        self.room.notify_waiters();
        self.wake.notify_one();
    }

    fn may_grow(&self, may: bool) {
        self.growing.store(may, Ordering::Release);
        self.room.notify_waiters();
    }

    /// Whether there are lanes, and each has as many calls as its peer allows.
    fn is_full(&self) -> bool {
        let lanes = self.lanes.load();
        let mut open = lanes.iter().filter(|lane| lane.accepts()).peekable();
        open.peek().is_some() && open.all(|lane| lane.is_full())
    }

    /// Until nothing is in flight; then it is gone.
    async fn finished(&self) {
        loop {
            let settled = self.settled.notified();
            if self.in_flight() == 0 {
                break;
            }
            settled.await;
        }
        self.gone.store(true, Ordering::Release);
        self.wake.notify_one();
    }
}
