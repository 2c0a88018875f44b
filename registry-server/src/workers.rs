//! The threads that tasks run on: one for each processor that the process may use. On request each is kept to its own processor.
//!
//! Where the system is free to, it may put two of them on one processor and leave another idle, for milliseconds at a time, just
//! when there is most to do: beside a thousand watchers that is what the slowest hundredth of all deliveries waits for
//! (`docs/performance.md`). Where processors are shared with others it has its reasons, so this is for who has them to himself.

use std::{
    io,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use tokio::runtime::{Builder, Runtime};

/// Why there are no threads.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system has none to give.
    #[error("cannot start threads: {0}")]
    Threads(#[source] io::Error),
    /// The system does not keep them to processors.
    #[error("cannot keep threads to processors: {0}; start it with --pin-workers off")]
    Pins(#[source] io::Error),
}

/// Starts them. Pinned, they are as many as processors, and fewer where the process has a quota of their time; else as many as
/// `TOKIO_WORKER_THREADS` says, if it is set. What may wait for a disk has threads of its own, on any processor.
pub fn start(pinned: bool) -> Result<Runtime, StartError> {
    if !pinned {
        return Runtime::new().map_err(StartError::Threads);
    }
    let pins = Pins::new().map_err(StartError::Pins)?;
    let workers = thread::available_parallelism().map_err(StartError::Threads)?.get();
    let (tell, told) = mpsc::sync_channel(workers);
    let started = AtomicUsize::new(0);
    let runtime = Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .on_thread_start(move || {
            let nth = started.fetch_add(1, Ordering::Relaxed);
            let done = if nth < workers { pins.pin(nth) } else { pins.unpin() };
            // There is room for the workers; after them nobody listens.
            _ = tell.try_send(done);
        })
        .build()
        .map_err(StartError::Threads)?;
    // Before anything else is run, so that the first threads are the workers.
    for pinned in told.iter().take(workers) {
        pinned.map_err(StartError::Pins)?;
    }
    Ok(runtime)
}

#[cfg(target_os = "linux")]
mod pins {
    use std::io;

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    /// The processors that this process may use.
    #[derive(Debug)]
    pub(super) struct Pins(CpuSet);

    impl Pins {
        pub(super) fn new() -> io::Result<Self> {
            Ok(Self(sched_getaffinity(None)?))
        }

        /// Keeps this thread to one of them; each in its turn.
        pub(super) fn pin(&self, nth: usize) -> io::Result<()> {
            let usable: Vec<_> = (0..CpuSet::MAX_CPU).filter(|cpu| self.0.is_set(*cpu)).collect();
            let mut one = CpuSet::new();
            if let Some(cpu) = usable.get(nth % usable.len().max(1)) {
                one.set(*cpu);
            }
            Ok(sched_setaffinity(None, &one)?)
        }

        /// Lets this thread run on all of them, whoever started it.
        pub(super) fn unpin(&self) -> io::Result<()> {
            Ok(sched_setaffinity(None, &self.0)?)
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod pins {
    use std::io;

    #[derive(Debug)]
    pub(super) struct Pins(std::convert::Infallible);

    impl Pins {
        pub(super) fn new() -> io::Result<Self> {
            Err(io::Error::new(io::ErrorKind::Unsupported, "that is known of Linux only"))
        }

        pub(super) fn pin(&self, _: usize) -> io::Result<()> {
            match self.0 {}
        }

        pub(super) fn unpin(&self) -> io::Result<()> {
            match self.0 {}
        }
    }
}

use self::pins::Pins;

#[cfg(all(test, target_os = "linux"))]
mod tests;
