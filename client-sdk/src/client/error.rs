//! Why a call to the registry failed.
//!
//! Owns the one translation of `tonic::Status` into typed errors. Every error keeps the code, the stable reason, the
//! field at fault and the time to retry after, as the registry sent them.

use std::{fmt, sync::Arc, time::Duration};

use registry_proto::v1;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{model::Address, wire_duration::from_wire};

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
        let reason = status.get_details_error_info().map(|info| info.reason);
        let field = status
            .get_details_bad_request()
            .and_then(|bad| bad.field_violations.into_iter().next())
            .map(|violation| violation.field);
        Self {
            code: status.code(),
            message: status.message().into(),
            reason: text(reason),
            field: text(field),
            retry_after: status.get_details_retry_info().and_then(|info| info.retry_delay),
        }
    }

    /// Reads what a stream says about one of its views.
    pub(crate) fn from_view_error(error: v1::ViewError) -> Self {
        Self {
            code: Code::from(error.code),
            message: error.message.into(),
            reason: text(Some(error.reason)),
            field: text(Some(error.field)),
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

fn text(text: Option<String>) -> Option<Arc<str>> {
    text.filter(|text| !text.is_empty()).map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

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
