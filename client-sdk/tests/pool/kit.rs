//! Services that do what the test says, and count themselves.

use std::{
    collections::HashSet,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use client_sdk::{
    pool::{Pool, PoolError, SteadyBuilder, SteadyPool},
    runtime::{Runtime, TokioClock, TokioConnect, TokioSpawn},
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::{Sleep, sleep},
};
use tower::{Service, ServiceExt as _, limit::ConcurrencyLimit, load::Load};

/// What a service is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// To answer after this time.
    Take(Duration),
    /// To answer when the gate lets one go.
    Hold,
    /// To fail.
    Fail,
    /// To panic in `call`.
    Panic,
    /// One of many that can be told apart.
    Numbered(usize, What),
}

/// What one of many is asked: as [`Ask`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Take(Duration),
    Fail,
    Panic,
}

pub const MILLI: Duration = Duration::from_millis(1);
pub const AT_ONCE: Ask = Ask::Take(Duration::ZERO);

pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, io::Error>> + Send>>;
pub type Steady = SteadyPool<Served, Ask>;
pub type Classic = Pool<Maker, (), Ask>;

/// Everything there is in a test.
#[derive(Clone)]
pub struct World(Arc<Inside>);

pub struct Inside {
    /// How many requests a service takes at once, as its `poll_ready` says.
    pub places: AtomicUsize,
    /// How long a service takes to be made.
    pub making: Mutex<Duration>,
    /// How long a service that was made takes until it is ready.
    pub warming: Mutex<Duration>,
    pub makes_fail: AtomicBool,
    /// What is wrong with the maker itself.
    pub fault: Mutex<Option<Fault>>,
    /// Services in the making.
    pub under_way: Arc<AtomicUsize>,
    /// By service: what it says of its load beside the requests that it has.
    pub loads: Mutex<Vec<(usize, usize)>>,
    /// Services of these numbers fail when they are asked whether they are ready.
    pub dead: Mutex<HashSet<usize>>,
    /// Services of these numbers panic when they are asked whether they are ready.
    pub ready_panics: Mutex<HashSet<usize>>,
    /// Whether services panic when they are asked for their load.
    pub load_panics: AtomicBool,
    /// Services of these numbers take no more requests.
    pub stuck: Mutex<Vec<usize>>,
    /// Whether busy services wake whoever asked them all the time, every millisecond.
    pub restless: AtomicBool,
    pub gate: Semaphore,
    pub attempts: AtomicUsize,
    pub made: AtomicUsize,
    pub alive: AtomicUsize,
    pub most_alive: AtomicUsize,
    /// By service: how many requests it was given.
    pub calls: Mutex<Vec<usize>>,
    /// In the order in which they were begun.
    pub begun: Mutex<Vec<Ask>>,
    pub dropped: Mutex<Vec<usize>>,
}

/// Makes services.
#[derive(Clone)]
pub struct Maker(World);

/// What is wrong with a maker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    ReadyFails,
    ReadyPanics,
    CallPanics,
    MakingPanics,
}

/// A service. Not `Clone`.
pub struct Served {
    pub id: usize,
    world: World,
    inner: ConcurrencyLimit<Inner>,
    in_flight: Arc<AtomicUsize>,
    warm: Pin<Box<Sleep>>,
    is_warm: bool,
    nudge: Option<Pin<Box<Sleep>>>,
}

struct Inner(World);

struct Counted(Arc<AtomicUsize>);

impl std::ops::Deref for World {
    type Target = Inside;

    fn deref(&self) -> &Inside {
        &self.0
    }
}

impl World {
    /// Services that take so many requests at once.
    pub fn of(places: usize) -> Self {
        Self(Arc::new(Inside {
            places: AtomicUsize::new(places),
            making: Mutex::default(),
            warming: Mutex::default(),
            makes_fail: AtomicBool::new(false),
            fault: Mutex::default(),
            under_way: Arc::default(),
            loads: Mutex::default(),
            dead: Mutex::default(),
            ready_panics: Mutex::default(),
            load_panics: AtomicBool::new(false),
            stuck: Mutex::default(),
            restless: AtomicBool::new(false),
            gate: Semaphore::new(0),
            attempts: AtomicUsize::new(0),
            made: AtomicUsize::new(0),
            alive: AtomicUsize::new(0),
            most_alive: AtomicUsize::new(0),
            calls: Mutex::default(),
            begun: Mutex::default(),
            dropped: Mutex::default(),
        }))
    }

    pub fn maker(&self) -> Maker {
        Maker(self.clone())
    }

    /// A builder of a pool whose services are good for one request each, with seeded randomness.
    pub fn steady(&self) -> SteadyBuilder<Maker, (), Ask> {
        SteadyPool::builder(self.maker(), ()).limit(1).runtime(seeded(7))
    }

    pub fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    pub fn alive(&self) -> usize {
        self.alive.load(Ordering::Relaxed)
    }

    pub fn attempts(&self) -> usize {
        self.attempts.load(Ordering::Relaxed)
    }

    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    pub fn set_fault(&self, fault: Option<Fault>) {
        *self.fault.lock().unwrap() = fault;
    }

    fn has(&self, fault: Fault) -> bool {
        *self.fault.lock().unwrap() == Some(fault)
    }

    pub fn fail_makes(&self, fail: bool) {
        self.makes_fail.store(fail, Ordering::Relaxed);
    }

    pub fn calls(&self) -> Vec<usize> {
        self.calls.lock().unwrap().clone()
    }

    pub fn begun(&self) -> Vec<Ask> {
        self.begun.lock().unwrap().clone()
    }

    pub fn kill(&self, id: usize) {
        self.dead.lock().unwrap().insert(id);
    }

    pub fn panic_when_asked(&self, id: usize) {
        self.ready_panics.lock().unwrap().insert(id);
    }

    fn panics_when_asked(&self, id: usize) -> bool {
        self.ready_panics.lock().unwrap().contains(&id)
    }

    /// How many requests with a number were begun: each once.
    pub fn begun_once(&self) -> usize {
        let mut seen = HashSet::new();
        for ask in self.begun.lock().unwrap().iter() {
            if let Ask::Numbered(number, _) = ask {
                assert!(seen.insert(*number), "{ask:?} was begun twice");
            }
        }
        seen.len()
    }
}

pub fn seeded(seed: u64) -> Runtime {
    Runtime::new(TokioClock::default(), TokioConnect, TokioSpawn, seed)
}

impl Service<()> for Maker {
    type Response = Served;
    type Error = io::Error;
    type Future = Answer<Served>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        assert!(!self.0.has(Fault::ReadyPanics), "as asked");
        let fails = self.0.has(Fault::ReadyFails);
        Poll::Ready(if fails { Err(io::Error::other("no workshop")) } else { Ok(()) })
    }

    fn call(&mut self, (): ()) -> Self::Future {
        let world = self.0.clone();
        world.attempts.fetch_add(1, Ordering::Relaxed);
        assert!(!world.has(Fault::CallPanics), "as asked");
        let under_way = Counted::of(&world.under_way);
        Box::pin(async move {
            let _under_way = under_way;
            let making = *world.making.lock().unwrap();
            if !making.is_zero() {
                sleep(making).await;
            }
            assert!(!world.has(Fault::MakingPanics), "as asked");
            if world.makes_fail.load(Ordering::Relaxed) {
                return Err(io::Error::other("no more hands"));
            }
            let id = world.made.fetch_add(1, Ordering::Relaxed);
            let alive = world.alive.fetch_add(1, Ordering::Relaxed) + 1;
            world.most_alive.fetch_max(alive, Ordering::Relaxed);
            world.calls.lock().unwrap().push(0);
            let (places, warming) = (world.places.load(Ordering::Relaxed), *world.warming.lock().unwrap());
            Ok(Served {
                id,
                inner: ConcurrencyLimit::new(Inner(world.clone()), places),
                in_flight: Arc::default(),
                warm: Box::pin(sleep(warming)),
                is_warm: warming.is_zero(),
                nudge: None,
                world,
            })
        })
    }
}

impl Service<Ask> for Served {
    type Response = usize;
    type Error = io::Error;
    type Future = Answer<usize>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.world.dead.lock().unwrap().contains(&self.id) {
            return Poll::Ready(Err(io::Error::other("dead")));
        }
        assert!(!self.world.panics_when_asked(self.id), "as asked");
        if !self.is_warm {
            std::task::ready!(self.warm.as_mut().poll(cx));
            self.is_warm = true;
        }
        if self.world.stuck.lock().unwrap().contains(&self.id) {
            return Poll::Pending;
        }
        let ready = self.inner.poll_ready(cx);
        if ready.is_pending() && self.world.restless.load(Ordering::Relaxed) {
            let mut nudge = self.nudge.take().unwrap_or_else(|| Box::pin(sleep(MILLI)));
            if nudge.as_mut().poll(cx).is_ready() {
                nudge = Box::pin(sleep(MILLI));
                let _ = nudge.as_mut().poll(cx);
            }
            self.nudge = Some(nudge);
        }
        ready
    }

    fn call(&mut self, ask: Ask) -> Self::Future {
        self.world.calls.lock().unwrap()[self.id] += 1;
        let (counted, answer, id) = (Counted::of(&self.in_flight), self.inner.call(ask), self.id);
        Box::pin(async move {
            let _counted = counted;
            answer.await.map(|()| id)
        })
    }
}

impl Service<Ask> for Inner {
    type Response = ();
    type Error = io::Error;
    type Future = Answer<()>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, ask: Ask) -> Self::Future {
        let world = self.0.clone();
        world.begun.lock().unwrap().push(ask);
        let ask = ask.what();
        assert_ne!(ask, Ask::Panic, "as asked");
        Box::pin(async move {
            match ask {
                Ask::Take(time) => {
                    if !time.is_zero() {
                        sleep(time).await;
                    }
                    Ok(())
                }
                Ask::Hold => {
                    world.gate.acquire().await.expect("never closed").forget();
                    Ok(())
                }
                Ask::Fail => Err(io::Error::other("as asked")),
                Ask::Panic | Ask::Numbered(..) => unreachable!("panicked before, and numbers are gone"),
            }
        })
    }
}

impl Load for Served {
    type Metric = usize;

    fn load(&self) -> usize {
        assert!(!self.world.load_panics.load(Ordering::Relaxed), "as asked");
        let loads = self.world.loads.lock().unwrap();
        let said = loads.iter().find(|(id, _)| *id == self.id).map_or(0, |(_, load)| *load);
        self.in_flight.load(Ordering::Relaxed) + said
    }
}

impl Ask {
    /// Without its number.
    fn what(self) -> Self {
        match self {
            Self::Numbered(_, What::Take(time)) => Self::Take(time),
            Self::Numbered(_, What::Fail) => Self::Fail,
            Self::Numbered(_, What::Panic) => Self::Panic,
            other => other,
        }
    }
}

impl Counted {
    fn of(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.world.alive.fetch_sub(1, Ordering::Relaxed);
        self.world.dropped.lock().unwrap().push(self.id);
    }
}

/// So many callers who each ask again as soon as they are answered, so often in all.
pub async fn callers<P>(pool: &P, callers: usize, requests: usize, ask: Ask)
where
    P: Service<Ask, Response = usize, Error = PoolError> + Clone + Send + 'static,
    P::Future: Send,
{
    let left = Arc::new(Semaphore::new(requests));
    let calls: Vec<_> = (0..callers)
        .map(|_| {
            let (mut pool, left) = (pool.clone(), Arc::clone(&left));
            tokio::spawn(async move {
                while let Ok(one) = left.try_acquire() {
                    one.forget();
                    pool.call(ask).await.expect("an answer");
                }
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
}

type Queued = (Ask, oneshot::Sender<<Classic as Service<Ask>>::Future>);

/// A classic pool that many share, first come, first served, as they would through tower's `Buffer`.
#[derive(Clone)]
pub struct SharedClassic(mpsc::Sender<Queued>);

impl SharedClassic {
    pub fn new(mut pool: Classic) -> Self {
        let (queue, mut queued) = mpsc::channel::<Queued>(1024);
        tokio::spawn(async move {
            while let Some((ask, answer)) = queued.recv().await {
                let future = pool.ready().await.expect("ready in the end").call(ask);
                let _ = answer.send(future);
            }
        });
        Self(queue)
    }
}

impl Service<Ask> for SharedClassic {
    type Response = usize;
    type Error = PoolError;
    type Future = Pin<Box<dyn Future<Output = Result<usize, PoolError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), PoolError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, ask: Ask) -> Self::Future {
        let queue = self.0.clone();
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            queue.send((ask, answer)).await.expect("the pool is there");
            answered.await.expect("given").await
        })
    }
}
