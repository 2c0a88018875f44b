//! The life of services: made, driven, failed, made anew, drained, whether or not anybody asks for anything.

use std::{sync::atomic::Ordering, time::Duration};

use client_sdk::{
    layer::{ConnectionState, LoadBalancedError, RouteError, Standing},
    model::{Instance, Status},
};
use tokio::time::Instant;

use crate::kit::{Always, Fleet, Host, Makes, Panics, World, all_wait, ask, builder, over, who};

/// tower #824.
#[tokio::test(start_paused = true)]
async fn discovery_making_and_draining_advance_while_idle() {
    let world = World::default();
    let [a, b] = world.hosts(["a", "b"]);
    let (balanced, fleet) = over(&world, [&a]).await;
    fleet.set([b.instance()]);
    let snapshot = balanced.wait_until(|now| now.chosen() == 1 && now.instance("a").is_none()).await;
    assert_eq!(snapshot.instance("b").expect("there").state, ConnectionState::Ready);
    assert_eq!((a.alive(), b.alive(), a.calls(), b.calls()), (0, 1, 0, 0), "without a single request");
}

/// tower #856.
#[tokio::test(start_paused = true)]
async fn a_stale_choice_after_a_removal_goes_to_no_other_instance() {
    let world = World::default();
    let [a, b, c] = world.hosts(["a", "b", "c"]);
    let fleet = Fleet::of([&a, &b, &c].map(Host::instance));
    let balanced = builder(&fleet).policy(Always::new("b")).service(world.clone());
    balanced.wait_until(|now| now.chosen() == 3).await;
    let caller = tokio::spawn({
        let balanced = balanced.clone();
        async move {
            for _ in 0..300 {
                assert_eq!(who(&balanced).await.expect("served"), "b");
                tokio::task::yield_now().await;
            }
        }
    });
    let mut turn = 0;
    while !caller.is_finished() {
        turn += 1;
        match turn % 4 {
            0 => fleet.set([&c, &b, &a].map(Host::instance)),
            1 => fleet.set([b.instance()]),
            2 => fleet.set([&a, &b].map(Host::instance)),
            _ => fleet.set([c.instance(), a.instance(), b.instance().weight(turn)]),
        }
        tokio::task::yield_now().await;
    }
    caller.await.expect("every answer was b's");
}

/// tonic #2839. A service that says it is ready and then that it failed is asked again before a request is given to it.
#[tokio::test(start_paused = true)]
async fn readiness_never_says_ready_on_a_connection_error() {
    let world = World::default();
    let [a, b] = world.hosts(["a", "b"]);
    let fleet = Fleet::of([&a, &b].map(Host::instance));
    let balanced = builder(&fleet).policy(Always::new("a")).service(world.clone());
    balanced.wait_until(|now| now.chosen() == 2).await;
    a.makes(Makes::Errors);
    a.doom("connection reset");
    // The policy insists on it, and not even the first request meets it.
    for _ in 0..20 {
        assert_eq!(who(&balanced).await.expect("served"), "b");
    }
    let snapshot = balanced.wait_until(|now| now.chosen() == 1).await;
    let a = snapshot.instance("a").expect("there");
    assert_eq!((a.standing, a.state == ConnectionState::Ready), (Standing::NotConnected, false));
}

#[tokio::test(start_paused = true)]
async fn failed_endpoints_come_back_without_discovery_inserting_them_again() {
    let world = World::default();
    let a = world.host("a");
    a.makes(Makes::Errors);
    let balanced = builder(&Fleet::of([a.instance()])).service(world.clone());
    let error = who(&balanced).await.expect_err("refused");
    let LoadBalancedError::Route(RouteError::AllUnavailable { instances: 1, connected: 0, .. }) = &error
    else {
        panic!("{error:?}")
    };
    assert!(error.to_string().contains("connection refused"), "{error}");
    balanced.wait_until(|now| now.instances[0].state == ConnectionState::TransientFailure).await;
    a.makes(Makes::Services);
    balanced.wait_until(|now| now.chosen() == 1).await;
    assert_eq!(who(&balanced).await.expect("served"), "a");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_made_is_tried_with_backoff_and_not_in_a_hot_loop() {
    let world = World::default();
    let [refuses, breaks] = world.hosts(["refuses", "breaks"]);
    refuses.makes(Makes::Errors);
    breaks.doom("from the start"); // of none yet
    let fleet = Fleet::of([&refuses, &breaks].map(Host::instance));
    let backoff = (Duration::from_millis(100), Duration::from_secs(1));
    let balanced = builder(&fleet).backoff(backoff.0, backoff.1).service(world.clone());
    balanced.wait_until(|now| now.chosen() == 1).await;
    // It fails as soon as it is ready, time and again, and has served nobody.
    let stop = Instant::now() + Duration::from_secs(10);
    while Instant::now() < stop {
        breaks.doom("brief");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // At most 4 within the first second, then at most 2 a second; at least 1 a second.
    for host in [&refuses, &breaks] {
        assert!((9..=30).contains(&host.asked()), "{} times", host.asked());
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_ends_after_each_answer_is_made_anew_at_once() {
    let world = World::default();
    let a = world.host("a");
    let (balanced, _fleet) = over(&world, [&a]).await;
    let began = Instant::now();
    for turn in 1..=50 {
        a.at_once(1); // so that whoever has one is told
        assert_eq!(who(&balanced).await.expect("served"), "a");
        a.doom("connection: close");
        balanced.wait_until(|now| now.instances[0].connects == turn + 1 && now.chosen() == 1).await;
    }
    // Noticed within a second each by the idle look, and never backed off from, which would double to 30 s.
    assert!(began.elapsed() < Duration::from_mins(1), "{:?}", began.elapsed());
    assert_eq!((a.made(), a.alive()), (51, 1));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_after_its_service_ended_ends_the_backoff() {
    let world = World::default();
    let a = world.host("a");
    a.at_once(1); // so that it waits for its next request, and is told
    let fleet = Fleet::of([a.instance()]);
    let backoff = Duration::from_secs(30);
    let balanced = builder(&fleet).backoff(backoff, backoff).service(world.clone());
    let held = ask(&balanced, "hold");
    a.arrived().await;
    a.doom("connection: close");
    balanced.wait_until(|now| now.instances[0].state == ConnectionState::TransientFailure).await;
    a.open(1);
    assert_eq!(held.await.expect("no panic").expect("served"), "a");
    let began = Instant::now();
    balanced.wait_until(|now| now.instances[0].connects == 2).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    // Without an answer it stands.
    let held = ask(&balanced, "hold");
    a.arrived().await;
    a.doom("connection reset");
    balanced.wait_until(|now| now.instances[0].state == ConnectionState::TransientFailure).await;
    held.abort();
    let began = Instant::now();
    balanced.wait_until(|now| now.instances[0].connects == 3).await;
    assert!(began.elapsed() >= backoff / 2, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn making_takes_no_longer_than_the_timeout() {
    let world = World::default();
    let [hangs, unready] = world.hosts(["hangs", "unready"]);
    hangs.makes(Makes::Nothing);
    unready.allow(0);
    let fleet = Fleet::of([&hangs, &unready].map(Host::instance));
    let balanced = builder(&fleet)
        .make_timeout(Duration::from_secs(2))
        .max_wait(Duration::from_secs(9))
        .service(world.clone());
    let began = Instant::now();
    let error = who(&balanced).await.expect_err("nothing");
    assert!(began.elapsed() <= Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(error.to_string().contains("no service was made and ready within 2000 ms"), "{error}");
    assert_eq!(unready.alive(), 0, "one that does not become ready is dropped");
    hangs.makes(Makes::Services);
    balanced.wait_until(|now| now.chosen() == 1).await;
    assert_eq!(who(&balanced).await.expect("served"), "hangs");
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_users_own_does_not_deafen_the_driver() {
    let world = World::default();
    let [a, b] = world.hosts(["a", "b"]);
    let fleet = Fleet::of([&a, &b].map(Host::instance));
    let balanced = builder(&fleet).policy(Always::new("a")).service(world.clone());
    balanced.wait_until(|now| now.chosen() == 2).await;
    for panics in [Panics::InCall, Panics::InReady, Panics::InMake] {
        a.panics(panics);
        let answer = ask(&balanced, "").await;
        match panics {
            Panics::InCall => assert!(answer.is_err(), "whoever gave it the request has its panic"),
            Panics::InReady => assert_eq!(answer.expect("no panic").expect("served"), "b", "not given yet"),
            _ => a.doom("so that another is to be made"),
        }
        let snapshot = balanced
            .wait_until(|now| now.instance("a").is_some_and(|a| a.state == ConnectionState::TransientFailure))
            .await;
        let error = snapshot.instance("a").expect("there").last_error.clone().expect("failed");
        assert_eq!(error, "a:1: the service, or what makes it, panicked", "{panics:?}");
        assert_eq!(who(&balanced).await.expect("served"), "b");
        a.panics(Panics::Never);
        balanced.wait_until(|now| now.chosen() == 2).await;
        assert_eq!(who(&balanced).await.expect("served"), "a");
    }
    assert_eq!(a.alive(), 1);
}

#[tokio::test(start_paused = true)]
async fn other_tags_and_weights_make_no_other_service() {
    let world = World::default();
    let a = world.host("a");
    let (balanced, fleet) = over(&world, [&a]).await;
    fleet.set([a.instance().weight(7).tag("version", "2")]);
    balanced.wait_until(|now| now.instances[0].instance.weight == 7).await;
    fleet.set([a.instance().revisions(9, 9)]);
    balanced.wait_until(|now| now.instances[0].instance.create_revision == 9).await;
    assert_eq!(who(&balanced).await.expect("served"), "a");
    assert_eq!((a.made(), a.alive()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_service_may_be_made_for_the_whole_instance_as_it_is_then() {
    let world = World::default();
    let a = world.host("a");
    let fleet = Fleet::of([a.instance().tag("server-name", "a.example")]);
    let balanced = builder(&fleet).by_instance().service(world.clone());
    assert_eq!(who(&balanced).await.expect("served"), "a");
    fleet.set([a.instance().tag("server-name", "b.example")]);
    balanced
        .wait_until(|now| now.instances[0].instance.tags.get("server-name").unwrap() == "b.example")
        .await;
    a.doom("connection reset");
    balanced.wait_until(|now| now.instances[0].connects == 2).await;
    let names: Vec<_> =
        a.seen().iter().map(|it: &std::sync::Arc<Instance>| it.tags["server-name"].clone()).collect();
    assert_eq!(names, ["a.example", "b.example"]);
}

#[tokio::test(start_paused = true)]
async fn a_moved_instance_gets_another_service_before_the_old_one_ends() {
    let world = World::default();
    let [a, b] = world.hosts(["a", "b"]);
    let (balanced, fleet) = over(&world, [&a]).await;
    let held = ask(&balanced, "hold");
    a.arrived().await;
    fleet.set([b.instance().id("a")]);
    balanced.wait_until(|now| now.chosen() == 1 && now.instances.len() == 2).await;
    assert_eq!(who(&balanced).await.expect("served"), "b");
    let snapshot = balanced.snapshot();
    let old = snapshot.instances.last().expect("two");
    assert_eq!((old.standing, old.in_flight, a.alive()), (Standing::Removed, 1, 1), "kept for it");
    a.open(1);
    assert_eq!(held.await.expect("no panic").expect("served"), "a");
    balanced.wait_until(|now| now.instances.len() == 1).await;
    assert_eq!((a.alive(), b.alive()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn draining_down_and_weight_0_get_no_request_and_come_back_with_the_same_service() {
    let world = World::default();
    let [a, b] = world.hosts(["a", "b"]);
    let (balanced, fleet) = over(&world, [&a, &b]).await;
    let away =
        [a.instance().status(Status::Draining), a.instance().status(Status::Down), a.instance().weight(0)];
    for away in away {
        fleet.set([away, b.instance()]);
        balanced.wait_until(|now| now.chosen() == 1).await;
        for _ in 0..4 {
            assert_eq!(who(&balanced).await.expect("served"), "b");
        }
        fleet.set([a.instance(), b.instance()]);
        balanced.wait_until(|now| now.chosen() == 2).await;
    }
    assert_eq!((a.calls(), a.made()), (0, 1));
    fleet.set([a.instance().weight(0), b.instance().weight(0)]);
    balanced.wait_until(|now| now.chosen() == 0).await;
    let error = who(&balanced).await.expect_err("all are of weight 0");
    assert!(error.to_string().ends_with("2 instances: 2 of weight 0"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn all_ends_with_the_last_clone_and_the_last_answer() {
    let world = World::default();
    let [a, b] = world.hosts(["a", "b"]);
    let (balanced, fleet) = over(&world, [&a]).await;
    let held = ask(&balanced, "hold");
    a.arrived().await;
    let clone = balanced.clone();
    drop(balanced);
    fleet.set([a.instance(), b.instance()]);
    clone.wait_until(|now| now.chosen() == 2).await;
    drop(clone);
    all_wait().await;
    assert_eq!(a.alive(), 1, "it has something to answer");
    a.open(1);
    assert_eq!(held.await.expect("no panic").expect("served"), "a");
    all_wait().await;
    assert_eq!((a.alive(), b.alive()), (0, 0));
    let made = (a.made(), b.made());
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!((a.made(), b.made()), made);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_instances_get_no_more_services_ahead_than_is_said() {
    let world = World::default();
    let hosts: Vec<_> = (0..1000).map(|n| world.host(&format!("host-{n}"))).collect();
    let fleet = Fleet::of(hosts.iter().map(Host::instance));
    let policy = Always::new("host-0");
    let balanced = builder(&fleet).connect_ahead(10).policy(policy.clone()).service(world.clone());
    balanced.wait_until(|now| now.chosen() == 10).await;
    all_wait().await;
    assert_eq!(hosts.iter().map(Host::made).sum::<usize>(), 10);
    assert!(policy.1.load(Ordering::SeqCst) <= 10, "{} pickers", policy.built());
}
