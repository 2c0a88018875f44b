//! What is counted, through the `metrics` facade.
//!
//! Owns the names. Handles are fetched once, when a pool is built: a recorder that is installed only afterwards gets nothing
//! of it.

use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};

use crate::pool::error::PoolError;

const SERVICES: &str = "client_sdk_pool_services";
const DEMAND: &str = "client_sdk_pool_demand";
const IN_FLIGHT: &str = "client_sdk_pool_requests_in_flight";
const WAITING: &str = "client_sdk_pool_requests_waiting";
const REFUSED: &str = "client_sdk_pool_requests_refused_total";
const GROWN: &str = "client_sdk_pool_grown_total";
const REPLACED: &str = "client_sdk_pool_replaced_total";
const SHRUNK: &str = "client_sdk_pool_shrunk_total";
const MADE: &str = "client_sdk_pool_services_made_total";
const LOST: &str = "client_sdk_pool_services_lost_total";
const MAKE_FAILURES: &str = "client_sdk_pool_make_failures_total";

/// The meters of one pool.
pub(super) struct Meters {
    pub(super) ready: Gauge,
    pub(super) coming: Gauge,
    pub(super) draining: Gauge,
    pub(super) demand: Gauge,
    pub(super) in_flight: Gauge,
    pub(super) waiting: Gauge,
    pub(super) grown: Counter,
    pub(super) replaced: Counter,
    pub(super) shrunk: Counter,
    pub(super) made: Counter,
    pub(super) lost: Counter,
    pub(super) make_failures: Counter,
    name: String,
}

impl Meters {
    pub(super) fn new(name: &str) -> Self {
        describe();
        let labels = [("pool", name.to_owned())];
        let services = |state| gauge!(SERVICES, "pool" => name.to_owned(), "state" => state);
        Self {
            ready: services("ready"),
            coming: services("coming"),
            draining: services("draining"),
            demand: gauge!(DEMAND, &labels),
            in_flight: gauge!(IN_FLIGHT, &labels),
            waiting: gauge!(WAITING, &labels),
            grown: counter!(GROWN, &labels),
            replaced: counter!(REPLACED, &labels),
            shrunk: counter!(SHRUNK, &labels),
            made: counter!(MADE, &labels),
            lost: counter!(LOST, &labels),
            make_failures: counter!(MAKE_FAILURES, &labels),
            name: name.to_owned(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// A request ended without a service. So rare that it looks its counter up.
    pub(super) fn refused(&self, error: &PoolError) {
        counter!(REFUSED, "pool" => self.name.clone(), "reason" => error.reason()).increment(1);
    }
}

fn describe() {
    describe_gauge!(SERVICES, Unit::Count, "Services of a pool, by their state.");
    describe_gauge!(
        DEMAND,
        Unit::Count,
        "The estimate that a pool is sized by: how many services are needed."
    );
    describe_gauge!(IN_FLIGHT, Unit::Count, "Requests that a service of the pool has.");
    describe_gauge!(WAITING, Unit::Count, "Requests that wait for a service of the pool.");
    describe_counter!(REFUSED, Unit::Count, "Requests that got no service, by the reason.");
    describe_counter!(GROWN, Unit::Count, "Services that a pool decided to add.");
    describe_counter!(
        REPLACED,
        Unit::Count,
        "Services that a pool set about in the place of those that failed or could not be made."
    );
    describe_counter!(SHRUNK, Unit::Count, "Services that a pool decided to do without.");
    describe_counter!(MADE, Unit::Count, "Services that were made.");
    describe_counter!(LOST, Unit::Count, "Services that failed.");
    describe_counter!(MAKE_FAILURES, Unit::Count, "Services that could not be made, or were never of use.");
}
