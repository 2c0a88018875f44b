//! The only home of `Status`: every way to fail, with its code, a stable reason, the field at fault, and what to do.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    core::{Rejection, ServiceKey},
    hub::ViewRefused,
    registry::WriteError,
};

/// The domain of every `google.rpc.ErrorInfo` of this server.
pub const ERROR_DOMAIN: &str = "registry.v1";

/// A request that breaks a rule of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// The path of the field at fault, for example `registrations[3].instance.weight`.
    pub field: String,
    /// What is wrong, what was found, and the limit.
    pub problem: String,
}

impl Invalid {
    /// A field and its problem.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

impl From<Invalid> for Status {
    fn from(invalid: Invalid) -> Self {
        let message = invalid.to_string();
        let mut details = info("INVALID_FIELD", &[("field", &invalid.field)]);
        details.add_bad_request_violation(invalid.field, invalid.problem);
        Status::with_error_details(Code::InvalidArgument, message, details)
    }
}

impl From<WriteError> for Status {
    fn from(error: WriteError) -> Self {
        let message = error.to_string();
        match error {
            WriteError::Rejected(rejection) => rejected(&rejection),
            WriteError::QueueFull => {
                retry(Code::ResourceExhausted, "QUEUE_FULL", message, Duration::from_millis(100))
            }
            WriteError::StoreFailed(_) => {
                retry(Code::Unavailable, "STORE_FAILED", message, Duration::from_secs(5))
            }
            WriteError::ShuttingDown => shutting_down(Duration::from_millis(500)),
        }
    }
}

impl From<ViewRefused> for Status {
    fn from(refused: ViewRefused) -> Self {
        let details = info("TOO_MANY_VIEWS", &[]);
        Status::with_error_details(Code::ResourceExhausted, refused.to_string(), details)
    }
}

/// The server is stopping: go elsewhere, or come back after `delay`.
pub(super) fn shutting_down(delay: Duration) -> Status {
    let message = "the server is shutting down; use another one or try again";
    retry(Code::Unavailable, "SHUTTING_DOWN", message, delay)
}

/// The client knows more than this server.
pub(super) fn replica_behind(wanted: u64, head: u64) -> Status {
    let message =
        format!("this server is at revision {head} and not yet at {wanted}; use another one or try again");
    retry(Code::Unavailable, "REPLICA_BEHIND", message, Duration::from_millis(200))
}

/// Named in the protocol, but not there yet.
pub(super) fn not_implemented(name: &str) -> Status {
    let details = info("NOT_IMPLEMENTED", &[("name", name)]);
    Status::with_error_details(
        Code::Unimplemented,
        format!("{name} is not implemented by this server"),
        details,
    )
}

/// The snapshot of a reading is no longer kept.
pub(super) fn page_expired() -> Status {
    let message = "page_token: the snapshot it belongs to is no longer kept; start over without a token";
    Status::with_error_details(Code::Aborted, message, info("PAGE_EXPIRED", &[("field", "page_token")]))
}

/// As many streams as the server may have.
pub(super) fn too_many_streams(limit: usize) -> Status {
    let message = format!("{limit} watches are open on this server, which is the limit; use another one");
    retry(Code::ResourceExhausted, "TOO_MANY_STREAMS", message, Duration::from_secs(1))
}

/// As many calls of `WaitApplied` as the server takes.
pub(super) fn too_many_waits(limit: usize) -> Status {
    let message = format!("{limit} calls wait for watchers already, which is the limit; try again");
    retry(Code::ResourceExhausted, "TOO_MANY_WAITS", message, Duration::from_secs(1))
}

/// Nobody registered the service.
pub(super) fn unknown_service(key: &ServiceKey) -> Status {
    let problem = format!("names {key}, which nobody registered; check the name");
    let mut details = info("UNKNOWN_SERVICE", &[("field", "key")]);
    details.add_bad_request_violation("key", &problem);
    Status::with_error_details(Code::NotFound, format!("key: {problem}"), details)
}

/// The revision is one of another history.
pub(super) fn other_epoch(named: &str, own: &str) -> Status {
    let problem =
        format!("is `{named}`, but this server's is `{own}`, where that revision means nothing; write again");
    let mut details = info("EPOCH_CHANGED", &[("field", "epoch")]);
    details.add_bad_request_violation("epoch", &problem);
    Status::with_error_details(Code::FailedPrecondition, format!("epoch: {problem}"), details)
}

fn rejected(rejection: &Rejection) -> Status {
    let (code, reason, message) = match rejection {
        Rejection::Superseded { by } => (
            Code::FailedPrecondition,
            "SUPERSEDED",
            format!(
                "registrant: superseded by {by}; stop, or register with a higher generation and a new lease"
            ),
        ),
        Rejection::IncarnationMismatch { key, id, actual } => (
            Code::FailedPrecondition,
            "INCARNATION_MISMATCH",
            format!(
                "instances: `{id}` of {key} is there in the incarnation {actual}, not in the one expected; look again"
            ),
        ),
        Rejection::LeaseMismatch { key, id } => (
            Code::FailedPrecondition,
            "LEASE_MISMATCH",
            format!(
                "instances: `{id}` of {key} is not under the lease named; leave `lease_id` out to remove it all the same"
            ),
        ),
        Rejection::NotHeld { key, id } => (
            Code::FailedPrecondition,
            "NOT_HELD",
            format!("ids: `{id}` of {key} is not held; nothing was resolved"),
        ),
        Rejection::TooManyOverrides { limit } => (
            Code::ResourceExhausted,
            "TOO_MANY_OVERRIDES",
            format!("{limit} overrides are set, which is the limit; clear some"),
        ),
    };
    Status::with_error_details(code, message, info(reason, &[]))
}

fn info(reason: &str, metadata: &[(&str, &str)]) -> ErrorDetails {
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, ERROR_DOMAIN, metadata);
    details
}

fn retry(code: Code, reason: &str, message: impl Into<String>, after: Duration) -> Status {
    let mut details = info(reason, &[]);
    details.set_retry_info(Some(after));
    Status::with_error_details(code, message, details)
}

#[cfg(test)]
mod tests;
