//! When ejection and `held` are ignored: where so few are left that sparing the bad ones would break the good ones.
//!
//! After Envoy's panic threshold (*Panic threshold* in its load balancing documentation; 50 % there too). What it never
//! brings back: weight 0, draining, down, removed, filtered out, or not connected.

use super::ShapingError;

/// If a smaller share of the instances than this is healthy, ejection and `held` are ignored. Default 50 %.
///
/// It is the share among the instances that may be chosen, that the filters left, and that are not known to be out of reach:
/// where connections fail, nothing can be ignored, so that is no reason to call those that fail requests. Healthy is what is
/// neither ejected, nor on probation after that, nor held. Instances count, not their weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PanicThreshold(f64);

impl PanicThreshold {
    /// Ejection and `held` are never ignored, while anything else is there.
    pub const OFF: Self = Self(0.0);

    /// A share from 0 to 1. 0 is [`OFF`](Self::OFF); with 1, one unhealthy instance is enough.
    pub fn new(share: f64) -> Result<Self, ShapingError> {
        if (0.0..=1.0).contains(&share) {
            Ok(Self(share))
        } else {
            Err(ShapingError::PanicThreshold { share })
        }
    }

    /// Whether so many healthy ones among all are too few.
    #[allow(clippy::cast_precision_loss)] // numbers of instances
    pub(super) fn is_passed(self, healthy: usize, all: usize) -> bool {
        (healthy as f64) < self.0 * all as f64
    }
}

impl Default for PanicThreshold {
    fn default() -> Self {
        Self(0.5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_is_not_fewer_than_half() {
        let threshold = PanicThreshold::default();
        for (healthy, all, passed) in [
            (5, 10, false),
            (4, 10, true),
            (1, 2, false),
            (0, 1, true),
            (2, 5, true),
            (3, 5, false),
            (0, 0, false),
        ] {
            assert_eq!(threshold.is_passed(healthy, all), passed, "{healthy} of {all}");
        }
    }

    #[test]
    fn none_and_all_are_thresholds_and_nothing_beyond() {
        assert!(!PanicThreshold::OFF.is_passed(0, 10));
        assert_eq!(PanicThreshold::new(0.0), Ok(PanicThreshold::OFF));
        let all = PanicThreshold::new(1.0).expect("a share");
        assert!(all.is_passed(9, 10) && !all.is_passed(10, 10));
        for share in [-0.1, 1.1, 50.0, f64::INFINITY] {
            assert_eq!(PanicThreshold::new(share), Err(ShapingError::PanicThreshold { share }));
        }
        assert!(PanicThreshold::new(f64::NAN).is_err());
    }
}
