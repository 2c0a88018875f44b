//! What a steady pool may be told.

use std::{marker::PhantomData, time::Duration};

use tower::{BoxError, MakeService, Service, load::Load};

use super::SteadyPool;
use crate::{
    backoff::Bounds,
    runtime::Runtime,
    sizing::{SettingsError, Sizing, SizingSettings, at_least_one, in_order, some_time},
};

/// Builds a [`SteadyPool`]. Made by [`SteadyPool::builder`].
///
/// | setting | default |
/// |---|---|
/// | [`limit`](Self::limit) | 100 |
/// | [`min`](Self::min), [`max`](Self::max) | 1, 10 |
/// | [`headroom`](Self::headroom) | 0.1 |
/// | [`idle_members`](Self::idle_members), [`idle_time`](Self::idle_time) | 1.25, 30 s |
/// | [`cool_down`](Self::cool_down) | 30 s |
/// | [`smoothing`](Self::smoothing) | 2 s |
/// | [`wait_for_ready`](Self::wait_for_ready), [`max_wait`](Self::max_wait), [`queue_limit`](Self::queue_limit) | no, 10 s, 1,024 |
/// | [`make_timeout`](Self::make_timeout), [`backoff`](Self::backoff) | 10 s, 100 ms to 30 s |
#[derive(Debug)]
pub struct SteadyBuilder<MS, Target, Req> {
    maker: MS,
    target: Target,
    settings: Settings,
    request: PhantomData<fn(Req)>,
}

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) limit: usize,
    pub(super) sizing: SizingSettings,
    pub(super) wait_for_ready: bool,
    pub(super) max_wait: Duration,
    pub(super) queue_limit: usize,
    pub(super) make_timeout: Duration,
    pub(super) backoff: Bounds,
    pub(super) runtime: Option<Runtime>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: "pool".to_owned(),
            limit: 100,
            sizing: SizingSettings::default(),
            wait_for_ready: false,
            max_wait: Duration::from_secs(10),
            queue_limit: 1024,
            make_timeout: Duration::from_secs(10),
            backoff: Bounds { base: Duration::from_millis(100), max: Duration::from_secs(30) },
            runtime: None,
        }
    }
}

impl<MS, Target, Req> SteadyBuilder<MS, Target, Req> {
    pub(super) fn new(maker: MS, target: Target) -> Self {
        Self { maker, target, settings: Settings::default(), request: PhantomData }
    }

    /// What metrics and traces call the pool. Default: `pool`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// How many requests a service has in flight at most, which is also what counts as one service's worth of demand; at least 1.
    /// A service whose `poll_ready` says sooner that it takes no more is believed. Default: 100, what HTTP/2 servers commonly
    /// allow: set what your services are good for.
    #[must_use]
    pub fn limit(mut self, requests: usize) -> Self {
        self.settings.limit = requests;
        self
    }

    /// Never fewer services, those that could be made; at least 1. They are made at once. Default: 1.
    #[must_use]
    pub fn min(mut self, services: usize) -> Self {
        self.settings.sizing.min = services;
        self
    }

    /// Never more services, those in the making and those that drain included: one that drains is taken back before another one
    /// is made. At least `min`. Default: 10.
    #[must_use]
    pub fn max(mut self, services: usize) -> Self {
        self.settings.sizing.max = services;
        self
    }

    /// Grow when the demand, averaged over time, leaves fewer than so many services idle; those that come count as idle. Above 0.
    /// Default: 0.1.
    #[must_use]
    pub fn headroom(mut self, services: f64) -> Self {
        self.settings.sizing.headroom = services;
        self
    }

    /// Shrink when more than so many services have been idle for the idle time; above 1 + [`headroom`](Self::headroom), for a
    /// shrink leaves one idle one less, and that is not to ask for growth. Default: 1.25.
    #[must_use]
    pub fn idle_members(mut self, services: f64) -> Self {
        self.settings.sizing.idle_members = services;
        self
    }

    /// For how long they must have been idle: in the mean, and four standard deviations of the averaged demand above that. A
    /// shrink that has to be taken back quadruples it, up to 64 times as long, and one that has not makes it a quarter of
    /// that again. Default: 30 s.
    #[must_use]
    pub fn idle_time(mut self, time: Duration) -> Self {
        self.settings.sizing.idle_time = time;
        self
    }

    /// No shrinking within this time after growing. Default: 30 s.
    #[must_use]
    pub fn cool_down(mut self, time: Duration) -> Self {
        self.settings.sizing.cool_down = time;
        self
    }

    /// Over what time demand is averaged: what was so long ago weighs 1/e of what is now. Shorter follows a step sooner, longer
    /// is moved less by what passes. Default: 2 s.
    #[must_use]
    pub fn smoothing(mut self, time: Duration) -> Self {
        self.settings.sizing.smoothing = time;
        self
    }

    /// Whether requests wait (for [`max_wait`](Self::max_wait) at most) while the pool has no service and the last attempt to
    /// make one failed. If not, they fail at once with [`PoolError::Make`](crate::pool::PoolError::Make). Default: no.
    #[must_use]
    pub fn wait_for_ready(mut self, wait: bool) -> Self {
        self.settings.wait_for_ready = wait;
        self
    }

    /// How long a request waits for a service. Default: 10 s.
    #[must_use]
    pub fn max_wait(mut self, time: Duration) -> Self {
        self.settings.max_wait = time;
        self
    }

    /// How many requests wait at most; further ones fail at once. At least 1: each waits for a moment. Default: 1,024.
    #[must_use]
    pub fn queue_limit(mut self, requests: usize) -> Self {
        self.settings.queue_limit = requests;
        self
    }

    /// How long it may take until a service is made and ready for the first time. Default: 10 s.
    #[must_use]
    pub fn make_timeout(mut self, time: Duration) -> Self {
        self.settings.make_timeout = time;
        self
    }

    /// How long to wait after a service could not be made: the first wait is at most `base`, each further one at most twice
    /// as long, and none longer than `max`; a random half of it is kept. Default: 100 ms and 30 s.
    #[must_use]
    pub fn backoff(mut self, base: Duration, max: Duration) -> Self {
        self.settings.backoff = Bounds { base, max };
        self
    }

    /// The outside world: clock, randomness and tasks. Default: the real one.
    #[must_use]
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.settings.runtime = Some(runtime);
        self
    }

    /// Starts the pool, and begins to make its first services. Call it within a tokio runtime, which its worker runs on. Fails
    /// if a setting is out of its range.
    pub fn build(self) -> Result<SteadyPool<MS::Service, Req>, SettingsError>
    where
        MS: MakeService<Target, Req> + Send + 'static,
        MS::Service: Load + Send + 'static,
        <MS::Service as Service<Req>>::Future: Send,
        MS::MakeError: Into<BoxError>,
        MS::Error: Into<BoxError>,
        MS::Future: Send + 'static,
        Target: Clone + Send + 'static,
        Req: Send + 'static,
    {
        let Settings { limit, sizing, max_wait, queue_limit, make_timeout, backoff, .. } = &self.settings;
        at_least_one("limit", *limit)?;
        at_least_one("queue_limit", *queue_limit)?;
        some_time("max_wait", *max_wait)?;
        some_time("make_timeout", *make_timeout)?;
        some_time("backoff's base", backoff.base)?;
        let (base, max) = (backoff.base.as_secs_f64(), backoff.max.as_secs_f64());
        in_order(("backoff's base in seconds", base), ("its max", max))?;
        let runtime = self.settings.runtime.clone().unwrap_or_default();
        let sizing = Sizing::new(*sizing, runtime.now())?;
        Ok(SteadyPool::start(self.maker, self.target, &self.settings, sizing, &runtime))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_that_are_documented() {
        let it = Settings::default();
        assert_eq!(
            (it.name.as_str(), it.limit, it.wait_for_ready, it.queue_limit),
            ("pool", 100, false, 1024)
        );
        let seconds = Duration::from_secs;
        assert_eq!((it.max_wait, it.make_timeout), (seconds(10), seconds(10)));
        assert_eq!((it.backoff.base, it.backoff.max), (Duration::from_millis(100), seconds(30)));
        let sizing = SizingSettings {
            min: 1,
            max: 10,
            headroom: 0.1,
            idle_members: 1.25,
            idle_time: seconds(30),
            cool_down: seconds(30),
            smoothing: seconds(2),
        };
        assert_eq!(it.sizing, sizing);
    }
}
