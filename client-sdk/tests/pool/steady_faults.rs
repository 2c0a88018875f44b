//! What was wrong with the pool that tower had, and is not in steady mode: the same demand on both, of which the old one
//! shows the fault.

use std::{sync::atomic::Ordering, time::Duration};

use client_sdk::pool::Builder;
use tokio::time::sleep;

use crate::{
    kit::{Ask, MILLI, SharedClassic, World, callers},
    steady::{hold, settle},
};

/// How many services came and went.
fn changes(world: &World) -> usize {
    2 * world.made() - world.alive()
}

#[tokio::test(start_paused = true)]
async fn a_steady_demand_for_two_services_makes_no_cycle() {
    let (old, new) = (World::of(1), World::of(1));
    let classic = SharedClassic::new(Builder::new().build(old.maker(), ()).unwrap());
    let steady = new.steady().build().unwrap();
    // What comes until it has settled does not count.
    callers(&classic, 2, 5_000, Ask::Take(10 * MILLI)).await;
    callers(&steady, 2, 5_000, Ask::Take(10 * MILLI)).await;
    let before = (changes(&old), changes(&new));
    let mut rng = fastrand::Rng::with_seed(5);
    for _ in 0..200 {
        // Two callers, and then none for a moment.
        let pause = rng.u32(1..5) * MILLI;
        callers(&classic, 2, 50, Ask::Take(10 * MILLI)).await;
        callers(&steady, 2, 50, Ask::Take(10 * MILLI)).await;
        sleep(pause).await;
    }
    let (classic, steady) = (changes(&old) - before.0, changes(&new) - before.1);
    assert!(steady <= 1, "{steady} changes in 10,000 requests");
    assert!(classic > 10, "the old one cycled ({classic} changes): the test would notice");
}

#[tokio::test(start_paused = true)]
async fn b_waiting_for_those_that_warm_up_adds_no_further_ones() {
    let (old, new) = (World::of(1), World::of(1));
    for world in [&old, &new] {
        *world.warming.lock().unwrap() = Duration::from_secs(9);
        world.restless.store(true, Ordering::Relaxed);
    }
    let mut classic = tower_test::mock::Spawn::new(Builder::new().build(old.maker(), ()).unwrap());
    let steady = new.steady().max(50).build().unwrap();
    let held: Vec<_> = (0..20).map(|_| hold(&steady)).collect();
    for _ in 0..800 {
        let _ = classic.poll_ready();
        sleep(10 * MILLI).await;
    }
    assert!(new.made() <= 2, "{} for 20 callers, none of them ready yet", new.made());
    assert!(old.made() > 20, "the old one made {} while it waited", old.made());
    new.gate.add_permits(20);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn e_wake_ups_and_polls_make_no_difference_to_the_estimate() {
    let quiet = World::of(1);
    let noisy = World::of(1);
    noisy.restless.store(true, Ordering::Relaxed);
    let mut seen = Vec::new();
    for world in [&quiet, &noisy] {
        let mut pool = world.steady().max(3).build().unwrap();
        let held: Vec<_> = (0..2).map(|_| hold(&pool)).collect();
        settle().await;
        for _ in 0..50 {
            if world.restless.load(Ordering::Relaxed) {
                for _ in 0..100 {
                    let polled = std::future::poll_fn(|cx| tower::Service::poll_ready(&mut pool, cx));
                    polled.await.expect("always ready");
                    pool.snapshot();
                }
            }
            sleep(10 * MILLI).await;
        }
        let now = pool.snapshot();
        seen.push((now.estimate, now.services.len(), now.made));
        world.gate.add_permits(2);
        for call in held {
            call.await.unwrap().unwrap();
        }
    }
    assert!((seen[0].0 - seen[1].0).abs() < 0.01, "{seen:?}");
    assert_eq!((seen[0].1, seen[0].2), (seen[1].1, seen[1].2), "{seen:?}");

    // Of the old one more polls alone make another service.
    let sizes: Vec<_> = [1, 100]
        .into_iter()
        .map(|polls| {
            let world = World::of(1);
            let mut pool = tower_test::mock::Spawn::new(Builder::new().build(world.maker(), ()).unwrap());
            assert!(pool.poll_ready().is_ready());
            let _held = pool.call(Ask::Hold);
            for _ in 0..polls {
                let _ = pool.poll_ready();
            }
            world.made()
        })
        .collect();
    assert_eq!(sizes, [1, 2]);
}
