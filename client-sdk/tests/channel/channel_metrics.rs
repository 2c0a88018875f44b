//! What a channel counts, by a recorder that remembers.

#![allow(clippy::float_cmp)] // small whole numbers

use std::collections::BTreeMap;

use client_sdk::balance::{LeastRequest, PeakEwma};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};

use crate::{
    builder,
    kit::{Act, Fleet, Peer, Server, blocking, who},
};

/// Everything counted since the last look, by name and the labels beside the endpoint.
fn counted(snapshotter: &Snapshotter) -> BTreeMap<String, f64> {
    let all = snapshotter.snapshot().into_vec().into_iter().map(|(key, _, _, value)| {
        let key = key.key();
        assert!(key.labels().any(|label| label.key() == "endpoint" && label.value() == "default/greeter"));
        let rest: Vec<_> =
            key.labels().filter(|label| label.key() != "endpoint").map(metrics::Label::value).collect();
        let name = key.name().trim_start_matches("client_sdk_");
        let value = match value {
            DebugValue::Counter(count) => f64::from(u32::try_from(count).expect("few")),
            DebugValue::Gauge(value) => value.into_inner(),
            DebugValue::Histogram(_) => unreachable!("none"),
        };
        (format!("{name} {}", rest.join(" ")).trim_end().to_owned(), value)
    });
    all.collect()
}

#[tokio::test]
async fn picks_calls_in_flight_connects_failures_and_what_found_no_instance_are_counted() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let (server, refusing) = (Server::start("a"), Peer::start(|_| Act::Refuse).await);
    let mut dead = Server::mortal("dead");
    dead.kill();
    let fleet = Fleet::of([server.instance(), refusing.instance("refusing"), dead.instance()]);
    let channel = builder(&fleet).build();
    channel.wait_until(|s| s.chosen() == 2 && s.instances.iter().any(|it| it.last_error.is_some())).await;

    for _ in 0..4 {
        assert_eq!(who(&channel).await.expect("by the other"), "a");
    }
    let held = tokio::spawn({
        let channel = channel.clone();
        async move { blocking(&channel).await }
    });
    server.arrived().await;
    let now = counted(&snapshotter);
    assert_eq!(now["requests_in_flight"], 1.0);
    server.desk.gate.add_permits(1);
    held.await.expect("no panic").expect("answered");
    fleet.set([]);
    who(&channel).await.expect_err("nobody");

    let then = counted(&snapshotter);
    let of = |name: &str| now.get(name).copied().unwrap_or(0.0) + then.get(name).copied().unwrap_or(0.0);
    assert_eq!(of("connects_total"), 2.0, "{now:?} {then:?}");
    assert!(of("connect_failures_total") >= 1.0, "{now:?} {then:?}");
    assert_eq!(of("requests_ended_total success"), 5.0, "{now:?} {then:?}");
    assert!(of("requests_not_taken_total") >= 2.0, "every other one was refused: {now:?} {then:?}");
    assert_eq!(of("picks_total"), 5.0 + of("requests_not_taken_total"), "{now:?} {then:?}");
    assert_eq!(of("no_instance_total no_instances"), 1.0, "{now:?} {then:?}");
    assert_eq!(of("requests_in_flight"), 0.0, "{now:?} {then:?}");
    assert_eq!(of("requests_waiting"), 0.0, "{now:?} {then:?}");
}

#[tokio::test]
async fn a_snapshot_tells_the_load_that_the_policy_goes_by() {
    let server = Server::start("a");
    let fleet = Fleet::of([server.instance()]);
    let (plain, least) = (builder(&fleet).build(), builder(&fleet));
    let runtime = client_sdk::runtime::Runtime::tokio();
    let (least, ewma) = (
        least.policy(LeastRequest::new(&runtime)).build(),
        builder(&fleet).policy(PeakEwma::new(&runtime)).build(),
    );
    let mut held = Vec::new();
    for channel in [&plain, &least, &ewma] {
        let channel = channel.clone();
        held.push(tokio::spawn(async move { blocking(&channel).await }));
        server.arrived().await;
    }
    let load = |channel: &client_sdk::BalancedChannel| channel.snapshot().instances[0].load;
    assert_eq!(load(&plain), None, "round robin keeps none");
    let least = load(&least).expect("it counts");
    assert_eq!((least.in_flight, least.latency), (1, None));
    let ewma = load(&ewma).expect("it counts");
    assert_eq!(ewma.in_flight, 1);
    assert!(ewma.latency.is_some(), "{ewma:?}");
    server.desk.gate.add_permits(3);
    for call in held {
        call.await.expect("no panic").expect("answered");
    }
}
