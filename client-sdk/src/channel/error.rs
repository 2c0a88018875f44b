//! Why a call did not get its answer: one type, and its one mapping to [`tonic::Status`].
//!
//! The channel answers with a `Status` whose source is the [`ChannelError`], so generated clients show the right code
//! and whoever wants the reason asks [`ChannelError::of`].

use std::{error::Error, sync::Arc, time::Duration};

use h2::Reason;
use tonic::{Code, Status};

use super::connection::InFlight;
use crate::{
    balance::PickError,
    members::{RouteError, innermost},
    model::Address,
};

/// Why a call through a [`BalancedChannel`](super::BalancedChannel) failed.
///
/// | error | code | the request |
/// |---|---|---|
/// | [`RouteError::NoInstances`], [`AllUnavailable`](RouteError::AllUnavailable), [`Discovery`](RouteError::Discovery), [`LoadBalance`](RouteError::LoadBalance) | `UNAVAILABLE` | was not sent |
/// | [`RouteError::QueueFull`], [`RouteError::Overloaded`] | `RESOURCE_EXHAUSTED` | was not sent |
/// | [`RouteError::Pick`] | `INVALID_ARGUMENT` for a missing hash key, else `UNAVAILABLE` | was not sent |
/// | [`RouteError::DeadlineExceeded`] | `DEADLINE_EXCEEDED` | was not sent |
/// | [`NotReplayable`](Self::NotReplayable) | `UNAVAILABLE` | was not processed |
/// | [`DeadlineExceeded`](Self::DeadlineExceeded) | `DEADLINE_EXCEEDED` | may have been processed |
/// | [`Lost`](Self::Lost) | `UNAVAILABLE` | may have been processed |
/// | [`TooSlow`](Self::TooSlow) | `UNAVAILABLE` | may have been processed |
/// | [`Reset`](Self::Reset) | by the reset's reason | may have been processed |
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// No instance could be given the call.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The call's own deadline (`grpc-timeout`) passed after the request had been sent.
    #[error("the deadline of {} ms passed: {reason}", timeout.as_millis())]
    DeadlineExceeded {
        /// The whole time that the caller gave the call.
        timeout: Duration,
        /// What the call waited for.
        reason: String,
    },
    /// The connection ended after the request had been written to it: it may have been processed, or not.
    #[error(
        "the connection to {address} was lost with the call in flight, which may have been processed: {}",
        innermost(source)
    )]
    Lost {
        /// The instance's address.
        address: Address,
        /// What the connection says.
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The instance reset the call.
    #[error("{address} reset the call: {}", innermost(source))]
    Reset {
        /// The instance's address.
        address: Address,
        /// The code that the gRPC protocol gives to the reset's reason.
        code: Code,
        /// The reset.
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The request was not processed, but more of its body was sent than the channel keeps, so no other instance can
    /// be given it.
    #[error(
        "{address} did not take the request and it cannot go elsewhere, for over {limit} B of its body are gone: {}",
        innermost(source)
    )]
    NotReplayable {
        /// The instance's address.
        address: Address,
        /// How much of a body is kept, in bytes.
        limit: usize,
        /// Why the instance did not take it.
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The instance had no answer within the per-try timeout of the call's method, and nothing came of giving it to another
    /// one instead.
    #[error("{address} had no answer within {} ms, and no other instance took the call", timeout.as_millis())]
    TooSlow {
        /// The instance's address.
        address: Address,
        /// The per-try timeout.
        timeout: Duration,
    },
    /// The caller's own stream of requests failed.
    #[error("the request's own stream failed: {0}")]
    Request(Status),
}

impl ChannelError {
    /// The error behind a status that a generated client returned, if the status is the channel's own.
    pub fn of(status: &Status) -> Option<&Self> {
        status.source()?.downcast_ref()
    }

    /// Whether the request certainly was not processed, so that even a call that is not idempotent may be made again.
    pub fn never_left(&self) -> bool {
        matches!(self, Self::Route(_) | Self::NotReplayable { .. })
    }

    fn code(&self) -> Code {
        match self {
            // Not `UNAVAILABLE`, as in gRFC A32: whoever retries that would do so on an overload.
            Self::Route(RouteError::QueueFull { .. } | RouteError::Overloaded { .. }) => {
                Code::ResourceExhausted
            }
            Self::Route(RouteError::DeadlineExceeded { .. }) | Self::DeadlineExceeded { .. } => {
                Code::DeadlineExceeded
            }
            Self::Route(RouteError::Pick { source: PickError::NoHashKey, .. }) => Code::InvalidArgument,
            Self::Route(_) | Self::NotReplayable { .. } | Self::Lost { .. } | Self::TooSlow { .. } => {
                Code::Unavailable
            }
            Self::Reset { code, .. } => *code,
            Self::Request(status) => status.code(),
        }
    }
}

impl From<ChannelError> for Status {
    fn from(error: ChannelError) -> Self {
        if let ChannelError::Request(status) = error {
            return status;
        }
        let mut status = Status::new(error.code(), error.to_string());
        status.set_source(Arc::new(error));
        status
    }
}

/// What became of a request that a connection failed.
pub(super) enum Fate {
    /// It was never written to the peer.
    NeverLeft(h2::Error),
    /// The peer refused this one request.
    Refused(h2::Error),
    /// The peer goes away, and this request came too late.
    GoneAway(h2::Error),
    /// It may have been processed.
    Unknown(ChannelError),
}

/// Reads the fate of a request out of its stream's error.
///
/// `REFUSED_STREAM`, and a stream beyond the last one of a GOAWAY, were not processed (RFC 9113, 8.7 and 6.8). h2
/// marks streams with a remote GOAWAY only if they are beyond its last stream: the others end by themselves or by the
/// connection's I/O error.
pub(super) fn fate(call: &InFlight, error: h2::Error, never_sent: bool) -> Fate {
    if error.is_remote() && error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM) {
        Fate::Refused(error)
    } else if error.is_remote() && error.is_go_away() {
        Fate::GoneAway(error)
    } else if never_sent {
        Fate::NeverLeft(error)
    } else {
        Fate::Unknown(in_flight(call, error))
    }
}

/// The error of a call that had left.
pub(super) fn in_flight(call: &InFlight, error: h2::Error) -> ChannelError {
    let address = call.address().clone();
    if let Some(unanswered) = call.given_up() {
        return ChannelError::Lost { address, source: Arc::new(unanswered) };
    }
    match error.reason().filter(|_| error.is_reset()) {
        Some(reason) => ChannelError::Reset { address, code: code_of(reason), source: Arc::new(error) },
        None => ChannelError::Lost { address, source: Arc::new(error) },
    }
}

/// The table of gRPC over HTTP/2, section "Errors".
fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::REFUSED_STREAM => Code::Unavailable,
        Reason::CANCEL => Code::Cancelled,
        Reason::ENHANCE_YOUR_CALM => Code::ResourceExhausted,
        Reason::INADEQUATE_SECURITY => Code::PermissionDenied,
        _ => Code::Internal,
    }
}
