//! What came of a run.

use std::time::Duration;

/// How a request went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// When it arrived.
    pub(crate) at: Duration,
    pub(crate) took: Duration,
    pub(crate) failed: bool,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Record {
    /// All requests, by their ends.
    pub(crate) calls: Vec<Call>,
    /// For each second, how many requests each server had received by its end.
    pub(crate) received: Vec<Vec<u64>>,
    /// For each second, the most requests that any server had at once.
    pub(crate) most: Vec<u64>,
    /// Who was not to get requests, and from when on.
    pub(crate) bad: Option<(Vec<usize>, Duration)>,
}

/// What happens within a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Second {
    /// Its number, from 0.
    pub second: u64,
    /// The latency that 99 % of the requests that arrived in it stayed below.
    pub p99: Duration,
    /// How many of them failed.
    pub failed: usize,
    /// The share of requests that went to those who are not to get any.
    pub to_bad: f64,
}

impl Record {
    /// How many requests there were.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls.len()
    }

    /// How many of them failed.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.failed_from(Duration::ZERO)
    }

    /// How many failed that arrived at that time or later.
    #[must_use]
    pub fn failed_from(&self, from: Duration) -> usize {
        self.calls.iter().filter(|call| call.failed && call.at >= from).count()
    }

    /// The latency that this share of the requests stayed below, failed ones included.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        quantile(self.calls.iter().map(|call| call.took), share)
    }

    /// The same, of requests that arrived from one time to another.
    #[must_use]
    pub fn quantile_between(&self, share: f64, from: Duration, to: Duration) -> Duration {
        let within = self.calls.iter().filter(|call| (from..to).contains(&call.at));
        quantile(within.map(|call| call.took), share)
    }

    /// The load of the server that got most requests, by the mean: over the whole run, those that got none left out.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // counts
    pub fn max_to_mean(&self) -> f64 {
        let Some(last) = self.received.last() else { return 1.0 };
        let some: Vec<u64> = last.iter().copied().filter(|count| *count > 0).collect();
        let sum: u64 = some.iter().sum();
        if sum == 0 {
            return 1.0;
        }
        some.iter().copied().max().unwrap_or(0) as f64 * some.len() as f64 / sum as f64
    }

    /// The share of requests that went to those that were not to get any, of all that were sent since. `None` if nobody
    /// was bad.
    #[must_use]
    pub fn to_bad(&self) -> Option<f64> {
        let (_, from) = self.bad.as_ref()?;
        let last = self.received.last()?;
        Some(self.share_of_bad(self.received.get(second(*from))?, last))
    }

    /// The most requests that any server had at once, in the seconds from one time to another.
    #[must_use]
    pub fn most_between(&self, from: Duration, to: Duration) -> u64 {
        self.most.iter().skip(second(from)).take(second(to) - second(from)).copied().max().unwrap_or(0)
    }

    /// Second by second.
    #[must_use]
    pub fn seconds(&self) -> Vec<Second> {
        let mut by_second: Vec<Vec<Call>> = vec![Vec::new(); self.received.len()];
        for call in &self.calls {
            if let Some(calls) = by_second.get_mut(second(call.at)) {
                calls.push(*call);
            }
        }
        let before = std::iter::once(vec![0; self.received.first().map_or(0, Vec::len)]);
        let before = before.chain(self.received.iter().cloned());
        let all = by_second.iter().zip(before.zip(&self.received)).enumerate();
        all.map(|(number, (calls, (before, after)))| Second {
            second: number as u64,
            p99: quantile(calls.iter().map(|call| call.took), 0.99),
            failed: calls.iter().filter(|call| call.failed).count(),
            to_bad: self.share_of_bad(&before, after),
        })
        .collect()
    }

    #[allow(clippy::cast_precision_loss)] // counts
    fn share_of_bad(&self, before: &[u64], after: &[u64]) -> f64 {
        let Some((bad, _)) = &self.bad else { return 0.0 };
        let sent = |number: usize| after[number].saturating_sub(before[number]);
        let all: u64 = (0..after.len()).map(sent).sum();
        let to_bad: u64 = bad.iter().map(|number| sent(*number)).sum();
        to_bad as f64 / all.max(1) as f64
    }
}

fn second(at: Duration) -> usize {
    usize::try_from(at.as_secs()).unwrap_or(usize::MAX)
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a place in a list
fn quantile(values: impl Iterator<Item = Duration>, share: f64) -> Duration {
    let mut values: Vec<Duration> = values.collect();
    if values.is_empty() {
        return Duration::ZERO;
    }
    let place = ((values.len() as f64 * share).ceil() as usize).clamp(1, values.len()) - 1;
    *values.select_nth_unstable(place).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_shares_are_what_they_are_called() {
        let call = |ms: u64| Call {
            at: Duration::from_millis(ms * 10),
            took: Duration::from_millis(ms),
            failed: ms.is_multiple_of(50),
        };
        let record = Record {
            calls: (1..=100).map(call).collect(),
            received: vec![vec![40, 10], vec![60, 40]],
            most: vec![3, 5],
            bad: Some((vec![1], Duration::ZERO)),
        };
        assert_eq!(record.quantile(0.5), Duration::from_millis(50));
        assert_eq!(record.quantile(0.99), Duration::from_millis(99));
        assert_eq!(record.quantile(0.999), Duration::from_millis(100));
        assert_eq!((record.failed(), record.failed_from(Duration::from_millis(600))), (2, 1));
        assert!((record.max_to_mean() - 1.2).abs() < 1e-9);
        assert!((record.to_bad().expect("one is bad") - 0.6).abs() < 1e-9);
        let seconds = record.seconds();
        assert!((seconds[0].to_bad - 0.2).abs() < 1e-9 && (seconds[1].to_bad - 0.6).abs() < 1e-9);
        assert_eq!((seconds[0].failed, seconds[0].p99), (1, Duration::from_millis(99)));
        assert_eq!(record.most_between(Duration::from_secs(1), Duration::from_secs(2)), 5);
    }
}
