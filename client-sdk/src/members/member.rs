//! What is known of a connection by those who do not care what it is made of.
//!
//! A member is an actor with a handle: its [`Owner`] gives [`Order`]s, everyone reads its [`ConnectionState`]. Dropping
//! the owner ends the actor.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::{Notify, watch};

use super::{SharedError, gate::Gate};
use crate::{
    model::{Address, Instance},
    runtime::Task,
};

/// The state of the connection to one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectionState {
    /// Not connected, and not asked to be.
    Idle,
    /// Being opened.
    Connecting,
    /// It takes requests.
    Ready,
    /// It could not be opened, or broke at once; tried again after a backoff.
    TransientFailure,
    /// Finishes what is in flight, then closes.
    Draining,
}

/// What the driver wants of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
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

/// The connection to one instance.
pub(crate) trait Member: Send + Sync + 'static {
    /// Where it connects to.
    fn address(&self) -> &Address;

    fn state(&self) -> ConnectionState;

    /// Whether it takes requests: whether its state is `Ready`, found out as cheaply as can be.
    fn is_ready(&self) -> bool {
        self.state() == ConnectionState::Ready
    }

    /// Whether it takes a request right now, if it is ready. One that is ready and busy stays chosen, is passed over for the
    /// moment, and tells the [`Room`](super::Room) when it is free again. Default: it always does.
    fn is_free(&self) -> bool {
        true
    }

    /// Whether it is about to be connected, as far as one can tell: nothing went wrong yet.
    fn is_hopeful(&self) -> bool;

    /// How often it was opened: names the newest connection among those to this instance.
    fn opened(&self) -> u64;

    /// How many connections to it are open and take requests.
    fn connections(&self) -> usize {
        usize::from(self.state() == ConnectionState::Ready)
    }

    /// Whether there is a connection to it that is not one of those that were `tried`, by their numbers.
    fn offers(&self, tried: &dyn Fn(u64) -> bool) -> bool {
        !tried(self.opened())
    }

    /// Requests that were sent and have not ended.
    fn in_flight(&self) -> usize;

    /// Whether it drained to its end.
    fn is_gone(&self) -> bool;

    /// What the last attempt failed with, if none succeeded since.
    fn last_error(&self) -> Option<SharedError>;
}

/// Makes members.
pub(crate) trait Open: Send + Sync + 'static {
    type Member: Member;

    /// Starts a member, which does what the orders say and wakes `wake` at each change of its state. It ends with the
    /// task that is returned.
    fn open(
        &self,
        instance: &Arc<Instance>,
        orders: watch::Receiver<Order>,
        wake: Arc<Notify>,
    ) -> (Arc<Self::Member>, Task);

    /// The instance behind a member has other metadata now, at the same address.
    fn update(&self, member: &Self::Member, instance: &Arc<Instance>) {
        let _ = (member, instance);
    }
}

/// A member's owner: what the driver keeps.
#[derive(Debug)]
pub(super) struct Owner<M> {
    pub(super) member: Arc<M>,
    pub(super) demand: Arc<Demand>,
    /// Its instance's, which other members of it share.
    pub(super) gate: Arc<Gate>,
    orders: watch::Sender<Order>,
    _actor: Task,
}

/// Whether a request asked for a member that is connected on demand.
#[derive(Debug, Default)]
pub(super) struct Demand(AtomicBool);

impl<M: Member> Owner<M> {
    pub(super) fn start(
        open: &impl Open<Member = M>,
        instance: &Arc<Instance>,
        order: Order,
        wake: &Arc<Notify>,
        gate: Arc<Gate>,
    ) -> Self {
        let (orders, receiver) = watch::channel(order);
        let (member, actor) = open.open(instance, receiver, Arc::clone(wake));
        Self { member, demand: Arc::default(), gate, orders, _actor: actor }
    }

    /// Changes what is wanted.
    pub(super) fn order(&self, order: Order) {
        self.orders.send_if_modified(|current| std::mem::replace(current, order) != order);
    }

    /// Whether it is wanted to be connected.
    pub(super) fn is_wanted(&self) -> bool {
        matches!(*self.orders.borrow(), Order::Connect { .. })
    }
}

impl Demand {
    /// Asks for the member to be connected.
    pub(super) fn ask(&self, wake: &Notify) {
        if !self.0.swap(true, Ordering::AcqRel) {
            wake.notify_one();
        }
    }

    pub(super) fn is_asked(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
