//! One contender over one scenario: requests arrive by chance, whether or not earlier ones were answered.
#![allow(clippy::disallowed_methods)] // a program of its own, which may spawn

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use client_sdk::{
    model::Status,
    runtime::{Runtime, TokioClock, TokioConnect, TokioSpawn},
};
use tokio::task::JoinSet;
use tower::Service;

use crate::{
    contender::Contender,
    fleet::{Fleet, Request, ZONES},
    record::{Call, Record},
    scenario::{Event, Scenario},
    server::now,
};

/// When a caller gives a request up.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// Runs it. The same seed gives the same arrivals, faults and chances.
///
/// # Panics
///
/// If tokio cannot make a runtime.
#[must_use]
pub fn run(scenario: &Scenario, contender: Contender, seed: u64) -> Record {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime without I/O");
    runtime.block_on(within(scenario, contender, seed))
}

async fn within(scenario: &Scenario, contender: Contender, seed: u64) -> Record {
    let world = Runtime::new(TokioClock::default(), TokioConnect, TokioSpawn, seed);
    let fleet = Fleet::new(scenario.servers, scenario.registered, &world);
    // A caller in each zone.
    let mut callers: Vec<_> = ZONES.iter().map(|zone| contender.caller(&fleet, zone, &world)).collect();
    for caller in &callers {
        caller.wait_until(|snapshot| snapshot.instances.len() >= scenario.registered).await;
    }
    let fate = tokio::spawn(fate(Arc::clone(&fleet), scenario.clone()));
    let watched = tokio::spawn(watch(Arc::clone(&fleet), scenario.length));
    let calls = Arc::new(Mutex::new(Vec::new()));
    let (mut running, mut random, start) = (JoinSet::new(), world.fork_rng(), now());
    let (mut at, mut turn) = (Duration::ZERO, 0);
    loop {
        // Gaps of a Poisson process.
        at += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / scenario.load);
        if at >= scenario.length {
            break;
        }
        tokio::time::sleep_until(start + at).await;
        while running.try_join_next().is_some() {}
        let key = if random.f64() < scenario.hot { 0 } else { random.u64(..) };
        let count = callers.len();
        let answer = callers[turn % count].call(Request { key });
        turn += 1;
        let calls = Arc::clone(&calls);
        running.spawn(async move {
            let begun = now();
            let answer = tokio::time::timeout(DEADLINE, answer).await;
            let call = Call { at, took: begun.elapsed(), failed: !matches!(answer, Ok(Ok(()))) };
            calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
        });
    }
    while running.join_next().await.is_some() {}
    fate.abort();
    let (received, most) = watched.await.unwrap_or_default();
    let calls = std::mem::take(&mut *calls.lock().unwrap_or_else(PoisonError::into_inner));
    Record { calls, received, most, bad: scenario.bad.clone() }
}

/// What happens to the fleet.
async fn fate(fleet: Arc<Fleet>, scenario: Scenario) {
    let start = now();
    let mut registered: Vec<(usize, Status)> =
        (0..scenario.registered).map(|number| (number, Status::Up)).collect();
    for (at, event) in scenario.events {
        tokio::time::sleep_until(start + at).await;
        match event {
            Event::Behave(numbers, behaviour) => {
                for number in numbers {
                    fleet.servers[number].behave(behaviour);
                }
            }
            Event::Break(numbers) => {
                for number in numbers {
                    fleet.servers[number].break_connections();
                }
            }
            Event::Register(number, status) => {
                registered.retain(|(other, _)| *other != number);
                registered.push((number, status));
                registered.sort_unstable_by_key(|(number, _)| *number);
                fleet.publish(registered.iter().copied());
            }
            Event::Deregister(number) => {
                registered.retain(|(other, _)| *other != number);
                fleet.publish(registered.iter().copied());
            }
        }
    }
}

/// Looks at the servers once a second.
async fn watch(fleet: Arc<Fleet>, length: Duration) -> (Vec<Vec<u64>>, Vec<u64>) {
    let (start, mut second) = (now(), Duration::ZERO);
    let (mut received, mut most) = (Vec::new(), Vec::new());
    while second < length {
        second += Duration::from_secs(1);
        tokio::time::sleep_until(start + second).await;
        received.push(fleet.servers.iter().map(|server| server.received()).collect());
        most.push(fleet.servers.iter().map(|server| server.most()).max().unwrap_or(0));
    }
    (received, most)
}
