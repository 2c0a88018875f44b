//! Busy services, and the requests that wait for them.

use std::time::Duration;

use client_sdk::layer::{ConnectionState, LoadBalancedError, RouteError};
use tokio::time::Instant;
use tower::{Service, ServiceBuilder};

use crate::kit::{Always, Answer, Fleet, Host, Req, World, all_wait, ask, builder, over, who};

async fn answered(answer: Answer) -> String {
    answer.await.expect("no panic").expect("served")
}

#[tokio::test(start_paused = true)]
async fn a_busy_service_is_passed_over_and_stays_chosen() {
    let world = World::default();
    let [a, b] = world.hosts(["a", "b"]);
    a.at_once(1);
    let policy = Always::new("a");
    let fleet = Fleet::of([&a, &b].map(Host::instance));
    let balanced = builder(&fleet).policy(policy.clone()).service(world.clone());
    balanced.wait_until(|now| now.chosen() == 2).await;
    let built = policy.built();
    let held = ask(&balanced, "hold");
    a.arrived().await;
    for _ in 0..10 {
        assert_eq!(who(&balanced).await.expect("served"), "b");
    }
    let snapshot = balanced.snapshot();
    let busy = snapshot.instance("a").expect("there");
    assert_eq!((busy.state, busy.busy, busy.in_flight), (ConnectionState::Ready, true, 1));
    assert_eq!(snapshot.chosen(), 2);
    a.open(1);
    assert_eq!(answered(held).await, "a");
    all_wait().await;
    assert!(!balanced.snapshot().instance("a").expect("there").busy);
    assert_eq!(who(&balanced).await.expect("served"), "a");
    assert_eq!((policy.built(), a.made()), (built, 1), "no picker and no service was made for that");
}

#[tokio::test(start_paused = true)]
async fn requests_wait_while_all_are_busy_and_each_that_becomes_free_serves_one() {
    let world = World::default();
    let hosts = world.hosts(["a", "b"]);
    for host in &hosts {
        host.at_once(1);
    }
    let (balanced, _fleet) = over(&world, &hosts).await;
    let answers: Vec<_> = (0..20).map(|_| ask(&balanced, "hold")).collect();
    for host in &hosts {
        host.arrived().await;
    }
    all_wait().await;
    assert_eq!(balanced.snapshot().waiting, 18);
    for served in 1..=9 {
        for host in &hosts {
            host.open(1);
            host.arrived().await;
        }
        all_wait().await;
        assert_eq!(balanced.snapshot().waiting, 18 - 2 * served);
    }
    for host in &hosts {
        host.open(1);
    }
    for answer in answers {
        answered(answer).await;
    }
    assert_eq!(hosts.iter().map(Host::calls).collect::<Vec<_>>(), [10, 10]);
}

/// Of places that become free together, none is left empty while a request waits.
#[tokio::test(start_paused = true)]
async fn no_wake_up_is_lost_when_a_service_has_several_places_again_at_once() {
    let world = World::default();
    let a = world.host("a");
    a.at_once(10);
    let (balanced, _fleet) = over(&world, [&a]).await;
    let answers: Vec<_> = (0..40).map(|_| ask(&balanced, "hold")).collect();
    for round in 1..=4 {
        for _ in 0..10 {
            a.arrived().await;
        }
        all_wait().await;
        assert_eq!(balanced.snapshot().waiting, 40 - 10 * round);
        a.open(10);
    }
    for answer in answers {
        answered(answer).await;
    }
}

/// A service tells only whoever asked it last, be it in passing.
#[tokio::test(start_paused = true)]
async fn an_answer_takes_no_wake_up_away_from_a_service_that_is_busy_or_new() {
    let world = World::default();
    let a = world.host("a");
    a.allow(2);
    let (balanced, _fleet) = over(&world, [&a]).await;
    let [one, other] = [ask(&balanced, "hold"), ask(&balanced, "hold")];
    a.arrived().await;
    a.arrived().await;
    all_wait().await;
    a.open(1);
    all_wait().await;
    let waits = ask(&balanced, "");
    all_wait().await;
    assert!(!waits.is_finished());
    a.allow(1);
    assert_eq!(answered(waits).await, "a");
    // The other one is answered while another service is being made.
    a.doom("connection reset");
    all_wait().await;
    a.open(1);
    all_wait().await;
    assert!(one.is_finished() && other.is_finished());
    let waits = ask(&balanced, "");
    all_wait().await;
    a.allow(1);
    assert_eq!(answered(waits).await, "a");
    assert_eq!(a.made(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_and_requests_in_flight_have_no_place_in_it() {
    let world = World::default();
    let a = world.host("a");
    a.at_once(1);
    let balanced = builder(&Fleet::of([a.instance()])).queue_limit(2).service(world.clone());
    // This one waited too, until the service was made.
    let first = ask(&balanced, "hold");
    a.arrived().await;
    let waiting = [ask(&balanced, ""), ask(&balanced, "")];
    all_wait().await;
    assert_eq!(balanced.snapshot().waiting, 2);
    let error = who(&balanced).await.expect_err("a third");
    assert!(matches!(error, LoadBalancedError::Route(RouteError::QueueFull { limit: 2, .. })), "{error:?}");
    a.open(1);
    assert_eq!(answered(first).await, "a");
    for answer in waiting {
        answered(answer).await;
    }
    assert_eq!(balanced.snapshot().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_a_busy_service_no_longer_than_it_is_said_to() {
    let world = World::default();
    let a = world.host("a");
    a.at_once(1);
    let fleet = Fleet::of([a.instance()]);
    let balanced = builder(&fleet).max_wait(Duration::from_secs(3)).service(world.clone());
    let held = ask(&balanced, "hold");
    a.arrived().await;
    let began = Instant::now();
    let error = who(&balanced).await.expect_err("busy all the time");
    assert_eq!(began.elapsed().as_secs(), 3);
    assert!(
        matches!(error, LoadBalancedError::Route(RouteError::AllUnavailable { connected: 1, .. })),
        "{error:?}"
    );
    a.open(1);
    assert_eq!(answered(held).await, "a");
}

#[tokio::test(start_paused = true)]
async fn a_request_given_up_while_it_waits_leaves_no_trace() {
    let world = World::default();
    let hosts = world.hosts(["a", "b"]);
    for host in &hosts {
        host.at_once(1);
    }
    let (balanced, _fleet) = over(&world, &hosts).await;
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..50 {
        let mut answers: Vec<_> = (0..10).map(|_| ask(&balanced, "hold")).collect();
        all_wait().await;
        // Some are given up at the very moment at which there is a place for them.
        rng.shuffle(&mut answers);
        for host in &hosts {
            host.open(1);
        }
        let (given_up, kept) = answers.split_at(5);
        for answer in given_up {
            answer.abort();
            if rng.bool() {
                tokio::task::yield_now().await;
            }
        }
        for host in &hosts {
            host.open(10);
        }
        all_wait().await;
        assert!(kept.iter().all(Answer::is_finished), "a wake-up was lost");
        let snapshot = balanced.snapshot();
        assert_eq!(snapshot.waiting, 0);
        assert!(snapshot.instances.iter().all(|it| it.in_flight == 0 && !it.busy), "{snapshot:?}");
        hosts.iter().for_each(Host::shut);
    }
    assert_eq!(hosts.iter().map(Host::made).collect::<Vec<_>>(), [1, 1], "no service was lost");
}

#[tokio::test(start_paused = true)]
async fn a_request_given_up_in_flight_gives_its_place_back() {
    let world = World::default();
    let a = world.host("a");
    a.at_once(1);
    let (balanced, _fleet) = over(&world, [&a]).await;
    let held = ask(&balanced, "hold");
    a.arrived().await;
    let waits = ask(&balanced, "");
    all_wait().await;
    held.abort();
    assert_eq!(answered(waits).await, "a");
    assert_eq!(balanced.snapshot().instance("a").expect("there").in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn towers_own_limits_and_buffers_are_waited_for() {
    let world = World::default();
    let hosts = world.hosts(["a", "b"]);
    let fleet = Fleet::of(hosts.iter().map(Host::instance));
    let make = ServiceBuilder::new()
        .map_response(|served| ServiceBuilder::new().concurrency_limit(2).buffer::<Req>(4).service(served))
        .service(world.clone());
    let balanced = builder(&fleet).service(make);
    balanced.wait_until(|now| now.chosen() == 2).await;
    let answers: Vec<_> = (0..20)
        .map(|_| {
            let mut balanced = balanced.clone();
            tokio::spawn(async move { balanced.call("hold").await })
        })
        .collect();
    all_wait().await;
    let snapshot = balanced.snapshot();
    assert_eq!(snapshot.waiting, 16);
    assert!(snapshot.instances.iter().all(|it| it.busy && it.in_flight == 2), "{snapshot:?}");
    for host in &hosts {
        host.open(20);
    }
    for answer in answers {
        answer.await.expect("no panic").expect("served");
    }
}

/// On real threads, where everything happens at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_wake_up_is_lost_on_many_threads() {
    let world = World::default();
    let hosts = world.hosts(["a", "b", "c"]);
    for host in &hosts {
        host.at_once(2);
    }
    let fleet = Fleet::of(hosts.iter().map(Host::instance));
    let balanced = builder(&fleet).max_wait(Duration::from_mins(1)).service(world.clone());
    let callers: Vec<_> = (0..64)
        .map(|caller| {
            let balanced = balanced.clone();
            tokio::spawn(async move {
                for call in 0..200 {
                    if (caller + call) % 7 == 0 {
                        let given_up = ask(&balanced, "");
                        tokio::task::yield_now().await;
                        given_up.abort();
                    } else {
                        who(&balanced).await.expect("served");
                    }
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("served all the time");
    }
    let calls: usize = hosts.iter().map(Host::calls).sum();
    assert!(calls >= 64 * 170, "{calls}");
}
