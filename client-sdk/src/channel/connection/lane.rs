//! A lane: one HTTP/2 connection that is open, and the calls on it.
//!
//! ```text
//!   admitted --> takes calls --+-- closed by the peer, or broken ----------------+--> gone
//!                              +-- GOAWAY told to a call: its calls go on -------+
//!                              +-- drained, or idle: finishes what it has -------+
//! ```
//!
//! Owns the count of calls against the peer's limit of streams. Draining is hyper's: with every sender gone the
//! connection sends what it was given, finishes its streams, says GOAWAY and closes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::client::conn::http2::SendRequest;
use tokio::sync::{Notify, oneshot, watch};

use super::{
    Connection,
    open::{Opened, Origin, Running},
};
use crate::{channel::request_body::RequestBody, members::Order, runtime::Runtime};

/// How many calls fill a lane whose peer sets no limit: the least that RFC 9113, 6.5.2, recommends to allow, and what
/// clients assume before they know.
const UNSAID: u32 = 100;

/// One HTTP/2 connection.
#[derive(Debug)]
pub(super) struct Lane {
    /// Its number among all connections to this instance, from 1.
    pub(super) nth: u64,
    pub(super) origin: Origin,
    /// How many calls fill it.
    limit: usize,
    in_flight: AtomicUsize,
    /// Whether a call began or ended since somebody last looked.
    used: AtomicBool,
    retired: AtomicBool,
    retire: Notify,
}

/// A lane that takes calls, as the connection lists it.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    pub(super) sender: SendRequest<RequestBody>,
    pub(super) lane: Arc<Lane>,
}

/// Why a lane takes no more calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The peer closed it, said GOAWAY, or it broke.
    Closed,
    /// It was idle for long, or drained.
    Finished,
    /// Nobody wants it any more; its calls end by themselves.
    Orphaned,
}

impl Lane {
    /// The lane of an open connection, as it is listed, and what runs it.
    pub(super) fn over(nth: u64, opened: Opened) -> (Ready, Running) {
        let Opened { sender, running, origin, streams } = opened;
        let lane = Self {
            nth,
            origin,
            limit: usize::try_from(streams.unwrap_or(UNSAID)).unwrap_or(usize::MAX),
            in_flight: AtomicUsize::new(0),
            used: AtomicBool::new(true),
            retired: AtomicBool::new(false),
            retire: Notify::new(),
        };
        (Ready { sender, lane: Arc::new(lane) }, running)
    }

    pub(super) fn is_full(&self) -> bool {
        self.in_flight() >= self.limit
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Counts a call, if there is room for it.
    pub(super) fn enter(&self) -> bool {
        let room = |calls| (calls < self.limit).then_some(calls + 1);
        let entered = self.in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).is_ok();
        if entered {
            self.mark_used();
        }
        entered
    }

    /// Counts a call, which waits in the connection if there is no room for it.
    pub(super) fn queue(&self) {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        self.mark_used();
    }

    /// A call has ended. Whether the lane had no room before.
    pub(super) fn leave(&self) -> bool {
        self.mark_used();
        self.in_flight.fetch_sub(1, Ordering::AcqRel) >= self.limit
    }

    /// It said GOAWAY: it finishes its calls, and takes no more.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.retire.notify_one();
    }

    fn mark_used(&self) {
        // Mostly it is already, and is then only read.
        if !self.used.load(Ordering::Acquire) {
            self.used.store(true, Ordering::Release);
        }
    }

    async fn retired(&self) {
        while !self.retired.load(Ordering::Acquire) {
            self.retire.notified().await;
        }
    }

    /// Until there was no call for a whole period, or never if there is none.
    async fn idle(&self, period: Option<Duration>) {
        let Some(period) = period else { return std::future::pending().await };
        loop {
            self.used.store(false, Ordering::Release);
            tokio::time::sleep(period).await;
            if self.in_flight() == 0 && !self.used.load(Ordering::Acquire) {
                return;
            }
        }
    }
}

impl Ready {
    /// Whether it takes calls.
    pub(super) fn accepts(&self) -> bool {
        !self.sender.is_closed() && !self.lane.retired.load(Ordering::Acquire)
    }
}

/// Runs a lane until it takes no more calls, and takes it off the list of its connection then. Drained, or without a
/// call for the `idle` time, it gets no new ones and those that it has are sent off. `draining` is told before that.
///
/// What runs the lane is a task of its own, so that a call wakes nobody who only waits for an end.
pub(super) async fn keep(
    connection: &Connection,
    lane: &Lane,
    running: Running,
    runtime: &Runtime,
    orders: &mut watch::Receiver<Order>,
    idle: Option<Duration>,
    draining: impl FnOnce(),
) -> End {
    let finish = async {
        tokio::select! {
            biased;
            drained = until(orders, |order| *order == Order::Drain) => drained.map(|()| draining()).is_ok(),
            () = lane.idle(idle) => true,
        }
    };
    let (tell, mut ended) = oneshot::channel();
    let task = runtime.spawn(async move {
        let _ = running.await; // however it ends, its calls know better
        let _ = tell.send(()); // nobody waits if it is dropped
    });
    let end = tokio::select! {
        biased;
        _ = &mut ended => End::Closed,
        // Dropping it leaves its calls to finish by themselves.
        () = lane.retired() => End::Closed,
        wanted = finish => if wanted { End::Finished } else { End::Orphaned },
    };
    connection.dismiss(lane.nth);
    if end == End::Finished {
        // Without our sender the connection ends once the calls that hold theirs have sent their requests.
        let _ = ended.await;
    }
    drop(task);
    tracing::debug!(address = %connection.address, nth = lane.nth, ?end, "connection takes no more requests");
    end
}

/// Until the orders are such. Fails if nobody gives orders any more.
pub(super) async fn until(
    orders: &mut watch::Receiver<Order>,
    such: impl FnMut(&Order) -> bool,
) -> Result<(), watch::error::RecvError> {
    orders.wait_for(such).await.map(|_| ())
}
