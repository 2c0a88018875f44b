//! The demand averaged over time, and what that average was over a period.
//!
//! Owns the arithmetic and nothing else. Demand holds between two moments at which it is told, so that the average moves
//! towards it along e^(−t/τ), and all that is asked here has a closed form: no error adds up, however rarely it is told.

use std::time::Duration;

/// An average in which what was a time t ago weighs e^(−t/τ).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fading {
    value: f64,
    /// In seconds.
    tau: f64,
}

/// What an average was over a period.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Period {
    since: Duration,
    seconds: f64,
    area: f64,
    /// That of its squares.
    squares: f64,
}

impl Fading {
    /// Of nothing so far.
    pub(super) fn new(tau: Duration) -> Self {
        Self { value: 0.0, tau: tau.as_secs_f64() }
    }

    pub(super) fn value(&self) -> f64 {
        self.value
    }

    /// What it will be when the demand was this for so long.
    pub(super) fn after(&self, demand: f64, passed: Duration) -> f64 {
        demand + (self.value - demand) * (-passed.as_secs_f64() / self.tau).exp()
    }

    pub(super) fn pass(&mut self, demand: f64, passed: Duration) {
        self.value = self.after(demand, passed);
    }

    /// How long until it has come as far as a threshold, if it moves towards that while the demand is this.
    pub(super) fn crossing(&self, demand: f64, threshold: f64) -> Option<Duration> {
        let share = (self.value - demand) / (threshold - demand);
        // Not beyond 1 if it moves away, has crossed already, or stays where it is.
        let moves = share.is_finite() && share > 1.0;
        moves.then(|| Duration::try_from_secs_f64(self.tau * share.ln()).ok()).flatten()
    }
}

impl Period {
    pub(super) fn new(since: Duration) -> Self {
        Self { since, seconds: 0.0, area: 0.0, squares: 0.0 }
    }

    pub(super) fn since(&self) -> Duration {
        self.since
    }

    /// The average goes on from what it is now while the demand is this for so long.
    pub(super) fn pass(&mut self, average: &Fading, demand: f64, passed: Duration) {
        let (tau, seconds) = (average.tau, passed.as_secs_f64());
        // It is demand + gap · e^(−t/τ).
        let (gap, faded) = (average.value - demand, (-seconds / tau).exp());
        self.seconds += seconds;
        self.area += demand * seconds + gap * tau * (1.0 - faded);
        self.squares += demand * demand * seconds
            + 2.0 * demand * gap * tau * (1.0 - faded)
            + gap * gap * tau / 2.0 * (1.0 - faded * faded);
    }

    pub(super) fn mean(&self) -> f64 {
        if self.seconds > 0.0 { self.area / self.seconds } else { 0.0 }
    }

    /// The standard deviation.
    pub(super) fn deviation(&self) -> f64 {
        let mean = self.mean();
        if self.seconds > 0.0 { (self.squares / self.seconds - mean * mean).max(0.0).sqrt() } else { 0.0 }
    }
}
