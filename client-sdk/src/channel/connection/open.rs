//! Opens one HTTP/2 connection: the byte stream, TLS if set, and the peer's greeting, all within the connect timeout.

use std::{io, sync::Arc};

use bytes::Bytes;
use h2::{
    PingPong,
    client::{Builder, SendRequest},
};
use http::uri::{Authority, Scheme};

use super::error::ConnectProblem;
use crate::{
    channel::{
        greeting::{Greeting, Traffic, greeted},
        settings::Settings,
    },
    members::Meters,
    model::{Address, AddressKind, Instance},
    runtime::{Io, Runtime},
};

/// How much an instance may send of one answer, and of all on one connection, before somebody reads it. The default of
/// RFC 9113, 6.9.2 (64 KiB) would have a far instance wait after each of them.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 5 << 20;
/// The longest frame, and the longest list of headers, that an instance may send.
const FRAME: u32 = 16 << 10;
const HEADERS: u32 = 16 << 10;
/// How much of one request waits in the connection; what is beyond stays with its caller.
const SEND_BUFFER: usize = 1 << 20;
/// So many malformed answers end a connection.
const MALFORMED: usize = 1024;

/// What drives a connection: it is polled until it ends.
pub(super) type Driven = h2::client::Connection<Greeting, Bytes>;

/// What requests over one connection say of where they go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::channel) struct Origin {
    pub(in crate::channel) scheme: Scheme,
    pub(in crate::channel) authority: Authority,
}

/// A connection whose peer has greeted.
pub(super) struct Opened {
    pub(super) sender: SendRequest<Bytes>,
    pub(super) driven: Driven,
    pub(super) pings: PingPong,
    pub(super) traffic: Arc<Traffic>,
    pub(super) origin: Origin,
}

/// Opens HTTP/2 connections.
#[derive(Clone)]
pub(super) struct Opener {
    pub(super) settings: Arc<Settings>,
    pub(super) runtime: Runtime,
    pub(super) meters: Arc<Meters>,
}

impl Opener {
    pub(super) async fn open(&self, instance: &Instance) -> Result<Opened, ConnectProblem> {
        let limit = self.settings.connect_timeout;
        match tokio::time::timeout(limit, self.handshake(instance)).await {
            Ok(opened) => opened,
            Err(_) => Err(ConnectProblem::Timeout(limit)),
        }
    }

    async fn handshake(&self, instance: &Instance) -> Result<Opened, ConnectProblem> {
        let (io, origin) = self.connect(instance).await?;
        let (io, greeting, traffic) = Greeting::new(io);
        let handshake = |error: h2::Error| ConnectProblem::Handshake(error.into());
        let (sender, mut driven) = protocol().handshake(io).await.map_err(handshake)?;
        let pings = driven.ping_pong().expect("taken once");
        let mut greeted = std::pin::pin!(greeted(greeting));
        let greeting = tokio::select! {
            biased;
            greeting = &mut greeted => Some(greeting),
            _ = &mut driven => None,
        };
        let Some(greeting) = greeting else {
            // With the stream let go of, what it ended with is known.
            drop(driven);
            return Err(ConnectProblem::NoGreeting(greeted.await.err().flatten()));
        };
        greeting.map_err(ConnectProblem::NoGreeting)?;
        Ok(Opened { sender, driven, pings, traffic, origin })
    }

    #[cfg(feature = "tls")]
    async fn connect(&self, instance: &Instance) -> Result<(Box<dyn Io>, Origin), ConnectProblem> {
        // A name that is none is found out before anybody is dialled.
        let named = self.settings.tls.as_ref().map(|tls| tls.name(instance)).transpose()?;
        let io = self.dial(instance).await.map_err(ConnectProblem::Io)?;
        match named {
            Some(named) => Ok((named.handshake(io).await?, named.origin())),
            None => Ok((io, Origin::plain(&instance.address))),
        }
    }

    #[cfg(not(feature = "tls"))]
    async fn connect(&self, instance: &Instance) -> Result<(Box<dyn Io>, Origin), ConnectProblem> {
        let io = self.dial(instance).await.map_err(ConnectProblem::Io)?;
        Ok((io, Origin::plain(&instance.address)))
    }

    async fn dial(&self, instance: &Instance) -> io::Result<Box<dyn Io>> {
        self.runtime.connect(&instance.address).await
    }
}

impl Origin {
    /// Without TLS: the address, or for a socket in the file system `localhost`.
    fn plain(address: &Address) -> Self {
        let authority = match address.kind() {
            AddressKind::Tcp { .. } => address.as_str().parse().ok(),
            AddressKind::Unix(_) => None,
        };
        let authority = authority.unwrap_or_else(|| Authority::from_static("localhost"));
        Self { scheme: Scheme::HTTP, authority }
    }
}

/// How we speak HTTP/2.
fn protocol() -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .max_local_error_reset_streams(Some(MALFORMED));
    builder
}
