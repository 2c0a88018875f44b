//! What is counted, through the `metrics` facade.
//!
//! Owns the names. Handles are fetched once, when a channel or a balanced service is built: a recorder that is installed
//! only afterwards gets nothing of it, and without one counting costs a comparison.

use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};

use super::RouteError;
use crate::{balance::Outcome, model::Endpoint, outlier::EjectionCause};

const PICKS: &str = "client_sdk_picks_total";
const IN_FLIGHT: &str = "client_sdk_requests_in_flight";
const ENDED: &str = "client_sdk_requests_ended_total";
const NOT_TAKEN: &str = "client_sdk_requests_not_taken_total";
const WAITING: &str = "client_sdk_requests_waiting";
const NO_INSTANCE: &str = "client_sdk_no_instance_total";
const EJECTIONS: &str = "client_sdk_ejections_total";
const EJECTED: &str = "client_sdk_instances_ejected";
const APERTURE: &str = "client_sdk_aperture_instances";
const APERTURE_DEMAND: &str = "client_sdk_aperture_demand";
const APERTURE_GROWN: &str = "client_sdk_aperture_grown_total";
const APERTURE_SHRUNK: &str = "client_sdk_aperture_shrunk_total";
const CONNECTS: &str = "client_sdk_connects_total";
const CONNECT_FAILURES: &str = "client_sdk_connect_failures_total";
const RETRIES: &str = "client_sdk_retries_total";
const RETRIES_REFUSED: &str = "client_sdk_retries_refused_total";
const LOAD_REPORTS: &str = "client_sdk_load_reports_total";

/// The meters of one endpoint.
pub(crate) struct Meters {
    picks: Counter,
    in_flight: Gauge,
    succeeded: Counter,
    failed: Counter,
    cancelled: Counter,
    not_taken: Counter,
    waiting: Gauge,
    connects: Counter,
    connect_failures: Counter,
    load_reports: Counter,
    bad_load_reports: Counter,
    ejected: Gauge,
    endpoint: String,
}

impl Meters {
    pub(crate) fn new(endpoint: &Endpoint) -> Self {
        describe();
        let endpoint = endpoint.to_string();
        let labels = [("endpoint", endpoint.clone())];
        let ended = |outcome| counter!(ENDED, "endpoint" => endpoint.clone(), "outcome" => outcome);
        let reports = |read| counter!(LOAD_REPORTS, "endpoint" => endpoint.clone(), "read" => read);
        Self {
            load_reports: reports("yes"),
            bad_load_reports: reports("no"),
            picks: counter!(PICKS, &labels),
            in_flight: gauge!(IN_FLIGHT, &labels),
            succeeded: ended("success"),
            failed: ended("failure"),
            cancelled: ended("cancelled"),
            not_taken: counter!(NOT_TAKEN, &labels),
            waiting: gauge!(WAITING, &labels),
            connects: counter!(CONNECTS, &labels),
            connect_failures: counter!(CONNECT_FAILURES, &labels),
            ejected: gauge!(EJECTED, &labels),
            endpoint,
        }
    }

    /// A connection was opened.
    pub(crate) fn connected(&self) {
        self.connects.increment(1);
    }

    /// A connection could not be opened, or broke at once.
    pub(crate) fn not_connected(&self) {
        self.connect_failures.increment(1);
    }

    pub(super) fn picked(&self) {
        self.picks.increment(1);
        self.in_flight.increment(1.0);
    }

    pub(super) fn ended(&self, outcome: Outcome) {
        self.in_flight.decrement(1.0);
        match outcome {
            Outcome::Success => &self.succeeded,
            Outcome::Failure => &self.failed,
            Outcome::Cancelled => &self.cancelled,
        }
        .increment(1);
    }

    pub(super) fn not_taken(&self) {
        self.in_flight.decrement(1.0);
        self.not_taken.increment(1);
    }

    pub(super) fn waits(&self) {
        self.waiting.increment(1.0);
    }

    pub(super) fn waits_no_more(&self) {
        self.waiting.decrement(1.0);
    }

    /// An instance reported its load, and it could be read or not.
    pub(super) fn load_reported(&self, read: bool) {
        if read { &self.load_reports } else { &self.bad_load_reports }.increment(1);
    }

    /// A request is sent once more. So rare that it looks its counter up.
    pub(crate) fn retried(&self, reason: &'static str) {
        counter!(RETRIES, "endpoint" => self.endpoint.clone(), "reason" => reason).increment(1);
    }

    /// A request would have been sent once more, and the budget was spent. It looks its counter up too.
    pub(crate) fn retry_refused(&self) {
        counter!(RETRIES_REFUSED, "endpoint" => self.endpoint.clone()).increment(1);
    }

    /// An instance was ejected. So rare that it looks its counter up.
    pub(super) fn ejected(&self, cause: EjectionCause) {
        counter!(EJECTIONS, "endpoint" => self.endpoint.clone(), "cause" => cause.as_str()).increment(1);
    }

    /// So many instances are ejected or on probation, after so many were.
    #[allow(clippy::cast_precision_loss)] // the number of instances
    pub(super) fn out(&self, before: usize, now: usize) {
        if before != now {
            self.ejected.increment(now as f64 - before as f64);
        }
    }

    /// The aperture is so many instances wide, after it was so many. So rare that it looks its meters up.
    #[allow(clippy::cast_precision_loss)] // the number of instances
    pub(super) fn aperture(&self, before: usize, now: usize) {
        let gauge = gauge!(APERTURE, "endpoint" => self.endpoint.clone());
        gauge.increment(now as f64 - before as f64);
    }

    /// So many instances' worth of requests there were on average, after there had been so many. It looks its gauge up.
    pub(super) fn aperture_demand(&self, before: f64, now: f64) {
        gauge!(APERTURE_DEMAND, "endpoint" => self.endpoint.clone()).increment(now - before);
    }

    /// It was decided to use so many further instances. It looks its counter up.
    pub(super) fn aperture_grown(&self, by: usize) {
        counter!(APERTURE_GROWN, "endpoint" => self.endpoint.clone()).increment(by as u64);
    }

    /// It was decided to use an instance less. It looks its counter up.
    pub(super) fn aperture_shrunk(&self) {
        counter!(APERTURE_SHRUNK, "endpoint" => self.endpoint.clone()).increment(1);
    }

    /// A request ended without an instance. So rare that it looks its counter up.
    pub(super) fn no_instance(&self, error: &RouteError) {
        counter!(NO_INSTANCE, "endpoint" => self.endpoint.clone(), "reason" => error.reason()).increment(1);
    }
}

fn describe() {
    describe_counter!(PICKS, Unit::Count, "Instances that were picked for a request, retries included.");
    describe_gauge!(IN_FLIGHT, Unit::Count, "Requests that were given to an instance and have not ended.");
    describe_counter!(ENDED, Unit::Count, "Requests that ended, by how they went for the instance.");
    describe_counter!(NOT_TAKEN, Unit::Count, "Requests that an instance did not take; they went on.");
    describe_gauge!(WAITING, Unit::Count, "Requests that wait for an instance.");
    describe_counter!(NO_INSTANCE, Unit::Count, "Requests that found no instance, by the reason.");
    describe_counter!(RETRIES, Unit::Count, "Requests that were sent once more, by the reason.");
    describe_counter!(RETRIES_REFUSED, Unit::Count, "Retries and hedges that the budget had no room for.");
    describe_counter!(
        LOAD_REPORTS,
        Unit::Count,
        "Reports of load that a policy asked for, by whether they could be read."
    );
    describe_counter!(EJECTIONS, Unit::Count, "Ejections of instances, by their cause.");
    describe_gauge!(EJECTED, Unit::Count, "Instances that are ejected or on probation.");
    describe_gauge!(APERTURE, Unit::Count, "Instances that an aperture uses.");
    describe_gauge!(APERTURE_DEMAND, Unit::Count, "How many instances an aperture finds that are needed.");
    describe_counter!(APERTURE_GROWN, Unit::Count, "Instances that an aperture decided to add.");
    describe_counter!(APERTURE_SHRUNK, Unit::Count, "Instances that an aperture decided to do without.");
    describe_counter!(CONNECTS, Unit::Count, "Connections that were opened.");
    describe_counter!(
        CONNECT_FAILURES,
        Unit::Count,
        "Connections that could not be opened, or broke at once."
    );
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meters").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
