//! The steady pool.

use std::{sync::atomic::Ordering, time::Duration};

use client_sdk::pool::PoolError;
use tokio::time::{sleep, timeout};
use tower::Service as _;

use super::{CALLERS, Ended, ROUNDS, all, number, patience, requests};
use crate::{
    kit::{Ask, MILLI, Steady, What, World},
    steady::{hold, settle},
};

const MAX: usize = 12;

#[tokio::test(start_paused = true)]
async fn after_many_requests_failures_and_cancellations_the_counts_are_what_they_should_be() {
    let (each, requests) = requests(100_000);
    let world = World::of(4);
    *world.making.lock().unwrap() = 20 * MILLI;
    let builder = world.steady().limit(4).max(MAX).backoff(5 * MILLI, 50 * MILLI);
    let pool = builder.idle_time(Duration::from_secs(2)).cool_down(Duration::from_secs(2)).build().unwrap();
    let mut ended = Ended::default();
    for round in 0..ROUNDS {
        let weather = tokio::spawn(weather(world.clone(), round as u64));
        let callers =
            (0..CALLERS).map(|nth| tokio::spawn(caller(pool.clone(), (round * CALLERS + nth) as u64, each)));
        ended = ended + all(callers).await;
        weather.abort();
        world.fail_makes(false);
        let seen = pool.snapshot();
        assert_eq!((seen.in_flight, seen.waiting), (0, 0), "{seen:?}");
        assert_eq!(
            world.dropped.lock().unwrap().len(),
            world.made() - world.alive(),
            "made − dropped = alive"
        );
        // Nobody wants anything: it shrinks.
        sleep(Duration::from_mins(1)).await;
    }
    ended.check(requests);
    let seen = pool.snapshot();
    assert!(seen.shrunk > 10 && seen.lost > 10, "there was something to get wrong: {seen:?}");

    // At rest it comes down to one, and that one serves as many as ever.
    sleep(Duration::from_hours(1)).await;
    let seen = pool.snapshot();
    assert_eq!((seen.services.len(), seen.making), (1, 0), "{seen:?}");
    assert_eq!((world.alive(), world.under_way()), (1, 0));
    assert_eq!(world.dropped.lock().unwrap().len(), world.made() - 1, "made − dropped = alive");
    assert_eq!(seen.made, world.made() as u64);
    assert_eq!(world.calls().iter().sum::<usize>(), world.begun().len());
    let begun = world.begun_once();
    assert_eq!(begun, world.begun().len());
    assert!((ended.answered + ended.failed..=requests).contains(&begun), "{begun}: {ended:?}");
    assert!(world.most_alive.load(Ordering::Relaxed) <= MAX, "those that drain included");
    let held: Vec<_> = (0..4).map(|_| hold(&pool)).collect();
    settle().await;
    assert_eq!((pool.snapshot().in_flight, pool.snapshot().waiting), (4, 0));
    world.gate.add_permits(4);
    for call in held {
        call.await.unwrap().expect("it serves");
    }
    drop(pool);
    settle().await;
    assert_eq!(world.alive(), 0);
    println!("steady: {ended:?} {seen:?}");
}

/// Services die, and now and then nothing can be made for a moment.
async fn weather(world: World, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    loop {
        sleep(rng.u32(100..400) * MILLI).await;
        match rng.u32(..20) {
            // All of them, and nothing in their place for a moment: those are the requests that nobody serves.
            0 => {
                world.fail_makes(true);
                (0..world.made()).for_each(|id| world.kill(id));
                sleep(rng.u32(10..60) * MILLI).await;
            }
            1..5 => {
                world.fail_makes(true);
                sleep(rng.u32(10..200) * MILLI).await;
            }
            _ => world.kill(world.made().saturating_sub(1 + rng.usize(..MAX))),
        }
        world.fail_makes(false);
    }
}

/// So many requests, each begun when the one before has ended, with all that may go wrong.
async fn caller(mut pool: Steady, seed: u64, requests: usize) -> Ended {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut ended = Ended::default();
    for nth in 0..requests {
        let ask = match rng.u32(..100) {
            0..30 => What::Take(Duration::ZERO),
            // A panic prints where it was: a few are enough.
            30 if nth == 7 => What::Panic,
            30..95 => What::Take(rng.u32(1..40) * MILLI),
            _ => What::Fail,
        };
        let ask = Ask::Numbered(number(seed, nth, requests), ask);
        let came = match timeout(patience(&mut rng), pool.call(ask)).await {
            Ok(Ok(_)) => Ended::ANSWERED,
            Ok(Err(PoolError::Service(_) | PoolError::Panicked)) => Ended::FAILED,
            Ok(Err(PoolError::Make(_))) => {
                // Nobody asks again at once.
                sleep(10 * MILLI).await;
                Ended::UNSERVED
            }
            Ok(Err(other)) => panic!("{other}"),
            Err(_) => Ended::GIVEN_UP,
        };
        ended = ended + came;
    }
    ended
}
