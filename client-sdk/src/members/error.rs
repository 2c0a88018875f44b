//! Why a request found no instance to go to.

use std::{error::Error, sync::Arc, time::Duration};

use crate::balance::{LoadBalanceError, PickError};

/// Any error, shared.
pub(crate) type SharedError = Arc<dyn Error + Send + Sync>;

/// Why a request found no instance to go to. It was sent to none, so even one that is not idempotent may be made again.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
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
    /// Too many requests wait for an instance already.
    #[error(
        "{limit} requests to {endpoint} wait for an instance already, which is the queue limit; try again later"
    )]
    QueueFull {
        /// The endpoint.
        endpoint: String,
        /// The limit.
        limit: usize,
    },
    /// Each instance that the request could go to has as many requests as it may have, and the request may not wait, or waited
    /// for too long, or too many wait already.
    #[error("{}", overloaded(endpoint, *limit, *pending))]
    Overloaded {
        /// The endpoint.
        endpoint: String,
        /// How many requests an instance may have at once.
        limit: usize,
        /// How many requests may wait for a place. `None`: none may.
        pending: Option<usize>,
    },
    /// The request's own deadline passed while it waited.
    #[error("the deadline of {} ms passed: {reason}", timeout.as_millis())]
    DeadlineExceeded {
        /// The whole time that the caller gave the request.
        timeout: Duration,
        /// What it waited for.
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
}

impl RouteError {
    /// The reason in a word, for counting.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::NoInstances { .. } => "no_instances",
            Self::AllUnavailable { .. } => "all_unavailable",
            Self::QueueFull { .. } => "queue_full",
            Self::Overloaded { .. } => "overloaded",
            Self::DeadlineExceeded { .. } => "deadline_exceeded",
            Self::Discovery { .. } => "discovery",
            Self::Pick { .. } => "pick",
            Self::LoadBalance { .. } => "load_balance",
        }
    }

    /// What a load balancer's refusal means.
    pub(super) fn refused(endpoint: String, refusal: LoadBalanceError) -> Self {
        match refusal {
            LoadBalanceError::NoInstances { reason, .. } => Self::NoInstances { endpoint, reason },
            LoadBalanceError::Discover { source, .. } => Self::Discovery { endpoint, source: Some(source) },
            LoadBalanceError::Pick { source, .. } => Self::Pick { endpoint, source },
            source @ LoadBalanceError::Other(_) => Self::LoadBalance { endpoint, source },
        }
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

fn overloaded(endpoint: &str, limit: usize, pending: Option<usize>) -> String {
    let waiting = match pending {
        None => "requests are set not to wait".to_owned(),
        Some(pending) => format!("at most {pending} requests may wait"),
    };
    format!(
        "every instance of {endpoint} that could take the request has {limit} in flight, which is the limit, and {waiting}; \
         try again later, or raise `max_in_flight` or `max_pending`"
    )
}

fn reason(source: Option<&SharedError>) -> String {
    source.map_or_else(|| "no answer yet".to_owned(), ToString::to_string)
}

/// An error with all its sources: those of libraries keep what really happened there.
pub(crate) fn innermost(error: &SharedError) -> String {
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
