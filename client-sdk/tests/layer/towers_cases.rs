//! What tower holds its own `Balance` and `ReadyCache` to, as scenarios of ours.

use std::sync::Arc;

use client_sdk::{
    layer::{ConnectionState, LoadBalanceLayer, LoadBalancedError, RouteError},
    model::Endpoint,
};
use tower::{Layer, Service};

use crate::kit::{Fleet, Host, Makes, World, all_wait, ask, builder, over, who};

/// tower's `empty` pends for ever.
#[tokio::test(start_paused = true)]
async fn an_empty_set_fails_with_a_reason_or_waits_and_then_serves() {
    let (world, fleet) = (World::default(), Fleet::of([]));
    let fails = builder(&fleet).service(world.clone());
    let error = who(&fails).await.expect_err("nobody there");
    assert!(error.never_left());
    assert_eq!(error.to_string(), "no instance of default/greeter takes requests: no instance is registered");
    let waits = builder(&fleet).wait_for_ready(true).service(world.clone());
    let answer = ask(&waits, "");
    all_wait().await;
    assert_eq!(waits.snapshot().waiting, 1);
    fleet.set([world.host("a").instance()]);
    assert_eq!(answer.await.expect("no panic").expect("served"), "a");
    assert_eq!(who(&fails).await.expect("served"), "a");
}

#[tokio::test(start_paused = true)]
async fn a_single_endpoint_serves_when_it_is_ready_and_is_dropped_when_it_fails() {
    let world = World::default();
    let a = world.host("a");
    a.allow(0);
    let balanced = builder(&Fleet::of([a.instance()])).service(world.clone());
    let answer = ask(&balanced, "");
    all_wait().await;
    let pending = balanced.snapshot();
    assert_eq!(pending.instance("a").expect("there").state, ConnectionState::Connecting);
    assert_eq!((pending.waiting, a.alive()), (1, 1), "it is made, and not ready");
    a.allow(1);
    assert_eq!(answer.await.expect("no panic").expect("served"), "a");

    a.makes(Makes::Errors);
    a.doom("endpoint lost");
    balanced.wait_until(|now| now.chosen() == 0).await;
    assert_eq!(a.alive(), 0, "failed services are dropped");
    let error = who(&balanced).await.expect_err("the only one failed");
    assert!(matches!(error, LoadBalancedError::Route(RouteError::AllUnavailable { .. })), "{error:?}");
    assert!(error.to_string().contains("connection refused"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn of_two_endpoints_with_equal_load_the_ready_one_serves() {
    let world = World::default();
    let hosts = world.hosts(["a", "b"]);
    let [a, b] = &hosts;
    a.allow(1);
    b.allow(0);
    let balanced = builder(&Fleet::of(hosts.iter().map(Host::instance))).service(world.clone());
    assert_eq!(who(&balanced).await.expect("served"), "a");
    b.allow(1);
    assert_eq!(who(&balanced).await.expect("served"), "b");
    a.allow(1);
    assert_eq!(who(&balanced).await.expect("served"), "a");

    for host in &hosts {
        host.at_once(10);
    }
    all_wait().await;
    let before = (a.calls(), b.calls());
    for _ in 0..10 {
        who(&balanced).await.expect("served");
    }
    assert_eq!((a.calls() - before.0, b.calls() - before.1), (5, 5), "in turn");

    a.makes(Makes::Errors);
    a.doom("endpoint lost");
    for _ in 0..10 {
        assert_eq!(who(&balanced).await.expect("served"), "b", "without an error to a caller");
    }
    let snapshot = balanced.wait_until(|now| now.chosen() == 1).await;
    assert!(snapshot.instance("b").expect("there").last_error.is_none());
}

/// tower's `poll_ready_inner_failure`.
#[tokio::test(start_paused = true)]
async fn a_service_that_fails_before_it_is_ready_is_evicted_and_fails_no_caller() {
    let world = World::default();
    let [a, b] = world.hosts(["a", "b"]);
    a.allow(0);
    b.allow(0);
    let balanced = builder(&Fleet::of([a.instance(), b.instance()])).service(world.clone());
    all_wait().await;
    let answer = ask(&balanced, "");
    a.doom("doom");
    a.makes(Makes::Errors);
    let snapshot = balanced
        .wait_until(|now| now.instance("a").is_some_and(|a| a.state == ConnectionState::TransientFailure))
        .await;
    let error = snapshot.instance("a").expect("there").last_error.clone().expect("failed");
    assert_eq!(error, "a:1: the service failed: doom");
    assert_eq!((a.alive(), b.alive()), (0, 1));
    b.allow(1);
    assert_eq!(answer.await.expect("no panic").expect("served"), "b");
}

/// tower's `poll_ready_not_ready` and `poll_ready_promotes_inner`.
#[tokio::test(start_paused = true)]
async fn services_that_are_not_ready_are_not_chosen_and_are_promoted_when_they_are() {
    let world = World::default();
    let hosts = world.hosts(["a", "b"]);
    for host in &hosts {
        host.allow(0);
    }
    let balanced = builder(&Fleet::of(hosts.iter().map(Host::instance))).service(world.clone());
    all_wait().await;
    let snapshot = balanced.snapshot();
    assert_eq!((snapshot.chosen(), snapshot.instances.len()), (0, 2));
    assert!(snapshot.instances.iter().all(|it| it.state == ConnectionState::Connecting));
    for host in &hosts {
        host.allow(1);
    }
    let snapshot = balanced.wait_until(|now| now.chosen() == 2).await;
    assert!(snapshot.instances.iter().all(|it| it.state == ConnectionState::Ready && !it.busy));
}

/// tower's `evict_ready_then_error`, `evict_pending_then_error` and `push_then_evict`.
#[tokio::test(start_paused = true)]
async fn what_is_evicted_is_dropped_ready_or_not_and_its_errors_are_nobodys() {
    let world = World::default();
    let [ready, pending, stays] = world.hosts(["ready", "pending", "stays"]);
    pending.allow(0);
    let all = [&ready, &pending, &stays];
    let fleet = Fleet::of(all.map(Host::instance));
    let balanced = builder(&fleet).service(world.clone());
    balanced.wait_until(|now| now.chosen() == 2).await;
    fleet.set([stays.instance()]);
    ready.doom("doom");
    pending.doom("doom");
    let snapshot = balanced.wait_until(|now| now.instances.len() == 1).await;
    assert_eq!(snapshot.chosen(), 1);
    assert_eq!((ready.alive(), pending.alive(), stays.alive()), (0, 0, 1));
    assert_eq!(who(&balanced).await.expect("served"), "stays");

    // Here and gone before anything could be made of it.
    let brief = world.host("brief");
    fleet.set([stays.instance(), brief.instance()]);
    fleet.set([stays.instance()]);
    all_wait().await;
    assert_eq!(brief.alive(), 0);
    assert_eq!(who(&balanced).await.expect("served"), "stays");
}

/// tower's `error_after_promote`: there it stays in the cache until somebody calls it.
#[tokio::test(start_paused = true)]
async fn a_service_that_fails_after_it_was_ready_is_noticed_without_a_request() {
    let world = World::default();
    let a = world.host("a");
    let (balanced, _fleet) = over(&world, [&a]).await;
    a.doom("doom");
    a.makes(Makes::Errors);
    let snapshot = balanced.wait_until(|now| now.chosen() == 0).await;
    assert!(snapshot.instance("a").expect("there").last_error.is_some());
    assert_eq!((a.alive(), a.calls()), (0, 0));
}

/// tower's `duplicate_key_by_index`.
#[tokio::test(start_paused = true)]
async fn of_two_instances_of_one_id_the_first_counts_and_there_is_one_service() {
    let world = World::default();
    let [a, b] = world.hosts(["a", "b"]);
    let fleet = Fleet::of([a.instance(), b.instance().id("a")]);
    let balanced = builder(&fleet).service(world.clone());
    balanced.wait_until(|now| now.chosen() == 1).await;
    for _ in 0..5 {
        assert_eq!(who(&balanced).await.expect("served"), "a");
    }
    assert_eq!((a.made(), b.made(), balanced.snapshot().instances.len()), (1, 0, 1));
    // The other way round it is another address, so another service.
    fleet.set([b.instance().id("a"), a.instance()]);
    balanced.wait_until(|now| now.instances.len() == 1 && now.chosen() == 1 && a.alive() == 0).await;
    assert_eq!(who(&balanced).await.expect("served"), "b");
    fleet.set([]);
    balanced.wait_until(|now| now.instances.is_empty()).await;
    assert_eq!((a.alive(), b.alive()), (0, 0));
    fleet.set([a.instance()]);
    balanced.wait_until(|now| now.chosen() == 1).await;
    assert_eq!(who(&balanced).await.expect("served"), "a");
}

/// tower's `cancelation_observed` (tower #415): more services than a task may poll in one go.
#[tokio::test(start_paused = true)]
async fn hundreds_of_services_become_ready_and_their_eviction_is_observed() {
    let world = World::default();
    let hosts: Vec<_> = (0..400).map(|n| world.host(&format!("host-{n}"))).collect();
    for host in &hosts {
        host.allow(0);
    }
    let fleet = Fleet::of(hosts.iter().map(Host::instance));
    let balanced = builder(&fleet).connect_ahead(400).service(world.clone());
    all_wait().await;
    for host in &hosts {
        host.allow(1);
    }
    balanced.wait_until(|now| now.chosen() == 400).await;
    fleet.set(hosts[..1].iter().map(Host::instance));
    balanced.wait_until(|now| now.instances.len() == 1).await;
    assert_eq!(hosts.iter().map(Host::alive).sum::<usize>(), 1);
}

/// A discovery stream that ends; tower's `Balance` polls it again.
#[tokio::test(start_paused = true)]
async fn a_discovery_that_ended_leaves_its_last_view() {
    let world = World::default();
    let a = world.host("a");
    let (balanced, fleet) = over(&world, [&a]).await;
    // Nobody fills the view any more: the balanced service has but the receiver.
    drop(fleet);
    all_wait().await;
    assert_eq!(who(&balanced).await.expect("served"), "a");
    a.doom("doom");
    let snapshot = balanced.wait_until(|now| now.instance("a").is_some_and(|a| a.connects == 2)).await;
    assert_eq!(snapshot.chosen(), 1, "what is in it is still looked after");
    assert_eq!(who(&balanced).await.expect("served"), "a");
}

/// In tower's `Balance` it ends the balancer.
#[tokio::test(start_paused = true)]
async fn a_discovery_error_is_fatal_to_nobody_with_a_last_good_view() {
    let world = World::default();
    let [a, b] = world.hosts(["a", "b"]);
    let (balanced, fleet) = over(&world, [&a]).await;
    fleet.fail("the registry is down");
    let snapshot = balanced.wait_until(|now| now.discovery_error.is_some()).await;
    assert_eq!(snapshot.discovery_error.as_deref(), Some("the registry is down"));
    assert_eq!(who(&balanced).await.expect("served"), "a");
    fleet.set([b.instance()]);
    balanced.wait_until(|now| now.discovery_error.is_none() && now.chosen() == 1).await;
    assert_eq!(who(&balanced).await.expect("served"), "b");

    let unknown = Fleet::unknown();
    unknown.fail("the registry is down");
    let nothing = builder(&unknown).service(world.clone());
    let error = who(&nothing).await.expect_err("nothing known");
    assert_eq!(error.to_string(), "default/greeter is not discovered yet: the registry is down");
}

/// tower's `stress`: services come, go, fail and become ready in any order; whoever asks is answered by one that is there.
#[tokio::test(start_paused = true)]
async fn whatever_comes_goes_and_fails_every_request_is_answered_by_one_that_is_there() {
    for seed in 0..20 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (world, fleet) = (World::default(), Fleet::of([]));
        let balanced = builder(&fleet).wait_for_ready(true).service(world.clone());
        let (mut present, mut asked): (Vec<Host>, Vec<_>) = (Vec::new(), Vec::new());
        for step in 0..200 {
            match rng.u8(..8) {
                0 | 1 if present.len() < 8 => {
                    let host = world.host(&format!("host-{step}"));
                    host.at_once(rng.usize(..3));
                    present.push(host);
                }
                2 if present.len() > 2 => drop(present.swap_remove(rng.usize(..present.len()))),
                3 => rng.choice(&present).into_iter().for_each(|host| host.doom("doom")),
                4 => rng.choice(&present).into_iter().for_each(|host| host.at_once(rng.usize(..3))),
                _ => asked.push(ask(&balanced, "")),
            }
            fleet.set(present.iter().map(Host::instance));
            if rng.bool() {
                all_wait().await;
            }
        }
        if present.is_empty() {
            present.push(world.host("last"));
            fleet.set(present.iter().map(Host::instance));
        }
        for host in &present {
            host.at_once(1);
        }
        for answer in asked {
            answer.await.expect("no panic").unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
        let all = present.len();
        let snapshot = balanced.wait_until(|now| now.chosen() == all && now.instances.len() == all).await;
        assert_eq!(snapshot.waiting, 0);
        assert!(snapshot.instances.iter().all(|it| it.in_flight == 0), "seed {seed}: {snapshot:?}");
        let alive: usize = present.iter().map(Host::alive).sum();
        assert_eq!(alive, present.len(), "one service each");
    }
}

#[tokio::test(start_paused = true)]
async fn one_layer_makes_services_that_follow_the_endpoint_each_by_itself() {
    let (one, other) = (World::default(), World::default());
    let (a, b) = (one.host("a"), other.host("a"));
    let layer = builder(&Fleet::of([a.instance()])).build();
    let (mut first, second) = (layer.layer(one), layer.clone().layer(other));
    assert_eq!(first.call("").await.expect("served"), "a");
    assert_eq!((a.calls(), b.calls()), (1, 0));
    drop(first);
    assert_eq!(who(&second).await.expect("served"), "a");
    assert_eq!((a.calls(), b.calls()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_with_an_address_is_called_there() {
    let world = World::default();
    let [a, b] = world.hosts(["a", "b"]);
    let endpoint = Endpoint::builder("greeter").address(b.address()).build();
    let fleet = Arc::new(Fleet::of([a.instance()]));
    let balanced = LoadBalanceLayer::builder(fleet, endpoint).service(world.clone());
    assert_eq!(who(&balanced).await.expect("served"), "b");
}
