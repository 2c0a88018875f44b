//! Instances that fail too much: out, one probe, back.

use std::time::Duration;

use client_sdk::{
    layer::Standing,
    outlier::{EjectionCause, FailurePercentage, OutlierDetection},
};

use crate::kit::{Always, Balanced, Fleet, Host, World, all_wait, ask, builder, over, who};

const INTERVAL: Duration = Duration::from_secs(10);

fn standing(balanced: &Balanced, id: &str) -> Standing {
    balanced.snapshot().instance(id).expect("there").standing
}

/// Sends requests until this host is ejected; they fail at five.
async fn eject(balanced: &Balanced, host: &Host) {
    host.fails(true);
    let before = host.calls();
    while host.calls() < before + 5 {
        let _ = who(balanced).await; // by whomever
    }
    all_wait().await;
    let calls = host.calls();
    for _ in 0..20 {
        let _ = who(balanced).await;
    }
    assert_eq!(host.calls(), calls, "out");
}

#[tokio::test(start_paused = true)]
async fn five_failures_in_a_row_eject_and_one_good_probe_brings_back() {
    let world = World::default();
    let hosts = world.hosts(["a", "b", "c"]);
    let (balanced, _fleet) = over(&world, &hosts).await;
    let [a, ..] = &hosts;
    eject(&balanced, a).await;
    let snapshot = balanced.snapshot();
    let it = snapshot.instance("a").expect("there");
    let ejection = it.ejection.expect("it says so");
    assert_eq!((it.standing, ejection.cause), (Standing::Ejected, EjectionCause::ConsecutiveFailures));
    assert_eq!((ejection.until.saturating_sub(ejection.since), ejection.times), (Duration::from_secs(30), 1));
    assert_eq!((snapshot.chosen(), a.alive()), (2, 1), "its service is kept");

    // Nobody asks, and time passes.
    a.fails(false);
    balanced.wait_until(|now| now.instance("a").expect("there").standing == Standing::Probing).await;
    let calls = a.calls();
    let probe = loop {
        let probe = ask(&balanced, "hold");
        all_wait().await;
        if a.calls() > calls {
            break probe;
        }
        probe.abort();
    };
    for _ in 0..20 {
        assert_ne!(who(&balanced).await.expect("served"), "a", "one at a time");
    }
    a.open(1);
    assert_eq!(probe.await.expect("no panic").expect("served"), "a");
    all_wait().await;
    assert_eq!(standing(&balanced, "a"), Standing::Chosen);
    let calls = a.calls();
    for _ in 0..30 {
        who(&balanced).await.expect("served");
    }
    assert_eq!(a.calls(), calls + 10, "its third of them again");
}

#[tokio::test(start_paused = true)]
async fn a_bad_probe_ejects_for_longer_and_one_that_is_given_up_says_nothing() {
    let world = World::default();
    let hosts = world.hosts(["a", "b"]);
    let fleet = Fleet::of(hosts.iter().map(Host::instance));
    let balanced = builder(&fleet).policy(Always::new("a")).service(world.clone());
    balanced.wait_until(|now| now.chosen() == 2).await;
    let a = &hosts[0];
    eject(&balanced, a).await;
    let probing =
        || balanced.wait_until(|now| now.instance("a").expect("there").standing == Standing::Probing);
    probing().await;
    let given_up = ask(&balanced, "hold");
    a.arrived().await;
    assert_eq!(who(&balanced).await.expect("served"), "b", "another is the probe");
    given_up.abort();
    all_wait().await;
    let error = who(&balanced).await.expect_err("the next is the probe").to_string();
    assert!(error.contains("a fails"), "{error}");
    all_wait().await;
    let ejection = balanced.snapshot().instance("a").expect("there").ejection.expect("again");
    assert_eq!((ejection.cause, ejection.times), (EjectionCause::Probe, 2));
    assert_eq!(ejection.until.saturating_sub(ejection.since), Duration::from_mins(1));
    assert_eq!(who(&balanced).await.expect("served"), "b");
    probing().await;
    a.fails(false);
    assert_eq!(who(&balanced).await.expect("served"), "a");
    assert_eq!(who(&balanced).await.expect("served"), "a", "at once, for everybody");
}

#[tokio::test(start_paused = true)]
async fn requests_that_wait_for_a_probe_go_on_when_it_is_over() {
    let world = World::default();
    let hosts = world.hosts(["a", "b"]);
    let [a, b] = &hosts;
    b.at_once(1);
    let (balanced, _fleet) = over(&world, &hosts).await;
    eject(&balanced, a).await;
    a.fails(false);
    balanced.wait_until(|now| now.instance("a").expect("there").standing == Standing::Probing).await;
    let held: Vec<_> = (0..2).map(|_| ask(&balanced, "hold")).collect();
    a.arrived().await;
    b.arrived().await;
    let waiting: Vec<_> = (0..5).map(|_| ask(&balanced, "")).collect();
    all_wait().await;
    assert_eq!(balanced.snapshot().waiting, 5, "one is busy, and the other has its probe");
    a.open(1);
    for answer in waiting {
        assert_eq!(answer.await.expect("no panic").expect("served"), "a");
    }
    b.open(1);
    for answer in held {
        answer.await.expect("no panic").expect("served");
    }
}

#[tokio::test(start_paused = true)]
async fn services_that_cannot_be_made_or_fail_while_idle_do_not_use_up_the_share() {
    let world = World::default();
    let hosts = world.hosts(["a", "b", "c", "d"]);
    let (balanced, _fleet) = over(&world, &hosts).await;
    let [a, b, c, _] = &hosts;
    for host in [b, c] {
        host.makes(crate::kit::Makes::Errors);
        host.doom("connection lost");
    }
    all_wait().await;
    balanced.wait_until(|now| now.chosen() == 2).await;
    eject(&balanced, a).await;
    let snapshot = balanced.snapshot();
    let of = |id| snapshot.instance(id).expect("there");
    assert_eq!((of("a").standing, of("b").standing), (Standing::Ejected, Standing::NotConnected));
    assert!(of("b").ejection.is_none() && of("c").ejection.is_none());
}

#[tokio::test(start_paused = true)]
async fn one_in_ten_may_be_ejected_and_one_at_least() {
    for (size, most) in [(5, 1), (19, 1), (20, 2), (30, 3)] {
        let world = World::default();
        let hosts: Vec<_> = (0..size).map(|n| world.host(&format!("h{n}"))).collect();
        let (balanced, _fleet) = over(&world, &hosts).await;
        hosts[..size / 2].iter().for_each(|host| host.fails(true));
        for _ in 0..size * 20 {
            let _ = who(&balanced).await; // many fail
        }
        all_wait().await;
        let out = balanced.snapshot().instances.iter().filter(|it| it.ejection.is_some()).count();
        assert_eq!(out, most, "of {size}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_interval_ejects_by_percentage_while_requests_go_on() {
    let world = World::default();
    let hosts = world.hosts(["a", "b", "c", "d", "e"]);
    let fleet = Fleet::of(hosts.iter().map(Host::instance));
    let detection = OutlierDetection::builder().success_rate(None).consecutive_failures(None);
    let detection = detection.failure_percentage(FailurePercentage::new()).build().expect("sensible");
    let balanced = builder(&fleet).outlier_detection(detection).service(world.clone());
    balanced.wait_until(|now| now.chosen() == 5).await;
    hosts[2].fails(true);
    for _ in 0..49 * 5 {
        let _ = who(&balanced).await; // every fifth fails
    }
    tokio::time::sleep(INTERVAL).await;
    assert_eq!(balanced.snapshot().chosen(), 5, "49 each are too few");
    for _ in 0..50 * 5 {
        let _ = who(&balanced).await;
    }
    assert_eq!(balanced.snapshot().chosen(), 5, "not before the interval ends");
    tokio::time::sleep(INTERVAL).await;
    let ejection = balanced.snapshot().instance("c").expect("there").ejection.expect("out");
    assert_eq!(ejection.cause, EjectionCause::FailurePercentage);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_weight_resets_nothing_and_one_that_left_is_forgotten() {
    let world = World::default();
    let hosts = world.hosts(["a", "b", "c"]);
    let (balanced, fleet) = over(&world, &hosts).await;
    let [a, b, c] = &hosts;
    eject(&balanced, a).await;
    let ejection = balanced.snapshot().instance("a").expect("there").ejection;
    fleet.set([a.instance().weight(5).tag("version", "2"), b.instance(), c.instance()]);
    all_wait().await;
    let now = balanced.snapshot();
    let it = now.instance("a").expect("there");
    assert_eq!((it.instance.weight, it.standing, it.ejection), (5, Standing::Ejected, ejection));
    fleet.set([b.instance(), c.instance()]);
    all_wait().await;
    fleet.set([a.instance(), b.instance(), c.instance()]);
    balanced.wait_until(|now| now.chosen() == 3).await;
    assert!(balanced.snapshot().instance("a").expect("there").ejection.is_none());
    // What it had is forgotten too: four more are no five.
    let before = a.calls();
    while a.calls() < before + 4 {
        let _ = who(&balanced).await; // by whomever
    }
    all_wait().await;
    assert_eq!(standing(&balanced, "a"), Standing::Chosen);
}

#[tokio::test(start_paused = true)]
async fn the_last_that_is_there_is_used_ejected_or_not() {
    let world = World::default();
    let hosts = world.hosts(["a", "b"]);
    let (balanced, fleet) = over(&world, &hosts).await;
    let [a, b] = &hosts;
    eject(&balanced, a).await;
    a.fails(false);
    b.makes(crate::kit::Makes::Errors);
    b.doom("connection lost");
    assert_eq!(who(&balanced).await.expect("served"), "a", "the other has no service");
    all_wait().await;
    assert_eq!(standing(&balanced, "a"), Standing::Chosen);
    fleet.set([a.instance()]);
    all_wait().await;
    assert_eq!(who(&balanced).await.expect("served"), "a", "the other left");
}

#[tokio::test(start_paused = true)]
async fn switched_off_nobody_is_ejected() {
    let world = World::default();
    let hosts = world.hosts(["a", "b"]);
    let fleet = Fleet::of(hosts.iter().map(Host::instance));
    let balanced = builder(&fleet).without_outlier_detection().service(world.clone());
    balanced.wait_until(|now| now.chosen() == 2).await;
    hosts[0].fails(true);
    for _ in 0..100 {
        let _ = who(&balanced).await; // every other fails
    }
    tokio::time::sleep(INTERVAL * 2).await;
    assert_eq!((hosts[0].calls(), balanced.snapshot().chosen()), (50, 2));
}
