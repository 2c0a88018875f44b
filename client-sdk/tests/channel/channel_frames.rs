//! What goes over the wire, frame by frame.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use client_sdk::{
    channel::{BalancedChannel, ChannelError, ConnectionState},
    model::Instance,
};
use http::{HeaderMap, Request};
use http_body::Frame as Piece;
use http_body_util::{BodyExt, StreamBody};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tonic::{Code, Status, Streaming, body::Body};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};
use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_client::ServerReflectionClient};
use tower::Service;

use crate::{
    builder,
    frames::{
        CANCEL, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS,
        Peer, Peers, RST_STREAM, WINDOW_UPDATE, world,
    },
    kit::{Always, Fleet},
    typed,
};

const GRPC: (&str, &str) = ("content-type", "application/grpc");
const OK: (&str, &str) = ("grpc-status", "0");
/// `SERVING`.
const MESSAGE: [u8; 7] = [0, 0, 0, 0, 2, 8, 1];

fn channel() -> (BalancedChannel, Peers) {
    let (world, peers) = world(1 << 16);
    let fleet = Fleet::of([Instance::builder("a:1".parse().expect("valid")).id("a")]);
    (builder(&fleet).runtime(world).build(), peers)
}

/// A unary call, and what becomes of it.
fn calling(channel: &BalancedChannel) -> tokio::task::JoinHandle<Result<HealthCheckResponse, Status>> {
    let mut health = HealthClient::new(channel.clone());
    tokio::spawn(async move { Ok(health.check(HealthCheckRequest::default()).await?.into_inner()) })
}

async fn answered(peer: &mut Peer, id: u32) {
    peer.answer(id, 0, &[GRPC]).await;
    peer.say(DATA, 0, id, &MESSAGE).await;
    peer.trailers(id, &[OK]).await;
}

/// Nothing is heard for a while.
async fn silence(peer: &mut Peer) {
    let heard = timeout(Duration::from_secs(1), peer.hear()).await;
    assert!(heard.is_err(), "{heard:?}");
}

async fn in_flight(channel: &BalancedChannel, calls: usize) {
    while channel.snapshot().instance("a").is_none_or(|a| a.in_flight != calls) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_unary_call_is_a_head_and_one_data_frame_that_ends_it() {
    let (channel, mut peers) = channel();
    let mut peer = peers.greet(&[]).await;
    let call = calling(&channel);
    let head = peer.hears(HEADERS).await;
    assert_eq!(head.flags, END_HEADERS);
    let data = peer.hears(DATA).await;
    assert_eq!((data.id, data.flags, data.payload), (head.id, END_STREAM, vec![0; 5]));
    answered(&mut peer, head.id).await;
    assert_eq!(call.await.expect("ran").expect("answered").status, 1);
    silence(&mut peer).await;

    // A request without a body is a head alone; an answer may be, too.
    let mut service = channel.clone();
    let request = Request::post("/x/y").body(Body::empty()).expect("valid");
    let call = tokio::spawn(async move { service.call(request).await });
    let head = peer.hears(HEADERS).await;
    assert_eq!(head.flags, END_HEADERS | END_STREAM);
    peer.answer(head.id, END_STREAM, &[GRPC, ("grpc-status", "5")]).await;
    let answer = call.await.expect("ran").expect("answered");
    assert_eq!(answer.headers()["grpc-status"], "5");
    assert!(answer.into_body().frame().await.is_none());
    silence(&mut peer).await;
}

#[tokio::test(start_paused = true)]
async fn informational_heads_are_passed_over() {
    let (channel, mut peers) = channel();
    let mut peer = peers.greet(&[]).await;
    let call = calling(&channel);
    let id = peer.hears_request().await;
    let status_103 = [&[0, 7][..], b":status", &[3], b"103"].concat();
    peer.say(HEADERS, END_HEADERS, id, &status_103).await;
    answered(&mut peer, id).await;
    call.await.expect("ran").expect("answered");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_given_up_resets_its_stream() {
    let (channel, mut peers) = channel();
    let mut peer = peers.greet(&[]).await;
    let call = calling(&channel);
    let id = peer.hears_request().await;
    call.abort();
    let reset = peer.hears(RST_STREAM).await;
    assert_eq!((reset.id, reset.payload), (id, CANCEL.to_vec()));
    in_flight(&channel, 0).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_given_up_resets_its_stream() {
    let (channel, mut peers) = channel();
    let mut peer = peers.greet(&[]).await;
    let mut health = HealthClient::new(channel.clone());
    let call = tokio::spawn(async move { health.watch(HealthCheckRequest::default()).await });
    let id = peer.hears_request().await;
    peer.answer(id, 0, &[GRPC]).await;
    peer.say(DATA, 0, id, &MESSAGE).await;
    let mut watch: Streaming<HealthCheckResponse> = call.await.expect("ran").expect("answered").into_inner();
    assert!(watch.message().await.expect("open").is_some());
    silence(&mut peer).await;
    drop(watch);
    let reset = peer.hears(RST_STREAM).await;
    assert_eq!((reset.id, reset.payload), (id, CANCEL.to_vec()));
}

#[tokio::test(start_paused = true)]
async fn a_reset_is_told_with_its_code_before_the_answer_and_within_it() {
    let (channel, mut peers) = channel();
    let mut peer = peers.greet(&[]).await;
    for answered in [false, true] {
        let call = calling(&channel);
        let id = peer.hears_request().await;
        if answered {
            peer.answer(id, 0, &[GRPC]).await;
        }
        peer.say(RST_STREAM, 0, id, &[0, 0, 0, 11]).await;
        let status = call.await.expect("ran").expect_err("reset");
        assert_eq!(status.code(), Code::ResourceExhausted, "ENHANCE_YOUR_CALM");
        assert!(matches!(typed(&status), ChannelError::Reset { .. }), "{status:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_rises_lets_calls_go_that_wait_and_one_that_falls_holds_them_back() {
    let (channel, mut peers) = channel();
    let mut peer = peers.greet(&[(MAX_CONCURRENT_STREAMS, 1)]).await;
    let first = calling(&channel);
    let one = peer.hears_request().await;
    let waiting = [calling(&channel), calling(&channel)];
    in_flight(&channel, 3).await;
    silence(&mut peer).await;

    peer.set(&[(MAX_CONCURRENT_STREAMS, 3)]).await;
    let others = peer.hears_requests(2).await;
    peer.set(&[(MAX_CONCURRENT_STREAMS, 1)]).await;
    silence(&mut peer).await;
    let last = calling(&channel);
    in_flight(&channel, 4).await;
    for id in others {
        silence(&mut peer).await;
        answered(&mut peer, id).await;
    }
    for call in waiting {
        call.await.expect("ran").expect("answered");
    }
    silence(&mut peer).await;
    answered(&mut peer, one).await;
    first.await.expect("ran").expect("answered");
    let id = peer.hears_request().await;
    answered(&mut peer, id).await;
    last.await.expect("ran").expect("answered");
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_none_at_all_holds_every_call_back_until_it_rises() {
    let (channel, mut peers) = channel();
    let mut peer = peers.greet(&[(MAX_CONCURRENT_STREAMS, 0)]).await;
    let call = calling(&channel);
    in_flight(&channel, 1).await;
    silence(&mut peer).await;
    peer.set(&[(MAX_CONCURRENT_STREAMS, 1)]).await;
    let id = peer.hears_request().await;
    answered(&mut peer, id).await;
    call.await.expect("ran").expect("answered");
}

#[tokio::test(start_paused = true)]
async fn goaway_is_noticed_without_a_call() {
    let (channel, mut peers) = channel();
    let mut peer = peers.greet(&[]).await;
    let call = calling(&channel);
    let id = peer.hears_request().await;
    tokio::time::sleep(Duration::from_secs(2)).await; // long enough for it not to count as a failure
    peer.say(GOAWAY, 0, 0, &[&id.to_be_bytes()[..], &[0; 4]].concat()).await;
    let mut second = peers.greet(&[]).await;
    let snapshot = channel.wait_until(|s| s.instance("a").is_some_and(|a| a.connects == 2)).await;
    let a = snapshot.instance("a").expect("there");
    assert_eq!((a.state, a.in_flight), (ConnectionState::Ready, 1));
    // What it has ends well, and then it is closed.
    let next = calling(&channel);
    let other = second.hears_request().await;
    answered(&mut second, other).await;
    next.await.expect("ran").expect("answered by the new connection");
    answered(&mut peer, id).await;
    call.await.expect("ran").expect("answered by the old one");
    assert_eq!(peer.hear().await.map(|frame| frame.kind), Some(GOAWAY));
    assert_eq!(peer.hear().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_never_written_goes_to_another_instance() {
    let (world, mut peers) = world(64);
    let fleet =
        Fleet::of(["a", "b"].map(|id| Instance::builder(format!("{id}:1").parse().expect("valid")).id(id)));
    let channel = builder(&fleet).policy(Always("a")).runtime(world).build();
    let (mut a, mut b) = (peers.greet(&[]).await, peers.greet(&[]).await);
    if a.address.as_str() == "b:1" {
        std::mem::swap(&mut a, &mut b);
    }
    // Nobody reads what comes after the greeting.
    silence(&mut a).await;
    silence(&mut b).await;
    channel.wait_until(|s| s.chosen() == 2).await;
    let written = calling(&channel);
    in_flight(&channel, 1).await;
    tokio::time::sleep(Duration::from_millis(1)).await; // it is written as far as there is room
    let unwritten = calling(&channel);
    in_flight(&channel, 2).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    drop(a);
    let status = written.await.expect("ran").expect_err("it may have been read");
    assert!(matches!(typed(&status), ChannelError::Lost { .. }), "{status:?}");
    let id = b.hears_request().await;
    answered(&mut b, id).await;
    unwritten.await.expect("ran").expect("answered by b");
}

/// A stream of requests, how many were taken from it, and whether it is still there.
fn endless(taken: &Arc<AtomicUsize>) -> impl tokio_stream::Stream<Item = ServerReflectionRequest> + use<> {
    let taken = Arc::clone(taken);
    tokio_stream::iter(std::iter::repeat_with(move || {
        taken.fetch_add(1, Ordering::SeqCst);
        ServerReflectionRequest { host: "x".repeat(100_000), message_request: None }
    }))
}

#[tokio::test(start_paused = true)]
async fn of_a_stream_of_requests_no_more_is_taken_than_the_peer_takes() {
    let (channel, mut peers) = channel();
    let mut peer = peers.greet(&[(INITIAL_WINDOW_SIZE, 10)]).await;
    let taken = Arc::new(AtomicUsize::new(0));
    let mut reflection = ServerReflectionClient::new(channel.clone());
    let requests = endless(&taken);
    let call = tokio::spawn(async move { reflection.server_reflection_info(requests).await });
    let id = peer.hears(HEADERS).await.id;
    assert_eq!(peer.hears(DATA).await.payload.len(), 10);
    silence(&mut peer).await;
    let few = taken.load(Ordering::SeqCst);
    assert!(few <= 3, "{few}: one in its stream, one read ahead, and what tonic holds");
    peer.say(WINDOW_UPDATE, 0, id, &[0, 0, 0, 5]).await;
    assert_eq!(peer.hears(DATA).await.payload.len(), 5);
    silence(&mut peer).await;
    // It ends with the call, and so does the stream of requests.
    call.abort();
    let reset = peer.hears(RST_STREAM).await;
    assert_eq!((reset.id, reset.payload), (id, CANCEL.to_vec()));
    assert_eq!(Arc::strong_count(&taken), 1);
    assert_eq!(taken.load(Ordering::SeqCst), few);
}

#[tokio::test(start_paused = true)]
async fn requests_go_on_after_an_early_answer_and_end_with_it() {
    let (channel, mut peers) = channel();
    let mut peer = peers.greet(&[]).await;
    let (send, receive) = tokio::sync::mpsc::channel(1);
    let mut reflection = ServerReflectionClient::new(channel.clone());
    let requests = tokio_stream::wrappers::ReceiverStream::new(receive);
    let call = tokio::spawn(async move { reflection.server_reflection_info(requests).await });
    let id = peer.hears(HEADERS).await.id;
    peer.answer(id, 0, &[GRPC]).await;
    let mut echo = call.await.expect("ran").expect("answered").into_inner();
    for host in ["one", "two"] {
        send.send(ServerReflectionRequest { host: host.to_owned(), message_request: None })
            .await
            .expect("read");
        let data = peer.hears(DATA).await;
        assert!(data.payload.ends_with(host.as_bytes()) && data.flags == 0, "{data:?}");
    }
    peer.trailers(id, &[OK]).await;
    assert!(echo.next().await.is_none());
    in_flight(&channel, 0).await;
    // Nobody reads any more.
    let reset = peer.hears(RST_STREAM).await;
    assert_eq!((reset.id, reset.payload), (id, CANCEL.to_vec()));
    send.closed().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_requests_that_ends_or_fails_says_so() {
    let (channel, mut peers) = channel();
    let mut peer = peers.greet(&[]).await;
    let begun = |end: Result<Piece<Bytes>, Status>| {
        let (send, receive) = tokio::sync::mpsc::channel(2);
        send.try_send(Ok(Piece::data(Bytes::from_static(b"abc")))).expect("room");
        let body = Body::new(StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receive)));
        let mut service = channel.clone();
        let call =
            tokio::spawn(async move { service.call(Request::post("/x/y").body(body).expect("valid")).await });
        (call, async move { send.send(end).await.expect("read") })
    };

    let (call, end) = begun(Ok(Piece::trailers(HeaderMap::new())));
    let id = peer.hears(HEADERS).await.id;
    assert_eq!(peer.hears(DATA).await.flags, 0);
    end.await;
    let trailers = peer.hears(HEADERS).await;
    assert_eq!((trailers.id, trailers.flags), (id, END_HEADERS | END_STREAM));
    peer.answer(id, END_STREAM, &[GRPC, OK]).await;
    call.await.expect("ran").expect("answered");

    let (call, end) = begun(Err(Status::data_loss("lost it")));
    let id = peer.hears(HEADERS).await.id;
    assert_eq!(peer.hears(DATA).await.flags, 0);
    end.await;
    let reset = peer.hears(RST_STREAM).await;
    assert_eq!((reset.id, reset.payload), (id, CANCEL.to_vec()));
    let status = call.await.expect("ran").expect_err("as its own stream said");
    assert_eq!((status.code(), status.message()), (Code::DataLoss, "lost it"));

    // One that fails before anything was sent is not even begun.
    let body = Body::new(StreamBody::new(tokio_stream::once(Err::<Piece<Bytes>, _>(Status::aborted("no")))));
    let mut service = channel.clone();
    let status = service
        .call(Request::post("/x/y").body(body).expect("valid"))
        .await
        .expect_err("as its own stream said");
    assert_eq!((status.code(), status.message()), (Code::Aborted, "no"));
    silence(&mut peer).await;
}

#[tokio::test(start_paused = true)]
async fn what_speaks_of_a_connection_in_a_callers_metadata_hurts_nobody() {
    let (channel, mut peers) = channel();
    let mut peer = peers.greet(&[]).await;
    let mut health = HealthClient::new(channel.clone());
    let call = tokio::spawn(async move {
        let mut request = tonic::Request::new(HealthCheckRequest::default());
        for (name, value) in [("connection", "close"), ("keep-alive", "timeout=5"), ("upgrade", "h2c")] {
            request.metadata_mut().insert(name, value.parse().expect("ascii"));
        }
        health.check(request).await
    });
    let id = peer.hears_request().await;
    answered(&mut peer, id).await;
    call.await.expect("ran").expect("answered");
    assert_eq!(channel.snapshot().instance("a").expect("there").connects, 1);
}

/// Many calls on one connection, each given up at another moment, and none of them takes a place for ever.
#[tokio::test]
async fn calls_that_are_given_up_leave_their_places() {
    let server = crate::h2_server::H2Server::new(Some(4));
    let channel = builder(&Fleet::of([server.instance().await])).build();
    for yields in 0..200 {
        let calls: Vec<_> = (0..8).map(|_| calling(&channel)).collect();
        for _ in 0..yields % 20 {
            tokio::task::yield_now().await;
        }
        for call in calls {
            call.abort();
        }
    }
    in_flight(&channel, 0).await;
    for _ in 0..8 {
        let mut health = HealthClient::new(channel.clone());
        health.check(HealthCheckRequest::default()).await.expect("there is room");
    }
    assert_eq!(channel.snapshot().instance("a").expect("there").connects, 1);
}

/// Whoever reads slowly has always something to read.
#[tokio::test(start_paused = true)]
async fn a_deadline_ends_an_answer_of_which_there_is_always_more() {
    let (channel, mut peers) = channel();
    let mut peer = peers.greet(&[]).await;
    let mut health = HealthClient::new(channel.clone());
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    request.set_timeout(Duration::from_secs(2));
    let call = tokio::spawn(async move { health.watch(request).await });
    let id = peer.hears_request().await;
    peer.answer(id, 0, &[GRPC]).await;
    for _ in 0..100 {
        peer.say(DATA, 0, id, &MESSAGE).await;
    }
    let mut watch = call.await.expect("ran").expect("answered").into_inner();
    let mut read = 0;
    let status = loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        match watch.message().await {
            Ok(message) => assert!(message.is_some(), "there is more"),
            Err(status) => break status,
        }
        read += 1;
    };
    assert!(matches!(typed(&status), ChannelError::DeadlineExceeded { .. }), "{status:?}");
    assert!((8..=10).contains(&read), "{read} within 2 s");
    assert_eq!(peer.hears(RST_STREAM).await.payload, CANCEL);
    in_flight(&channel, 0).await;
}
