//! A [`Policy`] of one's own, in twenty lines: calls stay in the caller's zone while an instance is there.
//!
//! `build` runs once a change, `pick` once a call; everything else, from following the instances to connecting, is the
//! channel's. The same policy runs under `Balancer`, `Cached` and the tower layer.
//!
//! Needs nothing else to run:
//!
//! ```text
//! cargo run -p examples --bin custom_policy
//! ```

#![allow(clippy::print_stdout)] // printing is what it is for

use std::{
    collections::BTreeMap,
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use client_sdk::{
    balance::{Pick, PickContext, PickError, Picker, Policy},
    channel::BalancedChannel,
    discover::WeightedStaticDiscover,
    model::{Endpoint, Instance, InstanceList},
};
use examples::{
    LocalGreeter,
    proto::{GreetRequest, greeter_client::GreeterClient},
};

/// In turns among the instances of the caller's zone, or among all if none is there.
struct SameZone(&'static str);

struct InTurn {
    instances: InstanceList,
    turns: Vec<usize>,
    next: AtomicUsize,
}

impl Policy for SameZone {
    type Picker = InTurn;

    fn build(&self, instances: &InstanceList) -> InTurn {
        let near = |index: &usize| *instances[*index].locality.zone == *self.0;
        let all = 0..instances.len();
        let turns: Vec<usize> = all.clone().filter(near).collect();
        let turns = if turns.is_empty() { all.collect() } else { turns };
        InTurn { instances: Arc::clone(instances), turns, next: AtomicUsize::new(0) }
    }
}

impl Picker for InTurn {
    fn pick(&self, _: &PickContext) -> Result<Pick<'_>, PickError> {
        // There is one instance at least.
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.turns.len();
        Pick::new(&self.instances, self.turns[turn])
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let alice = LocalGreeter::start("alice").await?;
    let bob = LocalGreeter::start("bob").await?;
    let carol = LocalGreeter::start("carol").await?;
    let discover: WeightedStaticDiscover = [(&alice, "a"), (&bob, "a"), (&carol, "b")]
        .into_iter()
        .map(|(greeter, zone)| Instance::builder(greeter.address()).locality("here", zone).build())
        .collect();
    let channel =
        BalancedChannel::builder(Arc::new(discover), Endpoint::new("greeter")).policy(SameZone("a")).build();
    let mut greeter = GreeterClient::new(channel.clone());

    channel.wait_until(|now| now.chosen() == 3).await;
    println!("alice and bob are in zone a, as the caller is; carol is in zone b");
    println!("  6 calls: {}", who_answers(&mut greeter).await?);

    drop((alice, bob));
    channel.wait_until(|now| now.chosen() == 1).await;
    println!("alice and bob have stopped");
    println!("  6 calls: {}", who_answers(&mut greeter).await?);
    Ok(())
}

/// Makes six calls: who answered how many.
async fn who_answers(greeter: &mut GreeterClient<BalancedChannel>) -> Result<String, tonic::Status> {
    let mut answered = BTreeMap::new();
    for _ in 0..6 {
        let text = greeter.greet(GreetRequest { name: "you".to_owned() }).await?.into_inner().text;
        let who = text.rsplit(' ').next().unwrap_or_default().to_owned();
        *answered.entry(who).or_insert(0) += 1;
    }
    let answered: Vec<_> = answered.into_iter().map(|(who, count)| format!("{who} {count}")).collect();
    Ok(answered.join(", "))
}
