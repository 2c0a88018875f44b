//! A channel with an aperture: it uses as many of the instances as the demand asks for.
//!
//! Six greeters are there, and one program that calls them. With next to nothing to do it is connected to one of them. Then
//! eighteen callers call at a time: it connects to further greeters, in an order of its own. When they have stopped, it gives
//! up one after the other.
//!
//! Needs nothing else to run:
//!
//! ```text
//! cargo run -p examples --bin aperture
//! ```

#![allow(clippy::print_stdout)] // printing is what it is for

use std::{error::Error, sync::Arc, time::Duration};

use client_sdk::{
    balance::CallerOrder,
    channel::{Aperture, BalancedChannel, Snapshot},
    discover::StaticDiscover,
    model::Endpoint,
    runtime::{Runtime, Task},
};
use examples::{
    LocalGreeter,
    proto::{GreetRequest, greeter_client::GreeterClient},
};

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tokio::time::timeout(PATIENCE, story()).await?
}

async fn story() -> Result<(), Box<dyn Error>> {
    let mut greeters = Vec::new();
    for name in ["alice", "bob", "carol", "dave", "erin", "frank"] {
        greeters.push(LocalGreeter::taking(name, Duration::from_millis(20)).await?);
    }
    let discover: StaticDiscover = greeters.iter().map(LocalGreeter::address).collect();
    // The defaults are for services, not for stories: here everything goes ten times as fast.
    let aperture = Aperture::builder()
        .min(1)
        .target(4)
        .smoothing(Duration::from_millis(200))
        .idle_time(Duration::from_millis(500))
        .cool_down(Duration::from_secs(1))
        .build()?;
    let channel = BalancedChannel::builder(Arc::new(discover), Endpoint::new("greeter"))
        .caller(CallerOrder::named("the story"))
        .aperture(aperture)
        .build();

    let now = channel.wait_until(|now| now.chosen() == 1).await;
    println!("six greeters are there, and nobody calls: {}", how_wide(&now));

    println!("eighteen callers call, and four calls at a time are a greeter's worth");
    let callers: Vec<Task> = (0..18).map(|_| calling(&channel)).collect();
    follow(&channel, 5).await;

    println!("they have stopped");
    drop(callers);
    follow(&channel, 1).await;
    Ok(())
}

/// Calls one after the other, until it is dropped.
fn calling(channel: &BalancedChannel) -> Task {
    let mut greeter = GreeterClient::new(channel.clone());
    Runtime::tokio()
        .spawn(async move { while greeter.greet(GreetRequest { name: "you".to_owned() }).await.is_ok() {} })
}

/// Says how wide it is whenever that is another one, until it is that wide and connected.
async fn follow(channel: &BalancedChannel, wide: usize) {
    let mut before = usize::MAX;
    while before != wide {
        let now = channel.wait_until(|now| now.chosen() == size(now) && size(now) != before).await;
        println!("  {}", how_wide(&now));
        before = size(&now);
    }
}

fn size(now: &Snapshot) -> usize {
    now.aperture.as_ref().map_or(0, |aperture| aperture.size)
}

fn how_wide(now: &Snapshot) -> String {
    let Some(aperture) = &now.aperture else { return "no aperture".to_owned() };
    let (connected, there, estimate) = (now.chosen(), aperture.available, aperture.estimate);
    format!("{connected} of {there} are connected, {estimate:.1} are needed")
}
