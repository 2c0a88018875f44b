//! What a steady pool shows of itself.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::member::{Seen, Total};
use crate::{
    members::SharedError,
    sizing::{SizeChange, Sizing},
};

/// What a pool is and does right now.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SteadySnapshot {
    /// The demand in services, averaged over time: what the pool is sized by.
    pub estimate: f64,
    /// Its services, those that drain included, in the order in which they were made.
    pub services: Vec<ServiceSnapshot>,
    /// How many services are in the making, or are to be made as soon as the maker is ready and the backoff over.
    pub making: usize,
    /// How many requests wait for a service.
    pub waiting: usize,
    /// How many requests services have, those that left the pool included.
    pub in_flight: usize,
    /// How many services were made in all.
    pub made: u64,
    /// How many services failed.
    pub lost: u64,
    /// When the pool last decided to have more services, or fewer, and why. To put others in the place of those that failed is
    /// no such decision. `None`: never yet.
    pub last: Option<SizeChange>,
    /// How many services the pool decided to add, the first ones included, in all.
    pub grown: u64,
    /// How many services it set about in all in the place of those that failed, or could not be made.
    pub replaced: u64,
    /// How many services the pool decided to do without in all.
    pub shrunk: u64,
    /// How long services must be idle until the next is drained: as set, or longer if that was too soon.
    pub idle_time: Duration,
    /// Why the last service could not be made, until one was ready again.
    pub last_error: Option<String>,
}

/// One service of a [`SteadySnapshot`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceSnapshot {
    /// Its number: the first that was made is 0.
    pub id: u64,
    /// What it does.
    pub state: ServiceState,
    /// How many requests it has.
    pub in_flight: usize,
}

/// What a service of a pool does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServiceState {
    /// It was made, and was never ready yet.
    Warming,
    /// It takes requests.
    Ready,
    /// It takes none at this moment, as its `poll_ready` says.
    Busy,
    /// It gets no more, and is dropped when it has finished what it has.
    Draining,
}

/// What the worker tells, for whoever looks.
pub(super) struct Shown {
    pub(super) sizing: Sizing,
    pub(super) services: Vec<(Arc<Seen>, ServiceState)>,
    pub(super) making: usize,
    pub(super) counts: Counts,
    pub(super) last: Option<SizeChange>,
    pub(super) problem: Option<SharedError>,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) made: u64,
    pub(super) lost: u64,
    pub(super) grown: u64,
    pub(super) replaced: u64,
    pub(super) shrunk: u64,
}

impl SteadySnapshot {
    pub(super) fn of(shown: &Shown, total: &Total, waiting: usize, now: Duration) -> Self {
        let services = shown.services.iter().map(|(seen, state)| {
            let busy = *state == ServiceState::Ready && seen.busy.load(Ordering::Acquire);
            let state = if busy { ServiceState::Busy } else { *state };
            ServiceSnapshot { id: seen.id, state, in_flight: seen.in_flight() }
        });
        let Counts { made, lost, grown, replaced, shrunk } = shown.counts;
        Self {
            estimate: shown.sizing.estimate_at(now),
            services: services.collect(),
            making: shown.making,
            waiting,
            in_flight: total.in_flight(),
            made,
            lost,
            last: shown.last,
            grown,
            replaced,
            shrunk,
            idle_time: shown.sizing.idle_time(),
            last_error: shown.problem.as_ref().map(ToString::to_string),
        }
    }

    /// How many services requests are spread over, busy ones included.
    pub fn ready(&self) -> usize {
        self.count(|state| matches!(state, ServiceState::Ready | ServiceState::Busy))
    }

    /// How many services finish what they have, and get no more.
    pub fn draining(&self) -> usize {
        self.count(|state| state == ServiceState::Draining)
    }

    fn count(&self, such: impl Fn(ServiceState) -> bool) -> usize {
        self.services.iter().filter(|service| such(service.state)).count()
    }
}
