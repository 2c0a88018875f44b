//! How many instances may be ejected at once: what keeps outlier detection from taking a service down.

/// How many of the instances that take requests may be ejected, or be on probation: `percent` of them, rounded down, but always
/// one; and never the last. So a service of one instance keeps it, and one of two keeps one.
pub(super) fn most(eligible: usize, percent: u32) -> usize {
    let share = eligible.saturating_mul(percent as usize) / 100;
    share.max(1).min(eligible.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_but_always_one_and_never_the_last() {
        let tenth: Vec<_> = [0, 1, 2, 9, 10, 19, 20, 99, 100, 1000].map(|eligible| most(eligible, 10)).into();
        assert_eq!(tenth, [0, 0, 1, 1, 1, 1, 2, 9, 10, 100]);
        assert_eq!([1, 2, 10].map(|eligible| most(eligible, 100)), [0, 1, 9]);
        assert_eq!([1, 2, 10].map(|eligible| most(eligible, 0)), [0, 1, 1]);
        assert_eq!(most(20, 50), 10);
    }
}
