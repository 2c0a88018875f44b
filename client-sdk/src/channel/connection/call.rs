//! A call in flight, and the lane that it takes: the one with the fewest calls, if it has room.

use std::sync::{Arc, atomic::Ordering};

use hyper::client::conn::http2::SendRequest;

use super::{
    Connection,
    lane::{Lane, Ready},
    open::Origin,
};
use crate::{
    balance::Outcome,
    channel::{error::ChannelError, request_body::RequestBody},
    members::Ongoing,
    model::Address,
};

/// A call in flight.
#[derive(Debug)]
pub(in crate::channel) struct InFlight {
    connection: Arc<Connection>,
    lane: Option<Arc<Lane>>,
    call: Option<Ongoing>,
}

/// A place on a lane. Hold it no longer than sending takes.
#[derive(Debug)]
pub(in crate::channel) struct Seat {
    pub(in crate::channel) sender: SendRequest<RequestBody>,
    pub(in crate::channel) origin: Origin,
    /// The lane's number.
    pub(in crate::channel) nth: u64,
}

/// Whether a call may be sent.
#[derive(Debug)]
pub(in crate::channel) enum Seating {
    Seated(Seat),
    /// All lanes are full, and another is being opened: wait for it.
    Full,
    /// No lane takes it.
    None,
}

impl InFlight {
    pub(super) fn new(connection: Arc<Connection>, call: Ongoing) -> Self {
        Self { connection, lane: None, call: Some(call) }
    }

    pub(in crate::channel) fn address(&self) -> &Address {
        &self.connection.address
    }

    /// Takes a place on the lane that has the fewest calls, among those that were not tried. If all are full and there
    /// will be no other, the call waits in the HTTP/2 connection, which sends it when another call has ended.
    pub(in crate::channel) fn seat(&mut self, tried: impl Fn(u64) -> bool) -> Seating {
        let connection = &self.connection;
        let lanes = connection.lanes.load();
        let open = lanes.iter().filter(|ready| ready.accepts() && !tried(ready.lane.nth));
        let Some(ready) = open.min_by_key(|ready| (ready.lane.is_full(), ready.lane.in_flight())) else {
            return Seating::None;
        };
        let growing = connection.growing.load(Ordering::Acquire);
        if !ready.lane.enter() {
            if growing {
                connection.demand.notify_one();
                return Seating::Full;
            }
            ready.lane.queue();
        } else if growing && connection.is_full() {
            // The next call will find no room.
            connection.demand.notify_one();
        }
        let Ready { sender, lane } = ready;
        let seat = Seat { sender: sender.clone(), origin: lane.origin.clone(), nth: lane.nth };
        self.lane = Some(Arc::clone(lane));
        Seating::Seated(seat)
    }

    /// Takes a place as soon as there is one. `None`: no lane takes it, or by now the instance takes no more requests (C2).
    pub(in crate::channel) async fn wait_for_seat(&mut self, tried: impl Fn(u64) -> bool) -> Option<Seat> {
        let connection = Arc::clone(&self.connection);
        loop {
            let mut room = std::pin::pin!(connection.room.notified());
            room.as_mut().enable();
            if !connection.instance.load().takes_requests() {
                return None;
            }
            match self.seat(&tried) {
                Seating::Seated(seat) => {
                    // Only the first call that leaves a full lane says so: whoever comes in for it tells the next.
                    if !connection.is_full() {
                        connection.room.notify_one();
                    }
                    return Some(seat);
                }
                Seating::Full => room.await,
                Seating::None => return None,
            }
        }
    }

    /// Its answer began.
    pub(in crate::channel) fn answered(&mut self) {
        if let Some(call) = &mut self.call {
            call.answered();
        }
    }

    /// The call has ended, and how. One that is dropped was given up.
    pub(in crate::channel) fn finish(mut self, outcome: Outcome) {
        if let Some(call) = self.call.take() {
            call.finish(outcome);
        }
    }

    /// The call has failed with this error. One that was lost with its connection is no reason to eject the instance.
    pub(in crate::channel) fn failed(mut self, error: &ChannelError) {
        let Some(call) = self.call.take() else { return };
        match error {
            ChannelError::Lost { .. } => call.lost(),
            _ => call.finish(Outcome::Failure),
        }
    }

    /// The instance did not take the call.
    pub(in crate::channel) fn not_taken(mut self) {
        if let Some(call) = self.call.take() {
            call.not_taken();
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.lane.take().is_some_and(|lane| lane.leave()) {
            self.connection.room.notify_one();
        }
        if self.connection.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.connection.settled.notify_one();
        }
    }
}
