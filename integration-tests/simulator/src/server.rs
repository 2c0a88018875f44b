//! One server: so many workers, a queue before them, and a behaviour that may change at any time.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

/// How many requests a server works on at once.
pub const WORKERS: usize = 4;
/// How long a well server works on a request, on the average; exponentially distributed, but never above ten times that.
pub const WORK: Duration = Duration::from_millis(20);
/// How long one that fails fast takes to fail.
const FAILS_AFTER: Duration = Duration::from_millis(1);

/// How a server behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Behaviour {
    /// As it should.
    Well,
    /// Takes so many times as long.
    Slow(f64),
    /// Does all the work, and then fails.
    Fails,
    /// Fails at once.
    FailsFast,
    /// Of so long, stands still for so long.
    Stalls {
        /// From one stall to the next.
        every: Duration,
        /// How long a stall takes.
        lasts: Duration,
    },
    /// Takes so many times as long at first, and less and less within a time.
    Cold {
        /// At first.
        factor: f64,
        /// Until it is warm.
        within: Duration,
    },
    /// Accepts, and never answers. Connections to it break when the time is up that a keepalive takes.
    CutOff,
    /// Not there: connections break, and new ones are refused.
    Down,
}

/// A request came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// The server said so.
    Error,
    /// The connection broke.
    Broken,
    /// There is no connection to be had.
    Refused,
}

/// A simulated server.
#[derive(Debug)]
pub struct Server {
    /// Its number in the fleet.
    pub number: usize,
    workers: Semaphore,
    now: watch::Sender<(Behaviour, Instant)>,
    /// How many connections to it broke, all of them at once each time.
    breaks: watch::Sender<u64>,
    received: AtomicU64,
    /// The highest number of requests that were there at once.
    most: AtomicU64,
    there: AtomicU64,
    random: Mutex<fastrand::Rng>,
}

impl Server {
    /// A server that is well.
    pub fn new(number: usize, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            number,
            workers: Semaphore::new(WORKERS),
            now: watch::Sender::new((Behaviour::Well, now())),
            breaks: watch::Sender::new(0),
            received: AtomicU64::new(0),
            most: AtomicU64::new(0),
            there: AtomicU64::new(0),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
        })
    }

    /// Behaves so from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.now.send_replace((behaviour, now()));
        if behaviour == Behaviour::Down {
            self.break_connections();
        }
    }

    /// How it behaves.
    pub fn behaviour(&self) -> Behaviour {
        self.now.borrow().0
    }

    /// Breaks all connections to it.
    pub fn break_connections(&self) {
        self.breaks.send_modify(|breaks| *breaks += 1);
    }

    /// A connection: which breaks of all connections end it.
    pub fn connection(self: &Arc<Self>) -> Connection {
        let mut breaks = self.breaks.subscribe();
        breaks.mark_unchanged();
        Connection { server: Arc::clone(self), breaks }
    }

    /// How many requests came to it.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// How many requests were there at once, at most, since this was asked last.
    pub fn most(&self) -> u64 {
        self.most.swap(self.there.load(Ordering::Relaxed), Ordering::Relaxed)
    }

    async fn serve(&self) -> Result<(), Failed> {
        self.received.fetch_add(1, Ordering::Relaxed);
        let there = self.there.fetch_add(1, Ordering::Relaxed) + 1;
        let _there = Leaves(&self.there);
        self.most.fetch_max(there, Ordering::Relaxed);
        let (behaviour, _) = *self.now.borrow();
        match behaviour {
            Behaviour::FailsFast => {
                tokio::time::sleep(FAILS_AFTER).await;
                return Err(Failed::Error);
            }
            Behaviour::CutOff => std::future::pending().await,
            _ => {}
        }
        let Ok(_worker) = self.workers.acquire().await else { return Err(Failed::Broken) };
        self.stall().await;
        let work = WORK.mul_f64(self.chance() * self.slowness());
        tokio::time::sleep(work).await;
        self.stall().await;
        if self.behaviour() == Behaviour::Fails { Err(Failed::Error) } else { Ok(()) }
    }

    /// Stands still for as long as a stall lasts.
    async fn stall(&self) {
        let (behaviour, since) = *self.now.borrow();
        if let Behaviour::Stalls { every, lasts } = behaviour {
            let age = now().duration_since(since);
            let into = Duration::from_secs_f64(age.as_secs_f64() % every.as_secs_f64());
            if let Some(left) = lasts.checked_sub(into) {
                tokio::time::sleep(left).await;
            }
        }
    }

    /// How many times as long work takes.
    fn slowness(&self) -> f64 {
        let (behaviour, since) = *self.now.borrow();
        match behaviour {
            Behaviour::Slow(factor) => factor,
            Behaviour::Cold { factor, within } => {
                let warm = (now().duration_since(since).as_secs_f64() / within.as_secs_f64()).min(1.0);
                factor + (1.0 - factor) * warm
            }
            _ => 1.0,
        }
    }

    /// A draw of the exponential distribution of mean 1.
    fn chance(&self) -> f64 {
        (-(1.0 - self.random().f64()).ln()).min(10.0)
    }

    fn random(&self) -> MutexGuard<'_, fastrand::Rng> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection to a server.
#[derive(Clone, Debug)]
pub struct Connection {
    server: Arc<Server>,
    breaks: watch::Receiver<u64>,
}

impl Connection {
    /// Whether it broke.
    pub fn is_broken(&self) -> bool {
        self.breaks.has_changed().unwrap_or(true)
    }

    /// One request.
    pub async fn call(self) -> Result<(), Failed> {
        let Self { server, mut breaks } = self;
        tokio::select! {
            biased;
            _ = breaks.changed() => Err(Failed::Broken),
            served = server.serve() => served,
        }
    }
}

struct Leaves<'a>(&'a AtomicU64);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Virtual time.
#[allow(clippy::disallowed_methods)] // of this program, the one home of the clock
pub(crate) fn now() -> Instant {
    Instant::now()
}
