//! Every way to fail, and what is on the wire for it: code, reason, domain, and whether and when to try again.

use std::sync::Arc;

use super::*;

const MILLIS: fn(u64) -> Duration = Duration::from_millis;

/// What clients may rely on.
#[derive(Debug, PartialEq)]
struct Wire {
    code: Code,
    reason: String,
    domain: String,
    retry: Option<Duration>,
    /// The field of the `BadRequest`, if there is one.
    bad_field: Option<String>,
}

fn expected(code: Code, reason: &str, retry: Option<Duration>) -> Wire {
    Wire { code, reason: reason.into(), domain: "registry.v1".into(), retry, bad_field: None }
}

fn on_the_wire(status: &Status) -> Wire {
    let details = status.get_error_details();
    let info = details.error_info().expect("every error has an ErrorInfo");
    let bad = details.bad_request().and_then(|bad| bad.field_violations.first());
    Wire {
        code: status.code(),
        reason: info.reason.clone(),
        domain: info.domain.clone(),
        retry: details.retry_info().map(|retry| retry.retry_delay.expect("a RetryInfo says when")),
        bad_field: bad.map(|violation| violation.field.clone()),
    }
}

/// The table. A further way to fail does not compile until it has its row here.
fn row(error: &WriteError) -> Wire {
    match error {
        WriteError::QueueFull => expected(Code::ResourceExhausted, "QUEUE_FULL", Some(MILLIS(100))),
        WriteError::StoreFailed(_) => expected(Code::Unavailable, "STORE_FAILED", Some(MILLIS(5_000))),
        WriteError::ShuttingDown => expected(Code::Unavailable, "SHUTTING_DOWN", Some(MILLIS(500))),
        WriteError::Rejected(rejection) => match rejection {
            Rejection::Superseded { .. } => expected(Code::FailedPrecondition, "SUPERSEDED", None),
            Rejection::IncarnationMismatch { .. } => {
                expected(Code::FailedPrecondition, "INCARNATION_MISMATCH", None)
            }
            Rejection::LeaseMismatch { .. } => expected(Code::FailedPrecondition, "LEASE_MISMATCH", None),
            Rejection::NotHeld { .. } => expected(Code::FailedPrecondition, "NOT_HELD", None),
            // Waiting does not help: an operator has to clear some.
            Rejection::TooManyOverrides { .. } => {
                expected(Code::ResourceExhausted, "TOO_MANY_OVERRIDES", None)
            }
        },
    }
}

fn key() -> ServiceKey {
    ServiceKey { namespace: "shop".into(), service: "cart".into() }
}

#[test]
fn d4_every_refused_write_has_its_code_reason_and_time_to_try_again() {
    let id: Arc<str> = "cart-7".into();
    let rejected = [
        (Rejection::Superseded { by: "the generation 4".into() }, vec!["the generation 4", "registrant"]),
        (
            Rejection::IncarnationMismatch { key: key(), id: Arc::clone(&id), actual: 42 },
            vec!["cart-7", "shop", "42"],
        ),
        (Rejection::LeaseMismatch { key: key(), id: Arc::clone(&id) }, vec!["cart-7", "cart", "lease_id"]),
        (Rejection::NotHeld { key: key(), id }, vec!["cart-7", "cart", "not held"]),
        (Rejection::TooManyOverrides { limit: 17 }, vec!["17", "clear"]),
    ];
    let rejected = rejected.into_iter().map(|(rejection, says)| (WriteError::Rejected(rejection), says));
    let others = [
        (WriteError::QueueFull, vec!["waiting", "try again"]),
        (WriteError::StoreFailed("fsync: no space".into()), vec!["fsync: no space", "restart"]),
        (WriteError::ShuttingDown, vec!["shutting down", "use another"]),
    ];
    for (error, says) in rejected.chain(others) {
        let status = Status::from(error.clone());
        assert_eq!(on_the_wire(&status), row(&error), "D4 and others: {error:?}");
        for word in says {
            assert!(status.message().contains(word), "{error:?}: `{}` lacks `{word}`", status.message());
        }
    }
}

#[test]
fn every_other_error_has_its_code_reason_and_time_to_try_again() {
    let refused = ViewRefused::TooManyViews { key: key(), limit: 64 };
    let cases = [
        (Status::from(refused), expected(Code::ResourceExhausted, "TOO_MANY_VIEWS", None), "64"),
        (
            too_many_streams(9),
            expected(Code::ResourceExhausted, "TOO_MANY_STREAMS", Some(MILLIS(1_000))),
            "9 watches",
        ),
        (
            shutting_down(MILLIS(1_234)),
            expected(Code::Unavailable, "SHUTTING_DOWN", Some(MILLIS(1_234))),
            "use another",
        ),
        (
            replica_behind(7, 5),
            expected(Code::Unavailable, "REPLICA_BEHIND", Some(MILLIS(200))),
            "at revision 5 and not yet at 7",
        ),
        (
            too_many_waits(9),
            expected(Code::ResourceExhausted, "TOO_MANY_WAITS", Some(MILLIS(1_000))),
            "9 calls wait",
        ),
        (
            unknown_service(&key()),
            Wire { bad_field: Some("key".into()), ..expected(Code::NotFound, "UNKNOWN_SERVICE", None) },
            "shop/cart",
        ),
        (
            other_epoch("old", "new"),
            Wire {
                bad_field: Some("epoch".into()),
                ..expected(Code::FailedPrecondition, "EPOCH_CHANGED", None)
            },
            "`old`",
        ),
        (not_implemented("A.B"), expected(Code::Unimplemented, "NOT_IMPLEMENTED", None), "A.B"),
        (page_expired(), expected(Code::Aborted, "PAGE_EXPIRED", None), "without a token"),
    ];
    for (status, wire, says) in cases {
        assert_eq!(on_the_wire(&status), wire, "{status:?}");
        assert!(status.message().contains(says), "`{}` lacks `{says}`", status.message());
    }
}

#[test]
fn an_invalid_field_is_named_three_times() {
    let status = Status::from(Invalid::new("registrations[3].instance.weight", "is 70000"));
    let named = Some("registrations[3].instance.weight".to_owned());
    let wire = Wire { bad_field: named.clone(), ..expected(Code::InvalidArgument, "INVALID_FIELD", None) };
    assert_eq!(on_the_wire(&status), wire);
    assert_eq!(status.message(), "registrations[3].instance.weight: is 70000");
    let details = status.get_error_details();
    assert_eq!(details.error_info().and_then(|info| info.metadata.get("field")), named.as_ref());
    let problem = details.bad_request().and_then(|bad| bad.field_violations.first());
    assert_eq!(problem.map(|violation| violation.description.as_str()), Some("is 70000"));
}
