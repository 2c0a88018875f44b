//! A lane: one HTTP/2 connection that is open, and the calls on it.
//!
//! ```text
//!   admitted --> takes calls --+-- closed by the peer, or broken, or deaf --------+--> gone
//!                              +-- GOAWAY: its calls go on -----------------------+
//!                              +-- drained, or idle: finishes what it has --------+
//! ```
//!
//! Owns the count of calls against the peer's limit of streams, as the peer sets it right now. A call is given to h2 only
//! if there is room for it, so that one that waits has certainly not left. What drives the lane is another task
//! ([`wire`](super::wire)), which lives as long as somebody holds the lane or a stream of it: with all of them gone, h2
//! says GOAWAY and closes. So a lane is drained by letting go of it.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::Request;
use tokio::sync::{Notify, oneshot, watch};

use super::{Connection, keepalive::Unanswered, open::Origin};
use crate::{channel::greeting::Traffic, members::Order};

/// How many calls fill a lane whose peer sets no limit: the least that RFC 9113, 6.5.2, recommends to allow.
const UNSAID: usize = 100;

/// One HTTP/2 connection.
#[derive(Debug)]
pub(in crate::channel) struct Lane {
    /// Its number among all connections to this instance, from 1.
    pub(in crate::channel) nth: u64,
    pub(in crate::channel) origin: Origin,
    sender: SendRequest<Bytes>,
    traffic: Arc<Traffic>,
    /// How many streams the peer allows at once; `usize::MAX` if it sets no limit.
    allowed: AtomicUsize,
    /// Calls whose streams have not ended, or not on both sides.
    in_flight: AtomicUsize,
    /// Whether a call began or ended since somebody last looked.
    used: AtomicBool,
    retired: AtomicBool,
    retire: Notify,
    unanswered: OnceLock<Unanswered>,
}

/// What is to come of a request, and where its body goes.
pub(in crate::channel) type Sent = (ResponseFuture, SendStream<Bytes>);

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
    pub(super) fn new(nth: u64, origin: Origin, sender: SendRequest<Bytes>, traffic: Arc<Traffic>) -> Self {
        Self {
            nth,
            origin,
            allowed: AtomicUsize::new(sender.current_max_send_streams()),
            sender,
            traffic,
            in_flight: AtomicUsize::new(0),
            used: AtomicBool::new(true),
            retired: AtomicBool::new(false),
            retire: Notify::new(),
            unanswered: OnceLock::new(),
        }
    }

    /// Gives a request to the connection. Its stream's number too. `Err`: it was not taken, and never left.
    pub(super) fn send(&self, request: Request<()>, is_all: bool) -> Result<(Sent, u32), h2::Error> {
        // Another handle's request that h2 has not written yet would stand in the way of this one.
        match self.sender.clone().send_request(request, is_all) {
            Ok(sent) => {
                let stream = sent.0.stream_id().as_u32();
                self.traffic.begin(stream, is_all);
                Ok((sent, stream))
            }
            Err(error) => {
                self.retire_if_over();
                Err(error)
            }
        }
    }

    /// Changes with everything that is written to the peer.
    pub(in crate::channel) fn writes(&self) -> u64 {
        self.traffic.writes()
    }

    /// Takes in what h2 knows of the peer by now. Whether its limit is another. Only what drives the lane looks, so that
    /// nothing older is taken for newer.
    pub(super) fn look(&self) -> bool {
        self.retire_if_over();
        let allowed = self.sender.current_max_send_streams();
        self.allowed.swap(allowed, Ordering::AcqRel) != allowed
    }

    /// Whether it takes calls.
    pub(super) fn accepts(&self) -> bool {
        !self.retired.load(Ordering::Acquire)
    }

    pub(super) fn is_full(&self) -> bool {
        self.in_flight() >= self.limit()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Counts a call, if there is room for it.
    pub(super) fn enter(&self) -> bool {
        self.enter_below(self.limit())
    }

    /// Counts a call beyond what fills the lane, if its peer sets no limit.
    pub(super) fn squeeze_in(&self) -> bool {
        self.enter_below(self.allowed.load(Ordering::Acquire))
    }

    /// A call has ended, whose stream this is if it was sent. Whether there is room where there was none.
    pub(super) fn leave(&self, stream: Option<u32>) -> bool {
        self.mark_used();
        // Else its place was given back when both sides had ended the stream.
        stream.is_none_or(|stream| self.traffic.forget(stream)) && self.give_back(1)
    }

    /// Gives back the places of calls whose streams have ended on both sides, though nobody may have read their answers. Whether
    /// there is room where there was none.
    pub(super) fn sweep(&self) -> bool {
        let ended = self.traffic.take_ended();
        ended > 0 && self.give_back(ended)
    }

    /// It takes no more calls, and finishes those that it has.
    pub(in crate::channel) fn retire(&self) {
        if !self.retired.swap(true, Ordering::AcqRel) {
            self.retire.notify_one();
        }
    }

    /// Its peer did not answer a ping: it is given up.
    pub(super) fn give_up(&self, why: Unanswered) {
        self.unanswered.get_or_init(|| why);
        self.retire();
    }

    /// Why it was given up, if it was.
    pub(super) fn given_up(&self) -> Option<Unanswered> {
        self.unanswered.get().copied()
    }

    /// How many calls fill it.
    fn limit(&self) -> usize {
        match self.allowed.load(Ordering::Acquire) {
            usize::MAX => UNSAID,
            allowed => allowed,
        }
    }

    /// After a GOAWAY, and when the connection is over, or out of numbers for streams. A request of which h2 does not like
    /// the headers is no reason.
    fn retire_if_over(&self) {
        let ready = self.sender.clone().poll_ready(&mut Context::from_waker(Waker::noop()));
        if matches!(ready, Poll::Ready(Err(_))) {
            self.retire();
        }
    }

    fn enter_below(&self, limit: usize) -> bool {
        let room = |calls| (calls < limit).then_some(calls + 1);
        let entered = self.in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).is_ok();
        if entered {
            self.mark_used();
        }
        entered
    }

    fn give_back(&self, places: usize) -> bool {
        self.in_flight.fetch_sub(places, Ordering::AcqRel) >= self.limit()
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

/// Keeps a lane until it takes no more calls, and takes it off the list of its connection then. Drained, or without a call
/// for the `idle` time, it gets no new ones and those that it has are finished. `draining` is told before that, and
/// `closed` when it is over.
pub(super) async fn keep(
    connection: &Connection,
    lane: Arc<Lane>,
    closed: oneshot::Receiver<()>,
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
    let end = tokio::select! {
        biased;
        () = lane.retired() => End::Closed,
        wanted = finish => if wanted { End::Finished } else { End::Orphaned },
    };
    let nth = lane.nth;
    connection.dismiss(nth);
    // Now only its calls hold it.
    drop(lane);
    if end == End::Finished {
        let _ = closed.await; // told by being dropped
    }
    tracing::debug!(address = %connection.address, nth, ?end, "connection takes no more requests");
    end
}

/// Until the orders are such. Fails if nobody gives orders any more.
pub(super) async fn until(
    orders: &mut watch::Receiver<Order>,
    such: impl FnMut(&Order) -> bool,
) -> Result<(), watch::error::RecvError> {
    orders.wait_for(such).await.map(|_| ())
}
