//! Limits of streams, and several HTTP/2 connections to one instance.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use client_sdk::{
    channel::{BalancedChannel, ChannelError, ConnectionState, RouteError},
    model::{Instance, InstanceBuilder, Status as InstanceStatus},
};
use tonic::{Code, Request, Status, Streaming};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};

use crate::{
    builder,
    h2_server::H2Server,
    kit::{Always, Fleet, Server, who},
    typed,
};

type Watch = Streaming<HealthCheckResponse>;

/// A stream that is open: its first message is here.
pub(crate) async fn watch(channel: &BalancedChannel) -> Watch {
    let mut health = HealthClient::new(channel.clone());
    let mut watch = health.watch(HealthCheckRequest::default()).await.expect("opened").into_inner();
    assert!(watch.message().await.expect("open").is_some());
    watch
}

fn watching(channel: &BalancedChannel) -> tokio::task::JoinHandle<Watch> {
    let channel = channel.clone();
    tokio::spawn(async move { watch(&channel).await })
}

async fn check(
    channel: &BalancedChannel,
    service: &str,
    timeout: Option<Duration>,
) -> Result<HealthCheckResponse, Status> {
    let mut request = Request::new(HealthCheckRequest { service: service.to_owned() });
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    Ok(HealthClient::new(channel.clone()).check(request).await?.into_inner())
}

pub(crate) async fn ended(mut watch: Watch) {
    assert!(watch.message().await.expect("ends well").is_none());
}

async fn in_flight(channel: &BalancedChannel, calls: usize) {
    while channel.snapshot().instance("a").is_none_or(|a| a.in_flight != calls) {
        tokio::task::yield_now().await;
    }
}

/// So many streams held, each connection full with one.
async fn lanes(channel: &BalancedChannel, count: usize) -> Vec<Watch> {
    let mut watches = Vec::new();
    for _ in 0..count {
        watches.push(watch(channel).await);
    }
    watches
}

#[tokio::test]
async fn full_connections_make_room_by_further_ones_up_to_the_limit() {
    let server = H2Server::new(Some(2));
    let channel = builder(&Fleet::of([server.instance().await])).connections_per_instance(3).build();
    let calls: Vec<_> = (0..6).map(|_| watching(&channel)).collect();
    let mut watches = Vec::new();
    for call in calls {
        watches.push(call.await.expect("opened, with five others open"));
    }
    assert_eq!(server.held(), [2, 2, 2]);
    let a = channel.snapshot().instance("a").cloned().expect("there");
    assert_eq!((a.connections, a.connects, a.in_flight), (3, 3, 6));
    assert_eq!(a.state, ConnectionState::Ready);

    // A seventh waits for one of the three, and there is no fourth.
    let seventh = watching(&channel);
    in_flight(&channel, 7).await;
    assert_eq!(server.held(), [2, 2, 2]);
    for link in server.links() {
        link.gate.add_permits(1);
    }
    watches.push(seventh.await.expect("opened once there was room"));
    assert_eq!(server.held().iter().sum::<usize>(), 4);
    for link in server.links() {
        link.gate.add_permits(2);
    }
    for watch in watches {
        ended(watch).await;
    }
    assert_eq!(server.now().len(), 3);
}

#[tokio::test]
async fn real_servers_limit_is_respected_with_one_connection_and_with_several() {
    let server = Server::limited("a", 2);
    for (connections, opened) in [(0, 1), (1, 1), (2, 2)] {
        let channel = builder(&Fleet::of([server.instance()])).connections_per_instance(connections).build();
        let first = [watch(&channel).await, watch(&channel).await];
        let third = watching(&channel);
        in_flight(&channel, 3).await;
        if opened == 1 {
            drop(first);
        }
        third.await.expect("opened");
        assert_eq!(channel.snapshot().instance("a").expect("there").connects, opened);
    }
}

#[tokio::test]
async fn with_one_connection_a_call_beyond_the_limit_waits_for_an_earlier_one_to_end() {
    let server = H2Server::new(Some(2));
    let channel = builder(&Fleet::of([server.instance().await])).build();
    let watches = lanes(&channel, 2).await;
    let third = watching(&channel);
    in_flight(&channel, 3).await;
    assert_eq!((server.held(), server.read()), (vec![2], 2));
    assert!(!third.is_finished());
    server.links()[0].gate.add_permits(1);
    let third = third.await.expect("opened");
    assert_eq!((server.held(), server.read()), (vec![2], 3));
    server.links()[0].gate.add_permits(2);
    for watch in watches.into_iter().chain([third]) {
        ended(watch).await;
    }
    assert_eq!(server.now().len(), 1);
}

#[tokio::test]
async fn a_call_that_waits_in_a_full_connection_is_bounded_by_its_deadline_and_never_left() {
    let server = H2Server::new(Some(1));
    let channel = builder(&Fleet::of([server.instance().await])).build();
    let held = watch(&channel).await;
    for _ in 0..3 {
        let status = check(&channel, "late", Some(Duration::from_millis(20))).await.expect_err("no room");
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(
            matches!(typed(&status), ChannelError::Route(RouteError::DeadlineExceeded { .. })),
            "{status:?}"
        );
        assert!(typed(&status).never_left());
    }
    in_flight(&channel, 1).await;
    server.links()[0].gate.add_permits(1);
    ended(held).await;
    check(&channel, "", None).await.expect("answered");
    assert_eq!(server.read(), 2, "the stream and the last call; no late one was ever read");
}

#[tokio::test]
async fn a_call_that_waits_in_a_full_connection_goes_elsewhere_when_that_ends() {
    let (full, b) = (H2Server::new(Some(1)), Server::start("b"));
    let fleet = Fleet::of([full.instance().await, b.instance()]);
    let channel = builder(&fleet).policy(Always("a")).build();
    channel.wait_until(|s| s.chosen() == 2).await;
    let mut held = watch(&channel).await;
    let waits = tokio::spawn({
        let channel = channel.clone();
        async move { who(&channel).await }
    });
    in_flight(&channel, 2).await;
    full.links()[0].close.notify_one();
    assert_eq!(waits.await.expect("ran").expect("answered elsewhere"), "b");
    let status = held.message().await.expect_err("it was on that connection");
    assert!(matches!(typed(&status), ChannelError::Lost { .. }), "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_a_further_connection_only_while_it_may_be_hoped_for() {
    let server = H2Server::new(Some(1));
    let world = server.world(|attempt| Ok(attempt == 0)); // further ones hang
    let fleet = Fleet::of([Instance::builder("a:1".parse().expect("valid")).id("a")]);
    let channel = builder(&fleet).connections_per_instance(2).runtime(world).build();
    let held = watch(&channel).await;

    let since = tokio::time::Instant::now();
    let status = check(&channel, "", Some(Duration::from_secs(1))).await.expect_err("no room");
    assert_eq!(since.elapsed().as_secs(), 1);
    assert!(matches!(typed(&status), ChannelError::Route(RouteError::DeadlineExceeded { .. })), "{status:?}");
    assert!(status.message().contains("room on a connection to a:1"), "{status:?}");

    // An earlier call ends first: that place is taken.
    let second = watching(&channel);
    in_flight(&channel, 2).await;
    server.links()[0].gate.add_permits(1);
    ended(held).await;
    let second = second.await.expect("opened");
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());

    // It could not be opened: the call waits for the connection that there is.
    let third = watching(&channel);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(!third.is_finished());
    server.links()[0].gate.add_permits(1);
    ended(second).await;
    third.await.expect("opened");
    assert_eq!(server.now().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn calls_that_end_together_make_room_for_as_many_that_wait() {
    let server = H2Server::new(Some(2));
    let world = server.world(|attempt| Ok(attempt == 0)); // further ones hang
    let fleet = Fleet::of([Instance::builder("a:1".parse().expect("valid")).id("a")]);
    let channel = builder(&fleet).connections_per_instance(2).runtime(world).build();
    let held = lanes(&channel, 2).await;
    let waits = [watching(&channel), watching(&channel)];
    in_flight(&channel, 4).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let since = tokio::time::Instant::now();
    drop(held);
    for wait in waits {
        wait.await.expect("opened");
    }
    assert_eq!(
        since.elapsed().as_secs(),
        0,
        "there was room for both, whatever becomes of the other connection"
    );
}

/// C2, through lanes.
#[tokio::test]
async fn a_call_that_waits_for_room_is_not_given_to_an_instance_that_takes_no_more() {
    let b = Server::start("b");
    let changes: [fn(InstanceBuilder) -> Option<InstanceBuilder>; 4] = [
        |a| Some(a.status(InstanceStatus::Draining)),
        |a| Some(a.status(InstanceStatus::Down)),
        |a| Some(a.weight(0)),
        |_| None,
    ];
    for (change, connections) in changes.into_iter().flat_map(|change| [(change, 1), (change, 2)]) {
        let (server, accepted) = (H2Server::new(Some(1)), AtomicUsize::new(0));
        let only_one = move |stream| {
            let first = accepted.fetch_add(1, Ordering::SeqCst) == 0;
            async move { if first { Ok(stream) } else { std::future::pending().await } }
        };
        let address = server.listen_over(only_one).await;
        let a = || Instance::builder(address.clone()).id("a");
        let fleet = Fleet::of([a(), b.instance()]);
        let channel = builder(&fleet).policy(Always("a")).connections_per_instance(connections).build();
        channel.wait_until(|s| s.chosen() == 2).await;
        let held = watch(&channel).await;
        let waits = tokio::spawn({
            let channel = channel.clone();
            async move { who(&channel).await }
        });
        in_flight(&channel, 2).await;
        fleet.set(change(a()).into_iter().chain([b.instance()]));
        // At once, not only when there is room.
        assert_eq!(waits.await.expect("answered by one who says who it is").expect("answered"), "b");
        server.links()[0].gate.add_permits(1);
        ended(held).await;
        assert_eq!(server.read(), 1, "the stream");
    }
}

#[tokio::test(start_paused = true)]
async fn a_further_connection_that_cannot_be_opened_is_tried_again_with_backoff_and_hurts_nobody() {
    let server = H2Server::new(Some(1));
    let attempts = Arc::new(AtomicUsize::new(0));
    let world = server.world({
        let attempts = Arc::clone(&attempts);
        move |attempt| {
            attempts.fetch_add(1, Ordering::SeqCst);
            if attempt == 0 { Ok(true) } else { Err(io::Error::other("one connection each")) }
        }
    });
    let fleet = Fleet::of([Instance::builder("a:1".parse().expect("valid")).id("a")]);
    let channel = builder(&fleet).connections_per_instance(3).runtime(world).build();
    let held = watch(&channel).await;
    for _ in 0..100 {
        let status = check(&channel, "", Some(Duration::from_millis(100))).await.expect_err("no room");
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    }
    let attempts = attempts.load(Ordering::SeqCst);
    assert!((4..=10).contains(&attempts), "{attempts} in 10 s, doubling from 100 ms");
    let snapshot = channel.snapshot();
    assert_eq!(snapshot.instance("a").expect("there").state, ConnectionState::Ready);
    server.links()[0].gate.add_permits(1);
    ended(held).await;
    check(&channel, "", None).await.expect("answered");
}

#[tokio::test(start_paused = true)]
async fn a_further_connection_that_is_closed_at_once_is_not_opened_in_a_hot_loop() {
    let server = H2Server::new(Some(1));
    let fleet = Fleet::of([Instance::builder("a:1".parse().expect("valid")).id("a")]);
    let channel = builder(&fleet).connections_per_instance(2).runtime(server.world(|_| Ok(true))).build();
    let _held = watch(&channel).await;
    tokio::spawn({
        let server = server.clone();
        async move {
            for further in 1.. {
                server.until(|now| now.len() > further).await;
                server.links()[further].close.notify_one();
            }
        }
    });
    let since = tokio::time::Instant::now();
    while since.elapsed() < Duration::from_secs(10) {
        // Answered, lost with the connection, or too late: as it happens.
        let _ = check(&channel, "", Some(Duration::from_millis(100))).await;
        let opened = server.links().len();
        assert!(opened <= 12, "{opened} after {:?}, doubling from 100 ms", since.elapsed());
    }
    assert!(server.links().len() >= 4, "it is tried again");
    assert!(!server.now()[0].closed);
}

#[tokio::test(start_paused = true)]
async fn further_connections_close_after_a_while_without_a_call_and_the_first_stays() {
    let server = H2Server::new(Some(1));
    let fleet = Fleet::of([Instance::builder("a:1".parse().expect("valid")).id("a")]);
    let channel = builder(&fleet).connections_per_instance(3).runtime(server.world(|_| Ok(true))).build();
    let mut watches = lanes(&channel, 3).await;
    // The second one has a call, and is not idle however long that takes.
    for n in [2, 0] {
        server.links()[n].gate.add_permits(1);
        ended(watches.remove(n)).await;
    }
    let since = tokio::time::Instant::now();
    server.until(|now| now.len() == 3 && now[2].closed).await;
    let after = since.elapsed();
    assert!((60..=121).contains(&after.as_secs()), "{after:?}");
    tokio::time::sleep(Duration::from_mins(10)).await;
    let closed: Vec<_> = server.now().iter().map(|now| now.closed).collect();
    assert_eq!(closed, [false, false, true]);
    assert_eq!(channel.snapshot().instance("a").expect("there").connections, 2);

    server.links()[1].gate.add_permits(1);
    for watch in watches {
        ended(watch).await;
    }
    server.until(|now| now[1].closed).await;
    assert!(!server.now()[0].closed);
    // And they are opened again when they are needed.
    let watches = lanes(&channel, 3).await;
    assert_eq!(channel.snapshot().instance("a").expect("there").connects, 5);
    drop(watches);
}

#[tokio::test]
async fn a_draining_instance_finishes_what_is_on_all_its_connections() {
    let (server, b) = (H2Server::new(Some(1)), Server::start("b"));
    let fleet = Fleet::of([server.instance().await, b.instance()]);
    let channel = builder(&fleet).policy(Always("a")).connections_per_instance(3).build();
    channel.wait_until(|s| s.chosen() == 2).await;
    let watches = lanes(&channel, 3).await;
    assert_eq!(server.held(), [1, 1, 1]);
    // One that waits for room has not been sent, so it is none of those.
    let waits = tokio::spawn({
        let channel = channel.clone();
        async move { who(&channel).await }
    });
    in_flight(&channel, 4).await;
    fleet.set([b.instance()]);
    channel.wait_until(|s| s.instance("a").is_some_and(|a| a.state == ConnectionState::Draining)).await;
    assert_eq!(who(&channel).await.expect("answered"), "b");
    assert_eq!(waits.await.expect("ran").expect("answered elsewhere"), "b");
    assert_eq!(channel.snapshot().instance("a").expect("finishing").in_flight, 3);
    assert_eq!(server.read(), 3);
    for link in server.links() {
        link.gate.add_permits(2);
    }
    for watch in watches {
        ended(watch).await;
    }
    channel.wait_until(|s| s.instance("a").is_none()).await;
    server.until(|now| now.iter().all(|now| now.closed)).await;
}

#[tokio::test]
async fn goaway_on_one_connection_leaves_the_others_alone() {
    let server = H2Server::new(Some(3));
    let channel = builder(&Fleet::of([server.instance().await])).connections_per_instance(2).build();
    let mut watches = lanes(&channel, 6).await;
    assert_eq!(server.held(), [3, 3]);
    // The second has the fewest calls, and is offered the next one.
    server.links()[1].gate.add_permits(2);
    server.links()[0].gate.add_permits(1);
    for n in [4, 3, 0] {
        ended(watches.remove(n)).await;
    }
    server.links()[1].away.notify_one();
    // Nobody has to call to find it out.
    channel.wait_until(|s| s.instance("a").is_some_and(|a| a.connections == 1)).await;
    check(&channel, "", None).await.expect("answered");
    assert_eq!(server.held(), [2, 1], "both go on with what they have");
    assert_eq!(channel.snapshot().instance("a").expect("there").state, ConnectionState::Ready);
    for n in [1, 0] {
        server.links()[n].gate.add_permits(2);
    }
    for watch in watches {
        ended(watch).await;
    }
    server.until(|now| now[1].closed).await;
    assert!(!server.now()[0].closed);
}

#[tokio::test]
async fn an_instance_that_refuses_a_request_is_asked_once_however_many_connections_it_has() {
    let server = H2Server::new(Some(1));
    let channel = builder(&Fleet::of([server.instance().await])).connections_per_instance(3).build();
    for watch in lanes(&channel, 3).await {
        drop(watch);
    }
    in_flight(&channel, 0).await;
    let before = server.read();
    let status = check(&channel, "refuse", None).await.expect_err("refused");
    assert!(matches!(typed(&status), ChannelError::Route(RouteError::AllUnavailable { .. })), "{status:?}");
    assert_eq!(server.read(), before + 1);
    assert_eq!(channel.snapshot().instance("a").expect("there").connections, 3);
}

#[tokio::test]
async fn a_peer_that_sets_no_limit_is_full_at_100() {
    let server = H2Server::new(None);
    let channel = builder(&Fleet::of([server.instance().await])).connections_per_instance(2).build();
    let watches = lanes(&channel, 201).await;
    // Two are full, there is no third, and nobody waits for the peer that did not ask for it.
    let mut held = server.held();
    held.sort_unstable();
    assert_eq!(held, [100, 101]);
    drop(watches);
}

#[tokio::test]
async fn dropping_the_last_clone_closes_every_connection() {
    let server = H2Server::new(Some(1));
    let channel = builder(&Fleet::of([server.instance().await])).connections_per_instance(3).build();
    for watch in lanes(&channel, 3).await {
        drop(watch);
    }
    drop(channel);
    server.until(|now| now.len() == 3 && now.iter().all(|now| now.closed)).await;
}

#[tokio::test(start_paused = true)]
async fn a_further_connection_that_has_a_call_now_and_then_stays() {
    let server = H2Server::new(Some(1));
    let fleet = Fleet::of([Instance::builder("a:1".parse().expect("valid")).id("a")]);
    let channel = builder(&fleet).connections_per_instance(2).runtime(server.world(|_| Ok(true))).build();
    let _held = watch(&channel).await;
    for _ in 0..30 {
        check(&channel, "", None).await.expect("answered by the other connection");
        tokio::time::sleep(Duration::from_secs(17)).await; // between the looks of each 60 s
    }
    assert_eq!(server.now().iter().map(|now| now.closed).collect::<Vec<_>>(), [false, false]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_a_further_connection_goes_elsewhere_when_the_only_one_ends() {
    let server = H2Server::new(Some(1));
    let world = server.world(|attempt| Ok(attempt < 2)); // further ones hang
    let fleet =
        Fleet::of(["a", "b"].map(|id| Instance::builder(format!("{id}:1").parse().expect("valid")).id(id)));
    let channel = builder(&fleet).policy(Always("a")).connections_per_instance(2).runtime(world).build();
    channel.wait_until(|s| s.chosen() == 2).await;
    let _held = watch(&channel).await;
    let waits = tokio::spawn({
        let channel = channel.clone();
        async move { check(&channel, "", None).await }
    });
    in_flight(&channel, 2).await;
    let full = server.held().iter().position(|held| *held == 1).expect("one is");
    let since = tokio::time::Instant::now();
    server.links()[full].close.notify_one();
    waits.await.expect("ran").expect("answered by b");
    assert_eq!(since.elapsed(), Duration::ZERO, "whatever becomes of the other connection");
}
