//! C4 on the wire: who is waited for, who is asked, and what counts as an answer. Watchers are written by hand, from the
//! protocol alone.

// Several calls wait at once, each in a task of its own.
#![allow(clippy::disallowed_methods)]

use std::time::Duration;

use integration_tests::{
    process::{Client, Server, within},
    requests::{self, instance, register},
    server_setup,
    stream::Stream,
};
use registry_proto::v1::{self, subscribe_response::Response};
use tokio::task::{JoinHandle, JoinSet};
use tonic::{Code, Status};

const SERVICE: &str = "drained";
/// What takes longer than this never comes.
const PATIENCE: Duration = Duration::from_mins(1);

/// A watcher that acks when its test says so.
struct Acker {
    stream: Stream,
    first: Option<v1::Bookmark>,
    epoch: String,
}

impl Acker {
    /// Opens a stream with one view, and waits until its initial state is complete.
    async fn open(client: &Client, id: &str, watch: v1::WatchRequest) -> Self {
        let mut stream = Stream::open(client).await.expect("a stream");
        stream.ask(requests::hello(id, true)).await;
        stream.ask(requests::subscribe(1, watch)).await;
        let (first, _) = stream.bookmark().await;
        let epoch = first.epoch.clone();
        Self { stream, first: Some(first), epoch }
    }

    /// The same client again, told everything up to `revision`.
    async fn resume(client: &Client, id: &str, epoch: &str, revision: u64) -> Self {
        let cursor = Some(v1::Cursor { epoch: epoch.into(), revision });
        Self::open(client, id, v1::WatchRequest { cursor, ..requests::watch(SERVICE) }).await
    }

    /// Reads until it is asked for an ack, and of what; and what it was told before.
    async fn asked(&mut self) -> (u64, Vec<v1::Change>) {
        if let Some(first) = self.first.take().filter(|first| first.ack_requested) {
            return (first.revision, Vec::new());
        }
        let mut told = Vec::new();
        loop {
            let (bookmark, changes) = self.stream.bookmark().await;
            told.extend(changes.into_iter().map(|(_, change)| change));
            if bookmark.ack_requested {
                return (bookmark.revision, told);
            }
        }
    }

    async fn ack(&self, revision: u64) {
        self.stream.ask(requests::ack(&self.epoch, revision)).await;
    }

    /// Is asked, and answers.
    async fn answer(&mut self) {
        let (revision, _) = self.asked().await;
        self.ack(revision).await;
    }
}

async fn put(client: &Client, lease: u64, service: &str, instances: Vec<v1::Instance>) -> u64 {
    let answer = client.clone().register(register(lease, service, instances)).await;
    answer.expect("a registration").into_inner().revision
}

fn in_zone(id: &str, zone: &str) -> v1::Instance {
    let locality = Some(v1::Locality { region: String::new(), zone: zone.into() });
    v1::Instance { locality, ..instance(id) }
}

fn of_zone(zone: &str) -> v1::WatchRequest {
    let selector = Some(v1::Selector { zone: zone.into(), ..v1::Selector::default() });
    v1::WatchRequest { selector, ..requests::watch(SERVICE) }
}

/// Marks the instance `a` of the zone `a`.
async fn drain(client: &Client) -> u64 {
    let status = v1::InstanceStatus::Draining.into();
    put(client, 1, SERVICE, vec![v1::Instance { status, ..in_zone("a", "a") }]).await
}

/// A server with the instances `a` and `b`, each in its zone.
async fn server() -> (Server, Client) {
    let server = server_setup!().start().await;
    let client = server.client().await;
    put(&client, 1, SERVICE, vec![in_zone("a", "a")]).await;
    put(&client, 2, SERVICE, vec![in_zone("b", "b")]).await;
    (server, client)
}

type Answer = Result<v1::WaitAppliedResponse, Status>;

async fn wait_as(client: &Client, request: v1::WaitAppliedRequest) -> Answer {
    let answer = within("an answer", PATIENCE * 2, client.clone().wait_applied(request.clone())).await;
    answer.map(tonic::Response::into_inner)
}

/// Waits in a task of its own.
fn waiting(client: &Client, revision: u64) -> JoinHandle<Answer> {
    let client = client.clone();
    tokio::spawn(async move { wait_as(&client, requests::wait_applied(SERVICE, revision)).await })
}

async fn ended(waiting: JoinHandle<Answer>) -> v1::WaitAppliedResponse {
    within("the wait's end", PATIENCE, waiting).await.expect("no panic").expect("an answer")
}

/// How far they are, now.
async fn seen(client: &Client, revision: u64) -> v1::WaitAppliedResponse {
    let timeout = Some(requests::seconds(0));
    let request = v1::WaitAppliedRequest { timeout, ..requests::wait_applied(SERVICE, revision) };
    wait_as(client, request).await.expect("an answer")
}

/// Looks until it is so: what one connection says may arrive after what another one asks.
async fn until(client: &Client, revision: u64, wanted: v1::WaitAppliedResponse) {
    let looking = async {
        while seen(client, revision).await != wanted {
            tokio::task::yield_now().await;
        }
    };
    within(&format!("{wanted:?}"), PATIENCE, looking).await;
}

fn counts(acked: u32, lagging: u32, disconnected: u32, not_acking: u32) -> v1::WaitAppliedResponse {
    let satisfied = lagging + disconnected == 0;
    v1::WaitAppliedResponse { acked, lagging, disconnected, not_acking, satisfied }
}

#[tokio::test]
async fn c4_whoever_held_the_instance_is_told_then_asked_and_its_word_ends_the_wait() {
    let (server, client) = server().await;
    let mut whole = Acker::open(&server.client().await, "whole", requests::watch(SERVICE)).await;
    let mut near = Acker::open(&server.client().await, "near", of_zone("a")).await;
    let _elsewhere = Acker::open(&server.client().await, "elsewhere", of_zone("b")).await;
    // Two who cannot ack, of whom one says who it is.
    let _plain = client.clone().watch(requests::watch(SERVICE)).await.expect("a watch");
    let mut silent = Stream::open(&client).await.expect("a stream");
    silent.ask(requests::hello("silent", false)).await;
    silent.ask(requests::subscribe(1, requests::watch(SERVICE))).await;
    silent.bookmark().await;

    // D2: the wait is right after the answer of the write.
    let revision = drain(&client).await;
    let wait = waiting(&client, revision);
    let (asked, told) = whole.asked().await;
    assert!(asked >= revision, "it is asked for what is waited for");
    assert!(told.iter().any(|change| change.revision >= revision), "W7: it was told before");
    assert_eq!(seen(&client, revision).await, counts(0, 2, 0, 2));
    whole.ack(asked).await;
    until(&client, revision, counts(1, 1, 0, 2)).await;
    assert!(!wait.is_finished(), "one is missing");
    near.answer().await;
    assert_eq!(ended(wait).await, counts(2, 0, 0, 2));
    // Whoever comes now never held what was before: nobody has this selection yet, so its first snapshot is a new one.
    let statuses = vec![v1::InstanceStatus::Draining.into()];
    let selector = Some(v1::Selector { statuses, ..v1::Selector::default() });
    let late = v1::WatchRequest { selector, ..requests::watch(SERVICE) };
    let _late = Acker::open(&server.client().await, "late", late).await;
    assert_eq!(seen(&client, revision).await, counts(2, 0, 0, 2));
}

#[tokio::test]
async fn one_that_vanished_counts_until_it_is_back_and_acks_wherever_it_resumes() {
    let (server, client) = server().await;
    let mut ackers = Vec::new();
    for id in ["below", "at"] {
        ackers.push(Acker::open(&server.client().await, id, requests::watch(SERVICE)).await);
    }
    let epoch = ackers[0].epoch.clone();
    let before = ackers[0].first.clone().expect("a bookmark").revision;
    let revision = drain(&client).await;
    let wait = waiting(&client, revision);
    // They know of the change, and did not ack it.
    for acker in &mut ackers {
        acker.asked().await;
    }
    drop(ackers);
    until(&client, revision, counts(0, 0, 2, 0)).await;
    let mut at = Acker::resume(&server.client().await, "at", &epoch, revision).await;
    until(&client, revision, counts(0, 1, 1, 0)).await;
    at.answer().await;
    until(&client, revision, counts(1, 0, 1, 0)).await;
    let mut below = Acker::resume(&server.client().await, "below", &epoch, before).await;
    until(&client, revision, counts(1, 1, 0, 0)).await;
    assert!(!wait.is_finished());
    below.answer().await;
    assert_eq!(ended(wait).await, counts(2, 0, 0, 0));
    // Having acked it, it may come and go.
    drop(at);
    let _at = Acker::resume(&server.client().await, "at", &epoch, revision).await;
    assert_eq!(seen(&client, revision).await, counts(2, 0, 0, 0));
}

#[tokio::test]
async fn a_client_that_drops_its_view_is_not_waited_for() {
    let (server, client) = server().await;
    let mut leaving = Acker::open(&server.client().await, "leaving", requests::watch(SERVICE)).await;
    let revision = drain(&client).await;
    let wait = waiting(&client, revision);
    leaving.asked().await;
    leaving.stream.ask(requests::unsubscribe(1)).await;
    assert_eq!(ended(wait).await, counts(0, 0, 0, 0));
}

#[tokio::test]
async fn c4_one_that_left_one_that_only_stopped_asking_and_one_that_broke_are_told_apart() {
    let (server, client) = server().await;
    let mut ackers = Vec::new();
    for id in ["leaves", "stops-asking", "breaks"] {
        ackers.push(Acker::open(&server.client().await, id, requests::watch(SERVICE)).await);
    }
    let revision = drain(&client).await;
    let wait = waiting(&client, revision);
    for acker in &mut ackers {
        acker.asked().await;
    }
    assert_eq!(seen(&client, revision).await, counts(0, 3, 0, 0));
    let [leaves, stops_asking, breaks]: [Acker; 3] = ackers.try_into().ok().expect("three");
    leaves.stream.ask(requests::unsubscribe(1)).await;
    leaves.stream.ends().await;
    // At once: the end of its stream says that it was heard.
    assert_eq!(seen(&client, revision).await, counts(0, 2, 0, 0));
    drop(breaks);
    until(&client, revision, counts(0, 1, 1, 0)).await;
    let reading = stops_asking.stream.close_side();
    assert_eq!(seen(&client, revision).await, counts(0, 1, 1, 0));
    drop(reading);
    until(&client, revision, counts(0, 0, 2, 0)).await;
    assert!(!wait.is_finished());
    wait.abort();
}

#[tokio::test]
async fn two_streams_of_one_client_have_both_to_ack() {
    let (server, client) = server().await;
    let mut one = Acker::open(&server.client().await, "client", requests::watch(SERVICE)).await;
    let mut two = Acker::open(&server.client().await, "client", requests::watch(SERVICE)).await;
    let revision = drain(&client).await;
    let wait = waiting(&client, revision);
    one.answer().await;
    let (asked, _) = two.asked().await;
    assert_eq!(seen(&client, revision).await, counts(0, 1, 0, 0));
    two.ack(asked).await;
    assert_eq!(ended(wait).await, counts(1, 0, 0, 0));
}

#[tokio::test]
async fn what_was_not_told_cannot_be_acked() {
    let (server, client) = server().await;
    let mut liar = Acker::open(&server.client().await, "liar", requests::watch(SERVICE)).await;
    let revision = drain(&client).await;
    let wait = waiting(&client, revision);
    let (asked, _) = liar.asked().await;
    for (lie, field) in [
        (requests::ack(&liar.epoch, asked + 1), "ack.revision"),
        (requests::ack(&liar.epoch, u64::MAX), "ack.revision"),
        (requests::ack("another", asked), "ack.epoch"),
    ] {
        liar.stream.ask(lie).await;
        let (view, error) = liar.stream.refusal().await;
        assert_eq!((view, Code::from(error.code), error.field.as_str()), (0, Code::InvalidArgument, field));
        assert_eq!(seen(&client, revision).await, counts(0, 1, 0, 0), "it counts for nothing");
    }
    // What is too little counts for nothing either, and the stream goes on.
    liar.ack(asked - 1).await;
    put(&client, 2, SERVICE, vec![v1::Instance { weight: Some(9), ..in_zone("b", "b") }]).await;
    liar.stream.change(1).await;
    assert_eq!(seen(&client, revision).await, counts(0, 1, 0, 0));
    liar.ack(asked).await;
    assert_eq!(ended(wait).await, counts(1, 0, 0, 0));
}

#[tokio::test]
async fn a_share_is_enough_and_several_may_wait() {
    let (server, client) = server().await;
    let mut ackers = Vec::new();
    for id in ["a", "b", "c", "d"] {
        ackers.push(Acker::open(&server.client().await, id, requests::watch(SERVICE)).await);
    }
    let revision = drain(&client).await;
    let half = v1::WaitAppliedRequest { share: 0.5, ..requests::wait_applied(SERVICE, revision) };
    let asking = client.clone();
    let half = tokio::spawn(async move { wait_as(&asking, half).await });
    let all: Vec<_> = (0..3).map(|_| waiting(&client, revision)).collect();
    for acker in &mut ackers[..2] {
        acker.answer().await;
    }
    let answer = ended(half).await;
    assert_eq!(answer, v1::WaitAppliedResponse { satisfied: true, ..counts(2, 2, 0, 0) });
    assert!(all.iter().all(|wait| !wait.is_finished()));
    for acker in &mut ackers[2..] {
        acker.answer().await;
    }
    for wait in all {
        assert_eq!(ended(wait).await, counts(4, 0, 0, 0));
    }
}

#[tokio::test]
async fn a_reader_that_does_not_read_lags_and_an_answer_comes_all_the_same() {
    let (server, client) = server().await;
    let mut slow = Acker::open(&server.client().await, "slow", requests::watch(SERVICE)).await;
    // More than its connection takes before anybody reads.
    for round in 0..4 {
        let tags: std::collections::HashMap<_, _> =
            (0..3).map(|tag| (format!("t{tag}"), "v".repeat(4_000))).collect();
        let large =
            (0..250).map(|n| v1::Instance { tags: tags.clone(), ..instance(&format!("large-{round}-{n}")) });
        put(&client, 3, SERVICE, large.collect()).await;
    }
    let revision = drain(&client).await;
    let timeout = Some(prost_types::Duration { seconds: 0, nanos: 300_000_000 });
    let request = v1::WaitAppliedRequest { timeout, ..requests::wait_applied(SERVICE, revision) };
    let answer = wait_as(&client, request).await.expect("counts, and no error");
    assert_eq!(answer, counts(0, 1, 0, 0));
    let wait = waiting(&client, revision);
    slow.answer().await;
    assert_eq!(ended(wait).await, counts(1, 0, 0, 0));
}

#[tokio::test]
async fn without_a_wait_nobody_is_asked() {
    let (server, client) = server().await;
    let mut watcher = Acker::open(&server.client().await, "watcher", requests::watch(SERVICE)).await;
    let revision = drain(&client).await;
    // One who looks and goes asks nobody either.
    assert_eq!(seen(&client, revision).await, counts(0, 1, 0, 0));
    let (bookmark, changes) = watcher.stream.bookmark().await;
    assert!(!bookmark.ack_requested);
    assert_eq!(changes.len(), 1, "the change and the bookmark, nothing else");
}

#[tokio::test]
async fn a_repeated_write_names_the_change_that_it_made() {
    let (server, client) = server().await;
    let mut watcher = Acker::open(&server.client().await, "watcher", of_zone("a")).await;
    let revision = drain(&client).await;
    let other = put(&client, 2, SERVICE, vec![v1::Instance { weight: Some(9), ..in_zone("b", "b") }]).await;
    assert_eq!(seen(&client, other).await, counts(0, 0, 0, 0), "of the other zone");
    assert_eq!(drain(&client).await, revision, "whoever did not get the answer asks again");
    // A revision at which nothing happened to the service stands for what happened before it.
    let elsewhere = put(&client, 9, "elsewhere", vec![instance("x")]).await;
    let wait = waiting(&client, elsewhere);
    watcher.answer().await;
    assert_eq!(ended(wait).await, counts(1, 0, 0, 0));
}

#[tokio::test]
async fn of_what_is_no_longer_known_everybody_counts_as_concerned() {
    let server = server_setup!().with("--history-count", "3").start().await;
    let client = server.client().await;
    put(&client, 1, SERVICE, vec![in_zone("a", "a")]).await;
    let mut elsewhere = Acker::open(&server.client().await, "elsewhere", of_zone("b")).await;
    let revision = drain(&client).await;
    assert_eq!(seen(&client, revision).await, counts(0, 0, 0, 0));
    for weight in 1..=5 {
        put(&client, 9, "noisy", vec![v1::Instance { weight: Some(weight), ..instance("x") }]).await;
    }
    assert_eq!(seen(&client, revision).await, counts(0, 1, 0, 0));
    let wait = waiting(&client, revision);
    elsewhere.answer().await;
    assert_eq!(ended(wait).await, counts(1, 0, 0, 0));
}

#[tokio::test]
async fn a_server_that_stops_ends_the_waits_and_one_that_starts_does_not_know_who_watched() {
    let setup = server_setup!().with("--grace", "1s");
    let server = setup.start().await;
    let client = server.client().await;
    put(&client, 1, SERVICE, vec![in_zone("a", "a")]).await;
    let mut watcher = Acker::open(&server.client().await, "watcher", requests::watch(SERVICE)).await;
    let revision = drain(&client).await;
    let wait = waiting(&client, revision);
    watcher.asked().await;
    server.terminate();
    let refused = within("the wait's end", PATIENCE, wait).await.expect("no panic").expect_err("it stops");
    assert_eq!((refused.code(), requests::reason(&refused).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    while !matches!(watcher.stream.next().await, (0, Response::GoAway(_))) {}
    let epoch = watcher.epoch.clone();
    drop((watcher, client));
    server.ended().await;

    let server = setup.start().await;
    let client = server.client().await;
    let answer = seen(&client, revision).await;
    assert_eq!(answer, v1::WaitAppliedResponse { satisfied: false, ..counts(0, 0, 0, 0) });
    let wait = waiting(&client, revision);
    let mut watcher = Acker::resume(&server.client().await, "watcher", &epoch, revision - 1).await;
    watcher.answer().await;
    let answer = ended(wait).await;
    assert_eq!(answer, counts(1, 0, 0, 0), "20 s later everybody would be back");
}

#[tokio::test]
async fn a_thousand_may_wait_and_whoever_goes_makes_room() {
    let (server, client) = server().await;
    let _watcher = Acker::open(&server.client().await, "watcher", requests::watch(SERVICE)).await;
    let revision = drain(&client).await;
    let mut waits = JoinSet::new();
    for _ in 0..=1_000 {
        let client = client.clone();
        waits.spawn(async move { wait_as(&client, requests::wait_applied(SERVICE, revision)).await });
    }
    let first = within("a refusal", PATIENCE, waits.join_next()).await.expect("many").expect("no panic");
    let refused = first.expect_err("one too many");
    let found = (refused.code(), requests::reason(&refused));
    assert_eq!(found, (Code::ResourceExhausted, "TOO_MANY_WAITS".to_owned()));
    assert!(refused.message().contains("1000"), "{}", refused.message());
    waits.shutdown().await;
    let looking = async {
        let timeout = Some(requests::seconds(0));
        let request = v1::WaitAppliedRequest { timeout, ..requests::wait_applied(SERVICE, revision) };
        loop {
            match wait_as(&client, request.clone()).await {
                Ok(answer) => return answer,
                Err(refused) => assert_eq!(refused.code(), Code::ResourceExhausted),
            }
        }
    };
    assert_eq!(within("room", PATIENCE, looking).await, counts(0, 1, 0, 0));
}
