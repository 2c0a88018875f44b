//! Our discoveries under volo's own `WeightedRandomBalance` and `LoadBalanceLayer`.

// A test program: nobody reads its documentation, and its helpers may panic.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]
#![allow(clippy::disallowed_methods)] // many callers at once are tasks of the test's own

#[path = "balance/fake.rs"]
#[allow(dead_code)] // shared with the balancers' tests, which use more of it
mod fake;
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use client_sdk::{
    bridge::{VoloDiscover, VoloDiscoverError, VoloKey, VoloNamespace},
    discover::{Discover as _, RegistryDiscover, StaticDiscover, WeightedStaticDiscover},
    model::{Instance, Selector, Status},
};
use tokio::sync::watch;
use volo::{
    Layer as _, Service,
    context::{Context as _, Endpoint, Reusable, Role, RpcCx, RpcInfo},
    discovery::{Change, Discover as VoloDiscovery, Instance as VoloInstance},
    loadbalance::{
        LbConfig, LoadBalance, MkLbLayer as _,
        error::{LoadBalanceError, Retryable},
        random::WeightedRandomBalance,
    },
};

use crate::fake::{Fake, eventually, settle};

type Key = VoloKey<fake::Key>;

/// At 10.0.0.`n`:80.
fn instance(n: u8, weight: u32) -> Instance {
    Instance::builder(format!("10.0.0.{n}:80").parse().unwrap()).weight(weight).build()
}

fn with_status(n: u8, status: Status) -> Instance {
    Instance::builder(format!("10.0.0.{n}:80").parse().unwrap()).status(status).build()
}

fn endpoint(service: &'static str) -> Endpoint {
    Endpoint::new(service.into())
}

fn over(fake: &Arc<Fake>) -> VoloDiscover<Fake> {
    VoloDiscover::builder(Arc::clone(fake)).build()
}

fn addresses(list: &[Arc<VoloInstance>]) -> Vec<String> {
    list.iter().map(|instance| instance.address.to_string()).collect()
}

/// Everyone whom volo would try, retries included.
async fn tried<D: VoloDiscovery>(
    balance: &WeightedRandomBalance<D::Key>,
    discover: &D,
) -> Result<BTreeSet<String>, LoadBalanceError> {
    let picker = balance.get_picker(&endpoint("s"), discover).await?;
    Ok(picker.map(|address| address.to_string()).collect())
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| format!("10.0.0.{name}:80")).collect()
}

#[derive(Debug, Default)]
struct NoConfig;

impl Reusable for NoConfig {
    fn clear(&mut self) {}
}

type Cx = RpcCx<(), NoConfig>;

/// A callee that answers, unless it is told to be down.
#[derive(Clone, Default)]
struct Callee {
    down: Arc<Mutex<BTreeSet<String>>>,
}

#[derive(Debug)]
enum CallError {
    Down,
    Balance(LoadBalanceError),
}

impl Retryable for CallError {
    fn retryable(&self) -> bool {
        matches!(self, Self::Down)
    }
}

impl From<LoadBalanceError> for CallError {
    fn from(error: LoadBalanceError) -> Self {
        Self::Balance(error)
    }
}

impl Service<Cx, ()> for Callee {
    type Response = String;
    type Error = CallError;

    async fn call(&self, cx: &mut Cx, (): ()) -> Result<String, CallError> {
        let address = cx.rpc_info().callee().address().unwrap().to_string();
        if self.down.lock().unwrap().contains(&address) { Err(CallError::Down) } else { Ok(address) }
    }
}

/// A caller as volo builds one: its layer subscribes and feeds its balancer.
fn client<D: VoloDiscovery>(
    discover: D,
    callee: Callee,
) -> impl Service<Cx, (), Response = String, Error = CallError> {
    let balance = WeightedRandomBalance::with_discover(&discover);
    LbConfig::new(balance, discover).retry_count(1).make().layer(callee)
}

async fn call(
    client: &impl Service<Cx, (), Response = String, Error = CallError>,
) -> Result<String, CallError> {
    let info = RpcInfo::new(Role::Client, "m".into(), endpoint("caller"), endpoint("s"), NoConfig);
    client.call(&mut Cx::new(info, ()), ()).await
}

/// Who answers, out of many calls.
async fn who(client: &impl Service<Cx, (), Response = String, Error = CallError>) -> BTreeSet<String> {
    let mut who = BTreeSet::new();
    for _ in 0..200 {
        who.insert(call(client).await.unwrap());
    }
    who
}

#[tokio::test(start_paused = true)]
async fn weights_are_honoured() {
    let fake = Fake::with("s", &[instance(1, 3), instance(2, 1)]);
    let client = client(over(&fake), Callee::default());
    let mut calls = BTreeMap::new();
    for _ in 0..8000 {
        *calls.entry(call(&client).await.unwrap()).or_insert(0) += 1;
    }
    // 7 standard deviations of a fair draw.
    assert!((5700..=6300).contains(&calls["10.0.0.1:80"]), "{calls:?}");
    fake.publish("s", &[instance(1, 1), instance(2, 3)]);
    settle().await;
    calls.clear();
    for _ in 0..8000 {
        *calls.entry(call(&client).await.unwrap()).or_insert(0) += 1;
    }
    assert!((5700..=6300).contains(&calls["10.0.0.2:80"]), "a change of weights only: {calls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_weight_of_0_gets_no_traffic_in_the_first_pick_nor_in_a_retry() {
    let refused = || [instance(2, 0), with_status(3, Status::Draining), with_status(4, Status::Down)];
    let [a, b, c] = refused();
    let fake = Fake::with("s", &[instance(1, 1), a, b, c]);
    let discover = over(&fake);
    let balance = WeightedRandomBalance::with_discover(&discover);
    for _ in 0..100 {
        assert_eq!(tried(&balance, &discover).await.unwrap(), set(&["1"]));
    }
    // By a change as well.
    let mut changes = discover.watch(None).unwrap();
    fake.publish("s", &[instance(1, 0), instance(2, 1), with_status(3, Status::Draining)]);
    LoadBalance::<VoloDiscover<Fake>>::rebalance(&balance, changes.recv().await.unwrap());
    for _ in 0..100 {
        assert_eq!(tried(&balance, &discover).await.unwrap(), set(&["2"]));
    }
    fake.publish("s", &refused());
    let change = changes.recv().await.unwrap();
    assert_eq!((change.all.len(), addresses(&change.removed)), (0, vec!["10.0.0.2:80".to_owned()]));
    LoadBalance::<VoloDiscover<Fake>>::rebalance(&balance, change);
    assert!(tried(&balance, &discover).await.unwrap().is_empty(), "not even if there are no others");
}

#[tokio::test(start_paused = true)]
async fn held_ones_are_given_only_while_there_are_no_others() {
    let held = || Instance::builder("10.0.0.1:80".parse().unwrap()).held(true).build();
    let fake = Fake::with("s", &[held(), instance(2, 1)]);
    let client = client(over(&fake), Callee::default());
    assert_eq!(who(&client).await, set(&["2"]));
    fake.publish("s", &[held()]);
    settle().await;
    assert_eq!(who(&client).await, set(&["1"]));
}

#[tokio::test(start_paused = true)]
async fn volos_layer_follows_what_comes_and_what_goes() {
    let fake = Fake::with("s", &[instance(1, 1), instance(2, 1)]);
    let callee = Callee::default();
    let client = client(over(&fake), callee.clone());
    assert_eq!(who(&client).await, set(&["1", "2"]));
    fake.publish("s", &[instance(2, 1), instance(3, 1)]);
    settle().await;
    assert_eq!(who(&client).await, set(&["2", "3"]));
    callee.down.lock().unwrap().insert("10.0.0.2:80".to_owned());
    assert_eq!(who(&client).await, set(&["3"]), "a retry goes to the other one");
    fake.publish("s", &[]);
    settle().await;
    assert!(matches!(call(&client).await, Err(CallError::Balance(LoadBalanceError::Retry))));
    fake.publish("s", &[instance(4, 1)]);
    settle().await;
    assert_eq!(who(&client).await, set(&["4"]));
    assert_eq!(fake.discovers(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_discovery_error_is_not_fatal_to_callers() {
    let fake = Fake::new(1, false);
    fake.set("s", &[instance(1, 1)]);
    fake.fail(true);
    let client = client(over(&fake), Callee::default());
    let Err(CallError::Balance(LoadBalanceError::Discover(error))) = call(&client).await else {
        panic!("nothing is known yet");
    };
    assert_eq!(error.to_string(), "cannot discover default/s: the fake was told to fail");
    fake.fail(false);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(who(&client).await, set(&["1"]), "it was tried again meanwhile, without a caller");

    // Changes are lost, and reading anew fails.
    fake.fail(true);
    for n in 2..6 {
        fake.publish("s", &[instance(n, 1)]);
    }
    fake.set("s", &[instance(9, 1)]);
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(who(&client).await.len(), 1, "the last known one stays");
    fake.fail(false);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(who(&client).await, set(&["9"]));
}

#[tokio::test(start_paused = true)]
async fn when_none_takes_requests_the_error_says_why_and_is_not_cached() {
    let fake = Fake::with("s", &[instance(1, 0), with_status(2, Status::Draining)]);
    let discover = over(&fake);
    let balance = WeightedRandomBalance::with_discover(&discover);
    let LoadBalanceError::Discover(error) = tried(&balance, &discover).await.unwrap_err() else {
        panic!("another error");
    };
    assert_eq!(
        error.to_string(),
        "no instance of default/s takes requests from volo: 2 instances: 1 of weight 0, 1 draining"
    );
    assert!(matches!(error.downcast_ref(), Some(VoloDiscoverError::NoInstances { unusable: 0, .. })));
    fake.publish("s", &[instance(1, 1)]);
    settle().await;
    assert_eq!(tried(&balance, &discover).await.unwrap(), set(&["1"]), "nobody called `rebalance`");
}

#[tokio::test(start_paused = true)]
async fn host_names_are_left_out_and_the_error_says_what_to_do() {
    let named = Instance::builder("greeter.local:80".parse().unwrap()).build();
    let fake = Fake::with("s", std::slice::from_ref(&named));
    let discover = over(&fake);
    assert_eq!(
        discover.discover(&endpoint("s")).await.unwrap_err().to_string(),
        "no instance of default/s takes requests from volo: 1 instance; 1 at host names or socket paths that volo \
         cannot call: register IP addresses"
    );
    fake.publish("s", &[named, instance(1, 1)]);
    settle().await;
    assert_eq!(addresses(&discover.discover(&endpoint("s")).await.unwrap()), ["10.0.0.1:80"]);
}

#[tokio::test(start_paused = true)]
async fn five_hundred_first_callers_make_one_discover() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    fake.open(false);
    let client = Arc::new(client(over(&fake), Callee::default()));
    let callers: Vec<_> = (0..500)
        .map(|_| {
            let client = Arc::clone(&client);
            tokio::spawn(async move { call(&*client).await.unwrap() })
        })
        .collect();
    settle().await;
    fake.open(true);
    for caller in callers {
        assert_eq!(caller.await.unwrap(), "10.0.0.1:80");
    }
    assert_eq!(fake.discovers(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_first_caller_that_gives_up_does_not_keep_the_others_waiting() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    fake.open(false);
    let discover = over(&fake);
    let first = tokio::time::timeout(Duration::from_millis(1), discover.discover(&endpoint("s"))).await;
    first.unwrap_err();
    fake.open(true);
    assert_eq!(discover.discover(&endpoint("s")).await.unwrap().len(), 1);
}

/// Hands on an answer late, as a thread that was held up does.
#[derive(Clone)]
struct Late {
    inner: VoloDiscover<Fake>,
    gate: Arc<watch::Sender<bool>>,
}

impl VoloDiscovery for Late {
    type Key = Key;
    type Error = VoloDiscoverError;

    async fn discover<'s>(
        &'s self,
        endpoint: &'s Endpoint,
    ) -> Result<Vec<Arc<VoloInstance>>, VoloDiscoverError> {
        let answer = self.inner.discover(endpoint).await;
        self.gate.subscribe().wait_for(|open| *open).await.unwrap();
        answer
    }

    fn key(&self, endpoint: &Endpoint) -> Key {
        self.inner.key(endpoint)
    }

    fn watch(&self, keys: Option<&[Key]>) -> Option<async_broadcast::Receiver<Change<Key>>> {
        self.inner.watch(keys)
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_that_arrives_while_the_first_discover_is_in_flight_is_not_lost() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let late = Late { inner: over(&fake), gate: Arc::new(watch::Sender::new(false)) };
    let client = Arc::new(client(late.clone(), Callee::default()));
    let first = tokio::spawn({
        let client = Arc::clone(&client);
        async move { call(&*client).await.unwrap() }
    });
    settle().await;
    // volo's balancer has no entry yet to put this in; then it stores the older answer.
    fake.publish("s", &[instance(2, 1)]);
    settle().await;
    late.gate.send_replace(true);
    assert_eq!(first.await.unwrap(), "10.0.0.1:80");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(who(&client).await, set(&["2"]));
}

#[tokio::test(start_paused = true)]
async fn an_overflow_of_the_broadcast_leaves_no_key_with_an_old_list() {
    let fake = Fake::new(4096, false);
    fake.set("s", &[instance(1, 1)]);
    fake.set("busy", &[instance(1, 1)]);
    let discover = over(&fake);
    for service in ["s", "busy"] {
        assert_eq!(discover.discover(&endpoint(service)).await.unwrap().len(), 1);
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    let balance = WeightedRandomBalance::with_discover(&discover);
    assert_eq!(tried(&balance, &discover).await.unwrap(), set(&["1"]));
    // As volo's layer reads: what it is told of an overflow it only logs.
    let mut changes = discover.watch(None).unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    fake.publish("s", &[instance(2, 1)]);
    for n in 0..2000_u32 {
        fake.publish("busy", &[instance(1, 2 + n % 2)]);
    }
    eventually(|| changes.len() == 1024).await;
    let mut overflowed = false;
    for _ in 0..3 {
        while let Ok(read) = tokio::time::timeout(Duration::from_millis(1), changes.recv()).await {
            match read {
                Ok(change) => LoadBalance::<VoloDiscover<Fake>>::rebalance(&balance, change),
                Err(_) => overflowed = true,
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(overflowed);
    assert_eq!(tried(&balance, &discover).await.unwrap(), set(&["2"]));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_repeated_without_need() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let discover = over(&fake);
    discover.discover(&endpoint("s")).await.unwrap();
    let mut changes = discover.watch(None).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    fake.publish("s", &[instance(1, 2)]);
    let change = changes.recv().await.unwrap();
    assert_eq!((change.updated.len(), change.updated[0].weight), (1, 2));
    fake.publish("s", &[instance(1, 2)]);
    tokio::time::timeout(Duration::from_mins(1), changes.recv()).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_never_reads_holds_up_nobody_and_no_listener_closes_nothing() {
    let fake = Fake::new(4096, false);
    fake.set("s", &[instance(1, 1)]);
    let discover = over(&fake);
    let stuck = discover.watch(None);
    let client = client(discover.clone(), Callee::default());
    assert_eq!(who(&client).await, set(&["1"]));
    for n in 0..3000_u32 {
        fake.publish("s", &[instance(2, 1 + n % 2)]);
        if n % 1000 == 0 {
            settle().await;
        }
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(who(&client).await, set(&["2"]));
    drop((stuck, client));
    settle().await;
    fake.publish("s", &[instance(3, 1)]);
    settle().await;
    let mut changes = discover.watch(None).unwrap();
    fake.publish("s", &[instance(4, 1)]);
    assert_eq!(addresses(&changes.recv().await.unwrap().added), ["10.0.0.4:80"]);
}

#[tokio::test(start_paused = true)]
async fn a_discovery_without_changes_serves_as_well() {
    let peers = Arc::new(StaticDiscover::parse(["10.0.0.1:80", "10.0.0.2:80"]).unwrap());
    assert!(peers.watch().is_none());
    let client = client(VoloDiscover::builder(peers).build(), Callee::default());
    assert_eq!(who(&client).await, set(&["1", "2"]));
}

#[tokio::test(start_paused = true)]
async fn volo_calls_what_is_registered_and_goes_on_without_the_registry() {
    let at = |n: u8, revision| registry_proto::v1::Instance {
        address: format!("10.0.0.{n}:80"),
        ..support::instance(&format!("i{n}"), 1, revision)
    };
    let net = support::Net::default();
    let mut registry = net.start("r:1");
    let discover = Arc::new(RegistryDiscover::builder(net.client(&["r:1"])).build());
    let client = Arc::new(client(VoloDiscover::builder(discover).build(), Callee::default()));
    let first = tokio::spawn({
        let client = Arc::clone(&client);
        async move { call(&*client).await.unwrap() }
    });
    let mut stream = registry.subscription().await;
    let (view, service, _) = stream.subscribe().await;
    assert_eq!(service, "s");
    stream.change(view, support::snapshot("e", 5, vec![at(1, 5)])).await;
    assert_eq!(first.await.unwrap(), "10.0.0.1:80");
    stream.change(view, support::adding("e", (5, 6), vec![at(2, 6)], &[at(1, 5), at(2, 6)])).await;
    settle().await;
    assert_eq!(who(&*client).await, set(&["1", "2"]));
    stream.fail(tonic::Status::unavailable("gone")).await;
    drop(registry);
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!(who(&*client).await, set(&["1", "2"]), "last known good (C1)");
}

/// Answers with one instance that says for which endpoint it is.
struct Mirror;

impl client_sdk::Discover for Mirror {
    type Key = String;
    type Error = Infallible;

    async fn discover(&self, endpoint: &client_sdk::Endpoint) -> Result<Vec<Arc<Instance>>, Infallible> {
        let instance =
            Instance::builder("10.0.0.1:80".parse().unwrap()).tag("for", self.key(endpoint)).build();
        Ok(vec![Arc::new(instance)])
    }

    fn key(&self, endpoint: &client_sdk::Endpoint) -> String {
        let tags: Vec<_> = endpoint.selector.required_tags().collect();
        format!("{endpoint} {tags:?}")
    }

    fn watch(&self) -> Option<async_broadcast::Receiver<client_sdk::Change<String>>> {
        None
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_says_service_namespace_and_selector() {
    async fn mirrored(discover: &VoloDiscover<Mirror>, endpoint: &Endpoint) -> String {
        let list = discover.discover(endpoint).await.unwrap();
        let said = list[0].tags["for"].to_string();
        assert_eq!(discover.key(endpoint), VoloKey::View(said.clone()));
        said
    }
    let mut own = endpoint("s");
    own.insert(VoloNamespace("shop".into()));
    own.insert(Selector::all().tag("v", "2"));
    let plain = VoloDiscover::builder(Arc::new(Mirror)).build();
    assert_eq!(mirrored(&plain, &endpoint("s")).await, "default/s []");
    assert_eq!(mirrored(&plain, &own).await, r#"shop/s [("v", "2")]"#);
    let set = VoloDiscover::builder(Arc::new(Mirror))
        .namespace("bank")
        .selector(Selector::all().tag("v", "1"))
        .build();
    assert_eq!(mirrored(&set, &endpoint("s")).await, r#"bank/s [("v", "1")]"#);
    assert_eq!(mirrored(&set, &own).await, r#"shop/s [("v", "2")]"#);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_with_an_address_is_that_one_instance_and_poisons_no_list() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let discover = over(&fake);
    let balance = WeightedRandomBalance::with_discover(&discover);
    let mut fixed = endpoint("s");
    fixed.set_address(volo::net::Address::Ip(([10, 0, 0, 9], 80).into()));
    let picked: Vec<_> = balance.get_picker(&fixed, &discover).await.unwrap().collect();
    assert_eq!(picked[0].to_string(), "10.0.0.9:80");
    assert_eq!(fake.discovers(), 0);
    assert_eq!(tried(&balance, &discover).await.unwrap(), set(&["1"]));
}

#[tokio::test(start_paused = true)]
async fn weights_and_tags_arrive_as_they_are() {
    let peers = [
        Instance::builder("[::1]:80".parse().unwrap()).weight(65_535).tag("v", "2").build(),
        Instance::builder("unix:/run/greeter".parse().unwrap()).build(),
    ];
    let peers: WeightedStaticDiscover = peers.into_iter().collect();
    let discover = VoloDiscover::builder(Arc::new(peers)).build();
    let list = discover.discover(&endpoint("s")).await.unwrap();
    assert_eq!(addresses(&list), ["[::1]:80", "/run/greeter"]);
    assert_eq!((list[0].weight, &*list[0].tags["v"]), (65_535, "2"));
    assert!(list[1].address.is_unix());
}

#[tokio::test(start_paused = true)]
async fn a_key_stays_while_anyone_listens_and_goes_when_nobody_asks() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let discover = over(&fake);
    let listener = discover.watch(None);
    discover.discover(&endpoint("s")).await.unwrap();
    tokio::time::sleep(Duration::from_hours(1)).await;
    fake.publish("s", &[instance(2, 1)]);
    settle().await;
    assert_eq!(addresses(&discover.discover(&endpoint("s")).await.unwrap()), ["10.0.0.2:80"]);
    assert_eq!(fake.discovers(), 1);
    drop(listener);
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!(addresses(&discover.discover(&endpoint("s")).await.unwrap()), ["10.0.0.2:80"]);
    assert_eq!(fake.discovers(), 2, "it had been forgotten");
}

#[tokio::test(start_paused = true)]
async fn its_tasks_end_with_the_last_clone() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let discover = over(&fake);
    let mut changes = discover.watch(None).unwrap();
    let clone = discover.clone();
    discover.discover(&endpoint("s")).await.unwrap();
    drop(discover);
    settle().await;
    fake.publish("s", &[instance(2, 1)]);
    assert_eq!(changes.recv().await.unwrap().all.len(), 1);
    drop(clone);
    settle().await;
    assert_eq!(Arc::strong_count(&fake), 1);
    while let Ok(change) = changes.recv().await {
        assert_eq!(change.all.len(), 1);
    }
    assert_eq!(changes.recv().await.unwrap_err(), async_broadcast::RecvError::Closed);
}

#[test]
fn a_discovery_whose_runtime_is_gone_says_so() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let first = runtime();
    let discover = first.block_on(async { over(&fake) });
    drop(first);
    let error = runtime().block_on(discover.discover(&endpoint("s"))).unwrap_err();
    assert!(matches!(error, VoloDiscoverError::Ended { .. }), "{error}");
}
