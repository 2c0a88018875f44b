//! The process that a server runs in, and the time that it has: simulated, with a clock that jumps and a disk that takes
//! its time.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use registry_server::{
    core::Now,
    runtime::{BoxTask, BoxWork, Clock, SimulatedClock, Spawn, TokioSpawn},
};
use tokio::{
    task::{AbortHandle, JoinHandle},
    time::sleep,
};

use crate::history::Millis;

/// Simulated time that can jump, as it does for a process that was stopped.
#[derive(Clone)]
pub(super) struct JumpingClock {
    pub(super) inner: Arc<SimulatedClock>,
    pub(super) jumped: Arc<AtomicU64>,
}

impl Clock for JumpingClock {
    fn now(&self) -> Now {
        let (now, jumped) = (self.inner.now(), self.jumped.load(Ordering::Relaxed));
        Now { mono: now.mono + jumped, wall: now.wall + jumped }
    }
}

/// Tasks that end with the process, and a disk that takes its time.
#[derive(Clone)]
pub(super) struct Process {
    pub(super) tasks: Arc<Mutex<Vec<AbortHandle>>>,
    pub(super) rng: Arc<Mutex<fastrand::Rng>>,
    /// How long the disk takes at most, in milliseconds.
    pub(super) slowest: Millis,
}

impl Spawn for Process {
    fn spawn(&self, task: BoxTask) -> JoinHandle<()> {
        let task = TokioSpawn.spawn(task);
        lock(&self.tasks).push(task.abort_handle());
        task
    }

    fn spawn_blocking(&self, work: BoxWork) {
        let takes = lock(&self.rng).u64(0..=self.slowest);
        drop(self.spawn(Box::pin(async move {
            sleep(Duration::from_millis(takes)).await;
            work();
        })));
    }
}

impl Process {
    /// The process is gone.
    pub(super) fn end(&self) {
        for task in lock(&self.tasks).drain(..) {
            task.abort();
        }
    }
}

/// Nobody panics while holding one of these locks and goes on.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
