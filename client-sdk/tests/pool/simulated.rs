//! What the simulation of `docs/pool.md` shows, in short: steady mode settles and stays, meets a step, and holds what is
//! needed.

use std::time::Duration;

use crate::simulation::{Kind, Mode, Scenario, near, number, run};

/// After that what is counted begins.
const SETTLED: Duration = Duration::from_mins(5);

#[test]
fn under_steady_demand_it_settles_and_stays_and_holds_what_is_needed() {
    let callers = [1, 2, 3, 5, 7, 9].map(|k| (Kind::Callers, k));
    let arrivals = [1, 2, 3, 5, 8].map(|k| (Kind::Arrivals, k));
    for (kind, k) in callers.into_iter().chain(arrivals) {
        let scenario = Scenario::steady(kind, f64::from(k), 30_000);
        let run = run(Mode::Steady, &scenario, 3);
        let (fewest, most) = run.services_after(SETTLED);
        let k = usize::try_from(k).unwrap();
        let changes = run.changes_in_10_000();
        if kind == Kind::Callers {
            assert_eq!((fewest, most, changes.to_bits()), (k + 1, k + 1, 0), "{k} callers");
            continue;
        }
        let held = run.share_within(SETTLED, k.saturating_sub(1)..=k + 1);
        assert!(held >= 0.95 && most <= k + 2, "{k}: {held} of the time, {fewest} to {most}");
        assert!(changes <= 1.0, "{k}: {changes} changes in 10,000 requests");
    }
}

/// Coming down from more is what took longest, and ended one too high.
#[test]
fn callers_for_k_hold_k_or_one_more_when_they_came_down_from_more() {
    for k in [6.0, 7.0, 8.0] {
        let scenario = Scenario::step(Kind::Callers, 9.0, k);
        let run = run(Mode::Steady, &scenario, 3);
        assert_eq!(run.services_after(Duration::from_mins(1)).1, 10, "before the step");
        let (fewest, most) = run.services_after(SETTLED);
        assert!(number(fewest) >= k && number(most) <= k + 1.0, "{k} callers: {fewest} to {most}");
    }
}

#[test]
fn at_the_edge_between_two_and_three_it_settles_and_stays() {
    let scenario = Scenario::steady(Kind::Arrivals, 2.5, 40_000);
    let run = run(Mode::Steady, &scenario, 3);
    assert!(run.changes_in_10_000() <= 1.0, "{}", run.changes_in_10_000());
    let (fewest, most) = run.services_after(SETTLED);
    assert!(fewest >= 2 && most <= 4, "{fewest} to {most}");
}

#[test]
fn a_step_is_met_within_the_stated_time() {
    let at = Duration::from_mins(2);
    for kind in [Kind::Callers, Kind::Arrivals] {
        let up = run(Mode::Steady, &Scenario::step(kind, 1.0, 5.0), 3);
        let met = up.met_after(at, |services| services >= 5).expect("met");
        assert!(met <= Duration::from_secs(15), "{kind:?} up after {met:?}");
        let down = run(Mode::Steady, &Scenario::step(kind, 5.0, 1.0), 3);
        let met = down.met_after(at, |services| services <= 2).expect("met");
        assert!(met <= Duration::from_mins(3), "{kind:?} down after {met:?}");
    }
}

#[test]
fn give_or_take_one_is_meant_of_what_is_needed() {
    assert_eq!([near(1.0), near(2.0), near(2.5)], [0..=2, 1..=3, 2..=4]);
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let scenario = Scenario::step(Kind::Arrivals, 1.0, 3.0);
    for mode in [Mode::Steady, Mode::Classic] {
        assert!(run(mode, &scenario, 9) == run(mode, &scenario, 9), "{mode:?}");
        assert!(run(mode, &scenario, 9) != run(mode, &scenario, 10), "{mode:?}");
    }
}

#[test]
fn the_plot_is_of_both_modes() {
    let scenario = Scenario { end: Duration::from_secs(20), ..Scenario::story() };
    let runs = [Mode::Steady, Mode::Classic].map(|mode| (mode, run(mode, &scenario, 3)));
    let svg = crate::plot::svg(&scenario, &runs);
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert_eq!(svg.matches("stroke-width=\"1.4\"").count(), 6, "three lines for each");
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
}
