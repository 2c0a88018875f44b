//! The outside world of each side on a simulated host: tokio's paused time, randomness from the seed, tasks on the host's
//! one thread.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use client_sdk::runtime as sdk;
use registry_server::runtime as server;
use tokio::time::sleep;

use super::net::Network;

/// The wall clock at the start of every simulation, in milliseconds since the Unix epoch: 2026-01-01.
const WALL_AT_START: u64 = 1_767_225_600_000;
/// A write to the disk takes up to so many milliseconds.
const SLOWEST_WRITE: u64 = 8;

/// A server's world. Wall time goes on over restarts of the host.
pub fn of_server(seed: u64) -> server::Runtime {
    let wall = WALL_AT_START + u64::try_from(now().as_millis()).unwrap_or(u64::MAX);
    let spawn = Tasks { disk: Mutex::new(fastrand::Rng::with_seed(seed)) };
    server::Runtime::new(server::SimulatedClock::starting_at(wall), spawn, seed)
}

/// A client's world.
pub fn of_client(seed: u64) -> sdk::Runtime {
    sdk::Runtime::new(sdk::TokioClock::default(), Network, sdk::TokioSpawn, seed)
}

/// Time since the simulation began, on the host that this runs on.
pub fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

/// Tasks on the host's thread; work that waits for a disk is one of them, and done after a time drawn from the seed.
struct Tasks {
    disk: Mutex<fastrand::Rng>,
}

impl server::Spawn for Tasks {
    fn spawn(&self, task: server::BoxTask) -> tokio::task::JoinHandle<()> {
        tokio::spawn(task)
    }

    fn spawn_blocking(&self, work: server::BoxWork) {
        let takes = self.disk.lock().unwrap_or_else(PoisonError::into_inner).u64(0..=SLOWEST_WRITE);
        tokio::spawn(async move {
            sleep(Duration::from_millis(takes)).await;
            work();
        });
    }
}
