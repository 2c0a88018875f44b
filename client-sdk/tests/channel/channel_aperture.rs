//! An aperture over real servers: it opens and drains real connections, and is counted.

#![allow(clippy::float_cmp)] // small whole numbers

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use client_sdk::{
    balance::CallerOrder,
    channel::{BalancedChannel, ConnectionState, Snapshot, Standing},
    members::{Aperture, ApertureBuilder},
    model::Instance,
};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tokio::task::JoinHandle;
use tonic::Status;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    builder,
    channel_lanes::{ended, watch},
    h2_server::H2Server,
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
    quick(Aperture::builder().min(1).max(5).target(2))
}

fn quick(builder: ApertureBuilder) -> Aperture {
    builder
        .smoothing(Duration::from_millis(20))
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

/// How many instances is the aperture's business, and how many connections to each the instances' limits': both at once.
#[tokio::test]
async fn it_opens_several_connections_to_each_instance_and_closes_all_of_those_that_are_not_needed() {
    let servers = [(); 4].map(|()| H2Server::new(Some(2)));
    let mut instances = Vec::new();
    for (server, id) in servers.iter().zip(NAMES) {
        instances.push(Instance::builder(server.listen().await).id(id));
    }
    let order = CallerOrder::named("me");
    let built: Vec<_> = instances.iter().map(|it| Arc::new(it.clone().build())).collect();
    let ranked = order.sort(&built);
    let server =
        |place: usize| &servers[NAMES.iter().position(|id| *id == &*ranked[place].id).expect("there")];
    let held = |place: usize| server(place).held().iter().sum::<usize>();
    let fleet = Fleet::of(instances);
    // Two connections of two streams each are an instance's worth.
    let aperture = quick(Aperture::builder().min(1).max(3).target(4));
    let channel =
        builder(&fleet).caller(order).aperture(aperture).connections_per_instance(2).max_in_flight(4).build();
    let connections = |now: &Snapshot, place: usize| {
        now.instances
            .iter()
            .filter(|it| it.instance.id == ranked[place].id)
            .map(|it| it.connections)
            .sum::<usize>()
    };
    let all = |now: &Snapshot| (0..4).map(|place| connections(now, place)).collect::<Vec<_>>();
    let start = channel.wait_until(|now| now.chosen() == 1).await;
    assert_eq!(all(&start), [1, 0, 0, 0]);

    let calls: Vec<_> = (0..12)
        .map(|_| {
            let channel = channel.clone();
            tokio::spawn(async move { ended(watch(&channel).await).await })
        })
        .collect();
    for place in 0..3 {
        server(place).until(|links| links.iter().map(|link| link.held).sum::<usize>() == 4).await;
        assert_eq!(server(place).held(), [2, 2], "{place}");
    }
    let seen = channel.snapshot();
    assert_eq!((size(&seen), seen.chosen(), all(&seen)), (3, 3, vec![2, 2, 2, 0]));

    // One call stays with the last of them.
    for place in 0..3 {
        for link in server(place).links() {
            link.gate.add_permits(if place == 2 { 1 } else { 2 });
        }
    }
    server(2).until(|links| links.iter().all(|link| link.held == 1)).await;
    server(2).links()[0].gate.add_permits(1);
    channel.wait_until(|now| size(now) == 1 && now.chosen() == 1).await;
    server(1).until(|links| links.iter().all(|link| link.closed)).await;
    let in_flight = |now: &Snapshot| {
        let leaves = now.instances.iter().filter(|it| it.standing == Standing::Removed);
        leaves.map(|it| (it.instance.id.to_string(), it.in_flight)).collect::<Vec<_>>()
    };
    channel.wait_until(|now| in_flight(now) == [(ranked[2].id.to_string(), 1)]).await;
    assert_eq!(held(2), 1, "it was not cut");
    server(2).links()[1].gate.add_permits(1);
    for call in calls {
        call.await.expect("each of them ended well");
    }
    server(2).until(|links| links.iter().all(|link| link.closed)).await;
    let seen = channel.wait_until(|now| now.instances.len() == 4).await;
    assert_eq!((all(&seen)[1..].to_vec(), server(3).links().len()), (vec![0, 0, 0], 0));
    assert!(server(0).now().iter().any(|link| !link.closed), "the first one stays");
    HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.expect("answered by it");
}

/// Calls while the view changes and callers go: none fails, and in the end there is nothing that should not be.
#[tokio::test]
async fn after_calls_given_up_and_a_view_that_changed_all_is_as_in_the_beginning() {
    let servers = NAMES.map(Server::start);
    let fleet = Fleet::of(servers.iter().map(Server::instance));
    let channel = builder(&fleet).aperture(aperture()).connections_per_instance(2).build();
    let callers: Vec<_> = (0..20)
        .map(|seed| {
            let channel = channel.clone();
            tokio::spawn(async move {
                let mut rng = fastrand::Rng::with_seed(seed);
                for _ in 0..100 {
                    if rng.u32(..4) == 0 {
                        let patience = Duration::from_micros(rng.u64(..5_000));
                        let given_up = tokio::time::timeout(patience, blocking(&channel)).await;
                        assert!(given_up.is_err(), "nobody answers that: {given_up:?}");
                    } else {
                        who(&channel).await.expect("answered, whoever leaves");
                    }
                }
            })
        })
        .collect();
    let mut rng = fastrand::Rng::with_seed(99);
    while callers.iter().any(|caller| !caller.is_finished()) {
        let (kept, weight) = (rng.usize(..NAMES.len()), rng.u32(1..4));
        let there = |(place, server): (usize, &Server)| {
            (place == kept || rng.bool()).then(|| server.instance().weight(weight))
        };
        fleet.set(servers.iter().enumerate().filter_map(there).collect::<Vec<_>>());
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    for caller in callers {
        caller.await.expect("no call failed");
    }
    fleet.set(servers.iter().map(Server::instance));
    let at_rest = |now: &Snapshot| {
        let ready = now.instances.iter().filter(|it| it.connections > 0);
        size(now) == 1
            && now.chosen() == 1
            && ready.count() == 1
            && now.instances.len() == NAMES.len()
            && now.instances.iter().all(|it| it.in_flight == 0)
    };
    let seen = channel.wait_until(at_rest).await;
    assert_eq!(seen.waiting, 0);
    who(&channel).await.expect("answered");
}
