//! Callers in a closed loop, and what became of their calls.
//!
//! A call belongs to the phase that it began in. Owns no claim: what is to hold of a phase is the test's to say.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use client_sdk::BalancedChannel;
use tokio::{sync::watch, task::JoinSet};
use tonic::{Request, Response, Status};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};

use super::{EARLIER, WHO};
use crate::process::within;

/// So many calls, or the end of those that have begun, come within this.
const PATIENCE: Duration = Duration::from_mins(2);

/// How it is called.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How many call at the same time.
    pub callers: u64,
    /// How long each pauses after an answer: up to twice that.
    pub pause: Duration,
    /// The whole time that a call has.
    pub deadline: Duration,
}

/// Callers at work, until it is dropped.
#[derive(Debug)]
pub struct Load {
    record: Arc<Record>,
    callers: JoinSet<()>,
}

/// What became of the calls of one phase.
#[derive(Clone, Debug, Default)]
pub struct Phase {
    /// Its name.
    pub label: String,
    /// How many calls were answered, well or not.
    pub calls: usize,
    /// What those that failed were told.
    pub failed: Vec<String>,
    /// How many attempts there were beyond the first ones.
    pub retries: u64,
    /// How many calls each process answered well.
    pub by: BTreeMap<String, usize>,
    /// How long each took.
    latencies: Vec<Duration>,
    /// Calls that have begun and not ended.
    open: usize,
}

/// Phases, as the table that goes into the documentation.
#[derive(Debug)]
pub struct Table<'a>(pub &'a [Phase]);

#[derive(Debug)]
struct Record {
    /// Never held across an await.
    phases: Mutex<Vec<Phase>>,
    /// A call has ended.
    progress: watch::Sender<()>,
    stop: AtomicBool,
}

impl Load {
    /// Starts the callers, in a phase of that name.
    pub fn start(channel: &BalancedChannel, pace: Pace, label: &str) -> Self {
        let record = Arc::new(Record {
            phases: Mutex::default(),
            progress: watch::channel(()).0,
            stop: AtomicBool::new(false),
        });
        record.begin(label.to_owned());
        let mut callers = JoinSet::new();
        for seed in 0..pace.callers {
            let (client, record) = (HealthClient::new(channel.clone()), Arc::clone(&record));
            callers.spawn(record.call(client, pace, seed));
        }
        Self { record, callers }
    }

    /// Begins the next phase, and waits for what began in the one before: what is done to the fleet from now on happens to
    /// calls of this phase alone.
    pub async fn begin(&self, label: &str) {
        self.record.begin(label.to_owned());
        self.turn().await;
    }

    /// Waits until so many calls of this phase have ended.
    pub async fn calls(&self, calls: usize) {
        let enough = |phases: &[Phase]| phases.last().is_some_and(|phase| phase.calls >= calls);
        self.until("calls to end", enough).await;
    }

    /// Waits until no call is under way any more that had begun before.
    pub async fn turn(&self) {
        let before = {
            let mut phases = self.record.phases();
            let label = phases.last().map(|phase| phase.label.clone()).unwrap_or_default();
            phases.push(Phase { label, ..Phase::default() });
            phases.len() - 1
        };
        let over = |phases: &[Phase]| phases[..before].iter().all(|phase| phase.open == 0);
        self.until("calls that had begun to end", over).await;
    }

    /// Ends it with all that is under way, and says how each phase went. Those that follow each other under the same
    /// name are one.
    pub async fn end(mut self) -> Vec<Phase> {
        self.record.stop.store(true, Ordering::SeqCst);
        within("the callers to end", PATIENCE, async {
            while let Some(caller) = self.callers.join_next().await {
                caller.expect("no caller panics");
            }
        })
        .await;
        let mut phases: Vec<Phase> = Vec::new();
        for phase in std::mem::take(&mut *self.record.phases()) {
            match phases.last_mut() {
                Some(last) if last.label == phase.label => last.add(phase),
                _ => phases.push(phase),
            }
        }
        for phase in &mut phases {
            phase.latencies.sort_unstable();
        }
        phases
    }

    async fn until(&self, what: &str, looks: impl Fn(&[Phase]) -> bool) {
        let mut progress = self.record.progress.subscribe();
        let reached = progress.wait_for(|()| looks(&self.record.phases()));
        within(what, PATIENCE, reached).await.expect("the record is here");
    }
}

impl Phase {
    /// How long the calls took at most, but for so many of a hundred.
    pub fn percentile(&self, percent: usize) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        let rank = (self.latencies.len() * percent).div_ceil(100).saturating_sub(1).min(last);
        self.latencies.get(rank).copied().unwrap_or_default()
    }

    fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.failed.extend(other.failed);
        self.retries += other.retries;
        self.latencies.extend(other.latencies);
        for (who, calls) in other.by {
            *self.by.entry(who).or_default() += calls;
        }
    }

    fn ended(&mut self, answer: Result<Response<HealthCheckResponse>, Status>, latency: Duration) {
        self.open -= 1;
        self.calls += 1;
        self.latencies.push(latency);
        match answer {
            Ok(answer) => {
                let said = |key| answer.metadata().get(key).and_then(|value| value.to_str().ok());
                let who = said(WHO).unwrap_or("nobody").to_owned();
                *self.by.entry(who).or_default() += 1;
                let earlier: u64 = said(EARLIER).and_then(|earlier| earlier.parse().ok()).unwrap_or(0);
                self.retries += earlier;
            }
            Err(status) => self.failed.push(format!("after {latency:?}: {status:?}")),
        }
    }
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |latency: Duration| latency.as_secs_f64() * 1e3;
        writeln!(f, "| phase | calls | failed | retries | p50 ms | p99 ms | longest ms |")?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        for phase in self.0 {
            let Phase { label, calls, retries, .. } = phase;
            let (failed, longest) = (phase.failed.len(), ms(phase.percentile(100)));
            let (p50, p99) = (ms(phase.percentile(50)), ms(phase.percentile(99)));
            writeln!(f, "| {label} | {calls} | {failed} | {retries} | {p50:.1} | {p99:.1} | {longest:.0} |")?;
        }
        Ok(())
    }
}

impl Record {
    async fn call(self: Arc<Self>, mut client: HealthClient<BalancedChannel>, pace: Pace, seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed);
        while !self.stop.load(Ordering::SeqCst) {
            // Calls are spread over time: it is not how they are synchronised.
            tokio::time::sleep(pace.pause.mul_f64(2.0 * rng.f64())).await;
            let phase = {
                let mut phases = self.phases();
                let newest = phases.len() - 1;
                phases[newest].open += 1;
                newest
            };
            let mut request = Request::new(HealthCheckRequest::default());
            request.set_timeout(pace.deadline);
            let began = Instant::now();
            let answer = client.check(request).await;
            let latency = began.elapsed();
            self.phases()[phase].ended(answer, latency);
            self.progress.send_replace(());
        }
    }

    fn begin(&self, label: String) {
        self.phases().push(Phase { label, ..Phase::default() });
    }

    fn phases(&self) -> MutexGuard<'_, Vec<Phase>> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
