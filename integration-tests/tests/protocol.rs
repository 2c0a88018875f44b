//! The wire's promises to watchers, one by one: where a watch starts and why, what selectors show, what bookmarks mean,
//! and that one stream's views do not disturb each other.

use std::time::Duration;

use integration_tests::{
    history::{History, Recorder},
    process::{Client, within},
    requests::{self, instance, key, register},
    server_setup,
    stream::Stream,
    validate::assert_kept,
    watcher::{Over, Watcher},
    writers::{self, Writer},
};
use registry_proto::v1::{self, ResetReason};
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt;

const SERVICE: &str = "watched";
const OVERS: [Over; 2] = [Over::Watch, Over::Subscribe];

/// Registers instances of one service under one lease.
async fn put(client: &Client, lease: u64, service: &str, instances: Vec<v1::Instance>) -> u64 {
    let answer = client.clone().register(register(lease, service, instances)).await;
    answer.expect("a registration").into_inner().revision
}

/// Registers one instance with a tag, so that each call is a change.
async fn change(client: &Client, service: &str, number: u64) -> u64 {
    let tags = [("n".to_owned(), number.to_string())].into();
    put(client, 1, service, vec![v1::Instance { tags, ..instance("changing") }]).await
}

async fn remove(client: &Client, service: &str, id: &str) -> u64 {
    let answer = client.clone().deregister(requests::deregister(service, &[id.to_owned()])).await;
    answer.expect("a deregistration").into_inner().revision
}

fn judge(watchers: Vec<Watcher>) {
    let watchers = watchers.into_iter().map(Watcher::into_record).collect();
    assert_kept(&History { watchers, ..History::default() });
}

#[tokio::test]
async fn a_watch_starts_with_a_snapshot_and_resumes_with_what_it_missed() {
    let server = server_setup!().start().await;
    let client = server.client().await;
    let recorder = Recorder::default();
    put(&client, 2, SERVICE, vec![instance("a"), instance("b")]).await;
    let mut watchers = Vec::new();
    for (over, weight) in OVERS.into_iter().zip(2..) {
        let mut watcher = Watcher::of(&format!("{over:?}"), SERVICE, over, &recorder);
        watcher.open(&client).await.expect("a watch");
        watcher.settle().await;
        assert_eq!(watcher.reset_reason(), Some(ResetReason::Initial));

        // Nothing happened: it is current, and gets no snapshot.
        watcher.close();
        watcher.open(&client).await.expect("a watch");
        watcher.settle().await;
        assert_eq!(watcher.since_opened().len(), 1, "a bookmark and nothing else");

        // Others' changes do not make it outdated either.
        watcher.close();
        change(&client, "elsewhere", 1).await;
        watcher.open(&client).await.expect("a watch");
        watcher.settle().await;
        assert_eq!(watcher.since_opened().len(), 1, "a bookmark and nothing else");

        // What it missed comes as one delta, coalesced.
        watcher.close();
        for number in 1..=5 {
            change(&client, SERVICE, number).await;
        }
        remove(&client, SERVICE, "changing").await;
        let last =
            put(&client, 2, SERVICE, vec![v1::Instance { weight: Some(weight), ..instance("a") }]).await;
        watcher.open(&client).await.expect("a watch");
        watcher.settle().await;
        assert_eq!(watcher.reset_reason(), None, "W5: it resumed by a delta");
        assert_eq!(watcher.since_opened().len(), 2, "W6: one delta and a bookmark");
        assert_eq!(watcher.view().cursor, last);

        // Asked for, a snapshot comes all the same.
        watcher.close();
        watcher.open_with(&client, true).await.expect("a watch");
        watcher.settle().await;
        assert_eq!(watcher.reset_reason(), Some(ResetReason::Requested));
        watcher.close();
        watchers.push(watcher);
    }
    judge(watchers);
}

#[tokio::test]
async fn a_coalesced_delta_whose_net_effect_is_empty_is_sent_all_the_same() {
    let server = server_setup!().start().await;
    let client = server.client().await;
    let mut watcher = Watcher::of("w", SERVICE, Over::Watch, &Recorder::default());
    put(&client, 2, SERVICE, vec![instance("a")]).await;
    watcher.open(&client).await.expect("a watch");
    watcher.settle().await;
    watcher.close();
    change(&client, SERVICE, 1).await;
    let last = remove(&client, SERVICE, "changing").await;
    watcher.open(&client).await.expect("a watch");
    watcher.settle().await;
    assert_eq!(watcher.since_opened().len(), 2, "a delta and a bookmark");
    assert_eq!(watcher.view().cursor, last);
    judge(vec![watcher]);
}

#[tokio::test]
async fn another_epoch_is_named_when_the_data_is_new() {
    let setup = server_setup!().with("--storage", "memory");
    let recorder = Recorder::default();
    let server = setup.start().await;
    let client = server.client().await;
    change(&client, SERVICE, 1).await;
    let mut watchers: Vec<_> = OVERS.map(|over| Watcher::of("w", SERVICE, over, &recorder)).into();
    for watcher in &mut watchers {
        watcher.open(&client).await.expect("a watch");
        watcher.settle().await;
    }
    server.kill().await;
    let server = setup.start().await;
    let client = server.client().await;
    change(&client, SERVICE, 2).await;
    for watcher in &mut watchers {
        watcher.open(&client).await.expect("a cursor of another epoch is not ahead");
        watcher.settle().await;
        assert_eq!(watcher.reset_reason(), Some(ResetReason::EpochChanged));
    }
    judge(watchers);
}

#[tokio::test]
async fn history_that_is_gone_is_named_and_replaced_by_a_snapshot() {
    let server = server_setup!().with("--history-count", "3").start().await;
    let client = server.client().await;
    let recorder = Recorder::default();
    change(&client, SERVICE, 0).await;
    let mut watchers: Vec<_> = OVERS.map(|over| Watcher::of("w", SERVICE, over, &recorder)).into();
    for watcher in &mut watchers {
        watcher.open(&client).await.expect("a watch");
        watcher.settle().await;
        watcher.close();
    }
    let mut last = 0;
    for number in 1..=10 {
        last = change(&client, SERVICE, number).await;
    }
    for watcher in &mut watchers {
        watcher.open(&client).await.expect("a watch");
        watcher.settle().await;
        assert_eq!(watcher.reset_reason(), Some(ResetReason::HistoryGone));
        assert_eq!(watcher.view().cursor, last);
    }
    judge(watchers);
}

#[tokio::test]
async fn a_service_whose_changes_left_the_log_is_still_shown_as_it_is() {
    // Another watcher keeps the view, and with it a snapshot from before the changes.
    let server = server_setup!().with("--history-count", "3").start().await;
    let client = server.client().await;
    let recorder = Recorder::default();
    change(&client, SERVICE, 0).await;
    let mut early = Watcher::of("early", SERVICE, Over::Watch, &recorder);
    early.open(&client).await.expect("a watch");
    early.settle().await;
    let last = change(&client, SERVICE, 1).await;
    early.reach(last).await;
    for number in 0..10 {
        change(&client, "noisy", number).await;
    }
    let mut late = Watcher::of("late", SERVICE, Over::Watch, &recorder);
    late.open(&client).await.expect("a watch");
    late.settle().await;
    assert_eq!(late.view().digest, early.view().digest, "W2: the late one sees the newest state");
    assert_eq!(late.since_opened().len(), 2, "a snapshot and a bookmark");
    judge(vec![early, late]);
}

#[tokio::test]
async fn a_watcher_that_is_ahead_waits_and_is_never_shown_older_data() {
    let server = server_setup!().start().await;
    let client = server.client().await;
    let head = change(&client, SERVICE, 1).await;
    let epoch = client.clone().list_services(v1::ListServicesRequest::default()).await.expect("a list");
    let epoch = epoch.into_inner().epoch;
    let ahead = |by: u64| v1::WatchRequest {
        cursor: Some(v1::Cursor { epoch: epoch.clone(), revision: head + by }),
        ..requests::watch(SERVICE)
    };
    // Far ahead: refused, after a wait.
    let (mut asking, mut stream) = (client.clone(), Stream::open(&client).await.expect("a stream"));
    stream.ask(requests::subscribe(1, ahead(1_000_000))).await;
    let (refused, (view, error)) = tokio::join!(asking.watch(ahead(1_000_000)), stream.refusal());
    let refused = refused.expect_err("nothing is there yet");
    assert_eq!((refused.code(), requests::reason(&refused).as_str()), (Code::Unavailable, "REPLICA_BEHIND"));
    assert!(refused.get_error_details().retry_info().is_some());
    assert_eq!(
        (view, Code::from(error.code), error.reason.as_str()),
        (1, Code::Unavailable, "REPLICA_BEHIND")
    );
    assert!(error.retry_after.is_some());

    // A little ahead: opened as soon as the server is there, and the bookmark waits for it.
    stream.ask(requests::subscribe(2, ahead(1))).await;
    stream.ask(requests::subscribe(3, requests::watch(SERVICE))).await;
    stream.change(3).await;
    let mut newest = head;
    while newest <= head {
        newest = change(&client, SERVICE, newest + 7).await;
    }
    let (bookmark, _) = stream.bookmark().await;
    assert!(bookmark.revision >= newest, "W7: {} is not past {newest}", bookmark.revision);
}

#[tokio::test]
async fn all_is_filled_in_deltas_for_those_who_ask() {
    let server = server_setup!().start().await;
    let client = server.client().await;
    let recorder = Recorder::default();
    let request = v1::WatchRequest { include_all: true, ..requests::watch(SERVICE) };
    let mut watchers: Vec<_> =
        OVERS.map(|over| Watcher::new("with all", SERVICE, request.clone(), over, &recorder)).into();
    watchers.push(Watcher::of("without", SERVICE, Over::Watch, &recorder));
    for watcher in &mut watchers {
        watcher.open(&client).await.expect("a watch");
        watcher.settle().await;
    }
    put(&client, 2, SERVICE, vec![instance("a"), instance("b")]).await;
    for number in 0..5 {
        let last = change(&client, SERVICE, number).await;
        watchers[0].reach(last).await;
    }
    remove(&client, SERVICE, "changing").await;
    let last = remove(&client, SERVICE, "a").await;
    for watcher in &mut watchers {
        watcher.reach(last).await;
        assert_eq!(watcher.view().items.len(), 1);
    }
    // That `all` is what the deltas come to is for W8's validator to say.
    judge(watchers);
}

#[tokio::test]
async fn selectors_show_what_enters_and_leaves_the_selection() {
    let server = server_setup!().start().await;
    let client = server.client().await;
    let recorder = Recorder::default();
    let in_zone = |id: &str, zone: &str, canary: bool, status: v1::InstanceStatus| v1::Instance {
        locality: Some(v1::Locality { region: "r".into(), zone: zone.into() }),
        tags: [("canary".to_owned(), canary.to_string())].into(),
        status: status.into(),
        ..instance(id)
    };
    let selectors = [
        ("zone", v1::Selector { zone: "a".into(), ..Default::default() }),
        ("tag", v1::Selector { tags: [("canary".into(), "true".into())].into(), ..Default::default() }),
        ("status", v1::Selector { statuses: vec![1, 2], ..Default::default() }),
        (
            "all of it",
            v1::Selector {
                zone: "a".into(),
                tags: [("canary".into(), "true".into())].into(),
                statuses: vec![1],
            },
        ),
    ];
    let mut watchers: Vec<_> = selectors
        .iter()
        .map(|(name, selector)| {
            let request = v1::WatchRequest { selector: Some(selector.clone()), ..requests::watch(SERVICE) };
            Watcher::new(name, &format!("{SERVICE} by {name}"), request, Over::Subscribe, &recorder)
        })
        .collect();
    for watcher in &mut watchers {
        watcher.open(&client).await.expect("a watch");
        watcher.settle().await;
    }
    let (up, draining, down) =
        (v1::InstanceStatus::Up, v1::InstanceStatus::Draining, v1::InstanceStatus::Down);
    let shows = async |watchers: &mut Vec<Watcher>, states: [&[&str]; 4]| {
        for (watcher, expected) in watchers.iter_mut().zip(states) {
            let what = format!("{expected:?}");
            let wanted = |ids: Vec<&str>| ids == expected;
            watcher.until(&what, |view| wanted(view.items.keys().map(|id| &**id).collect())).await;
        }
    };
    put(&client, 1, SERVICE, vec![in_zone("x", "a", true, up), in_zone("y", "b", false, up)]).await;
    shows(&mut watchers, [&["x"], &["x"], &["x", "y"], &["x"]]).await;
    // x leaves the zone, y enters it.
    put(&client, 1, SERVICE, vec![in_zone("x", "b", true, up), in_zone("y", "a", false, up)]).await;
    shows(&mut watchers, [&["y"], &["x"], &["x", "y"], &[]]).await;
    // y becomes a canary that drains, x goes down.
    put(&client, 1, SERVICE, vec![in_zone("x", "b", true, down), in_zone("y", "a", true, draining)]).await;
    shows(&mut watchers, [&["y"], &["x", "y"], &["y"], &[]]).await;
    // An operator's word counts as the instance's own.
    let set = v1::Override { status: up.into(), ..Default::default() };
    let request = v1::SetOverrideRequest {
        action: Some(v1::set_override_request::Action::Set(set)),
        ..requests::override_weight(SERVICE, "y", 1)
    };
    client.clone().set_override(request).await.expect("an override");
    shows(&mut watchers, [&["y"], &["x", "y"], &["y"], &["y"]]).await;
    let last = remove(&client, SERVICE, "y").await;
    shows(&mut watchers, [&[], &["x"], &[], &[]]).await;

    // An empty selection is told from an empty service.
    for (_, selector) in selectors {
        let request = v1::DiscoverRequest { selector: Some(selector), ..requests::discover(SERVICE) };
        let change = client.clone().discover(request).await.expect("a page").into_inner().change;
        let change = change.expect("a page has a change");
        assert!(change.exists && change.revision >= last);
        assert_eq!(change.service_instances, 1, "x is there, selected or not");
    }
    judge(watchers);
}

#[tokio::test]
async fn a_service_that_nobody_registered_is_told_from_one_that_is_empty() {
    let server = server_setup!().start().await;
    let client = server.client().await;
    let mut stream = Stream::open(&client).await.expect("a stream");
    stream.ask(requests::subscribe(1, requests::watch(SERVICE))).await;
    let first = stream.change(1).await;
    assert!(!first.exists && first.all.is_empty() && first.service_instances == 0);
    change(&client, SERVICE, 1).await;
    let registered = stream.change(1).await;
    assert!(registered.exists && registered.added.len() == 1 && registered.service_instances == 1);
    remove(&client, SERVICE, "changing").await;
    let removed = stream.change(1).await;
    assert!(removed.exists && removed.removed.len() == 1 && removed.service_instances == 0);
    let read =
        client.clone().discover(requests::discover(SERVICE)).await.expect("a page").into_inner().change;
    assert!(read.is_some_and(|change| change.exists && change.all.is_empty()));
}

#[tokio::test]
async fn views_of_one_stream_come_and_go_without_disturbing_each_other() {
    let server = server_setup!().start().await;
    let client = server.client().await;
    change(&client, "one", 1).await;
    let mut stream = Stream::open(&client).await.expect("a stream");
    stream.ask(requests::subscribe(1, requests::watch("one"))).await;
    stream.ask(requests::subscribe(2, requests::watch("bad name"))).await;
    stream.ask(requests::subscribe(3, requests::watch("two"))).await;
    let (view, error) = stream.refusal().await;
    assert_eq!((view, error.field.as_str()), (2, "subscribe.watch.key.service"));
    change(&client, "two", 1).await;
    while stream.change(3).await.service_instances == 0 {}

    // The first is dropped. Requests are taken in order: when the fourth is open, the first is gone.
    stream.ask(requests::unsubscribe(1)).await;
    stream.ask(requests::subscribe(4, requests::watch("four"))).await;
    stream.change(4).await;
    change(&client, "one", 2).await;
    let last = change(&client, "four", 1).await;
    loop {
        match stream.next().await {
            (1, other) => panic!("a dropped view was told {other:?}"),
            (4, v1::subscribe_response::Response::Change(change)) if change.revision == last => break,
            _ => {}
        }
    }

    // A view that is asked for again starts anew; what comes under its id is the new one's.
    stream.ask(requests::subscribe(4, requests::watch("one"))).await;
    let again = stream.change(4).await;
    assert_eq!(again.key, Some(key("one")));
    assert_eq!((again.kind(), again.reset_reason()), (v1::ChangeKind::Snapshot, ResetReason::Initial));
    let last = change(&client, "four", 2).await.max(change(&client, "two", 2).await);
    while stream.change(3).await.revision < last {}

    // The bookmark speaks for all that is left.
    change(&client, "one", 3).await;
    stream.ask(requests::subscribe(5, requests::watch("five"))).await;
    let (bookmark, _) = stream.bookmark().await;
    assert!(bookmark.revision >= last);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bookmarks_answers_and_readings_are_true_while_many_write() {
    let server = server_setup!().start().await;
    let recorder = Recorder::default();
    let client = server.client().await;
    let mut writing = JoinSet::new();
    for number in 0..16 {
        let (client, recorder) = (client.clone(), recorder.clone());
        writing.spawn(async move {
            let mut writer = Writer::new(number, SERVICE, 2, &recorder);
            let (mut readings, mut watchers) = (Vec::new(), Vec::new());
            for turn in 0..30 {
                let answered = writer.write(&client, 1).await.expect("a write");
                readings.push(writers::read(&client, SERVICE, 1, &recorder).await.expect("a reading"));
                if turn % 5 == 0 {
                    // D2 for watches: one that starts now shows what was answered before, by its first bookmark.
                    let over = OVERS[turn / 5 % 2];
                    let mut watcher =
                        Watcher::of(&format!("{number} in turn {turn}"), SERVICE, over, &recorder);
                    watcher.open(&client).await.expect("a watch");
                    watcher.settle().await;
                    assert!(watcher.view().cursor >= answered, "D2 read your writes: a watch from before");
                    watcher.close();
                    watchers.push(watcher);
                }
            }
            (writer.writes, readings, watchers)
        });
    }
    let mut history = History::default();
    for (writes, readings, watchers) in writing.join_all().await {
        history.writes.extend(writes);
        history.readings.extend(readings);
        history.watchers.extend(watchers.into_iter().map(Watcher::into_record));
    }
    assert_kept(&history);
}

#[tokio::test]
async fn what_is_older_never_removes_or_changes_what_is_newer() {
    let server = server_setup!().start().await;
    let mut client = server.client().await;
    let mut watcher = Watcher::of("w", SERVICE, Over::Watch, &Recorder::default());
    watcher.open(&client).await.expect("a watch");
    let as_generation = |lease: u64, generation: u64, weight: u32| {
        let registrant = Some(v1::Registrant { instance_uid: "greeter".into(), generation });
        let it = v1::Instance { weight: Some(weight), ..instance("a") };
        v1::RegisterRequest { registrant, ..register(lease, SERVICE, vec![it]) }
    };
    let old = client.register(as_generation(1, 1, 10)).await.expect("a registration").into_inner();
    let new = client.register(as_generation(2, 2, 20)).await.expect("the next generation").into_inner();
    let (old_incarnation, incarnation) = (old.instances[0].create_revision, new.instances[0].create_revision);
    assert!(incarnation > old_incarnation, "a new lease for a known id is a new incarnation");
    watcher.reach(new.revision).await;

    let expect = |answer: Result<(), Status>, reason: &str| {
        let refused = answer.expect_err("L3 fenced: the older one was let in");
        assert_eq!((refused.code(), requests::reason(&refused).as_str()), (Code::FailedPrecondition, reason));
    };
    // By generation, by incarnation, by lease.
    expect(client.register(as_generation(1, 1, 11)).await.map(drop), "SUPERSEDED");
    expect(client.register(as_generation(3, 1, 12)).await.map(drop), "SUPERSEDED");
    let named = v1::InstanceRef { key: Some(key(SERVICE)), id: "a".into(), create_revision: old_incarnation };
    let by_incarnation = v1::DeregisterRequest { instances: vec![named.clone()], ..Default::default() };
    expect(client.deregister(by_incarnation).await.map(drop), "INCARNATION_MISMATCH");
    let named = v1::InstanceRef { create_revision: 0, ..named };
    let by_lease =
        v1::DeregisterRequest { lease_id: requests::lease(1), instances: vec![named], ..Default::default() };
    expect(client.deregister(by_lease).await.map(drop), "LEASE_MISMATCH");
    let whole_lease = v1::DeregisterRequest { lease_id: requests::lease(1), ..Default::default() };
    assert_eq!(client.deregister(whole_lease).await.expect("it carries nothing").into_inner().removed, 0);

    let marker = change(&client, SERVICE, 1).await;
    watcher.reach(marker).await;
    let there = &watcher.view().items["a"];
    assert_eq!((there.create_revision, there.weight), (incarnation, 20), "L3 fenced");
    judge(vec![watcher]);
}

#[tokio::test]
async fn pages_of_one_reading_show_one_revision() {
    let server = server_setup!().start().await;
    let mut client = server.client().await;
    let many = |tag: &str| -> Vec<_> {
        let tags = [("tag".to_owned(), format!("{tag}{}", "x".repeat(1_000)))];
        (0..2_000).map(|n| v1::Instance { tags: tags.clone().into(), ..instance(&format!("i{n}")) }).collect()
    };
    put(&client, 1, SERVICE, many("a")).await;
    let first = client.discover(requests::discover(SERVICE)).await.expect("a page").into_inner();
    assert!(!first.next_page_token.is_empty());
    let shown = first.change.expect("a page has a change").revision;
    // Changed between two pages.
    put(&client, 1, SERVICE, many("b")).await;
    let mut token = first.next_page_token;
    let mut pages = 1;
    while !token.is_empty() {
        let request = v1::DiscoverRequest { page_token: token, ..requests::discover(SERVICE) };
        let page = within("a page", Duration::from_secs(30), client.discover(request)).await;
        let page = page.expect("the snapshot is kept").into_inner();
        let change = page.change.expect("a page has a change");
        assert_eq!(change.revision, shown);
        assert!(change.all.iter().all(|it| it.tags["tag"].starts_with('a')));
        token = page.next_page_token;
        pages += 1;
    }
    assert!(pages > 2, "{pages} pages");
}
