//! Ejects by success rate: whoever succeeds clearly less often than the others (gRFC A50, "Success Rate Algorithm").

use super::{Sample, worst_first};

/// Rates closer to the bound than this are on it: a fleet whose rates are all the same has no outlier for want of digits.
const EXACTNESS: f64 = 1e-9;

/// Ejects instances whose success rate is below the mean of all by more than so many standard deviations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuccessRate {
    pub(super) stdev_factor: u32,
    pub(super) enforcement_percent: u32,
    pub(super) minimum_hosts: u32,
    pub(super) request_volume: u32,
}

impl SuccessRate {
    /// By gRFC A50's defaults: 1.9 standard deviations, always enforced, 5 hosts, 100 requests.
    pub const fn new() -> Self {
        Self { stdev_factor: 1900, enforcement_percent: 100, minimum_hosts: 5, request_volume: 100 }
    }

    /// How many thousandths of a standard deviation below the mean are too many. Default 1900.
    #[must_use]
    pub const fn stdev_factor(mut self, thousandths: u32) -> Self {
        self.stdev_factor = thousandths;
        self
    }

    /// How often an outlier is ejected, in percent, 0 to 100: to try the settings out on some. Default 100.
    #[must_use]
    pub const fn enforcement_percent(mut self, percent: u32) -> Self {
        self.enforcement_percent = percent;
        self
    }

    /// Of how many instances enough must be known for any to be judged, at least 1. Default 5.
    #[must_use]
    pub const fn minimum_hosts(mut self, hosts: u32) -> Self {
        self.minimum_hosts = hosts;
        self
    }

    /// How many requests an instance must have ended within an interval for it to be judged, and counted among the
    /// `minimum_hosts`, at least 1. Default 100.
    #[must_use]
    pub const fn request_volume(mut self, requests: u32) -> Self {
        self.request_volume = requests;
        self
    }

    /// The outliers, the worst first.
    pub(super) fn outliers(&self, samples: &[Sample]) -> Vec<usize> {
        let volume = u64::from(self.request_volume.max(1));
        let judged: Vec<Sample> = samples.iter().filter(|it| it.requests() >= volume).copied().collect();
        if judged.len() < self.minimum_hosts as usize {
            return Vec::new();
        }
        let bound = self.bound(&judged);
        worst_first(judged.into_iter().filter(|it| it.success_rate() < bound - EXACTNESS).collect())
    }

    /// Below which rate an instance is an outlier.
    #[allow(clippy::cast_precision_loss)] // the number of instances
    fn bound(&self, judged: &[Sample]) -> f64 {
        let count = judged.len() as f64;
        let mean = judged.iter().map(Sample::success_rate).sum::<f64>() / count;
        let variance = judged.iter().map(|it| (it.success_rate() - mean).powi(2)).sum::<f64>() / count;
        mean - variance.sqrt() * f64::from(self.stdev_factor) / 1000.0
    }
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 100 requests each, so many succeeded.
    fn of_a_hundred(successes: &[u64]) -> Vec<Sample> {
        let sample =
            |(host, &successes): (usize, &u64)| Sample { host, successes, failures: 100 - successes };
        successes.iter().enumerate().map(sample).collect()
    }

    #[test]
    fn the_bound_is_the_mean_minus_so_many_standard_deviations() {
        // Mean 0.90; deviations .1 .1 .1 .1 .1 .5: variance (5 x .01 + .25) / 6 = .05, its root .223607.
        let samples = of_a_hundred(&[100, 100, 100, 100, 100, 40]);
        let bound = SuccessRate::new().bound(&samples);
        assert!((bound - (0.9 - 1.9 * 0.05_f64.sqrt())).abs() < 1e-12, "{bound}");
        assert!((bound - 0.475_147).abs() < 1e-6, "{bound}");
        assert_eq!(SuccessRate::new().outliers(&samples), [5], "0.40 is below it");
        let wider = SuccessRate::new().stdev_factor(2300);
        assert!(wider.outliers(&samples).is_empty(), "0.9 - 2.3 x 0.2236 = 0.3857");
    }

    #[test]
    fn one_of_five_cannot_be_two_standard_deviations_away_and_one_of_six_can() {
        // With one of n apart the distance is the root of n - 1 standard deviations: 2 for five, above 1.9.
        assert_eq!(SuccessRate::new().outliers(&of_a_hundred(&[100, 100, 0, 100, 100])), [2]);
        assert!(
            SuccessRate::new()
                .stdev_factor(2001)
                .outliers(&of_a_hundred(&[100, 100, 0, 100, 100]))
                .is_empty()
        );
        let six = of_a_hundred(&[100, 100, 0, 100, 100, 100]);
        assert_eq!(SuccessRate::new().stdev_factor(2001).outliers(&six), [2]);
    }

    #[test]
    fn a_fleet_that_is_equally_bad_has_no_outlier() {
        for successes in 0..=100 {
            for hosts in 5..12 {
                let samples = of_a_hundred(&vec![successes; hosts]);
                let exact = SuccessRate::new().stdev_factor(0);
                assert!(exact.outliers(&samples).is_empty(), "{hosts} hosts at {successes} %");
            }
        }
    }

    #[test]
    fn whoever_had_too_few_requests_is_neither_judged_nor_counted() {
        let mut samples = of_a_hundred(&[100, 100, 100, 100, 100, 0]);
        samples[5] = Sample { host: 5, successes: 0, failures: 99 };
        assert!(SuccessRate::new().outliers(&samples).is_empty(), "99 requests are too few");
        samples[5].failures = 100;
        assert_eq!(SuccessRate::new().outliers(&samples), [5]);
        samples[0] = Sample { host: 0, successes: 99, failures: 0 };
        samples[1] = samples[0];
        assert!(SuccessRate::new().outliers(&samples).is_empty(), "four hosts are too few");
    }

    #[test]
    fn the_worst_come_first() {
        let samples = of_a_hundred(&[100, 50, 100, 40, 100, 100, 100, 100, 100, 100, 100, 100]);
        assert_eq!(SuccessRate::new().outliers(&samples), [3, 1]);
    }
}
