//! Calls of every shape, waiting, deadlines and limits.

use std::{sync::Arc, time::Duration};

use client_sdk::{
    channel::{BalancedChannel, ChannelError, RouteError},
    model::Endpoint,
};
use tokio_stream::StreamExt;
use tonic::{Code, Request};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_client::ServerReflectionClient};

use crate::{
    builder,
    kit::{Fleet, Server, blocking, check, who},
    typed,
};

#[tokio::test]
async fn generated_clients_work_unchanged_unary_and_streaming_both_ways() {
    let server = Server::start("a");
    let channel = builder(&Fleet::of([server.instance()])).build();

    assert_eq!(who(&channel).await.expect("answered"), "a");
    // Beyond one HTTP/2 frame, and beyond what is kept to be sent again.
    assert_eq!(check(&channel, &"x".repeat(300_000)).await.expect("answered"), "a");

    let mut health = HealthClient::new(channel.clone());
    let mut watch = health.watch(HealthCheckRequest::default()).await.expect("opened").into_inner();
    assert_eq!(watch.message().await.expect("open").expect("some").status, 1);
    let snapshot = channel.snapshot();
    assert_eq!(snapshot.instance("a").expect("there").in_flight, 1, "a stream counts as long as it lasts");
    drop(watch);
    assert_eq!(channel.snapshot().instance("a").expect("there").in_flight, 0);

    let (send, receive) = tokio::sync::mpsc::channel(1);
    let mut reflection = ServerReflectionClient::new(channel.clone());
    let requests = tokio_stream::wrappers::ReceiverStream::new(receive);
    let mut echo = reflection.server_reflection_info(requests).await.expect("opened").into_inner();
    for word in ["one", "two", "three"] {
        let request = ServerReflectionRequest { host: word.to_owned(), message_request: None };
        send.send(request).await.expect("open");
        assert_eq!(echo.message().await.expect("open").expect("some").valid_host, word);
    }
    drop(send);
    assert!(echo.next().await.is_none());
    assert_eq!(channel.snapshot().instance("a").expect("there").in_flight, 0, "it ended with its trailers");
}

#[tokio::test]
async fn calls_are_spread_over_the_instances() {
    let (a, b) = (Server::start("a"), Server::start("b"));
    let channel = builder(&Fleet::of([a.instance().weight(3), b.instance()])).build();
    channel.wait_until(|snapshot| snapshot.chosen() == 2).await;
    for _ in 0..40 {
        who(&channel).await.expect("answered");
    }
    assert_eq!((a.calls(), b.calls()), (30, 10));
}

#[tokio::test]
async fn an_endpoint_with_an_address_is_called_there_whatever_is_discovered() {
    let (a, b) = (Server::start("a"), Server::start("b"));
    let endpoint = Endpoint::builder("greeter").address(b.address.clone()).build();
    let channel = BalancedChannel::builder(Arc::new(Fleet::of([a.instance()])), endpoint).build();
    assert_eq!(who(&channel).await.expect("answered"), "b");
    assert_eq!(a.calls(), 0);
}

#[tokio::test]
async fn a_call_waits_for_the_first_answer_of_the_discovery() {
    let server = Server::start("a");
    let fleet = Fleet::unknown();
    let channel = builder(&fleet).build();
    let call = tokio::spawn({
        let channel = channel.clone();
        async move { who(&channel).await }
    });
    while channel.snapshot().waiting == 0 {
        tokio::task::yield_now().await;
    }
    fleet.set([server.instance()]);
    assert_eq!(call.await.expect("ran").expect("answered"), "a");
    assert_eq!(channel.snapshot().waiting, 0);
}

#[tokio::test]
async fn more_calls_than_may_wait_fail_at_once() {
    let channel = builder(&Fleet::unknown()).queue_limit(1).build();
    let first = tokio::spawn({
        let channel = channel.clone();
        async move { who(&channel).await }
    });
    while channel.snapshot().waiting == 0 {
        tokio::task::yield_now().await;
    }
    let status = who(&channel).await.expect_err("the queue is full");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(
        matches!(typed(&status), ChannelError::Route(RouteError::QueueFull { limit: 1, .. })),
        "{status:?}"
    );
    first.abort();
    assert!(first.await.expect_err("aborted").is_cancelled());
    assert_eq!(channel.snapshot().waiting, 0, "a cancelled call leaves the queue");
}

#[tokio::test]
async fn waiting_is_bounded_by_the_calls_deadline() {
    let channel = builder(&Fleet::unknown()).wait_for_ready(true).build();
    let mut request = Request::new(HealthCheckRequest::default());
    request.set_timeout(Duration::from_millis(30));
    let status = HealthClient::new(channel).check(request).await.expect_err("nobody is there");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(matches!(typed(&status), ChannelError::Route(RouteError::DeadlineExceeded { .. })), "{status:?}");
    assert!(typed(&status).never_left());
}

#[tokio::test]
async fn waiting_without_a_deadline_is_bounded_by_the_setting() {
    for ready in [false, true] {
        let channel =
            builder(&Fleet::unknown()).wait_for_ready(ready).max_wait(Duration::from_millis(30)).build();
        let status = who(&channel).await.expect_err("nobody is there");
        assert_eq!(status.code(), Code::Unavailable);
        assert!(
            matches!(typed(&status), ChannelError::Route(RouteError::Discovery { source: None, .. })),
            "{status:?}"
        );
    }
}

#[tokio::test]
async fn the_deadline_holds_for_an_answer_and_for_a_stream() {
    let server = Server::start("a");
    let channel = builder(&Fleet::of([server.instance()])).build();
    let mut health = HealthClient::new(channel.clone());
    let with_timeout = |service: &str| {
        let mut request = Request::new(HealthCheckRequest { service: service.to_owned() });
        request.set_timeout(Duration::from_millis(200));
        request
    };
    // Which of the two says it first, the server or we, is a race; both say the same.
    let status = health.check(with_timeout("block")).await.expect_err("too late");
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");

    let mut watch = health.watch(with_timeout("")).await.expect("opened").into_inner();
    assert!(watch.message().await.expect("in time").is_some());
    let status = watch.message().await.expect_err("too late");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(matches!(typed(&status), ChannelError::DeadlineExceeded { .. }), "{status:?}");
    assert_eq!(channel.snapshot().instance("a").expect("there").in_flight, 0);
}

#[tokio::test]
async fn a_cancelled_call_is_no_longer_in_flight() {
    let server = Server::start("a");
    let channel = builder(&Fleet::of([server.instance()])).build();
    let call = tokio::spawn({
        let channel = channel.clone();
        async move { blocking(&channel).await }
    });
    server.arrived().await;
    assert_eq!(channel.snapshot().instance("a").expect("there").in_flight, 1);
    call.abort();
    assert!(call.await.expect_err("aborted").is_cancelled());
    assert_eq!(channel.snapshot().instance("a").expect("there").in_flight, 0);
}
