//! The outside world, injected: clock, randomness and spawning.
//!
//! The one home of the system's clocks and of `tokio::spawn` in this crate. Sockets come to the server as a stream of
//! connections, so that whole systems run on simulated time and on a simulated network.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::oneshot;

use crate::core::Now;

/// A boxed task.
pub type BoxTask = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Boxed work that may wait for a disk.
pub type BoxWork = Box<dyn FnOnce() + Send>;

/// Reads both clocks.
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> Now;

    /// The monotonic half of it, where the wall clock is not asked for.
    fn mono(&self) -> u64 {
        self.now().mono
    }
}

/// Runs tasks.
pub trait Spawn: Send + Sync + 'static {
    /// Starts a task.
    fn spawn(&self, task: BoxTask) -> tokio::task::JoinHandle<()>;

    /// Starts work that may wait for a disk, where it holds up no task. A simulation runs it as a task, after
    /// however long its disk takes.
    fn spawn_blocking(&self, work: BoxWork);
}

/// The outside world. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    clock: Arc<dyn Clock>,
    spawn: Arc<dyn Spawn>,
    random: Arc<AtomicU64>,
}

impl Runtime {
    /// The real world.
    pub fn tokio() -> Self {
        Self::new(SystemClock::default(), TokioSpawn, fastrand::Rng::new().u64(..))
    }

    /// A world of one's own; `seed` starts the randomness.
    pub fn new(clock: impl Clock, spawn: impl Spawn, seed: u64) -> Self {
        Self { clock: Arc::new(clock), spawn: Arc::new(spawn), random: Arc::new(AtomicU64::new(seed)) }
    }

    /// Reads both clocks.
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// Reads the monotonic clock, in milliseconds.
    pub fn mono(&self) -> u64 {
        self.clock.mono()
    }

    /// Starts a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> tokio::task::JoinHandle<()> {
        self.spawn.spawn(Box::pin(task))
    }

    /// Starts work that may wait for a disk. The receiver fails if the work panicked or was never done.
    pub fn spawn_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (done, result) = oneshot::channel();
        self.spawn.spawn_blocking(Box::new(move || {
            // Whoever asked may have gone; what was done stays done.
            let _ = done.send(work());
        }));
        result
    }

    /// A random number.
    pub fn random(&self) -> u64 {
        let seed = self.random.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        fastrand::Rng::with_seed(seed).u64(..)
    }

    /// A random 128-bit number.
    pub fn random_u128(&self) -> u128 {
        (u128::from(self.random()) << 64) | u128::from(self.random())
    }

    /// A random duration in `[0, bound)`.
    pub fn jitter(&self, bound: Duration) -> Duration {
        let seed = self.random();
        bound.mul_f64(fastrand::Rng::with_seed(seed).f64())
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self::tokio()
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").finish_non_exhaustive()
    }
}

/// The machine's clocks. Monotonic time is tokio's, so that it can be paused.
#[derive(Debug)]
pub struct SystemClock {
    start: tokio::time::Instant,
}

impl Default for SystemClock {
    #[allow(clippy::disallowed_methods)] // the one home of the clock
    fn default() -> Self {
        Self { start: tokio::time::Instant::now() }
    }
}

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // the one home of the clock
    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono: self.mono(), wall: millis(wall) }
    }

    fn mono(&self) -> u64 {
        millis(self.start.elapsed())
    }
}

/// Simulated time: both clocks are tokio's, and the wall clock starts at a time of one's own.
#[derive(Debug)]
pub struct SimulatedClock {
    start: tokio::time::Instant,
    wall_at_start: u64,
}

impl SimulatedClock {
    /// A clock whose wall shows `wall_at_start` milliseconds since the Unix epoch now.
    #[allow(clippy::disallowed_methods)] // the one home of the clock
    pub fn starting_at(wall_at_start: u64) -> Self {
        Self { start: tokio::time::Instant::now(), wall_at_start }
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> Now {
        let mono = millis(self.start.elapsed());
        Now { mono, wall: self.wall_at_start + mono }
    }
}

/// Tokio's scheduler.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokioSpawn;

impl Spawn for TokioSpawn {
    #[allow(clippy::disallowed_methods)] // the one home of spawning
    fn spawn(&self, task: BoxTask) -> tokio::task::JoinHandle<()> {
        tokio::spawn(task)
    }

    fn spawn_blocking(&self, work: BoxWork) {
        // It tells by itself when it is done.
        drop(tokio::task::spawn_blocking(work));
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
