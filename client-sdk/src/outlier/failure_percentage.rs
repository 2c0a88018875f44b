//! Ejects by failure percentage: whoever fails more often than is bearable, however the others do (gRFC A50, "Failure
//! Percentage Algorithm").

use super::{Sample, worst_first};

/// Ejects instances of whose requests more than so many percent failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailurePercentage {
    pub(super) threshold: u32,
    pub(super) enforcement_percent: u32,
    pub(super) minimum_hosts: u32,
    pub(super) request_volume: u32,
}

impl FailurePercentage {
    /// By gRFC A50's defaults: more than 85 %, always enforced, 5 hosts, 50 requests.
    pub const fn new() -> Self {
        Self { threshold: 85, enforcement_percent: 100, minimum_hosts: 5, request_volume: 50 }
    }

    /// The percentage of failures above which an instance is an outlier, 0 to 100; 100 ejects none. Default 85.
    #[must_use]
    pub const fn threshold(mut self, percent: u32) -> Self {
        self.threshold = percent;
        self
    }

    /// How often an outlier is ejected, in percent, 0 to 100: to try the settings out on some. Default 100.
    #[must_use]
    pub const fn enforcement_percent(mut self, percent: u32) -> Self {
        self.enforcement_percent = percent;
        self
    }

    /// How many instances must take requests for any to be judged, whether or not they had any, at least 1. Default 5.
    #[must_use]
    pub const fn minimum_hosts(mut self, hosts: u32) -> Self {
        self.minimum_hosts = hosts;
        self
    }

    /// How many requests an instance must have ended within an interval for it to be judged, at least 1. Default 50.
    #[must_use]
    pub const fn request_volume(mut self, requests: u32) -> Self {
        self.request_volume = requests;
        self
    }

    /// The outliers, the worst first. `hosts`: how many take requests.
    pub(super) fn outliers(&self, samples: &[Sample], hosts: usize) -> Vec<usize> {
        if hosts < self.minimum_hosts as usize {
            return Vec::new();
        }
        let volume = u64::from(self.request_volume.max(1));
        let failing = |it: &&Sample| {
            let (failed, all) = (u128::from(it.failures), u128::from(it.requests()));
            it.requests() >= volume && failed * 100 > all * u128::from(self.threshold)
        };
        worst_first(samples.iter().filter(failing).copied().collect())
    }
}

impl Default for FailurePercentage {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(host: usize, successes: u64, failures: u64) -> Sample {
        Sample { host, successes, failures }
    }

    #[test]
    fn more_than_the_threshold_is_too_much_and_the_threshold_itself_is_not() {
        let samples = [sample(0, 15, 85), sample(1, 14, 86), sample(2, 0, 50), sample(3, 0, 49)];
        let by = FailurePercentage::new();
        assert_eq!(by.outliers(&samples, 5), [2, 1], "the worst first; 49 requests are too few");
        assert_eq!(by.threshold(84).outliers(&samples, 5), [2, 1, 0]);
        assert!(by.threshold(100).outliers(&samples, 5).is_empty());
        assert_eq!(by.threshold(0).outliers(&[sample(7, 99, 1), sample(8, 100, 0)], 5), [7]);
    }

    #[test]
    fn where_there_are_few_instances_none_is_judged() {
        let samples = [sample(0, 0, 1000)];
        assert!(FailurePercentage::new().outliers(&samples, 4).is_empty());
        assert_eq!(
            FailurePercentage::new().outliers(&samples, 5),
            [0],
            "whether or not the others had requests"
        );
    }
}
