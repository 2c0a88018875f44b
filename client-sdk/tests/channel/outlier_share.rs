//! Whom the share of those that may be ejected is counted of.

use std::{sync::Arc, time::Duration};

use client_sdk::{
    balance::Outcome,
    model::{Instance, Status},
    outlier::{Detector, Judgement, OutlierDetection},
};

#[test]
fn one_that_is_ejected_and_takes_no_requests_any_more_uses_up_no_share() {
    let view = |draining: &[usize]| -> Vec<Arc<Instance>> {
        let instance = |number: usize| {
            let status = if draining.contains(&number) { Status::Draining } else { Status::Up };
            Arc::new(Instance::builder(format!("h{number}:1").parse().expect("valid")).status(status).build())
        };
        (0..21).map(instance).collect()
    };
    let mut detector = Detector::new(OutlierDetection::default(), Duration::ZERO, 0);
    detector.follow(&view(&[]));
    let all = view(&[]);
    let fails = |detector: &mut Detector, number: usize| {
        let tally = Arc::clone(detector.tally(&all[number]).expect("there"));
        for _ in 0..5 {
            let _ = tally.finished(Outcome::Failure, None);
        }
        detector.settle(Duration::ZERO);
        matches!(detector.judgement(&all[number]), Judgement::Ejected(_))
    };
    assert!(fails(&mut detector, 0) && fails(&mut detector, 1), "two of twenty-one");
    assert!(!fails(&mut detector, 2), "and no third");
    // Twenty take requests now, and one of them is out.
    detector.follow(&view(&[0]));
    assert!(fails(&mut detector, 2));
}
