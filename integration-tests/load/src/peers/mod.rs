//! Who is measured, in one vocabulary: instances of services under leases, read, renewed and watched.
//!
//! | file | who | an instance is | a watch is |
//! |---|---|---|---|
//! | [`ours`] | the registry | registered under a lease of its own | a view of a `Subscribe` stream |
//! | [`etcd`] | etcd, in two versions | a key with a lease of its own | a range of keys on a `Watch` stream |
//! | [`zookeeper`] | ZooKeeper | an ephemeral node of the caller's session | a persistent recursive watch (3.6 or later) |
//! | [`floor`] | gRPC itself, by tonic's own server | bytes that are answered | bytes that are streamed |
//!
//! Every peer is driven by a client that does little else, since load and servers share the machine: those that speak gRPC by
//! [`grpc`], and what they tell is read where it lies ([`reader`]); ZooKeeper by tasks that write and read its session.

pub(crate) mod etcd;
pub(crate) mod floor;
pub(crate) mod grpc;
pub(crate) mod ours;
mod reader;
pub(crate) mod zookeeper;

use std::{path::PathBuf, time::Duration};

use crate::{failure::Result, process::Process};

/// What every server is started with.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Where the servers' directories are made.
    pub(crate) directory: PathBuf,
    /// The program of etcd.
    pub(crate) etcd: PathBuf,
    /// The program of a newer one.
    pub(crate) newer_etcd: Option<PathBuf>,
    /// The archive of ZooKeeper.
    pub(crate) zookeeper: PathBuf,
    /// Whether the workers of our server and of the floor each keep to a processor of their own.
    pub(crate) pinned: bool,
    /// Whether our server may hold what expires.
    pub(crate) hold: bool,
}

/// An instance: which one, of which service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// The service's number.
    pub(crate) service: u32,
    /// The instance's number, unique over all services.
    pub(crate) instance: u32,
}

impl Place {
    /// The service's name.
    pub(crate) fn service_name(self) -> String {
        service_name(self.service)
    }

    /// The instance's id: always of one length.
    pub(crate) fn id(self) -> String {
        format!("i-{:08}", self.instance)
    }

    /// The instance's address: always of one length.
    pub(crate) fn address(self) -> String {
        let [_, a, b, c] = self.instance.to_be_bytes();
        format!("10.{}.{}.{}:8080", 100 + a % 100, 100 + b % 100, 100 + c % 100)
    }
}

/// A service's name.
pub(crate) fn service_name(service: u32) -> String {
    format!("service-{service:06}")
}

/// What a watcher is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// An instance is there; also what was there at the start.
    There(u32),
    /// It is there, but held.
    Held(u32),
    /// It has gone.
    Gone(u32),
}

/// A peer's watch.
pub(crate) type WatchOf<P> = <<P as Peer>::Connection as Connection>::Watch;

/// A server, started.
pub(crate) trait Peer: Sized + Send + Sync + 'static {
    /// As in tables.
    const NAME: &'static str;
    /// A connection to it.
    type Connection: Connection;

    /// Starts one on an empty directory.
    fn start(setup: &Setup) -> impl Future<Output = Result<Self>> + Send;
    /// Its process.
    fn process(&self) -> &Process;
    /// The same.
    fn process_mut(&mut self) -> &mut Process;
    /// A connection of its own.
    fn connect(&self) -> impl Future<Output = Result<Self::Connection>> + Send;
    /// A watch on a connection of its own, with nothing beside it.
    fn watch(&self, service: u32) -> impl Future<Output = Result<WatchOf<Self>>> + Send {
        async move { self.connect().await?.watch(service).await }
    }
    /// Makes services ready to have instances, where that takes anything.
    fn prepare(&self, services: u32) -> impl Future<Output = Result<()>> + Send {
        let _ = services;
        async { Ok(()) }
    }
    /// Whether watchers on one connection are one to the server, so that many on few connections say nothing.
    const WATCHERS_ARE_ONE: bool = false;
}

/// A connection. Clones share it.
pub(crate) trait Connection: Clone + Send + Sync + 'static {
    /// What an instance is renewed by.
    type Lease: Clone + Send + Sync + 'static;
    /// A stream of renewals.
    type Renewals: Renewals<Self::Lease>;
    /// A watch.
    type Watch: Watch;

    /// Opens what calls go by, so that the first does not wait for it. By default it is open from the start.
    fn ready_to_call(&self) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }
    /// Registers an instance, durably, under a lease of its own where there are such.
    fn register(&self, place: Place, ttl: Duration) -> impl Future<Output = Result<Self::Lease>> + Send;
    /// Registers a further instance under a lease that is there, durably.
    fn register_under(&self, place: Place, lease: &Self::Lease) -> impl Future<Output = Result<()>> + Send;
    /// Takes it away.
    fn deregister(&self, place: Place, lease: &Self::Lease) -> impl Future<Output = Result<()>> + Send;
    /// Reads all instances of a service, and says how many there are.
    fn discover(&self, service: u32) -> impl Future<Output = Result<usize>> + Send;
    /// Opens a stream of renewals.
    fn renewals(&self) -> impl Future<Output = Result<Self::Renewals>> + Send;
    /// A connection whose instances end when [`Self::renewals`] renew them no more, `ttl` later.
    fn silent(&self, ttl: Duration) -> impl Future<Output = Result<Self>> + Send {
        let _ = ttl;
        let own = self.clone();
        async { Ok(own) }
    }
    /// Watches a service, from what is there now.
    fn watch(&self, service: u32) -> impl Future<Output = Result<Self::Watch>> + Send;
}

/// Renews leases.
pub(crate) trait Renewals<Lease>: Send + 'static {
    /// How many leases one message may renew.
    const AT_ONCE: usize;

    /// Renews leases, at most [`Self::AT_ONCE`], and waits until the server says so.
    fn renew(&mut self, leases: &[Lease]) -> impl Future<Output = Result<()>> + Send;
}

/// Follows a service.
pub(crate) trait Watch: Send + 'static {
    /// Waits for news; puts them into `news`, which may stay empty.
    fn next(&mut self, news: &mut Vec<News>) -> impl Future<Output = Result<()>> + Send;
}
