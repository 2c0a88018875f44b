//! What a pool says when it grows and when it shrinks.

use std::time::Duration;

use client_sdk::pool::SteadyPool;
use tokio::time::sleep;

use crate::{
    Said,
    services::{Ask, MILLI, World, callers},
};

#[tokio::test(start_paused = true)]
async fn each_decision_is_traced_with_the_estimate_that_led_to_it() {
    let said = Said::all();
    let world = World::of(1);
    let pool: SteadyPool<_, _> = world.steady().name("workers").max(2).build().unwrap();
    callers(&pool, 2, 100, Ask::Take(50 * MILLI)).await;
    sleep(Duration::from_mins(1)).await;
    assert_eq!(world.alive(), 1);
    let workers = "pool=\"workers\"";
    assert!(
        said.has(&["the pool grows", workers, "estimate=0.9", "size=1 to=2"]),
        "{:?}",
        said.lines(&[workers])
    );
    assert!(
        said.has(&["the pool shrinks", workers, "size=2 to=1", "idle_time=30s"]),
        "{:?}",
        said.lines(&[workers])
    );
}
