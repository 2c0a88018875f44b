//! What a server knows of its own load.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::LoadReport;
use crate::{runtime::Runtime, windowed::Windowed};

/// How many names there may be of one kind, and how long a name may be in bytes: they travel with each answer.
const NAMES: usize = 64;
const NAME: usize = 128;

/// Where a server's application says how loaded it is. Cheap to clone; made by
/// [`LoadReportLayer::new`](super::LoadReportLayer::new), or by itself for several layers.
///
/// Each number goes out with every answer from then on, until it is set anew: set it from a timer, or wherever it is
/// known. Requests and errors a second are counted by the layer over the last ten seconds, unless they are set.
///
/// ```
/// use client_sdk::orca::LoadRecorder;
/// let load = LoadRecorder::new();
/// load.set_application_utilization(0.7)?; // for example, the fuller of CPU and a connection pool
/// load.set_named("queue", 12.0)?;
/// assert!(load.set_cpu_utilization(-1.0).is_err());
/// # Ok::<(), client_sdk::orca::LoadError>(())
/// ```
#[derive(Clone, Debug)]
pub struct LoadRecorder(Arc<Recorded>);

#[derive(Debug)]
struct Recorded {
    application: Number,
    cpu: Number,
    memory: Number,
    qps: Number,
    eps: Number,
    names: Mutex<Names>,
    ended: Windowed,
    failed: Windowed,
    runtime: Runtime,
    since: Duration,
}

/// A number that may be unset, in one word: NaN is.
#[derive(Debug)]
struct Number(AtomicU64);

#[derive(Clone, Debug, Default)]
struct Names {
    utilization: BTreeMap<String, f64>,
    metrics: BTreeMap<String, f64>,
}

/// Why a number is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// It is none, or out of the range that the message has for it.
    #[error("{field} must be {range}, not {value}")]
    OutOfRange {
        /// Which number.
        field: &'static str,
        /// What it may be.
        range: &'static str,
        /// What it was to be.
        value: f64,
    },
    /// Names travel with every answer.
    #[error("a name must have 1 to 128 bytes, not {length}")]
    Name {
        /// Of the name, in bytes.
        length: usize,
    },
    /// Names travel with every answer.
    #[error("{field} has 64 names already; remove one first")]
    TooManyNames {
        /// Of which kind.
        field: &'static str,
    },
}

impl LoadRecorder {
    /// Nothing set, nothing counted, by the real clock.
    pub fn new() -> Self {
        Self::with_runtime(&Runtime::default())
    }

    /// As [`new`](Self::new), by the runtime's clock.
    pub fn with_runtime(runtime: &Runtime) -> Self {
        let unset = Number::default;
        Self(Arc::new(Recorded {
            application: unset(),
            cpu: unset(),
            memory: unset(),
            qps: unset(),
            eps: unset(),
            names: Mutex::default(),
            ended: Windowed::default(),
            failed: Windowed::default(),
            since: runtime.now(),
            runtime: runtime.clone(),
        }))
    }

    /// How loaded the application is, where 1 is fully so: what callers weigh by, if it is set. 0 or more.
    pub fn set_application_utilization(&self, share: f64) -> Result<(), LoadError> {
        self.0.application.set(positive("application_utilization", share)?);
        Ok(())
    }

    /// How much of the CPU is in use, where 1 is all of it: what callers weigh by else. 0 or more.
    pub fn set_cpu_utilization(&self, share: f64) -> Result<(), LoadError> {
        self.0.cpu.set(positive("cpu_utilization", share)?);
        Ok(())
    }

    /// How much of the memory is in use, 0 to 1.
    pub fn set_mem_utilization(&self, share: f64) -> Result<(), LoadError> {
        self.0.memory.set(share_of("mem_utilization", share)?);
        Ok(())
    }

    /// Requests a second, in place of what the layer counts; `None`: what it counts. 0 or more.
    pub fn set_qps(&self, per_second: Option<f64>) -> Result<(), LoadError> {
        self.0.qps.set(per_second.map_or(Ok(f64::NAN), |rate| positive("qps", rate))?);
        Ok(())
    }

    /// Failed requests a second, in place of what the layer counts; `None`: what it counts. 0 or more.
    pub fn set_eps(&self, per_second: Option<f64>) -> Result<(), LoadError> {
        self.0.eps.set(per_second.map_or(Ok(f64::NAN), |rate| positive("eps", rate))?);
        Ok(())
    }

    /// How much of a further resource is in use, 0 to 1. At most 64 of them, of names of 1 to 128 bytes.
    pub fn set_utilization(&self, name: &str, share: f64) -> Result<(), LoadError> {
        let share = share_of("utilization", share)?;
        insert(&mut self.names().utilization, "utilization", name, share)
    }

    /// A number that means something to the application's callers. At most 64 of them, of names of 1 to 128 bytes.
    pub fn set_named(&self, name: &str, value: f64) -> Result<(), LoadError> {
        if !value.is_finite() {
            return Err(LoadError::OutOfRange { field: "named_metrics", range: "a finite number", value });
        }
        insert(&mut self.names().metrics, "named_metrics", name, value)
    }

    /// Forgets what was set under this name, of either kind.
    pub fn remove(&self, name: &str) {
        let mut names = self.names();
        names.utilization.remove(name);
        names.metrics.remove(name);
    }

    /// What would be reported now.
    pub fn report(&self) -> LoadReport {
        let it = &self.0;
        let now = it.runtime.now();
        let names = self.names().clone();
        LoadReport {
            cpu_utilization: it.cpu.get().unwrap_or_default(),
            mem_utilization: it.memory.get().unwrap_or_default(),
            utilization: names.utilization,
            rps_fractional: it.qps.get().unwrap_or_else(|| it.ended.per_second(now, it.since)),
            eps: it.eps.get().unwrap_or_else(|| it.failed.per_second(now, it.since)),
            named_metrics: names.metrics,
            application_utilization: it.application.get().unwrap_or_default(),
            ..LoadReport::default()
        }
    }

    /// A request has ended.
    pub(super) fn ended(&self, failed: bool) {
        let now = self.0.runtime.now();
        self.0.ended.add(now);
        if failed {
            self.0.failed.add(now);
        }
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for LoadRecorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for Number {
    fn default() -> Self {
        Self(AtomicU64::new(f64::NAN.to_bits()))
    }
}

impl Number {
    fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    fn get(&self) -> Option<f64> {
        Some(f64::from_bits(self.0.load(Ordering::Relaxed))).filter(|value| !value.is_nan())
    }
}

fn positive(field: &'static str, value: f64) -> Result<f64, LoadError> {
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        Err(LoadError::OutOfRange { field, range: "a finite number of 0 or more", value })
    }
}

fn share_of(field: &'static str, value: f64) -> Result<f64, LoadError> {
    if (0.0..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err(LoadError::OutOfRange { field, range: "0 to 1", value })
    }
}

fn insert(
    names: &mut BTreeMap<String, f64>,
    field: &'static str,
    name: &str,
    value: f64,
) -> Result<(), LoadError> {
    if name.is_empty() || name.len() > NAME {
        return Err(LoadError::Name { length: name.len() });
    }
    if let Some(known) = names.get_mut(name) {
        *known = value;
    } else if names.len() >= NAMES {
        return Err(LoadError::TooManyNames { field });
    } else {
        names.insert(name.to_owned(), value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp)] // what is set comes back

    use super::*;
    use crate::runtime::{TokioClock, TokioConnect, TokioSpawn};

    #[tokio::test(start_paused = true)]
    async fn what_is_set_is_reported_until_it_is_set_anew() {
        let load =
            LoadRecorder::with_runtime(&Runtime::new(TokioClock::default(), TokioConnect, TokioSpawn, 1));
        assert_eq!(load.report(), LoadReport::default(), "nothing yet");
        load.set_application_utilization(1.5).expect("above 1 is fine");
        load.set_cpu_utilization(0.5).expect("valid");
        load.set_mem_utilization(0.25).expect("valid");
        load.set_utilization("pool", 0.75).expect("valid");
        load.set_named("queue", -3.0).expect("valid");
        let report = load.report();
        assert_eq!((report.application_utilization, report.cpu_utilization), (1.5, 0.5));
        assert_eq!((report.mem_utilization, report.utilization["pool"]), (0.25, 0.75));
        assert_eq!((report.named_metrics["queue"], report.utilization_or_cpu()), (-3.0, 1.5));
        load.set_application_utilization(0.0).expect("valid");
        assert_eq!(load.report().utilization_or_cpu(), 0.5, "the CPU's, where the application says nothing");
        load.remove("pool");
        assert!(load.report().utilization.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_and_failures_are_counted_unless_they_are_set() {
        let load =
            LoadRecorder::with_runtime(&Runtime::new(TokioClock::default(), TokioConnect, TokioSpawn, 1));
        for request in 0..50 {
            load.ended(request % 5 == 0);
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        let report = load.report();
        assert_eq!((report.rps_fractional, report.eps), (10.0, 2.0));
        load.set_qps(Some(1_000.0)).expect("valid");
        load.set_eps(Some(0.5)).expect("valid");
        assert_eq!((load.report().rps_fractional, load.report().eps), (1_000.0, 0.5));
        load.set_qps(None).expect("valid");
        assert_eq!(load.report().rps_fractional, 10.0);
    }

    #[test]
    fn what_the_message_has_no_room_for_is_refused() {
        let load = LoadRecorder::new();
        for bad in [-0.1, f64::NAN, f64::INFINITY] {
            assert!(load.set_application_utilization(bad).is_err(), "{bad}");
            assert!(load.set_cpu_utilization(bad).is_err(), "{bad}");
            assert!(load.set_mem_utilization(bad).is_err(), "{bad}");
            assert!(load.set_qps(Some(bad)).is_err() && load.set_eps(Some(bad)).is_err(), "{bad}");
        }
        assert_eq!(
            load.set_mem_utilization(1.5).expect_err("above all").to_string(),
            "mem_utilization must be 0 to 1, not 1.5"
        );
        assert!(load.set_named("x", f64::NAN).is_err() && load.set_named("", 1.0).is_err());
        assert!(load.set_named(&"x".repeat(129), 1.0).is_err());
        for name in 0..64 {
            load.set_named(&name.to_string(), 1.0).expect("room");
        }
        assert_eq!(load.set_named("64", 1.0), Err(LoadError::TooManyNames { field: "named_metrics" }));
        load.set_named("63", 2.0).expect("known already");
    }
}
