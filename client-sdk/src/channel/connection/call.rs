//! A call in flight, and the lane that it takes: the one with the fewest calls, if it has room.

use std::sync::{Arc, atomic::Ordering};

use http::{HeaderMap, Request};

use super::{
    Connection,
    keepalive::Unanswered,
    lane::{Lane, Sent},
};
use crate::{
    balance::Outcome, channel::error::ChannelError, members::Ongoing, model::Address, orca::LoadReport,
};

/// A call in flight.
#[derive(Debug)]
pub(in crate::channel) struct InFlight {
    connection: Arc<Connection>,
    lane: Option<Arc<Lane>>,
    /// The number of its stream, once it is sent.
    stream: Option<u32>,
    call: Option<Ongoing>,
}

/// Whether a call may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::channel) enum Seating {
    /// It has a [lane](InFlight::lane).
    Seated,
    /// All lanes are full: wait until another call has ended, or another lane is open.
    Full,
    /// No lane takes it, or the instance takes no requests by now (C2).
    None,
}

impl InFlight {
    pub(super) fn new(connection: Arc<Connection>, call: Ongoing) -> Self {
        Self { connection, lane: None, stream: None, call: Some(call) }
    }

    pub(in crate::channel) fn address(&self) -> &Address {
        &self.connection.address
    }

    /// The lane that it has a place on.
    pub(in crate::channel) fn lane(&self) -> &Lane {
        self.lane.as_deref().expect("asked for only once it is seated")
    }

    /// Sends its request on its lane. `Err`: it was not taken, and never left.
    pub(in crate::channel) fn send(&mut self, request: Request<()>, is_all: bool) -> Result<Sent, h2::Error> {
        let (sent, stream) = self.lane().send(request, is_all)?;
        self.stream = Some(stream);
        Ok(sent)
    }

    /// Why its lane was given up, if it was.
    pub(in crate::channel) fn given_up(&self) -> Option<Unanswered> {
        self.lane.as_ref()?.given_up()
    }

    /// Takes a place on the lane that has the fewest calls, among those that were not tried.
    pub(in crate::channel) fn seat(&mut self, tried: impl Fn(u64) -> bool) -> Seating {
        let connection = &self.connection;
        if !connection.takes_requests.load(Ordering::Acquire) {
            return Seating::None;
        }
        let lanes = connection.lanes.load();
        let open = lanes.iter().filter(|lane| lane.accepts() && !tried(lane.nth));
        let Some(lane) = open.min_by_key(|lane| (lane.is_full(), lane.in_flight())) else {
            return Seating::None;
        };
        let growing = connection.growing.load(Ordering::Acquire);
        if lane.enter() {
            if growing && connection.is_full() {
                // The next call will find no room.
                connection.demand.notify_one();
            }
        } else if growing {
            connection.demand.notify_one();
            return Seating::Full;
        } else if !lane.squeeze_in() {
            return Seating::Full;
        }
        self.lane = Some(Arc::clone(lane));
        Seating::Seated
    }

    /// Takes a place as soon as there is one. Whether it has one: else no lane takes it, or by now the instance takes no more
    /// requests.
    pub(in crate::channel) async fn wait_for_seat(&mut self, tried: impl Fn(u64) -> bool) -> bool {
        let connection = Arc::clone(&self.connection);
        loop {
            let mut room = std::pin::pin!(connection.room.notified());
            room.as_mut().enable();
            match self.seat(&tried) {
                Seating::Full => room.await,
                seating => {
                    // Only the first call that leaves a full lane says so: whoever comes in for it tells the next. One
                    // that does not come in may have been told in its place.
                    if !connection.is_full() {
                        connection.room.notify_one();
                    }
                    return seating == Seating::Seated;
                }
            }
        }
    }

    /// Its answer began.
    pub(in crate::channel) fn answered(&mut self) {
        if let Some(call) = &mut self.call {
            call.answered();
        }
    }

    /// Takes in what the instance reports of its load with the end of its answer, if the call's policy goes by that.
    pub(in crate::channel) fn hear(&self, trailers: &HeaderMap) {
        let Some(call) = self.call.as_ref().filter(|call| call.wants_load()) else { return };
        match LoadReport::of(trailers) {
            Ok(None) => {}
            report => call.loaded(report.ok().flatten().as_ref()),
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
        if self.lane.take().is_some_and(|lane| lane.leave(self.stream)) {
            self.connection.room.notify_one();
        }
        if self.connection.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.connection.settled.notify_one();
        }
    }
}
