//! A [`LoadBalance`] of one's own: calls go to the primary, and to its stand-in while the primary cannot be reached.
//!
//! `get_picker` answers with addresses in the order in which to try them; the channel takes the first that is connected
//! and takes requests. `rebalance` hears of every change, so the order is worked out once a change and not once a call.
//!
//! Needs nothing else to run:
//!
//! ```text
//! cargo run -p examples --bin custom_load_balance
//! ```

#![allow(clippy::print_stdout)] // printing is what it is for

use std::{
    collections::HashMap,
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use client_sdk::{
    balance::{LoadBalance, LoadBalanceError},
    channel::BalancedChannel,
    discover::{Discover, WeightedStaticDiscover},
    model::{Address, Change, Endpoint, Instance},
};
use examples::{
    LocalGreeter,
    proto::{GreetRequest, greeter_client::GreeterClient},
};

/// Instances tagged `role: primary` first, then the others. Knows the order for each view that was asked for.
struct PrimaryFirst<K>(Mutex<HashMap<K, Vec<Address>>>);

impl<K> PrimaryFirst<K> {
    /// Never held across an await.
    fn orders(&self) -> MutexGuard<'_, HashMap<K, Vec<Address>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Discover> LoadBalance<D> for PrimaryFirst<D::Key> {
    type InstanceIter = std::vec::IntoIter<Address>;

    async fn get_picker(
        &self,
        endpoint: &Endpoint,
        discover: &D,
    ) -> Result<Self::InstanceIter, LoadBalanceError> {
        let key = discover.key(endpoint);
        if let Some(order) = self.orders().get(&key) {
            return Ok(order.clone().into_iter());
        }
        let failed = |error| LoadBalanceError::Other(Arc::new(error));
        let found = discover.discover(endpoint).await.map_err(failed)?;
        // A change that arrived meanwhile is newer than what was found: it stays.
        Ok(self.orders().entry(key).or_insert_with(|| order(&found)).clone().into_iter())
    }

    fn rebalance(&self, changes: Change<D::Key>) {
        self.orders().insert(changes.key, order(&changes.all));
    }
}

fn order(instances: &[Arc<Instance>]) -> Vec<Address> {
    let mut order: Vec<_> = instances.iter().collect();
    // Stable: otherwise as discovered.
    order.sort_by_key(|instance| instance.tags.get("role").is_none_or(|role| role != "primary"));
    order.into_iter().map(|instance| instance.address.clone()).collect()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (alice, bob) = (LocalGreeter::start("alice").await?, LocalGreeter::start("bob").await?);
    let discover: WeightedStaticDiscover = [
        Instance::builder(alice.address()).build(),
        Instance::builder(bob.address()).tag("role", "primary").build(),
    ]
    .into_iter()
    .collect();
    let channel = BalancedChannel::builder(Arc::new(discover), Endpoint::new("greeter"))
        .load_balancer(PrimaryFirst(Mutex::default()))
        .build();
    let mut greeter = GreeterClient::new(channel.clone());

    channel.wait_until(|now| now.chosen() == 2).await;
    println!("bob is the primary");
    for call in 1..=3 {
        let request = GreetRequest { name: format!("call {call}") };
        println!("  {}", greeter.greet(request).await?.into_inner().text);
    }

    drop(bob);
    channel.wait_until(|now| now.chosen() == 1).await;
    println!("bob has stopped: alice stands in");
    for call in 4..=6 {
        let request = GreetRequest { name: format!("call {call}") };
        println!("  {}", greeter.greet(request).await?.into_inner().text);
    }
    Ok(())
}
