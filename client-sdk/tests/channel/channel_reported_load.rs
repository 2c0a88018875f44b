//! Load reported by tonic servers with the layer, and the weights that come of it.

use std::time::Duration;

use client_sdk::{
    balance::{LeastRequest, ReportedLoad},
    channel::BalancedChannel,
    orca::{LoadRecorder, LoadReport, LoadReportLayer},
};
use tonic::{Code, Request};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::scripted::{Does, Stage, ask};

fn reporting(names: &[&'static str]) -> Stage {
    Stage::reporting(names, |runtime| Some(LoadReportLayer::new(LoadRecorder::with_runtime(runtime))))
}

/// A call each ten milliseconds; how many each host got of them.
async fn calls(channel: &BalancedChannel, stage: &Stage, calls: usize) -> Vec<usize> {
    let before = stage.asked();
    for _ in 0..calls {
        ask(channel).await.expect("answered");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let before = |name| before.iter().find(|(it, _)| *it == name).map_or(0, |(_, calls)| *calls);
    stage.asked().into_iter().map(|(name, calls)| calls - before(name)).collect()
}

#[tokio::test(start_paused = true)]
async fn weights_follow_what_servers_report() {
    let stage = reporting(&["a", "b", "c"]);
    let channel = stage.builder().policy(ReportedLoad::new(&stage.runtime)).build();
    channel.wait_until(|now| now.chosen() == 3).await;
    // What each needs for the same number of requests a second: so b serves twice as many at the same load, c four times.
    for (name, load) in [("a", 0.8), ("b", 0.4), ("c", 0.2)] {
        let load_of = stage.host(name).reports().recorder().clone();
        load_of.set_qps(Some(100.0)).expect("valid");
        load_of.set_application_utilization(load).expect("valid");
    }
    let blackout = calls(&channel, &stage, 900).await;
    assert!(blackout.iter().all(|calls| (297..=303).contains(calls)), "round robin at first: {blackout:?}");
    // Beyond the blackout of ten seconds, and the next second's new weights.
    calls(&channel, &stage, 300).await;
    let weighted = calls(&channel, &stage, 700).await;
    for (calls, expected) in weighted.iter().zip([100_usize, 200, 400]) {
        assert!(calls.abs_diff(expected) <= 12, "{weighted:?}");
    }
    // It turns around, and so do the weights within a second or two.
    for (name, load) in [("a", 0.2), ("c", 0.8)] {
        stage.host(name).reports().recorder().set_application_utilization(load).expect("valid");
    }
    calls(&channel, &stage, 200).await;
    let turned = calls(&channel, &stage, 700).await;
    for (calls, expected) in turned.iter().zip([400_usize, 200, 100]) {
        assert!(calls.abs_diff(expected) <= 12, "{turned:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_answer_carries_the_report_a_bare_status_too() {
    let stage = reporting(&["a"]);
    let load = stage.host("a").reports().recorder().clone();
    load.set_cpu_utilization(0.5).expect("valid");
    load.set_named("queue", 3.0).expect("valid");
    let channel = stage.builder().without_retries().build();
    let report = |headers: http::HeaderMap| LoadReport::of(&headers).expect("readable").expect("there");
    let mut health = HealthClient::new(channel.clone());

    let mut answers = health.watch(HealthCheckRequest::default()).await.expect("opened").into_inner();
    while answers.message().await.expect("answered").is_some() {}
    let trailers = answers.trailers().await.expect("ended").expect("there");
    let streamed = report(trailers.into_headers());
    assert!((streamed.cpu_utilization - 0.5).abs() < f64::EPSILON);
    assert!((streamed.named_metrics["queue"] - 3.0).abs() < f64::EPSILON);

    stage.host("a").does(Does::Refuses(Code::Internal, None));
    let status = health.check(Request::new(HealthCheckRequest::default())).await.expect_err("as it says");
    let bare = report(status.metadata().clone().into_headers());
    // Both within the first second.
    assert!((bare.rps_fractional - 2.0).abs() < 0.1, "{bare:?}");
    assert!((bare.eps - 1.0).abs() < 0.1, "{bare:?}");
    stage.host("a").does(Does::Refuses(Code::NotFound, None));
    let status = health.check(Request::new(HealthCheckRequest::default())).await.expect_err("as it says");
    let speaks_of_request = report(status.metadata().clone().into_headers());
    assert!((speaks_of_request.eps - 1.0).abs() < 0.1, "no failure of the server: {speaks_of_request:?}");
}

#[tokio::test(start_paused = true)]
async fn reports_are_read_only_where_the_policy_asks_and_bad_ones_are_counted_and_harmless() {
    let recorder = metrics_util::debugging::DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let counted = || {
        let all = snapshotter.snapshot().into_vec().into_iter().filter_map(|(key, _, _, value)| {
            let metrics_util::debugging::DebugValue::Counter(count) = value else { return None };
            let read = key.key().labels().find(|label| label.key() == "read")?.value().to_owned();
            (key.key().name() == "client_sdk_load_reports_total" && count > 0).then_some((read, count))
        });
        all.collect::<Vec<_>>()
    };
    let stage = reporting(&["a"]);
    let indifferent = stage.builder().policy(LeastRequest::new(&stage.runtime)).build();
    ask(&indifferent).await.expect("answered");
    assert_eq!(counted(), []);
    let channel = stage.builder().policy(ReportedLoad::new(&stage.runtime)).build();
    ask(&channel).await.expect("answered");
    assert_eq!(counted(), [("yes".to_owned(), 1)]);
    stage.host("a").does(Does::Misreports);
    let status = ask(&channel).await.expect_err("as it says");
    assert_eq!((status.code(), status.message()), (Code::NotFound, "a misreports"));
    assert_eq!(counted(), [("no".to_owned(), 1)]);
}
