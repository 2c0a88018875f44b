//! Opens one HTTP/2 connection: the byte stream, TLS if set, and the peer's greeting, all within the connect timeout.

use std::{future::Future, io, sync::Arc};

use http::uri::{Authority, Scheme};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::error::ConnectProblem;
use crate::{
    channel::{
        greeting::{Greeting, greeted},
        request_body::RequestBody,
        settings::Settings,
    },
    members::Meters,
    model::{Address, AddressKind, Instance},
    runtime::{BoxFuture, Io, Runtime},
};

/// The future of a connection: it ends when no more requests can be given to it.
pub(super) type Running = BoxFuture<'static, hyper::Result<()>>;

/// What requests over one connection say of where they go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::channel) struct Origin {
    pub(in crate::channel) scheme: Scheme,
    pub(in crate::channel) authority: Authority,
}

/// A connection whose peer has greeted.
pub(super) struct Opened {
    pub(super) sender: SendRequest<RequestBody>,
    pub(super) running: Running,
    pub(super) origin: Origin,
    /// How many streams the peer allows at once, if it says so.
    pub(super) streams: Option<u32>,
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
        let (io, greeting) = Greeting::new(io);
        let (sender, running) = http2::Builder::new(Executor(self.runtime.clone()))
            .timer(TokioTimer::new())
            .keep_alive_interval(self.settings.keepalive_interval)
            .keep_alive_timeout(self.settings.keepalive_timeout)
            .keep_alive_while_idle(self.settings.keepalive_while_idle)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| ConnectProblem::Handshake(error.into()))?;
        let mut running: Running = Box::pin(running);
        let mut greeted = Box::pin(greeted(greeting));
        let greeting = tokio::select! {
            biased;
            greeting = &mut greeted => greeting,
            // The stream is let go of a moment later, and what it ended with is said then.
            _ = &mut running => greeted.await.and(Err(None)),
        };
        let streams = greeting.map_err(ConnectProblem::NoGreeting)?;
        Ok(Opened { sender, running, origin, streams })
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

/// hyper's tasks, on our runtime. They end with their connection.
#[derive(Clone)]
struct Executor(Runtime);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Executor {
    fn execute(&self, task: F) {
        self.0.detach(task);
    }
}
