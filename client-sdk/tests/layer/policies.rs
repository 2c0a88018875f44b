//! Every policy works in the layer, and somebody else's load balancer does.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use client_sdk::{
    balance::{
        HashKey, LeastRequest, LoadBalance, LoadBalanceError, Maglev, MissingKey, Outcome, PeakEwma, Pick,
        PickContext, PickError, Picker, Policy, Report, ReportedLoad, RingHash, RoundRobin, WeightedRandom,
    },
    discover::Discover,
    layer::{LoadBalanceBuilder, LoadBalanceLayer, LoadBalancedError, RouteError},
    model::{Address, Change, Endpoint, InstanceList},
    runtime::Runtime,
};
use tower::Service;

use crate::kit::{Fleet, Host, Makes, Req, World, all_wait, ask, builder, who};

type Builder = LoadBalanceBuilder<Fleet, Req, String>;

/// A request's name is its key.
fn key(request: Req) -> u64 {
    HashKey::of(request).0
}

#[tokio::test(start_paused = true)]
async fn every_policy_works_in_the_layer() {
    let runtime = Runtime::tokio();
    let policies: [(&str, &dyn Fn(Builder) -> Builder); 9] = [
        ("round robin", &|builder| builder.policy(RoundRobin::with_seed(1))),
        ("weighted random", &|builder| builder.policy(WeightedRandom::with_seed(1))),
        ("least request", &|builder| builder.policy(LeastRequest::with_seed(1))),
        ("peak EWMA", &|builder| builder.policy(PeakEwma::new(&runtime))),
        ("reported load", &|builder| builder.policy(ReportedLoad::new(&runtime))),
        ("ring hash", &|builder| builder.policy(RingHash::new())),
        ("Maglev", &|builder| builder.policy(Maglev::new())),
        ("bounded ring hash", &|builder| builder.policy(RingHash::new().bounded())),
        ("bounded Maglev", &|builder| builder.policy(Maglev::new().bounded())),
    ];
    let requests: Vec<Req> = (0..100).map(|n| &*format!("request {n}").leak()).collect();
    for (name, with) in policies {
        let world = World::default();
        let hosts = world.hosts(["a", "b", "c"]);
        let zero = world.host("zero");
        let fleet = Fleet::of(hosts.iter().map(Host::instance).chain([zero.instance().weight(0)]));
        let mut balanced =
            with(builder(&fleet)).hash_key(|request| Some(key(request))).service(world.clone());
        let mut answers = HashSet::new();
        for request in &requests {
            answers.insert(balanced.call(request).await.unwrap_or_else(|error| panic!("{name}: {error}")));
        }
        assert_eq!(answers.len(), 3, "{name}: {answers:?}");
        assert_eq!((zero.calls(), zero.made()), (0, 0), "{name}: weight 0");
        // One that fails is left out, and comes back.
        let [a, ..] = &hosts;
        a.makes(Makes::Errors);
        a.doom("connection reset");
        for request in &requests {
            let answer = balanced.call(request).await.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_ne!(answer, "a", "{name}");
        }
        a.makes(Makes::Services);
        let calls = a.calls();
        tokio::time::sleep(Duration::from_mins(1)).await;
        for request in &requests {
            balanced.call(request).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        assert!(a.calls() > calls, "{name}: it is not left out for ever");
        // Busy ones are passed over, whoever is chosen.
        for host in &hosts[1..] {
            host.at_once(0);
        }
        for host in &hosts[1..] {
            host.doom("so that one with the new limit is made");
        }
        tokio::time::sleep(Duration::from_mins(1)).await;
        for request in &requests {
            assert_eq!(balanced.call(request).await.expect("served"), "a", "{name}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_key_goes_to_the_same_instance_and_services_are_made_on_demand() {
    let world = World::default();
    let hosts: Vec<_> = (0..20).map(|n| world.host(&format!("host-{n}"))).collect();
    let fleet = Fleet::of(hosts.iter().map(Host::instance));
    let mut balanced =
        builder(&fleet).policy(RingHash::new()).hash_key(|request| Some(key(request))).service(world.clone());
    all_wait().await;
    assert_eq!(hosts.iter().map(Host::made).sum::<usize>(), 0, "nobody asked for one");
    let first = balanced.call("alice").await.expect("served");
    for _ in 0..20 {
        assert_eq!(balanced.call("alice").await.expect("served"), first);
    }
    assert_eq!(hosts.iter().map(Host::made).sum::<usize>(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_missing_key_is_an_error_or_random_as_set_and_the_endpoint_may_have_one() {
    let world = World::default();
    let hosts = world.hosts(["a", "b", "c", "d"]);
    let fleet = Fleet::of(hosts.iter().map(Host::instance));
    let strict = builder(&fleet).policy(Maglev::new()).hash_key(|_| None).service(world.clone());
    let error = who(&strict).await.expect_err("no key");
    let LoadBalancedError::Route(RouteError::Pick { source: PickError::NoHashKey, .. }) = error else {
        panic!("{error:?}")
    };

    let random = builder(&fleet).policy(Maglev::new()).missing_key(MissingKey::Random).service(world.clone());
    let mut answers = HashSet::new();
    for _ in 0..100 {
        answers.insert(who(&random).await.expect("served"));
    }
    assert_eq!(answers.len(), 4);

    let endpoint = Endpoint::builder("greeter").hash_key(1).build();
    let discover = Arc::new(fleet);
    let fixed = LoadBalanceLayer::builder(discover, endpoint);
    let fixed = fixed.policy(Maglev::new()).missing_key(MissingKey::Random).service(world.clone());
    let first = who(&fixed).await.expect("served");
    for _ in 0..20 {
        assert_eq!(who(&fixed).await.expect("served"), first);
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_busy_choice_on_demand_the_request_goes_to_the_next_or_waits() {
    let world = World::default();
    let hosts = world.hosts(["a", "b"]);
    for host in &hosts {
        host.at_once(1);
    }
    let fleet = Fleet::of(hosts.iter().map(Host::instance));
    let balanced =
        builder(&fleet).policy(RingHash::new()).hash_key(|request| Some(key(request))).service(world.clone());
    let answers: Vec<_> = (0..6).map(|_| ask(&balanced, "hold")).collect();
    for host in &hosts {
        host.arrived().await;
    }
    all_wait().await;
    assert_eq!(balanced.snapshot().waiting, 4);
    for host in &hosts {
        host.open(6);
    }
    for answer in answers {
        answer.await.expect("no panic").expect("served");
    }
}

/// Takes the first instance, and keeps what it is told.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<Outcome>>>);

struct First(InstanceList, Arc<dyn Report>);

impl Report for Told {
    fn finished(&self, outcome: Outcome, _: Option<Duration>) {
        self.0.lock().expect("unpoisoned").push(outcome);
    }
}

impl Policy for Told {
    type Picker = First;

    fn build(&self, instances: &InstanceList) -> First {
        First(Arc::clone(instances), Arc::new(self.clone()))
    }
}

impl Picker for First {
    fn pick(&self, _: &PickContext) -> Result<Pick<'_>, PickError> {
        Ok(Pick::new(&self.0, 0)?.reporting(&self.1, Duration::ZERO))
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_is_told_how_a_request_ended() {
    let world = World::default();
    let a = world.host("a");
    let told = Told::default();
    let fleet = Fleet::of([a.instance()]);
    let mut balanced = builder(&fleet).policy(told.clone()).service(world.clone());
    balanced.wait_until(|now| now.chosen() == 1).await;
    balanced.call("").await.expect("served");
    let error = balanced.call("fail").await.expect_err("it fails");
    assert_eq!(error.to_string(), "a:1 failed the request: a cannot");
    assert!(!error.never_left());
    let held = ask(&balanced, "hold");
    a.arrived().await;
    assert_eq!(told.0.lock().expect("unpoisoned").len(), 2, "one that goes on says nothing yet");
    held.abort();
    all_wait().await;
    let told = told.0.lock().expect("unpoisoned").clone();
    assert_eq!(told, [Outcome::Success, Outcome::Failure, Outcome::Cancelled]);
    assert_eq!(a.calls(), 3, "a request is given to one service, once");
}

/// linkerd2-proxy #4537.
#[tokio::test(start_paused = true)]
async fn a_fast_failing_endpoint_is_not_preferred_where_answers_can_mean_that() {
    let world = World::default();
    let [fails, works] = world.hosts(["fails", "works"]);
    let fleet = Fleet::of([&fails, &works].map(Host::instance));
    let mut balanced = builder(&fleet)
        .policy(PeakEwma::new(&Runtime::tokio()))
        .outcome(|who: &String| if who == "fails" { Outcome::Failure } else { Outcome::Success })
        .service(world.clone());
    balanced.wait_until(|now| now.chosen() == 2).await;
    for _ in 0..100 {
        balanced.call("").await.expect("an answer, such as it is");
    }
    // Half of them if it did not know, and most if it went by how fast they are answered.
    assert!(fails.calls() < 30, "{} of 100", fails.calls());
}

/// The addresses in the order of the list, whatever their state.
struct InOrder;

impl<D: Discover> LoadBalance<D> for InOrder {
    type InstanceIter = std::vec::IntoIter<Address>;

    async fn get_picker(
        &self,
        endpoint: &Endpoint,
        discover: &D,
    ) -> Result<Self::InstanceIter, LoadBalanceError> {
        let instances = discover.discover(endpoint).await.expect("infallible");
        Ok(instances.iter().map(|it| it.address.clone()).collect::<Vec<_>>().into_iter())
    }

    fn rebalance(&self, _: Change<D::Key>) {}
}

/// One address and no other.
struct Only(Address);

impl<D: Discover> LoadBalance<D> for Only {
    type InstanceIter = std::iter::Once<Address>;

    async fn get_picker(&self, _: &Endpoint, _: &D) -> Result<Self::InstanceIter, LoadBalanceError> {
        Ok(std::iter::once(self.0.clone()))
    }

    fn rebalance(&self, _: Change<D::Key>) {}
}

#[tokio::test(start_paused = true)]
async fn a_foreign_load_balance_works_in_the_layer() {
    let world = World::default();
    let [a, b, zero] = world.hosts(["a", "b", "zero"]);
    a.at_once(1);
    let fleet = Fleet::of([zero.instance().weight(0), a.instance(), b.instance()]);
    let balanced = builder(&fleet).load_balancer(InOrder).service(world.clone());
    balanced.wait_until(|now| now.chosen() == 2).await;
    for _ in 0..5 {
        assert_eq!(who(&balanced).await.expect("served"), "a");
    }
    let held = ask(&balanced, "hold");
    a.arrived().await;
    assert_eq!(who(&balanced).await.expect("served"), "b", "the next address, for a is busy");
    a.open(1);
    held.await.expect("no panic").expect("served");
    a.makes(Makes::Errors);
    a.doom("connection reset");
    assert_eq!(who(&balanced).await.expect("served"), "b", "the next address, for a is gone");
    assert_eq!(zero.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_the_busy_one_that_a_foreign_load_balance_names() {
    let world = World::default();
    let [a, b] = world.hosts(["a", "b"]);
    a.at_once(1);
    b.at_once(1);
    let fleet = Fleet::of([&a, &b].map(Host::instance));
    let balanced = builder(&fleet).load_balancer(Only(a.address())).service(world.clone());
    balanced.wait_until(|now| now.chosen() == 2).await;
    let answers: Vec<_> = (0..5).map(|_| ask(&balanced, "hold")).collect();
    a.arrived().await;
    all_wait().await;
    assert_eq!(balanced.snapshot().waiting, 4);
    a.open(5);
    for answer in answers {
        assert_eq!(answer.await.expect("no panic").expect("served"), "a");
    }
    assert_eq!(b.calls(), 0);
    a.doom("connection reset");
    a.makes(Makes::Errors);
    let error = who(&balanced).await.expect_err("the only one named is gone");
    assert!(matches!(error, LoadBalancedError::Route(RouteError::AllUnavailable { .. })), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_services_own_error_can_be_had_by_its_type() {
    #[derive(Debug, thiserror::Error)]
    #[error("no such greeting")]
    struct NoSuchGreeting;

    let make = tower::service_fn(|_: Address| async {
        Ok::<_, std::convert::Infallible>(tower::service_fn(|_: Req| async { Err::<(), _>(NoSuchGreeting) }))
    });
    let world = World::default();
    let mut balanced = builder(&Fleet::of([world.host("a").instance()])).service(make);
    let error = balanced.call("").await.expect_err("it fails");
    assert!(error.of_service::<NoSuchGreeting>().is_some(), "{error:?}");
}
