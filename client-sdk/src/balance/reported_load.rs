//! Round robin by weights that come from what instances report of their own load.
//!
//! After gRPC's weighted round robin (gRFC A58, with the application's utilisation of A51). An instance that serves many requests at
//! little load can serve more: its weight is
//!
//! ```text
//!   qps ÷ (utilisation + eps ÷ qps × penalty)
//! ```
//!
//! with the application's own utilisation, or its CPU's where it names none. A weight is used once reports have come for
//! the *blackout* (an instance just started has odd ones) and until none came for the *expiry*. An instance without a usable
//! weight gets the mean of the others'; with fewer than two weights it is round robin by the instances' own weights.
//! Weights are read when a picker is built: every *update period*. Recording is two atomic stores and no lock.
//!
//! The reported weight is multiplied by the instance's own: that one carries what an operator's override says, and what the
//! shapers before the policy make of it (zones, slow start), which would all be lost else. gRPC puts the reported weight in the
//! place of the own one, for a machine of twice the size says so by its report already. Who registers weights for the sizes of
//! machines has that too ([`ReportedLoad::instead_of_weights`]); where there is no usable report the own weight counts then,
//! relative to the mean of all. Weight 0 never gets anything (C2).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    Load, Outcome, Pick, PickContext, PickError, Picker, Policy, Report, RoundRobin, RoundRobinPicker,
    loads::Loads,
};
use crate::{
    model::{Instance, InstanceList},
    orca::LoadReport,
    runtime::Runtime,
};

/// The largest weight after scaling.
const SCALE: f64 = 65_535.0;
/// A time that has not come.
const NEVER: u64 = u64::MAX;

/// Round robin by what instances report of their load: their servers need a
/// [`LoadReportLayer`](crate::orca::LoadReportLayer), or any other reporter of gRPC's.
///
/// What was reported is kept by instance, across changes of the others. A new incarnation of an instance starts anew, and so
/// does one that was not connected for a while.
/// Behind a channel; the tower layer and `get_picker` see no trailers, so there it stays round robin.
#[derive(Debug)]
pub struct ReportedLoad {
    turns: RoundRobin,
    settings: Arc<Settings>,
    loads: Loads<Reported>,
}

#[derive(Clone, Debug)]
struct Settings {
    runtime: Runtime,
    blackout: Duration,
    expiry: Duration,
    update: Duration,
    penalty: f64,
    /// Whether reported weights take the place of the instances' own.
    instead: bool,
}

/// Chooses for [`ReportedLoad`].
#[derive(Debug)]
pub struct ReportedLoadPicker {
    instances: InstanceList,
    turns: RoundRobinPicker,
    /// What the instances' picks report to, in their order.
    reports: Box<[Arc<dyn Report>]>,
}

/// What one instance reported. Times are the runtime's, in milliseconds.
#[derive(Debug)]
struct Reported {
    settings: Arc<Settings>,
    /// The bits of a number above 0.
    weight: AtomicU64,
    /// When the last usable report came.
    last: AtomicU64,
    /// When the first one came of those that came without a break. [`NEVER`]: none did yet.
    since: AtomicU64,
    /// Of which incarnation this was said.
    incarnation: AtomicU64,
}

/// A penalty that no weight comes of.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("the error penalty must be a finite number of 0 or more, not {0}")]
pub struct PenaltyError(f64);

impl ReportedLoad {
    /// With the defaults of gRFC A58: a blackout of 10 s, an expiry of 3 min, new weights every second, an error penalty of 1.
    pub fn new(runtime: &Runtime) -> Self {
        let settings = Settings {
            runtime: runtime.clone(),
            blackout: Duration::from_secs(10),
            expiry: Duration::from_mins(3),
            update: Duration::from_secs(1),
            penalty: 1.0,
            instead: false,
        };
        Self { turns: RoundRobin::new(runtime), settings: Arc::new(settings), loads: Loads::default() }
    }

    /// How long an instance must have reported before its weight is used. Default 10 s; 0 uses the first report.
    #[must_use]
    pub fn blackout(mut self, period: Duration) -> Self {
        Arc::make_mut(&mut self.settings).blackout = period;
        self
    }

    /// How long after its last report a weight is used. Default 3 min.
    #[must_use]
    pub fn expiry(mut self, period: Duration) -> Self {
        Arc::make_mut(&mut self.settings).expiry = period;
        self
    }

    /// How often weights are read anew. Default 1 s; less than 100 ms counts as that.
    #[must_use]
    pub fn update_period(mut self, period: Duration) -> Self {
        Arc::make_mut(&mut self.settings).update = period.max(Duration::from_millis(100));
        self
    }

    /// Puts reported weights in the place of the instances' own, instead of multiplying them: for instances whose weights say how
    /// large they are, which their reports say too. Operators' weights and shapers then count only for instances without
    /// a usable report.
    #[must_use]
    pub fn instead_of_weights(mut self) -> Self {
        Arc::make_mut(&mut self.settings).instead = true;
        self
    }

    /// How much of an instance's share errors cost: with 1, an instance that fails all its requests counts as one whose
    /// utilisation is higher by 1. Default 1; 0 ignores errors.
    pub fn error_penalty(mut self, penalty: f64) -> Result<Self, PenaltyError> {
        if !(penalty.is_finite() && penalty >= 0.0) {
            return Err(PenaltyError(penalty));
        }
        Arc::make_mut(&mut self.settings).penalty = penalty;
        Ok(self)
    }
}

impl Policy for ReportedLoad {
    type Picker = ReportedLoadPicker;

    fn build(&self, instances: &InstanceList) -> ReportedLoadPicker {
        let loads = self.loads.of(instances, || Reported::new(&self.settings));
        let now = self.settings.runtime.now();
        let reported: Vec<_> =
            instances.iter().zip(&loads).map(|(instance, load)| load.weight(instance, now)).collect();
        let turns = match scaled(instances, &reported, self.settings.instead) {
            Some(weights) => self.turns.build_by(instances, &weights),
            None => self.turns.build(instances),
        };
        let reports = loads.into_iter().map(|load| load as Arc<dyn Report>).collect();
        ReportedLoadPicker { instances: Arc::clone(instances), turns, reports }
    }

    fn rebuild_every(&self) -> Option<Duration> {
        Some(self.settings.update)
    }
}

impl Picker for ReportedLoadPicker {
    #[inline]
    fn pick(&self, _: &PickContext) -> Result<Pick<'_>, PickError> {
        let index = self.turns.next()?;
        let report = self.reports.get(index).ok_or(PickError::NoInstances)?;
        Ok(Pick::new(&self.instances, index)?.reporting(report, Duration::ZERO))
    }

    fn load(&self, _: usize) -> Option<Load> {
        None
    }
}

impl Report for Reported {
    fn finished(&self, _: Outcome, _: Option<Duration>) {}

    fn wants_load(&self) -> bool {
        true
    }

    fn loaded(&self, report: &LoadReport) {
        let Some(weight) = weight_of(report, self.settings.penalty) else { return };
        let now = millis(self.settings.runtime.now());
        self.weight.store(weight.to_bits(), Ordering::Relaxed);
        self.last.store(now, Ordering::Relaxed);
        // The first of a series says when it began; with several at once, one of them.
        let _ = self.since.compare_exchange(NEVER, now, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl Reported {
    fn new(settings: &Arc<Settings>) -> Self {
        Self {
            settings: Arc::clone(settings),
            weight: AtomicU64::new(0),
            last: AtomicU64::new(0),
            since: AtomicU64::new(NEVER),
            incarnation: AtomicU64::new(0),
        }
    }

    /// The weight, if there is a usable one.
    fn weight(&self, instance: &Instance, now: Duration) -> Option<f64> {
        let incarnation = instance.create_revision;
        if self.incarnation.swap(incarnation, Ordering::Relaxed) != incarnation {
            // What the process before it said is not its own.
            self.since.store(NEVER, Ordering::Relaxed);
        }
        let since = self.since.load(Ordering::Relaxed);
        if since == NEVER {
            return None;
        }
        let passed = |then: u64| Duration::from_millis(millis(now).saturating_sub(then));
        if passed(self.last.load(Ordering::Relaxed)) >= self.settings.expiry {
            self.since.store(NEVER, Ordering::Relaxed);
            return None;
        }
        let usable = passed(since) >= self.settings.blackout;
        usable.then(|| f64::from_bits(self.weight.load(Ordering::Relaxed)))
    }
}

/// `None`: the report says nothing to weigh by. Numbers that make no sense are taken for none.
fn weight_of(report: &LoadReport, penalty: f64) -> Option<f64> {
    let sane = |value: f64| if value.is_finite() && value > 0.0 { value } else { 0.0 };
    let (qps, utilization) = (sane(report.rps_fractional), sane(report.utilization_or_cpu()));
    if qps <= 0.0 || utilization <= 0.0 {
        return None;
    }
    let weight = qps / (utilization + sane(report.eps) / qps * penalty);
    (weight.is_finite() && weight > 0.0).then_some(weight)
}

/// What the instances' turns go by, if two of them at least have a usable weight.
fn scaled(instances: &[Arc<Instance>], reported: &[Option<f64>], instead: bool) -> Option<Vec<u32>> {
    let usable = || reported.iter().flatten();
    #[allow(clippy::cast_precision_loss)] // numbers of instances
    let (count, all) = (usable().count() as f64, instances.len() as f64);
    if count < 2.0 {
        return None;
    }
    let mean = usable().sum::<f64>() / count;
    let own = instances.iter().map(|instance| f64::from(instance.weight)).sum::<f64>() / all;
    let weights = || {
        instances.iter().zip(reported).map(move |(instance, reported)| match reported {
            _ if instance.weight == 0 => 0.0,
            Some(weight) if instead => *weight,
            reported => reported.unwrap_or(mean) * f64::from(instance.weight) / own,
        })
    };
    let largest = weights().fold(f64::MIN_POSITIVE, f64::max);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 65,535
    let scale =
        |weight: f64| (weight / largest * SCALE).round().max(f64::from(u8::from(weight > 0.0))) as u32;
    Some(weights().map(scale).collect())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(NEVER - 1)
}

#[cfg(test)]
mod tests;
