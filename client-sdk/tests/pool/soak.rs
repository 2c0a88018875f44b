//! Many requests, with failures and cancellations of every kind: the counts end as they should.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tower::Service as _;

use crate::kit::{AT_ONCE, Ask, MILLI, World};

/// Here in all; with the figure in `docs/pool.md` a million were made by the same code, see there.
const REQUESTS: usize = 200_000;
const CALLERS: usize = 40;

#[tokio::test(start_paused = true)]
async fn after_many_requests_failures_and_cancellations_the_counts_are_what_they_should_be() {
    let requests =
        std::option_env!("POOL_SOAK_REQUESTS").map_or(REQUESTS, |count| count.parse().expect("a number"));
    let world = World::of(4);
    *world.making.lock().unwrap() = 20 * MILLI;
    let pool = world.steady().limit(4).max(12).idle_time(Duration::from_secs(2)).build().unwrap();
    let mut tasks = Vec::new();
    for seed in 0..CALLERS as u64 {
        let (mut pool, world) = (pool.clone(), world.clone());
        tasks.push(tokio::spawn(async move {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut answered, mut failed, mut cancelled) = (0, 0, 0);
            for nth in 0..requests / CALLERS {
                let ask = match rng.u32(..100) {
                    0..30 => AT_ONCE,
                    30..90 => Ask::Take(rng.u32(1..40) * MILLI),
                    90..99 => Ask::Fail,
                    // A panic prints where it was: a few are enough.
                    _ if nth % 1_000 == 0 => Ask::Panic,
                    _ => AT_ONCE,
                };
                if rng.u32(..2_000) == 0 {
                    world.kill(rng.usize(..world.made().max(1)));
                }
                if seed == 0 && nth % 500 == 0 {
                    world.fail_makes(rng.bool());
                }
                let patience =
                    if rng.u32(..10) == 0 { rng.u32(..10) * MILLI } else { Duration::from_secs(60) };
                match timeout(patience, pool.call(ask)).await {
                    Ok(Ok(_)) => answered += 1,
                    Ok(Err(_)) => failed += 1,
                    Err(_) => cancelled += 1,
                }
                // At times nobody wants anything, so that the pool shrinks.
                if rng.u32(..1_000) == 0 {
                    sleep(Duration::from_secs(5)).await;
                }
            }
            (answered, failed, cancelled)
        }));
    }
    let mut total = (0, 0, 0);
    for task in tasks {
        let (answered, failed, cancelled) = task.await.unwrap();
        total = (total.0 + answered, total.1 + failed, total.2 + cancelled);
    }
    world.fail_makes(false);
    assert_eq!(total.0 + total.1 + total.2, requests, "each ended once");
    assert!(total.0 > requests / 2 && total.1 > requests / 50 && total.2 > requests / 50, "{total:?}");

    let seen = pool.snapshot();
    assert_eq!((seen.in_flight, seen.waiting), (0, 0), "{seen:?}");
    assert!(seen.shrunk > 10 && seen.lost > 10, "there was something to get wrong: {seen:?}");
    // At rest it comes down to one, and that one serves.
    sleep(Duration::from_secs(600)).await;
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
