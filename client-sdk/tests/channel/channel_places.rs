//! When the place of a stream, of which a peer allows only so many, is free again: when both halves of it have ended.

use std::time::Duration;

use client_sdk::{channel::BalancedChannel, model::Instance};
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};
use tokio_stream::{Stream, StreamExt};
use tonic::{Status, Streaming};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse, server_reflection_client::ServerReflectionClient,
};

use crate::{
    builder,
    frames::{DATA, END_STREAM, HEADERS, MAX_CONCURRENT_STREAMS, Peer, Peers, RST_STREAM, world},
    kit::Fleet,
};

const GRPC: (&str, &str) = ("content-type", "application/grpc");
const OK: (&str, &str) = ("grpc-status", "0");
const NO_ERROR: [u8; 4] = [0; 4];
/// `SERVING`.
const MESSAGE: [u8; 7] = [0, 0, 0, 0, 2, 8, 1];
const SOON: Duration = Duration::from_secs(8);

/// A channel of so many connections to a peer that allows one stream on the first.
async fn narrow(connections: usize) -> (BalancedChannel, Peer, Peers) {
    let (world, mut peers) = world(1 << 16);
    let fleet = Fleet::of([Instance::builder("a:1".parse().expect("valid")).id("a")]);
    let channel = builder(&fleet).connections_per_instance(connections).runtime(world).build();
    let peer = peers.greet(&[(MAX_CONCURRENT_STREAMS, 1)]).await;
    (channel, peer, peers)
}

fn calling(channel: &BalancedChannel) -> JoinHandle<Result<HealthCheckResponse, Status>> {
    let mut health = HealthClient::new(channel.clone());
    tokio::spawn(async move { Ok(health.check(HealthCheckRequest::default()).await?.into_inner()) })
}

/// One request, and the stream's end when that is told.
fn until(end: oneshot::Receiver<()>) -> impl Stream<Item = ServerReflectionRequest> + Send + 'static {
    let request = || ServerReflectionRequest { host: "x".to_owned(), message_request: None };
    let (tell, told) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let _ = end.await;
        drop(tell);
    });
    tokio_stream::once(request()).chain(tokio_stream::wrappers::ReceiverStream::new(told))
}

async fn answered(peer: &mut Peer, id: u32) {
    peer.answer(id, 0, &[GRPC]).await;
    peer.say(DATA, 0, id, &MESSAGE).await;
    peer.trailers(id, &[OK]).await;
}

async fn silence(peer: &mut Peer) {
    let heard = timeout(Duration::from_secs(1), peer.hear()).await;
    assert!(heard.is_err(), "{heard:?}");
}

/// A call that the peer has answered to the end, of which nobody has read anything, while its request goes on: until the
/// sender is used or dropped.
async fn half_closed(
    channel: &BalancedChannel,
    peer: &mut Peer,
) -> (u32, Streaming<ServerReflectionResponse>, oneshot::Sender<()>) {
    let (end, ends) = oneshot::channel();
    let mut reflection = ServerReflectionClient::new(channel.clone());
    let call = tokio::spawn(async move { reflection.server_reflection_info(until(ends)).await });
    let id = peer.hears(HEADERS).await.id;
    peer.hears(DATA).await;
    answered(peer, id).await;
    let unread = call.await.expect("ran").expect("answered").into_inner();
    silence(peer).await;
    (id, unread, end)
}

/// Half of it is still open, so it counts against the peer's limit: RFC 9113, 5.1.2.
#[tokio::test(start_paused = true)]
async fn a_stream_that_only_the_peer_has_ended_keeps_its_place_until_we_end_it_too() {
    let (channel, mut peer, mut peers) = narrow(2).await;
    let (_, _unread, _end) = half_closed(&channel, &mut peer).await;
    let next = calling(&channel);
    let mut second = timeout(SOON, peers.greet(&[])).await.expect("another connection");
    let id = timeout(SOON, second.hears_request()).await.expect("it goes to where there is room");
    answered(&mut second, id).await;
    next.await.expect("ran").expect("answered");
    silence(&mut peer).await;
}

/// Whoever waits for it is woken, although nobody reads the answer and the peer says nothing more.
#[tokio::test(start_paused = true)]
async fn the_place_of_a_stream_that_the_peer_ended_first_is_free_once_we_end_it() {
    let (channel, mut peer, _peers) = narrow(1).await;
    for _ in 0..5 {
        let (id, unread, end) = half_closed(&channel, &mut peer).await;
        let next = calling(&channel);
        silence(&mut peer).await;
        end.send(()).expect("the request still goes on");
        let last = peer.hears(DATA).await;
        assert_eq!((last.id, last.flags), (id, END_STREAM));
        let id = timeout(SOON, peer.hears_request()).await.expect("there is room");
        let third = calling(&channel);
        silence(&mut peer).await;
        drop(unread); // its place is not given back again
        silence(&mut peer).await;
        answered(&mut peer, id).await;
        next.await.expect("ran").expect("answered");
        let id = timeout(SOON, peer.hears_request()).await.expect("there is room");
        answered(&mut peer, id).await;
        third.await.expect("ran").expect("answered");
    }
}

#[tokio::test(start_paused = true)]
async fn the_place_of_a_stream_that_the_peer_ended_and_then_reset_is_free() {
    let (channel, mut peer, _peers) = narrow(1).await;
    let (id, _unread, _end) = half_closed(&channel, &mut peer).await;
    let next = calling(&channel);
    silence(&mut peer).await;
    peer.say(RST_STREAM, 0, id, &NO_ERROR).await;
    let id = timeout(SOON, peer.hears_request()).await.expect("there is room");
    answered(&mut peer, id).await;
    next.await.expect("ran").expect("answered");
}

#[tokio::test(start_paused = true)]
async fn the_place_of_a_stream_that_the_peer_ended_is_free_once_its_call_is_given_up() {
    let (channel, mut peer, _peers) = narrow(1).await;
    let (id, unread, _end) = half_closed(&channel, &mut peer).await;
    let next = calling(&channel);
    silence(&mut peer).await;
    drop(unread);
    assert_eq!(peer.hears(RST_STREAM).await.id, id);
    let id = timeout(SOON, peer.hears_request()).await.expect("there is room");
    answered(&mut peer, id).await;
    next.await.expect("ran").expect("answered");
}
