//! A service that registers itself, and leaves without failing a call.
//!
//! It listens first and registers then, so that nobody is sent to a port where nobody listens. The registration keeps
//! itself alive in the background: it is renewed, and made again if the registry forgot it. On Ctrl-C or SIGTERM the
//! greeter drains: it tells the callers to go elsewhere, waits until they know, leaves the registry, finishes the calls
//! in flight, and ends.
//!
//! ```text
//! cargo run -p examples --bin greeter -- --name alice --weight 3
//! ```

#![allow(clippy::print_stdout)] // printing is what it is for

use std::{error::Error, net::SocketAddr, time::Duration};

use clap::Parser;
use client_sdk::{
    client::{MissingRegistry, RegistryClient},
    model::{Address, Instance},
    registration::Registration,
};
use examples::{NamedGreeter, proto::greeter_server::GreeterServer, stop_signal};
use tokio::net::TcpListener;
use tonic::transport::{Server, server::TcpIncoming};

/// A greeter that registers itself, and drains on Ctrl-C or SIGTERM.
#[derive(Debug, Parser)]
struct Args {
    /// Its name: in its answers, and as its id in the registry
    #[arg(long, default_value = "alice")]
    name: String,

    /// Its share of the calls, relative to the other greeters
    #[arg(long, default_value_t = 1)]
    weight: u32,

    /// How long it stays registered without a renewal
    #[arg(long, default_value = "15s", value_parser = humantime::parse_duration)]
    ttl: Duration,

    /// How long an answer takes
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    takes: Duration,

    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,

    /// Where the registry listens
    #[arg(long, env = "REGISTRY_ENDPOINT", default_value = "127.0.0.1:7400")]
    registry: Address,
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn Error>> {
    let Args { name, weight, ttl, takes, listen, registry } = Args::parse();
    let stop = stop_signal()?;

    let listener = TcpListener::bind(listen).await?;
    let address: Address = listener.local_addr()?.into();
    let instance = Instance::builder(address.clone()).id(name.as_str()).weight(weight).build();
    let registration = Registration::builder(RegistryClient::builder().endpoint(registry).build()?)
        .service("greeter")
        .instance(instance)
        .ttl(ttl)
        .missing_registry(MissingRegistry::Wait)
        .register()
        .await?;
    println!("{name}: registered at {address} with weight {weight}");

    let leave = async {
        stop.await;
        println!("{name}: draining");
        if let Err(problem) = registration.drain().await {
            println!("{name}: {problem}");
        }
    };
    let greeter = GreeterServer::new(NamedGreeter { name: name.clone(), takes });
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Server::builder().add_service(greeter).serve_with_incoming_shutdown(incoming, leave).await?;
    println!("{name}: ended");
    Ok(())
}
