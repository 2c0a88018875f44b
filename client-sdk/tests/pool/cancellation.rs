//! A caller may go away at any moment: whatever it awaited, the pool is right afterwards.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use tokio::time::{sleep, timeout};
use tower::Service as _;

use client_sdk::pool::ServiceState;

use crate::{
    kit::{AT_ONCE, Ask, MILLI, Steady, World},
    steady::{hold, one_of_two_drains, settle},
};

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Begins a call, polls it so often, each time after everybody else did what they could, and drops it.
async fn dropped_after(pool: &Steady, ask: Ask, polls: usize) -> bool {
    let waker = Waker::from(Arc::new(Woken::default()));
    let mut cx = Context::from_waker(&waker);
    let mut pool = pool.clone();
    let mut call = pin!(pool.call(ask));
    for _ in 0..polls {
        if let Poll::Ready(answer) = call.as_mut().poll(&mut cx) {
            answer.expect("answered");
            return true;
        }
        settle().await;
    }
    false
}

async fn is_at_rest(pool: &Steady, world: &World, alive: usize) {
    settle().await;
    let seen = pool.snapshot();
    assert_eq!((seen.in_flight, seen.waiting), (0, 0), "{seen:?}");
    assert!(seen.services.iter().all(|service| service.in_flight == 0), "{seen:?}");
    assert_eq!(world.alive(), alive);
}

#[tokio::test(start_paused = true)]
async fn dropped_at_each_poll_of_a_call_it_leaves_nothing_behind() {
    let world = World::of(1);
    let mut pool = world.steady().max(1).build().unwrap();
    pool.call(AT_ONCE).await.unwrap();
    for ask in [AT_ONCE, Ask::Hold] {
        for polls in 0..4 {
            dropped_after(&pool, ask, polls).await;
            is_at_rest(&pool, &world, 1).await;
            pool.call(AT_ONCE).await.expect("the service is free again");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_while_it_waits_it_is_given_to_nobody_and_takes_no_turn() {
    let world = World::of(1);
    let pool = world.steady().max(1).build().unwrap();
    let held = hold(&pool);
    settle().await;
    let waits: Vec<_> = (0..5).map(|_| hold(&pool)).collect();
    settle().await;
    assert_eq!(pool.snapshot().waiting, 5);
    for (nth, call) in waits.iter().enumerate() {
        call.abort();
        settle().await;
        assert_eq!(pool.snapshot().waiting, 4 - nth);
    }
    let mut last = pool.clone();
    let last = tokio::spawn(async move { last.call(AT_ONCE).await });
    settle().await;
    world.gate.add_permits(1);
    held.await.unwrap().unwrap();
    last.await.unwrap().expect("served next");
    assert_eq!(world.begun(), [Ask::Hold, AT_ONCE]);
    is_at_rest(&pool, &world, 1).await;
}

#[tokio::test(start_paused = true)]
async fn dropped_just_as_it_is_given_a_service_it_frees_it() {
    let world = World::of(1);
    let mut pool = world.steady().max(1).build().unwrap();
    let held = hold(&pool);
    settle().await;
    {
        let waker = Waker::from(Arc::new(Woken::default()));
        let mut clone = pool.clone();
        let mut call = pin!(clone.call(Ask::Hold));
        assert!(call.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        world.gate.add_permits(1);
        held.await.unwrap().unwrap();
        settle().await;
        assert_eq!(world.begun().len(), 2, "it was given, and does not know it yet");
        assert_eq!(pool.snapshot().in_flight, 1);
    }
    is_at_rest(&pool, &world, 1).await;
    pool.call(AT_ONCE).await.expect("free");
}

#[tokio::test(start_paused = true)]
async fn callers_that_all_gave_up_while_the_first_service_was_made_leave_a_pool_that_works() {
    let world = World::of(1);
    *world.making.lock().unwrap() = Duration::from_secs(3);
    let mut pool = world.steady().build().unwrap();
    for _ in 0..100 {
        let mut pool = pool.clone();
        assert!(timeout(10 * MILLI, pool.call(AT_ONCE)).await.is_err());
    }
    assert!(world.begun().is_empty());
    pool.call(AT_ONCE).await.expect("made meanwhile");
    assert!(world.made() <= 2);
    let services = pool.snapshot().services.len();
    is_at_rest(&pool, &world, services).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_is_demand_no_more() {
    let world = World::of(1);
    let pool = world.steady().build().unwrap();
    let held: Vec<_> = (0..8).map(|_| hold(&pool)).collect();
    pool.wait_until(|now| now.ready() >= 8).await;
    for call in held {
        call.abort();
    }
    settle().await;
    assert_eq!(pool.snapshot().in_flight, 0);
    sleep(Duration::from_secs(20)).await;
    assert!(pool.snapshot().estimate < 0.01);
    sleep(Duration::from_secs(500)).await;
    is_at_rest(&pool, &world, 1).await;
}

#[tokio::test(start_paused = true)]
async fn dropped_while_its_service_drains_it_ends_the_drain_and_touches_no_other() {
    let world = World::of(1_000_000);
    let (mut pool, calls) = one_of_two_drains(&world).await;
    let draining =
        pool.snapshot().services.into_iter().find(|it| it.state == ServiceState::Draining).unwrap();
    assert_eq!((draining.in_flight, world.alive()), (1, 2));
    // The two that take long are the only ones left, one for each service.
    let mut left: Vec<_> = calls.into_iter().filter(|call| !call.is_finished()).collect();
    assert_eq!(left.len(), 2);
    let first = usize::try_from(draining.id).unwrap();
    left.swap_remove(first).abort();
    settle().await;
    let seen = pool.snapshot();
    assert_eq!(
        (seen.services.len(), seen.draining(), seen.in_flight, seen.waiting),
        (1, 0, 1, 0),
        "{seen:?}"
    );
    assert_eq!((seen.made, seen.shrunk, seen.lost), (2, 1, 0), "{seen:?}");
    assert_eq!(*world.dropped.lock().unwrap(), [first], "at once");
    pool.call(AT_ONCE).await.expect("the other one serves");
    left.remove(0).await.unwrap().expect("and finishes what it has");
    is_at_rest(&pool, &world, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_dropped_gives_up_what_it_makes() {
    let world = World::of(1);
    *world.making.lock().unwrap() = Duration::from_secs(3);
    let pool = world.steady().min(4).build().unwrap();
    let waits = hold(&pool);
    sleep(Duration::from_secs(1)).await;
    assert_eq!((world.under_way(), pool.snapshot().making), (4, 4));
    drop(pool);
    settle().await;
    assert_eq!(world.under_way(), 4, "somebody waits for it");
    waits.abort();
    settle().await;
    assert_eq!(world.under_way(), 0, "given up");
    sleep(Duration::from_mins(1)).await;
    assert_eq!((world.attempts(), world.made(), world.alive()), (4, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_dropped_gives_up_what_warms_up_and_what_it_waits_to_make_again() {
    let world = World::of(1);
    *world.warming.lock().unwrap() = Duration::from_secs(3);
    let pool = world.steady().build().unwrap();
    settle().await;
    assert_eq!(world.alive(), 1);
    drop(pool);
    settle().await;
    assert_eq!(world.alive(), 0);

    world.fail_makes(true);
    let pool = world.steady().build().unwrap();
    sleep(MILLI).await;
    assert_eq!(pool.snapshot().making, 1, "in a moment");
    let attempts = world.attempts();
    drop(pool);
    sleep(Duration::from_mins(1)).await;
    assert_eq!(world.attempts(), attempts, "nobody tries any more");
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_state_and_gives_up_leaves_nothing_behind() {
    let world = World::of(1);
    let mut pool = world.steady().min(2).build().unwrap();
    for patience in [Duration::ZERO, MILLI, Duration::from_secs(5)] {
        assert!(timeout(patience, pool.wait_until(|now| now.ready() == 9)).await.is_err());
    }
    let waits: Vec<_> = (0..10)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.wait_until(|now| now.ready() == 9).await })
        })
        .collect();
    settle().await;
    pool.call(AT_ONCE).await.expect("served");
    is_at_rest(&pool, &world, 2).await;
    drop(pool);
    settle().await;
    assert_eq!(world.alive(), 2, "ten have a clone, and wait");
    waits.iter().for_each(tokio::task::JoinHandle::abort);
    settle().await;
    assert_eq!(world.alive(), 0, "it has ended with the last one");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_waits_while_nothing_can_be_made_may_go_at_any_poll() {
    let world = World::of(1);
    world.fail_makes(true);
    let pool = world.steady().wait_for_ready(true).build().unwrap();
    for polls in 0..4 {
        assert!(!dropped_after(&pool, AT_ONCE, polls).await);
        is_at_rest(&pool, &world, 0).await;
    }
    world.fail_makes(false);
    pool.clone().call(AT_ONCE).await.expect("served");
    assert_eq!(world.begun().len(), 1, "what was given up was given to nobody");
}

#[test]
fn on_many_threads_whoever_gives_up_when_nothing_is_lost() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let (world, pool) = runtime.block_on(async {
        let world = World::of(2);
        let pool = world.steady().limit(2).min(4).max(4).build().unwrap();
        pool.wait_until(|now| now.ready() == 4).await;
        let callers: Vec<_> = (0..16)
            .map(|seed| {
                let mut pool = pool.clone();
                tokio::spawn(async move {
                    let mut rng = fastrand::Rng::with_seed(seed);
                    for _ in 0..500 {
                        let patience = Duration::from_micros(rng.u64(0..300));
                        let ask = if rng.bool() { AT_ONCE } else { Ask::Take(MILLI / 4) };
                        let _ = timeout(patience, pool.call(ask)).await;
                    }
                    pool.call(AT_ONCE).await.expect("it serves whoever waits");
                })
            })
            .collect();
        for caller in callers {
            caller.await.unwrap();
        }
        (world, pool)
    });
    runtime.block_on(async {
        pool.wait_until(|now| now.ready() == 4).await;
        let seen = pool.snapshot();
        assert_eq!((seen.in_flight, seen.waiting, seen.lost), (0, 0, 0), "{seen:?}");
        assert_eq!((world.made(), world.alive()), (4, 4));
    });
    runtime.shutdown_background();
}
