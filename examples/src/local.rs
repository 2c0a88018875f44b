//! A greeter inside this process, for stories that are not about processes.

use std::{io, net::Ipv4Addr, time::Duration};

use client_sdk::{model::Address, runtime::Runtime};
use tokio::{net::TcpListener, sync::oneshot};
use tonic::transport::{Server, server::TcpIncoming};

use crate::{NamedGreeter, proto::greeter_server::GreeterServer};

/// A greeter on a free port of this machine, registered nowhere. Dropping it stops it: calls in flight end first.
#[derive(Debug)]
pub struct LocalGreeter {
    address: Address,
    _stop: oneshot::Sender<()>,
}

impl LocalGreeter {
    /// Starts a greeter of this name.
    pub async fn start(name: &str) -> io::Result<Self> {
        Self::taking(name, Duration::ZERO).await
    }

    /// Starts a greeter that takes so long to answer.
    pub async fn taking(name: &str, takes: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?.into();
        let (stop, stopped) = oneshot::channel();
        let greeter = NamedGreeter { name: name.to_owned(), takes };
        let server = Server::builder().add_service(GreeterServer::new(greeter));
        let serving = server.serve_with_incoming_shutdown(TcpIncoming::from(listener), async {
            // An error means that the handle is gone, which is the signal.
            let _ = stopped.await;
        });
        Runtime::tokio().detach(async {
            // A transport that fails shows to the callers.
            let _ = serving.await;
        });
        Ok(Self { address, _stop: stop })
    }

    /// Where it listens.
    pub fn address(&self) -> Address {
        self.address.clone()
    }
}
