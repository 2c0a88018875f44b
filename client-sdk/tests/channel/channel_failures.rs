//! What callers see, and do not see, of instances and registries that fail.

use std::time::Duration;

use client_sdk::{
    channel::{ChannelError, ConnectionState, RouteError},
    model::{Instance, Status},
};
use tokio::{io::AsyncWriteExt, net::TcpListener};
use tonic::Code;

use crate::{
    builder,
    kit::{Act, Always, Fleet, Peer, Server, check, who, world},
    typed,
};

#[tokio::test]
async fn an_empty_set_fails_with_a_typed_error_and_does_not_pend() {
    let a = Server::start("a");
    let fleet = Fleet::of([]);
    let channel = builder(&fleet).build();
    let status = who(&channel).await.expect_err("nobody is there");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(matches!(typed(&status), ChannelError::Route(RouteError::NoInstances { .. })), "{status:?}");
    assert_eq!(status.message(), "no instance of default/greeter takes requests: no instance is registered");

    fleet.set([a.instance().weight(0), a.instance().id("b").status(Status::Draining)]);
    channel.wait_until(|s| s.instances.len() == 2).await;
    let status = who(&channel).await.expect_err("nobody takes requests");
    assert_eq!(
        status.message(),
        "no instance of default/greeter takes requests: 2 instances: 1 of weight 0, 1 draining"
    );
    assert_eq!(a.calls(), 0);
}

#[tokio::test]
async fn waiting_for_ready_outlasts_an_empty_set() {
    let a = Server::start("a");
    let fleet = Fleet::of([]);
    let channel = builder(&fleet).wait_for_ready(true).build();
    let call = tokio::spawn({
        let channel = channel.clone();
        async move { who(&channel).await }
    });
    while channel.snapshot().waiting == 0 {
        tokio::task::yield_now().await;
    }
    fleet.set([a.instance()]);
    assert_eq!(call.await.expect("ran").expect("answered"), "a");
}

#[tokio::test]
async fn a_discovery_error_is_fatal_to_nobody_with_a_last_good_view() {
    let a = Server::start("a");
    let fleet = Fleet::unknown();
    fleet.fail("the registry is on fire");
    let channel = builder(&fleet).build();
    channel.wait_until(|s| s.discovery_error.is_some()).await;
    let status = who(&channel).await.expect_err("no view yet");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        matches!(typed(&status), ChannelError::Route(RouteError::Discovery { source: Some(_), .. })),
        "{status:?}"
    );
    assert_eq!(status.message(), "default/greeter is not discovered yet: the registry is on fire");

    fleet.set([a.instance()]);
    channel.wait_until(|s| s.chosen() == 1).await;
    fleet.fail("again");
    channel.wait_until(|s| s.discovery_error.as_deref() == Some("again")).await;
    assert_eq!(who(&channel).await.expect("answered"), "a");
    // The discovery ends altogether: an ended stream is not polled again, and the view stays.
    drop(fleet);
    for _ in 0..20 {
        assert_eq!(who(&channel).await.expect("answered"), "a");
    }
}

/// tonic #2839.
#[tokio::test]
async fn readiness_never_says_ready_on_a_connection_error() {
    // Bound, so that nobody else gets the port, and not listening.
    let refuses = tokio::net::TcpSocket::new_v4().expect("a socket");
    refuses.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let closes = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let http1 = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = |listener: &TcpListener| listener.local_addr().expect("bound");
    let fleet = Fleet::of([
        Instance::builder(refuses.local_addr().expect("bound").into()).id("refuses"),
        Instance::builder(address(&silent).into()).id("silent"),
        Instance::builder(address(&closes).into()).id("closes"),
        Instance::builder(address(&http1).into()).id("http1"),
    ]);
    tokio::spawn(async move { while closes.accept().await.is_ok() {} });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = http1.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let channel = builder(&fleet)
        .connect_timeout(Duration::from_millis(300))
        .backoff(Duration::from_millis(10), Duration::from_millis(20))
        .build();
    let snapshot = channel
        .wait_until(|snapshot| {
            for instance in &snapshot.instances {
                assert_ne!(instance.state, ConnectionState::Ready, "{instance:?}");
                assert_eq!(instance.connects, 0, "{instance:?}");
            }
            snapshot.instances.len() == 4 && snapshot.instances.iter().all(|i| i.last_error.is_some())
        })
        .await;
    let of = |id: &str| snapshot.instance(id).and_then(|i| i.last_error.clone()).expect("failed");
    assert!(of("refuses").contains("refused"), "{}", of("refuses"));
    assert!(of("silent").contains("no connection within 300 ms"), "{}", of("silent"));
    assert!(of("http1").contains("greeting"), "{}", of("http1"));

    let status = who(&channel).await.expect_err("nobody is there");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        matches!(
            typed(&status),
            ChannelError::Route(RouteError::AllUnavailable { instances: 4, connected: 0, last: Some(_), .. })
        ),
        "{status:?}"
    );
    assert!(
        status.message().starts_with("4 instances of default/greeter, none connected; last: 127.0.0.1:"),
        "{status:?}"
    );
    drop((refuses, silent));
}

#[tokio::test]
async fn a_killed_instance_is_passed_over_while_it_is_still_registered() {
    let (mut a, b) = (Server::mortal("a"), Server::start("b"));
    let channel = builder(&Fleet::of([a.instance(), b.instance()])).build();
    channel.wait_until(|s| s.chosen() == 2).await;
    a.kill();
    // Until the broken connection shows, a call may have been written to it; that call alone may fail, and says so.
    for _ in 0..50 {
        if let Err(status) = who(&channel).await {
            assert_eq!(status.code(), Code::Unavailable);
            assert!(matches!(typed(&status), ChannelError::Lost { .. }), "{status:?}");
        }
    }
    channel.wait_until(|s| s.chosen() == 1).await;
    for _ in 0..50 {
        assert_eq!(who(&channel).await.expect("answered"), "b");
    }
}

#[tokio::test]
async fn an_instance_that_comes_back_is_connected_again() {
    let mut server = Server::mortal("a");
    let fleet = Fleet::of([server.instance()]);
    let channel = builder(&fleet).backoff(Duration::from_millis(10), Duration::from_millis(50)).build();
    channel.wait_until(|s| s.chosen() == 1).await;
    server.kill();
    channel
        .wait_until(|s| s.instance("a").is_some_and(|a| a.state == ConnectionState::TransientFailure))
        .await;
    server.revive();
    channel.wait_until(|s| s.chosen() == 1).await;
    assert_eq!(who(&channel).await.expect("answered"), "a");
}

#[tokio::test]
async fn a_refused_stream_goes_to_another_instance_body_included() {
    let (peer, b) = (Peer::start(|_| Act::Refuse).await, Server::start("b"));
    let fleet = Fleet::of([peer.instance("peer"), b.instance()]);
    let channel = builder(&fleet).policy(Always("peer")).build();
    channel.wait_until(|s| s.chosen() == 2).await;
    for _ in 0..5 {
        assert_eq!(check(&channel, &"x".repeat(8_000)).await.expect("answered"), "b");
    }
    assert_eq!((peer.seen(), b.calls()), (5, 5), "each was read by the peer to its end, and refused");
}

#[tokio::test]
async fn a_stream_beyond_goaway_goes_to_another_instance() {
    let (peer, b) = (Peer::start(|_| Act::GoAway).await, Server::start("b"));
    let fleet = Fleet::of([peer.instance("peer"), b.instance()]);
    let channel = builder(&fleet).policy(Always("peer")).build();
    channel.wait_until(|s| s.chosen() == 2).await;
    assert_eq!(check(&channel, "hello").await.expect("answered"), "b");
    assert_eq!((peer.seen(), b.calls()), (1, 1));
}

#[tokio::test]
async fn after_goaway_a_lone_instance_is_connected_again_and_given_the_request() {
    let peer = Peer::start(|number| if number == 0 { Act::GoAway } else { Act::NotFound }).await;
    let channel = builder(&Fleet::of([peer.instance("peer")])).wait_for_ready(true).build();
    let status = who(&channel).await.expect_err("as the second connection says");
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    assert_eq!(peer.seen(), 2);
    assert_eq!(channel.snapshot().instance("peer").expect("there").connects, 2);
}

#[tokio::test]
async fn an_instance_is_given_a_request_once() {
    let peers = [Peer::start(|_| Act::Refuse).await, Peer::start(|_| Act::Refuse).await];
    let channel = builder(&Fleet::of([peers[0].instance("p"), peers[1].instance("q")])).build();
    channel.wait_until(|s| s.chosen() == 2).await;
    let status = who(&channel).await.expect_err("both refuse");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        matches!(
            typed(&status),
            ChannelError::Route(RouteError::AllUnavailable { instances: 2, connected: 2, last: Some(_), .. })
        ),
        "{status:?}"
    );
    assert!(status.message().contains("2 connected, none took the request"), "{status:?}");
    assert_eq!((peers[0].seen(), peers[1].seen()), (1, 1));
    assert!(typed(&status).never_left());
}

#[tokio::test]
async fn a_large_body_that_was_refused_is_not_sent_again() {
    let (peer, b) = (Peer::start(|_| Act::Refuse).await, Server::start("b"));
    let fleet = Fleet::of([peer.instance("peer"), b.instance()]);
    let channel = builder(&fleet).policy(Always("peer")).replay_limit(100).build();
    channel.wait_until(|s| s.chosen() == 2).await;
    let status = check(&channel, &"x".repeat(200)).await.expect_err("not kept");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(matches!(typed(&status), ChannelError::NotReplayable { limit: 100, .. }), "{status:?}");
    assert_eq!(b.calls(), 0);
}

#[tokio::test]
async fn a_call_that_may_have_been_processed_is_lost_and_not_sent_again() {
    let (peer, b) = (Peer::start(|_| Act::Close).await, Server::start("b"));
    let fleet = Fleet::of([peer.instance("peer"), b.instance()]);
    let channel = builder(&fleet).policy(Always("peer")).build();
    channel.wait_until(|s| s.chosen() == 2).await;
    let status = who(&channel).await.expect_err("the connection broke");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(matches!(typed(&status), ChannelError::Lost { .. }), "{status:?}");
    assert!(!typed(&status).never_left());
    assert_eq!((peer.seen(), b.calls()), (1, 0));
}

#[tokio::test]
async fn a_stream_whose_server_is_killed_is_lost() {
    let mut a = Server::mortal("a");
    let channel = builder(&Fleet::of([a.instance()])).build();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let mut watch =
        health.watch(tonic_health::pb::HealthCheckRequest::default()).await.expect("opened").into_inner();
    assert!(watch.message().await.expect("open").is_some());
    a.kill();
    let status = watch.message().await.expect_err("the server is dead");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(matches!(typed(&status), ChannelError::Lost { .. }), "{status:?}");
}

#[tokio::test]
async fn requests_that_a_dying_connection_had_not_sent_go_to_another_instance() {
    let (peer, b) = (Peer::start(|_| Act::Hold).await, Server::start("b"));
    let fleet = Fleet::of([peer.instance("peer"), b.instance()]);
    let channel = builder(&fleet).policy(Always("peer")).build();
    channel.wait_until(|s| s.chosen() == 2).await;
    let calls: Vec<_> = (0..5)
        .map(|_| {
            let channel = channel.clone();
            tokio::spawn(async move { who(&channel).await })
        })
        .collect();
    // The peer allows one stream; the other requests are with the connection, and have not left.
    while channel.snapshot().instance("peer").expect("there").in_flight < 5 || peer.seen() < 1 {
        tokio::task::yield_now().await;
    }
    peer.close.notify_one();
    let (mut answered, mut lost) = (0, 0);
    for call in calls {
        match call.await.expect("ran") {
            Ok(name) => {
                assert_eq!(name, "b");
                answered += 1;
            }
            Err(status) => {
                assert!(matches!(typed(&status), ChannelError::Lost { .. }), "{status:?}");
                lost += 1;
            }
        }
    }
    assert_eq!((answered, lost), (4, 1));
    assert_eq!((peer.seen(), b.calls()), (1, 4));
}

/// C3: HTTP/2 keepalive.
#[tokio::test(start_paused = true)]
async fn a_peer_that_went_silent_is_noticed_within_15_s_idle_or_not() {
    for calling in [false, true] {
        let fleet = Fleet::of([Instance::builder("a:1".parse().expect("valid")).id("a")]);
        let channel = builder(&fleet).runtime(world(Act::Stuck)).build();
        channel.wait_until(|s| s.chosen() == 1).await;
        let since = tokio::time::Instant::now();
        if calling {
            let status = who(&channel).await.expect_err("nobody answers");
            assert!(matches!(typed(&status), ChannelError::Lost { .. }), "{status:?}");
        } else {
            // Given up, and opened again.
            channel.wait_until(|s| s.instance("a").is_some_and(|a| a.connects == 2)).await;
        }
        assert!(
            since.elapsed() <= Duration::from_secs(15) + Duration::from_millis(10),
            "{:?}",
            since.elapsed()
        );
    }
}
