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
//! | `lane` | one HTTP/2 connection that is open |
//! | `open` | opening one |
//! | `call` | a call in flight, and which lane it takes |
//! | `error` | why there is none |
//!
//! Owns no choice among instances.

mod actor;
mod call;
mod error;
mod growth;
mod lane;
mod open;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};

pub use self::error::{ConnectError, ConnectProblem};
use self::{
    actor::Actor,
    growth::Growth,
    lane::{Lane, Ready},
    open::{Opened, Opener, Running},
};
pub(super) use self::{
    call::{InFlight, Seat, Seating},
    open::Origin,
};
use super::settings::Settings;
use crate::{
    balance::Pick,
    model::{Address, Instance},
    runtime::{Runtime, Task},
};

/// The state of the connection to one instance: of its best one, if there are several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectionState {
    /// Not connected, and not asked to be.
    Idle,
    /// Being opened.
    Connecting,
    /// The peer greeted us, and takes requests.
    Ready,
    /// It could not be opened, or broke at once; tried again after a backoff.
    TransientFailure,
    /// Finishes what is in flight, then closes.
    Draining,
}

/// What the driver wants of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// To be connected. A new incarnation ends a backoff: the process behind the address is another one.
    Connect {
        /// The instance's `create_revision`.
        incarnation: u64,
    },
    /// To keep what is there, and open nothing.
    Rest,
    /// To finish and go.
    Drain,
}

/// What the service and the driver see of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    address: Address,
    phase: ArcSwap<Phase>,
    /// Those that are open; mostly one.
    lanes: ArcSwap<Vec<Ready>>,
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
    room: Notify,
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

/// A connection's owner: what the driver keeps. Dropping it ends the connection's tasks.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) connection: Arc<Connection>,
    orders: watch::Sender<Order>,
    instance: Arc<ArcSwap<Instance>>,
    _actor: Task,
    _growth: Option<Task>,
}

impl Owner {
    /// Starts the actor. `wake` is told of every change of state.
    pub(super) fn start(
        instance: Arc<Instance>,
        order: Order,
        settings: Arc<Settings>,
        runtime: &Runtime,
        wake: Arc<Notify>,
    ) -> Self {
        let connection = Arc::new(Connection {
            address: instance.address.clone(),
            phase: ArcSwap::from_pointee(Phase::Idle),
            lanes: ArcSwap::default(),
            opened: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            settled: Notify::new(),
            gone: AtomicBool::new(false),
            demand: Notify::new(),
            growing: AtomicBool::new(false),
            room: Notify::new(),
            wake,
        });
        let (orders, receiver) = watch::channel(order);
        let most = settings.connections_per_instance.saturating_sub(1);
        let instance = Arc::new(ArcSwap::new(instance));
        let opener = Opener { settings, runtime: runtime.clone(), instance: Arc::clone(&instance) };
        let growth = (most > 0).then(|| {
            let growth = Growth { connection: Arc::clone(&connection), opener: opener.clone(), most };
            runtime.spawn(growth.run(receiver.clone()))
        });
        let actor = Actor { connection: Arc::clone(&connection), opener };
        let actor = runtime.spawn(actor.run(receiver));
        Self { connection, orders, instance, _actor: actor, _growth: growth }
    }

    /// Changes what is wanted.
    pub(super) fn order(&self, order: Order) {
        self.orders.send_if_modified(|current| std::mem::replace(current, order) != order);
    }

    /// The instance is another than it was, at the same address. What is open stays as it is.
    pub(super) fn instance_changed(&self, instance: Arc<Instance>) {
        self.instance.store(instance);
    }
}

impl Connection {
    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn state(&self) -> ConnectionState {
        let phase = self.phase.load();
        if matches!(**phase, Phase::Draining) {
            return ConnectionState::Draining;
        }
        if self.offers(|_| false) {
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

    /// How often it was opened, all lanes together.
    pub(super) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Acquire)
    }

    /// How many lanes take requests.
    pub(super) fn lanes(&self) -> usize {
        self.lanes.load().iter().filter(|ready| ready.accepts()).count()
    }

    /// Whether a lane takes requests that is not one of those that were tried.
    pub(super) fn offers(&self, tried: impl Fn(u64) -> bool) -> bool {
        self.lanes.load().iter().any(|ready| ready.accepts() && !tried(ready.lane.nth))
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Whether it drained to its end.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// What the last attempt failed with, if none succeeded since.
    pub(super) fn last_error(&self) -> Option<Arc<ConnectError>> {
        match &**self.phase.load() {
            Phase::Connecting { last } => last.clone(),
            Phase::TransientFailure { error } => Some(Arc::clone(error)),
            Phase::Idle | Phase::Open { .. } | Phase::Draining => None,
        }
    }

    /// Whether it is about to be connected, as far as one can tell: nothing went wrong yet.
    pub(super) fn is_hopeful(&self) -> bool {
        match &**self.phase.load() {
            Phase::Idle | Phase::Connecting { last: None } => true,
            Phase::Open { nth } => !self.offers(|other| other != *nth),
            Phase::Connecting { .. } | Phase::TransientFailure { .. } | Phase::Draining => false,
        }
    }

    /// The nth lane told a call that it goes away: the others stay, and it finishes its calls. hyper itself looks for
    /// a GOAWAY only when the next request comes.
    pub(super) fn retire(&self, nth: u64) {
        if let Some(ready) = self.lanes.load().iter().find(|ready| ready.lane.nth == nth) {
            ready.lane.retire();
        }
    }

    /// Counts a call.
    pub(super) fn begin(self: &Arc<Self>, pick: Pick) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight::new(Arc::clone(self), pick)
    }

    /// Lists a lane. Whoever does it says [`changed`](Self::changed) then.
    fn admit(&self, opened: Opened) -> (Arc<Lane>, Running) {
        let nth = self.opened.fetch_add(1, Ordering::AcqRel) + 1;
        let (ready, running) = Lane::over(nth, opened);
        let lane = Arc::clone(&ready.lane);
        self.lanes.rcu(|lanes| {
            let mut lanes = Vec::clone(lanes);
            lanes.push(ready.clone());
            lanes
        });
        (lane, running)
    }

    /// Takes a lane off the list, and with it our sender.
    fn dismiss(&self, nth: u64) {
        self.lanes.rcu(|lanes| -> Vec<Ready> {
            lanes.iter().filter(|ready| ready.lane.nth != nth).cloned().collect()
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
        let mut open = lanes.iter().filter(|ready| ready.accepts()).peekable();
        open.peek().is_some() && open.all(|ready| ready.lane.is_full())
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
