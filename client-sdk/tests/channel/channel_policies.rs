//! What policies that learn are told, and what they make of it under the channel.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use client_sdk::{
    balance::{LeastRequest, Outcome, PeakEwma, Pick, PickContext, PickError, Picker, Policy, Report},
    model::{Instance, InstanceList},
    retry::Retries,
    runtime::Runtime,
};
use tokio_stream::StreamExt;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_client::ServerReflectionClient};

use crate::{
    builder,
    frames::{END_STREAM, HEADERS, world},
    kit::{Act, Fleet, Peer, Server, blocking, who},
};

/// Takes the first instance, and keeps what it is told.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<Outcome>>>);

struct First(InstanceList, Arc<dyn Report>);

impl Report for Told {
    fn finished(&self, outcome: Outcome, _: Option<Duration>) {
        self.0.lock().expect("unpoisoned").push(outcome);
    }
}

impl Policy for Told {
    type Picker = First;

    fn build(&self, instances: &InstanceList) -> First {
        First(Arc::clone(instances), Arc::new(self.clone()))
    }
}

impl Picker for First {
    fn pick(&self, _: &PickContext) -> Result<Pick<'_>, PickError> {
        Ok(Pick::new(&self.0, 0)?.reporting(&self.1, Duration::ZERO))
    }
}

impl Told {
    fn all(&self) -> Vec<Outcome> {
        self.0.lock().expect("unpoisoned").clone()
    }
}

#[tokio::test]
async fn a_policy_is_told_how_a_call_ended_in_its_trailers() {
    let (told, server) = (Told::default(), Server::start("a"));
    let channel = builder(&Fleet::of([server.instance()])).policy(told.clone()).build();
    who(&channel).await.expect("answered");
    assert_eq!(told.all(), [Outcome::Success]);

    let mut health = HealthClient::new(channel.clone());
    let watch = health.watch(HealthCheckRequest::default()).await.expect("opened").into_inner();
    assert_eq!(told.all().len(), 1, "a stream that goes on says nothing yet");
    drop(watch);
    assert_eq!(told.all(), [Outcome::Success, Outcome::Cancelled]);
}

#[tokio::test]
async fn a_connection_that_breaks_is_a_failure_of_its_instance() {
    let (told, peer) = (Told::default(), Peer::start(|_| Act::Close).await);
    let channel = builder(&Fleet::of([peer.instance("peer")])).policy(told.clone()).build();
    who(&channel).await.expect_err("the connection broke");
    assert_eq!(told.all(), [Outcome::Failure]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_requests_that_is_turned_away_is_a_failure_of_its_instance() {
    let (told, (world, mut peers)) = (Told::default(), world(1 << 16));
    let only = Instance::builder("a:1".parse().expect("valid")).id("a");
    let channel =
        builder(&Fleet::of([only])).policy(told.clone()).retries(Retries::none()).runtime(world).build();
    let mut peer = peers.greet(&[]).await;
    let mut reflection = ServerReflectionClient::new(channel);
    let requests = tokio_stream::once(ServerReflectionRequest::default()).chain(tokio_stream::pending());
    let call = tokio::spawn(async move { reflection.server_reflection_info(requests).await });
    let id = peer.hears(HEADERS).await.id;
    peer.answer(id, END_STREAM, &[("content-type", "application/grpc"), ("grpc-status", "14")]).await;
    call.await.expect("ran").expect_err("turned away");
    assert_eq!(told.all(), [Outcome::Failure]);
}

#[tokio::test]
async fn least_request_sends_calls_past_an_instance_that_does_not_answer() {
    let (a, b) = (Server::start("a"), Server::start("b"));
    let channel =
        builder(&Fleet::of([a.instance(), b.instance()])).policy(LeastRequest::with_seed(1)).build();
    channel.wait_until(|snapshot| snapshot.chosen() == 2).await;
    let held = tokio::spawn({
        let channel = channel.clone();
        async move { blocking(&channel).await }
    });
    while channel.snapshot().instances.iter().all(|it| it.in_flight == 0) {
        tokio::task::yield_now().await;
    }
    let (stuck, free) =
        if channel.snapshot().instance("a").expect("there").in_flight == 1 { (&a, &b) } else { (&b, &a) };
    let before = stuck.calls();
    for _ in 0..20 {
        who(&channel).await.expect("answered");
    }
    assert!(stuck.calls() - before <= 1 && free.calls() >= 19, "{} and {}", stuck.calls(), free.calls());
    held.abort();
}

#[tokio::test]
async fn a_deadline_that_passes_with_the_call_at_its_instance_is_a_failure_of_that() {
    let (told, server) = (Told::default(), Server::start("a"));
    let channel = builder(&Fleet::of([server.instance()])).policy(told.clone()).build();
    let mut request = tonic::Request::new(HealthCheckRequest { service: "block".to_owned() });
    request.set_timeout(Duration::from_millis(50));
    HealthClient::new(channel).check(request).await.expect_err("too late");
    assert_eq!(told.all(), [Outcome::Failure]);
}

#[tokio::test]
async fn peak_ewma_works_under_the_channel() {
    let (a, b) = (Server::start("a"), Server::start("b"));
    let policy = PeakEwma::new(&Runtime::tokio());
    let channel = builder(&Fleet::of([a.instance(), b.instance()])).policy(policy).build();
    for _ in 0..20 {
        who(&channel).await.expect("answered");
    }
    assert_eq!(a.calls() + b.calls(), 20);
}
