//! Somebody else's `Discover` and `LoadBalance`, written against the public API only, under the channel.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use client_sdk::{
    balance::{
        Connects, LoadBalance, LoadBalanceError, Pick, PickContext, PickError, Picker, Policy, RoundRobin,
        RoundRobinPicker,
    },
    channel::{BalancedChannel, ChannelError, RouteError},
    discover::{Discover, ViewReceiver},
    model::{Address, Change, Endpoint, Instance, InstanceList, Status},
};
use tokio::sync::Semaphore;
use tonic::Code;

use crate::{
    kit::{Act, Fleet, Peer, Server, who},
    typed,
};

/// A discovery with nothing but what the trait demands.
struct Foreign {
    instances: Mutex<Vec<Arc<Instance>>>,
    sender: async_broadcast::Sender<Change<String>>,
    _keep: async_broadcast::InactiveReceiver<Change<String>>,
}

#[derive(Debug, thiserror::Error)]
#[error("not this one")]
struct NotThisOne;

impl Foreign {
    fn new(instances: Vec<Arc<Instance>>) -> Self {
        let (mut sender, receiver) = async_broadcast::broadcast(16);
        sender.set_overflow(true);
        sender.set_await_active(false);
        Self { instances: Mutex::new(instances), sender, _keep: receiver.deactivate() }
    }

    fn change(&self, instances: Vec<Arc<Instance>>) {
        let before = std::mem::replace(&mut *self.instances.lock().expect("no panic"), instances.clone());
        let change = Change::between("default/greeter".to_owned(), &before, instances.into(), None);
        self.sender.try_broadcast(change).expect("overflows");
    }
}

impl Discover for Foreign {
    type Key = String;
    type Error = NotThisOne;

    async fn discover(&self, endpoint: &Endpoint) -> Result<Vec<Arc<Instance>>, NotThisOne> {
        if &*endpoint.service != "greeter" {
            return Err(NotThisOne);
        }
        Ok(self.instances.lock().expect("no panic").clone())
    }

    fn key(&self, endpoint: &Endpoint) -> String {
        endpoint.to_string()
    }

    fn watch(&self) -> Option<async_broadcast::Receiver<Change<String>>> {
        Some(self.sender.new_receiver())
    }
}

/// The addresses in the order of the list, whatever their state; counts the changes that it is told of.
#[derive(Clone, Default)]
struct InOrder {
    changes: Arc<AtomicUsize>,
}

impl<D: Discover> LoadBalance<D> for InOrder {
    type InstanceIter = std::vec::IntoIter<Address>;

    async fn get_picker(
        &self,
        endpoint: &Endpoint,
        discover: &D,
    ) -> Result<Self::InstanceIter, LoadBalanceError> {
        let instances = discover.discover(endpoint).await.map_err(|error| LoadBalanceError::Discover {
            endpoint: endpoint.to_string(),
            source: Arc::new(error),
        })?;
        Ok(instances.iter().map(|i| i.address.clone()).collect::<Vec<_>>().into_iter())
    }

    fn rebalance(&self, _: Change<D::Key>) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }
}

/// The same address for ever.
struct Stuck(Address);

impl<D: Discover> LoadBalance<D> for Stuck {
    type InstanceIter = std::iter::Repeat<Address>;

    async fn get_picker(&self, _: &Endpoint, _: &D) -> Result<Self::InstanceIter, LoadBalanceError> {
        Ok(std::iter::repeat(self.0.clone()))
    }

    fn rebalance(&self, _: Change<D::Key>) {}
}

fn of(servers: &[&Server]) -> Vec<Arc<Instance>> {
    servers.iter().map(|server| Arc::new(server.instance().build())).collect()
}

#[tokio::test]
async fn a_foreign_discover_works_under_the_channel() {
    let (a, b) = (Server::start("a"), Server::start("b"));
    let foreign = Arc::new(Foreign::new(of(&[&a])));
    let channel = BalancedChannel::builder(Arc::clone(&foreign), Endpoint::new("greeter")).build();
    assert_eq!(who(&channel).await.expect("answered"), "a");
    foreign.change(of(&[&b]));
    channel.wait_until(|s| s.chosen() == 1 && s.instance("a").is_none()).await;
    assert_eq!(who(&channel).await.expect("answered"), "b");

    let channel = BalancedChannel::builder(foreign, Endpoint::new("other")).build();
    let status = who(&channel).await.expect_err("not this one");
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, "default/other is not discovered yet: not this one")
    );
}

#[tokio::test]
async fn a_foreign_load_balance_works_under_the_channel() {
    let (mut a, b, c) = (Server::mortal("a"), Server::start("b"), Server::start("c"));
    let foreign = Arc::new(Foreign::new(of(&[&a, &b, &c])));
    let balance = InOrder::default();
    let channel = BalancedChannel::builder(Arc::clone(&foreign), Endpoint::new("greeter"))
        .load_balancer(balance.clone())
        .build();
    channel.wait_until(|s| s.chosen() == 3).await;
    assert_eq!(balance.changes.load(Ordering::SeqCst), 1, "it is told of the view");
    for _ in 0..5 {
        assert_eq!(who(&channel).await.expect("answered"), "a");
    }
    // The next address is taken for one that is not connected, and for one that takes no requests.
    a.kill();
    channel.wait_until(|s| s.chosen() == 2).await;
    assert_eq!(who(&channel).await.expect("answered"), "b");
    let draining = Arc::new(b.instance().status(Status::Draining).build());
    foreign.change(vec![of(&[&a])[0].clone(), draining, of(&[&c])[0].clone()]);
    channel.wait_until(|s| s.chosen() == 1).await;
    assert_eq!(who(&channel).await.expect("answered"), "c");
    assert_eq!(balance.changes.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_request_that_a_foreign_choice_refused_goes_to_the_next_address() {
    let (peer, b) = (Peer::start(|_| Act::Refuse).await, Server::start("b"));
    let instances: InstanceList =
        [Arc::new(peer.instance("peer").build()), Arc::new(b.instance().build())].into();
    let foreign = Foreign::new(instances.to_vec());
    let channel = BalancedChannel::builder(Arc::new(foreign), Endpoint::new("greeter"))
        .load_balancer(InOrder::default())
        .build();
    channel.wait_until(|s| s.chosen() == 2).await;
    assert_eq!(who(&channel).await.expect("answered"), "b");
    assert_eq!(peer.seen(), 1);
}

#[tokio::test]
async fn a_load_balancer_that_never_ends_naming_one_address_does_not_hang_a_call() {
    let (peer, b) = (Peer::start(|_| Act::Refuse).await, Server::start("b"));
    let foreign = Foreign::new(vec![Arc::new(peer.instance("peer").build()), of(&[&b])[0].clone()]);
    let channel = BalancedChannel::builder(Arc::new(foreign), Endpoint::new("greeter"))
        .load_balancer(Stuck(peer.address.clone()))
        .build();
    channel.wait_until(|s| s.chosen() == 2).await;
    let status = who(&channel).await.expect_err("the only one named refuses");
    assert!(matches!(typed(&status), ChannelError::Route(RouteError::AllUnavailable { .. })), "{status:?}");
    assert_eq!(peer.seen(), 1);
}

/// A discovery whose first `discover` takes its time, with the list as it was when it began.
struct Slow {
    fleet: Fleet,
    began: Arc<Semaphore>,
    go_on: Arc<Semaphore>,
}

impl Discover for Slow {
    type Key = ();
    type Error = Infallible;

    async fn discover(&self, endpoint: &Endpoint) -> Result<Vec<Arc<Instance>>, Infallible> {
        let instances = self.fleet.discover(endpoint).await;
        self.began.add_permits(1);
        let _open = self.go_on.acquire().await.expect("never closed");
        instances
    }

    fn key(&self, _: &Endpoint) {}

    fn watch(&self) -> Option<async_broadcast::Receiver<Change<()>>> {
        None
    }

    fn view(&self, endpoint: &Endpoint) -> Option<ViewReceiver> {
        self.fleet.view(endpoint)
    }
}

/// As the mission's own sketch: a list by key, made by the first caller, changed by `rebalance` if it is there.
#[derive(Default)]
struct Sketch(Mutex<Option<Vec<Address>>>);

fn addresses<'a>(instances: impl IntoIterator<Item = &'a Arc<Instance>>) -> Vec<Address> {
    instances.into_iter().map(|instance| instance.address.clone()).collect()
}

impl<D: Discover> LoadBalance<D> for Sketch {
    type InstanceIter = std::vec::IntoIter<Address>;

    async fn get_picker(
        &self,
        endpoint: &Endpoint,
        discover: &D,
    ) -> Result<Self::InstanceIter, LoadBalanceError> {
        let known = self.0.lock().expect("no panic").clone();
        if let Some(known) = known {
            return Ok(known.into_iter());
        }
        let found = addresses(&discover.discover(endpoint).await.expect("infallible"));
        *self.0.lock().expect("no panic") = Some(found.clone());
        Ok(found.into_iter())
    }

    fn rebalance(&self, changes: Change<D::Key>) {
        assert!(
            !changes.all.iter().any(|instance| &*instance.id == "poison"),
            "a fault of the balancer's own"
        );
        if let Some(known) = &mut *self.0.lock().expect("no panic") {
            *known = addresses(&*changes.all);
        }
    }
}

#[tokio::test]
async fn a_change_during_a_foreign_load_balances_first_discover_is_not_lost() {
    let (a, b) = (Server::start("a"), Server::start("b"));
    let fleet = Fleet::of([a.instance()]);
    let (began, go_on) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let slow = Slow { fleet: fleet.clone(), began: Arc::clone(&began), go_on: Arc::clone(&go_on) };
    let channel = BalancedChannel::builder(Arc::new(slow), Endpoint::new("greeter"))
        .load_balancer(Sketch::default())
        .build();
    channel.wait_until(|s| s.chosen() == 1).await;
    let first = tokio::spawn({
        let channel = channel.clone();
        async move { who(&channel).await }
    });
    let _ = began.acquire().await.expect("never closed");
    fleet.set([b.instance()]);
    channel.wait_until(|s| s.chosen() == 1 && s.instance("b").is_some()).await;
    go_on.add_permits(1);
    assert_eq!(first.await.expect("no panic").expect("answered"), "b");
    assert_eq!(who(&channel).await.expect("answered"), "b");
}

#[tokio::test]
async fn a_policy_that_chooses_nobody_is_not_the_callers_fault() {
    struct Nobody;

    impl Policy for Nobody {
        type Picker = Self;

        fn build(&self, _: &InstanceList) -> Self {
            Self
        }
    }

    impl Picker for Nobody {
        fn pick(&self, _: &PickContext) -> Result<Pick<'_>, PickError> {
            Err(PickError::NoInstances)
        }
    }

    let a = Server::start("a");
    let fleet = Arc::new(Fleet::of([a.instance()]));
    let channel = BalancedChannel::builder(fleet, Endpoint::new("greeter")).policy(Nobody).build();
    let status = who(&channel).await.expect_err("nobody");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}

#[tokio::test]
async fn a_foreign_load_balance_or_policy_that_panics_does_not_deafen_the_channel() {
    struct Fussy;

    impl Policy for Fussy {
        type Picker = RoundRobinPicker;

        fn build(&self, instances: &InstanceList) -> RoundRobinPicker {
            assert!(!instances.iter().any(|instance| instance.weight == 13), "a fault of the policy's own");
            RoundRobin::with_seed(1).build(instances)
        }
    }

    let (a, b) = (Server::start("a"), Server::start("b"));
    let fleet = Fleet::of([a.instance()]);
    let discover = Arc::new(fleet.clone());
    let balanced = BalancedChannel::builder(Arc::clone(&discover), Endpoint::new("greeter"))
        .load_balancer(Sketch::default())
        .build();
    let picked = BalancedChannel::builder(discover, Endpoint::new("greeter")).policy(Fussy).build();
    for channel in [&balanced, &picked] {
        assert_eq!(who(channel).await.expect("answered"), "a");
    }
    fleet.set([a.instance().id("poison").weight(13)]);
    for channel in [&balanced, &picked] {
        channel.wait_until(|s| s.instance("poison").is_some()).await;
    }
    fleet.set([b.instance()]);
    for channel in [&balanced, &picked] {
        channel.wait_until(|s| s.chosen() == 1 && s.instance("b").is_some()).await;
        assert_eq!(who(channel).await.expect("answered"), "b");
    }
}

#[tokio::test]
async fn a_policy_is_asked_once_when_to_connect() {
    struct Whimsical(AtomicUsize);

    impl Policy for Whimsical {
        type Picker = RoundRobinPicker;

        fn build(&self, instances: &InstanceList) -> RoundRobinPicker {
            RoundRobin::with_seed(1).build(instances)
        }

        fn connects(&self) -> Connects {
            assert_eq!(self.0.fetch_add(1, Ordering::SeqCst), 0, "a fault of the policy's own");
            Connects::Ahead
        }
    }

    let a = Server::start("a");
    let fleet = Arc::new(Fleet::of([a.instance()]));
    let policy = Whimsical(AtomicUsize::new(0));
    let channel = BalancedChannel::builder(fleet, Endpoint::new("greeter")).policy(policy).build();
    assert_eq!(who(&channel).await.expect("answered"), "a");
}
