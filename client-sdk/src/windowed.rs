//! How often something happened within the last ten seconds, counted without a lock.
//!
//! Ten slots of a second each; a slot that is used again starts over, so nothing has to be cleared. The oldest slot goes
//! as a whole: what is counted happened within the last nine to ten seconds. Owns no clock: whoever counts says the time.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How far back it counts, in seconds.
pub(crate) const WINDOW: u32 = 10;

/// Counts by the second. Of one clock: times from several would push each other's slots out.
#[derive(Debug, Default)]
pub(crate) struct Windowed([AtomicU64; WINDOW as usize]);

/// A second, and how often it happened in it: one word.
#[derive(Clone, Copy)]
struct Slot {
    second: u32,
    count: u32,
}

impl Windowed {
    /// It happened once.
    pub(crate) fn add(&self, now: Duration) {
        let second = second(now);
        let slot = &self.0[(second % WINDOW) as usize];
        let added = |packed: u64| {
            let slot = Slot::unpack(packed);
            let count = match slot.second {
                this if this == second => slot.count.saturating_add(1),
                // Another thread's clock is a whole window ahead: this is too old to count.
                later if later > second => return None,
                _ => 1,
            };
            Some(Slot { second, count }.pack())
        };
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, added);
    }

    /// How often it happened lately.
    pub(crate) fn count(&self, now: Duration) -> u64 {
        let second = second(now);
        let slots = self.0.iter().map(|slot| Slot::unpack(slot.load(Ordering::Relaxed)));
        // What another thread counted a moment later counts too.
        let recent = slots.filter(|slot| second.saturating_sub(slot.second) < WINDOW);
        recent.map(|slot| u64::from(slot.count)).sum()
    }

    /// The same in a second, of a counter that there is since some time.
    pub(crate) fn per_second(&self, now: Duration, since: Duration) -> f64 {
        let started = Duration::from_secs(u64::from(second(now)));
        let covered = Duration::from_secs(u64::from(WINDOW) - 1) + now.saturating_sub(started);
        // Within its first second it tells what it has counted, not what that might come to.
        let covered = covered.min(now.saturating_sub(since)).max(Duration::from_secs(1));
        #[allow(clippy::cast_precision_loss)] // ten times 2^32 at most
        let count = self.count(now) as f64;
        count / covered.as_secs_f64()
    }
}

impl Slot {
    fn pack(self) -> u64 {
        u64::from(self.second) << 32 | u64::from(self.count)
    }

    #[allow(clippy::cast_possible_truncation)] // both halves, on purpose
    fn unpack(packed: u64) -> Self {
        Self { second: (packed >> 32) as u32, count: packed as u32 }
    }
}

/// Enough for 136 years.
fn second(now: Duration) -> u32 {
    u32::try_from(now.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn it_counts_what_happened_lately_and_no_more() {
        let counted = Windowed::default();
        for _ in 0..3 {
            counted.add(ms(500));
        }
        counted.add(ms(5_200));
        assert_eq!(counted.count(ms(5_200)), 4);
        assert_eq!(counted.count(ms(9_999)), 4);
        assert_eq!(counted.count(ms(10_000)), 1, "the first second is ten seconds ago");
        counted.add(ms(10_100));
        assert_eq!(counted.count(ms(10_100)), 2, "its slot started over");
        assert_eq!(counted.count(Duration::from_hours(1)), 0);
    }

    #[test]
    fn a_rate_is_over_the_time_that_is_covered() {
        let counted = Windowed::default();
        for _ in 0..10 {
            counted.add(ms(100_000));
        }
        let rate = |now| counted.per_second(ms(now), ms(100_000));
        assert!((rate(100_000) - 10.0).abs() < 1e-9, "within the first second it is not blown up");
        assert!((rate(105_000) - 2.0).abs() < 1e-9);
        assert!((rate(109_500) - 10.0 / 9.5).abs() < 1e-9);
        assert!(rate(110_000).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn it_counts_the_present_second_and_the_nine_before(
            mut times in proptest::collection::vec(0_u64..60_000, 0..200),
        ) {
            times.sort_unstable();
            let counted = Windowed::default();
            for (index, now) in times.iter().enumerate() {
                counted.add(ms(*now));
                let recent = |then: &&u64| now / 1_000 - **then / 1_000 < 10;
                let expected = times[..=index].iter().filter(recent).count() as u64;
                prop_assert_eq!(counted.count(ms(*now)), expected);
            }
        }
    }
}
