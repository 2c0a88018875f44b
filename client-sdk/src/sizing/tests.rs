//! The decisions, by time alone.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

mod simulated;

const STEP: Duration = Duration::from_millis(100);

/// Members that take one request each, all of it pretended: made as told, gone as told.
struct Members {
    sizing: Sizing,
    now: Duration,
    ready: usize,
    /// When those in the making are ready.
    coming: Vec<Duration>,
    making: Duration,
    changes: usize,
}

impl Members {
    fn new(settings: SizingSettings) -> Self {
        let sizing = Sizing::new(settings, Duration::ZERO).expect("good settings");
        let making = Duration::from_millis(500);
        Self { sizing, now: Duration::ZERO, ready: 0, coming: Vec::new(), making, changes: 0 }
    }

    /// So many callers who each have one request in flight all the time, for this time, told every so often.
    fn run(&mut self, callers: usize, time: Duration, every: Duration) -> usize {
        let (until, before) = (self.now + time, self.changes);
        while self.now < until {
            self.now += every;
            self.ready += self.coming.iter().filter(|ready| **ready <= self.now).count();
            self.coming.retain(|ready| *ready > self.now);
            self.tell(callers);
        }
        self.changes - before
    }

    fn tell(&mut self, callers: usize) {
        loop {
            let served = callers.min(self.ready);
            let members = (0..self.ready).map(|nth| (usize::from(nth < served), false));
            let usage = Usage::of(1, members, self.coming.len(), callers - served);
            match self.sizing.observe(self.now, usage) {
                Decision::Hold => return,
                Decision::Grow { to } => {
                    assert!(to > usage.size(), "grows");
                    let more = to - usage.size();
                    self.coming.extend(std::iter::repeat_n(self.now + self.making, more));
                    self.changes += more;
                }
                Decision::Shrink => {
                    if self.coming.pop().is_none() {
                        self.ready -= 1;
                    }
                    self.changes += 1;
                }
            }
        }
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn demand_for_k_holds_k_or_one_more_from_below_and_from_above() {
    for k in (1..=9).chain([15, 20, 40]) {
        let top = if k < 10 { 10 } else { 2 * k };
        let mut members = Members::new(SizingSettings { max: top, ..SizingSettings::default() });
        members.run(k, seconds(60), STEP);
        assert!((k..=k + 1).contains(&members.ready), "{} for {k} from below", members.ready);
        assert_eq!(members.run(k, seconds(3600), STEP), 0, "it stays at {k}");
        members.run(top - 1, seconds(60), STEP);
        assert_eq!(members.ready, top);
        members.run(k, seconds(40) * u32::try_from(top - k).expect("few"), STEP);
        assert!((k..=k + 1).contains(&members.ready), "{} for {k} from above", members.ready);
        assert_eq!(members.run(k, seconds(3600), STEP), 0, "it stays at {k}");
    }
}

#[test]
fn steady_demand_for_two_does_not_cycle() {
    let mut members = Members::new(SizingSettings::default());
    members.run(2, seconds(60), STEP);
    assert_eq!(members.run(2, seconds(24 * 3600), seconds(1)), 0);
}

#[test]
fn those_in_the_making_are_counted_so_that_waiting_for_them_asks_for_no_more() {
    let mut members = Members::new(SizingSettings { max: 100, ..SizingSettings::default() });
    members.making = seconds(3600);
    members.run(1, seconds(10), STEP);
    assert_eq!((members.ready, members.coming.len()), (0, 2), "for the one who waits, and one ahead");
    members.run(50, seconds(600), STEP);
    assert_eq!((members.ready, members.coming.len()), (0, 2), "a backlog of 50 asks for no more meanwhile");
}

#[test]
fn how_often_it_is_told_makes_no_difference() {
    let run = |every| {
        let mut sizing = Sizing::new(SizingSettings::default(), Duration::ZERO).expect("good settings");
        let mut now = Duration::ZERO;
        let used = |in_flight| Usage::of(10, [(in_flight, false), (in_flight, false), (0, false)], 0, 0);
        for in_flight in [10, 2, 7] {
            let until = now + seconds(3);
            sizing.observe(now, used(in_flight));
            while now < until {
                now = (now + every).min(until);
                sizing.observe(now, used(in_flight));
            }
        }
        sizing.estimate_at(now)
    };
    let (rarely, often) = (run(seconds(3)), run(Duration::from_micros(500)));
    assert!((rarely - often).abs() < 1e-6, "{rarely} and {often}");
}

#[test]
fn it_shrinks_only_after_the_idle_time_outside_the_cool_down_one_at_a_time() {
    let settings = SizingSettings::default();
    let mut members = Members::new(settings);
    members.run(5, seconds(60), STEP);
    let grown = members.ready;
    let began = members.now;
    assert_eq!(members.run(0, settings.idle_time, STEP), 0, "not before the idle time");
    members.run(0, seconds(8), STEP);
    assert_eq!(members.ready, grown - 1);
    while members.ready > settings.min {
        let (before, at) = (members.ready, members.now);
        members.run(0, STEP, STEP);
        assert!(before - members.ready <= 1, "one at a time, at {at:?}");
    }
    assert!(
        members.now.saturating_sub(began)
            < (settings.idle_time + seconds(8)) * u32::try_from(grown).expect("few")
    );

    let mut cooling = Members::new(SizingSettings { cool_down: seconds(600), ..settings });
    cooling.run(5, seconds(10), STEP);
    assert_eq!(cooling.run(0, seconds(580), STEP), 0);
    assert!(cooling.run(0, seconds(60), STEP) > 0);
}

#[test]
fn a_shrink_that_had_to_be_taken_back_quadruples_the_idle_time() {
    let settings = SizingSettings::default();
    let mut members = Members::new(settings);
    let mut changes = Vec::new();
    for _ in 0..8 {
        members.run(3, seconds(120), STEP);
        changes.push(members.run(0, seconds(35), STEP));
    }
    assert!(changes[0] > 0 && changes[7] == 0, "it becomes patient: {changes:?}");
    assert_eq!(members.sizing.idle_time(), settings.idle_time * 4);
    members.run(0, seconds(3600), STEP);
    assert_eq!(members.ready, 1);
    assert_eq!(
        members.sizing.idle_time(),
        settings.idle_time,
        "shrinks that were right make it impatient again"
    );
}

#[test]
fn at_its_most_patient_it_still_comes_down() {
    let mut members = Members::new(SizingSettings::default());
    members.run(5, seconds(60), STEP);
    members.sizing.patience = MOST_PATIENT;
    members.run(1, seconds(31 * 60), STEP);
    assert_eq!(members.ready, 6, "64 idle times");
    members.run(1, seconds(49 * 60), STEP);
    assert_eq!(members.ready, 2, "within 80 minutes");
}

#[test]
fn a_member_that_is_lost_and_replaced_says_nothing_against_a_shrink() {
    let settings = SizingSettings::default();
    let mut members = Members::new(settings);
    members.run(3, seconds(60), STEP);
    assert_eq!(members.ready, 4);
    members.run(2, seconds(120), STEP);
    assert_eq!(members.ready, 3);
    for _ in 0..3 {
        members.ready -= 1;
        members.run(2, seconds(10), STEP);
        assert_eq!(members.ready, 3, "it is missed, and replaced");
        assert_eq!(members.sizing.idle_time(), settings.idle_time, "the shrink was right");
    }
    // More than there were after the shrink: now it was wrong.
    members.run(3, seconds(20), STEP);
    assert_eq!(members.ready, 4);
    assert_eq!(members.sizing.idle_time(), settings.idle_time * 4);
}

/// Members that were idle but for a moment are not needed; those that are in use now and again are.
#[test]
fn a_peak_that_passes_keeps_no_member_and_peaks_that_come_all_the_time_do() {
    let over_an_hour = |peak: u64, every: u64| {
        let mut members = Members::new(SizingSettings::default());
        members.run(4, seconds(60), STEP);
        assert_eq!(members.ready, 5);
        for _ in 0..3600 / every {
            members.run(4, seconds(peak), STEP);
            members.run(1, seconds(every - peak), STEP);
        }
        members
    };
    assert_eq!(over_an_hour(1, 50).ready, 2, "for one second in fifty four would be used");
    let busy = over_an_hour(3, 15);
    assert_eq!((busy.ready, busy.changes), (5, 5), "no change but those at the beginning");
}

#[test]
fn headroom_is_what_is_left_idle_at_least() {
    for headroom in [0.5, 1.0, 2.5] {
        let settings =
            SizingSettings { headroom, idle_members: headroom + 1.15, ..SizingSettings::default() };
        let mut members = Members::new(settings);
        members.run(3, seconds(60), STEP);
        let idle = number(members.ready) - 3.0;
        assert!(idle >= headroom && idle < headroom + 1.0, "{} with {headroom}", members.ready);
        assert_eq!(members.run(3, seconds(3600), STEP), 0, "it stays");
    }
}

#[test]
fn what_waits_counts_at_most_as_a_quarter_of_the_members_and_at_least_as_one() {
    let full = |ready, waiting| Usage::of(10, vec![(10, false); ready], 0, waiting).demand();
    assert!((full(1, 5) - 1.5).abs() < 1e-9);
    assert!((full(1, 5000) - 2.0).abs() < 1e-9);
    assert!((full(8, 5000) - 10.0).abs() < 1e-9);
    assert!((Usage::of(10, [], 0, 5).demand() - 0.5).abs() < 1e-9);
}

#[test]
fn a_member_that_says_that_it_is_busy_has_all_it_can_take() {
    // A limit that was set far too high: each takes one at a time, and says so.
    let usage = Usage::of(100, [(1, true), (1, true), (0, false)], 0, 0);
    assert!((usage.demand() - 2.0).abs() < 1e-9);
    let usage = Usage::of(100, [(1, true), (1, true)], 0, 1);
    assert!((usage.demand() - 3.0).abs() < 1e-9, "one that waits is worth one such member");
}

#[test]
fn settings_out_of_their_range_are_refused() {
    let good = SizingSettings::default();
    assert_eq!(good.check(), Ok(()));
    for (bad, message) in [
        (SizingSettings { min: 0, ..good }, "min is 0"),
        (SizingSettings { min: 11, ..good }, "min is 11, above max, which is 10"),
        (SizingSettings { headroom: 0.0, ..good }, "headroom is 0"),
        (SizingSettings { headroom: f64::INFINITY, ..good }, "headroom is inf"),
        (SizingSettings { headroom: f64::NAN, ..good }, "headroom is NaN"),
        (SizingSettings { idle_members: 1.0, ..good }, "idle_members is 1; give a number above 1.1"),
        (SizingSettings { headroom: 2.0, ..good }, "idle_members is 1.25; give a number above 3"),
        (SizingSettings { idle_members: f64::INFINITY, ..good }, "idle_members is inf"),
        (SizingSettings { idle_time: Duration::ZERO, ..good }, "idle_time takes no time"),
        (SizingSettings { smoothing: Duration::ZERO, ..good }, "smoothing takes no time"),
    ] {
        let problem = bad.check().expect_err(message).to_string();
        assert!(problem.starts_with(message), "{problem}");
    }
}

/// A demand that is beyond its threshold by no more than what a number is rounded by.
#[test]
fn a_demand_at_the_very_threshold_never_crosses_it() {
    stays_within_bounds(6_259_505_688_076_749_550, 1, 5, 2).expect("nothing is decided before it says so");
}

proptest! {
    /// Whatever is used, the size stays within its bounds, and nothing is decided between two looks.
    #[test]
    fn it_stays_within_bounds_and_looks_when_it_says(
        seed in any::<u64>(), min in 1_usize..4, more in 0_usize..8, limit in 1_usize..5,
    ) {
        stays_within_bounds(seed, min, more, limit)?;
    }
}

#[test]
fn what_turns_out_to_have_been_used_is_what_the_estimate_is_made_of() {
    let settings = SizingSettings::default();
    let mut told = Sizing::new(settings, Duration::ZERO).expect("in range");
    let mut revised = told;
    let usage = |used: f64| Usage::averaged(1, 0, used, 0.0);
    told.observe(Duration::ZERO, usage(0.5));
    // It looked at a moment that says nothing.
    revised.observe(Duration::ZERO, usage(0.0));
    revised.revise(usage(0.5));
    for sizing in [&mut told, &mut revised] {
        assert_eq!(sizing.observe(seconds(2), usage(0.0)), Decision::Hold);
    }
    assert_eq!(told, revised);
    assert!(told.estimate_at(seconds(2)) > 0.3);
}

#[test]
fn within_the_band_nothing_is_decided_and_beyond_it_something_is() {
    let settings = SizingSettings { max: 4, ..SizingSettings::default() };
    let mut sizing = Sizing::new(settings, Duration::ZERO).expect("in range");
    sizing.observe(Duration::ZERO, Usage::averaged(3, 0, 2.0, 0.0));
    let (from, to) = sizing.band();
    assert!((1.74..1.76).contains(&from) && (2.89..2.91).contains(&to), "{from} {to}");
    for (demand, decided) in
        [(from + 0.01, false), (to - 0.01, false), (from - 0.01, true), (to + 0.01, true)]
    {
        let mut sizing = sizing;
        let decisions = (1..600).map(|at| sizing.observe(seconds(at), Usage::averaged(3, 0, demand, 0.0)));
        assert_eq!(decisions.filter(|it| *it != Decision::Hold).count() > 0, decided, "{demand}");
    }
    sizing.set_bounds(3, 3);
    assert_eq!(sizing.band(), (0.0, f64::INFINITY));
    sizing.set_bounds(0, 0);
    assert_eq!(sizing.observe(seconds(1), Usage::averaged(0, 0, 0.0, 0.0)), Decision::Grow { to: 1 });
}

fn stays_within_bounds(seed: u64, min: usize, more: usize, limit: usize) -> Result<(), TestCaseError> {
    let settings = SizingSettings { min, max: min + more, ..SizingSettings::default() };
    let mut sizing = Sizing::new(settings, Duration::ZERO).expect("good settings");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut ready, mut coming, mut now) = (0, 0, Duration::ZERO);
    for _ in 0..200 {
        let waiting = if rng.bool() { 0 } else { rng.usize(..50) };
        let level = rng.usize(0..=limit);
        let usage = |ready, coming| Usage::of(limit, vec![(level, false); ready], coming, waiting);
        loop {
            match sizing.observe(now, usage(ready, coming)) {
                Decision::Hold => break,
                Decision::Grow { to } => {
                    prop_assert!(to > ready + coming && to <= settings.max);
                    coming = to - ready;
                }
                Decision::Shrink => {
                    prop_assert!(ready + coming > settings.min);
                    if coming > 0 { coming -= 1 } else { ready -= 1 }
                }
            }
        }
        // Nothing happens before it says so, however often it is asked.
        let silent = sizing.next_look().unwrap_or(now + seconds(100)).saturating_sub(now);
        // It says a millisecond too much.
        let silences = if silent < STEP { &[][..] } else { &[1, 50, 90] };
        for percent in silences {
            let decision = sizing.observe(now + silent * *percent / 100, usage(ready, coming));
            prop_assert_eq!(decision, Decision::Hold);
        }
        now += silent.mul_f64(2.0 * rng.f64()).max(silent * 9 / 10);
        if coming > 0 && rng.bool() {
            (ready, coming) = (ready + 1, coming - 1);
        }
    }
    Ok(())
}
