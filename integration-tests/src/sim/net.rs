//! The simulated network, as both sides are given it: a connector and a stream of accepted connections.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use client_sdk::{
    model::{Address, AddressKind},
    runtime::{BoxFuture, Connect, Io},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::transport::server::Connected;
use turmoil::net::{TcpListener, TcpStream};

/// Where registries listen.
pub const REGISTRY_PORT: u16 = 7400;
/// Where instances listen.
pub const SERVICE_PORT: u16 = 8080;
/// Connections that wait to be taken at most.
const BACKLOG: usize = 64;

/// Connects to `host:port` on the simulated network.
#[derive(Clone, Copy, Debug, Default)]
pub struct Network;

impl Connect for Network {
    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
        Box::pin(async move {
            match address.kind() {
                AddressKind::Tcp { host, port } => {
                    let stream = TcpStream::connect((host, port)).await?;
                    Ok(Box::new(stream) as Box<dyn Io>)
                }
                AddressKind::Unix(_) => {
                    Err(io::Error::new(io::ErrorKind::Unsupported, "no Unix sockets here"))
                }
            }
        })
    }
}

/// A connection that a server accepted.
#[derive(Debug)]
pub struct Accepted(TcpStream);

/// Listens on a port of the host that this runs on.
pub async fn incoming(port: u16) -> io::Result<impl Stream<Item = io::Result<Accepted>> + Send + 'static> {
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    let (accepted, connections) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        loop {
            let connection = tokio::select! {
                biased;
                () = accepted.closed() => return,
                connection = listener.accept() => connection,
            };
            let connection = connection.map(|(stream, _)| Accepted(stream));
            if accepted.send(connection).await.is_err() {
                return;
            }
        }
    });
    Ok(ReceiverStream::new(connections))
}

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
