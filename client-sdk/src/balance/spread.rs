//! Places for hash keys: every bit of a key counts for every bit of its place.
//!
//! A key is used as it is given, which may be a hash or a sequential number: the finaliser of the random numbers spreads
//! either as evenly as chance would, in about a nanosecond. A full hash of its eight bytes takes longer than the rest of a
//! pick, and one multiplication by itself leaves patterns of the keys in their places.

use super::random::{GOLDEN, finalise};

/// The place of a key in the whole range of numbers.
#[inline]
pub(super) fn spread(key: u64) -> u64 {
    finalise(key)
}

/// The key hashed anew for a further probe: another place for each number. Probe 0 is the key itself.
#[inline]
pub(super) fn probe(key: u64, number: u32) -> u64 {
    key ^ u64::from(number).wrapping_mul(GOLDEN)
}

/// The place in a list that a number of the whole range falls on. Multiplied instead of divided: the high half of the
/// product is the place.
#[inline]
pub(super) fn scale(number: u64, count: u64) -> usize {
    // It is below the count of something in memory.
    usize::try_from((u128::from(number) * u128::from(count)) >> 64).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much the counts in 1,000 buckets of 100,000 keys vary, where 1 is what chance makes of it.
    fn variation(keys: impl Iterator<Item = u64>) -> f64 {
        let mut counts = vec![0.0_f64; 1_000];
        keys.take(100_000).for_each(|key| counts[scale(spread(key), 1_000)] += 1.0);
        counts.iter().map(|count| (count - 100.0).powi(2) / 100.0).sum::<f64>() / 999.0
    }

    #[test]
    fn keys_that_nobody_hashed_spread_as_evenly_as_hashes_do() {
        // 999 degrees of freedom: 1.15 is passed once in a thousand draws by chance.
        assert!(variation(0..) < 1.15, "sequential: {}", variation(0..));
        for shift in 0..31 {
            let strided = variation((0..).map(|key| key << shift));
            assert!(strided < 1.15, "multiples of 2^{shift}: {strided}");
            let high = variation((0..).map(|key| key << shift | 0xABCD << 48));
            assert!(high < 1.15, "multiples of 2^{shift} under a fixed part: {high}");
        }
        for step in [3, 7, 10, 100, 1_000, 12_345, 107_756, 1_000_000_007] {
            let strided = variation((0..).map(|key: u64| key * step));
            assert!(strided < 1.15, "multiples of {step}: {strided}");
        }
        let hashed = variation((0_u64..).map(|key| xxhash_rust::xxh64::xxh64(&key.to_le_bytes(), 0)));
        assert!(hashed < 1.15, "hashed: {hashed}");
    }

    #[test]
    fn probes_of_one_key_and_of_neighbours_spread_too() {
        for key in [0, 1, 17, u64::MAX] {
            let probes = variation((0..).map(|number| probe(key, number)));
            assert!(probes < 1.15, "probes of {key}: {probes}");
        }
        for number in 1..5 {
            let probes = variation((0..).map(|key| probe(key, number)));
            assert!(probes < 1.15, "probe {number}: {probes}");
        }
    }

    #[test]
    fn a_probe_goes_elsewhere_than_the_one_before() {
        let same = (0..100_000_u64)
            .filter(|key| scale(spread(*key), 1_000) == scale(spread(probe(*key, 1)), 1_000))
            .count();
        assert!((50..=150).contains(&same), "{same} of 100,000; by chance 100");
    }
}
