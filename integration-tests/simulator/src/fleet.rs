//! All servers: who is registered, and connecting to them.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use client_sdk::{
    discover::{Discover, View, ViewReceiver, ViewState},
    model::{Address, Change, Endpoint, Instance, Status},
    runtime::{BoxFuture, Runtime},
};
use tokio::sync::watch;
use tower::Service;

use crate::server::{Behaviour, Connection, Failed, Server};

/// Zones that a fleet spreads over, in turns.
pub const ZONES: [&str; 3] = ["a", "b", "c"];
/// The region of all of them.
pub const REGION: &str = "here";

/// Servers, and what a registry would say of them.
#[derive(Debug)]
pub struct Fleet {
    /// All there ever are.
    pub servers: Vec<Arc<Server>>,
    view: watch::Sender<ViewState>,
    runtime: Runtime,
}

impl Fleet {
    /// So many servers; of these the first `registered` are registered.
    pub fn new(servers: usize, registered: usize, runtime: &Runtime) -> Arc<Self> {
        let servers = (0..servers).map(|number| Server::new(number, runtime.random())).collect();
        let view = watch::Sender::new(ViewState::default());
        let fleet = Arc::new(Self { servers, view, runtime: runtime.clone() });
        fleet.publish((0..registered).map(|number| (number, Status::Up)));
        fleet
    }

    /// These are registered, and no others.
    pub fn publish(&self, instances: impl IntoIterator<Item = (usize, Status)>) {
        let instance = |(number, status)| {
            let instance = Instance::builder(address(number)).locality(REGION, zone(number)).status(status);
            Arc::new(instance.build())
        };
        let instances = instances.into_iter().map(instance).collect();
        let view = View { instances, version: Some(self.runtime.next_version()) };
        self.view.send_replace(ViewState { view: Some(view), error: None });
    }

    /// What connects to its servers.
    pub fn connector(self: &Arc<Self>) -> Connector {
        Connector(Arc::clone(self))
    }
}

/// The zone of a server.
pub fn zone(number: usize) -> &'static str {
    ZONES[number % ZONES.len()]
}

/// The address of a server: its number is its port less one.
fn address(number: usize) -> Address {
    format!("server:{}", number + 1).parse().expect("a host and a port")
}

impl Discover for Fleet {
    type Key = ();
    type Error = Infallible;

    async fn discover(&self, _: &Endpoint) -> Result<Vec<Arc<Instance>>, Infallible> {
        Ok(self.view.borrow().view.iter().flat_map(|view| view.instances.iter().cloned()).collect())
    }

    fn key(&self, _: &Endpoint) {}

    fn watch(&self) -> Option<async_broadcast::Receiver<Change<()>>> {
        None
    }

    fn view(&self, _: &Endpoint) -> Option<ViewReceiver> {
        Some(self.view.subscribe())
    }
}

/// Connects to the servers of a fleet.
#[derive(Clone, Debug)]
pub struct Connector(Arc<Fleet>);

impl Service<Address> for Connector {
    type Response = Client;
    type Error = Unreachable;
    type Future = BoxFuture<'static, Result<Client, Unreachable>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unreachable>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, address: Address) -> Self::Future {
        let server = address.as_str().rsplit_once(':').and_then(|(_, port)| port.parse::<usize>().ok());
        let server = server.and_then(|port| self.0.servers.get(port.checked_sub(1)?)).cloned();
        Box::pin(async move {
            let server = server.ok_or(Unreachable(Failed::Refused))?;
            match server.behaviour() {
                Behaviour::Down => Err(Unreachable(Failed::Refused)),
                // Whoever connects gives up after a time.
                Behaviour::CutOff => std::future::pending().await,
                _ => Ok(Client(server.connection())),
            }
        })
    }
}

/// A request: what it is hashed by.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The key.
    pub key: u64,
}

/// Requests to one server over one connection.
#[derive(Debug)]
pub struct Client(Connection);

impl Service<Request> for Client {
    type Response = ();
    type Error = Unreachable;
    type Future = BoxFuture<'static, Result<(), Unreachable>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unreachable>> {
        Poll::Ready(if self.0.is_broken() { Err(Unreachable(Failed::Broken)) } else { Ok(()) })
    }

    fn call(&mut self, _: Request) -> Self::Future {
        let connection = self.0.clone();
        Box::pin(async move { connection.call().await.map_err(Unreachable) })
    }
}

/// What the layer is told.
#[derive(Debug)]
pub struct Unreachable(pub Failed);

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Failed::Error => "the server failed",
            Failed::Broken => "the connection broke",
            Failed::Refused => "connection refused",
        })
    }
}

impl std::error::Error for Unreachable {}
