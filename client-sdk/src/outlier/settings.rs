//! What outlier detection may be told, and the defaults: those of gRFC A50, and five failures in a row.

use std::time::Duration;

use super::{FailurePercentage, SuccessRate};

/// How instances are judged, and for how long they are ejected. Made by [`OutlierDetection::builder`]; the default is gRFC
/// A50's, with five failures in a row beside it.
///
/// ```
/// use std::time::Duration;
/// use client_sdk::outlier::{FailurePercentage, OutlierDetection};
///
/// let detection = OutlierDetection::builder()
///     .max_ejection_percent(50)
///     .base_ejection_time(Duration::from_secs(10))
///     .failure_percentage(FailurePercentage::new().threshold(60))
///     .build()?;
/// # Ok::<(), client_sdk::outlier::OutlierDetectionError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlierDetection {
    pub(super) interval: Duration,
    pub(super) base_ejection_time: Duration,
    pub(super) max_ejection_time: Duration,
    pub(super) max_ejection_percent: u32,
    pub(super) success_rate: Option<SuccessRate>,
    pub(super) failure_percentage: Option<FailurePercentage>,
    pub(super) consecutive_failures: Option<u32>,
}

/// Builds an [`OutlierDetection`].
#[derive(Clone, Debug)]
pub struct OutlierDetectionBuilder(OutlierDetection);

/// Why outliers cannot be detected so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OutlierDetectionError {
    /// A time is too short.
    #[error("outlier detection: {field} is {} µs; set it to a millisecond or more", value.as_micros())]
    TooShort {
        /// Which.
        field: &'static str,
        /// The time.
        value: Duration,
    },
    /// A percentage is above 100.
    #[error("outlier detection: {field} is {value} %; set it to 0 to 100")]
    NoPercentage {
        /// Which.
        field: &'static str,
        /// The percentage.
        value: u32,
    },
    /// A number is 0 that must be at least 1.
    #[error("outlier detection: {field} is 0; set it to 1 or more, or switch the algorithm off")]
    Zero {
        /// Which.
        field: &'static str,
    },
}

impl OutlierDetection {
    /// Starts from the defaults.
    pub fn builder() -> OutlierDetectionBuilder {
        OutlierDetectionBuilder(Self::default())
    }

    /// Whether chance has no part in it.
    pub(crate) fn is_certain(&self) -> bool {
        let percents = [
            self.success_rate.map(|by| by.enforcement_percent),
            self.failure_percentage.map(|by| by.enforcement_percent),
        ];
        percents.into_iter().flatten().all(|percent| percent == 100)
    }

    /// Whether anything can ever be ejected.
    pub(super) fn is_off(&self) -> bool {
        self.success_rate.is_none()
            && self.failure_percentage.is_none()
            && self.consecutive_failures.is_none()
    }

    /// How long the nth ejection in a row lasts: base × n, at most the larger of max and base (gRFC A50).
    pub(super) fn ejection_time(&self, times: u32) -> Duration {
        let most = self.max_ejection_time.max(self.base_ejection_time);
        self.base_ejection_time.saturating_mul(times).min(most)
    }

    /// From how many times on an ejection lasts no longer.
    pub(super) fn most_times(&self) -> u32 {
        let most = self.max_ejection_time.max(self.base_ejection_time);
        let times = most.as_nanos().div_ceil(self.base_ejection_time.as_nanos().max(1));
        u32::try_from(times).unwrap_or(u32::MAX)
    }
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_mins(5),
            max_ejection_percent: 10,
            success_rate: Some(SuccessRate::new()),
            failure_percentage: Some(FailurePercentage::new()),
            consecutive_failures: Some(5),
        }
    }
}

impl OutlierDetectionBuilder {
    /// How often instances are judged by their rates, and ejections may end. At least 1 ms. Default 10 s.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.0.interval = interval;
        self
    }

    /// How long the first ejection lasts; the nth in a row lasts n times that. At least 1 ms. Default 30 s. An ejection ends
    /// at the first interval at which its time is up, and a probe that is not answered for so long has failed.
    #[must_use]
    pub fn base_ejection_time(mut self, time: Duration) -> Self {
        self.0.base_ejection_time = time;
        self
    }

    /// How long an ejection lasts at most, if that is more than the base time. Default 300 s.
    #[must_use]
    pub fn max_ejection_time(mut self, time: Duration) -> Self {
        self.0.max_ejection_time = time;
        self
    }

    /// How many percent of the instances that take requests may be ejected at once, rounded down, 0 to 100. One always may, and
    /// the last never. Default 10.
    #[must_use]
    pub fn max_ejection_percent(mut self, percent: u32) -> Self {
        self.0.max_ejection_percent = percent;
        self
    }

    /// Judges by success rate, so. Default [`SuccessRate::new`]; `None` switches it off.
    #[must_use]
    pub fn success_rate(mut self, by: impl Into<Option<SuccessRate>>) -> Self {
        self.0.success_rate = by.into();
        self
    }

    /// Judges by failure percentage, so. Default [`FailurePercentage::new`]; `None` switches it off.
    #[must_use]
    pub fn failure_percentage(mut self, by: impl Into<Option<FailurePercentage>>) -> Self {
        self.0.failure_percentage = by.into();
        self
    }

    /// How many failures in a row eject an instance, at once, at least 1. Default 5; `None` switches it off.
    #[must_use]
    pub fn consecutive_failures(mut self, failures: impl Into<Option<u32>>) -> Self {
        self.0.consecutive_failures = failures.into();
        self
    }

    /// The settings, if they make sense.
    pub fn build(self) -> Result<OutlierDetection, OutlierDetectionError> {
        let it = self.0;
        let times = [("interval", it.interval), ("base_ejection_time", it.base_ejection_time)];
        for (field, value) in times {
            if value < Duration::from_millis(1) {
                return Err(OutlierDetectionError::TooShort { field, value });
            }
        }
        let percent = |field, value| match value {
            0..=100 => Ok(()),
            value => Err(OutlierDetectionError::NoPercentage { field, value }),
        };
        let positive = |field, value| match value {
            0 => Err(OutlierDetectionError::Zero { field }),
            _ => Ok(()),
        };
        percent("max_ejection_percent", it.max_ejection_percent)?;
        if let Some(by) = it.success_rate {
            percent("success_rate.enforcement_percent", by.enforcement_percent)?;
            positive("success_rate.minimum_hosts", by.minimum_hosts)?;
            positive("success_rate.request_volume", by.request_volume)?;
        }
        if let Some(by) = it.failure_percentage {
            percent("failure_percentage.threshold", by.threshold)?;
            percent("failure_percentage.enforcement_percent", by.enforcement_percent)?;
            positive("failure_percentage.minimum_hosts", by.minimum_hosts)?;
            positive("failure_percentage.request_volume", by.request_volume)?;
        }
        if let Some(failures) = it.consecutive_failures {
            positive("consecutive_failures", failures)?;
        }
        Ok(it)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_grfc_a50_and_pass_their_own_checks() {
        let it = OutlierDetection::builder().build().expect("the defaults");
        assert_eq!(it, OutlierDetection::default());
        assert_eq!((it.interval.as_secs(), it.max_ejection_percent), (10, 10));
        assert_eq!([1, 2, 10, 11, u32::MAX].map(|n| it.ejection_time(n).as_secs()), [30, 60, 300, 300, 300]);
        assert_eq!(it.most_times(), 10);
        let by = SuccessRate::new();
        assert_eq!(
            (by.stdev_factor, by.enforcement_percent, by.minimum_hosts, by.request_volume),
            (1900, 100, 5, 100)
        );
        let by = FailurePercentage::new();
        assert_eq!(
            (by.threshold, by.enforcement_percent, by.minimum_hosts, by.request_volume),
            (85, 100, 5, 50)
        );
        assert_eq!(it.consecutive_failures, Some(5));
    }

    #[test]
    fn a_max_below_the_base_is_the_base() {
        let minute = Duration::from_mins(1);
        let it =
            OutlierDetection::builder().base_ejection_time(minute).max_ejection_time(Duration::ZERO).build();
        let it = it.expect("sensible");
        assert_eq!((it.ejection_time(1), it.ejection_time(7), it.most_times()), (minute, minute, 1));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let refused = |builder: OutlierDetectionBuilder| builder.build().expect_err("no sense").to_string();
        let builder = OutlierDetection::builder;
        assert_eq!(
            refused(builder().interval(Duration::ZERO)),
            "outlier detection: interval is 0 µs; set it to a millisecond or more"
        );
        assert!(
            refused(builder().base_ejection_time(Duration::from_micros(9))).contains("base_ejection_time")
        );
        assert!(refused(builder().max_ejection_percent(101)).contains("max_ejection_percent is 101 %"));
        assert!(refused(builder().consecutive_failures(0)).contains("consecutive_failures is 0"));
        let by = SuccessRate::new();
        assert!(refused(builder().success_rate(by.minimum_hosts(0))).contains("success_rate.minimum_hosts"));
        assert!(
            refused(builder().success_rate(by.request_volume(0))).contains("success_rate.request_volume")
        );
        assert!(refused(builder().success_rate(by.enforcement_percent(101))).contains("enforcement_percent"));
        let by = FailurePercentage::new();
        assert!(refused(builder().failure_percentage(by.threshold(101))).contains("threshold is 101 %"));
        assert!(refused(builder().failure_percentage(by.request_volume(0))).contains("request_volume"));
        let off = builder().success_rate(None).failure_percentage(None).consecutive_failures(None).build();
        assert!(off.expect("each may be off").is_off());
    }
}
