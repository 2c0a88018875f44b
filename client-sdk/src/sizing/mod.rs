//! How many members there are to be, whatever they are: pure, with the time told.
//!
//! Owns the estimate of the demand, and the decisions to grow and to shrink. Knows neither services nor clocks nor tasks:
//! whoever drives it tells what is used and when, and does what it decides. So it sizes whatever can be counted.
//!
//! The estimate is the demand, averaged over time with exponentially fading weight: after a time t what was before weighs
//! e^(−t/τ). How often it is told makes no difference, for what was told holds until it is told something else. What the demand
//! leaves of the members is idle.
//!
//! ```text
//!   idle members, those that come included
//!     2 |                ___
//!       |   ____/~~~~\__/      shrink: more than `idle_members`, over an idle time, whatever the noise
//!     1 |__/                   hold:   between the two, at no cost
//!       |                      grow:   fewer than `headroom`, at once
//!     0 +--------------------> time
//! ```
//!
//! Both are numbers of members, not shares: a steady demand for k members ends with k or one more, however many they are.
//!
//! Why it settles: growing counts members that are still to come, so that waiting for one does not ask for the next. Growing
//! goes by the estimate, which a step moves within moments; shrinking by what it was in the mean over a whole idle time, so that
//! no passing peak keeps a member, and by how much it varied, so that peaks that come all the time do: what is left by a shrink
//! is to be enough for the estimate at four standard deviations above its mean. Demand that comes at random has its noise in
//! reserve that way, as in the square-root staffing rule (S. Halfin and W. Whitt, *Heavy-Traffic Limits for Queues with Many
//! Exponential Servers*, Operations Research 1981), and demand without noise has none. And a shrink that had to be taken
//! back quadruples the idle time until the next, so that a demand at the very edge between two sizes makes ever fewer changes.
//!
//! | file | what it owns |
//! |---|---|
//! | `usage` | what members are used for, as demand |
//! | `average` | the estimate, and what it was over a time |
//! | `error` | what is wrong with a setting |

mod average;
mod error;
mod usage;

#[cfg(test)]
mod tests;

use std::time::Duration;

use self::average::{Fading, Period};
pub(crate) use self::error::{at_least_one, in_order, share, some_time};
use self::usage::number;
pub use self::{error::SettingsError, usage::Usage};

/// How many standard deviations above its mean the estimate is not to ask for growth after a shrink. An estimate whose
/// deviation was itself measured over one idle time, and that one member less makes noisier, is within that nearly always.
const DEVIATIONS: f64 = 4.0;

/// How often the idle time is quadrupled at most: 64 times as long.
const MOST_PATIENT: u32 = 3;

/// For so many idle times a shrink may turn out to have been wrong: bursts come again, if not at once.
const PROBATION: u32 = 32;

/// How far beyond a threshold, in members, is beyond it: more than what rounding makes of a demand right at it. Such a demand
/// would cross it only by rounding, when nobody can say.
const EDGE: f64 = 1e-9;

/// How much later than a threshold is crossed to look: the estimate only comes near it.
const SLACK: Duration = Duration::from_millis(1);

/// What a [`Sizing`] goes by.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct SizingSettings {
    /// Never fewer members; at least 1. Default: 1.
    pub min: usize,
    /// Never more members; at least `min`. Default: 10.
    pub max: usize,
    /// Grow with fewer than so many members idle, those that come counted as idle. Above 0. Default: 0.1.
    pub headroom: f64,
    /// Shrink with more than so many members idle; above 1 + `headroom`, for a shrink leaves one idle member less, and that is
    /// not to ask for growth. Default: 1.25.
    pub idle_members: f64,
    /// Over so long they must have been idle: what the estimate was in the mean, and four standard deviations, left so many.
    /// Default: 30 s.
    pub idle_time: Duration,
    /// No shrinking within this time after growing. Default: 30 s.
    pub cool_down: Duration,
    /// The estimate's time constant τ: how long ago what weighs 1/e of what is now. Default: 2 s.
    pub smoothing: Duration,
}

/// The estimate, and what is decided by it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sizing {
    settings: SizingSettings,
    estimate: Fading,
    /// What was told last, and when.
    usage: Usage,
    at: Duration,
    /// The estimate in this idle time. `None`: not so many are idle that one might go.
    idle: Option<Period>,
    /// How many idle times in a row ended with so many idle.
    idle_times: u32,
    grown_at: Option<Duration>,
    /// The last shrink of which it is not known yet whether it was right: when, and to how many.
    shrunk: Option<(Duration, usize)>,
    /// How often the idle time is quadrupled.
    patience: u32,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Hold,
    /// There are to be so many members, which is more than there are.
    Grow {
        /// How many, those that come included.
        to: usize,
    },
    /// One member is to go: best one that is still to come, else the least loaded one.
    Shrink,
}

/// A change of the size, for whoever shows what was decided last.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct SizeChange {
    /// How many members there were until then, those that were to come included.
    pub from: usize,
    /// How many from then on.
    pub to: usize,
    /// The estimate of the demand by which it was decided, in members.
    pub estimate: f64,
    /// When, by the clock of the runtime.
    pub at: Duration,
}

impl Default for SizingSettings {
    fn default() -> Self {
        Self {
            min: 1,
            max: 10,
            headroom: 0.1,
            idle_members: 1.25,
            idle_time: Duration::from_secs(30),
            cool_down: Duration::from_secs(30),
            smoothing: Duration::from_secs(2),
        }
    }
}

impl SizingSettings {
    /// Says what is wrong with them, if anything is.
    pub fn check(&self) -> Result<(), SettingsError> {
        at_least_one("min", self.min)?;
        in_order(("min", number(self.min)), ("max", number(self.max)))?;
        above("headroom", self.headroom, 0.0)?;
        above("idle_members", self.idle_members, 1.0 + self.headroom)?;
        some_time("idle_time", self.idle_time)?;
        some_time("smoothing", self.smoothing)
    }
}

impl Sizing {
    /// A sizing of no demand and no members, at this time. Fails if a setting is out of its range.
    pub fn new(settings: SizingSettings, now: Duration) -> Result<Self, SettingsError> {
        settings.check().map(|()| Self::of(settings, now))
    }

    /// With the defaults, which are in their ranges.
    pub(crate) fn with_defaults(now: Duration) -> Self {
        Self::of(SizingSettings::default(), now)
    }

    fn of(settings: SizingSettings, now: Duration) -> Self {
        Self {
            settings,
            estimate: Fading::new(settings.smoothing),
            usage: Usage::default(),
            at: now,
            idle: None,
            idle_times: 0,
            grown_at: None,
            shrunk: None,
            patience: 0,
        }
    }

    /// What is used from now on, and what is to be done about it. Times only grow; an earlier one counts as the last.
    ///
    /// A decision counts as carried out: tell the usage that it led to, in the same moment, for that may lead to a further one.
    pub fn observe(&mut self, now: Duration, usage: Usage) -> Decision {
        let now = now.max(self.at);
        let passed = now.saturating_sub(self.at);
        if let Some(idle) = &mut self.idle {
            idle.pass(&self.estimate, self.usage.demand(), passed);
        }
        self.estimate.pass(self.usage.demand(), passed);
        (self.at, self.usage) = (now, usage);
        if self.shrunk.is_some_and(|(at, _)| now.saturating_sub(at) >= self.probation()) {
            // It was right, and so the next may be sooner again.
            self.shrunk = None;
            self.patience = self.patience.saturating_sub(1);
        }
        self.decide()
    }

    /// When something may be decided although nothing else is told until then. `None`: never.
    pub fn next_look(&self) -> Option<Duration> {
        let size = self.usage.size();
        let growth = (size < self.settings.max).then(|| self.crossing(self.grown_beyond(size))).flatten();
        let shrinking = match self.idle {
            Some(_) => self.due(),
            None if self.may_shrink() => self.crossing(self.idle_below(size)),
            None => None,
        };
        growth.into_iter().chain(shrinking).min()
    }

    /// The demand in members, averaged, as it is at this time.
    pub fn estimate_at(&self, now: Duration) -> f64 {
        self.estimate.after(self.usage.demand(), now.saturating_sub(self.at))
    }

    /// What was used since it was told last turns out to have been this, on average: from then to now it is reckoned with. Says
    /// nothing of what is used from now on; [`observe`](Self::observe) is to follow.
    pub fn revise(&mut self, usage: Usage) {
        self.usage = usage;
    }

    /// Never fewer members and never more from now on, whatever the settings were. 0 is taken as 1, and a `max` below `min` as
    /// `min`.
    pub fn set_bounds(&mut self, min: usize, max: usize) {
        let min = min.max(1);
        (self.settings.min, self.settings.max) = (min, max.max(min));
    }

    /// The demand that leaves the size as it is, however long it lasts: from, to. From 0 where there can be no fewer members, to
    /// infinity where there can be no more.
    pub fn band(&self) -> (f64, f64) {
        let size = self.usage.size();
        let from = if self.may_shrink() { self.idle_below(size).max(0.0) } else { 0.0 };
        let to = if size < self.settings.max { self.grown_beyond(size) } else { f64::INFINITY };
        (from, to)
    }

    /// What was told last.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// How long members must be idle until the next shrink: the setting, quadrupled for each shrink that had to be taken back,
    /// up to 64 times as long.
    pub fn idle_time(&self) -> Duration {
        self.settings.idle_time.saturating_mul(self.idle_times_needed())
    }

    fn idle_times_needed(&self) -> u32 {
        1 << (2 * self.patience)
    }

    fn decide(&mut self) -> Decision {
        let (size, SizingSettings { min, max, headroom, .. }) = (self.usage.size(), self.settings);
        if size < min {
            return Decision::Grow { to: min };
        }
        let estimate = self.estimate.value();
        if size < max && estimate > self.grown_beyond(size) {
            let to = at_least(estimate + headroom).clamp(size + 1, max);
            // Up to as many as the shrink left, those are replaced that were lost since.
            if self.shrunk.take_if(|(_, left)| to > *left).is_some() {
                self.patience = (self.patience + 1).min(MOST_PATIENT);
            }
            (self.idle, self.idle_times, self.grown_at) = (None, 0, Some(self.at));
            return Decision::Grow { to };
        }
        if self.is_idle_for_long() { Decision::Shrink } else { Decision::Hold }
    }

    /// Whether so many were idle for so long that one is to go now.
    fn is_idle_for_long(&mut self) -> bool {
        if !self.may_shrink() {
            (self.idle, self.idle_times) = (None, 0);
            return false;
        }
        let below = self.idle_below(self.usage.size());
        let is_below = self.estimate.value() <= below;
        let next = is_below.then(|| Period::new(self.at));
        let ended = self.idle.filter(|_| self.due().is_some_and(|due| self.at >= due));
        let Some(idle) = ended else {
            self.idle = self.idle.or(next);
            return false;
        };
        self.idle = next;
        let was_below = idle.mean() + DEVIATIONS * idle.deviation() <= below;
        self.idle_times = if is_below && was_below { self.idle_times + 1 } else { 0 };
        if self.idle_times < self.idle_times_needed() {
            return false;
        }
        if self.shrunk.is_some() {
            // The one before was right: even one less is enough.
            self.patience = self.patience.saturating_sub(1);
        }
        let left = self.usage.size() - 1;
        (self.idle, self.idle_times, self.shrunk) = (None, 0, Some((self.at, left)));
        true
    }

    fn may_shrink(&self) -> bool {
        self.usage.size() > self.settings.min
    }

    /// When this idle time ends.
    fn due(&self) -> Option<Duration> {
        let cool = self.grown_at.map_or(Duration::ZERO, |at| at.saturating_add(self.settings.cool_down));
        self.idle.map(|idle| idle.since().saturating_add(self.settings.idle_time).max(cool))
    }

    /// Growth within this time after a shrink shows that the shrink was wrong.
    fn probation(&self) -> Duration {
        self.idle_time().saturating_mul(PROBATION)
    }

    fn grown_beyond(&self, size: usize) -> f64 {
        number(size) - self.settings.headroom + EDGE
    }

    fn idle_below(&self, size: usize) -> f64 {
        number(size) - self.settings.idle_members + EDGE
    }

    /// When the estimate will have crossed the threshold, if it moves towards it.
    fn crossing(&self, threshold: f64) -> Option<Duration> {
        let demand = self.usage.demand();
        self.estimate
            .crossing(demand, threshold)
            .map(|after| self.at.saturating_add(after).saturating_add(SLACK))
    }
}

/// Refuses what is not above.
fn above(setting: &'static str, value: f64, above: f64) -> Result<(), SettingsError> {
    let enough = value > above && value.is_finite();
    if enough { Ok(()) } else { Err(SettingsError::TooSmall { setting, value, above }) }
}

/// The next whole number.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates, and demand is never negative
fn at_least(members: f64) -> usize {
    members.ceil() as usize
}
