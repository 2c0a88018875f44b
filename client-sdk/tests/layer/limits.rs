//! How many requests an instance may have at once, and what becomes of those beyond.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use client_sdk::{
    Address, Endpoint, StaticDiscover,
    layer::{LoadBalanceLayer, LoadBalancedError, Overflow, RouteError},
};
use tower::{Service, service_fn};

use crate::kit::{Always, Fleet, Host, World, all_wait, ask, builder, who};

#[tokio::test(start_paused = true)]
async fn one_that_has_as_many_as_it_may_is_passed_over_and_if_all_have_requests_wait() {
    let world = World::default();
    let hosts = world.hosts(["a", "b"]);
    let fleet = Fleet::of(hosts.iter().map(Host::instance));
    let balanced = builder(&fleet).policy(Always::new("a")).max_in_flight(2).service(world.clone());
    balanced.wait_until(|now| now.chosen() == 2).await;
    let [a, b] = &hosts;
    let mut held: Vec<_> = (0..4).map(|_| ask(&balanced, "hold")).collect();
    all_wait().await;
    assert_eq!((a.calls(), b.calls()), (2, 2), "what one has no place for goes to the other");
    let snapshot = balanced.snapshot();
    assert!(snapshot.instances.iter().all(|it| it.busy && it.in_flight == 2), "{snapshot:?}");
    held.extend((0..6).map(|_| ask(&balanced, "hold")));
    all_wait().await;
    assert_eq!((a.calls(), b.calls(), balanced.snapshot().waiting), (2, 2, 6));
    for left in (0..6).rev() {
        b.open(1);
        all_wait().await;
        assert_eq!((b.calls(), balanced.snapshot().waiting), (8 - left, left), "each end lets one in");
    }
    a.open(2);
    b.open(2);
    for answer in held {
        answer.await.expect("no panic").expect("served");
    }
    assert!(balanced.snapshot().instances.iter().all(|it| !it.busy && it.in_flight == 0));
}

#[tokio::test(start_paused = true)]
async fn beyond_the_limits_requests_fail_with_a_typed_error() {
    let world = World::default();
    let host = world.host("a");
    let fleet = Fleet::of([host.instance()]);
    let overloaded = |error: LoadBalancedError| match error {
        LoadBalancedError::Route(RouteError::Overloaded { limit, pending, .. }) => (limit, pending),
        other => panic!("{other:?}"),
    };
    let fails = builder(&fleet).max_in_flight(1).overflow(Overflow::Fail).service(world.clone());
    let held = ask(&fails, "hold");
    host.arrived().await;
    assert_eq!(overloaded(who(&fails).await.expect_err("full")), (1, None));
    assert_eq!(fails.snapshot().waiting, 0);
    host.open(1);
    held.await.expect("no panic").expect("served");
    assert_eq!(who(&fails).await.expect("there is a place again"), "a");

    let waits = builder(&fleet).max_in_flight(1).max_pending(2).max_wait(Duration::from_secs(3));
    let waits = waits.service(world.clone());
    let mut held = vec![ask(&waits, "hold")];
    host.arrived().await;
    held.extend((0..2).map(|_| ask(&waits, "hold")));
    all_wait().await;
    assert_eq!(overloaded(who(&waits).await.expect_err("two wait already")), (1, Some(2)));
    host.open(1);
    host.arrived().await;
    let third = ask(&waits, "");
    all_wait().await;
    assert_eq!(waits.snapshot().waiting, 2, "one got in, and there is a place to wait in again");
    assert_eq!(overloaded(third.await.expect("no panic").expect_err("waited for so long")), (1, Some(2)));
    host.open(2);
    let served =
        held.remove(1).await.expect("no panic").is_ok() || held.remove(1).await.expect("no panic").is_ok();
    assert!(served);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_given_up_gives_its_place_back() {
    let world = World::default();
    let host = world.host("a");
    let fleet = Fleet::of([host.instance()]);
    let balanced = builder(&fleet).max_in_flight(1).service(world.clone());
    let given_up = ask(&balanced, "hold");
    host.arrived().await;
    let next = ask(&balanced, "");
    all_wait().await;
    assert_eq!(balanced.snapshot().waiting, 1);
    given_up.abort();
    assert_eq!(next.await.expect("no panic").expect("served"), "a");
}

/// On real threads, with services that yield in the middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_many_threads_no_limit_is_passed_and_no_wake_up_is_lost() {
    const CALLERS: usize = 64;
    const CALLS: usize = 100;
    for limit in [1, 3] {
        let most = Arc::new(AtomicUsize::new(0));
        let served = Arc::new(AtomicUsize::new(0));
        let make = {
            let (most, served) = (Arc::clone(&most), Arc::clone(&served));
            service_fn(move |_: Address| {
                let (most, served, inside) =
                    (Arc::clone(&most), Arc::clone(&served), Arc::new(AtomicUsize::new(0)));
                async move {
                    Ok::<_, std::io::Error>(service_fn(move |(): ()| {
                        let (most, served, inside) =
                            (Arc::clone(&most), Arc::clone(&served), Arc::clone(&inside));
                        async move {
                            most.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
                            tokio::task::yield_now().await;
                            inside.fetch_sub(1, SeqCst);
                            served.fetch_add(1, SeqCst);
                            Ok::<_, std::io::Error>(())
                        }
                    }))
                }
            })
        };
        let discover = Arc::new(StaticDiscover::parse(["a:1", "b:1", "c:1"]).expect("valid"));
        let balanced =
            LoadBalanceLayer::builder(discover, Endpoint::new("x")).max_in_flight(limit).service(make);
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                let mut balanced = balanced.clone();
                tokio::spawn(async move {
                    for _ in 0..CALLS {
                        balanced.call(()).await.expect("served");
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.await.expect("no panic");
        }
        assert_eq!(served.load(SeqCst), CALLERS * CALLS, "nobody waits for ever");
        assert!(most.load(SeqCst) <= limit, "{most:?} at once of {limit}");
    }
}
