//! A caller that prints who answered.
//!
//! The generated client is given a [`BalancedChannel`] in place of a tonic channel; nothing else about it is special.
//! The channel follows the registry: greeters that come get calls, those that drain or go get none, and a registry that
//! is down changes nothing. Start and stop greeters while it runs.
//!
//! ```text
//! cargo run -p examples --bin caller -- --calls 20
//! ```

#![allow(clippy::print_stdout)] // printing is what it is for

use std::{error::Error, sync::Arc, time::Duration};

use clap::Parser;
use client_sdk::{
    channel::BalancedChannel,
    client::RegistryClient,
    discover::RegistryDiscover,
    model::{Address, Endpoint},
};
use examples::proto::{GreetRequest, greeter_client::GreeterClient};

/// Calls the greeters that are registered, and prints who answered.
#[derive(Debug, Parser)]
struct Args {
    /// How many calls to make
    #[arg(long, default_value_t = 10)]
    calls: u64,

    /// The pause between two calls
    #[arg(long, default_value = "200ms", value_parser = humantime::parse_duration)]
    pause: Duration,

    /// Where the registry listens
    #[arg(long, env = "REGISTRY_ENDPOINT", default_value = "127.0.0.1:7400")]
    registry: Address,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Args { calls, pause, registry } = Args::parse();

    let client = RegistryClient::builder().endpoint(registry).build()?;
    let discover = Arc::new(RegistryDiscover::builder(client).build());
    let channel = BalancedChannel::builder(Arc::clone(&discover), Endpoint::new("greeter")).build();
    let mut greeter = GreeterClient::new(channel);

    for call in 1..=calls {
        let request = GreetRequest { name: format!("caller {call}") };
        match greeter.greet(request).await {
            Ok(answer) => println!("{}", answer.into_inner().text),
            Err(status) => println!("call {call} failed: {:?}: {}", status.code(), status.message()),
        }
        tokio::time::sleep(pause).await;
    }

    // No more calls: no greeter that drains has to wait for this process.
    if let Err(problem) = discover.close().await {
        println!("{problem}");
    }
    Ok(())
}
