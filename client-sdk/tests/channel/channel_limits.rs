//! How many calls an instance may have at once, and what becomes of those beyond.

use std::time::Duration;

use client_sdk::channel::{ChannelError, Overflow, RouteError};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    builder,
    kit::{Act, Cast, Fleet, Server, blocking, who},
    typed,
};

#[tokio::test]
async fn calls_beyond_the_limit_go_elsewhere_then_wait_and_a_stream_counts_as_long_as_it_lasts() {
    let servers = [Server::start("a"), Server::start("b")];
    let fleet = Fleet::of(servers.iter().map(Server::instance));
    let channel = builder(&fleet).max_in_flight(1).build();
    channel.wait_until(|s| s.chosen() == 2).await;
    let mut client = HealthClient::new(channel.clone());
    let stream = client.watch(HealthCheckRequest::default()).await.expect("begins");
    let with = stream.metadata().get("who").expect("said").to_str().expect("ascii").to_owned();
    for _ in 0..4 {
        assert_ne!(who(&channel).await.expect("answered"), with, "that one is full");
    }
    let held = tokio::spawn({
        let channel = channel.clone();
        async move { blocking(&channel).await }
    });
    let free = servers.iter().find(|it| *it.instance().build().id != *with).expect("the other");
    free.arrived().await;
    let waiting = tokio::spawn({
        let channel = channel.clone();
        async move { who(&channel).await }
    });
    while channel.snapshot().waiting == 0 {
        tokio::task::yield_now().await;
    }
    drop(stream);
    assert_eq!(waiting.await.expect("no panic").expect("answered"), with, "the stream's place");
    free.desk.gate.add_permits(1);
    held.await.expect("no panic").expect("answered");
}

#[tokio::test(start_paused = true)]
async fn what_finds_no_place_is_resource_exhausted_or_out_of_time_and_never_left() {
    let cast = Cast::default();
    cast.set("a", Act::Stuck);
    let fleet = Fleet::of([Cast::instance("a")]);
    let far = Duration::from_secs(1000);
    for overflow in [Overflow::Fail, Overflow::Wait] {
        let channel = builder(&fleet).max_in_flight(1).max_pending(1).overflow(overflow).keepalive(far, far);
        let channel = channel.runtime(cast.runtime()).build();
        channel.wait_until(|s| s.chosen() == 1).await;
        let call = |timeout: Option<Duration>| {
            let mut client = HealthClient::new(channel.clone());
            tokio::spawn(async move {
                let mut request = tonic::Request::new(HealthCheckRequest::default());
                if let Some(timeout) = timeout {
                    request.set_timeout(timeout);
                }
                client.check(request).await.map(drop)
            })
        };
        let held = call(None);
        while channel.snapshot().instances[0].in_flight == 0 {
            tokio::task::yield_now().await;
        }
        if overflow == Overflow::Wait {
            let waits = call(Some(Duration::from_secs(2)));
            while channel.snapshot().waiting == 0 {
                tokio::task::yield_now().await;
            }
            let status = who(&channel).await.expect_err("one waits already");
            assert_eq!(status.code(), Code::ResourceExhausted);
            assert!(matches!(
                typed(&status),
                ChannelError::Route(RouteError::Overloaded { limit: 1, pending: Some(1), .. })
            ));
            let status = waits.await.expect("no panic").expect_err("too late");
            assert_eq!(status.code(), Code::DeadlineExceeded);
            assert!(typed(&status).never_left(), "{status:?}");
        } else {
            let status = who(&channel).await.expect_err("full");
            assert_eq!(status.code(), Code::ResourceExhausted);
            assert!(status.message().contains("max_in_flight"), "{status:?}");
            assert!(matches!(
                typed(&status),
                ChannelError::Route(RouteError::Overloaded { limit: 1, pending: None, .. })
            ));
            assert!(typed(&status).never_left());
        }
        held.abort();
    }
}
