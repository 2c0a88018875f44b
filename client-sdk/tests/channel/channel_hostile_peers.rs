//! Peers that do what they should not, or do what they may at odd moments: no panic, nothing sent twice, no place lost.

use std::time::Duration;

use client_sdk::{
    channel::{BalancedChannel, ChannelError},
    model::Instance,
    retry::{Retries, Rule},
};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};
use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_client::ServerReflectionClient};

use crate::{
    builder,
    frames::{
        DATA, END_STREAM, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS, Peer, Peers,
        RST_STREAM, WINDOW_UPDATE, world,
    },
    kit::{Always, Fleet, frame},
    typed,
};

const GRPC: (&str, &str) = ("content-type", "application/grpc");
const OK: (&str, &str) = ("grpc-status", "0");
const NO_ERROR: [u8; 4] = [0; 4];
const REFUSED: [u8; 4] = [0, 0, 0, 7];
/// `SERVING`.
const MESSAGE: [u8; 7] = [0, 0, 0, 0, 2, 8, 1];
const SOON: Duration = Duration::from_secs(8);

fn fleet(ids: &[&'static str]) -> Fleet {
    Fleet::of(ids.iter().map(|id| Instance::builder(format!("{id}:1").parse().expect("valid")).id(*id)))
}

fn one() -> (BalancedChannel, Peers) {
    let (world, peers) = world(1 << 16);
    (builder(&fleet(&["a"])).runtime(world).build(), peers)
}

/// Two instances of which the first is always chosen.
async fn two(retries: Retries) -> (BalancedChannel, Peer, Peer, Peers) {
    let (world, mut peers) = world(1 << 16);
    let channel = builder(&fleet(&["a", "b"])).policy(Always("a")).retries(retries).runtime(world).build();
    let (mut a, mut b) = (peers.greet(&[]).await, peers.greet(&[]).await);
    if a.address.as_str() == "b:1" {
        std::mem::swap(&mut a, &mut b);
    }
    channel.wait_until(|s| s.chosen() == 2).await;
    (channel, a, b, peers)
}

type Call<T> = tokio::task::JoinHandle<Result<T, Status>>;

fn calling(channel: &BalancedChannel) -> Call<HealthCheckResponse> {
    calling_within(channel, None)
}

fn calling_within(channel: &BalancedChannel, deadline: Option<Duration>) -> Call<HealthCheckResponse> {
    let mut health = HealthClient::new(channel.clone());
    let mut request = Request::new(HealthCheckRequest::default());
    if let Some(deadline) = deadline {
        request.set_timeout(deadline);
    }
    tokio::spawn(async move { Ok(health.check(request).await?.into_inner()) })
}

/// A stream of requests that goes on for ever after the first one.
fn endless() -> impl tokio_stream::Stream<Item = ServerReflectionRequest> + Send {
    let first = ServerReflectionRequest { host: "x".to_owned(), message_request: None };
    tokio_stream::once(first).chain(tokio_stream::pending())
}

async fn answered(peer: &mut Peer, id: u32) {
    peer.answer(id, 0, &[GRPC]).await;
    peer.say(DATA, 0, id, &MESSAGE).await;
    peer.trailers(id, &[OK]).await;
}

async fn in_flight(channel: &BalancedChannel, id: &str, calls: usize) {
    let reached = async {
        while channel.snapshot().instance(id).is_none_or(|a| a.in_flight != calls) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, reached).await.unwrap_or_else(|_| panic!("{:?}", channel.snapshot()));
}

async fn silence(peer: &mut Peer) {
    let heard = timeout(Duration::from_secs(1), peer.hear()).await;
    assert!(heard.is_err(), "{heard:?}");
}

/// As servers do that answer before they have read all of a request: RFC 9113, 8.1.
#[tokio::test(start_paused = true)]
async fn an_early_answer_counts_though_a_reset_without_error_follows_at_once() {
    let (channel, mut peers) = one();
    let mut peer = peers.greet(&[]).await;
    let mut reflection = ServerReflectionClient::new(channel.clone());
    let call = tokio::spawn(async move { reflection.server_reflection_info(endless()).await });
    let id = peer.hears(HEADERS).await.id;
    peer.hears(DATA).await;
    peer.answer(id, 0, &[GRPC]).await;
    peer.say(DATA, 0, id, &[0, 0, 0, 0, 0]).await;
    peer.trailers(id, &[OK]).await;
    peer.say(RST_STREAM, 0, id, &NO_ERROR).await;
    let mut echo = call.await.expect("ran").expect("answered").into_inner();
    assert!(echo.next().await.expect("a message").is_ok());
    let end = echo.next().await;
    assert!(end.is_none(), "{end:?}");
    in_flight(&channel, "a", 0).await;
}

/// It would be ejected for what its callers did.
#[tokio::test(start_paused = true)]
async fn early_bare_statuses_that_speak_of_the_request_eject_nobody_though_a_reset_follows() {
    let (channel, mut a, _b, _peers) = two(Retries::new()).await;
    for _ in 0..6 {
        let mut reflection = ServerReflectionClient::new(channel.clone());
        let call = tokio::spawn(async move { reflection.server_reflection_info(endless()).await });
        let id = a.hears(HEADERS).await.id;
        a.hears(DATA).await;
        a.answer(id, END_STREAM, &[GRPC, ("grpc-status", "16")]).await;
        a.say(RST_STREAM, 0, id, &NO_ERROR).await;
        let status = timeout(SOON, call).await.expect("in time").expect("ran").expect_err("refused");
        assert_eq!(status.code(), Code::Unauthenticated);
        tokio::time::sleep(Duration::from_millis(10)).await;
        let a = channel.snapshot();
        assert!(a.instance("a").expect("there").ejection.is_none(), "{a:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_left_and_is_not_idempotent_is_sent_once_however_it_breaks() {
    for how in 0..6 {
        let (channel, mut a, mut b, _peers) = two(Retries::new()).await;
        let call = calling(&channel);
        let id = a.hears_request().await;
        match how {
            0 => drop(a),
            1 => {
                a.say(GOAWAY, 0, 0, &[&id.to_be_bytes()[..], &[0, 0, 0, 11]].concat()).await;
                drop(a);
            }
            2 => a.say(RST_STREAM, 0, id, &[0, 0, 0, 8]).await,
            3 => {
                // Begun, and then refused: too late to be refused.
                a.answer(id, 0, &[GRPC]).await;
                a.say(RST_STREAM, 0, id, &REFUSED).await;
            }
            4 => a.say(DATA, 0, id, &MESSAGE).await,
            _ => a.say(99, 0xff, id, &[1; 100]).await,
        }
        if how == 5 {
            // An unknown frame is passed over.
            silence(&mut b).await;
            call.abort();
            continue;
        }
        let status = timeout(SOON, call).await.expect("in time").expect("ran").expect_err("lost");
        assert_ne!(status.code(), Code::Ok, "{how}");
        silence(&mut b).await;
        in_flight(&channel, "a", 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_goaway_that_names_the_call_as_beyond_it_costs_no_budget_and_loses_nothing() {
    let none = Retries::none().budget(0.0, 0).expect("valid");
    let (channel, mut a, mut b, _peers) = two(none).await;
    let calls = [calling(&channel), calling(&channel)];
    let ids = a.hears_requests(2).await;
    let first = ids.iter().min().expect("two");
    // As a server says that closes gracefully: all of them, and then how far it came.
    a.say(GOAWAY, 0, 0, &[&[0x7f, 0xff, 0xff, 0xff][..], &NO_ERROR].concat()).await;
    a.say(GOAWAY, 0, 0, &[&first.to_be_bytes()[..], &NO_ERROR].concat()).await;
    let id = timeout(SOON, b.hears_request()).await.expect("the second goes elsewhere");
    answered(&mut b, id).await;
    answered(&mut a, *first).await;
    for call in calls {
        call.await.expect("ran").expect("answered");
    }
}

#[tokio::test(start_paused = true)]
async fn headers_beyond_the_bound_fail_their_call_and_no_other() {
    let (channel, mut peers) = one();
    let mut peer = peers.greet(&[]).await;
    let big = calling(&channel);
    let id = peer.hears_request().await;
    let small = calling(&channel);
    let other = peer.hears_request().await;
    let long = "x".repeat(120);
    let many: Vec<_> = (0..115).map(|_| ("name", long.as_str())).collect();
    peer.answer(id, 0, &many).await;
    let status = timeout(SOON, big).await.expect("in time").expect("ran").expect_err("too much");
    assert!(matches!(typed(&status), ChannelError::Reset { .. }), "{status:?}");
    assert_eq!(peer.hears(RST_STREAM).await.id, id);
    answered(&mut peer, other).await;
    small.await.expect("ran").expect("answered");
    in_flight(&channel, "a", 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_opens_its_window_costs_its_callers_their_deadline_and_no_place() {
    let (world, mut peers) = world(1 << 16);
    let channel = builder(&fleet(&["a"])).runtime(world).build();
    let mut peer = peers.greet(&[(INITIAL_WINDOW_SIZE, 0), (MAX_CONCURRENT_STREAMS, 3)]).await;
    let calls: Vec<_> = (0..20).map(|_| calling_within(&channel, Some(Duration::from_secs(1)))).collect();
    for call in calls {
        let status = timeout(SOON, call).await.expect("in time").expect("ran").expect_err("too late");
        assert_eq!(status.code(), Code::DeadlineExceeded);
    }
    in_flight(&channel, "a", 0).await;
    // And there is room again.
    let mut health = HealthClient::new(channel.clone());
    let call = tokio::spawn(async move { health.check(HealthCheckRequest::default()).await });
    let id = loop {
        let frame = timeout(SOON, peer.hear()).await.expect("in time").expect("open");
        let alone = timeout(Duration::from_secs(2), peer.hear()).await.is_err();
        if frame.kind == HEADERS && alone {
            break frame.id;
        }
    };
    peer.say(WINDOW_UPDATE, 0, id, &100_u32.to_be_bytes()).await;
    peer.hears(DATA).await;
    answered(&mut peer, id).await;
    call.await.expect("ran").expect("answered");
}

/// Frames at random: what becomes of the call does not matter, but it ends, and the next one is served.
#[tokio::test(start_paused = true)]
async fn whatever_a_peer_says_calls_end_no_place_is_lost_and_the_next_peer_is_asked() {
    for seed in 0..300 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (channel, mut peers) = one();
        let mut peer = peers.greet(&[(MAX_CONCURRENT_STREAMS, rng.u32(1..4))]).await;
        let calls: Vec<_> = (0..4).map(|_| calling_within(&channel, Some(Duration::from_secs(5)))).collect();
        peer.hears_request().await;
        let mut noise = Vec::new();
        for _ in 0..rng.usize(1..12) {
            let id = [0, 1, 1, 1, 2, 3, 3, 5, 9, u32::MAX >> 1][rng.usize(0..10)];
            let payload: Vec<u8> = (0..rng.usize(0..20)).map(|_| rng.u8(..)).collect();
            let payload = match rng.u8(0..4) {
                0 => vec![0x88],
                1 => MESSAGE.to_vec(),
                2 => vec![0, 0, 0, rng.u8(0..14)],
                _ => payload,
            };
            noise.extend(frame(rng.u8(0..11), [0, 1, 4, 5, rng.u8(..)][rng.usize(0..5)], id, &payload));
        }
        peer.raw(&noise).await;
        let drain = tokio::spawn(async move { while peer.hear().await.is_some() {} });
        for call in calls {
            let _ = timeout(SOON, call).await.unwrap_or_else(|_| panic!("seed {seed}")).expect("no panic");
        }
        in_flight(&channel, "a", 0).await;
        drain.abort();
        let next = calling(&channel);
        let mut good = timeout(SOON, peers.greet(&[])).await.unwrap_or_else(|_| panic!("seed {seed}"));
        if let Ok(id) = timeout(SOON, good.hears_request()).await {
            answered(&mut good, id).await;
            next.await.expect("ran").expect("answered");
        } else {
            // It went to the old one just before that ended, or nobody was connected.
            let ended = timeout(SOON, next).await.unwrap_or_else(|_| panic!("seed {seed}")).expect("ran");
            let status = ended.expect_err("there is no other");
            assert_eq!(status.code(), Code::Unavailable, "seed {seed}: {status:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_moved_and_then_fails_is_told_the_last_word_and_leaves_no_place_taken() {
    let rule = Rule::new().idempotent().per_try_timeout(Duration::from_secs(1)).expect("valid");
    let (channel, mut a, mut b, _peers) = two(Retries::new().default_rule(rule)).await;
    let call = calling(&channel);
    a.hears_request().await;
    let id = timeout(SOON, b.hears_request()).await.expect("moved after the time of one try");
    assert_eq!(a.hears(RST_STREAM).await.payload, vec![0, 0, 0, 8], "the first is given up");
    b.say(RST_STREAM, 0, id, &[0, 0, 0, 2]).await;
    let status = call.await.expect("ran").expect_err("both failed");
    assert!(matches!(typed(&status), ChannelError::Reset { .. }), "{status:?}");
    in_flight(&channel, "a", 0).await;
    in_flight(&channel, "b", 0).await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_left_is_forgotten_once_its_last_call_ended() {
    let (world, mut peers) = world(1 << 16);
    let fleet = fleet(&["a"]);
    let channel = builder(&fleet).runtime(world).build();
    let mut peer = peers.greet(&[]).await;
    let calls = [calling(&channel), calling(&channel)];
    let ids = peer.hears_requests(2).await;
    fleet.set([]);
    in_flight(&channel, "a", 2).await;
    for id in ids {
        answered(&mut peer, id).await;
    }
    for call in calls {
        call.await.expect("ran").expect("answered");
    }
    let gone = async {
        while channel.snapshot().instance("a").is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, gone).await.unwrap_or_else(|_| panic!("{:?}", channel.snapshot()));
}
