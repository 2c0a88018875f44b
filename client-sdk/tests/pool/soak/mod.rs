//! Many requests, with failures and cancellations of every kind: most are served, each ends once, and the counts end as they
//! should.
//!
//! Each soak makes some ten thousands of requests; as many as `POOL_SOAK_REQUESTS` says, if that is set.

mod classic;
mod registered;
mod steady;

use std::{ops::Add, time::Duration};

/// Each asks again as soon as its last request has ended.
const CALLERS: usize = 40;
/// After each the pool is left alone.
const ROUNDS: usize = 10;

/// How requests ended.
#[derive(Clone, Copy, Debug, Default)]
struct Ended {
    answered: usize,
    /// The service failed them, as it was asked to.
    failed: usize,
    /// No service was there for them.
    unserved: usize,
    /// Their callers went away.
    given_up: usize,
}

impl Ended {
    const ANSWERED: Self = Self { answered: 1, failed: 0, unserved: 0, given_up: 0 };
    const FAILED: Self = Self { answered: 0, failed: 1, unserved: 0, given_up: 0 };
    const UNSERVED: Self = Self { answered: 0, failed: 0, unserved: 1, given_up: 0 };
    const GIVEN_UP: Self = Self { answered: 0, failed: 0, unserved: 0, given_up: 1 };

    /// Each once, most well, and many not.
    fn check(self, requests: usize) {
        assert_eq!(
            self.answered + self.failed + self.unserved + self.given_up,
            requests,
            "each ended once: {self:?}"
        );
        assert!(self.answered * 100 >= requests * 75, "most are served: {self:?}");
        assert!(self.failed * 100 >= requests * 3 && self.given_up * 100 >= requests * 3, "{self:?}");
        assert!(self.unserved * 100 <= requests * 10, "{self:?}");
    }
}

impl Add for Ended {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            answered: self.answered + other.answered,
            failed: self.failed + other.failed,
            unserved: self.unserved + other.unserved,
            given_up: self.given_up + other.given_up,
        }
    }
}

/// How many requests each caller makes in a round, and how many that are in all.
fn requests(usual: usize) -> (usize, usize) {
    let wanted = std::env::var("POOL_SOAK_REQUESTS").map_or(usual, |count| count.parse().expect("a number"));
    let each = wanted.div_ceil(CALLERS * ROUNDS);
    (each, each * CALLERS * ROUNDS)
}

/// The number of a caller's request: no other has it.
fn number(caller: u64, nth: usize, each: usize) -> usize {
    usize::try_from(caller).expect("few") * each + nth
}

/// One in ten has hardly any.
fn patience(rng: &mut fastrand::Rng) -> Duration {
    if rng.u32(..10) == 0 { Duration::from_millis(rng.u64(..10)) } else { Duration::from_mins(1) }
}

/// What comes of all callers.
async fn all(callers: impl IntoIterator<Item = tokio::task::JoinHandle<Ended>>) -> Ended {
    let mut ended = Ended::default();
    for caller in callers.into_iter().collect::<Vec<_>>() {
        ended = ended + caller.await.unwrap();
    }
    ended
}
