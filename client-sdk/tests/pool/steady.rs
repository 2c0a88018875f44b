//! The steady pool, as callers see it.

use std::{sync::atomic::Ordering, time::Duration};

use client_sdk::pool::{PoolError, ServiceState, SettingsError, SteadyBuilder, SteadyPool};
use tokio::{
    task::JoinHandle,
    time::{advance, sleep, timeout},
};
use tower::Service as _;

use crate::kit::{AT_ONCE, Ask, MILLI, Maker, Steady, World, callers};

const SECOND: Duration = Duration::from_secs(1);

/// Lets everybody do what they can at this moment.
pub async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Begins a call that is held.
pub fn hold(pool: &Steady) -> JoinHandle<Result<usize, PoolError>> {
    let mut pool = pool.clone();
    tokio::spawn(async move { pool.call(Ask::Hold).await })
}

#[tokio::test(start_paused = true)]
async fn the_first_services_are_made_at_once_and_requests_wait_for_them() {
    let world = World::of(1);
    *world.making.lock().unwrap() = SECOND;
    let mut pool = world.steady().min(2).build().unwrap();
    settle().await;
    assert_eq!(world.attempts(), 2, "nobody has asked yet");
    assert_eq!(pool.snapshot().making, 2);
    assert_eq!(pool.call(AT_ONCE).await.unwrap(), 0);
    assert_eq!(pool.snapshot().ready(), 2);
}

#[tokio::test(start_paused = true)]
async fn demand_for_k_services_holds_k_or_one_more_from_below_and_from_above() {
    for k in [1, 2, 3, 5] {
        let world = World::of(1);
        let pool = world.steady().build().unwrap();
        callers(&pool, k, 2_000 * k, Ask::Take(50 * MILLI)).await;
        assert!((k..=k + 1).contains(&pool.snapshot().ready()), "{k} from below: {:?}", pool.snapshot());
        callers(&pool, 9, 5_000, Ask::Take(50 * MILLI)).await;
        assert_eq!(pool.snapshot().ready(), 10);
        callers(&pool, k, 7_000 * k, Ask::Take(50 * MILLI)).await;
        assert!((k..=k + 1).contains(&pool.snapshot().ready()), "{k} from above: {:?}", pool.snapshot());
    }
}

#[tokio::test(start_paused = true)]
async fn it_works_where_services_are_always_ready() {
    let world = World::of(1_000_000);
    let pool = world.steady().limit(10).build().unwrap();
    callers(&pool, 35, 40_000, Ask::Take(50 * MILLI)).await;
    assert!((4..=5).contains(&pool.snapshot().ready()), "35 at once, 10 each: {:?}", pool.snapshot());
    assert!(world.calls().iter().all(|calls| *calls > 0), "all of them are used");
}

#[tokio::test(start_paused = true)]
async fn a_service_gets_no_more_at_once_than_the_limit_says() {
    let world = World::of(1_000_000);
    let pool = world.steady().limit(3).max(1).build().unwrap();
    let held: Vec<_> = (0..5).map(|_| hold(&pool)).collect();
    settle().await;
    let seen = pool.snapshot();
    assert_eq!((seen.in_flight, seen.waiting), (3, 2));
    world.gate.add_permits(5);
    for call in held {
        call.await.unwrap().unwrap();
    }
    assert_eq!(pool.snapshot().in_flight, 0);
}

/// A pool of two services, each with one request that takes long; one of the two is not needed any more, and drains.
pub async fn one_of_two_drains(world: &World) -> (Steady, Vec<JoinHandle<Result<usize, PoolError>>>) {
    let pool = world.steady().limit(4).max(2).build().unwrap();
    let (long, short) = (Ask::Take(1000 * SECOND), Ask::Take(5 * SECOND));
    let asked = [long, short, short, short, long, short, short, short];
    let calls = asked.map(|ask| {
        let mut pool = pool.clone();
        tokio::spawn(async move { pool.call(ask).await })
    });
    pool.wait_until(|now| now.draining() == 1).await;
    let loads = pool.snapshot().services.iter().map(|service| service.in_flight).collect::<Vec<_>>();
    assert_eq!(loads, [1, 1]);
    (pool, calls.into())
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_not_needed_finishes_what_it_has_and_gets_nothing_new() {
    let world = World::of(1_000_000);
    let (mut pool, calls) = one_of_two_drains(&world).await;
    let seen = pool.snapshot();
    let draining = seen.services.iter().find(|service| service.state == ServiceState::Draining).unwrap().id;
    for _ in 0..50 {
        assert_ne!(pool.call(AT_ONCE).await.unwrap() as u64, draining);
    }
    sleep(500 * SECOND).await;
    assert_eq!((pool.snapshot().in_flight, world.alive()), (2, 2), "it was not cut");
    for call in calls {
        call.await.unwrap().expect("none failed");
    }
    settle().await;
    assert_eq!(world.alive(), 1);
    assert_eq!(world.dropped.lock().unwrap().iter().map(|id| *id as u64).collect::<Vec<_>>(), [draining]);
}

#[tokio::test(start_paused = true)]
async fn one_that_drains_comes_back_when_it_is_needed_again() {
    let world = World::of(1_000_000);
    let (pool, calls) = one_of_two_drains(&world).await;
    let held: Vec<_> = (0..6).map(|_| hold(&pool)).collect();
    pool.wait_until(|now| now.ready() == 2).await;
    assert_eq!(world.made(), 2, "none was made");
    world.gate.add_permits(6);
    for call in held.into_iter().chain(calls) {
        call.await.unwrap().expect("none failed");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_goes_to_the_less_loaded_of_two() {
    for (loaded, idle) in [(0, 1), (1, 0)] {
        let world = World::of(1_000_000);
        world.loads.lock().unwrap().push((loaded, 9));
        let mut pool = world.steady().limit(10).min(2).build().unwrap();
        pool.wait_until(|now| now.ready() == 2).await;
        for _ in 0..30 {
            assert_eq!(pool.call(AT_ONCE).await.expect("served"), idle);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn draining_ones_included_there_are_never_more_than_the_most() {
    let world = World::of(1_000_000);
    // There may be two: one is in use, the other one drains. Then far more is asked than both take.
    let (pool, calls) = one_of_two_drains(&world).await;
    let held: Vec<_> = (0..100).map(|_| hold(&pool)).collect();
    let mut most = 0;
    pool.wait_until(|now| {
        most = most.max(now.services.len() + now.making);
        now.ready() == 2
    })
    .await;
    sleep(100 * SECOND).await;
    assert_eq!((most, world.made(), world.most_alive.load(Ordering::Relaxed)), (2, 2, 2));
    drop((calls, held));
}

#[tokio::test(start_paused = true)]
async fn new_makes_a_pool_with_the_defaults() {
    let world = World::of(1_000_000);
    let mut pool: Steady = SteadyPool::new(world.maker(), ());
    pool.wait_until(|now| now.ready() == 1).await;
    assert_eq!(world.made(), 1, "as few as there may be");
    assert_eq!(pool.call(AT_ONCE).await.expect("served"), 0);
    assert_eq!(pool.snapshot().idle_time, 30 * SECOND);
    let held: Vec<_> = (0..101).map(|_| hold(&pool)).collect();
    settle().await;
    assert_eq!((pool.snapshot().in_flight, pool.snapshot().waiting), (100, 1), "a hundred each");
    world.gate.add_permits(101);
    for call in held {
        call.await.unwrap().unwrap();
    }

    let world = World::of(1_000_000);
    *world.making.lock().unwrap() = 3600 * SECOND;
    let mut pool: Steady = SteadyPool::new(world.maker(), ());
    settle().await;
    let waiting: Vec<_> = (0..1024).map(|_| hold(&pool)).collect();
    settle().await;
    let error = pool.call(AT_ONCE).await.expect_err("1,024 wait");
    assert!(matches!(error, PoolError::QueueFull { limit: 1024 }), "{error}");
    for call in waiting {
        let error = call.await.unwrap().expect_err("nobody in time");
        assert!(matches!(error, PoolError::Waited { after } if after == 10 * SECOND), "{error}");
    }
    let seen = pool.snapshot();
    assert_eq!(seen.last_error.as_deref(), Some("no service was made and ready within 10000 ms"));
}

/// Two services of ten requests each, in the order in which they were made.
async fn two_full(world: &World) -> (Steady, [Vec<JoinHandle<Result<usize, PoolError>>>; 2]) {
    let pool = world.steady().limit(10).max(2).build().unwrap();
    let first: Vec<_> = (0..10).map(|_| hold(&pool)).collect();
    settle().await;
    assert_eq!(world.calls(), [10]);
    let second = (0..10).map(|_| hold(&pool)).collect();
    pool.wait_until(|now| now.ready() == 2).await;
    settle().await;
    assert_eq!(world.calls(), [10, 10]);
    (pool, [first, second])
}

/// Which of two services goes, if each keeps so many of its requests.
async fn who_goes(world: &World, kept: [usize; 2]) -> usize {
    let (pool, held) = two_full(world).await;
    for (calls, kept) in held.iter().zip(kept) {
        calls.iter().skip(kept).for_each(JoinHandle::abort);
    }
    let goes = pool.wait_until(|now| now.services.len() == 1 || now.draining() == 1);
    let services = timeout(3600 * SECOND, goes).await.expect("one is enough").services;
    let stays = services.iter().find(|it| it.state != ServiceState::Draining).unwrap().id;
    1 - usize::try_from(stays).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_least_loaded_goes_first_whether_it_is_the_older_one_or_the_newer() {
    // Everything else says the opposite: how loaded the services themselves say that they are.
    for (kept, loads, goes) in
        [([1, 2], [9, 0], 0), ([2, 1], [0, 9], 1), ([0, 1], [9, 0], 0), ([1, 0], [0, 9], 1)]
    {
        let world = World::of(1_000_000);
        *world.loads.lock().unwrap() = loads.into_iter().enumerate().collect();
        assert_eq!(who_goes(&world, kept).await, goes, "{kept:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_those_with_as_many_requests_the_one_that_is_less_loaded_by_its_own_account_goes_first() {
    for (loads, goes) in [([1, 0], 1), ([0, 1], 0)] {
        let world = World::of(1_000_000);
        *world.loads.lock().unwrap() = loads.into_iter().enumerate().collect();
        assert_eq!(who_goes(&world, [1, 1]).await, goes, "{loads:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_those_with_as_many_requests_one_that_takes_none_goes_first() {
    for stuck in [0, 1, 2] {
        let world = World::of(1_000_000);
        // It says itself that it is the most loaded one.
        world.loads.lock().unwrap().push((stuck, 9));
        let pool = world.steady().limit(4).max(3).build().unwrap();
        let held: Vec<_> = (0..12).map(|_| hold(&pool)).collect();
        pool.wait_until(|now| now.ready() == 3).await;
        settle().await;
        world.stuck.lock().unwrap().push(stuck);
        held.iter().for_each(JoinHandle::abort);
        // It counts as full, so the two others are enough.
        timeout(3600 * SECOND, pool.wait_until(|now| now.services.len() == 2)).await.expect("two are enough");
        assert_eq!(*world.dropped.lock().unwrap(), [stuck]);
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_is_still_being_made_is_given_up_before_any_that_is_there() {
    let world = World::of(1_000_000);
    let pool = world.steady().limit(10).max(2).make_timeout(3600 * SECOND).build().unwrap();
    pool.wait_until(|now| now.ready() == 1).await;
    *world.making.lock().unwrap() = 3000 * SECOND;
    let held: Vec<_> = (0..20).map(|_| hold(&pool)).collect();
    pool.wait_until(|now| now.making == 1).await;
    settle().await;
    assert_eq!((world.under_way(), world.alive()), (1, 1));
    held.iter().for_each(JoinHandle::abort);
    timeout(2000 * SECOND, pool.wait_until(|now| now.making == 0)).await.expect("one is enough");
    assert_eq!((world.under_way(), world.alive(), pool.snapshot().ready()), (0, 1, 1));
    assert_eq!(pool.clone().call(AT_ONCE).await.expect("served"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_failed_leaves_and_the_last_one_is_replaced() {
    let world = World::of(1);
    let mut pool = world.steady().build().unwrap();
    assert_eq!(pool.call(AT_ONCE).await.unwrap(), 0);
    world.kill(0);
    assert_eq!(pool.call(AT_ONCE).await.expect("by the next one"), 1);
    world.kill(1);
    // Nobody asks; it is noticed and replaced all the same.
    sleep(2 * SECOND).await;
    assert_eq!((world.made(), world.alive()), (3, 1));
    assert_eq!(pool.snapshot().lost, 2);
    assert_eq!(pool.call(AT_ONCE).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_made_is_tried_with_backoff_and_not_in_a_hot_loop() {
    let world = World::of(1);
    world.fail_makes(true);
    let pool = world.steady().backoff(100 * MILLI, 10 * SECOND).build().unwrap();
    sleep(60 * SECOND).await;
    let attempts = world.attempts();
    assert!((8..=20).contains(&attempts), "{attempts} in a minute");
    world.fail_makes(false);
    pool.wait_until(|now| now.ready() == 1).await;
    assert_eq!(pool.snapshot().last_error, None);

    // Made, and dead at once: no hot loop either.
    for id in 0..1000 {
        world.kill(id);
    }
    let before = world.made();
    sleep(60 * SECOND).await;
    let made = world.made() - before;
    assert!((5..=30).contains(&made), "{made} in a minute");
}

#[tokio::test(start_paused = true)]
async fn several_that_fail_at_once_are_one_failure() {
    let world = World::of(1);
    world.fail_makes(true);
    let pool = world.steady().min(10).backoff(100 * MILLI, 30 * SECOND).build().unwrap();
    settle().await;
    assert!(world.attempts() >= 10, "all were tried");
    world.fail_makes(false);
    sleep(SECOND).await;
    assert_eq!(pool.snapshot().ready(), 10, "after a short wait");
}

#[tokio::test(start_paused = true)]
async fn no_limit_of_time_is_too_long() {
    let world = World::of(1);
    *world.making.lock().unwrap() = SECOND;
    let forever = Duration::MAX;
    let build = || world.steady().make_timeout(forever).max_wait(forever).backoff(forever, forever).build();
    build().unwrap().call(AT_ONCE).await.expect("served");
    world.fail_makes(true);
    build().unwrap().call(AT_ONCE).await.expect_err("there is none, and the next one is a long way off");
}

#[tokio::test(start_paused = true)]
async fn the_makers_errors_fail_nobody_while_a_service_lives() {
    let world = World::of(1);
    let pool = world.steady().max_wait(600 * SECOND).build().unwrap();
    callers(&pool, 1, 1, AT_ONCE).await;
    world.fail_makes(true);
    callers(&pool, 5, 2_000, Ask::Take(50 * MILLI)).await;
    assert!(world.attempts() > 5, "it went on trying");
    assert_eq!(world.made(), 1);
    let seen = pool.snapshot();
    assert_eq!(seen.last_error.as_deref(), Some("no service could be made: no more hands"));
    world.fail_makes(false);
    callers(&pool, 5, 4_000, Ask::Take(50 * MILLI)).await;
    assert!(pool.snapshot().ready() >= 5);
}

#[tokio::test(start_paused = true)]
async fn without_a_service_requests_fail_with_the_reason_or_wait_as_set() {
    let world = World::of(1);
    world.fail_makes(true);
    let mut failing = world.steady().build().unwrap();
    let error = failing.call(AT_ONCE).await.expect_err("nobody");
    assert!(matches!(error, PoolError::Make(_)) && error.never_left());
    assert!(error.to_string().contains("no more hands"), "{error}");

    let mut waiting = world.steady().wait_for_ready(true).max_wait(5 * SECOND).build().unwrap();
    let error = waiting.call(AT_ONCE).await.expect_err("nobody in time");
    assert!(matches!(error, PoolError::Waited { after } if after == 5 * SECOND) && error.never_left());
    let soon = world.clone();
    tokio::spawn(async move {
        sleep(2 * SECOND).await;
        soon.fail_makes(false);
    });
    let mut patient = world.steady().wait_for_ready(true).max_wait(60 * SECOND).build().unwrap();
    patient.call(AT_ONCE).await.expect("served in the end");
    failing.wait_until(|now| now.ready() == 1).await;
    failing.call(AT_ONCE).await.expect("it went on trying");
}

#[tokio::test(start_paused = true)]
async fn making_and_warming_take_no_longer_than_the_timeout() {
    let world = World::of(1);
    *world.making.lock().unwrap() = 3600 * SECOND;
    let pool = world.steady().make_timeout(SECOND).build().unwrap();
    settle().await;
    advance(2 * SECOND).await;
    settle().await;
    assert_eq!(pool.snapshot().last_error.as_deref(), Some("no service was made and ready within 1000 ms"));
    *world.making.lock().unwrap() = Duration::ZERO;
    *world.warming.lock().unwrap() = 3600 * SECOND;
    sleep(10 * SECOND).await;
    assert!(
        world.made() >= 2 && world.alive() <= 1,
        "one that never gets ready is dropped, another one made"
    );
    *world.warming.lock().unwrap() = Duration::ZERO;
    pool.wait_until(|now| now.ready() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn requests_of_all_clones_are_served_in_the_order_in_which_they_came() {
    let world = World::of(1);
    let pool = world.steady().max(1).build().unwrap();
    let first = hold(&pool);
    settle().await;
    // Two clones by turns, one of them far more often than it is answered.
    let mut calls = Vec::new();
    for nth in 1..=30 {
        let mut clone = pool.clone();
        calls.push(tokio::spawn(async move { clone.call(Ask::Take(nth * MILLI)).await }));
        settle().await;
    }
    world.gate.add_permits(1);
    first.await.unwrap().unwrap();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let order: Vec<_> = (1..=30).map(|nth| Ask::Take(nth * MILLI)).collect();
    assert_eq!(world.begun()[1..], order);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_and_says_so() {
    let world = World::of(1);
    let mut pool = world.steady().max(1).queue_limit(2).build().unwrap();
    pool.call(AT_ONCE).await.unwrap();
    let mut held = vec![hold(&pool)];
    settle().await;
    held.extend((0..2).map(|_| hold(&pool)));
    settle().await;
    let error = pool.call(AT_ONCE).await.expect_err("two wait");
    assert!(matches!(error, PoolError::QueueFull { limit: 2 }) && error.never_left(), "{error}");
    world.gate.add_permits(3);
    for call in held {
        call.await.unwrap().unwrap();
    }
    pool.call(AT_ONCE).await.expect("there is room again");
}

#[tokio::test(start_paused = true)]
async fn an_error_of_a_service_is_the_callers_and_a_panic_ends_that_service_only() {
    let world = World::of(1);
    let mut pool = world.steady().build().unwrap();
    let error = pool.call(Ask::Fail).await.expect_err("as asked");
    assert!(error.of_service::<std::io::Error>().is_some() && !error.never_left(), "{error}");
    assert_eq!(world.made(), 1);
    let error = pool.call(Ask::Panic).await.expect_err("as asked");
    assert!(matches!(error, PoolError::Panicked) && !error.never_left());
    assert_eq!(pool.call(AT_ONCE).await.expect("by another one"), 1);
    assert_eq!((world.alive(), pool.snapshot().in_flight), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn with_the_last_clone_and_the_last_answer_all_services_go() {
    let world = World::of(1);
    let pool = world.steady().min(3).build().unwrap();
    let clone = pool.clone();
    let held = hold(&pool);
    settle().await;
    drop(pool);
    settle().await;
    assert_eq!(world.alive(), 3);
    drop(clone);
    settle().await;
    assert_eq!(world.alive(), 3, "one has still to answer");
    world.gate.add_permits(1);
    held.await.unwrap().expect("answered");
    settle().await;
    assert_eq!(world.alive(), 0);
}

#[tokio::test(start_paused = true)]
async fn settings_that_mean_nothing_are_refused() {
    type Set = fn(SteadyBuilder<Maker, (), Ask>) -> SteadyBuilder<Maker, (), Ask>;
    let refused = |set: Set| set(World::of(1).steady()).build().map(|_| ()).expect_err("refused");
    assert_eq!(
        refused(|it| it.max(0)).to_string(),
        "min is 1, above max, which is 0; give them the other way round"
    );
    assert_eq!(refused(|it| it.min(0)), SettingsError::Zero { setting: "min" });
    assert_eq!(refused(|it| it.limit(0)), SettingsError::Zero { setting: "limit" });
    assert_eq!(refused(|it| it.queue_limit(0)), SettingsError::Zero { setting: "queue_limit" });
    assert_eq!(refused(|it| it.max_wait(Duration::ZERO)), SettingsError::NoTime { setting: "max_wait" });
    assert_eq!(
        refused(|it| it.make_timeout(Duration::ZERO)),
        SettingsError::NoTime { setting: "make_timeout" }
    );
    assert_eq!(
        refused(|it| it.idle_members(0.5)).to_string(),
        "idle_members is 0.5; give a number above 1.1"
    );
    assert!(matches!(refused(|it| it.backoff(SECOND, MILLI)), SettingsError::Order { .. }));
    assert_eq!(
        refused(|it| it.backoff(Duration::ZERO, MILLI)),
        SettingsError::NoTime { setting: "backoff's base" }
    );
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_in_vain_is_told_after_the_longest_wait() {
    let world = World::of(1);
    let mut pool = world.steady().max(1).max_wait(3 * SECOND).build().unwrap();
    let held = hold(&pool);
    settle().await;
    let began = tokio::time::Instant::now();
    let error = pool.call(AT_ONCE).await.expect_err("nobody is free");
    assert!(matches!(error, PoolError::Waited { .. }), "{error}");
    assert_eq!(began.elapsed().as_millis() / 10, 300);
    assert_eq!(world.begun().len(), 1, "it was given to nobody");
    world.gate.add_permits(1);
    held.await.unwrap().unwrap();
    assert_eq!(world.attempts.load(Ordering::Relaxed), 1);
}
