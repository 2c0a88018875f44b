//! Why a call did not get its answer: one type, and its one mapping to [`tonic::Status`].
//!
//! The channel answers with a `Status` whose source is the [`ChannelError`], so generated clients show the right code
//! and whoever wants the reason asks [`ChannelError::of`].

use std::{error::Error, sync::Arc, time::Duration};

use tonic::{Code, Status};

use crate::{
    balance::{LoadBalanceError, PickError},
    model::Address,
};

/// Any error, shared.
pub(super) type SharedError = Arc<dyn Error + Send + Sync>;

/// Why a call through a [`BalancedChannel`](super::BalancedChannel) failed.
///
/// | error | code | the request |
/// |---|---|---|
/// | [`NoInstances`](Self::NoInstances), [`AllUnavailable`](Self::AllUnavailable), [`Discovery`](Self::Discovery), [`LoadBalance`](Self::LoadBalance), [`NotReplayable`](Self::NotReplayable) | `UNAVAILABLE` | was not processed |
/// | [`QueueFull`](Self::QueueFull) | `RESOURCE_EXHAUSTED` | was not processed |
/// | [`Pick`](Self::Pick) | `INVALID_ARGUMENT`; `UNAVAILABLE` if the policy chose none | was not processed |
/// | [`DeadlineExceeded`](Self::DeadlineExceeded) | `DEADLINE_EXCEEDED` | `sent` tells |
/// | [`Lost`](Self::Lost) | `UNAVAILABLE` | may have been processed |
/// | [`Reset`](Self::Reset) | by the reset's reason | may have been processed |
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The view is known, and nothing in it takes requests.
    #[error("no instance of {endpoint} takes requests: {reason}")]
    NoInstances {
        /// The endpoint.
        endpoint: String,
        /// How many there are, and why none is chosen.
        reason: String,
    },
    /// There are instances that take requests, and none could be given this one.
    #[error("{}", all_unavailable(endpoint, *instances, *connected, last.as_ref()))]
    AllUnavailable {
        /// The endpoint.
        endpoint: String,
        /// How many instances may be chosen.
        instances: usize,
        /// How many of them are connected, and did not take the request.
        connected: usize,
        /// The last thing that went wrong.
        last: Option<Arc<dyn Error + Send + Sync>>,
    },
    /// Too many calls wait for an instance already.
    #[error(
        "{limit} calls to {endpoint} wait for an instance already, which is the channel's queue limit; try again later"
    )]
    QueueFull {
        /// The endpoint.
        endpoint: String,
        /// The limit.
        limit: usize,
    },
    /// The call's own deadline (`grpc-timeout`) passed.
    #[error("the deadline of {} ms passed: {reason}", timeout.as_millis())]
    DeadlineExceeded {
        /// The whole time that the caller gave the call.
        timeout: Duration,
        /// Whether the request had been sent.
        sent: bool,
        /// What the call waited for.
        reason: String,
    },
    /// No view is known yet.
    #[error("{endpoint} is not discovered yet: {}", reason(source.as_ref()))]
    Discovery {
        /// The endpoint.
        endpoint: String,
        /// The discovery's own error. `None`: no answer yet.
        source: Option<Arc<dyn Error + Send + Sync>>,
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
    /// The policy did not choose.
    #[error("cannot choose an instance of {endpoint}: {source}")]
    Pick {
        /// The endpoint.
        endpoint: String,
        /// The policy's own error.
        source: PickError,
    },
    /// The load balancer did not choose.
    #[error("the load balancer of {endpoint} failed: {source}")]
    LoadBalance {
        /// The endpoint.
        endpoint: String,
        /// The load balancer's own error.
        source: LoadBalanceError,
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
        !matches!(
            self,
            Self::Lost { .. }
                | Self::Reset { .. }
                | Self::Request(_)
                | Self::DeadlineExceeded { sent: true, .. }
        )
    }

    fn code(&self) -> Code {
        match self {
            Self::NoInstances { .. }
            | Self::AllUnavailable { .. }
            | Self::Discovery { .. }
            | Self::LoadBalance { .. }
            | Self::NotReplayable { .. }
            | Self::Pick { source: PickError::NoInstances, .. }
            | Self::Lost { .. } => Code::Unavailable,
            Self::QueueFull { .. } => Code::ResourceExhausted,
            Self::DeadlineExceeded { .. } => Code::DeadlineExceeded,
            Self::Pick { .. } => Code::InvalidArgument,
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
    /// The peer refused this one request.
    Refused(hyper::Error),
    /// The peer goes away, and this request came too late.
    GoneAway(hyper::Error),
    /// It may have been processed.
    Unknown(ChannelError),
}

/// Reads the fate of a request out of its connection's error.
///
/// `REFUSED_STREAM`, and a stream beyond the last one of a GOAWAY, were not processed (RFC 9113, 8.7 and 6.8). h2
/// marks streams with a remote GOAWAY only if they are beyond its last stream: the others end by themselves or by the
/// connection's I/O error.
pub(super) fn fate(address: &Address, error: hyper::Error) -> Fate {
    let h2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    if let Some(h2) = h2 {
        let refused = h2.is_reset() && h2.reason() == Some(h2::Reason::REFUSED_STREAM);
        if h2.is_remote() && refused {
            return Fate::Refused(error);
        }
        if h2.is_remote() && h2.is_go_away() {
            return Fate::GoneAway(error);
        }
    }
    Fate::Unknown(in_flight(address, error))
}

/// The error of a call that had left.
pub(super) fn in_flight(address: &Address, error: hyper::Error) -> ChannelError {
    let address = address.clone();
    let reset = error
        .source()
        .and_then(|source| source.downcast_ref::<h2::Error>())
        .filter(|h2| h2.is_reset())
        .and_then(h2::Error::reason);
    match reset {
        Some(reason) => ChannelError::Reset { address, code: code_of(reason), source: Arc::new(error) },
        None => ChannelError::Lost { address, source: Arc::new(error) },
    }
}

/// The table of gRPC over HTTP/2, section "Errors".
fn code_of(reason: h2::Reason) -> Code {
    match reason {
        h2::Reason::REFUSED_STREAM => Code::Unavailable,
        h2::Reason::CANCEL => Code::Cancelled,
        h2::Reason::ENHANCE_YOUR_CALM => Code::ResourceExhausted,
        h2::Reason::INADEQUATE_SECURITY => Code::PermissionDenied,
        _ => Code::Internal,
    }
}

fn all_unavailable(endpoint: &str, instances: usize, connected: usize, last: Option<&SharedError>) -> String {
    let noun = if instances == 1 { "instance" } else { "instances" };
    let why = match connected {
        0 => "none connected".to_owned(),
        n => format!("{n} connected, none took the request"),
    };
    match last {
        Some(last) => format!("{instances} {noun} of {endpoint}, {why}; last: {}", innermost(last)),
        None => format!("{instances} {noun} of {endpoint}, {why}"),
    }
}

fn reason(source: Option<&SharedError>) -> String {
    source.map_or_else(|| "no answer yet".to_owned(), ToString::to_string)
}

/// hyper's errors keep what really happened in their sources.
fn innermost(error: &SharedError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}
