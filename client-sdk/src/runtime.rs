//! The outside world, injected: clock, randomness, spawning and connecting.
//!
//! The one home of `Instant::now`, `tokio::spawn` and sockets in this crate, so that whole systems run on simulated
//! time and on a simulated network. Sleeping is tokio's, whose time a simulation drives too.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::model::{Address, AddressKind};

/// A boxed future.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a connection is made of.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// A monotonic clock.
pub trait Clock: Send + Sync + 'static {
    /// Time since an arbitrary start.
    fn now(&self) -> Duration;
}

/// Opens byte streams to addresses.
pub trait Connect: Send + Sync + 'static {
    /// Connects. The caller bounds how long it waits.
    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, io::Result<Box<dyn Io>>>;
}

/// Runs tasks.
pub trait Spawn: Send + Sync + 'static {
    /// Starts a task that ends when the handle is aborted.
    fn spawn(&self, task: BoxFuture<'static, ()>) -> tokio::task::AbortHandle;
}

/// The outside world. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    clock: Arc<dyn Clock>,
    connect: Arc<dyn Connect>,
    spawn: Arc<dyn Spawn>,
    random: Arc<Mutex<fastrand::Rng>>,
    versions: Arc<AtomicU64>,
}

/// A running task; dropping it ends the task.
#[derive(Debug)]
pub struct Task(tokio::task::AbortHandle);

impl Runtime {
    /// The real world: tokio's clock, sockets and scheduler, and randomness from the system.
    pub fn tokio() -> Self {
        Self::new(TokioClock::default(), TokioConnect, TokioSpawn, fastrand::Rng::new().u64(..))
    }

    /// A world of one's own; `seed` starts the randomness.
    pub fn new(clock: impl Clock, connect: impl Connect, spawn: impl Spawn, seed: u64) -> Self {
        Self {
            clock: Arc::new(clock),
            connect: Arc::new(connect),
            spawn: Arc::new(spawn),
            random: Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))),
            versions: Arc::new(AtomicU64::new(1)),
        }
    }

    /// Time since an arbitrary start.
    pub fn now(&self) -> Duration {
        self.clock.now()
    }

    /// Connects.
    pub async fn connect(&self, address: &Address) -> io::Result<Box<dyn Io>> {
        self.connect.connect(address).await
    }

    /// Starts a task that ends when the returned handle is dropped.
    #[must_use = "dropping the handle ends the task"]
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Task {
        Task(self.spawn.spawn(Box::pin(task)))
    }

    /// Starts a task that nobody owns: it must end by itself.
    pub fn detach(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn.spawn(Box::pin(task));
    }

    /// A random number.
    pub fn random(&self) -> u64 {
        self.rng(|rng| rng.u64(..))
    }

    /// A random duration in `[0, bound)`.
    pub fn jitter(&self, bound: Duration) -> Duration {
        bound.mul_f64(self.rng(fastrand::Rng::f64))
    }

    /// A generator of one's own, seeded from this one.
    pub fn fork_rng(&self) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.random())
    }

    /// A number that no earlier call returned, strictly growing: stamps versions of views.
    pub fn next_version(&self) -> u64 {
        self.versions.fetch_add(1, Ordering::Relaxed)
    }

    fn rng<T>(&self, with: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        with(&mut self.random.lock().unwrap_or_else(PoisonError::into_inner))
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

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tokio's clock: real, paused or simulated as tokio's time is.
#[derive(Debug)]
pub struct TokioClock(tokio::time::Instant);

impl Default for TokioClock {
    #[allow(clippy::disallowed_methods)] // the one home of the clock
    fn default() -> Self {
        Self(tokio::time::Instant::now())
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Tokio's scheduler.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokioSpawn;

impl Spawn for TokioSpawn {
    #[allow(clippy::disallowed_methods)] // the one home of spawning
    fn spawn(&self, task: BoxFuture<'static, ()>) -> tokio::task::AbortHandle {
        tokio::spawn(task).abort_handle()
    }
}

/// TCP (without Nagle's delay) and Unix sockets.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokioConnect;

impl Connect for TokioConnect {
    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
        Box::pin(async move {
            match address.kind() {
                AddressKind::Tcp { host, port } => {
                    let stream = tokio::net::TcpStream::connect((host, port)).await?;
                    stream.set_nodelay(true)?;
                    Ok(Box::new(stream) as Box<dyn Io>)
                }
                #[cfg(unix)]
                AddressKind::Unix(path) => {
                    Ok(Box::new(tokio::net::UnixStream::connect(path).await?) as Box<dyn Io>)
                }
                #[cfg(not(unix))]
                AddressKind::Unix(_) => {
                    Err(io::Error::new(io::ErrorKind::Unsupported, "no Unix sockets here"))
                }
            }
        })
    }
}
