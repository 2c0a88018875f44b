//! Which instances a policy chooses among, and with what shares: filters and shapers, run before any policy.
//!
//! Owns the way from the instances that may be chosen at all (C2: never of weight 0, draining, down or gone) to the list that
//! [`Policy::build`](super::Policy::build) is given. It runs when the view, somebody's health or the time changes and never
//! in a pick: what is picked on is a list like any other, so picks cost what they cost without it.
//!
//! ```text
//!   eligible (C2) ──filters, in their order──► kept ──who is connected──► panic threshold: all of them,
//!                                                │                        or those that are neither ejected nor held
//!                     whom a channel connects to ┘                                    │
//!                                                       Policy::build ◄──shapers, in their order: shares
//! ```
//!
//! - A [`Filter`] says which instances at all, by what they are: [`TagSubset`], [`Subset`]. What it leaves out is not
//!   connected to, and no retry goes there.
//! - A [`Shaper`] says what shares those that remain get, by their health and the time: [`ZoneAware`], [`Failover`],
//!   [`SlowStart`]. One that gets no share now is still there for retries.
//! - The [`PanicThreshold`] (50 % unless set) has ejection and `held` ignored where too few would be left.
//!
//! Shares reach the policy as weights: where they differ from the instances' own, the instances that it is given, and those of
//! its picks, have scaled ones (1 to 65,535, only how they compare matters). So leave
//! [`RingHash::points_per_weight`](super::RingHash::points_per_weight) unset with shapers.
//!
//! | file | what it owns |
//! |---|---|
//! | `tag_subset`, `subset` | the filters |
//! | `zone_aware`, `zones`, `failover`, `slow_start` | the shapers; `zones` is the arithmetic of the first |
//! | `panic_threshold` | when ejection and `held` are ignored |
//! | `pipeline` | runs all of them, and turns shares into weights |
//! | `ages` | since when an instance is there |
//! | `error` | what cannot be set |

mod ages;
mod error;
mod failover;
mod panic_threshold;
mod pipeline;
mod slow_start;
mod subset;
mod tag_subset;
mod zone_aware;
mod zones;

pub use error::ShapingError;
pub use failover::Failover;
pub use panic_threshold::PanicThreshold;
pub(crate) use pipeline::{Candidate, Chosen, Reach, SOONEST, Shaped, State, Trust};
pub use slow_start::SlowStart;
pub use subset::Subset;
pub use tag_subset::TagSubset;
pub use zone_aware::ZoneAware;

use std::{fmt, sync::Arc, time::Duration};

use super::CallerOrder;
use crate::model::{Instance, InstanceList};

/// Says which instances a caller uses at all, by what they are: not by how they are.
///
/// One of one's own: no instance of the canary, unless there is nothing else.
///
/// ```
/// use client_sdk::{balance::{CallerOrder, shape::Filter}, model::InstanceList};
///
/// struct NoCanary;
///
/// impl Filter for NoCanary {
///     fn filter(&self, instances: &InstanceList, _: CallerOrder) -> InstanceList {
///         let steady: InstanceList =
///             instances.iter().filter(|instance| !instance.tags.contains_key("canary")).cloned().collect();
///         if steady.is_empty() { instances.clone() } else { steady }
///     }
/// }
/// ```
pub trait Filter: Send + Sync + 'static {
    /// Those of the instances that are used. What was not among `instances` is left out of the answer, and so is their
    /// order. It is called when the view changes, outside any lock. If it panics, none is used until the next change.
    ///
    /// `instances`: all that may be chosen and that earlier filters left, held ones included, connected or not. `caller`: who
    /// asks.
    fn filter(&self, instances: &InstanceList, caller: CallerOrder) -> InstanceList;
}

/// Sets the shares of the requests that instances get.
///
/// One of one's own: half the share for what is tagged as slow.
///
/// ```
/// use std::time::Duration;
/// use client_sdk::balance::shape::{Shaper, Share};
///
/// struct HalfForSlow;
///
/// impl Shaper for HalfForSlow {
///     fn shape(&self, shares: &mut [Share<'_>], _: Duration) -> Option<Duration> {
///         for share in shares.iter_mut().filter(|share| share.instance.tags.contains_key("slow")) {
///             share.weight *= 0.5;
///         }
///         None
///     }
/// }
/// ```
pub trait Shaper: Send + Sync + 'static {
    /// Changes the weights, which are as the instances' own and earlier shapers made them. Only how they compare matters. A
    /// weight that is no number, infinite or negative counts as 0; where all are 0, the shapers are passed over. It is called
    /// when the view or somebody's health changes and when it asked for it, outside any lock. If it panics, it is passed
    /// over.
    ///
    /// `now`: the time by the runtime's clock. Returns in what time it wants to be asked again though nothing else changed
    /// (less than 10 ms counts as 10 ms); `None`: not until something changes.
    fn shape(&self, shares: &mut [Share<'_>], now: Duration) -> Option<Duration>;
}

/// An instance and its share.
///
/// There is one for each instance that is known: in a channel or a layer for those that are connected, or were to be and
/// failed; through a [`Handle`](super::Handle), which knows of no connections, for all.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Share<'a> {
    /// The instance.
    pub instance: &'a Arc<Instance>,
    /// Its share compared with the others', at first [`Instance::weight`]. 0: none, while others have some.
    pub weight: f64,
    /// Whether requests can go to it: it is connected, where that is known, and neither ejected, nor on probation after that,
    /// nor held, unless these are ignored ([`PanicThreshold`]). The weight of one that is not usable has no effect, but where a hash policy connects on
    /// demand: that goes on picking what it failed to connect to, as the keys of these would move otherwise.
    pub usable: bool,
    /// Since when it is there, by the runtime's clock: when it appeared in the view, or came back, another incarnation of it
    /// included, from being down or from where nobody could connect to it. `None`: from the start, as far as this caller
    /// knows.
    pub since: Option<Duration>,
}

/// Filters and shapers in their order, and the panic threshold.
///
/// The builders of channels, layers and balancers have one each. For a [`Cached`](super::Cached) it is made by itself:
///
/// ```
/// use std::time::Duration;
/// use client_sdk::balance::shape::{Shaping, SlowStart, Subset, TagSubset};
///
/// let shaping = Shaping::new()
///     .filter(TagSubset::new([("version", "2")]).or_any())
///     .filter(Subset::new(20)?)
///     .shaper(SlowStart::new(Duration::from_secs(30))?);
/// # Ok::<(), client_sdk::balance::shape::ShapingError>(())
/// ```
#[derive(Clone, Default)]
pub struct Shaping {
    filters: Vec<Arc<dyn Filter>>,
    shapers: Vec<Arc<dyn Shaper>>,
    panic: PanicThreshold,
}

impl Shaping {
    /// No filter, no shaper, and the panic threshold as it is unless set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a filter, after those that are there.
    #[must_use]
    pub fn filter(mut self, filter: impl Filter) -> Self {
        self.filters.push(Arc::new(filter));
        self
    }

    /// Adds a shaper, after those that are there.
    #[must_use]
    pub fn shaper(mut self, shaper: impl Shaper) -> Self {
        self.shapers.push(Arc::new(shaper));
        self
    }

    /// Sets when ejection and `held` are ignored. Default: with fewer than 50 % healthy.
    #[must_use]
    pub fn panic_threshold(mut self, threshold: PanicThreshold) -> Self {
        self.panic = threshold;
        self
    }

    /// Whether there is any filter.
    pub(crate) fn filters(&self) -> bool {
        !self.filters.is_empty()
    }

    /// Whether there is any shaper: whether the time may change anything.
    pub(crate) fn shapers(&self) -> bool {
        !self.shapers.is_empty()
    }
}

impl fmt::Debug for Shaping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shaping")
            .field("filters", &self.filters.len())
            .field("shapers", &self.shapers.len())
            .field("panic", &self.panic)
            .finish()
    }
}
