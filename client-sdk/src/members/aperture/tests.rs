//! The decision over simulated requests: arrivals and service times are drawn at random, the clock jumps from one to the next, and
//! whoever looks is told and timed as the driver is.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    pin::pin,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    task::{Context, Waker},
};

use super::*;
use crate::{
    model::Endpoint,
    runtime::{Clock, TokioConnect, TokioSpawn},
};

/// A clock that is set by hand, in microseconds.
#[derive(Clone, Default)]
pub(super) struct Hand(Arc<AtomicU64>);

impl Clock for Hand {
    fn now(&self) -> Duration {
        Duration::from_micros(self.0.load(SeqCst))
    }
}

impl Hand {
    pub(super) fn runtime(&self) -> Runtime {
        Runtime::new(self.clone(), TokioConnect, TokioSpawn, 1)
    }

    pub(super) fn pass(&self, time: Duration) {
        self.set(self.now() + time);
    }

    pub(super) fn set(&self, now: Duration) {
        self.0.store(u64::try_from(now.as_micros()).expect("in time"), SeqCst);
    }
}

/// Instances enough, connected at once, and requests.
struct Sim {
    hand: Hand,
    rng: fastrand::Rng,
    ahead: Ahead,
    control: Control,
    available: usize,
    ends: BinaryHeap<Reverse<Duration>>,
    looks: usize,
    requests: usize,
    changes: Vec<SizeChange>,
}

/// With the defaults but for the least.
fn aperture(min: usize) -> Aperture {
    Aperture::builder().min(min).build().expect("in range")
}

fn secs(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

impl Sim {
    fn new(aperture: Aperture, available: usize, seed: u64) -> Self {
        let hand = Hand::default();
        hand.set(Duration::from_secs(100));
        let settings = Settings { aperture: Some(aperture), ..Settings::default() };
        let ahead = Ahead::new(&settings, true, &hand.runtime());
        let board = ahead.board.clone().expect("set");
        let meters = Arc::new(Meters::new(&Endpoint::new("x")));
        let control = Control::of(board, meters, "x".to_owned());
        let rng = fastrand::Rng::with_seed(seed);
        let (ends, changes) = (BinaryHeap::new(), Vec::new());
        let mut sim = Self { hand, rng, ahead, control, available, ends, looks: 0, requests: 0, changes };
        sim.look();
        sim
    }

    fn look(&mut self) {
        self.looks += 1;
        let before = self.control.size();
        let size = self.control.look(self.hand.now(), self.available);
        self.control.connected(size.min(self.available));
        if size != before {
            self.changes.push(self.control.state.last.expect("it changed"));
        }
    }

    /// Looks if it was told to.
    fn heed(&mut self) {
        let board = Arc::clone(&self.control.board);
        let told = pin!(board.occupancy.signalled()).poll(&mut Context::from_waker(Waker::noop())).is_ready();
        if told {
            self.look();
        }
    }

    /// Lets time pass until then, looking when it is time to.
    fn reach(&mut self, then: Duration) {
        loop {
            let end = self.ends.peek().map(|end| end.0).filter(|end| *end <= then);
            let next = self.control.deadline().min(end.unwrap_or(then)).max(self.hand.now());
            if next >= then && end.is_none() {
                self.hand.set(then);
                return;
            }
            self.hand.set(next);
            if self.control.deadline() <= next {
                self.look();
            } else {
                self.ends.pop();
                self.ahead.occupancy().expect("set").end();
                self.heed();
            }
        }
    }

    fn begin(&mut self, takes: Duration) {
        self.requests += 1;
        self.ahead.occupancy().expect("set").begin();
        self.ends.push(Reverse(self.hand.now() + takes));
        self.heed();
    }

    /// So many requests a second arrive at random for so long, and take so long on average.
    fn traffic(&mut self, rate: f64, takes: f64, lasts: Duration) {
        let until = self.hand.now() + lasts;
        loop {
            let next = self.hand.now() + self.draw(1.0 / rate);
            if next >= until {
                return self.reach(until);
            }
            self.reach(next);
            let takes = self.draw(takes);
            self.begin(takes);
        }
    }

    fn draw(&mut self, mean: f64) -> Duration {
        secs(-(1.0 - self.rng.f64()).ln() * mean)
    }

    fn estimate(&self) -> f64 {
        self.ahead.snapshot().expect("set").estimate
    }
}

#[test]
fn steady_demand_settles_and_stays() {
    for seed in 0..2 {
        for demand in [0.3, 1.0, 1.8, 2.65, 4.5, 7.2] {
            let mut sim = Sim::new(aperture(1), 100, seed);
            // Each takes 100 ms, and ten are an instance's worth.
            let rate = demand * 10.0 / 0.1;
            // Until it has settled.
            sim.traffic(rate, 0.1, Duration::from_mins(6));
            sim.changes.clear();
            (sim.requests, sim.looks) = (0, 0);
            sim.traffic(rate, 0.1, secs((30_000.0 / rate).max(120.0)));
            let (changes, requests) = (sim.changes.len(), sim.requests);
            assert!(changes * 10_000 <= requests, "{demand}: {changes} in {requests}: {:?}", sim.changes);
            let size = number(sim.control.size());
            assert!(demand <= size && size <= (demand + 0.1).ceil() + 1.0, "{size} for {demand}");
        }
    }
}

#[test]
fn after_a_step_in_the_demand_a_twentieth_of_it_is_missing_after_three_time_constants_and_nothing_after_four()
{
    for seed in 0..10 {
        let mut sim = Sim::new(aperture(1), 100, seed);
        sim.traffic(100.0, 0.05, Duration::from_mins(2));
        let mut before = 0.5;
        for demand in [4.0, 20.0, 60.0] {
            let then = Duration::from_secs(6);
            sim.traffic(demand * 10.0 / 0.05, 0.05, then);
            let met = sim.control.size();
            sim.traffic(demand * 10.0 / 0.05, 0.05, then / 3);
            let size = sim.control.size();
            let missing: f64 = (demand - before) / 20.0;
            assert!(number(met) >= demand - missing.ceil(), "{met} for {demand}");
            assert!(number(size) >= demand, "{size} for {demand}");
            before = demand;
        }
    }
}

#[test]
fn each_change_has_the_estimate_that_led_to_it() {
    let mut sim = Sim::new(aperture(1), 100, 1);
    sim.traffic(800.0, 0.05, Duration::from_secs(10));
    sim.reach(sim.hand.now() + Duration::from_mins(10));
    assert_eq!(sim.ahead.snapshot().expect("set").last, sim.changes.last().copied());
    for change @ SizeChange { from, to, estimate, .. } in &sim.changes {
        let asked_for = if to > from { number(*from) - 0.1 } else { number(*from) - 1.25 };
        assert!((to > from) == (*estimate > asked_for), "{change:?}");
    }
    assert!(sim.changes.iter().any(|it| it.to > it.from) && sim.changes.iter().any(|it| it.to < it.from));
}

#[test]
fn what_is_not_needed_any_more_goes_one_by_one_and_not_below_the_least() {
    let mut sim = Sim::new(aperture(3), 100, 1);
    sim.traffic(2_000.0, 0.05, Duration::from_mins(1));
    let top = sim.control.size();
    assert!((11..=14).contains(&top), "{top}");
    (sim.looks, sim.requests) = (0, 0);
    sim.changes.clear();
    let since = sim.hand.now();
    sim.reach(since + Duration::from_mins(30));
    assert_eq!(sim.control.size(), 3);
    assert!(sim.changes.iter().all(|change| change.to + 1 == change.from), "{:?}", sim.changes);
    let apart = sim.changes.windows(2).map(|two| two[1].at.saturating_sub(two[0].at));
    assert!(apart.clone().all(|apart| apart >= Duration::from_secs(30)), "{:?}", sim.changes);
    let last = sim.changes.last().expect("some").at.saturating_sub(since);
    assert!(last <= Duration::from_mins(6), "{last:?}: {:?}", sim.changes);
    // Two for each that goes, some on the way down, and one an hour.
    assert!(sim.looks <= 4 * top, "{} looks", sim.looks);
    let before = sim.looks;
    sim.reach(since + Duration::from_hours(30));
    assert!(sim.looks - before <= 31, "nothing to do: {} looks", sim.looks - before);
}

/// A threshold of 9 and a demand that is now above and now below it, every other millisecond.
#[test]
fn how_often_it_looks_does_not_depend_on_how_many_requests_there_are() {
    let mut sim = Sim::new(aperture(1), 100, 1);
    let smoothing = Duration::from_secs(2);
    for _ in 0..8 {
        sim.begin(Duration::from_hours(1));
    }
    sim.reach(sim.hand.now() + 10 * smoothing);
    sim.looks = 0;
    let until = sim.hand.now() + 50 * smoothing;
    while sim.hand.now() < until {
        sim.begin(Duration::from_micros(500));
        sim.begin(Duration::from_micros(500));
        sim.reach(sim.hand.now() + Duration::from_millis(2));
    }
    assert_eq!((sim.control.size(), sim.changes.len()), (1, 0), "8.5 on average");
    assert!(sim.looks <= 50 * 17, "{} looks in 50 time constants, 100,000 requests", sim.looks);

    // Within the window nobody looks at all, however many come and go.
    let mut sim = Sim::new(aperture(1), 100, 1);
    sim.looks = 0;
    for _ in 0..100_000 {
        sim.begin(Duration::from_millis(1));
        sim.reach(sim.hand.now() + Duration::from_millis(2));
    }
    assert_eq!((sim.looks, sim.changes.len()), (0, 0), "200 s");
}

/// Whoever looks when something begins sees more than there is on average.
#[test]
fn what_it_finds_is_the_average_whenever_it_looks() {
    let mut sim = Sim::new(aperture(1), 100, 1);
    let until = sim.hand.now() + Duration::from_mins(2);
    while sim.hand.now() < until {
        for _ in 0..50 {
            sim.begin(Duration::from_millis(10));
        }
        sim.reach(sim.hand.now() + Duration::from_millis(100));
    }
    let estimate = sim.estimate();
    assert!((0.45..0.55).contains(&estimate), "{estimate}: 50 requests for a tenth of the time");
    assert_eq!((sim.control.size(), sim.changes.len()), (1, 0));
    assert!(sim.looks > 100, "it did look");
}

#[test]
fn it_is_no_wider_than_there_are_instances_and_widens_at_once_when_there_are_more() {
    let mut sim = Sim::new(aperture(2), 4, 1);
    sim.traffic(2_000.0, 0.05, Duration::from_mins(1));
    assert_eq!(sim.control.size(), 4);
    let snapshot = sim.ahead.snapshot().expect("set");
    assert_eq!((snapshot.available, snapshot.min, snapshot.max, snapshot.target), (4, 2, 100, 10));
    sim.available = 1;
    sim.look();
    assert_eq!(sim.control.size(), 1, "even fewer than the least");
    sim.available = 0;
    sim.look();
    assert_eq!(sim.control.size(), 1, "nobody is there");
    sim.available = 50;
    sim.look();
    assert!((11..=14).contains(&sim.control.size()), "{}", sim.control.size());
    assert_eq!(sim.ahead.size(), sim.control.size(), "as everybody sees");
}

#[test]
fn while_requests_wait_those_that_are_connected_count_as_full_and_a_backlog_is_not_taken_for_demand() {
    let mut sim = Sim::new(aperture(2), 100, 1);
    // They take one at a time, and were said to take ten.
    sim.begin(Duration::from_hours(1));
    sim.begin(Duration::from_hours(1));
    let board = Arc::clone(&sim.control.board);
    for _ in 0..1000 {
        board.occupancy.wait();
    }
    sim.heed();
    sim.reach(sim.hand.now() + Duration::from_secs(6));
    let grown = sim.control.size();
    assert!((3..=10).contains(&grown), "{grown}");
    for _ in 0..1000 {
        board.occupancy.wait_no_more();
    }
    sim.heed();
    sim.reach(sim.hand.now() + Duration::from_secs(20));
    assert_eq!(sim.control.size(), grown, "and it stays while it is to be");
    assert!(sim.estimate() < 0.3, "{}", sim.estimate());
}

#[test]
fn settings_out_of_range_are_refused_with_a_typed_error() {
    use crate::sizing::SettingsError;
    let error = |builder: ApertureBuilder| builder.build().expect_err("out of range");
    assert_eq!(error(Aperture::builder().target(0)), SettingsError::Zero { setting: "target" });
    assert_eq!(error(Aperture::builder().min(0)), SettingsError::Zero { setting: "min" });
    assert!(matches!(error(Aperture::builder().min(5).max(4)), SettingsError::Order { .. }));
    assert!(matches!(error(Aperture::builder().headroom(0.0)), SettingsError::TooSmall { .. }));
    assert!(matches!(error(Aperture::builder().idle_members(1.0)), SettingsError::TooSmall { .. }));
    assert!(matches!(error(Aperture::builder().idle_time(Duration::ZERO)), SettingsError::NoTime { .. }));
    assert!(matches!(error(Aperture::builder().smoothing(Duration::ZERO)), SettingsError::NoTime { .. }));
    let aperture = Aperture::builder().min(3).max(7).target(4).cool_down(Duration::ZERO).build();
    let again = ApertureBuilder::from(aperture.clone().expect("in range")).build();
    assert_eq!(again, aperture);
}
