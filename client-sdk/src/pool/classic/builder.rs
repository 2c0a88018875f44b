//! What a classic pool may be told.

use tower::{BoxError, MakeService, load::Load};

use super::Pool;
use crate::{
    runtime::Runtime,
    sizing::{SettingsError, at_least_one, in_order, share},
};

/// Builds a classic [`Pool`].
///
/// Its estimate is an exponential moving average of samples: each `poll_ready` that finds a service is a 0, each that finds
/// none is a 1.
///
/// | setting | default |
/// |---|---|
/// | [`initial`](Self::initial) | 0.1 |
/// | [`underutilized_below`](Self::underutilized_below) | 0.00001 |
/// | [`loaded_above`](Self::loaded_above) | 0.2 |
/// | [`urgency`](Self::urgency) | 0.03 |
/// | [`max_services`](Self::max_services) | none |
#[derive(Clone, Debug)]
pub struct Builder {
    pub(super) initial: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) urgency: f64,
    pub(super) max: Option<usize>,
    runtime: Option<Runtime>,
}

impl Default for Builder {
    fn default() -> Self {
        Self { initial: 0.1, low: 0.000_01, high: 0.2, urgency: 0.03, max: None, runtime: None }
    }
}

impl Builder {
    /// All defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The estimate at the start, and after each service that was removed. In \[0, 1\]. Default: 0.1.
    #[must_use]
    pub fn initial(mut self, estimate: f64) -> Self {
        self.initial = estimate;
        self
    }

    /// With the estimate below this, a service is removed, though never the last. In \[0, 1\]; 0 removes none. Default: 0.00001.
    #[must_use]
    pub fn underutilized_below(mut self, estimate: f64) -> Self {
        self.low = estimate;
        self
    }

    /// With the estimate above this, a service is made, one at a time. In \[0, 1\]; 1 makes none beyond the first. Default: 0.2.
    #[must_use]
    pub fn loaded_above(mut self, estimate: f64) -> Self {
        self.high = estimate;
        self
    }

    /// The weight α of each new sample: estimate = α · sample + (1 − α) · estimate. Clamped to \[0, 1\]: at 1 only the last
    /// sample counts, at 0 the estimate stays what it was. Default: 0.03.
    #[must_use]
    pub fn urgency(mut self, alpha: f64) -> Self {
        self.urgency = alpha.clamp(0.0, 1.0);
        self
    }

    /// How many services there may be; at least 1. Default: `None`, any number: a pool that is never ready goes on growing.
    #[must_use]
    pub fn max_services(mut self, limit: impl Into<Option<usize>>) -> Self {
        self.max = limit.into();
        self
    }

    /// Where randomness comes from. Default: the real world.
    #[must_use]
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Builds the pool, without a service: the first one is made at the first poll. Fails if a setting is out of its range, or
    /// `underutilized_below` above `loaded_above`.
    pub fn build<MS, Target, Req>(
        &self,
        make_service: MS,
        target: Target,
    ) -> Result<Pool<MS, Target, Req>, SettingsError>
    where
        MS: MakeService<Target, Req>,
        MS::Service: Load,
        MS::MakeError: Into<BoxError>,
        MS::Error: Into<BoxError>,
        Target: Clone,
    {
        share("initial", self.initial)?;
        share("underutilized_below", self.low)?;
        share("loaded_above", self.high)?;
        // Clamping leaves nothing else but what is not a number.
        share("urgency", self.urgency)?;
        in_order(("underutilized_below", self.low), ("loaded_above", self.high))?;
        self.max.map_or(Ok(()), |max| at_least_one("max_services", max))?;
        Ok(self.assemble(make_service, target))
    }

    /// Builds it of settings that are known to be right.
    pub(super) fn assemble<MS, Target, Req>(&self, maker: MS, target: Target) -> Pool<MS, Target, Req>
    where
        MS: MakeService<Target, Req>,
    {
        let rng = self.runtime.clone().unwrap_or_default().fork_rng();
        Pool::of(maker, target, self.clone(), rng)
    }
}
