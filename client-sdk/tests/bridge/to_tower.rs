//! Our discoveries under tower's own `Balance`.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use client_sdk::{
    bridge::{LiveInstance, ServiceChanges},
    discover::StaticDiscover,
    model::{Address, Instance, Status},
    runtime::Runtime,
};
use tokio_stream::StreamExt as _;
use tower::{
    BoxError, Service, ServiceExt as _,
    balance::p2c::Balance,
    discover::Change,
    load::{CompleteOnResponse, PendingRequestsDiscover},
    reconnect::Reconnect,
};

use crate::fake::{Fake, endpoint, eventually, instance, settle};

/// Answers with the id and the address for which it was made.
#[derive(Clone, Debug)]
struct Peer {
    live: LiveInstance,
    address: Address,
}

impl Peer {
    fn new(live: LiveInstance) -> Self {
        let address = live.get().address.clone();
        Self { live, address }
    }
}

impl Service<()> for Peer {
    type Response = String;
    type Error = Infallible;
    type Future = std::future::Ready<Result<String, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        std::future::ready(Ok(format!("{}@{}", self.live.get().id, self.address)))
    }
}

fn services(fake: &Arc<Fake>) -> ServiceChanges<fn(LiveInstance) -> Peer> {
    ServiceChanges::new(Arc::clone(fake), endpoint(), &Runtime::tokio(), Peer::new)
}

fn balance<F, S>(services: ServiceChanges<F>) -> Balance<PendingRequestsDiscover<ServiceChanges<F>>, ()>
where
    F: FnMut(LiveInstance) -> S,
    S: Service<(), Error: Into<BoxError>>,
{
    Balance::new(PendingRequestsDiscover::new(services, CompleteOnResponse::default()))
}

/// Who answers, out of many calls. Nobody, if none is ready within a second.
async fn who<B: Service<(), Response = String, Error = BoxError>>(balance: &mut B) -> BTreeSet<String> {
    let mut who = BTreeSet::new();
    for _ in 0..200 {
        match tokio::time::timeout(Duration::from_secs(1), balance.ready()).await {
            Ok(ready) => who.insert(ready.unwrap().call(()).await.unwrap()),
            Err(_) => break,
        };
    }
    who
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn at(id: &str, port: u16) -> Instance {
    Instance::builder(format!("a:{port}").parse().unwrap()).id(id).build()
}

/// The next changes of a stream, as text, up to the first moment when there is none.
async fn steps<F: FnMut(LiveInstance) -> Peer>(services: &mut ServiceChanges<F>) -> Vec<String> {
    let mut steps = Vec::new();
    while let Ok(Some(Ok(change))) = tokio::time::timeout(Duration::from_millis(1), services.next()).await {
        steps.push(match change {
            Change::Insert(id, peer) => format!("+{id}@{}", peer.address),
            Change::Remove(id) => format!("-{id}"),
        });
    }
    steps
}

#[test]
fn it_goes_wherever_a_balancer_goes() {
    fn check<T: Send + Sync + Unpin + 'static>() {}
    check::<ServiceChanges<fn(LiveInstance) -> Peer>>();
    check::<LiveInstance>();
}

#[tokio::test(start_paused = true)]
async fn towers_balance_follows_what_comes_and_what_goes() {
    let fake = Fake::with("s", &[instance(1, 1), instance(2, 1)]);
    let mut balance = balance(services(&fake));
    assert_eq!(who(&mut balance).await, set(&["a:1@a:1", "a:2@a:2"]));
    fake.publish("s", &[instance(2, 1), instance(3, 1)]);
    settle().await;
    assert_eq!(who(&mut balance).await, set(&["a:2@a:2", "a:3@a:3"]));
    fake.publish("s", &[]);
    settle().await;
    assert_eq!(who(&mut balance).await, set(&[]), "nobody is left, and callers wait");
    fake.publish("s", &[instance(4, 1)]);
    settle().await;
    assert_eq!(who(&mut balance).await, set(&["a:4@a:4"]));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_waits_is_woken_by_the_first_instance() {
    let fake = Fake::with("s", &[]);
    let mut balance = balance(services(&fake));
    let waiting = async { balance.ready().await.unwrap().call(()).await.unwrap() };
    let publishing = async {
        settle().await;
        fake.publish("s", &[instance(1, 1)]);
    };
    let (answer, ()) =
        tokio::time::timeout(Duration::from_secs(1), async { tokio::join!(waiting, publishing) })
            .await
            .unwrap();
    assert_eq!(answer, "a:1@a:1");
}

#[tokio::test(start_paused = true)]
async fn what_takes_no_requests_is_removed_and_comes_back_when_it_does() {
    let status = |status| Instance::builder("a:2".parse().unwrap()).status(status).build();
    let fake = Fake::with("s", &[instance(1, 1), instance(2, 1)]);
    let mut balance = balance(services(&fake));
    assert_eq!(who(&mut balance).await.len(), 2);
    for refused in [instance(2, 0), status(Status::Draining), status(Status::Down)] {
        fake.publish("s", &[instance(1, 1), refused]);
        settle().await;
        assert_eq!(who(&mut balance).await, set(&["a:1@a:1"]));
        fake.publish("s", &[instance(1, 1), instance(2, 1)]);
        settle().await;
        assert_eq!(who(&mut balance).await.len(), 2);
    }
    fake.publish("s", &[instance(1, 0), instance(2, 0)]);
    settle().await;
    assert_eq!(who(&mut balance).await, set(&[]), "not even if there are no others");
}

#[tokio::test(start_paused = true)]
async fn held_ones_are_there_only_while_there_are_no_others() {
    let held = || Instance::builder("a:1".parse().unwrap()).held(true).build();
    let fake = Fake::with("s", &[held(), instance(2, 1)]);
    let mut services = services(&fake);
    assert_eq!(steps(&mut services).await, ["+a:2@a:2"]);
    fake.publish("s", &[held()]);
    assert_eq!(steps(&mut services).await, ["+a:1@a:1", "-a:2"]);
    fake.publish("s", &[held(), instance(3, 1)]);
    assert_eq!(steps(&mut services).await, ["+a:3@a:3", "-a:1"]);
}

#[tokio::test(start_paused = true)]
async fn a_discovery_error_is_not_fatal_to_callers() {
    let fake = Fake::new(1, false);
    fake.set("s", &[instance(1, 1)]);
    fake.fail(true);
    let services = services(&fake);
    let view = services.view();
    let mut balance = balance(services);
    assert_eq!(who(&mut balance).await, set(&[]), "they wait, and get no error");
    assert_eq!(view.borrow().error.as_ref().unwrap().to_string(), "the fake was told to fail");
    fake.fail(false);
    eventually(|| view.borrow().view.is_some()).await;
    assert_eq!(who(&mut balance).await, set(&["a:1@a:1"]));

    // Changes are lost, and reading anew fails.
    fake.fail(true);
    for port in 2..5 {
        fake.publish("s", &[instance(port, 1)]);
    }
    fake.set("s", &[instance(9, 1)]);
    eventually(|| view.borrow().error.is_some()).await;
    assert_eq!(who(&mut balance).await.len(), 1, "the last known one stays");
    fake.fail(false);
    eventually(|| view.borrow().error.is_none()).await;
    assert_eq!(who(&mut balance).await, set(&["a:9@a:9"]));
}

#[tokio::test(start_paused = true)]
async fn an_ended_stream_is_not_polled_again() {
    let peers = Arc::new(StaticDiscover::parse(["a:1", "a:2"]).unwrap());
    let mut services = ServiceChanges::new(peers, endpoint(), &Runtime::tokio(), Peer::new);
    for _ in 0..2 {
        assert!(matches!(services.next().await, Some(Ok(Change::Insert(..)))));
    }
    for _ in 0..100 {
        assert!(services.next().await.is_none(), "what is behind it is not; it says so again");
    }
    let peers = Arc::new(StaticDiscover::parse(["a:1", "a:2"]).unwrap());
    let mut balance = balance(ServiceChanges::new(peers, endpoint(), &Runtime::tokio(), Peer::new));
    assert_eq!(who(&mut balance).await.len(), 2, "tower goes on with what it has");
}

#[tokio::test(start_paused = true)]
async fn it_never_ends_while_the_view_can_change() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let mut services = services(&fake);
    assert_eq!(steps(&mut services).await, ["+a:1@a:1"]);
    // Not even when the discovery broadcasts no more.
    fake.close();
    tokio::time::timeout(Duration::from_mins(1), services.next()).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_change_of_weight_or_tags_happens_in_place() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let seen: Arc<Mutex<Vec<LiveInstance>>> = Arc::default();
    let make = {
        let seen = Arc::clone(&seen);
        move |live: LiveInstance| {
            seen.lock().unwrap().push(live.clone());
            Peer::new(live)
        }
    };
    let mut services = ServiceChanges::new(Arc::clone(&fake), endpoint(), &Runtime::tokio(), make);
    assert_eq!(steps(&mut services).await, ["+a:1@a:1"]);
    let live = seen.lock().unwrap()[0].clone();
    fake.publish("s", &[Instance::builder("a:1".parse().unwrap()).weight(7).tag("v", "2").build()]);
    assert_eq!(steps(&mut services).await, [""; 0]);
    assert_eq!((live.get().weight, live.get().tags.get("v").map(|v| &**v)), (7, Some("2")));
    assert_eq!(seen.lock().unwrap().len(), 1, "no other service was made");
    // The last thing that it shows is why it went.
    fake.publish("s", &[instance(1, 0)]);
    assert_eq!(steps(&mut services).await, ["-a:1"]);
    assert_eq!(live.get().weight, 0);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_moves_gets_nothing_at_its_old_address() {
    let fake = Fake::with("s", &[at("x", 1)]);
    let mut stream = services(&fake);
    assert_eq!(steps(&mut stream).await, ["+x@a:1"]);
    let mut balance = balance(services(&fake));
    assert_eq!(who(&mut balance).await, set(&["x@a:1"]));
    fake.publish("s", &[at("x", 2)]);
    settle().await;
    assert_eq!(steps(&mut stream).await, ["-x", "+x@a:2"]);
    assert_eq!(who(&mut balance).await, set(&["x@a:2"]));
}

#[tokio::test(start_paused = true)]
async fn when_all_are_replaced_the_new_ones_come_before_the_old_ones_go() {
    let fake = Fake::with("s", &[instance(1, 1), instance(2, 1)]);
    let mut services = services(&fake);
    assert_eq!(steps(&mut services).await, ["+a:1@a:1", "+a:2@a:2"]);
    fake.publish("s", &[instance(3, 1), instance(4, 1)]);
    assert_eq!(steps(&mut services).await, ["+a:3@a:3", "+a:4@a:4", "-a:1", "-a:2"]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_caller_queues_nothing_and_is_not_stale() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let mut services = services(&fake);
    let view = services.view();
    assert_eq!(steps(&mut services).await, ["+a:1@a:1"]);
    for port in 2..1000 {
        fake.publish("s", &[instance(port, 1), at("moving", port)]);
        tokio::task::yield_now().await;
    }
    let newest = || view.borrow().view.as_ref().is_some_and(|view| &*view.instances[0].id == "a:999");
    eventually(newest).await;
    assert_eq!(steps(&mut services).await, ["+a:999@a:999", "+moving@a:999", "-a:1"]);
}

#[tokio::test(start_paused = true)]
async fn what_went_while_the_stream_was_read_is_not_inserted() {
    let fake = Fake::with("s", &[instance(1, 1), instance(2, 1), instance(3, 1)]);
    let mut services = services(&fake);
    assert!(matches!(services.next().await, Some(Ok(Change::Insert(id, _))) if &*id == "a:1"));
    fake.publish("s", &[instance(3, 1)]);
    settle().await;
    assert_eq!(steps(&mut services).await, ["+a:3@a:3", "-a:1"]);
}

#[tokio::test(start_paused = true)]
async fn a_choice_made_before_a_removal_is_not_used_after_it() {
    let all: Vec<_> = (1..=4).map(|port| instance(port, 1)).collect();
    let fake = Fake::with("s", &all);
    let mut balance = balance(services(&fake));
    for stays in (1..=4).cycle().take(100) {
        balance.ready().await.unwrap();
        fake.publish("s", &[instance(stays, 1)]);
        settle().await;
        let answer = balance.ready().await.unwrap().call(()).await.unwrap();
        assert_eq!(answer, format!("a:{stays}@a:{stays}"));
        fake.publish("s", &all);
        settle().await;
    }
}

/// Connects only while it is told to.
#[derive(Clone, Default)]
struct Connector {
    refuses: Arc<AtomicBool>,
    connects: Arc<AtomicUsize>,
}

impl Service<LiveInstance> for Connector {
    type Response = Peer;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Peer>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, live: LiveInstance) -> Self::Future {
        self.connects.fetch_add(1, Ordering::Relaxed);
        let refused = self.refuses.load(Ordering::Relaxed);
        std::future::ready(if refused {
            Err(io::ErrorKind::ConnectionRefused.into())
        } else {
            Ok(Peer::new(live))
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_endpoint_is_not_lost_until_discovery_names_it_again() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let connector = Connector::default();
    connector.refuses.store(true, Ordering::Relaxed);
    let make = {
        let connector = connector.clone();
        move |live| Reconnect::new(connector.clone(), live)
    };
    let services = ServiceChanges::new(Arc::clone(&fake), endpoint(), &Runtime::tokio(), make);
    let mut balance = balance(services);
    for _ in 0..3 {
        let error = balance.ready().await.unwrap().call(()).await.unwrap_err();
        assert_eq!(error.to_string(), "connection refused");
    }
    connector.refuses.store(false, Ordering::Relaxed);
    assert_eq!(balance.ready().await.unwrap().call(()).await.unwrap(), "a:1@a:1");
    let connects = connector.connects.load(Ordering::Relaxed);
    fake.publish("s", &[instance(1, 9)]);
    settle().await;
    assert_eq!(who(&mut balance).await.len(), 1);
    assert_eq!(connector.connects.load(Ordering::Relaxed), connects, "a new weight is no new connection");
}

#[tokio::test(start_paused = true)]
async fn dropping_it_ends_the_following() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let services = services(&fake);
    settle().await;
    assert!(Arc::strong_count(&fake) > 1);
    drop(services);
    settle().await;
    assert_eq!(Arc::strong_count(&fake), 1);
}
