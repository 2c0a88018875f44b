//! A `Discover` and a `LoadBalance` written by someone else, as `async fn`, against the public API only: they work with
//! everything.

// A test program: nobody reads its documentation, and its helpers may panic.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use client_sdk::{
    balance::{
        Balanced, Balancer, Driver, LoadBalance, LoadBalanceError, Pick, PickContext, PickError, Picker,
        Policy, RoundRobin,
    },
    discover::{Discover, Follower, StaticDiscover, follow},
    model::{Address, Change, Endpoint, Instance, InstanceList},
    runtime::Runtime,
};
use tokio::{sync::Semaphore, task::JoinSet};

/// Reads a table that somebody writes, as one over a file or DNS would.
struct Table {
    rows: Mutex<HashMap<String, Vec<Arc<Instance>>>>,
    changes: async_broadcast::Sender<Change<String>>,
    _keep: async_broadcast::InactiveReceiver<Change<String>>,
}

#[derive(Debug, thiserror::Error)]
#[error("no row for {0}")]
struct NoRow(String);

impl Table {
    fn new(capacity: usize) -> Arc<Self> {
        let (mut changes, keep) = async_broadcast::broadcast(capacity);
        changes.set_overflow(true);
        changes.set_await_active(false);
        Arc::new(Self { rows: Mutex::default(), changes, _keep: keep.deactivate() })
    }

    fn write(&self, service: &str, ports: &[u16]) {
        let build = |port: &u16| Arc::new(Instance::builder(format!("a:{port}").parse().unwrap()).build());
        let all: Vec<_> = ports.iter().map(build).collect();
        let before = self.rows.lock().unwrap().insert(service.to_owned(), all.clone()).unwrap_or_default();
        let _ = self.changes.try_broadcast(Change::between(service.to_owned(), &before, all.into(), None));
    }
}

impl Discover for Table {
    type Key = String;
    type Error = NoRow;

    async fn discover(&self, endpoint: &Endpoint) -> Result<Vec<Arc<Instance>>, NoRow> {
        tokio::task::yield_now().await;
        let rows = self.rows.lock().unwrap();
        rows.get(&*endpoint.service).cloned().ok_or_else(|| NoRow(endpoint.to_string()))
    }

    fn key(&self, endpoint: &Endpoint) -> String {
        endpoint.service.to_string()
    }

    fn watch(&self) -> Option<async_broadcast::Receiver<Change<String>>> {
        Some(self.changes.new_receiver())
    }
}

/// Always the smallest address first. Keeps its lists by applying differences, and never looks at `all`.
struct Smallest<K> {
    lists: Mutex<HashMap<K, BTreeMap<Arc<str>, Address>>>,
    discovers: AtomicUsize,
}

impl<K> Default for Smallest<K> {
    fn default() -> Self {
        Self { lists: Mutex::default(), discovers: AtomicUsize::new(0) }
    }
}

impl<D: Discover> LoadBalance<D> for Smallest<D::Key> {
    type InstanceIter = std::vec::IntoIter<Address>;

    async fn get_picker(
        &self,
        endpoint: &Endpoint,
        discover: &D,
    ) -> Result<Self::InstanceIter, LoadBalanceError> {
        let key = discover.key(endpoint);
        let known = self.lists.lock().unwrap().get(&key).cloned();
        let list = if let Some(list) = known {
            list
        } else {
            self.discovers.fetch_add(1, Ordering::Relaxed);
            let found = discover
                .discover(endpoint)
                .await
                .map_err(|error| LoadBalanceError::Other(Arc::new(error)))?;
            let list: BTreeMap<_, _> = found.iter().map(|i| (i.id.clone(), i.address.clone())).collect();
            self.lists.lock().unwrap().insert(key, list.clone());
            list
        };
        Ok(list.into_values().collect::<Vec<_>>().into_iter())
    }

    fn rebalance(&self, changes: Change<D::Key>) {
        if let Some(list) = self.lists.lock().unwrap().get_mut(&changes.key) {
            for instance in changes.added.iter().chain(changes.updated.iter()) {
                list.insert(instance.id.clone(), instance.address.clone());
            }
            for instance in changes.removed.iter() {
                list.remove(&instance.id);
            }
        }
    }
}

/// Always the first.
struct First;

struct FirstPicker(Arc<Instance>);

impl Policy for First {
    type Picker = FirstPicker;

    fn build(&self, instances: &InstanceList) -> FirstPicker {
        FirstPicker(Arc::clone(&instances[0]))
    }
}

impl Picker for FirstPicker {
    fn pick(&self, _: &PickContext) -> Result<Pick<'_>, PickError> {
        Ok(Pick::of(Arc::clone(&self.0)))
    }
}

fn text(addresses: impl Iterator<Item = Address>) -> Vec<String> {
    addresses.map(|address| address.to_string()).collect()
}

async fn pass() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

#[tokio::test(start_paused = true)]
async fn a_foreign_discover_works_with_our_balancer_with_follow_and_under_a_foreign_policy() {
    let table = Table::new(16);
    table.write("s", &[1, 2]);
    let ours = Balancer::builder(Arc::clone(&table), RoundRobin::with_seed(1)).build();
    let first = Balancer::builder(Arc::clone(&table), First).build();
    let followed = follow(Arc::clone(&table), Endpoint::new("s"), &Runtime::tokio());
    let mut handle = first.handle(&Endpoint::new("s")).await.unwrap();
    assert_eq!(text(ours.get(&Endpoint::new("s")).await.unwrap()).len(), 2);
    assert_eq!(&*handle.pick(&PickContext::default()).unwrap().instance().id, "a:1");
    table.write("s", &[3, 2, 4]);
    pass().await;
    assert_eq!(text(ours.get(&Endpoint::new("s")).await.unwrap()).len(), 3);
    assert_eq!(&*handle.pick(&PickContext::default()).unwrap().instance().id, "a:3");
    assert_eq!(followed.state().view.unwrap().instances.len(), 3);
    let error = ours.get(&Endpoint::new("unknown")).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot discover default/unknown: no row for default/unknown");
}

#[tokio::test(start_paused = true)]
async fn a_foreign_load_balance_works_over_a_foreign_and_over_our_discover() {
    let table = Table::new(16);
    table.write("s", &[2, 3]);
    let balanced = Balanced::new(Arc::clone(&table), Arc::new(Smallest::default()), &Runtime::tokio());
    let endpoint = Endpoint::new("s");
    assert_eq!(text(balanced.get(&endpoint).await.unwrap()), ["a:2", "a:3"]);
    table.write("s", &[1, 3]);
    pass().await;
    assert_eq!(text(balanced.get(&endpoint).await.unwrap()), ["a:1", "a:3"]);
    let fixed = Endpoint::builder("s").address("b:1".parse().unwrap()).build();
    assert_eq!(text(balanced.get(&fixed).await.unwrap()), ["b:1"]);

    let peers = Arc::new(StaticDiscover::parse(["a:9", "a:8"]).unwrap());
    let balanced = Balanced::new(peers, Arc::new(Smallest::default()), &Runtime::tokio());
    assert_eq!(text(balanced.get(&endpoint).await.unwrap()), ["a:8", "a:9"]);
}

#[tokio::test(start_paused = true)]
async fn a_foreign_load_balance_that_applies_differences_survives_an_overflow() {
    let table = Table::new(1);
    table.write("s", &[1, 2, 3]);
    let balanced = Balanced::new(Arc::clone(&table), Arc::new(Smallest::default()), &Runtime::tokio());
    let endpoint = Endpoint::new("s");
    assert_eq!(text(balanced.get(&endpoint).await.unwrap()).len(), 3);
    pass().await;
    // Two of three changes are lost, removals among them.
    table.write("s", &[2, 3]);
    table.write("s", &[3]);
    table.write("s", &[3, 4]);
    pass().await;
    assert_eq!(text(balanced.get(&endpoint).await.unwrap()), ["a:3", "a:4"]);
    // Once the last one that is delivered is of another key.
    table.write("s", &[5]);
    table.write("other", &[]);
    pass().await;
    assert_eq!(text(balanced.get(&endpoint).await.unwrap()), ["a:5"]);
    // Once the view cannot be read just then, and the next change says nothing of those that left before.
    table.write("s", &[5, 6]);
    pass().await;
    table.write("s", &[6]);
    table.write("other", &[]);
    table.rows.lock().unwrap().remove("s");
    pass().await;
    table.write("s", &[6, 7]);
    pass().await;
    assert_eq!(text(balanced.get(&endpoint).await.unwrap()), ["a:6", "a:7"]);
    assert_eq!(balanced.balancer().discovers.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_driver_feeds_a_foreign_load_balance_and_ends_with_its_owner() {
    let table = Table::new(16);
    table.write("s", &[1]);
    let smallest = Arc::new(Smallest::default());
    let driver = Driver::spawn(Arc::clone(&smallest), Arc::clone(&table), &Runtime::tokio());
    let endpoint = Endpoint::new("s");
    driver.track(&endpoint).await;
    assert_eq!(text(smallest.get_picker(&endpoint, &*table).await.unwrap()), ["a:1"]);
    table.write("s", &[2]);
    pass().await;
    assert_eq!(text(smallest.get_picker(&endpoint, &*table).await.unwrap()), ["a:2"]);
    drop(driver);
    pass().await;
    assert_eq!((Arc::strong_count(&table), Arc::strong_count(&smallest)), (1, 1));
}

/// Whoever is asked for the view from then on is waited for by acks; nothing else has had a turn meanwhile.
#[tokio::test]
async fn c4_what_a_driver_tracks_is_followed_before_it_returns() {
    struct Followed(AtomicUsize);
    impl Discover for Followed {
        type Key = String;
        type Error = NoRow;
        async fn discover(&self, _: &Endpoint) -> Result<Vec<Arc<Instance>>, NoRow> {
            std::future::pending().await
        }
        fn key(&self, endpoint: &Endpoint) -> String {
            endpoint.service.to_string()
        }
        fn watch(&self) -> Option<async_broadcast::Receiver<Change<String>>> {
            None
        }
        fn follower(&self, _: &Endpoint) -> Option<Follower> {
            self.0.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
    struct Idle;
    impl LoadBalance<Followed> for Idle {
        type InstanceIter = std::iter::Empty<Address>;
        async fn get_picker(
            &self,
            _: &Endpoint,
            discover: &Followed,
        ) -> Result<Self::InstanceIter, LoadBalanceError> {
            assert_eq!(discover.0.load(Ordering::Relaxed), 1, "before it is asked for");
            Ok(std::iter::empty())
        }
        fn rebalance(&self, _: Change<String>) {}
    }
    let discover = Arc::new(Followed(AtomicUsize::new(0)));
    let balanced = Balanced::new(Arc::clone(&discover), Arc::new(Idle), &Runtime::tokio());
    assert!(balanced.get(&Endpoint::new("s")).await.is_ok());
    assert_eq!(discover.0.load(Ordering::Relaxed), 1, "once");
}

#[tokio::test(start_paused = true)]
async fn a_foreign_discover_that_panics_is_asked_again() {
    struct Panics(AtomicUsize);
    impl Discover for Panics {
        type Key = ();
        type Error = NoRow;
        async fn discover(&self, _: &Endpoint) -> Result<Vec<Arc<Instance>>, NoRow> {
            assert!(self.0.fetch_add(1, Ordering::Relaxed) > 0, "as the test wants");
            Ok(vec![Arc::new(Instance::builder("a:1".parse().unwrap()).build())])
        }
        fn key(&self, _: &Endpoint) {}
        fn watch(&self) -> Option<async_broadcast::Receiver<Change<()>>> {
            None
        }
    }
    let balancer = Balancer::builder(Arc::new(Panics(AtomicUsize::new(0))), First).build();
    let error = balancer.handle(&Endpoint::new("s")).await.unwrap_err();
    assert!(error.to_string().contains("the discovery panicked"), "{error}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(balancer.handle(&Endpoint::new("s")).await.is_ok());
}

/// More at once than answers may wait.
#[tokio::test(start_paused = true)]
async fn whoever_asks_a_foreign_discover_that_panics_is_told_however_many_ask() {
    const KEYS: usize = 200;
    struct Panics {
        asked: AtomicUsize,
        gate: Semaphore,
    }
    impl Discover for Panics {
        type Key = String;
        type Error = NoRow;
        async fn discover(&self, _: &Endpoint) -> Result<Vec<Arc<Instance>>, NoRow> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let closed = self.gate.acquire().await.is_err();
            assert!(!closed, "as the test wants");
            Ok(Vec::new())
        }
        fn key(&self, endpoint: &Endpoint) -> String {
            endpoint.service.to_string()
        }
        fn watch(&self) -> Option<async_broadcast::Receiver<Change<String>>> {
            None
        }
    }
    let discover = Arc::new(Panics { asked: AtomicUsize::new(0), gate: Semaphore::new(0) });
    let balancer = Arc::new(Balancer::builder(Arc::clone(&discover), First).build());
    let mut callers = JoinSet::new();
    for key in 0..KEYS {
        let balancer = Arc::clone(&balancer);
        callers.spawn(async move { balancer.handle(&Endpoint::new(format!("s-{key}"))).await.map(drop) });
    }
    while discover.asked.load(Ordering::Relaxed) < KEYS {
        tokio::task::yield_now().await;
    }
    discover.gate.close();
    let all = tokio::time::timeout(Duration::from_mins(1), callers.join_all()).await;
    for told in all.expect("nobody waits for an answer that is lost") {
        let error = told.unwrap_err().to_string();
        assert!(error.contains("the discovery panicked"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_load_balance_that_panics_gets_the_next_change() {
    struct Fragile(AtomicUsize);
    impl LoadBalance<Table> for Fragile {
        type InstanceIter = std::iter::Empty<Address>;
        async fn get_picker(&self, _: &Endpoint, _: &Table) -> Result<Self::InstanceIter, LoadBalanceError> {
            Ok(std::iter::empty())
        }
        fn rebalance(&self, _: Change<String>) {
            assert!(self.0.fetch_add(1, Ordering::Relaxed) > 0, "as the test wants");
        }
    }
    let (table, fragile) = (Table::new(16), Arc::new(Fragile(AtomicUsize::new(0))));
    let _driver = Driver::spawn(Arc::clone(&fragile), Arc::clone(&table), &Runtime::tokio());
    table.write("s", &[1]);
    table.write("s", &[2]);
    pass().await;
    assert_eq!(fragile.0.load(Ordering::Relaxed), 2);
}
