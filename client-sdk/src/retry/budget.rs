//! How many retries there may be: a share of the requests, and a few in any case.
//!
//! A token bucket as Finagle's `RetryBudget`: each request puts `ratio` of a token in, each retry takes one out, and what
//! was put in or taken out is forgotten after ten seconds. So within ten seconds there are never more retries than
//! `ratio` × the requests of these seconds + `floor` × 10: a fleet that is overloaded gets a tenth more of requests, not
//! three times as many, and nothing is saved up for longer. Owns no clock.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::RetriesError;
use crate::windowed::{WINDOW, Windowed};

/// The bucket. One for all clones of a channel; hedges take from it as retries do. What never left an instance's hands and
/// goes to another is no retry and costs nothing.
///
/// ```
/// use std::time::Duration;
/// use client_sdk::retry::RetryBudget;
/// let (budget, now) = (RetryBudget::new(0.1, 0)?, Duration::ZERO);
/// for _ in 0..10 {
///     budget.request(now);
/// }
/// assert!(budget.try_spend(now) && !budget.try_spend(now), "one retry for ten requests");
/// # Ok::<(), client_sdk::retry::RetriesError>(())
/// ```
#[derive(Debug)]
pub struct RetryBudget {
    ratio: f64,
    floor: u32,
    requests: Windowed,
    /// Locked only to look and take in one; retries are few.
    retries: Mutex<Windowed>,
}

impl RetryBudget {
    /// A retry for each `1 / ratio` requests (0 to 10), and `floor` a second besides (0 to 1,000,000).
    pub fn new(ratio: f64, floor: u32) -> Result<Self, RetriesError> {
        if !(0.0..=10.0).contains(&ratio) {
            return Err(RetriesError::Ratio { ratio });
        }
        if floor > 1_000_000 {
            return Err(RetriesError::Floor { floor });
        }
        Ok(Self { ratio, floor, requests: Windowed::default(), retries: Mutex::default() })
    }

    /// A request is made, whatever becomes of it. Not to be called for its retries. `now`: of one clock, always the same.
    pub fn request(&self, now: Duration) {
        self.requests.add(now);
    }

    /// Whether there is a retry in it right now.
    pub fn has_room(&self, now: Duration) -> bool {
        let retries = self.retries.lock().unwrap_or_else(PoisonError::into_inner);
        self.allows(&retries, now)
    }

    /// Takes one retry out, if there is one.
    pub fn try_spend(&self, now: Duration) -> bool {
        let retries = self.retries.lock().unwrap_or_else(PoisonError::into_inner);
        let allows = self.allows(&retries, now);
        if allows {
            retries.add(now);
        }
        allows
    }

    #[allow(clippy::cast_precision_loss)] // counts of ten seconds
    fn allows(&self, retries: &Windowed, now: Duration) -> bool {
        let allowed =
            self.ratio * self.requests.count(now) as f64 + f64::from(self.floor) * f64::from(WINDOW);
        // A hair's breadth, so that ten tenths are one.
        (retries.count(now) + 1) as f64 <= allowed + 1e-6
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn spend_all(budget: &RetryBudget, now: u64) -> u32 {
        let mut spent = 0;
        while budget.try_spend(ms(now)) {
            spent += 1;
        }
        spent
    }

    #[test]
    fn a_tenth_of_the_requests_and_the_floor() {
        let budget = RetryBudget::new(0.1, 10).expect("valid");
        assert_eq!(spend_all(&budget, 0), 100, "the floor of ten seconds");
        for _ in 0..1_000 {
            budget.request(ms(1_000));
        }
        assert_eq!(spend_all(&budget, 1_000), 100, "a tenth of a thousand");
        assert!(!budget.has_room(ms(9_999)));
        assert_eq!(spend_all(&budget, 10_000), 100, "what was spent in the first second is forgotten");
        assert_eq!(spend_all(&budget, 11_000), 0, "and the requests of the second one with their retries");
    }

    #[test]
    fn nothing_is_saved_up_for_longer_than_the_window() {
        let budget = RetryBudget::new(0.5, 0).expect("valid");
        for _ in 0..1_000 {
            budget.request(ms(0));
        }
        assert_eq!(spend_all(&budget, 10_000), 0);
        let floor_only = RetryBudget::new(0.0, 10).expect("valid");
        assert_eq!(spend_all(&floor_only, 3_600_000), 100, "an hour of silence is worth ten seconds");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for ratio in [-0.1, 10.1, f64::NAN, f64::INFINITY] {
            assert!(matches!(RetryBudget::new(ratio, 10), Err(RetriesError::Ratio { .. })), "{ratio}");
        }
        assert!(matches!(RetryBudget::new(0.1, 1_000_001), Err(RetriesError::Floor { .. })));
    }

    #[test]
    fn threads_do_not_overdraw_it() {
        let budget = RetryBudget::new(0.1, 1).expect("valid");
        for _ in 0..900 {
            budget.request(ms(0));
        }
        let spent: u32 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| spend_all(&budget, 1))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!(spent, 100);
    }

    proptest! {
        #[test]
        fn never_more_than_the_share_of_any_ten_seconds(
            ratio in 0.0_f64..2.0,
            floor in 0_u32..5,
            mut events in proptest::collection::vec((0_u64..40_000, any::<bool>()), 0..400),
        ) {
            events.sort_unstable();
            let budget = RetryBudget::new(ratio, floor).expect("valid");
            let (mut requests, mut retries) = (Vec::new(), Vec::new());
            for (now, is_request) in events {
                let recent = |all: &[u64]| all.iter().filter(|then| now / 1_000 - **then / 1_000 < 10).count();
                #[allow(clippy::cast_precision_loss)]
                let allowed = ratio * recent(&requests) as f64 + f64::from(floor) * 10.0;
                #[allow(clippy::cast_precision_loss)]
                let expected = (recent(&retries) + 1) as f64 <= allowed + 1e-6;
                if is_request {
                    budget.request(ms(now));
                    requests.push(now);
                } else {
                    prop_assert_eq!(budget.has_room(ms(now)), expected);
                    prop_assert_eq!(budget.try_spend(ms(now)), expected);
                    if expected {
                        retries.push(now);
                    }
                }
            }
        }
    }
}
