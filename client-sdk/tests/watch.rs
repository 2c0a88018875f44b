//! The watch and discovery over the registry. Several tests are named after a fault of other systems that they guard
//! against.
#![allow(clippy::disallowed_methods, clippy::unchecked_time_subtraction)] // the calls under test run beside the script

mod support;

use std::{sync::Arc, time::Duration};

use client_sdk::{
    balance::{Balancer, RoundRobin},
    client::MissingRegistry,
    discover::{Discover as _, RegistryDiscover, RegistryDiscoverError, ViewReceiver, follow},
    model::Instance,
    watch::{SILENCE, WatchError},
};
use registry_proto::v1::{self, subscribe_request::Request, subscribe_response};
use support::{Net, Subscription, adding, endpoint, instance, snapshot, soon};
use tokio::time::timeout;
use tonic::Status;

fn discover(net: &Net, endpoints: &[&str]) -> RegistryDiscover {
    RegistryDiscover::builder(net.client(endpoints)).build()
}

fn ids(instances: &[Arc<Instance>]) -> Vec<&str> {
    instances.iter().map(|instance| &*instance.id).collect()
}

/// Until the view shows exactly these ids.
async fn shows(view: &mut ViewReceiver, wanted: &[&str]) {
    let shown = view.wait_for(|state| state.view.as_ref().is_some_and(|view| ids(&view.instances) == wanted));
    soon(shown).await.expect("the view is followed");
}

async fn healthy(view: &mut ViewReceiver) {
    soon(view.wait_for(|state| state.error.is_none())).await.expect("the view is followed");
}

async fn troubled(view: &mut ViewReceiver) {
    soon(view.wait_for(|state| state.error.is_some())).await.expect("the view is followed");
}

/// Follows `s`, whose view is `{a}` at revision 5 of epoch `e`.
async fn following(
    fake: &mut support::Fake,
    discover: &RegistryDiscover,
) -> (ViewReceiver, Subscription, u32) {
    let mut view = discover.view(&endpoint("s")).expect("it has views");
    let mut stream = fake.subscription().await;
    let (id, service, watch) = stream.subscribe().await;
    assert_eq!((service.as_str(), watch.cursor), ("s", None));
    stream.change(id, snapshot("e", 5, vec![instance("a", 1, 5)])).await;
    stream.bookmark("e", 5).await;
    shows(&mut view, &["a"]).await;
    (view, stream, id)
}

#[tokio::test(start_paused = true)]
async fn the_first_view_is_waited_for_and_changes_arrive_by_themselves() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = discover(&net, &["r:1"]);
    let mut changes = discover.watch().expect("it watches");
    let first = tokio::spawn({
        let discover = discover.clone();
        async move { discover.discover_versioned(&endpoint("s")).await }
    });
    let (mut view, stream, id) = following(&mut fake, &discover).await;
    let first = first.await.expect("no panic").expect("discovered");
    assert_eq!(ids(&first.instances), ["a"]);
    let after = [instance("a", 1, 5), instance("b", 1, 6)];
    stream.change(id, adding("e", (5, 6), vec![after[1].clone()], &after)).await;
    shows(&mut view, &["a", "b"]).await;
    let (one, two) = (changes.recv().await.expect("a change"), changes.recv().await.expect("a change"));
    assert_eq!((ids(&one.added), ids(&two.added)), (vec!["a"], vec!["b"]));
    assert_eq!(one.version, first.version);
    assert!(two.version > one.version);
}

#[tokio::test(start_paused = true)]
async fn all_keys_share_one_stream_and_idle_ones_are_dropped() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = RegistryDiscover::builder(net.client(&["r:1"])).idle(Duration::from_secs(30)).build();
    let (_view, mut stream, _) = following(&mut fake, &discover).await;
    let other = tokio::spawn({
        let discover = discover.clone();
        async move { discover.discover(&endpoint("t")).await }
    });
    let (id, service, _) = stream.subscribe().await;
    assert_eq!(service, "t");
    stream.change(id, snapshot("e", 5, vec![])).await;
    assert!(other.await.expect("no panic").expect("discovered").is_empty(), "an empty service is an answer");
    let bookmarks = async {
        loop {
            stream.bookmark("e", 5).await;
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    };
    tokio::select! {
        () = bookmarks => {}
        () = tokio::time::sleep(Duration::from_secs(40)) => {}
    }
    match stream.next().await {
        Request::Unsubscribe(dropped) => assert_eq!(dropped.view_id, id, "`s` is followed, `t` is idle"),
        other => panic!("{other:?}"),
    }
    assert_eq!(discover.streams(), 1);
}

/// C1, W5.
#[tokio::test(start_paused = true)]
async fn a_restarted_registry_never_empties_a_view_and_is_resumed_with_the_cursor() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = discover(&net, &["r:1"]);
    let (mut view, stream, _) = following(&mut fake, &discover).await;
    stream.bookmark("e", 9).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    drop((fake, stream));
    troubled(&mut view).await;
    tokio::time::sleep(Duration::from_mins(2)).await;
    assert_eq!(discover.discover(&endpoint("s")).await.expect("the last known good").len(), 1);

    let mut fake = net.start("r:1");
    let mut stream = fake.subscription().await;
    let (id, _, watch) = stream.subscribe().await;
    assert_eq!(watch.cursor, Some(v1::Cursor { epoch: "e".into(), revision: 9 }));
    stream.bookmark("e", 9).await;
    healthy(&mut view).await;
    let after = [instance("a", 1, 5), instance("b", 1, 10)];
    stream.change(id, adding("e", (5, 10), vec![after[1].clone()], &after)).await;
    shows(&mut view, &["a", "b"]).await;
    assert_eq!(discover.resyncs(), 0);
}

/// One failed poll of the registry emptied every service's list; a restart pushed empty lists (nacos #10209).
#[tokio::test(start_paused = true)]
async fn one_failed_poll_emptied_every_list() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = discover(&net, &["r:1"]);
    let (mut view, stream, id) = following(&mut fake, &discover).await;
    // A registry that is still loading: an empty view that contradicts itself.
    let empty = v1::Change { service_instances: 1, ..snapshot("e", 6, vec![]) };
    stream.change(id, empty).await;
    troubled(&mut view).await;
    let view_error = v1::ViewError { code: 7, message: "permission lost".into(), ..Default::default() };
    stream.send(id, subscribe_response::Response::ViewError(view_error)).await;
    stream.fail(Status::internal("loading")).await;
    let mut stream = fake.subscription().await;
    let (id, _, _) = stream.subscribe().await;
    assert!(view.borrow().view.as_ref().is_some_and(|view| ids(&view.instances) == ["a"]));
    stream.change(id, snapshot("f", 1, vec![instance("a", 1, 1)])).await;
    shows(&mut view, &["a"]).await;
    healthy(&mut view).await;
}

/// A watch that ended for good on its first error or on compaction; an ended stream that was polled again.
#[tokio::test(start_paused = true)]
async fn a_watch_ended_for_good_on_its_first_error() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = discover(&net, &["r:1"]);
    let (mut view, mut stream, _) = following(&mut fake, &discover).await;
    let errors = [
        Status::internal("a bug"),
        Status::out_of_range("compacted"),
        Status::unauthenticated("who are you"),
        Status::unimplemented("an old registry"),
        Status::cancelled("gone"),
        Status::data_loss("odd"),
    ];
    for (i, error) in errors.into_iter().enumerate() {
        stream.fail(error).await;
        stream = fake.subscription().await;
        let (id, _, watch) = stream.subscribe().await;
        assert!(watch.cursor.is_some());
        let name = format!("i{i}");
        stream.change(id, snapshot("e", 10 + i as u64, vec![instance(&name, 1, 10)])).await;
        shows(&mut view, &[&name]).await;
    }
    drop(stream);
    // Nor does the plain end of a stream.
    let mut stream = fake.subscription().await;
    stream.subscribe().await;
    assert_eq!(discover.streams(), 8);
}

/// C3.
#[tokio::test(start_paused = true)]
async fn fifteen_seconds_of_silence_are_a_dead_stream_and_another_replica_is_asked() {
    let net = Net::default();
    let mut a = net.start("a:1");
    let discover = discover(&net, &["a:1", "b:1"]);
    let (_view, stream, _) = following(&mut a, &discover).await;
    let mut b = net.start("b:1");
    let clock = net.runtime(0);
    let mut elsewhere = b.subscription().await;
    let (_, _, watch) = elsewhere.subscribe().await;
    let waited = clock.now();
    assert!(
        waited >= SILENCE - Duration::from_millis(50) && waited < SILENCE + Duration::from_secs(1),
        "{waited:?}"
    );
    assert_eq!(watch.cursor, Some(v1::Cursor { epoch: "e".into(), revision: 5 }));
    stream.closed().await;
}

/// C3, when the peer says nothing at all: HTTP/2 keepalive is quicker than the bookmarks.
#[tokio::test(start_paused = true)]
async fn a_frozen_replica_is_noticed_within_fifteen_seconds() {
    let net = Net::default();
    let mut a = net.start("a:1");
    let discover = discover(&net, &["a:1", "b:1"]);
    let (mut view, _stream, _) = following(&mut a, &discover).await;
    let mut b = net.start("b:1");
    let clock = net.runtime(0);
    a.freeze();
    let mut elsewhere = b.subscription().await;
    assert!(clock.now() < SILENCE, "{:?}", clock.now());
    let (id, _, _) = elsewhere.subscribe().await;
    elsewhere.bookmark("e", 5).await;
    healthy(&mut view).await;
    elsewhere.change(id, snapshot("e", 6, vec![instance("b", 1, 6)])).await;
    shows(&mut view, &["b"]).await;
}

#[tokio::test(start_paused = true)]
async fn bookmarks_alone_keep_a_stream_alive() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = discover(&net, &["r:1"]);
    let (view, stream, _) = following(&mut fake, &discover).await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        stream.bookmark("e", 5).await;
    }
    assert_eq!(discover.streams(), 1);
    assert!(view.borrow().error.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_go_away_is_followed_after_its_delay_elsewhere_and_nothing_is_lost_meanwhile() {
    let net = Net::default();
    let mut a = net.start("a:1");
    let discover = discover(&net, &["a:1", "b:1"]);
    let (mut view, stream, id) = following(&mut a, &discover).await;
    let mut b = net.start("b:1");
    let clock = net.runtime(0);
    stream.go_away(Duration::from_secs(7)).await;
    let after = [instance("a", 1, 5), instance("b", 1, 6)];
    stream.change(id, adding("e", (5, 6), vec![after[1].clone()], &after)).await;
    shows(&mut view, &["a", "b"]).await;
    let mut elsewhere = b.subscription().await;
    assert!(clock.now().abs_diff(Duration::from_secs(7)) < Duration::from_millis(100), "{:?}", clock.now());
    let (_, _, watch) = elsewhere.subscribe().await;
    assert_eq!(watch.cursor, Some(v1::Cursor { epoch: "e".into(), revision: 6 }));
    assert!(view.borrow().error.is_none(), "leaving in order is no trouble");
}

#[tokio::test(start_paused = true)]
async fn one_refused_view_does_not_end_the_stream_and_is_tried_again_when_asked_to() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = discover(&net, &["r:1"]);
    let (mut view, mut stream, id) = following(&mut fake, &discover).await;
    let mut other = discover.view(&endpoint("t")).expect("it has views");
    let (refused, _, _) = stream.subscribe().await;
    let error = v1::ViewError {
        code: tonic::Code::ResourceExhausted.into(),
        message: "too many views".into(),
        reason: "TOO_MANY_VIEWS".into(),
        field: String::new(),
        retry_after: Duration::from_secs(8).try_into().ok(),
    };
    stream.send(refused, subscribe_response::Response::ViewError(error)).await;
    troubled(&mut other).await;
    let clock = net.runtime(0);
    let after = [instance("a", 1, 5), instance("b", 1, 6)];
    stream.change(id, adding("e", (5, 6), vec![after[1].clone()], &after)).await;
    shows(&mut view, &["a", "b"]).await;
    let (again, service, _) = stream.subscribe().await;
    assert_eq!((again, service.as_str()), (refused, "t"));
    assert!(clock.now().abs_diff(Duration::from_secs(8)) < Duration::from_millis(100), "{:?}", clock.now());
    assert_eq!(discover.streams(), 1);
}

/// W8.
#[tokio::test(start_paused = true)]
async fn a_false_digest_is_counted_and_read_anew_once_per_backoff_while_the_good_view_stays() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = discover(&net, &["r:1"]);
    let (mut view, mut stream, id) = following(&mut fake, &discover).await;
    let after = [instance("a", 1, 5), instance("b", 1, 6)];
    for _ in 0..10 {
        let wrong = v1::Change { digest: 1, ..adding("e", (5, 6), vec![after[1].clone()], &after) };
        stream.change(id, wrong).await;
    }
    troubled(&mut view).await;
    let (again, _, watch) = stream.subscribe().await;
    assert_eq!((again, watch.force_snapshot), (id, true));
    assert_eq!(discover.resyncs(), 1, "what comes until the snapshot is not looked at");
    // The snapshots that are asked for are false too, for a minute. A registry that is read anew without a pause would be
    // asked without end, in no time.
    let clock = net.runtime(0);
    let until = clock.now() + Duration::from_mins(1);
    while clock.now() < until && discover.resyncs() < 100 {
        // A bookmark says nothing of a view that is not right: it does not shorten the backoff.
        stream.bookmark("e", 6).await;
        stream.change(id, v1::Change { digest: 1, ..snapshot("e", 6, after.to_vec()) }).await;
        let (again, _, watch) = stream.subscribe().await;
        assert_eq!((again, watch.force_snapshot), (id, true));
        assert!(view.borrow().error.is_some());
        assert!(view.borrow().view.as_ref().is_some_and(|view| ids(&view.instances) == ["a"]));
    }
    // The backoff doubles from 100 ms to 10 s, of which half is certain.
    assert!((8..=20).contains(&discover.resyncs()), "{} in a minute", discover.resyncs());
    // A bookmark must not carry the cursor over what was thrown away.
    stream.bookmark("e", 6).await;
    assert!(view.borrow().view.as_ref().is_some_and(|view| ids(&view.instances) == ["a"]));
    stream.change(id, snapshot("e", 6, after.to_vec())).await;
    shows(&mut view, &["a", "b"]).await;
    healthy(&mut view).await;
    assert_eq!(discover.streams(), 1);
}

/// A bookmark sent before the registry read a subscription does not cover that view.
#[tokio::test(start_paused = true)]
async fn an_early_bookmark_does_not_move_a_view_that_was_not_heard_of() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = discover(&net, &["r:1"]);
    let (mut view, stream, _) = following(&mut fake, &discover).await;
    stream.fail(Status::internal("again")).await;
    let mut stream = fake.subscription().await;
    stream.bookmark("e", 8).await;
    let (id, _, _) = stream.subscribe().await;
    let after = [instance("a", 1, 5), instance("b", 1, 7)];
    stream.change(id, adding("e", (5, 7), vec![after[1].clone()], &after)).await;
    shows(&mut view, &["a", "b"]).await;
}

/// A channel that stayed closed for ever because no receiver was alive at that moment.
#[tokio::test(start_paused = true)]
async fn a_channel_stayed_closed_because_nobody_listened_for_a_moment() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = discover(&net, &["r:1"]);
    drop(discover.watch());
    let (mut view, stream, id) = following(&mut fake, &discover).await;
    let mut changes = discover.watch().expect("it watches");
    let after = [instance("a", 1, 5), instance("b", 1, 6)];
    stream.change(id, adding("e", (5, 6), vec![after[1].clone()], &after)).await;
    shows(&mut view, &["a", "b"]).await;
    assert_eq!(ids(&soon(changes.recv()).await.expect("open").added), ["b"]);
}

/// A slow receiver loses changes and is told, and nobody waits for it.
#[tokio::test(start_paused = true)]
async fn a_full_broadcast_blocks_nobody() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = discover(&net, &["r:1"]);
    let mut asleep = discover.watch().expect("it watches");
    let (mut view, stream, id) = following(&mut fake, &discover).await;
    for revision in 6..2000u64 {
        stream.change(id, snapshot("e", revision, vec![instance("a", 1, revision)])).await;
    }
    stream.change(id, snapshot("e", 2000, vec![instance("last", 1, 2000)])).await;
    shows(&mut view, &["last"]).await;
    assert!(matches!(asleep.recv().await, Err(async_broadcast::RecvError::Overflowed(_))));
}

/// Discovery that advances only while requests flow, so that idle clients go stale (tower #824, tonic #1581).
#[tokio::test(start_paused = true)]
async fn an_idle_client_went_stale() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = discover(&net, &["r:1"]);
    let (mut view, stream, id) = following(&mut fake, &discover).await;
    for hour in 1..=3u64 {
        for _ in 0..720 {
            tokio::time::sleep(Duration::from_secs(5)).await;
            stream.bookmark("e", 5 + hour).await;
        }
        let name = format!("h{hour}");
        stream.change(id, snapshot("e", 100 * hour, vec![instance(&name, 1, hour)])).await;
        shows(&mut view, &[&name]).await;
    }
    assert_eq!(discover.streams(), 1);
}

/// A discovery error that is fatal to callers.
#[tokio::test(start_paused = true)]
async fn a_discovery_error_was_fatal() {
    let net = Net::default();
    let discover = RegistryDiscover::builder(net.client(&["r:1"]))
        .missing_registry(MissingRegistry::FailFast)
        .timeout(Duration::from_secs(5))
        .build();
    for _ in 0..3 {
        let error = discover.discover(&endpoint("s")).await.expect_err("missing");
        let RegistryDiscoverError::Missing { source: WatchError::Unreachable(connect), .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(connect.attempts.len(), 1);
    }
    let mut fake = net.start("r:1");
    let (_view, _stream, _) = following(&mut fake, &discover).await;
    assert_eq!(discover.discover(&endpoint("s")).await.expect("back").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_missing_registry_is_waited_for_up_to_the_timeout_and_the_reason_is_told() {
    let net = Net::default();
    let discover = discover(&net, &["r:1"]);
    let error = discover.discover(&endpoint("s")).await.expect_err("missing");
    assert!(
        matches!(&error, RegistryDiscoverError::Timeout { last: Some(WatchError::Unreachable(_)), .. }),
        "{error}"
    );
    assert!(error.to_string().contains("r:1"), "{error}");
    let waiting = tokio::spawn({
        let discover = discover.clone();
        async move { discover.discover(&endpoint("s")).await }
    });
    let mut fake = net.start("r:1");
    let _following = following(&mut fake, &discover).await;
    assert_eq!(waiting.await.expect("no panic").expect("discovered").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_illegal_endpoint_is_refused_at_once() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = discover(&net, &["r:1"]);
    let call = tokio::spawn({
        let discover = discover.clone();
        async move { discover.discover(&endpoint("a b")).await }
    });
    let mut stream = fake.subscription().await;
    let (id, _, _) = stream.subscribe().await;
    let error = v1::ViewError {
        code: tonic::Code::InvalidArgument.into(),
        field: "key.service".into(),
        ..v1::ViewError::default()
    };
    stream.send(id, subscribe_response::Response::ViewError(error)).await;
    let error = timeout(Duration::from_secs(1), call).await.expect("at once").expect("no panic");
    let Err(RegistryDiscoverError::Refused { refusal, .. }) = error else { panic!("{error:?}") };
    assert_eq!(refusal.field.as_deref(), Some("key.service"));
}

/// C1 with a cache file.
#[tokio::test(start_paused = true)]
async fn a_client_restarted_while_the_registry_is_down_still_answers() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("views");
    let net = Net::default();
    let build = || RegistryDiscover::builder(net.client(&["r:1"])).cache_file(&path).build();
    let mut fake = net.start("r:1");
    let before = build();
    let following_before = following(&mut fake, &before).await;
    before.save_cache().await.expect("saved");
    drop((before, following_before, fake));

    let after = build();
    assert_eq!(ids(&after.discover(&endpoint("s")).await.expect("from the file")), ["a"]);
    let mut view = after.view(&endpoint("s")).expect("it has views");
    troubled(&mut view).await;
    // And it goes on from there when the registry is back.
    let mut fake = net.start("r:1");
    let mut stream = fake.subscription().await;
    let (id, _, watch) = stream.subscribe().await;
    assert_eq!(watch.cursor, Some(v1::Cursor { epoch: "e".into(), revision: 5 }));
    let now = [instance("a", 1, 5), instance("b", 1, 6)];
    stream.change(id, adding("e", (5, 6), vec![now[1].clone()], &now)).await;
    shows(&mut view, &["a", "b"]).await;
    healthy(&mut view).await;
    assert_eq!(after.resyncs(), 0);
}

/// The cache file bridges a missing registry; it does not hide one that is there.
#[tokio::test(start_paused = true)]
async fn a_registry_that_is_there_beats_the_cache_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("views");
    let net = Net::default();
    let build = || RegistryDiscover::builder(net.client(&["r:1"])).cache_file(&path).build();
    let mut fake = net.start("r:1");
    let before = build();
    let following_before = following(&mut fake, &before).await;
    before.save_cache().await.expect("saved");
    drop((before, following_before));

    let after = build();
    let mut changes = after.watch().expect("it watches");
    let call = tokio::spawn({
        let after = after.clone();
        async move { after.discover(&endpoint("s")).await }
    });
    let mut stream = fake.subscription().await;
    let (id, _, _) = stream.subscribe().await;
    stream.change(id, snapshot("f", 1, vec![instance("new", 1, 1)])).await;
    assert_eq!(ids(&call.await.expect("no panic").expect("discovered")), ["new"]);
    let change = changes.recv().await.expect("a change");
    assert_eq!((ids(&change.added), change.removed.len()), (vec!["new"], 0));
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_sends_everyone_away_is_not_asked_in_a_loop() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = discover(&net, &["r:1"]);
    let _view = discover.view(&endpoint("s"));
    let clock = net.runtime(0);
    while clock.now() < Duration::from_mins(1) && discover.streams() < 25 {
        let stream = fake.subscription().await;
        stream.go_away(Duration::ZERO).await;
        stream.closed().await;
    }
    assert!(discover.streams() < 25, "{} streams in a minute", discover.streams());
}

/// A registry that accepts and says nothing is as missing as one that is down.
#[tokio::test(start_paused = true)]
async fn a_frozen_registry_is_bridged_by_the_cache_file_within_a_call() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("views");
    let net = Net::default();
    let build = || RegistryDiscover::builder(net.client(&["r:1"])).cache_file(&path).build();
    let mut fake = net.start("r:1");
    let before = build();
    let following_before = following(&mut fake, &before).await;
    before.save_cache().await.expect("saved");
    drop((before, following_before));
    fake.freeze();
    let after = build();
    assert_eq!(ids(&after.discover(&endpoint("s")).await.expect("from the file")), ["a"]);
}

/// The file is written by itself, without anyone's asking.
#[tokio::test(start_paused = true)]
async fn the_cache_file_is_written_by_itself() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("views");
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = RegistryDiscover::builder(net.client(&["r:1"])).cache_file(&path).build();
    let (_view, stream, _) = following(&mut fake, &discover).await;
    for _ in 0..12 {
        stream.bookmark("e", 5).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert!(path.exists());
}

/// A channel is often the only one that holds its discovery.
#[tokio::test(start_paused = true)]
async fn whoever_follows_a_view_keeps_its_discovery_alive() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let only = Arc::new(discover(&net, &["r:1"]));
    let mut followed = follow(only, endpoint("s"), &net.runtime(2));
    let mut stream = fake.subscription().await;
    let (id, _, _) = stream.subscribe().await;
    stream.change(id, snapshot("e", 5, vec![instance("a", 1, 5)])).await;
    shows(followed.receiver(), &["a"]).await;
    drop(followed);
    stream.closed().await;
}

async fn alive(stream: &Subscription, epoch: &str, seconds: u64) {
    for _ in 0..seconds / 5 {
        stream.bookmark(epoch, 1).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

/// C1: a registry without storage is empty after a restart, until registrants come back.
#[tokio::test(start_paused = true)]
async fn a_registry_that_lost_its_data_empties_no_view_before_registrants_are_back() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = discover(&net, &["r:1"]);
    let (mut view, stream, _) = following(&mut fake, &discover).await;
    drop((fake, stream));
    let mut changes = discover.watch().expect("it watches");
    let mut fake = net.start("r:1");
    let mut stream = fake.subscription().await;
    let (id, _, _) = stream.subscribe().await;
    stream.change(id, snapshot("f", 1, vec![])).await;
    alive(&stream, "f", 20).await;
    let state = view.borrow_and_update().clone();
    assert_eq!(ids(&state.view.expect("a view").instances), ["a"]);
    let error = state.error.expect("it says so").to_string();
    assert!(error.contains("lost its data"), "{error}");
    let after = [instance("b", 1, 2)];
    stream.change(id, adding("f", (1, 2), after.to_vec(), &after)).await;
    shows(&mut view, &["b"]).await;
    healthy(&mut view).await;
    let change = changes.recv().await.expect("a change");
    assert_eq!(
        (ids(&change.added), ids(&change.removed)),
        (vec!["b"], vec!["a"]),
        "one change, and no emptiness"
    );
    assert_eq!(discover.resyncs(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_insists_on_being_empty_is_believed() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = discover(&net, &["r:1"]);
    let (mut view, stream, _) = following(&mut fake, &discover).await;
    drop((fake, stream));
    let mut fake = net.start("r:1");
    let mut stream = fake.subscription().await;
    let (id, _, _) = stream.subscribe().await;
    stream.change(id, snapshot("f", 1, vec![])).await;
    alive(&stream, "f", 20).await;
    // Gone for long in the middle of it: that is no insisting.
    drop((fake, stream));
    tokio::time::sleep(Duration::from_mins(5)).await;
    assert_eq!(ids(&view.borrow().view.clone().expect("a view").instances), ["a"]);
    let mut fake = net.start("r:1");
    let mut stream = fake.subscription().await;
    let (_, _, watch) = stream.subscribe().await;
    assert_eq!(watch.cursor, Some(v1::Cursor { epoch: "f".into(), revision: 1 }));
    let mut changes = discover.watch().expect("it watches");
    alive(&stream, "f", 35).await;
    shows(&mut view, &[]).await;
    healthy(&mut view).await;
    assert_eq!(ids(&changes.recv().await.expect("a change").removed), ["a"]);
}

/// C1, with both restarted.
#[tokio::test(start_paused = true)]
async fn a_client_restarted_along_with_a_registry_that_lost_its_data_still_answers() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("views");
    let net = Net::default();
    let build = || RegistryDiscover::builder(net.client(&["r:1"])).cache_file(&path).build();
    let mut fake = net.start("r:1");
    let before = build();
    let following_before = following(&mut fake, &before).await;
    before.save_cache().await.expect("saved");
    drop((before, following_before, fake));
    let mut fake = net.start("r:1");
    let after = build();
    let view = after.view(&endpoint("s")).expect("it has views");
    let mut stream = fake.subscription().await;
    let (id, _, _) = stream.subscribe().await;
    stream.change(id, snapshot("f", 1, vec![])).await;
    assert_eq!(ids(&after.discover(&endpoint("s")).await.expect("the last known good")), ["a"]);
    // The file is not emptied either.
    after.save_cache().await.expect("saved");
    drop((after, view, stream, fake));
    assert_eq!(ids(&build().discover(&endpoint("s")).await.expect("from the file")), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_balancer_keeps_no_idle_key_alive() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let idle = Duration::from_secs(20);
    let discover = RegistryDiscover::builder(net.client(&["r:1"])).idle(idle).build();
    let (_view, mut stream, _) = following(&mut fake, &discover).await;
    let balancer = Balancer::builder(Arc::new(discover.clone()), RoundRobin::with_seed(1)).idle(idle).build();
    let other = endpoint("t");
    let answered = async {
        let (id, _, _) = stream.subscribe().await;
        stream.change(id, snapshot("e", 5, vec![instance("b", 1, 5)])).await;
        id
    };
    let (addresses, id) = tokio::join!(balancer.get(&other), answered);
    assert_eq!(addresses.expect("chosen").count(), 1);
    alive(&stream, "e", 120).await;
    match stream.next().await {
        Request::Unsubscribe(dropped) => assert_eq!(dropped.view_id, id),
        other => panic!("{other:?}"),
    }
}

/// C3: no more than a minute, whatever a registry asks for.
#[tokio::test(start_paused = true)]
async fn a_registry_that_asks_for_a_day_is_asked_again_within_a_minute() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = discover(&net, &["r:1"]);
    let (_view, mut stream, id) = following(&mut fake, &discover).await;
    let error = v1::ViewError {
        code: tonic::Code::Unavailable.into(),
        retry_after: Duration::from_hours(24).try_into().ok(),
        ..v1::ViewError::default()
    };
    stream.send(id, subscribe_response::Response::ViewError(error)).await;
    alive(&stream, "e", 65).await;
    assert_eq!(stream.subscribe().await.0, id);
}

/// C1, C3: what cannot be decoded is a broken stream, however often it happens.
#[tokio::test(start_paused = true)]
async fn what_is_no_message_breaks_the_stream_and_the_last_good_view_stays() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = discover(&net, &["r:1"]);
    let (mut view, mut stream, _) = following(&mut fake, &discover).await;
    for garbage in [vec![0xFF; 40], vec![0x12, 0x05, 0x1A], vec![0x12, 0x04, 0x1A, 0x02, 0xFF, 0xFE]] {
        stream.raw(garbage).await;
        troubled(&mut view).await;
        stream.closed().await;
        assert_eq!(ids(&view.borrow().view.as_ref().expect("the last good one").instances), ["a"]);
        stream = fake.subscription().await;
        let (id, _, watch) = stream.subscribe().await;
        assert_eq!(watch.cursor.map(|cursor| cursor.revision), Some(5), "it resumes where it was");
        stream.change(id, snapshot("e", 5, vec![instance("a", 1, 5)])).await;
        stream.bookmark("e", 5).await;
        healthy(&mut view).await;
    }
}
