//! Watching a service from the command line: prints what comes (`+`), changes (`~`) and goes (`-`).
//!
//! [`follow`] holds the newest state of a view and wakes up when it is another one, so a reader that is slow sees fewer
//! steps but never misses where they led. While the registry is away the last known state stays, and the error says so.
//!
//! ```text
//! cargo run -p examples --bin watch -- greeter
//! ```

#![allow(clippy::print_stdout)] // printing is what it is for

use std::{error::Error, sync::Arc};

use clap::Parser;
use client_sdk::{
    client::RegistryClient,
    discover::{RegistryDiscover, follow},
    model::{Address, Change, Endpoint, Instance, InstanceList},
    runtime::Runtime,
};

/// Prints the instances of a service as they come (+), change (~) and go (-), until Ctrl-C.
#[derive(Debug, Parser)]
struct Args {
    /// The service
    service: String,

    /// Its namespace
    #[arg(long, default_value = "default")]
    namespace: String,

    /// Where the registry listens
    #[arg(long, env = "REGISTRY_ENDPOINT", default_value = "127.0.0.1:7400")]
    registry: Address,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Args { service, namespace, registry } = Args::parse();
    let client = RegistryClient::builder().endpoint(registry).build()?;
    let discover = RegistryDiscover::builder(client).build();
    let endpoint = Endpoint::builder(service).namespace(namespace).build();
    let mut followed = follow(Arc::new(discover), endpoint.clone(), &Runtime::tokio());

    let mut known: Option<InstanceList> = None;
    let mut problem = None;
    loop {
        let state = followed.receiver().borrow_and_update().clone();
        if let Some(view) = state.view {
            let before = known.clone().unwrap_or_default();
            let change = Change::between((), &before, Arc::clone(&view.instances), view.version);
            change.removed.iter().for_each(|instance| println!("- {}", line(instance)));
            change.updated.iter().for_each(|instance| println!("~ {}", line(instance)));
            change.added.iter().for_each(|instance| println!("+ {}", line(instance)));
            if known.is_none() || !change.is_empty() {
                println!("= {endpoint}: {} instances", view.instances.len());
            }
            known = Some(view.instances);
        }
        let now = state.error.map(|error| error.to_string());
        if now != problem {
            println!("! {}", now.as_deref().unwrap_or("the registry is back"));
            problem = now;
        }
        followed.receiver().changed().await?;
    }
}

fn line(instance: &Instance) -> String {
    let Instance { id, address, weight, status, .. } = instance;
    let held = if instance.held { ", held" } else { "" };
    format!("{id} at {address}, weight {weight}, {status:?}{held}")
}
