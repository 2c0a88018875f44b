//! HTTP/2 keepalive: who is pinged, when, and what becomes of who does not answer.

use std::time::Duration;

use client_sdk::{
    channel::{BalancedChannel, ChannelBuilder, ChannelError},
    model::Instance,
};
use tokio::time::{Instant, timeout};
use tonic::Code;

use crate::{
    builder,
    frames::{PING, Peer, Peers, world},
    kit::{Fleet, who},
    typed,
};

const ACK: u8 = 1;

fn channel(with: impl FnOnce(ChannelBuilder<Fleet>) -> ChannelBuilder<Fleet>) -> (BalancedChannel, Peers) {
    let (world, peers) = world(1 << 16);
    let fleet = Fleet::of([Instance::builder("a:1".parse().expect("valid")).id("a")]);
    (with(builder(&fleet).runtime(world)).build(), peers)
}

async fn pong(peer: &mut Peer) -> Instant {
    let ping = peer.hears(PING).await;
    assert_eq!(ping.flags, 0);
    peer.say(PING, ACK, 0, &ping.payload).await;
    Instant::now()
}

#[tokio::test(start_paused = true)]
async fn an_idle_peer_is_pinged_once_an_interval_and_not_more_often() {
    let (_channel, mut peers) = channel(|builder| builder);
    let mut peer = peers.greet(&[]).await;
    let mut last = Instant::now();
    for _ in 0..10 {
        let now = pong(&mut peer).await;
        assert_eq!((now - last).as_secs(), 10);
        last = now;
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_heard_of_is_not_pinged_and_one_that_falls_silent_is_within_the_interval() {
    let (_channel, mut peers) = channel(|builder| builder);
    let mut peer = peers.greet(&[]).await;
    for _ in 0..30 {
        assert!(timeout(Duration::from_secs(4), peer.hear()).await.is_err(), "no ping, nor anything");
        peer.say(PING, 0, 0, &[7; 8]).await;
        let ours = peer.hears(PING).await;
        assert_eq!((ours.flags, ours.payload), (ACK, vec![7; 8]));
    }
    let last = Instant::now();
    let after = pong(&mut peer).await - last;
    assert!((5..=10).contains(&after.as_secs()), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_calls_is_not_pinged_if_that_is_not_wanted() {
    let (channel, mut peers) = channel(|builder| builder.keepalive_while_idle(false));
    let mut peer = peers.greet(&[]).await;
    assert!(timeout(Duration::from_mins(10), peer.hear()).await.is_err());
    let call = tokio::spawn(async move { who(&channel).await });
    peer.hears_request().await;
    let since = Instant::now();
    let after = pong(&mut peer).await - since;
    assert!((5..=10).contains(&after.as_secs()), "{after:?}");
    call.abort();
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_peer_does_not_answer_a_ping_is_lost_and_says_why() {
    let (channel, mut peers) =
        channel(|builder| builder.keepalive(Duration::from_secs(20), Duration::from_secs(3)));
    let mut peer = peers.greet(&[]).await;
    let call = tokio::spawn(async move { who(&channel).await });
    peer.hears_request().await;
    let since = Instant::now();
    peer.hears(PING).await;
    let status = call.await.expect("ran").expect_err("given up");
    assert!((13..=23).contains(&since.elapsed().as_secs()), "{:?}", since.elapsed());
    assert_eq!(status.code(), Code::Unavailable);
    assert!(matches!(typed(&status), ChannelError::Lost { .. }), "{status:?}");
    assert!(status.message().ends_with("keepalive: no answer to a ping within 3000 ms"), "{status:?}");
    assert!(peer.hear().await.is_none(), "the connection is closed");
}
