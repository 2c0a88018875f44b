//! Durations from the wire: whatever a registry sends, no arithmetic overflows.

use std::time::Duration;

/// The duration, if it is one: not negative, and with less than a second of nanoseconds.
pub(crate) fn from_wire(duration: prost_types::Duration) -> Option<Duration> {
    let seconds = u64::try_from(duration.seconds).ok()?;
    let nanos = u32::try_from(duration.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_at_the_ends_of_their_range_are_none_or_right() {
        let of = |seconds, nanos| from_wire(prost_types::Duration { seconds, nanos });
        assert_eq!(of(1, 500_000_000), Some(Duration::from_millis(1_500)));
        assert!(of(i64::MAX, 999_999_999).is_some());
        for (seconds, nanos) in [(i64::MIN, 0), (-1, 0), (0, -1), (i64::MIN, i32::MIN), (0, 1_000_000_000)] {
            assert_eq!(of(seconds, nanos), None);
        }
    }
}
