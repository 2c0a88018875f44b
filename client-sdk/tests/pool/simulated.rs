//! What the simulation of `docs/pool.md` shows, in short: steady mode settles and stays, meets a step, and holds what is
//! needed.

use std::time::Duration;

use crate::simulation::{Kind, Mode, Scenario, run};

/// After that what is counted begins.
const SETTLED: Duration = Duration::from_mins(5);

#[test]
fn under_steady_demand_it_settles_and_stays_and_holds_what_is_needed() {
    for (kind, k) in [(Kind::Callers, 1), (Kind::Callers, 2), (Kind::Callers, 3), (Kind::Callers, 5)]
        .into_iter()
        .chain([1, 2, 3, 5].map(|k| (Kind::Arrivals, k)))
    {
        let scenario = Scenario::steady(kind, f64::from(k), 30_000);
        let run = run(Mode::Steady, &scenario, 3);
        let (fewest, most) = run.services_after(SETTLED);
        let k = usize::try_from(k).unwrap();
        // Arrivals come in bursts, and one may be met by one more for a while.
        let held = run.share_within(SETTLED, k.saturating_sub(1)..=k + 1);
        let least = if kind == Kind::Callers { 1.0 } else { 0.8 };
        assert!(held >= least && most <= k + 2, "{kind:?} {k}: {held} of the time, {fewest} to {most}");
        let changes = run.changes_in_10_000();
        assert!(changes <= 1.0, "{kind:?} {k}: {changes} changes in 10,000 requests");
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
