//! Weights come of reports by the formula and at their times, and go as they came; nobody starves.

use proptest::prelude::*;
use tokio::time::advance;

use super::*;
use crate::runtime::{TokioClock, TokioConnect, TokioSpawn};

fn instance(port: usize, weight: u32, incarnation: u64) -> Arc<Instance> {
    let address = format!("a:{}", port + 1).parse().expect("valid");
    Arc::new(Instance::builder(address).weight(weight).revisions(incarnation, incarnation).build())
}

fn list(weights: &[u32]) -> InstanceList {
    weights.iter().enumerate().map(|(port, weight)| instance(port, *weight, 1)).collect()
}

fn policy() -> ReportedLoad {
    ReportedLoad::new(&Runtime::new(TokioClock::default(), TokioConnect, TokioSpawn, 1))
}

fn report(qps: f64, eps: f64, application: f64, cpu: f64) -> LoadReport {
    LoadReport {
        rps_fractional: qps,
        eps,
        application_utilization: application,
        cpu_utilization: cpu,
        ..LoadReport::default()
    }
}

/// Each instance reports once, in their order.
fn tell(picker: &ReportedLoadPicker, reports: &[LoadReport]) {
    for (to, report) in picker.reports.iter().zip(reports) {
        assert!(to.wants_load());
        to.loaded(report);
    }
}

/// How often each is picked in so many picks.
fn shares(picker: &ReportedLoadPicker, picks: usize) -> Vec<usize> {
    let mut shares = vec![0; picker.instances.len()];
    for _ in 0..picks {
        shares[picker.pick(&PickContext::default()).expect("eligible").index()] += 1;
    }
    shares
}

fn near(shares: &[usize], expected: &[usize]) {
    for (share, expected) in shares.iter().zip(expected) {
        assert!(share.abs_diff(*expected) <= 1 + expected / 50, "{shares:?}, not {expected:?}");
    }
}

#[test]
fn the_weight_is_the_one_of_the_formula() {
    let weight =
        |qps, eps, application, cpu, penalty| weight_of(&report(qps, eps, application, cpu), penalty);
    assert_eq!(weight(100.0, 0.0, 0.5, 0.9, 1.0), Some(200.0), "the application's word comes first");
    assert_eq!(weight(100.0, 0.0, 0.0, 0.25, 1.0), Some(400.0), "then the CPU's");
    assert_eq!(weight(100.0, 50.0, 0.5, 0.0, 1.0), Some(100.0), "half of them failed: 0.5 + 0.5");
    assert_eq!(weight(100.0, 50.0, 0.5, 0.0, 3.0), Some(50.0), "0.5 + 0.5 × 3");
    assert_eq!(weight(100.0, 50.0, 0.5, 0.0, 0.0), Some(200.0));
    for (qps, utilization) in [(0.0, 0.5), (100.0, 0.0), (-1.0, 0.5), (f64::NAN, 0.5), (100.0, f64::INFINITY)]
    {
        assert_eq!(weight(qps, 0.0, utilization, 0.0, 1.0), None, "{qps} {utilization}");
    }
    assert_eq!(weight(100.0, f64::NAN, 0.5, 0.0, 1.0), Some(200.0), "an error rate that is none");
}

#[tokio::test(start_paused = true)]
async fn requests_go_by_the_reported_weights_after_the_blackout() {
    let (policy, all) = (policy(), list(&[1, 1, 1]));
    // 100, 200 and 300.
    let reports = [report(100.0, 0.0, 1.0, 0.0), report(100.0, 0.0, 0.5, 0.0), report(150.0, 0.0, 0.0, 0.5)];
    // What was reported lasts as long as anyone uses it.
    let picker = policy.build(&all);
    tell(&picker, &reports);
    near(&shares(&policy.build(&all), 600), &[200, 200, 200]);
    advance(Duration::from_millis(9_999)).await;
    tell(&picker, &reports);
    near(&shares(&policy.build(&all), 600), &[200, 200, 200]);
    advance(Duration::from_millis(1)).await;
    near(&shares(&policy.build(&all), 600), &[100, 200, 300]);
}

#[tokio::test(start_paused = true)]
async fn without_a_usable_weight_one_gets_the_mean_and_fewer_than_two_are_round_robin() {
    let (policy, all) = (policy().blackout(Duration::ZERO), list(&[1, 1, 1, 1]));
    let picker = policy.build(&all);
    picker.reports[0].loaded(&report(300.0, 0.0, 1.0, 0.0));
    near(&shares(&policy.build(&all), 400), &[100, 100, 100, 100]);
    picker.reports[1].loaded(&report(100.0, 0.0, 1.0, 0.0));
    near(&shares(&policy.build(&all), 800), &[300, 100, 200, 200]);
}

#[tokio::test(start_paused = true)]
async fn reported_weights_multiply_the_own_ones_and_0_gets_nothing() {
    let (policy, all) = (policy().blackout(Duration::ZERO), list(&[1, 2, 3, 0]));
    let picker = policy.build(&all);
    near(&shares(&policy.build(&all), 600), &[100, 200, 300, 0]);
    // 100, 300, and their mean for the third.
    tell(&picker, &[report(100.0, 0.0, 1.0, 0.0), report(300.0, 0.0, 1.0, 0.0)]);
    near(&shares(&policy.build(&all), 1_300), &[100, 600, 600, 0]);
    tell(&picker, &vec![report(100.0, 0.0, 1.0, 0.0); 4]);
    near(&shares(&policy.build(&all), 600), &[100, 200, 300, 0]);
}

#[tokio::test(start_paused = true)]
async fn instead_of_own_weights_these_count_where_nothing_is_reported_and_0_gets_nothing() {
    let (policy, all) = (policy().blackout(Duration::ZERO).instead_of_weights(), list(&[3, 3, 5, 1, 0]));
    near(&shares(&policy.build(&all), 1_200), &[300, 300, 500, 100, 0]);
    // A mean of 200, and a mean weight of 2.4.
    let picker = policy.build(&all);
    tell(&picker, &[report(100.0, 0.0, 1.0, 0.0), report(300.0, 0.0, 1.0, 0.0)]);
    let total = 100.0 + 300.0 + 200.0 * 5.0 / 2.4 + 200.0 / 2.4;
    let expected = [100.0, 300.0, 200.0 * 5.0 / 2.4, 200.0 / 2.4, 0.0].map(|weight| weight / total * 9_000.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    near(&shares(&policy.build(&all), 9_000), &expected.map(|share| share as usize));
    tell(&picker, &vec![report(100.0, 0.0, 1.0, 0.0); 5]);
    assert_eq!(shares(&policy.build(&all), 1_000)[4], 0, "whatever it reports");
}

#[tokio::test(start_paused = true)]
async fn a_weight_expires_and_the_blackout_begins_anew() {
    let (policy, all) = (policy(), list(&[1, 1]));
    let reports = [report(100.0, 0.0, 1.0, 0.0), report(300.0, 0.0, 1.0, 0.0)];
    let equal_to_weighted = [[50, 50], [25, 75]];
    let check =
        |weighted: bool| near(&shares(&policy.build(&all), 100), &equal_to_weighted[usize::from(weighted)]);
    let picker = policy.build(&all);
    tell(&picker, &reports);
    advance(Duration::from_secs(10)).await;
    check(true);
    advance(Duration::from_secs(169)).await;
    check(true);
    advance(Duration::from_secs(1)).await;
    check(false);
    tell(&picker, &reports);
    advance(Duration::from_secs(9)).await;
    check(false);
    advance(Duration::from_secs(1)).await;
    check(true);
}

#[tokio::test(start_paused = true)]
async fn what_was_reported_survives_changes_of_the_others_and_not_a_new_incarnation() {
    let policy = policy();
    let reports = [report(100.0, 0.0, 1.0, 0.0), report(300.0, 0.0, 1.0, 0.0), report(200.0, 0.0, 1.0, 0.0)];
    let before = policy.build(&list(&[1, 1]));
    tell(&before, &reports);
    advance(Duration::from_secs(10)).await;
    let after = policy.build(&list(&[1, 1, 1]));
    near(&shares(&after, 600), &[100, 300, 200]);
    let restarted: InstanceList = [instance(0, 1, 1), instance(1, 1, 2)].into();
    near(&shares(&policy.build(&restarted), 600), &[300, 300]);
    drop((before, after));
}

#[tokio::test(start_paused = true)]
async fn it_asks_to_be_built_anew_every_period() {
    assert_eq!(policy().rebuild_every(), Some(Duration::from_secs(1)));
    assert_eq!(policy().update_period(Duration::ZERO).rebuild_every(), Some(Duration::from_millis(100)));
    assert!(policy().error_penalty(-1.0).is_err() && policy().error_penalty(f64::NAN).is_err());
}

#[tokio::test(start_paused = true)]
async fn none_and_weights_of_0() {
    for weights in [&[][..], &[0], &[0, 0]] {
        let refused = policy().build(&list(weights)).pick(&PickContext::default()).map(|pick| pick.index());
        assert_eq!(refused, Err(PickError::NoInstances));
    }
}

proptest! {
    #[test]
    fn whatever_is_reported_nobody_starves_and_weights_stay_in_range(
        reported in proptest::collection::vec(proptest::option::of((0.0_f64..1e12, 0.0_f64..1e12, 0.0_f64..1e6)), 1..20),
        own in proptest::collection::vec(0_u32..70_000, 20),
        instead in any::<bool>(),
    ) {
        let all = list(&own[..reported.len()]);
        let weights: Vec<_> = reported
            .iter()
            .map(|said| said.and_then(|(qps, eps, load)| weight_of(&report(qps, eps, load, 0.0), 1.0)))
            .collect();
        if let Some(scaled) = scaled(&all, &weights, instead) {
            for (scaled, instance) in scaled.iter().zip(all.iter()) {
                prop_assert!(*scaled <= 65_535 && (*scaled > 0) == (instance.weight > 0), "{:?}", scaled);
            }
        }
    }
}
