//! How much of the log stays beside the base: what watchers can resume from after a restart (W5).
//!
//! The base lags behind the log by the history: a start loads the base and lives the records since once more, so the
//! recent log comes to be again in the same way as it came to be at first, and no record is kept twice. Owns the choice of
//! the place; pure.
//!
//! ```text
//!   folded into the base │ history: kept, as long as within all three bounds │ the log that takes appends
//!                        └─ fold_through()
//! ```

use std::time::Duration;

use super::super::record::Extent;
use crate::core::Revision;

/// Bounds of the history. Whichever is reached first, what is older may be folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Records that are kept at least, if the other bounds allow it.
    pub(super) records: u64,
    /// How much older than the newest record a record may be.
    pub(super) age: Duration,
    /// Bytes of log that are kept at most.
    pub(super) bytes: u64,
}

impl Bounds {
    /// Up to which revision these groups of sealed logs, oldest first, may be folded. `None`: not one of them.
    pub(super) fn fold_through(&self, groups: &[Extent]) -> Option<Revision> {
        let (mut records, mut bytes) = (0, 0);
        let kept = groups.iter().rev().take_while(|group| {
            let within = records < self.records && bytes + group.bytes <= self.bytes;
            records += group.last - group.previous;
            bytes += group.bytes;
            within
        });
        let beyond = groups.len() - kept.count();
        // A wall clock that was set back makes nothing old before what is older than it has gone.
        let newest = groups.iter().map(|group| group.wall).max()?;
        let age = u64::try_from(self.age.as_millis()).unwrap_or(u64::MAX);
        let old = groups.iter().take_while(|group| newest.saturating_sub(group.wall) > age).count();
        beyond.max(old).checked_sub(1).map(|last| groups[last].last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups of two records and 100 bytes each, one every 10 ms.
    fn groups(count: u64) -> Vec<Extent> {
        (0..count).map(|n| Extent { previous: 2 * n, last: 2 * n + 2, wall: 10 * n, bytes: 100 }).collect()
    }

    fn bounds(records: u64, age: u64, bytes: u64) -> Bounds {
        Bounds { records, age: Duration::from_millis(age), bytes }
    }

    #[test]
    fn whichever_bound_is_reached_first_rules() {
        const MUCH: u64 = 1 << 40;
        let ten = groups(10);
        for (bounds, through) in [
            (bounds(MUCH, MUCH, MUCH), None),
            (bounds(20, MUCH, MUCH), None),
            (bounds(19, MUCH, MUCH), None),
            (bounds(18, MUCH, MUCH), Some(2)),
            (bounds(5, MUCH, MUCH), Some(14)),
            (bounds(0, MUCH, MUCH), Some(20)),
            (bounds(MUCH, MUCH, 1_000), None),
            (bounds(MUCH, MUCH, 999), Some(2)),
            (bounds(MUCH, MUCH, 99), Some(20)),
            (bounds(MUCH, 90, MUCH), None),
            (bounds(MUCH, 89, MUCH), Some(2)),
            (bounds(MUCH, 0, MUCH), Some(18)),
            (bounds(6, 50, 400), Some(14)),
        ] {
            assert_eq!(bounds.fold_through(&ten), through, "{bounds:?}");
        }
        assert_eq!(bounds(0, 0, 0).fold_through(&[]), None);
    }

    #[test]
    fn a_clock_that_was_set_back_folds_nothing_young() {
        let mut set_back = groups(6);
        set_back[3].wall = 0;
        assert_eq!(bounds(100, 30, 10_000).fold_through(&set_back), Some(4));
    }
}
