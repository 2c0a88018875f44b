//! Why a call to the registry failed.
//!
//! Owns the one translation of `tonic::Status` into typed errors. Every error keeps the code, the stable reason, the
//! field at fault and the time to retry after, as the registry sent them; of texts that no registry sends, the beginning.

use std::{fmt, sync::Arc, time::Duration};

use prost::Message as _;
use registry_proto::v1;
use tonic::{Code, Status};
use tonic_types::pb;

use crate::{model::Address, wire_duration::from_wire};

/// Bytes of a registry's words for people that are kept: each view, and whoever asks for its state, has them.
const LONGEST_MESSAGE: usize = 4 << 10;
/// Bytes of a reason or a field's path.
const LONGEST_NAME: usize = 1 << 10;

/// The registry answered, and said no.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The gRPC code.
    pub code: Code,
    /// The registry's words, for people.
    pub message: Arc<str>,
    /// `google.rpc.ErrorInfo.reason`: stable, for programs. `None` if the answer did not come from a registry.
    pub reason: Option<Arc<str>>,
    /// The request's field at fault, if one is.
    pub field: Option<Arc<str>>,
    /// When it makes sense to try again, if the registry said so.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// Reads a status and its `google.rpc` details. Details that cannot be decoded are left out.
    pub fn from_status(status: &Status) -> Self {
        // Not by the readers of `tonic_types`: what a hostile `RetryInfo` says overflows in them.
        let details = pb::Status::decode(status.details()).map(|it| it.details).unwrap_or_default();
        let violation = detail::<pb::BadRequest>(&details, tonic_types::BadRequest::TYPE_URL)
            .and_then(|bad| bad.field_violations.into_iter().next());
        let retry = detail::<pb::RetryInfo>(&details, tonic_types::RetryInfo::TYPE_URL);
        Self {
            code: status.code(),
            message: beginning(status.message(), LONGEST_MESSAGE).into(),
            reason: detail::<pb::ErrorInfo>(&details, tonic_types::ErrorInfo::TYPE_URL)
                .and_then(|info| name(&info.reason)),
            field: violation.and_then(|violation| name(&violation.field)),
            retry_after: retry.and_then(|retry| retry.retry_delay).and_then(from_wire),
        }
    }

    /// Reads what a stream says about one of its views.
    pub(crate) fn from_view_error(error: &v1::ViewError) -> Self {
        Self {
            code: Code::from(error.code),
            message: beginning(&error.message, LONGEST_MESSAGE).into(),
            reason: name(&error.reason),
            field: name(&error.field),
            retry_after: error.retry_after.and_then(from_wire),
        }
    }

    /// Whether the stable reason is this one.
    pub fn is(&self, reason: &str) -> bool {
        self.reason.as_deref() == Some(reason)
    }

    /// Whether the same request can never succeed, however often it is repeated.
    pub fn is_final(&self) -> bool {
        matches!(
            self.code,
            Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented | Code::PermissionDenied
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.code)?;
        if let Some(reason) = &self.reason {
            write!(f, " / {reason}")?;
        }
        if let Some(field) = &self.field {
            write!(f, " in `{field}`")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for Refusal {}

/// Not one endpoint could be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectError {
    /// What was tried, in order, and what came of it.
    pub attempts: Arc<[(Address, String)]>,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no registry can be reached; is one running, and are the endpoints right? tried ")?;
        for (i, (endpoint, problem)) in self.attempts.iter().enumerate() {
            write!(f, "{}{endpoint} ({problem})", if i > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

impl std::error::Error for ConnectError {}

/// Why a call failed that has no reasons of its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// Not one endpoint could be connected to.
    #[error(transparent)]
    Unreachable(ConnectError),
    /// Nobody answered before the deadline. The call may have taken effect.
    #[error(
        "the registry did not answer within {0:?}; it may have done what was asked, which can safely be repeated"
    )]
    Timeout(Duration),
    /// The registry said no.
    #[error("the registry refused: {0}")]
    Refused(Refusal),
}

impl CallError {
    /// The refusal, if it is one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

/// Why `Register` failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// A higher generation of the same registrant holds a lease: this process was replaced and should stop.
    #[error("superseded by a newer generation of this registrant: {0}")]
    Superseded(Refusal),
    /// The registration is not complete: nothing was sent.
    #[error("nothing was registered: {0}")]
    Incomplete(&'static str),
    /// Any other failure. Nothing was changed, unless it is a timeout.
    #[error("cannot register: {0}")]
    Failed(CallError),
}

impl RegisterError {
    /// Whether it is worth trying again without anyone's doing.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Superseded(_) | Self::Incomplete(_) => false,
            Self::Failed(CallError::Refused(refusal)) => !refusal.is_final(),
            Self::Failed(_) => true,
        }
    }
}

impl From<CallError> for RegisterError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(refusal) if refusal.is("SUPERSEDED") => Self::Superseded(refusal),
            other => Self::Failed(other),
        }
    }
}

/// Why `Deregister` failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeregisterError {
    /// An instance is under another lease. Nothing was removed.
    #[error("an instance belongs to another lease: {0}")]
    LeaseMismatch(Refusal),
    /// An instance is of another incarnation than the expected one. Nothing was removed.
    #[error("an instance was registered anew meanwhile: {0}")]
    IncarnationMismatch(Refusal),
    /// Any other failure. Unrenewed instances go by themselves when their lease runs out.
    #[error("cannot deregister: {0}")]
    Failed(CallError),
}

impl From<CallError> for DeregisterError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(refusal) if refusal.is("LEASE_MISMATCH") => Self::LeaseMismatch(refusal),
            CallError::Refused(refusal) if refusal.is("INCARNATION_MISMATCH") => {
                Self::IncarnationMismatch(refusal)
            }
            other => Self::Failed(other),
        }
    }
}

/// Why a client cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The registry would refuse the client's name on every stream.
    #[error("`client_id` is `{0}`; it must have 1 to 240 characters of `[A-Za-z0-9._:/@-]`")]
    ClientId(String),
    /// A time of zero would fail every call, or send without pause.
    #[error("`{0}` must be longer than zero")]
    Zero(&'static str),
}

/// The first detail of a kind, if it can be decoded.
fn detail<T: prost::Message + Default>(details: &[prost_types::Any], kind: &str) -> Option<T> {
    let found = details.iter().find(|any| any.type_url == kind)?;
    T::decode(found.value.as_slice()).ok()
}

fn name(text: &str) -> Option<Arc<str>> {
    Some(beginning(text, LONGEST_NAME)).filter(|text| !text.is_empty()).map(Into::into)
}

/// At most so many bytes of a text.
fn beginning(text: &str, bytes: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes)).unwrap_or_default()
}

/// What holds of a refusal whatever was sent.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn check(refusal: Refusal) {
    assert!(refusal.message.len() <= LONGEST_MESSAGE);
    for name in [&refusal.reason, &refusal.field].into_iter().flatten() {
        assert!((1..=LONGEST_NAME).contains(&name.len()));
    }
    let text = refusal.to_string();
    assert!(text.len() < LONGEST_MESSAGE + 3 * LONGEST_NAME && text.contains(&*refusal.message));
    assert!(refusal.field.as_ref().is_none_or(|field| text.contains(&**field)), "the field is named");
    let is_final = refusal.is_final();
    let error = RegisterError::from(CallError::Refused(refusal.clone()));
    let superseded = matches!(error, RegisterError::Superseded(_));
    assert_eq!(error.is_passing(), !superseded && !is_final);
    let _ = DeregisterError::from(CallError::Refused(refusal)).to_string();
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::{ErrorDetails, StatusExt as _};

    #[test]
    fn a_status_keeps_its_reason_field_and_delay() {
        let mut details = ErrorDetails::new();
        details.set_error_info("INVALID_FIELD", "registry.v1", std::collections::HashMap::new());
        details.add_bad_request_violation("ttl", "too short");
        details.set_retry_info(Some(Duration::from_secs(2)));
        let status = Status::with_error_details(Code::InvalidArgument, "no", details);
        let refusal = Refusal::from_status(&status);
        assert_eq!(refusal.code, Code::InvalidArgument);
        assert!(refusal.is("INVALID_FIELD"));
        assert_eq!(refusal.field.as_deref(), Some("ttl"));
        assert_eq!(refusal.retry_after, Some(Duration::from_secs(2)));
        assert!(refusal.is_final());
        let text = refusal.to_string();
        assert!(text.contains("INVALID_FIELD") && text.contains("`ttl`") && text.contains("no"), "{text}");
    }

    #[test]
    fn details_that_cannot_be_decoded_are_left_out() {
        let status = Status::with_details(Code::Internal, "odd", vec![0xff, 0xff, 0xff].into());
        let refusal = Refusal::from_status(&status);
        assert_eq!((refusal.code, refusal.reason, refusal.retry_after), (Code::Internal, None, None));
    }

    /// `google.rpc` details as they stand on the wire, with a time to retry after.
    fn retry_after(seconds: i64, nanos: i32) -> Status {
        let retry_delay = Some(prost_types::Duration { seconds, nanos });
        let value = pb::RetryInfo { retry_delay }.encode_to_vec();
        let any = prost_types::Any { type_url: tonic_types::RetryInfo::TYPE_URL.to_owned(), value };
        let details = pb::Status { code: 14, message: String::new(), details: vec![any] };
        Status::with_details(Code::Unavailable, "later", details.encode_to_vec().into())
    }

    #[test]
    fn a_time_to_retry_after_at_the_ends_of_its_range_is_right_or_none_and_panics_nobody() {
        let read = |seconds, nanos| Refusal::from_status(&retry_after(seconds, nanos)).retry_after;
        assert_eq!(read(1, 5), Some(Duration::new(1, 5)));
        for (seconds, nanos) in [(i64::MIN, 0), (i64::MIN, i32::MIN), (-1, 0), (0, i32::MAX)] {
            assert_eq!(read(seconds, nanos), None, "{seconds} s, {nanos} ns");
        }
        assert!(read(i64::MAX, 999_999_999).is_some());
    }

    #[test]
    fn of_words_without_end_the_beginning_is_kept() {
        let error = v1::ViewError {
            code: 3,
            message: "\u{e4}".repeat(1 << 20),
            reason: "R".repeat(1 << 20),
            field: "f".repeat(1 << 20),
            retry_after: None,
        };
        let refusal = Refusal::from_view_error(&error);
        assert_eq!(refusal.message.len(), LONGEST_MESSAGE);
        assert!(refusal.to_string().len() < 8 << 10);
        check(refusal);
        check(Refusal::from_status(&Status::invalid_argument("m".repeat(1 << 20))));
    }

    #[test]
    fn reasons_become_variants() {
        let refusal = |reason: &str| {
            let mut details = ErrorDetails::new();
            details.set_error_info(reason, "registry.v1", std::collections::HashMap::new());
            let status = Status::with_error_details(Code::FailedPrecondition, "no", details);
            CallError::Refused(Refusal::from_status(&status))
        };
        assert!(matches!(RegisterError::from(refusal("SUPERSEDED")), RegisterError::Superseded(_)));
        assert!(matches!(RegisterError::from(refusal("QUEUE_FULL")), RegisterError::Failed(_)));
        assert!(matches!(
            DeregisterError::from(refusal("LEASE_MISMATCH")),
            DeregisterError::LeaseMismatch(_)
        ));
        assert!(matches!(
            DeregisterError::from(refusal("INCARNATION_MISMATCH")),
            DeregisterError::IncarnationMismatch(_)
        ));
    }
}
