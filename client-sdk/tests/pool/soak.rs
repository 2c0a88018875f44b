//! Many requests, with failures and cancellations of every kind: the counts end as they should.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tower::Service as _;

use crate::kit::{AT_ONCE, Ask, MILLI, Steady, World};

/// In all; `docs/pool.md` says how to make a million of it.
const REQUESTS: usize = 200_000;
const CALLERS: u32 = 40;
const ROUNDS: u32 = 20;

#[tokio::test(start_paused = true)]
async fn after_many_requests_failures_and_cancellations_the_counts_are_what_they_should_be() {
    let requests =
        option_env!("POOL_SOAK_REQUESTS").map_or(REQUESTS, |count| count.parse().expect("a number"));
    let world = World::of(4);
    *world.making.lock().unwrap() = 20 * MILLI;
    let pool = world.steady().limit(4).max(12).idle_time(Duration::from_secs(2)).build().unwrap();
    let mut total = (0, 0, 0);
    for round in 0..ROUNDS {
        let callers = (0..CALLERS).map(|nth| {
            let seed = u64::from(round * CALLERS + nth);
            tokio::spawn(caller(pool.clone(), world.clone(), seed, requests / (ROUNDS * CALLERS) as usize))
        });
        for caller in callers.collect::<Vec<_>>() {
            let (answered, failed, cancelled) = caller.await.unwrap();
            total = (total.0 + answered, total.1 + failed, total.2 + cancelled);
        }
        let seen = pool.snapshot();
        assert_eq!((seen.in_flight, seen.waiting), (0, 0), "{seen:?}");
        // Nobody wants anything: it shrinks.
        sleep(Duration::from_mins(1)).await;
    }
    world.fail_makes(false);
    assert_eq!(total.0 + total.1 + total.2, requests, "each ended once");
    assert!(total.0 > requests / 2 && total.1 > requests / 50 && total.2 > requests / 50, "{total:?}");

    let seen = pool.snapshot();
    assert!(seen.shrunk > 10 && seen.lost > 10, "there was something to get wrong: {seen:?}");
    // At rest it comes down to one, and that one serves.
    sleep(Duration::from_hours(1)).await;
    let seen = pool.snapshot();
    assert_eq!((seen.services.len(), seen.making), (1, 0), "{seen:?}");
    assert_eq!(world.alive(), 1);
    assert_eq!(world.dropped.lock().unwrap().len(), world.made() - world.alive(), "made − dropped = alive");
    assert_eq!(seen.made, world.made() as u64);
    assert!(
        world.most_alive.load(std::sync::atomic::Ordering::Relaxed) <= 12 + 12,
        "those that drain included"
    );
    pool.clone().call(AT_ONCE).await.expect("it serves");
    drop(pool);
    sleep(MILLI).await;
    assert_eq!(world.alive(), 0);
    println!("{} answered, {} failed, {} cancelled; {seen:?}", total.0, total.1, total.2);
}

/// So many requests, each begun when the one before has ended, with all that may go wrong. Says how many were answered, failed
/// and were given up.
async fn caller(mut pool: Steady, world: World, seed: u64, requests: usize) -> (usize, usize, usize) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut answered, mut failed, mut cancelled) = (0, 0, 0);
    for nth in 0..requests {
        let ask = match rng.u32(..100) {
            0..30 => AT_ONCE,
            // A panic prints where it was: a few are enough.
            30 if nth == 7 => Ask::Panic,
            30..90 => Ask::Take(rng.u32(1..40) * MILLI),
            _ => Ask::Fail,
        };
        if rng.u32(..2_000) == 0 {
            world.kill(rng.usize(..world.made().max(1)));
        }
        if rng.u32(..500) == 0 {
            world.fail_makes(rng.bool());
        }
        let patience = if rng.u32(..10) == 0 { rng.u32(..10) * MILLI } else { Duration::from_mins(1) };
        match timeout(patience, pool.call(ask)).await {
            Ok(Ok(_)) => answered += 1,
            Ok(Err(_)) => failed += 1,
            Err(_) => cancelled += 1,
        }
    }
    (answered, failed, cancelled)
}
