//! A demand that changes over time, a pool in either mode under it, and what came of it.
//!
//! A service takes one request at a time, a request takes 50 ms on average (exponentially distributed), and a service takes
//! 500 ms to be made. Demand is either *callers* who each have one request in flight all the time, so that k of them keep k
//! services busy; or *arrivals*, a Poisson stream that knows nothing of the pool, so fast that it keeps k services busy for
//! 70% of the time.

use std::{
    convert::Infallible,
    fmt::Write as _,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use client_sdk::{
    pool::{Builder, Pool, PoolError, SteadyPool},
    runtime::{Runtime, TokioClock, TokioConnect, TokioSpawn},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, sleep_until},
};
use tower::{Service, ServiceExt as _, limit::ConcurrencyLimit, load::Load};

const TAKES: Duration = Duration::from_millis(50);
const MAKING: Duration = Duration::from_millis(500);
/// How often it is looked at.
pub const LOOK: Duration = Duration::from_millis(100);
/// What of arrivals a service is busy with.
const BUSY: f64 = 0.7;
const MAX: usize = 10;
/// Until then what happens counts as settling.
const SETTLING: Duration = Duration::from_mins(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Steady,
    Classic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Callers,
    Arrivals,
}

/// A demand for so many services from each of these times on.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub kind: Kind,
    pub steps: Vec<(Duration, f64)>,
    pub end: Duration,
}

/// What was seen at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Look {
    pub at: Duration,
    /// The demand, in services.
    pub demand: f64,
    pub services: usize,
    /// In services for the steady pool, a share of polls for the classic one.
    pub estimate: f64,
    /// Services made and dropped until then.
    pub changes: usize,
    pub answered: usize,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub looks: Vec<Look>,
    /// When requests came, and how long they waited and took.
    pub latencies: Vec<(Duration, Duration)>,
}

#[derive(Default)]
struct Counts {
    made: AtomicUsize,
    alive: AtomicUsize,
    answered: AtomicUsize,
    estimate: Mutex<f64>,
    latencies: Mutex<Vec<(Duration, Duration)>>,
}

type Reply<T> = Pin<Box<dyn Future<Output = Result<T, Infallible>> + Send>>;

#[derive(Clone)]
struct Maker(Arc<Counts>);

struct Served(ConcurrencyLimit<Takes>, Arc<Counts>);

#[derive(Clone, Copy)]
struct Takes;

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Callers => "callers",
            Self::Arrivals => "arrivals",
        }
    }
}

impl Scenario {
    /// The same demand all the time, until so many requests were made of it after it has settled.
    pub fn steady(kind: Kind, demand: f64, requests: usize) -> Self {
        let a_second = demand * if kind == Kind::Arrivals { BUSY } else { 1.0 } / TAKES.as_secs_f64();
        let needed =
            Duration::from_secs_f64(f64::from(u32::try_from(requests).expect("not so many")) / a_second);
        Self { kind, steps: vec![(Duration::ZERO, demand)], end: SETTLING + needed }
    }

    /// Two minutes of the one demand, then ten of the other.
    pub fn step(kind: Kind, from: f64, to: f64) -> Self {
        let at = Duration::from_mins(2);
        Self { kind, steps: vec![(Duration::ZERO, from), (at, to)], end: 6 * at }
    }

    /// One service is needed, then five, then two; then two or three.
    pub fn story() -> Self {
        let steps = [(0, 1.0), (60, 5.0), (180, 2.0), (360, 2.5)];
        let steps = steps.map(|(at, demand)| (Duration::from_secs(at), demand)).into();
        Self { kind: Kind::Arrivals, steps, end: Duration::from_mins(9) }
    }

    pub fn demand_at(&self, at: Duration) -> f64 {
        self.steps.iter().rev().find(|(from, _)| *from <= at).map_or(0.0, |(_, demand)| *demand)
    }
}

impl Run {
    fn after(&self, at: Duration) -> impl Iterator<Item = &Look> {
        self.looks.iter().filter(move |look| look.at >= at)
    }

    /// Services that came or went after it had settled, in each 10,000 requests.
    pub fn changes_in_10_000(&self) -> f64 {
        let (Some(first), Some(last)) = (self.after(SETTLING).next(), self.looks.last()) else { return 0.0 };
        10_000.0 * number(last.changes - first.changes) / number(last.answered - first.answered).max(1.0)
    }

    /// The fewest and the most services after that time.
    pub fn services_after(&self, at: Duration) -> (usize, usize) {
        let services = || self.after(at).map(|look| look.services);
        (services().min().unwrap_or(0), services().max().unwrap_or(0))
    }

    /// For which share of the time after that there were so many services.
    pub fn share_within(&self, at: Duration, services: std::ops::RangeInclusive<usize>) -> f64 {
        let held = self.after(at).filter(|look| services.contains(&look.services)).count();
        number(held) / number(self.after(at).count()).max(1.0)
    }

    /// How long after that time there were as many services as it takes.
    pub fn met_after(&self, at: Duration, enough: impl Fn(usize) -> bool) -> Option<Duration> {
        self.after(at).find(|look| enough(look.services)).map(|look| look.at.saturating_sub(at))
    }

    /// Of the times that requests took after it had settled, the one that 99 of 100 do not exceed.
    pub fn p99(&self) -> Duration {
        let settled = self.latencies.iter().filter(|(came, _)| *came >= SETTLING);
        let mut latencies: Vec<_> = settled.map(|(_, took)| *took).collect();
        latencies.sort_unstable();
        latencies.get(latencies.len() * 99 / 100).copied().unwrap_or_default()
    }
}

/// Runs it on simulated time.
pub fn run(mode: Mode, scenario: &Scenario, seed: u64) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(simulate(mode, scenario.clone(), seed))
}

/// The table of both modes.
pub fn report(requests: usize, seed: u64) -> String {
    let mut table = String::from(
        "| demand | steady: services | k ± 1 held | changes in 10,000 | p99 | classic: services | k ± 1 held | \
         changes in 10,000 | p99 |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    let callers = [1.0, 2.0, 3.0, 5.0, 8.0].map(|k| (Kind::Callers, k));
    let arrivals = [1.0, 2.0, 2.5, 3.0, 5.0, 8.0].map(|k| (Kind::Arrivals, k));
    for (kind, k) in callers.into_iter().chain(arrivals) {
        let _ = write!(table, "| {} {k} |", kind.name());
        for mode in [Mode::Steady, Mode::Classic] {
            let run = run(mode, &Scenario::steady(kind, k, requests), seed);
            let (fewest, most) = run.services_after(SETTLING);
            let (changes, p99) = (run.changes_in_10_000(), run.p99().as_millis());
            let held = 100.0 * run.share_within(SETTLING, near(k));
            let _ = write!(table, " {fewest} to {most} | {held:.1}% | {changes:.1} | {p99} ms |");
        }
        table.push('\n');
    }
    table.push_str("\n| step | steady: met after | classic: met after |\n|---|---|---|\n");
    let at = Duration::from_mins(2);
    for kind in [Kind::Callers, Kind::Arrivals] {
        for (from, to) in [(1.0, 5.0), (5.0, 1.0)] {
            let _ = write!(table, "| {} from {from} to {to} |", kind.name());
            for mode in [Mode::Steady, Mode::Classic] {
                let run = run(mode, &Scenario::step(kind, from, to), seed);
                // Met is from below: as many as are needed; from above: one more at most.
                let enough = |it: usize| if from < to { number(it) >= to } else { number(it) <= to + 1.0 };
                let met = run.met_after(at, enough);
                let met = met.map_or("never".to_owned(), |met| format!("{:.1} s", met.as_secs_f64()));
                let _ = write!(table, " {met} |");
            }
            table.push('\n');
        }
    }
    table
}

async fn simulate(mode: Mode, scenario: Scenario, seed: u64) -> Run {
    let counts = Arc::new(Counts::default());
    let runtime = Runtime::new(TokioClock::default(), TokioConnect, TokioSpawn, seed);
    let maker = Maker(Arc::clone(&counts));
    let began = Instant::now();
    match mode {
        Mode::Steady => {
            let pool = SteadyPool::builder(maker, ()).limit(1).max(MAX).queue_limit(1_000_000);
            let pool =
                pool.max_wait(Duration::from_hours(1)).runtime(runtime).build().expect("good settings");
            let shown = pool.clone();
            let demand = demand(pool, scenario.clone(), seed, Arc::clone(&counts));
            look(&scenario, &counts, began, move || shown.snapshot().estimate, demand).await
        }
        Mode::Classic => {
            let pool =
                Builder::new().max_services(MAX).runtime(runtime).build(maker, ()).expect("good settings");
            let demand =
                demand(Shared::new(pool, Arc::clone(&counts)), scenario.clone(), seed, Arc::clone(&counts));
            let shown = Arc::clone(&counts);
            look(&scenario, &counts, began, move || *shown.estimate.lock().expect("unpoisoned"), demand).await
        }
    }
}

/// Looks every so often, while the demand goes on.
async fn look(
    scenario: &Scenario,
    counts: &Arc<Counts>,
    began: Instant,
    estimate: impl Fn() -> f64,
    demand: impl Future<Output = ()>,
) -> Run {
    let mut looks = Vec::new();
    let looking = async {
        let mut at = Duration::ZERO;
        while at < scenario.end {
            at += LOOK;
            sleep_until(began + at).await;
            let (made, alive) = (counts.made.load(Ordering::Relaxed), counts.alive.load(Ordering::Relaxed));
            looks.push(Look {
                at,
                demand: scenario.demand_at(at),
                services: alive,
                estimate: estimate(),
                changes: 2 * made - alive,
                answered: counts.answered.load(Ordering::Relaxed),
            });
        }
    };
    tokio::select! {
        biased;
        () = looking => {}
        () = demand => {}
    }
    let latencies = std::mem::take(&mut *counts.latencies.lock().expect("unpoisoned"));
    Run { looks, latencies }
}

/// Asks the pool as the scenario says, until the end.
async fn demand<P>(pool: P, scenario: Scenario, seed: u64, counts: Arc<Counts>)
where
    P: Service<Duration, Error = PoolError> + Clone + Send + 'static,
    P::Future: Send,
{
    let began = Instant::now();
    let ask = move |mut pool: P, takes: Duration, counts: Arc<Counts>| async move {
        let came = Instant::now();
        if pool.call(takes).await.is_ok() {
            counts.answered.fetch_add(1, Ordering::Relaxed);
            counts.latencies.lock().expect("unpoisoned").push((came - began, came.elapsed()));
        }
    };
    let mut tasks = tokio::task::JoinSet::new();
    if scenario.kind == Kind::Callers {
        for nth in 1..=MAX {
            let (pool, scenario, counts) = (pool.clone(), scenario.clone(), Arc::clone(&counts));
            tasks.spawn(async move {
                let mut rng = fastrand::Rng::with_seed(seed + nth as u64);
                loop {
                    if number(nth) <= scenario.demand_at(began.elapsed()) {
                        ask(pool.clone(), drawn(&mut rng, TAKES), Arc::clone(&counts)).await;
                    } else {
                        sleep(LOOK).await;
                    }
                }
            });
        }
        while tasks.join_next().await.is_some() {}
        return;
    }
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut next = began;
    loop {
        let rate = scenario.demand_at(next - began) * BUSY / TAKES.as_secs_f64();
        next += drawn(&mut rng, Duration::from_secs_f64(1.0 / rate));
        sleep_until(next).await;
        tasks.spawn(ask(pool.clone(), drawn(&mut rng, TAKES), Arc::clone(&counts)));
        while tasks.try_join_next().is_some() {}
    }
}

/// Exponentially distributed.
fn drawn(rng: &mut fastrand::Rng, mean: Duration) -> Duration {
    mean.mul_f64(-(1.0 - rng.f64()).ln())
}

/// As many services as such a demand needs (of a fraction the next whole number), give or take one.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // small and not negative
pub fn near(demand: f64) -> std::ops::RangeInclusive<usize> {
    let needed = demand.ceil() as usize;
    needed.saturating_sub(1)..=needed + 1
}

/// Counts of things are far below 2^52, where a float is exact.
#[allow(clippy::cast_precision_loss)]
pub fn number(count: usize) -> f64 {
    count as f64
}

type Queued<Req, F> = (Req, oneshot::Sender<F>);
type ClassicPool = Pool<Maker, (), Duration>;

/// A classic pool that many share, first come, first served, as through tower's `Buffer`.
#[derive(Clone)]
struct Shared(mpsc::Sender<Queued<Duration, <ClassicPool as Service<Duration>>::Future>>);

impl Shared {
    fn new(mut pool: ClassicPool, counts: Arc<Counts>) -> Self {
        let (queue, mut queued) = mpsc::channel::<Queued<_, _>>(1 << 20);
        tokio::spawn(async move {
            while let Some((takes, answer)) = queued.recv().await {
                let Ok(pool) = pool.ready().await else { return };
                *counts.estimate.lock().expect("unpoisoned") = pool.estimate();
                let _ = answer.send(pool.call(takes));
            }
        });
        Self(queue)
    }
}

impl Service<Duration> for Shared {
    type Response = ();
    type Error = PoolError;
    type Future = Pin<Box<dyn Future<Output = Result<(), PoolError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), PoolError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, takes: Duration) -> Self::Future {
        let queue = self.0.clone();
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            queue.send((takes, answer)).await.map_err(|_| PoolError::Ended)?;
            answered.await.map_err(|_| PoolError::Ended)?.await
        })
    }
}

impl Service<()> for Maker {
    type Response = Served;
    type Error = Infallible;
    type Future = Reply<Served>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        let counts = Arc::clone(&self.0);
        Box::pin(async move {
            sleep(MAKING).await;
            counts.made.fetch_add(1, Ordering::Relaxed);
            counts.alive.fetch_add(1, Ordering::Relaxed);
            Ok(Served(ConcurrencyLimit::new(Takes, 1), counts))
        })
    }
}

impl Service<Duration> for Served {
    type Response = ();
    type Error = Infallible;
    type Future = <ConcurrencyLimit<Takes> as Service<Duration>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, takes: Duration) -> Self::Future {
        self.0.call(takes)
    }
}

impl Service<Duration> for Takes {
    type Response = ();
    type Error = Infallible;
    type Future = Reply<()>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, takes: Duration) -> Self::Future {
        Box::pin(async move {
            sleep(takes).await;
            Ok(())
        })
    }
}

impl Load for Served {
    type Metric = usize;

    /// One that is ready has nothing to do.
    fn load(&self) -> usize {
        0
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.1.alive.fetch_sub(1, Ordering::Relaxed);
    }
}
