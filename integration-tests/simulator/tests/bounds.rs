//! What the policies and what stands around them are to achieve, held at a size that tests can afford.

use std::time::Duration;

use simulator::{
    contender::{Contender, Policy},
    plot,
    record::Record,
    report::{self, Results},
    run::run,
    scenario::{self, KEEPALIVE, ONSET, SERVERS, Scenario},
};

const SECONDS: Duration = Duration::from_secs(20);
const SEED: u64 = 7;

fn plain(scenario: &Scenario, policy: Policy) -> Record {
    run(scenario, Contender::plain(policy), SEED)
}

fn guarded(scenario: &Scenario, policy: Policy) -> Record {
    run(scenario, Contender::guarded(policy), SEED)
}

#[test]
fn policies_that_look_at_load_beat_round_robin_fivefold_where_two_of_twenty_are_slow() {
    let fleet = scenario::skewed(SECONDS);
    let p99 = |policy| plain(&fleet, policy).quantile(0.99);
    let turns = p99(Policy::RoundRobin);
    for policy in [Policy::LeastRequest, Policy::PeakEwma] {
        let took = p99(policy);
        assert!(took * 5 <= turns, "{}: {took:?}, round robin: {turns:?}", policy.name());
    }
}

#[test]
fn one_that_stalls_is_left_alone_by_policies_that_look_at_load() {
    let fleet = scenario::stalls(SECONDS * 2);
    let p99 = |policy| plain(&fleet, policy).quantile(0.99);
    let turns = p99(Policy::RoundRobin);
    for policy in [Policy::LeastRequest, Policy::PeakEwma] {
        let took = p99(policy);
        assert!(took * 3 <= turns, "{}: {took:?}, round robin: {turns:?}", policy.name());
    }
    assert_eq!(guarded(&fleet, Policy::LeastRequest).failed(), 0);
}

#[test]
fn a_failing_instance_costs_nothing_after_its_detection() {
    for fleet in [scenario::fails(SECONDS * 2), scenario::fails_fast(SECONDS * 2)] {
        for policy in [Policy::RoundRobin, Policy::LeastRequest, Policy::PeakEwma] {
            let (with, name) = (guarded(&fleet, policy), policy.name());
            // Five failures in a row take no second at this load.
            let detected = ONSET + Duration::from_secs(1);
            assert_eq!(with.failed_from(detected), 0, "{}, {name}", fleet.name);
            let before = with.quantile_between(0.99, Duration::ZERO, ONSET);
            let after = with.quantile_between(0.99, detected, fleet.length);
            assert!(after < before * 3 / 2, "{}, {name}: {before:?}, then {after:?}", fleet.name);
        }
        // The check can fail: without protection callers do see it.
        assert!(plain(&fleet, Policy::RoundRobin).failed() > 1000);
    }
}

#[test]
fn one_that_fails_fast_gets_less_than_a_hundredth_of_the_requests() {
    let fleet = scenario::fails_fast(SECONDS);
    for policy in [Policy::RoundRobin, Policy::LeastRequest, Policy::PeakEwma] {
        let share = guarded(&fleet, policy).to_bad().expect("one is bad");
        assert!(share < 0.01, "{}: {share}", policy.name());
    }
    // By its load alone it would look good.
    assert!(plain(&fleet, Policy::LeastRequest).to_bad().expect("one is bad") > 0.05);
}

#[test]
fn a_zone_that_is_cut_off_is_left_within_a_keepalive_and_the_others_are_not_overloaded() {
    let fleet = scenario::zone_cut(SECONDS);
    let near = Contender { zones: true, ..Contender::guarded(Policy::LeastRequest) };
    for contender in [Contender::guarded(Policy::LeastRequest), near] {
        let (record, name) = (run(&fleet, contender, SEED), contender.name());
        let noticed = ONSET + KEEPALIVE;
        let back = ONSET + Duration::from_secs(30);
        assert_eq!(record.failed_from(noticed + Duration::from_secs(2)), 0, "{name}");
        for second in
            record.seconds().iter().filter(|it| (noticed.as_secs() + 1..back.as_secs()).contains(&it.second))
        {
            assert!(second.to_bad < 0.001, "{name}: {second:?}");
        }
        // The rest could take it, and does: nobody queues for long.
        let p99 = record.quantile_between(0.99, noticed + Duration::from_secs(2), back);
        assert!(p99 < Duration::from_millis(200), "{name}: {p99:?}");
        // Four work at a time; a queue of ten times that would be half a second of work.
        let most = record.most_between(noticed + Duration::from_secs(2), back);
        assert!(most <= 40, "{name}: {most} requests at one server");
        // And they come back.
        let last = record.seconds().last().copied().expect("seconds");
        assert!(last.to_bad > 0.2, "{name}: {last:?}");
    }
}

#[test]
fn a_rolling_restart_fails_no_call() {
    let fleet = scenario::rolling_restart(SECONDS);
    for policy in [Policy::RoundRobin, Policy::LeastRequest, Policy::PeakEwma] {
        assert_eq!(plain(&fleet, policy).failed(), 0, "{}", policy.name());
    }
}

#[test]
fn slow_start_spares_callers_a_cold_instance() {
    let fleet = scenario::cold_start(SECONDS * 2);
    let cold =
        |slow_start| run(&fleet, Contender { slow_start, ..Contender::plain(Policy::LeastRequest) }, SEED);
    let (with, without) = (cold(true).quantile(0.999), cold(false).quantile(0.999));
    assert!(with < without, "{with:?} with it, {without:?} without");
    let turns =
        |slow_start| run(&fleet, Contender { slow_start, ..Contender::plain(Policy::RoundRobin) }, SEED);
    let (with, without) = (turns(true).failed(), turns(false).failed());
    assert!(with * 2 < without, "{with} failed with it, {without} without");
}

#[test]
fn a_hot_key_overloads_nobody_where_load_is_bounded() {
    let fleet = scenario::hot_key(SECONDS);
    for (bounded, not) in
        [(Policy::BoundedMaglev, Policy::Maglev), (Policy::BoundedRingHash, Policy::RingHash)]
    {
        let (bounded, not) = (plain(&fleet, bounded), plain(&fleet, not));
        assert_eq!(bounded.failed(), 0);
        assert!(bounded.max_to_mean() < 1.6, "{}", bounded.max_to_mean());
        assert!(not.failed() > 100 && not.max_to_mean() > 3.0, "{} {}", not.failed(), not.max_to_mean());
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let fleet = scenario::well("all are well", Duration::from_secs(3));
    let once = |seed| format!("{:?}", run(&fleet, Contender::plain(Policy::LeastRequest), seed));
    assert_eq!(once(1), once(1));
    assert_ne!(once(1), once(2));
}

#[test]
fn a_fleet_that_is_well_serves_everyone_evenly() {
    let fleet = scenario::well("all are well", Duration::from_secs(5));
    let record = guarded(&fleet, Policy::RoundRobin);
    assert_eq!(record.failed(), 0);
    assert!(record.max_to_mean() < 1.05, "{}", record.max_to_mean());
    let calls = u32::try_from(record.calls()).expect("not so many");
    assert!((f64::from(calls) / (5.0 * fleet.load) - 1.0).abs() < 0.05, "{calls}");
    assert_eq!(fleet.servers, SERVERS);
}

#[test]
fn tables_and_pictures_show_every_contender() {
    let fleet = scenario::fails(Duration::from_secs(20));
    let both = [Contender::plain(Policy::RoundRobin), Contender::guarded(Policy::LeastRequest)];
    let results = both.map(|it| (it, run(&fleet, it, SEED))).to_vec();
    let results = Results { scenario: fleet, results };
    let (picture, table) = (plot::svg(&results), report::table(&[results]));
    for contender in both {
        assert!(picture.contains(&contender.name()) && table.contains(&contender.name()));
    }
    assert_eq!(picture.matches("<polyline").count(), 4, "two lines in each of two panels");
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
}
