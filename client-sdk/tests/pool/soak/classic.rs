//! The classic pool, which callers take by turns, as its `&mut self` demands.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use client_sdk::pool::{Builder, PoolError};
use tokio::{
    sync::Mutex,
    time::{sleep, timeout},
};
use tower::{Service as _, ServiceExt as _};

use super::{CALLERS, Ended, ROUNDS, all, number, patience, requests};
use crate::{
    kit::{Ask, Classic, Fault, MILLI, What, World, seeded},
    steady::settle,
};

const MAX: usize = 12;

#[tokio::test(start_paused = true)]
async fn after_many_requests_failures_and_cancellations_the_counts_are_what_they_should_be() {
    let (each, requests) = requests(100_000);
    let world = World::of(4);
    *world.making.lock().unwrap() = 20 * MILLI;
    let pool: Classic = Builder::new().max_services(MAX).runtime(seeded(7)).build(world.maker(), ()).unwrap();
    let pool = Arc::new(Mutex::new(pool));
    let mut ended = Ended::default();
    for round in 0..ROUNDS {
        let weather = tokio::spawn(weather(world.clone(), round as u64));
        let callers = (0..CALLERS)
            .map(|nth| tokio::spawn(caller(Arc::clone(&pool), (round * CALLERS + nth) as u64, each)));
        ended = ended + all(callers).await;
        weather.abort();
        world.fail_makes(false);
        world.set_fault(None);
        settle().await;
        // It moves only when it is polled: often enough for each of those that are too many.
        let mut pool = pool.lock().await;
        for _ in 0..MAX * 500 {
            pool.ready().await.expect("it can be made");
        }
        assert_eq!((pool.services(), world.alive(), world.under_way()), (1, 1, 0), "{pool:?}");
        assert_eq!(world.dropped.lock().unwrap().len(), world.made() - 1, "made − dropped = alive");
    }
    ended.check(requests);
    let lost = world.dropped.lock().unwrap().len();
    assert!(lost > 20, "there was something to get wrong: {lost}");
    assert_eq!(world.calls().iter().sum::<usize>(), world.begun().len());
    let begun = world.begun_once();
    assert_eq!(begun, world.begun().len());
    assert!((ended.answered + ended.failed..=requests).contains(&begun), "{begun}: {ended:?}");
    let most = world.most_alive.load(Ordering::Relaxed);
    assert!((2..=MAX).contains(&most), "{most}");

    // The last one serves as many as ever.
    {
        let mut pool = pool.lock().await;
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(tokio::spawn(pool.ready().await.expect("there is room").call(Ask::Hold)));
        }
        assert_eq!(pool.services(), 1);
        world.gate.add_permits(4);
        for call in held {
            call.await.unwrap().expect("served");
        }
    }
    println!("classic: {ended:?} made {} most {most} {pool:?}", world.made());
    drop(pool);
    assert_eq!(world.alive(), 0);
}

/// Services die, and now and then nothing can be made for a moment.
async fn weather(world: World, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut panics = 1;
    loop {
        sleep(rng.u32(100..400) * MILLI).await;
        match rng.u32(..20) {
            0 => {
                world.fail_makes(true);
                (0..world.made()).for_each(|id| world.kill(id));
                sleep(rng.u32(10..60) * MILLI).await;
            }
            1..4 => {
                let fault = rng.choice([Fault::ReadyFails, Fault::MakingPanics]).filter(|_| panics > 0);
                panics -= i32::from(fault == Some(Fault::MakingPanics));
                world.set_fault(fault);
                world.fail_makes(true);
                sleep(rng.u32(10..200) * MILLI).await;
            }
            _ => world.kill(world.made().saturating_sub(1 + rng.usize(..MAX))),
        }
        world.fail_makes(false);
        world.set_fault(None);
    }
}

/// So many requests, each begun when the one before has ended, with all that may go wrong.
async fn caller(pool: Arc<Mutex<Classic>>, seed: u64, requests: usize) -> Ended {
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
        let goes_when_ready = rng.u32(..50) == 0;
        let came = match timeout(patience(&mut rng), one(&pool, ask, goes_when_ready)).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(PoolError::Service(_))) => Ended::FAILED,
            Ok(Err(PoolError::Make(_))) => {
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

/// One request, which may be dropped while it waits for its turn, while the pool is not ready, and while it is answered; and that
/// may go away just when the pool is ready.
async fn one(pool: &Mutex<Classic>, ask: Ask, goes_when_ready: bool) -> Result<Ended, PoolError> {
    let mut pool = pool.lock().await;
    let ready = pool.ready().await?;
    if goes_when_ready {
        return Ok(Ended::GIVEN_UP);
    }
    // A service that panics in `call` is its caller's business.
    let Ok(answer) = catch_unwind(AssertUnwindSafe(|| ready.call(ask))) else { return Ok(Ended::FAILED) };
    drop(pool);
    answer.await.map(|_| Ended::ANSWERED)
}
