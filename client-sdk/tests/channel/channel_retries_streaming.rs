//! Calls that are sent again while their stream of requests is still open.

use std::time::Duration;

use client_sdk::{
    channel::BalancedChannel,
    retry::{Retries, Rule},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status, Streaming};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse, server_reflection_client::ServerReflectionClient,
};

use crate::{
    builder,
    frames::{
        CANCEL, DATA, END_STREAM, HEADERS, INITIAL_WINDOW_SIZE, Peer, Peers, RST_STREAM, WINDOW_UPDATE, world,
    },
    kit::{Always, Fleet},
};

const GRPC: (&str, &str) = ("content-type", "application/grpc");
const OK: (&str, &str) = ("grpc-status", "0");
const UNAVAILABLE: (&str, &str) = ("grpc-status", "14");
const NO_ERROR: [u8; 4] = [0; 4];
const ROOMY: u32 = 65_535;
const SOON: Duration = Duration::from_secs(8);

/// Two instances of which the first is always chosen.
struct Scene {
    channel: BalancedChannel,
    a: Peer,
    b: Peer,
    _peers: Peers,
}

/// A call whose stream of requests is open.
struct Open {
    words: mpsc::Sender<ServerReflectionRequest>,
    call: tokio::task::JoinHandle<Result<Response<Streaming<ServerReflectionResponse>>, Status>>,
}

async fn scene(retries: Retries, replay_limit: usize, window: u32) -> Scene {
    let fleet =
        Fleet::of(["a", "b"].map(|id| {
            client_sdk::model::Instance::builder(format!("{id}:1").parse().expect("valid")).id(id)
        }));
    let (world, mut peers) = world(1 << 16);
    let channel = builder(&fleet)
        .policy(Always("a"))
        .retries(retries)
        .replay_limit(replay_limit)
        .runtime(world)
        .build();
    let settings = [(INITIAL_WINDOW_SIZE, window)];
    let (mut a, mut b) = (peers.greet(&settings).await, peers.greet(&settings).await);
    if a.address.as_str() == "b:1" {
        std::mem::swap(&mut a, &mut b);
    }
    channel.wait_until(|now| now.chosen() == 2).await;
    Scene { channel, a, b, _peers: peers }
}

/// The call, which has said one word.
async fn call(channel: &BalancedChannel) -> Open {
    let (words, receive) = mpsc::channel(4);
    let mut reflection = ServerReflectionClient::new(channel.clone());
    let call =
        tokio::spawn(async move { reflection.server_reflection_info(ReceiverStream::new(receive)).await });
    let open = Open { words, call };
    open.say("one").await;
    open
}

impl Open {
    async fn say(&self, word: &str) {
        let word = ServerReflectionRequest { host: word.to_owned(), message_request: None };
        self.words.send(word).await.expect("open");
    }

    async fn answered(self) {
        self.call.await.expect("ran").expect("answered");
    }
}

fn message(word: &str) -> Vec<u8> {
    let length = u8::try_from(word.len()).expect("short");
    [&[0, 0, 0, 0, length + 2, 10, length], word.as_bytes()].concat()
}

/// A request that is not all there: its stream.
async fn hears(peer: &mut Peer, word: &str) -> u32 {
    let head = timeout(SOON, peer.hears(HEADERS)).await.expect("a request");
    assert_eq!(peer.hears(DATA).await.payload, message(word));
    head.id
}

async fn answer(peer: &mut Peer, id: u32) {
    peer.answer(id, 0, &[GRPC]).await;
    peer.trailers(id, &[OK]).await;
}

async fn silence(peer: &mut Peer) {
    let heard = timeout(Duration::from_secs(1), peer.hear()).await;
    assert!(heard.is_err(), "{heard:?}");
}

fn timed(rule: Rule) -> Retries {
    Retries::new().default_rule(rule.per_try_timeout(Duration::from_millis(200)).expect("valid"))
}

#[tokio::test(start_paused = true)]
async fn an_early_bare_status_is_retried() {
    let Scene { channel, mut a, mut b, .. } = scene(Retries::new(), 100, ROOMY).await;
    let open = call(&channel).await;
    let id = hears(&mut a, "one").await;
    a.answer(id, END_STREAM, &[GRPC, UNAVAILABLE]).await;
    let reset = a.hears(RST_STREAM).await;
    assert_eq!((reset.id, &reset.payload[..]), (id, &CANCEL[..]), "nobody sends to it any more");
    let id = hears(&mut b, "one").await;
    open.say("two").await;
    assert_eq!(b.hears(DATA).await.payload, message("two"), "it goes on where it was");
    answer(&mut b, id).await;
    open.answered().await;
}

#[tokio::test(start_paused = true)]
async fn an_early_bare_status_is_retried_though_a_reset_without_error_follows_at_once() {
    let Scene { channel, mut a, mut b, .. } = scene(Retries::new(), 100, ROOMY).await;
    let open = call(&channel).await;
    let id = hears(&mut a, "one").await;
    a.answer(id, END_STREAM, &[GRPC, UNAVAILABLE]).await;
    a.say(RST_STREAM, 0, id, &NO_ERROR).await;
    let id = hears(&mut b, "one").await;
    answer(&mut b, id).await;
    open.answered().await;
}

#[tokio::test(start_paused = true)]
async fn an_early_bare_status_is_the_answer_if_what_was_sent_is_not_kept_or_no_retry_is_due() {
    let timeless = Rule::new().codes([Code::Aborted]).expect("valid");
    for (retries, limit) in [(Retries::new(), 5), (Retries::new().default_rule(timeless), 100)] {
        let Scene { channel, mut a, mut b, .. } = scene(retries, limit, ROOMY).await;
        let open = call(&channel).await;
        let id = hears(&mut a, "one").await;
        a.answer(id, END_STREAM, &[GRPC, UNAVAILABLE]).await;
        assert_eq!(open.call.await.expect("ran").expect_err("its word").code(), Code::Unavailable);
        silence(&mut b).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_idempotent_stream_of_requests_without_an_answer_in_time_goes_elsewhere_and_goes_on() {
    let Scene { channel, mut a, mut b, .. } = scene(timed(Rule::new().idempotent()), 100, ROOMY).await;
    let open = call(&channel).await;
    let lost = hears(&mut a, "one").await;
    let id = hears(&mut b, "one").await;
    let reset = a.hears(RST_STREAM).await;
    assert_eq!((reset.id, &reset.payload[..]), (lost, &CANCEL[..]), "the loser is told");
    open.say("two").await;
    assert_eq!(b.hears(DATA).await.payload, message("two"));
    answer(&mut b, id).await;
    open.answered().await;
    silence(&mut a).await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_window_that_never_opens_goes_elsewhere_in_full() {
    let Scene { channel, mut a, mut b, .. } = scene(timed(Rule::new().idempotent()), 100, 4).await;
    let open = call(&channel).await;
    open.say("two").await;
    a.hears(HEADERS).await;
    assert_eq!(a.hears(DATA).await.payload, message("one")[..4]);
    let id = timeout(SOON, b.hears(HEADERS)).await.expect("a retry").id;
    b.say(WINDOW_UPDATE, 0, id, &100_u32.to_be_bytes()).await;
    let both = [message("one"), message("two")].concat();
    let mut heard = Vec::new();
    while heard.len() < both.len() {
        heard.extend(b.hears(DATA).await.payload);
    }
    assert_eq!(heard, both);
    answer(&mut b, id).await;
    open.answered().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_requests_waits_where_it_is_if_it_is_not_idempotent_or_not_kept() {
    for (rule, limit) in [(Rule::new(), 100), (Rule::new().idempotent(), 5)] {
        let Scene { channel, mut a, mut b, .. } = scene(timed(rule), limit, ROOMY).await;
        let open = call(&channel).await;
        let id = hears(&mut a, "one").await;
        silence(&mut b).await;
        open.say("two").await;
        assert_eq!(a.hears(DATA).await.payload, message("two"), "it goes on");
        answer(&mut a, id).await;
        open.answered().await;
    }
}
