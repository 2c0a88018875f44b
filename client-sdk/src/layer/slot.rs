//! One instance and its service, as requests and the driver see it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tower::{BoxError, Service};

use super::{error::MakeError, place::Place};
use crate::{
    balance::Outcome,
    members::{ConnectionState, Member, Ongoing, Room, SharedError},
    model::{Address, Instance},
};

pub(super) struct Slot<S> {
    address: Address,
    /// As it was told last: a service that is made anew is made for it.
    pub(super) instance: ArcSwap<Instance>,
    pub(super) place: Place<S>,
    pub(super) phase: ArcSwap<Phase>,
    /// How many services were made and ready: names the current one.
    pub(super) made: AtomicU64,
    /// The last one that answered a request.
    answered: AtomicU64,
    /// Told of answers.
    answers: Notify,
    in_flight: AtomicUsize,
    /// Told when nothing is in flight any more.
    pub(super) settled: Notify,
    pub(super) gone: AtomicBool,
    pub(super) room: Arc<Room>,
}

#[derive(Debug)]
pub(super) enum Phase {
    Idle,
    /// `hopeful`: nothing went wrong yet, or the last one had been of use.
    Making {
        last: Option<Arc<MakeError>>,
        hopeful: bool,
    },
    Ready,
    TransientFailure {
        error: Arc<MakeError>,
    },
    Draining,
}

/// A request in flight.
pub(super) struct InFlight<S> {
    slot: Arc<Slot<S>>,
    nth: u64,
    call: Option<Ongoing>,
}

impl<S> Slot<S> {
    pub(super) fn new(instance: &Arc<Instance>, room: Arc<Room>) -> Self {
        Self {
            address: instance.address.clone(),
            instance: ArcSwap::new(Arc::clone(instance)),
            place: Place::empty(),
            phase: ArcSwap::from_pointee(Phase::Idle),
            made: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            answers: Notify::new(),
            in_flight: AtomicUsize::new(0),
            settled: Notify::new(),
            gone: AtomicBool::new(false),
            room,
        }
    }

    /// Gives the service a request, if it takes one. Else the request comes back.
    pub(super) fn call<Req>(
        self: &Arc<Self>,
        request: Req,
        call: Ongoing,
    ) -> Result<(S::Future, InFlight<S>), Req>
    where
        S: Service<Req>,
        S::Error: Into<BoxError>,
    {
        // Counted first: a slot with something in flight keeps its service.
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        let nth = self.made.load(Ordering::Acquire);
        let in_flight = InFlight { slot: Arc::clone(self), nth, call: Some(call) };
        let future = match self.place.call(request) {
            Ok(future) => future,
            Err(request) => {
                in_flight.not_taken();
                return Err(request);
            }
        };
        if self.place.is_free() {
            self.room.still_free();
        }
        Ok((future, in_flight))
    }

    /// A request has been answered: whoever waited for that may come in.
    pub(super) fn answered<Req>(&self)
    where
        S: Service<Req>,
        S::Error: Into<BoxError>,
    {
        if self.place.is_free_again() {
            self.room.vacated();
        }
    }

    /// Until the nth service has answered a request.
    pub(super) async fn has_answered(&self, nth: u64) {
        while self.answered.load(Ordering::Acquire) < nth {
            self.answers.notified().await;
        }
    }

    /// The last of the services that answered a request.
    pub(super) fn last_answered(&self) -> u64 {
        self.answered.load(Ordering::Acquire)
    }
}

impl<S: Send + 'static> Member for Slot<S> {
    fn address(&self) -> &Address {
        &self.address
    }

    fn state(&self) -> ConnectionState {
        match &**self.phase.load() {
            Phase::Idle => ConnectionState::Idle,
            Phase::Ready if self.place.is_taken() => ConnectionState::Ready,
            // Of those that were ready: it ended, and the actor is about to see to it.
            Phase::Making { .. } | Phase::Ready => ConnectionState::Connecting,
            Phase::TransientFailure { .. } => ConnectionState::TransientFailure,
            Phase::Draining => ConnectionState::Draining,
        }
    }

    fn is_free(&self) -> bool {
        self.place.is_free()
    }

    fn is_hopeful(&self) -> bool {
        match &**self.phase.load() {
            Phase::Idle => true,
            Phase::Making { hopeful, .. } => *hopeful,
            Phase::Ready => !self.place.is_taken(),
            Phase::TransientFailure { .. } | Phase::Draining => false,
        }
    }

    fn opened(&self) -> u64 {
        self.made.load(Ordering::Acquire)
    }

    fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    fn last_error(&self) -> Option<SharedError> {
        match &**self.phase.load() {
            Phase::Making { last, .. } => last.clone().map(|error| error as SharedError),
            Phase::TransientFailure { error } => Some(Arc::clone(error) as SharedError),
            Phase::Idle | Phase::Ready | Phase::Draining => None,
        }
    }
}

impl<S> InFlight<S> {
    /// The request has ended, and how. One that is dropped was given up.
    pub(super) fn finish(mut self, outcome: Outcome) {
        if outcome == Outcome::Success {
            self.slot.answered.fetch_max(self.nth, Ordering::AcqRel);
            self.slot.answers.notify_one();
        }
        if let Some(call) = self.call.take() {
            call.finish(outcome);
        }
    }

    fn not_taken(mut self) {
        if let Some(call) = self.call.take() {
            call.not_taken();
        }
    }
}

impl<S> Drop for InFlight<S> {
    fn drop(&mut self) {
        if self.slot.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.slot.settled.notify_one();
        }
    }
}
