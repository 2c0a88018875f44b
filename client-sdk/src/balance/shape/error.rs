//! What cannot be set, and what to set instead.

use std::time::Duration;

/// A setting of a filter, a shaper or the panic threshold that makes no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapingError {
    /// Of a [`PanicThreshold`](super::PanicThreshold).
    #[error(
        "the panic threshold is a share of the instances, from 0 (never) to 1; {share} is not; 0.5 is usual"
    )]
    PanicThreshold {
        /// What was to be set.
        share: f64,
    },
    /// Of a [`Subset`](super::Subset).
    #[error("a subset of 0 instances takes no request; set at least 1, better 10 or more")]
    SubsetSize,
    /// Of a [`ZoneAware`](super::ZoneAware).
    #[error(
        "the caller's zone is empty: requests cannot be kept in it; name it as instances do in `locality.zone`"
    )]
    NoZone,
    /// Of a [`ZoneAware`](super::ZoneAware).
    #[error("the callers' share of zone `{zone}` is {share}; it must be a number, 0 or more")]
    CallersShare {
        /// Which zone's.
        zone: String,
        /// What was to be set.
        share: f64,
    },
    /// Of a [`ZoneAware`](super::ZoneAware).
    #[error(
        "no zone has a share of the callers; name at least one with a share above 0, or leave the shares unset"
    )]
    NoCallers,
    /// Of a [`ZoneAware`](super::ZoneAware) or a [`Failover`](super::Failover).
    #[error("the overprovisioning factor is {factor}; it must be a number, 1 or more; 1.4 is usual")]
    Overprovisioning {
        /// What was to be set.
        factor: f64,
    },
    /// Of a [`Failover`](super::Failover).
    #[error("zone `{zone}` stands twice in the order of failover; name each zone once")]
    ZoneTwice {
        /// Which zone.
        zone: String,
    },
    /// Of a [`Failover`](super::Failover).
    #[error("the order of failover names no zone; name at least the first")]
    NoPriorities,
    /// Of a [`SlowStart`](super::SlowStart).
    #[error(
        "a slow start of {} ms is out of range; set 200 ms to 24 h, some seconds more than it takes to warm up",
        .window.as_millis()
    )]
    Window {
        /// What was to be set.
        window: Duration,
    },
    /// Of a [`SlowStart`](super::SlowStart).
    #[error("the aggression of a slow start is {aggression}; it must be a number above 0; 1 rises evenly")]
    Aggression {
        /// What was to be set.
        aggression: f64,
    },
    /// Of a [`SlowStart`](super::SlowStart).
    #[error(
        "a slow start cannot begin at {share} of the weight; set a number above 0, 1 at most; 0.1 is usual"
    )]
    FirstShare {
        /// What was to be set.
        share: f64,
    },
}
