//! An aperture over real servers: it opens and drains real connections, and is counted.

#![allow(clippy::float_cmp)] // small whole numbers

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use client_sdk::{
    balance::CallerOrder,
    channel::{BalancedChannel, ConnectionState, Snapshot, Standing},
    members::Aperture,
};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tokio::task::JoinHandle;
use tonic::Status;

use crate::{
    builder,
    kit::{Fleet, Server, blocking, who},
};

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// The gauges and counters of apertures since the last look.
fn counted(snapshotter: &Snapshotter, sums: &mut BTreeMap<String, f64>) {
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        let name = key.key().name().trim_start_matches("client_sdk_").to_owned();
        // Since the last look, gauges too.
        *sums.entry(name).or_default() += match value {
            DebugValue::Counter(count) => f64::from(u32::try_from(count).expect("few")),
            DebugValue::Gauge(value) => value.into_inner(),
            DebugValue::Histogram(_) => unreachable!("none"),
        };
    }
}

/// Quick, so that the test is.
fn aperture() -> Aperture {
    let builder = Aperture::builder().min(1).max(5).target(2).smoothing(Duration::from_millis(20));
    builder
        .idle_time(Duration::from_millis(40))
        .cool_down(Duration::from_millis(40))
        .build()
        .expect("in range")
}

fn calls(channel: &BalancedChannel, calls: usize) -> Vec<JoinHandle<Result<String, Status>>> {
    let call = |_| {
        let channel = channel.clone();
        tokio::spawn(async move { blocking(&channel).await })
    };
    (0..calls).map(call).collect()
}

fn size(snapshot: &Snapshot) -> usize {
    snapshot.aperture.as_ref().expect("set").size
}

fn connected(snapshot: &Snapshot) -> Vec<String> {
    let ready = snapshot.instances.iter().filter(|it| it.state == ConnectionState::Ready);
    let mut ready: Vec<_> = ready.map(|it| it.instance.id.to_string()).collect();
    ready.sort_unstable();
    ready
}

#[tokio::test]
async fn it_connects_to_further_servers_as_calls_pile_up_and_drains_them_when_they_are_done() {
    let recorder = DebuggingRecorder::new();
    let (snapshotter, mut sums) = (recorder.snapshotter(), BTreeMap::new());
    let _guard = metrics::set_default_local_recorder(&recorder);
    let servers = NAMES.map(Server::start);
    let order = CallerOrder::named("me");
    let built: Vec<_> = servers.iter().map(|server| Arc::new(server.instance().build())).collect();
    let ranked: Vec<_> = order.sort(&built).iter().map(|instance| instance.id.to_string()).collect();
    let first = |count: usize| {
        let mut first = ranked[..count].to_vec();
        first.sort_unstable();
        first
    };
    let server =
        |place: usize| servers.iter().find(|it| *it.instance().build().id == *ranked[place]).expect("there");
    let fleet = Fleet::of(servers.iter().map(Server::instance));
    let channel = builder(&fleet).caller(order).aperture(aperture()).build();
    let snapshot = channel.wait_until(|now| now.chosen() == 1).await;
    assert_eq!((size(&snapshot), connected(&snapshot)), (1, first(1)));

    // Eight are four instances' worth, of which nine tenths are to be enough.
    let held = calls(&channel, 8);
    let snapshot = channel.wait_until(|now| size(now) == 5 && now.chosen() == 5).await;
    assert_eq!(connected(&snapshot), first(5));
    counted(&snapshotter, &mut sums);
    assert_eq!((sums["aperture_instances"], sums["aperture_grown_total"]), (5.0, 4.0), "{sums:?}");

    // One call each: those of the four that are given up are finished, not cut.
    let one_each = calls(&channel, 5);
    for place in 0..5 {
        server(place).arrived().await;
    }
    server(0).desk.gate.add_permits(100);
    for held in held {
        held.await.expect("no panic").expect("answered");
    }
    let drained = |now: &Snapshot, place: usize| {
        let id = &*ranked[place];
        let all = || now.instances.iter().filter(|it| &*it.instance.id == id);
        all().any(|it| it.standing == Standing::Removed && it.in_flight == 1)
            && all().any(|it| it.standing == Standing::Spare)
    };
    channel.wait_until(|now| drained(now, 3) && drained(now, 4)).await;
    for place in 1..5 {
        server(place).desk.gate.add_permits(1);
    }
    for call in one_each {
        call.await.expect("no panic").expect("finished");
    }
    let alone = |now: &Snapshot| size(now) == 1 && now.chosen() == 1 && now.instances.len() == NAMES.len();
    let snapshot = channel.wait_until(alone).await;
    assert_eq!(connected(&snapshot), first(1));
    assert_eq!(who(&channel).await.expect("answered"), ranked[0]);
    counted(&snapshotter, &mut sums);
    assert_eq!((sums["aperture_instances"], sums["aperture_shrunk_total"]), (1.0, 4.0), "{sums:?}");

    // What leaves the registry goes, however few there are.
    fleet.set(servers.iter().filter(|it| *it.instance().build().id != *ranked[0]).map(Server::instance));
    channel.wait_until(|now| connected(now) == [ranked[1].clone()] && now.instances.len() == 5).await;
    drop(channel);
    for _ in 0..1000 {
        counted(&snapshotter, &mut sums);
        if sums["aperture_instances"] == 0.0 {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(sums["aperture_instances"], 0.0, "nobody counts any more");
    assert!(sums["aperture_demand"].abs() < 1e-9, "{sums:?}");
}
