//! How many requests there are, and how much of their time has passed, counted by the requests themselves without a lock.
//!
//! The time that requests took until now, all together, is the sum over those that ended of (end − start), and over the others
//! of (now − start): now × how many there are, plus all ends, minus all starts. So two numbers are all that is to be kept,
//! and they are kept in one word, so that they always fit each other. Between two readings the difference is how
//! many requests there were on average, times the time between: exactly, whatever they did in between.
//!
//! ```text
//!   word:  | ends − starts, in ms (40 bits, goes round) | how many (24 bits) |
//!   begin: one more, − now      end: one less, + now
//! ```
//!
//! It goes round at 2^40 ms of requests' time: 30,000 requests for ten hours. Whoever reads it does so more often than that.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use tokio::sync::Notify;

use crate::runtime::Runtime;

/// How many bits of the word count requests.
const COUNT: u32 = 24;
/// How many are left for their time.
const TIME: u32 = 64 - COUNT;

/// What all instances of an endpoint have, and what waits for one.
#[derive(Debug)]
pub(in crate::members) struct Occupancy {
    runtime: Runtime,
    in_flight: Accrued,
    waiting: Accrued,
    /// From and to: as long as so many are in flight nobody is told.
    low: AtomicUsize,
    high: AtomicUsize,
    /// Whether somebody is to be told.
    armed: AtomicBool,
    told: Notify,
}

/// Requests and their time.
#[derive(Debug, Default)]
struct Accrued(AtomicU64);

/// What there was at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    /// In milliseconds.
    at: u64,
    in_flight: (usize, u64),
    waiting: (usize, u64),
}

impl Occupancy {
    pub(super) fn new(runtime: Runtime) -> Self {
        Self {
            runtime,
            in_flight: Accrued::default(),
            waiting: Accrued::default(),
            low: AtomicUsize::new(0),
            high: AtomicUsize::new(usize::MAX),
            armed: AtomicBool::new(false),
            told: Notify::new(),
        }
    }

    /// An instance has one more.
    pub(in crate::members) fn begin(&self) {
        let before = self.in_flight.begin(self.now());
        if before + 1 > self.high.load(SeqCst) {
            self.tell();
        }
    }

    /// An instance has one less.
    pub(in crate::members) fn end(&self) {
        let before = self.in_flight.end(self.now());
        if before <= self.low.load(SeqCst) {
            self.tell();
        }
    }

    /// One more waits. The first one is news.
    pub(in crate::members) fn wait(&self) {
        if self.waiting.begin(self.now()) == 0 {
            self.tell();
        }
    }

    /// One less waits. The last one is news.
    pub(in crate::members) fn wait_no_more(&self) {
        if self.waiting.end(self.now()) == 1 {
            self.tell();
        }
    }

    /// What there is, and was until now.
    pub(super) fn read(&self, now: Duration) -> Reading {
        let at = millis(now);
        Reading { at, in_flight: self.in_flight.read(at), waiting: self.waiting.read(at) }
    }

    /// Until requests told something. Once for each [`arm`](Self::arm), at most.
    pub(super) async fn signalled(&self) {
        self.told.notified().await;
    }

    /// Has the first request tell that makes it fewer or more in flight than that, or changes whether any wait. Whether all of
    /// that is so: else nobody is going to tell.
    pub(super) fn arm(&self, (low, high): (usize, usize), waiting: bool) -> bool {
        self.low.store(low, SeqCst);
        self.high.store(high, SeqCst);
        self.armed.store(true, SeqCst);
        // After that: a request that was counted before it was armed is seen here.
        let is_within = (low..=high).contains(&self.in_flight.count());
        let holds = is_within && (self.waiting.count() > 0) == waiting;
        if !holds {
            self.armed.store(false, SeqCst);
        }
        holds
    }

    /// Has nobody tell. Whether nobody did since it was armed.
    pub(super) fn disarm(&self) -> bool {
        self.armed.swap(false, SeqCst)
    }

    fn tell(&self) {
        // Mostly somebody did already, and it is then only read.
        if self.armed.load(SeqCst) && self.armed.swap(false, SeqCst) {
            self.told.notify_one();
        }
    }

    fn now(&self) -> u64 {
        millis(self.runtime.now())
    }
}

impl Accrued {
    /// One more. How many there were.
    fn begin(&self, now: u64) -> usize {
        count(self.0.fetch_add(1_u64.wrapping_sub(now << COUNT), SeqCst))
    }

    /// One less. How many there were.
    fn end(&self, now: u64) -> usize {
        count(self.0.fetch_add((now << COUNT).wrapping_sub(1), SeqCst))
    }

    fn count(&self) -> usize {
        count(self.0.load(SeqCst))
    }

    /// How many there are, and the time that they took, which goes round.
    fn read(&self, now: u64) -> (usize, u64) {
        let word = self.0.load(SeqCst);
        let count = count(word);
        (count, now.wrapping_mul(count as u64).wrapping_add(word >> COUNT))
    }
}

impl Reading {
    /// How many are in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.0
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.0
    }

    /// How many there were in flight and waiting on average since an earlier reading. `None`: no time has passed since.
    pub(super) fn averages_since(&self, earlier: &Self) -> Option<(f64, f64)> {
        let passed = self.at.checked_sub(earlier.at).filter(|passed| *passed > 0)?;
        let average = |(_, until): (usize, u64), (_, before): (usize, u64)| {
            let taken = until.wrapping_sub(before) << COUNT >> COUNT;
            // A request that looked at the clock before the reading and was counted after it may make it less than none.
            if taken >> (TIME - 1) == 0 { float(taken) / float(passed) } else { 0.0 }
        };
        Some((average(self.in_flight, earlier.in_flight), average(self.waiting, earlier.waiting)))
    }
}

#[allow(clippy::cast_possible_truncation)] // 24 bits
fn count(word: u64) -> usize {
    (word << TIME >> TIME) as usize
}

#[allow(clippy::cast_possible_truncation)] // half a billion years
fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

/// Exact enough beyond 2^52 too.
#[allow(clippy::cast_precision_loss)]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    use super::*;
    use crate::members::aperture::tests::Hand;

    fn occupancy() -> (Occupancy, Hand) {
        let hand = Hand::default();
        (Occupancy::new(hand.runtime()), hand)
    }

    fn read(occupancy: &Occupancy) -> Reading {
        occupancy.read(occupancy.runtime.now())
    }

    proptest::proptest! {
        /// Against a count that is looked at every millisecond.
        #[test]
        fn the_average_is_that_of_a_count_looked_at_every_moment(
            start in 0_u64..1 << 43,
            steps in proptest::collection::vec((0_u64..5, -3_i32..4), 1..200),
        ) {
            let (occupancy, hand) = occupancy();
            hand.set(Duration::from_millis(start));
            let (mut there, mut area, mut before, mut since) = (0_u64, 0, read(&occupancy), start);
            for (passes, change) in steps {
                area += passes * there;
                hand.pass(Duration::from_millis(passes));
                for _ in 0..change {
                    occupancy.begin();
                    there += 1;
                }
                for _ in 0..(-change).min(i32::try_from(there).unwrap_or(0)) {
                    occupancy.end();
                    there -= 1;
                }
                let (now, at) = (read(&occupancy), millis(occupancy.runtime.now()));
                proptest::prop_assert_eq!(now.in_flight() as u64, there);
                match now.averages_since(&before) {
                    None => proptest::prop_assert_eq!(at, since),
                    // Readings are now and then left out.
                    Some(_) if at % 3 == 0 => {}
                    Some((average, waiting)) => {
                        proptest::prop_assert_eq!((average, waiting), (float(area) / float(at - since), 0.0));
                        (before, since, area) = (now, at, 0);
                    }
                }
            }
        }
    }

    #[test]
    fn one_that_looked_at_the_clock_before_a_reading_and_was_counted_after_it_counts_for_nothing() {
        let (occupancy, hand) = occupancy();
        occupancy.begin();
        hand.set(Duration::from_millis(10));
        let before = read(&occupancy);
        occupancy.in_flight.end(7);
        hand.set(Duration::from_millis(11));
        assert_eq!(read(&occupancy).averages_since(&before), Some((0.0, 0.0)));
    }

    #[tokio::test]
    async fn requests_tell_once_that_the_window_was_left_and_not_again_until_it_is_armed() {
        let (occupancy, _) = occupancy();
        let told = || {
            let mut cx = Context::from_waker(Waker::noop());
            pin!(occupancy.signalled()).poll(&mut cx).is_ready()
        };
        occupancy.begin();
        assert!(!told(), "not armed");
        assert!(occupancy.arm((1, 3), false));
        occupancy.begin();
        occupancy.begin();
        occupancy.end();
        occupancy.end();
        assert!(!told(), "1 to 3");
        occupancy.end();
        assert!(told(), "none is too few");
        for _ in 0..100 {
            occupancy.begin();
        }
        assert!(!told() && !occupancy.disarm(), "once");
        assert!(!occupancy.arm((0, 99), false), "left before it was armed");
        assert!(occupancy.arm((0, 100), false));
        occupancy.begin();
        assert!(told(), "too many");
        assert!(occupancy.arm((0, 101), false));
        occupancy.wait();
        assert!(told(), "the first that waits");
        assert!(!occupancy.arm((0, 101), false) && occupancy.arm((0, 101), true));
        occupancy.wait();
        occupancy.wait_no_more();
        assert!(!told(), "one waits still");
        occupancy.wait_no_more();
        assert!(told(), "nobody waits");
    }

    #[test]
    fn on_many_threads_the_count_ends_at_nothing_and_no_leaving_is_missed() {
        let (occupancy, _) = occupancy();
        for _ in 0..200 {
            std::thread::scope(|scope| {
                let armed = scope.spawn(|| occupancy.arm((0, 3), false));
                for _ in 0..4 {
                    scope.spawn(|| occupancy.begin());
                }
                // Either whoever arms it sees all four, or the fourth sees that it is armed.
                let _ = armed.join().expect("no panic");
            });
            assert!(!occupancy.disarm(), "somebody has seen it");
            (0..4).for_each(|_| occupancy.end());
        }
        assert_eq!((occupancy.in_flight.count(), occupancy.waiting.count()), (0, 0));
    }
}
