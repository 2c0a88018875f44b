//! Why an instance is not connected.

use std::{error::Error, io, sync::Arc, time::Duration};

use crate::model::Address;

/// Why a connection could not be opened, or did not last. The source of a
/// [`RouteError::AllUnavailable`](crate::channel::RouteError::AllUnavailable) when nothing else is known.
#[derive(Debug, thiserror::Error)]
#[error("{address}: {problem}")]
pub struct ConnectError {
    address: Address,
    #[source]
    problem: ConnectProblem,
}

/// What a [`ConnectError`] is about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectProblem {
    /// The address could not be connected to.
    #[error("{0}")]
    Io(io::Error),
    /// It took longer than the connect timeout.
    #[error("no connection within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// TLS is asked for, and nothing says which name the instance's certificate should be for.
    #[error(
        "instance `{instance}` has no TLS server name, for {reason}; give it the tag `tls.server-name`, or name it with \
         `Tls::server_name` or `Tls::server_name_by`"
    )]
    NoServerName {
        /// The instance's id.
        instance: Arc<str>,
        /// Why nothing says it.
        reason: &'static str,
    },
    /// TLS is asked for, and what should be the name in the instance's certificate is not a name.
    #[error(
        "instance `{instance}`: the TLS server name `{name}` is neither a DNS name nor an IP address; correct its tag \
         `tls.server-name`, its address's host, or what `Tls::server_name` or `Tls::server_name_by` says"
    )]
    BadServerName {
        /// The instance's id.
        instance: Arc<str>,
        /// What should be its name.
        name: String,
    },
    /// The TLS handshake failed: whose certificate it is, who signed it, or that the peer does not speak TLS.
    #[error("TLS handshake with `{server_name}` failed: {source}")]
    Tls {
        /// The name that was asked for.
        server_name: String,
        /// What TLS says.
        source: io::Error,
    },
    /// The TLS handshake went well, but the peer does not speak HTTP/2 over it.
    #[error(
        "`{server_name}` did not agree on HTTP/2 (ALPN `h2`) in the TLS handshake; is it a gRPC server, and does its \
         TLS offer `h2`?"
    )]
    NoHttp2 {
        /// The name that was asked for.
        server_name: String,
    },
    /// The HTTP/2 handshake failed.
    #[error("HTTP/2 handshake failed: {0}")]
    Handshake(Box<dyn Error + Send + Sync>),
    /// The connection was closed, or said something else, where the peer's SETTINGS should have come.
    #[error("closed before its HTTP/2 greeting{}; is it an HTTP/2 server?", because(.0.as_ref()))]
    NoGreeting(Option<io::Error>),
    /// The peer closed the connection so soon after its greeting that it counts as a failure.
    #[error("closed {} ms after it was opened", .0.as_millis())]
    Brief(Duration),
}

impl ConnectError {
    pub(super) fn new(address: Address, problem: ConnectProblem) -> Self {
        Self { address, problem }
    }

    /// Where to.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What is wrong.
    pub fn problem(&self) -> &ConnectProblem {
        &self.problem
    }
}

fn because(error: Option<&io::Error>) -> String {
    error.map(|error| format!(" ({error})")).unwrap_or_default()
}
