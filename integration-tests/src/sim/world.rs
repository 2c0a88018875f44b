//! The outside world of each side on a simulated host: tokio's paused time read from a clock that may be wrong, randomness
//! from the seed, tasks on the host's one thread.
//!
//! Every host has a [`Clock`] of its own: it runs too fast or too slow, and the wall it shows is off. Sleeping is tokio's
//! and true, so that whoever sleeps for as long as the clock says wakes too early or too late by that clock.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use client_sdk::runtime as sdk;
use registry_server::{core::Now, runtime as server};
use tokio::time::sleep;

use super::net::Network;

/// The wall clock at the start of every simulation, in milliseconds since the Unix epoch: 2026-01-01.
const WALL_AT_START: u64 = 1_767_225_600_000;
/// A write to the disk takes up to so many milliseconds.
const SLOWEST_WRITE: u64 = 8;

/// A host's clock: how wrong it is. It shows time since the start of the simulation, on all of the host's starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clock {
    /// How much it shows for a true second, in seconds: 1.01 is a clock that gains 36 s an hour.
    pub rate: f64,
    /// How much its wall is ahead, or behind, in milliseconds.
    pub ahead: i64,
}

impl Default for Clock {
    /// Right.
    fn default() -> Self {
        Self { rate: 1.0, ahead: 0 }
    }
}

impl Clock {
    /// A clock that gains or loses this share at most, and whose wall is off by an hour at most; a right one if the share
    /// is 0.
    pub fn drawn(random: &mut fastrand::Rng, share: f64) -> Self {
        let rate = 1.0 + share * (2.0 * random.f64() - 1.0);
        let ahead = random.i64(-3_600_000..=3_600_000);
        if share > 0.0 { Self { rate, ahead } } else { Self::default() }
    }

    /// The clock on the host that this runs on.
    fn on_host(self) -> Running {
        Running { clock: self, before: now(), since: tokio::time::Instant::now() }
    }
}

/// A clock on a started host.
struct Running {
    clock: Clock,
    /// Time since the simulation began, when the host started.
    before: Duration,
    since: tokio::time::Instant,
}

impl Running {
    fn shown(&self) -> Duration {
        (self.before + self.since.elapsed()).mul_f64(self.clock.rate)
    }
}

impl sdk::Clock for Running {
    fn now(&self) -> Duration {
        self.shown()
    }
}

impl server::Clock for Running {
    fn now(&self) -> Now {
        let mono = u64::try_from(self.shown().as_millis()).unwrap_or(u64::MAX);
        Now { mono, wall: WALL_AT_START.saturating_add_signed(self.clock.ahead) + mono }
    }
}

/// A server's world.
pub fn of_server(seed: u64, clock: Clock) -> server::Runtime {
    let spawn = Tasks { disk: Mutex::new(fastrand::Rng::with_seed(seed)) };
    server::Runtime::new(clock.on_host(), spawn, seed)
}

/// A client's world.
pub fn of_client(seed: u64, clock: Clock) -> sdk::Runtime {
    sdk::Runtime::new(clock.on_host(), Network, sdk::TokioSpawn, seed)
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
