//! What happens when the view changes: connecting and draining while idle, make before break, no dead picks.

use std::{sync::atomic::Ordering, time::Duration};

use client_sdk::{
    channel::{ChannelError, ConnectionState, RouteError, Standing},
    model::{Instance, Status},
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    builder,
    kit::{Act, Always, Counting, Fleet, Peer, Server, blocking, who, world},
    typed,
};

/// tower #824, tonic #1581.
#[tokio::test]
async fn discovery_connecting_and_draining_advance_while_idle() {
    let (a, b) = (Server::start("a"), Server::start("b"));
    let fleet = Fleet::of([a.instance()]);
    let channel = builder(&fleet).build();
    channel.wait_until(|s| s.instance("a").is_some_and(|a| a.state == ConnectionState::Ready)).await;
    fleet.set([b.instance()]);
    let snapshot = channel.wait_until(|s| s.chosen() == 1 && s.instance("a").is_none()).await;
    assert_eq!(snapshot.instance("b").expect("there").state, ConnectionState::Ready);
    assert_eq!((a.calls(), b.calls()), (0, 0), "without a single call");
}

/// tower #856.
#[tokio::test]
async fn a_choice_never_goes_to_another_instance_however_the_list_changes() {
    let servers = [Server::start("a"), Server::start("b"), Server::start("c")];
    let [a, b, c] = &servers;
    let fleet = Fleet::of(servers.iter().map(Server::instance));
    let channel = builder(&fleet).policy(Always("b")).build();
    channel.wait_until(|s| s.chosen() == 3).await;
    let caller = tokio::spawn({
        let channel = channel.clone();
        async move {
            for _ in 0..300 {
                assert_eq!(who(&channel).await.expect("answered"), "b");
            }
        }
    });
    let mut turn = 0;
    while !caller.is_finished() {
        turn += 1;
        match turn % 4 {
            0 => fleet.set([c.instance(), b.instance(), a.instance()]),
            1 => fleet.set([b.instance()]),
            2 => fleet.set([a.instance(), b.instance()]),
            _ => fleet.set([c.instance(), a.instance(), b.instance().weight(turn)]),
        }
        tokio::task::yield_now().await;
    }
    caller.await.expect("every answer was b's");
}

#[tokio::test]
async fn a_removed_instance_finishes_what_is_in_flight() {
    let (a, b) = (Server::start("a"), Server::start("b"));
    let fleet = Fleet::of([a.instance(), b.instance()]);
    let channel = builder(&fleet).policy(Always("a")).build();
    channel.wait_until(|s| s.chosen() == 2).await;
    let call = tokio::spawn({
        let channel = channel.clone();
        async move { blocking(&channel).await }
    });
    a.arrived().await;
    fleet.set([b.instance()]);
    let drains = |a: &client_sdk::channel::InstanceSnapshot| {
        (a.state, a.standing, a.in_flight) == (ConnectionState::Draining, Standing::Removed, 1)
    };
    channel.wait_until(|s| s.instance("a").is_some_and(drains)).await;
    for _ in 0..10 {
        assert_eq!(who(&channel).await.expect("answered"), "b");
    }
    a.desk.gate.add_permits(1);
    assert_eq!(call.await.expect("ran").expect("finished"), "a");
    channel.wait_until(|s| s.instance("a").is_none()).await;
}

#[tokio::test]
async fn draining_down_and_weight_zero_get_no_new_request_and_come_back_without_reconnecting() {
    let (a, b) = (Server::start("a"), Server::start("b"));
    let fleet = Fleet::of([a.instance(), b.instance()]);
    let channel = builder(&fleet).build();
    channel.wait_until(|s| s.chosen() == 2).await;
    let mut calls = 0;
    for (change, standing) in [
        (a.instance().status(Status::Draining), Standing::Draining),
        (a.instance().weight(0), Standing::WeightZero),
        (a.instance().status(Status::Down), Standing::Down),
    ] {
        fleet.set([change, b.instance()]);
        channel.wait_until(|s| s.instance("a").expect("there").standing == standing).await;
        for _ in 0..10 {
            assert_eq!(who(&channel).await.expect("answered"), "b");
        }
        assert_eq!(a.calls(), calls);
        // A change of weight and tags only: the same connection.
        fleet.set([a.instance().weight(7).tag("v", "2"), b.instance()]);
        let snapshot = channel.wait_until(|s| s.chosen() == 2).await;
        assert_eq!(snapshot.instance("a").expect("there").connects, 1);
        while a.calls() == calls {
            who(&channel).await.expect("answered");
        }
        calls = a.calls();
    }
    let snapshot = channel.snapshot();
    assert_eq!(snapshot.instance("a").expect("there").connects, 1);
    assert_eq!(snapshot.instance("b").expect("there").connects, 1);
}

#[tokio::test]
async fn an_instance_that_turned_draining_finishes_what_is_in_flight() {
    let (a, b) = (Server::start("a"), Server::start("b"));
    let fleet = Fleet::of([a.instance(), b.instance()]);
    let channel = builder(&fleet).policy(Always("a")).build();
    channel.wait_until(|s| s.chosen() == 2).await;
    let call = tokio::spawn({
        let channel = channel.clone();
        async move { blocking(&channel).await }
    });
    a.arrived().await;
    fleet.set([a.instance().status(Status::Draining), b.instance()]);
    channel.wait_until(|s| s.chosen() == 1).await;
    assert_eq!(who(&channel).await.expect("answered"), "b");
    a.desk.gate.add_permits(1);
    assert_eq!(call.await.expect("ran").expect("finished"), "a");
}

#[tokio::test]
async fn held_instances_are_the_last_resort() {
    let (a, mut b) = (Server::start("a"), Server::mortal("b"));
    let fleet = Fleet::of([a.instance().held(true), b.instance()]);
    let channel = builder(&fleet).build();
    channel
        .wait_until(|s| s.chosen() == 1 && s.instance("a").expect("there").standing == Standing::Held)
        .await;
    for _ in 0..6 {
        assert_eq!(who(&channel).await.expect("answered"), "b");
    }
    b.kill();
    channel.wait_until(|s| s.instance("a").expect("there").standing == Standing::Chosen).await;
    assert_eq!(who(&channel).await.expect("answered"), "a");
    fleet.set([a.instance().held(true).weight(0)]);
    channel.wait_until(|s| s.chosen() == 0).await;
    assert!(matches!(
        typed(&who(&channel).await.expect_err("none")),
        ChannelError::Route(RouteError::NoInstances { .. })
    ));
}

#[tokio::test]
async fn a_new_address_is_a_new_connection_and_the_old_one_drains() {
    let (old, new) = (Server::start("old"), Server::start("new"));
    let at = |server: &Server| Instance::builder(server.address.clone()).id("one");
    let fleet = Fleet::of([at(&old)]);
    let channel = builder(&fleet).build();
    let call = tokio::spawn({
        let channel = channel.clone();
        async move { blocking(&channel).await }
    });
    old.arrived().await;
    fleet.set([at(&new)]);
    channel.wait_until(|s| s.chosen() == 1 && s.instances.len() == 2).await;
    assert_eq!(who(&channel).await.expect("answered"), "new");
    old.desk.gate.add_permits(1);
    assert_eq!(call.await.expect("ran").expect("finished"), "old");
    channel.wait_until(|s| s.instances.len() == 1).await;
}

#[tokio::test]
async fn a_new_incarnation_ends_a_backoff() {
    let mut server = Server::mortal("a");
    server.kill();
    let fleet = Fleet::of([server.instance().revisions(1, 1)]);
    let hour = Duration::from_hours(1);
    let channel = builder(&fleet).backoff(hour, hour).build();
    channel
        .wait_until(|s| s.instance("a").is_some_and(|a| a.state == ConnectionState::TransientFailure))
        .await;
    server.revive();
    fleet.set([server.instance().revisions(2, 2)]);
    channel.wait_until(|s| s.chosen() == 1).await;
}

#[tokio::test]
async fn an_id_that_is_there_twice_is_one_instance() {
    let (a, b) = (Server::start("a"), Server::start("b"));
    let fleet = Fleet::of([a.instance(), b.instance().id("a")]);
    let channel = builder(&fleet).build();
    channel.wait_until(|s| s.chosen() == 1 && s.instances.len() == 1).await;
    assert_eq!(who(&channel).await.expect("answered"), "a");
}

#[tokio::test]
async fn dropping_the_last_clone_closes_the_connections() {
    let peer = Peer::start(|_| Act::NotFound).await;
    let fleet = Fleet::of([peer.instance("peer")]);
    let channel = builder(&fleet).build();
    let clone = channel.clone();
    let status = who(&channel).await.expect_err("as the peer says");
    assert_eq!(status.code(), Code::NotFound);
    drop(channel);
    assert_eq!(who(&clone).await.expect_err("as the peer says").code(), Code::NotFound);
    drop(clone);
    let mut open = peer.open.clone();
    open.wait_for(|open| *open == 0).await.expect("the peer lives");
    // And its task let go of the view.
    assert!(peer.seen.load(Ordering::SeqCst) == 2);
}

#[tokio::test]
async fn what_is_in_flight_outlives_the_channel() {
    let server = Server::start("a");
    let channel = builder(&Fleet::of([server.instance()])).build();
    let mut health = HealthClient::new(channel);
    let mut watch = health.watch(HealthCheckRequest::default()).await.expect("opened").into_inner();
    let call =
        tokio::spawn(async move { health.check(HealthCheckRequest { service: "block".to_owned() }).await });
    server.arrived().await;
    assert!(watch.message().await.expect("open").is_some());
    server.desk.gate.add_permits(1);
    // The last clone ends with the call.
    call.await.expect("ran").expect("answered");
    tokio::select! {
        biased;
        ended = watch.message() => panic!("the stream goes on: {ended:?}"),
        () = std::future::ready(()) => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_instances_that_become_ready_together_are_a_handful_of_builds() {
    let instance = |n: u16| Instance::builder(std::net::SocketAddr::from(([10, 0, 0, 1], n)).into());
    let counting = Counting::default();
    let channel = builder(&Fleet::of((1..=1000).map(instance)))
        .policy(counting.clone())
        .connect_ahead(1000)
        .runtime(world(Act::NotFound))
        .build();
    channel.wait_until(|s| s.chosen() == 1000).await;
    let builds = counting.0.load(Ordering::SeqCst);
    assert!(builds <= 10, "{builds} builds");
}

#[tokio::test]
async fn an_instance_that_cannot_be_reached_does_not_start_the_round_anew() {
    let (a, mut dead) = (Server::start("a"), Server::mortal("dead"));
    dead.kill();
    let counting = Counting::default();
    let channel = builder(&Fleet::of([a.instance(), dead.instance()]))
        .policy(counting.clone())
        .backoff(Duration::from_millis(2), Duration::from_millis(2))
        .build();
    channel.wait_until(|s| s.chosen() == 1).await;
    let mut looks = 0;
    channel
        .wait_until(|_| {
            looks += 1;
            looks == 10
        })
        .await;
    assert_eq!(counting.0.load(Ordering::SeqCst), 1);
}
