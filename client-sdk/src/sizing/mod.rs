//! How many members there are to be, whatever they are: pure, with the time told.
//!
//! Owns the estimate of the demand, and the decisions to grow and to shrink. Knows neither services nor clocks nor tasks:
//! whoever drives it tells what is used and when, and does what it decides. So it sizes whatever can be counted.
//!
//! The estimate is the demand, averaged over time with exponentially fading weight: after a time t what was before weighs
//! e^(−t/τ). How often it is told makes no difference, for what was told holds until it is told something else.
//!
//! ```text
//!   members
//!     4 |                      grow:   estimate > grow_above × members (with those that come)
//!     3 |   ____/~~~~\____     hold:   between the two, at no cost
//!     2 |__/              \__  shrink: more than one is idle, for the idle time, outside the cool-down
//!       +--------------------> time
//! ```
//!
//! Why it settles: growing counts members that are still to come, so that waiting for one does not ask for the next. Growing
//! and shrinking have thresholds apart. And a shrink that had to be taken back doubles the idle time until the next, so that a
//! demand at the very edge between two sizes makes ever fewer changes.

mod error;
mod usage;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub(crate) use self::error::{at_least_one, in_order, share, some_time};
use self::usage::number;
pub use self::{error::SettingsError, usage::Usage};

/// Shrinking is to leave the members this much below what lets them grow, so that it does not ask for growth at once.
const APART: f64 = 0.95;

/// How often the idle time is doubled at most: 32 times as long.
const MOST_PATIENT: u32 = 5;

/// For so many idle times a shrink may turn out to have been wrong: bursts come again, if not at once.
const PROBATION: u32 = 8;

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
    /// Grow with the estimate above this share of the members, those that come included. In (0, 1]. Default: 0.9.
    pub grow_above: f64,
    /// Shrink with more than so many members idle; above 1, for one is to be left to those that come next. Default: 1.25.
    pub idle_members: f64,
    /// For so long they must have been idle. Default: 30 s.
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
    estimate: f64,
    /// What was told last, and when.
    usage: Usage,
    at: Duration,
    /// Since when so many are idle that one may go.
    idle_since: Option<Duration>,
    grown_at: Option<Duration>,
    /// The last shrink of which it is not known yet whether it was right.
    shrunk_at: Option<Duration>,
    /// How often the idle time is doubled.
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

impl Default for SizingSettings {
    fn default() -> Self {
        Self {
            min: 1,
            max: 10,
            grow_above: 0.9,
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
        share("grow_above", self.grow_above)?;
        above("grow_above", self.grow_above, 0.0)?;
        above("idle_members", self.idle_members, 1.0)?;
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
            estimate: 0.0,
            usage: Usage::default(),
            at: now,
            idle_since: None,
            grown_at: None,
            shrunk_at: None,
            patience: 0,
        }
    }

    /// What is used from now on, and what is to be done about it. Times only grow; an earlier one counts as the last.
    ///
    /// A decision counts as carried out: tell the usage that it led to, in the same moment, for that may lead to a further one.
    pub fn observe(&mut self, now: Duration, usage: Usage) -> Decision {
        let now = now.max(self.at);
        self.estimate = self.estimate_at(now);
        (self.at, self.usage) = (now, usage);
        if self.shrunk_at.is_some_and(|at| now.saturating_sub(at) >= self.probation()) {
            // It was right, and so the next may be sooner again.
            self.shrunk_at = None;
            self.patience = self.patience.saturating_sub(1);
        }
        self.decide()
    }

    /// When something may be decided although nothing else is told until then. `None`: never.
    pub fn next_look(&self) -> Option<Duration> {
        let size = self.usage.size();
        let growth = (size < self.settings.max).then(|| self.crossing(self.grown_beyond(size))).flatten();
        let shrinking = match self.idle_since {
            Some(_) => self.due(),
            None if self.may_shrink() => self.crossing(self.idle_below(size)),
            None => None,
        };
        // At its end the idle time may become shorter.
        let proven = self.shrunk_at.filter(|_| self.idle_since.is_some()).map(|at| at + self.probation());
        growth.into_iter().chain(shrinking).chain(proven).min()
    }

    /// The demand in members, averaged, as it is at this time.
    pub fn estimate_at(&self, now: Duration) -> f64 {
        let passed = now.saturating_sub(self.at).as_secs_f64() / self.settings.smoothing.as_secs_f64();
        let demand = self.usage.demand();
        demand + (self.estimate - demand) * (-passed).exp()
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

    /// How long members must be idle until the next shrink: the setting, doubled for each shrink that had to be taken back.
    pub fn idle_time(&self) -> Duration {
        self.settings.idle_time.saturating_mul(1 << self.patience)
    }

    fn decide(&mut self) -> Decision {
        let (size, SizingSettings { min, max, grow_above, .. }) = (self.usage.size(), self.settings);
        if size < min {
            return Decision::Grow { to: min };
        }
        if size < max && self.estimate > self.grown_beyond(size) {
            if self.shrunk_at.take().is_some() {
                self.patience = (self.patience + 1).min(MOST_PATIENT);
            }
            (self.idle_since, self.grown_at) = (None, Some(self.at));
            return Decision::Grow { to: at_least(self.estimate / grow_above).clamp(size + 1, max) };
        }
        if !self.may_shrink() || self.estimate > self.idle_below(size) {
            self.idle_since = None;
            return Decision::Hold;
        }
        self.idle_since.get_or_insert(self.at);
        if self.due().is_none_or(|due| self.at < due) {
            return Decision::Hold;
        }
        if self.shrunk_at.is_some() {
            // The one before was right: even one less is enough.
            self.patience = self.patience.saturating_sub(1);
        }
        (self.idle_since, self.shrunk_at) = (None, Some(self.at));
        Decision::Shrink
    }

    fn may_shrink(&self) -> bool {
        self.usage.size() > self.settings.min
    }

    /// When those that are idle were so for long enough.
    fn due(&self) -> Option<Duration> {
        let cool = self.grown_at.map_or(Duration::ZERO, |at| at.saturating_add(self.settings.cool_down));
        self.idle_since.map(|since| since.saturating_add(self.idle_time()).max(cool))
    }

    /// Growth within this time after a shrink shows that the shrink was wrong.
    fn probation(&self) -> Duration {
        self.idle_time().saturating_mul(PROBATION)
    }

    fn grown_beyond(&self, size: usize) -> f64 {
        self.settings.grow_above * number(size) + EDGE
    }

    fn idle_below(&self, size: usize) -> f64 {
        let one_less = APART * self.grown_beyond(size.saturating_sub(1));
        one_less.min(number(size) - self.settings.idle_members) + EDGE
    }

    /// When the estimate will have crossed the threshold, if it moves towards it.
    fn crossing(&self, threshold: f64) -> Option<Duration> {
        let demand = self.usage.demand();
        let share = (self.estimate - demand) / (threshold - demand);
        // Not beyond 1 if it moves away, has crossed already, or stays where it is.
        let moves = share.is_finite() && share > 1.0;
        let after = self.settings.smoothing.as_secs_f64() * share.ln();
        moves.then(|| Duration::try_from_secs_f64(after).ok()).flatten().map(|after| self.at + after + SLACK)
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
