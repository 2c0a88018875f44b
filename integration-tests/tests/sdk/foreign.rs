//! A `Discover` and a `LoadBalance` by somebody else, with nothing but what the traits demand, over the wire.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use client_sdk::{
    balance::{Balanced, Balancer, LoadBalance, LoadBalanceError, PickContext, RoundRobin, WeightedRandom},
    channel::BalancedChannel,
    discover::Discover,
    model::{Address, Change, Endpoint, Instance},
    runtime::Runtime,
};
use integration_tests::server_setup;

use crate::kit::{Greeter, call, channel, discover, greeter, shares, soon, spreads};

/// A table of services in this process.
struct Table {
    rows: Mutex<HashMap<String, Vec<Arc<Instance>>>>,
    sender: async_broadcast::Sender<Change<String>>,
    _keep: async_broadcast::InactiveReceiver<Change<String>>,
}

#[derive(Debug, thiserror::Error)]
#[error("no row of this name")]
struct NoRow;

impl Table {
    fn of(greeters: &[&Greeter]) -> Arc<Self> {
        let (mut sender, receiver) = async_broadcast::broadcast(4);
        sender.set_overflow(true);
        sender.set_await_active(false);
        let table = Self { rows: Mutex::default(), sender, _keep: receiver.deactivate() };
        table.set(greeters);
        Arc::new(table)
    }

    fn set(&self, greeters: &[&Greeter]) {
        let instances: Vec<_> = greeters
            .iter()
            .map(|greeter| Arc::new(Instance::builder(greeter.address.clone()).build()))
            .collect();
        let before = self.rows.lock().expect("no panic").insert("greeter".to_owned(), instances.clone());
        let before = before.unwrap_or_default();
        let change = Change::between("greeter".to_owned(), &before, instances.into(), None);
        // Nobody may be listening yet.
        let _ = self.sender.try_broadcast(change);
    }
}

impl Discover for Table {
    type Key = String;
    type Error = NoRow;

    async fn discover(&self, endpoint: &Endpoint) -> Result<Vec<Arc<Instance>>, NoRow> {
        self.rows.lock().expect("no panic").get(&*endpoint.service).cloned().ok_or(NoRow)
    }

    fn key(&self, endpoint: &Endpoint) -> String {
        endpoint.service.to_string()
    }

    fn watch(&self) -> Option<async_broadcast::Receiver<Change<String>>> {
        Some(self.sender.new_receiver())
    }
}

/// The last instance of the list first, by id, whatever their state.
#[derive(Clone, Default)]
struct LastFirst {
    changes: Arc<AtomicUsize>,
}

impl<D: Discover> LoadBalance<D> for LastFirst {
    type InstanceIter = std::vec::IntoIter<Address>;

    async fn get_picker(
        &self,
        endpoint: &Endpoint,
        discover: &D,
    ) -> Result<Self::InstanceIter, LoadBalanceError> {
        let mut all =
            discover.discover(endpoint).await.map_err(|error| LoadBalanceError::Other(Arc::new(error)))?;
        all.sort_by(|a, b| b.id.cmp(&a.id));
        Ok(all.iter().map(|instance| instance.address.clone()).collect::<Vec<_>>().into_iter())
    }

    fn rebalance(&self, _: Change<D::Key>) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_foreign_discover_works_under_the_channel_and_the_balancers() {
    let (a, mut b) = (Greeter::unregistered("a").await, Greeter::unregistered("b").await);
    let table = Table::of(&[&a]);
    let runtime = Runtime::tokio();
    let round_robin = channel(&table);
    let random =
        BalancedChannel::builder(Arc::clone(&table), greeter()).policy(WeightedRandom::new(&runtime)).build();
    let balancer = Balancer::builder(Arc::clone(&table), RoundRobin::new(&runtime)).build();
    let mut handle = soon("a handle", balancer.handle(&greeter())).await.expect("discovered");
    assert_eq!(handle.pick(&PickContext::default()).expect("picked").instance().address, a.address);
    for channel in [&round_robin, &random] {
        soon("a", channel.wait_until(|s| s.chosen() == 1)).await;
        assert_eq!(shares(channel, 10).await, [("a".to_owned(), 10)].into());
    }
    table.set(&[&a, &b]);
    for channel in [&round_robin, &random] {
        soon("both", channel.wait_until(|s| s.chosen() == 2)).await;
        let shares = shares(channel, 64).await;
        assert_eq!(shares.values().sum::<usize>(), 64);
        assert_eq!(shares.len(), 2, "{shares:?}");
    }
    b.kill();
    for channel in [&round_robin, &random] {
        // What is written before the broken connection is noticed is lost with it, and counted elsewhere.
        soon("the killed one", channel.wait_until(|s| s.chosen() == 1)).await;
        assert_eq!(shares(channel, 50).await.get("a"), Some(&50), "a killed one is passed over");
    }
    table.set(&[&a]);
    let mut again = soon("a handle", balancer.handle(&greeter())).await.expect("discovered");
    let gone = async {
        while again.pick(&PickContext::default()).expect("picked").instance().address != a.address
            || again.pick(&PickContext::default()).expect("picked").instance().address != a.address
        {
            tokio::task::yield_now().await;
        }
    };
    soon("b to go", gone).await;
}

#[tokio::test]
async fn a_foreign_load_balance_works_over_the_registry_under_the_channel_and_by_itself() {
    let registry = server_setup!().start().await;
    let at = [registry.address()];
    let (a, mut b) = (Greeter::start("a", &at).await, Greeter::start("b", &at).await);
    let (discover, foreign) = (discover(&at), LastFirst::default());
    let channel =
        BalancedChannel::builder(Arc::clone(&discover), greeter()).load_balancer(foreign.clone()).build();
    spreads(&channel, &["a", "b"]).await;
    assert_eq!(shares(&channel, 10).await, [("b".to_owned(), 10)].into(), "its choice");

    let by_itself = LastFirst::default();
    let balanced = Balanced::new(Arc::clone(&discover), Arc::new(by_itself.clone()), &Runtime::tokio());
    let addresses: Vec<Address> =
        soon("addresses", balanced.get(&greeter())).await.expect("discovered").collect();
    assert_eq!(addresses, [b.address.clone(), a.address.clone()]);

    // C2 is not left to a foreign choice: one of weight 0 is passed over.
    let heard = [&foreign, &by_itself].map(|balance| balance.changes.load(Ordering::SeqCst));
    b.registration().update(|instance| instance.weight = 0).await.expect("updated");
    spreads(&channel, &["a"]).await;
    assert_eq!(shares(&channel, 10).await, [("a".to_owned(), 10)].into());
    for (balance, heard) in [&foreign, &by_itself].into_iter().zip(heard) {
        let told = async {
            while balance.changes.load(Ordering::SeqCst) <= heard {
                tokio::task::yield_now().await;
            }
        };
        soon("the change", told).await;
    }
    b.registration().update(|instance| instance.weight = 1).await.expect("updated");
    spreads(&channel, &["a", "b"]).await;
    assert_eq!(call(&channel).await.expect("answered"), "b");
    b.kill();
    spreads(&channel, &["a"]).await;
    assert_eq!(shares(&channel, 20).await.get("a"), Some(&20), "and so is a killed one");
}
