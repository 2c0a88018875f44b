//! A quantile of the latencies of late, for hedging.
//!
//! A histogram with the buckets of `HdrHistogram` (G. Tene): eight of equal width in each power of two of microseconds, so
//! that a bucket is at most an eighth of its latency wide. Two of them: one is filled with the next thousand latencies while
//! the other still has the thousand before, so that what was long ago does not count. Recording is an atomic addition.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// Buckets in each power of two, as a power of two.
const FINE: u32 = 3;
const BUCKETS: usize = ((u32::BITS - FINE + 1) << FINE) as usize;
/// How many latencies have to be known.
const ENOUGH: u32 = 100;
/// How many latencies go into one histogram before the other is begun anew.
const AGE: u32 = 1_000;

/// Latencies of late.
#[derive(Debug)]
pub(crate) struct Latencies {
    halves: [Histogram; 2],
    recorded: AtomicU32,
}

type Histogram = [AtomicU32; BUCKETS];

impl Default for Latencies {
    fn default() -> Self {
        let empty = |_| std::array::from_fn(|_| AtomicU32::new(0));
        Self { halves: std::array::from_fn(empty), recorded: AtomicU32::new(0) }
    }
}

impl Latencies {
    /// Another one; above 71 minutes it counts as that.
    pub(crate) fn record(&self, latency: Duration) {
        let micros = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        let nth = self.recorded.fetch_add(1, Ordering::Relaxed);
        let half = &self.halves[usize::from(!(nth / AGE).is_multiple_of(2))];
        if nth.is_multiple_of(AGE) {
            // What other threads record meanwhile may be lost.
            for count in half {
                count.store(0, Ordering::Relaxed);
            }
        }
        half[bucket(micros)].fetch_add(1, Ordering::Relaxed);
    }

    /// The latency that this share of all did not exceed, or up to an eighth more. `None`: too few are known.
    pub(crate) fn quantile(&self, share: f64) -> Option<Duration> {
        let [one, other] = &self.halves;
        let count = |count: &AtomicU32| u64::from(count.load(Ordering::Relaxed));
        let counts = || one.iter().zip(other).map(|(one, other)| count(one) + count(other));
        let total: u64 = counts().sum();
        if total < u64::from(ENOUGH) {
            return None;
        }
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let rank = (total as f64 * share).ceil() as u64; // some thousands at most
        let mut seen = 0;
        let index = counts().position(|count| {
            seen += count;
            seen >= rank.max(1)
        });
        index.map(|index| Duration::from_micros(end(index)))
    }
}

fn bucket(micros: u32) -> usize {
    let exponent = micros.max(1).ilog2().max(FINE);
    // Below the first power of two with buckets of its own, one for each microsecond.
    if micros >> FINE == 0 {
        return micros as usize;
    }
    let within = (micros >> (exponent - FINE)) - (1 << FINE);
    (((exponent - FINE + 1) << FINE) + within) as usize
}

/// The last microsecond of a bucket.
fn end(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let group = bucket >> FINE;
    if group == 0 {
        return bucket;
    }
    let within = bucket & ((1 << FINE) - 1);
    (((1 << FINE) + within + 1) << (group - 1)) - 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_is_said_before_enough_is_known() {
        let latencies = Latencies::default();
        for _ in 0..99 {
            latencies.record(Duration::from_millis(1));
        }
        assert_eq!(latencies.quantile(0.95), None);
        latencies.record(Duration::from_millis(1));
        assert!(latencies.quantile(0.95).is_some());
    }

    #[test]
    fn it_follows_what_changes() {
        let latencies = Latencies::default();
        for _ in 0..5_000 {
            latencies.record(Duration::from_millis(1));
        }
        for _ in 0..2_000 {
            latencies.record(Duration::from_millis(100));
        }
        let least = latencies.quantile(0.0).expect("enough");
        assert!(least >= Duration::from_millis(100), "the last two thousand count: {least:?}");
    }

    #[test]
    fn buckets_are_narrow_and_complete() {
        let mut last = None;
        for bucket in 0..BUCKETS {
            let start = last.map_or(0, |last: u64| last + 1);
            assert!(end(bucket) >= start && (end(bucket) - start) * 8 <= start.max(8), "{bucket}");
            last = Some(end(bucket));
        }
        assert_eq!(last, Some(u64::from(u32::MAX)));
    }

    proptest! {
        #[test]
        fn a_latency_falls_into_a_bucket_that_ends_shortly_after_it(micros in any::<u32>()) {
            let (at, end) = (u64::from(micros), end(bucket(micros)));
            prop_assert!(at <= end && end - at <= at / 8);
        }

        #[test]
        fn a_quantile_is_at_most_an_eighth_above_the_exact_one(
            mut micros in proptest::collection::vec(0_u32..10_000_000, 100..900),
            share in 0.01_f64..1.0,
        ) {
            let latencies = Latencies::default();
            for micros in &micros {
                latencies.record(Duration::from_micros(u64::from(*micros)));
            }
            micros.sort_unstable();
            #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let rank = (micros.len() as f64 * share).ceil() as usize;
            let exact = u128::from(micros[rank - 1]);
            let said = latencies.quantile(share).expect("enough").as_micros();
            prop_assert!(said >= exact && said - exact <= exact / 8, "{} for {}", said, exact);
        }
    }
}
