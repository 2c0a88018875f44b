//! What an aperture may be told, and the defaults.

use std::time::Duration;

use crate::sizing::{SettingsError, SizingSettings};

/// How many of a service's instances a caller uses, decided by the demand. For
/// [`ChannelBuilder::aperture`](crate::channel::ChannelBuilder::aperture) and
/// [`LoadBalanceBuilder::aperture`](crate::layer::LoadBalanceBuilder::aperture).
///
/// - The demand is how many requests are in flight or wait, per [`target`](ApertureBuilder::target), averaged over time. How
///   the size follows it is said in [`sizing`](crate::sizing).
/// - It grows by connecting to further instances, in the caller's own order
///   ([`CallerOrder`](crate::balance::CallerOrder)): different callers use different ones. It shrinks by draining the last of that
///   order: what is in flight there finishes.
/// - It counts instances that work. One that leaves the registry, drains, goes down or gets weight 0, that cannot be
///   connected, or is ejected, is replaced by the next.
/// - Which of those that are connected gets a request is the policy's choice, by weight where it heeds weights.
/// - After a step in the demand the instances for nineteen twentieths of it are connected within three time constants
///   ([`smoothing`](ApertureBuilder::smoothing): 6 s by default), all within four, and the time that connecting takes, as far as
///   [`max`](ApertureBuilder::max) and the registry allow. Of a step of more than forty instances the rest takes 0.7 time
///   constants more each time that it is twice as large.
///
/// ```
/// use client_sdk::members::Aperture;
///
/// let aperture = Aperture::builder().min(3).max(20).target(8).build()?;
/// # Ok::<_, client_sdk::sizing::SettingsError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Aperture {
    pub(super) target: usize,
    /// Within their ranges.
    pub(super) sizing: SizingSettings,
}

/// Builds an [`Aperture`]. Made by [`Aperture::builder`].
///
/// | setting | default |
/// |---|---|
/// | [`min`](Self::min), [`max`](Self::max) | 2, 100 |
/// | [`target`](Self::target) | 10 |
/// | [`headroom`](Self::headroom) | 0.1 |
/// | [`idle_members`](Self::idle_members), [`idle_time`](Self::idle_time) | 1.25, 30 s |
/// | [`cool_down`](Self::cool_down) | 30 s |
/// | [`smoothing`](Self::smoothing) | 2 s |
#[derive(Clone, Debug, PartialEq)]
#[must_use = "an aperture is made by `build`"]
pub struct ApertureBuilder {
    target: usize,
    sizing: SizingSettings,
}

impl Aperture {
    /// Builds an aperture.
    pub fn builder() -> ApertureBuilder {
        Self::default().into()
    }
}

impl Default for Aperture {
    /// With the defaults of the [builder](ApertureBuilder).
    fn default() -> Self {
        Self { target: 10, sizing: SizingSettings { min: 2, max: 100, ..SizingSettings::default() } }
    }
}

impl From<Aperture> for ApertureBuilder {
    /// To change some of its settings.
    fn from(aperture: Aperture) -> Self {
        Self { target: aperture.target, sizing: aperture.sizing }
    }
}

impl ApertureBuilder {
    /// Never fewer instances, if there are as many; at least 1. They are connected before any request. Default: 2, so that
    /// nobody waits for a connection when one of them fails.
    pub fn min(mut self, instances: usize) -> Self {
        self.sizing.min = instances;
        self
    }

    /// Never more instances, those that drain not counted; at least `min`. Default: 100.
    pub fn max(mut self, instances: usize) -> Self {
        self.sizing.max = instances;
        self
    }

    /// How many requests in flight are one instance's worth; at least 1. Default: 10.
    ///
    /// It is no limit (that is `max_in_flight`, and if that is less, it is taken instead). If instances take fewer at a time by
    /// themselves, as an HTTP/1 connection does, say so here: as long as requests wait it grows anyway, but when
    /// they do not it goes by this.
    pub fn target(mut self, requests: usize) -> Self {
        self.target = requests;
        self
    }

    /// Grow when the demand, averaged over time, leaves fewer than so many instances idle; those that come count as idle. Above 0.
    /// Default: 0.1.
    pub fn headroom(mut self, instances: f64) -> Self {
        self.sizing.headroom = instances;
        self
    }

    /// Shrink when more than so many instances have been idle for the idle time; above 1 + [`headroom`](Self::headroom), for a
    /// shrink leaves one idle one less, and that is not to ask for growth. Default: 1.25.
    pub fn idle_members(mut self, instances: f64) -> Self {
        self.sizing.idle_members = instances;
        self
    }

    /// For how long they must have been idle: in the mean, and four standard deviations of the averaged demand above that. A
    /// shrink that has to be taken back quadruples it, up to 64 times as long, and one that has not makes it a quarter of
    /// that again. Default: 30 s.
    pub fn idle_time(mut self, time: Duration) -> Self {
        self.sizing.idle_time = time;
        self
    }

    /// No shrinking within this time after growing. Default: 30 s.
    pub fn cool_down(mut self, time: Duration) -> Self {
        self.sizing.cool_down = time;
        self
    }

    /// Over what time demand is averaged: what was so long ago weighs 1/e of what is now. Default: 2 s.
    pub fn smoothing(mut self, time: Duration) -> Self {
        self.sizing.smoothing = time;
        self
    }

    /// The aperture. Fails if a setting is out of its range.
    pub fn build(self) -> Result<Aperture, SettingsError> {
        let Self { target, sizing } = self;
        sizing.check()?;
        if target == 0 {
            return Err(SettingsError::Zero { setting: "target" });
        }
        Ok(Aperture { target, sizing })
    }
}
