//! Random numbers that many threads draw at once, without a lock and repeatably from a seed.

use std::sync::atomic::{AtomicU64, Ordering};

/// The odd number next to 2^64 divided by the golden ratio: multiples of it spread evenly.
pub(crate) const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// `SplitMix64` (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014), whose whole state is a
/// counter: drawing is a load, a store and a finaliser. Two threads that draw in the same moment may draw the same number,
/// which spreads requests no worse; an atomic addition would rule it out at five times the cost.
#[derive(Debug)]
pub(crate) struct Random(AtomicU64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    #[inline]
    pub(crate) fn next(&self) -> u64 {
        let count = self.0.load(Ordering::Relaxed).wrapping_add(GOLDEN);
        self.0.store(count, Ordering::Relaxed);
        finalise(count)
    }
}

/// The finaliser: every bit of the number counts for every bit of the result, and no two numbers have the same.
#[inline]
pub(super) fn finalise(number: u64) -> u64 {
    let mut z = number;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_published_generator() {
        let random = Random::new(1_234_567);
        let drawn: [u64; 3] = std::array::from_fn(|_| random.next());
        assert_eq!(drawn, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }
}
