//! A server's life: how it starts, stops, is frozen and comes back, and what becomes of leases and overrides meanwhile.

use std::time::Duration;

use integration_tests::{
    history::{Cursor, Event, History, LeaseRecord, MassExpiry, OverrideRecord, Recorder},
    process::{Client, Server, within},
    registrant::Registrant,
    requests::{self, instance, key, register, register_for},
    server_setup,
    validate::assert_kept,
    watcher::{Over, Watcher},
    writers::{self, Writer},
};
use registry_proto::v1::{
    self,
    resolve_hold_request::Action::{Evict, Release},
};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use tonic_types::StatusExt;

const SERVICE: &str = "living";

#[tokio::test]
async fn it_says_at_its_start_what_it_found_and_where_it_listens() {
    let setup = server_setup!();
    let server = setup.start().await;
    let store = server.logged("store: embedded in ").await;
    assert!(store.contains("epoch ") && store.contains("revision 0"), "{store}");
    server.logged("loaded: 0 services, 0 instances, 0 leases").await;
    server.logged(&format!("listening on {}", server.address())).await;
    let mut client = server.client().await;
    let answer = client.register(register(1, SERVICE, vec![instance("a"), instance("b")])).await;
    let answer = answer.expect("a registration").into_inner();
    server.kill().await;

    let server = setup.start().await;
    let store = server.logged("store: embedded in ").await;
    assert!(store.contains(&format!("epoch {}, revision {}", answer.epoch, answer.revision)), "{store}");
    server.logged("loaded: 1 services, 2 instances, 1 leases").await;
    let reading =
        writers::read(&server.client().await, SERVICE, 2, &Recorder::default()).await.expect("a reading");
    assert_eq!((&*reading.epoch, reading.revision), (answer.epoch.as_str(), answer.revision));
    assert_eq!(reading.items.len(), 2);
}

#[tokio::test]
async fn its_workers_keep_to_a_processor_each_only_where_that_was_asked_for() {
    let processors = std::thread::available_parallelism().expect("a count").get();
    if processors == 1 {
        return; // of one, nobody can tell who keeps to it
    }
    let server = server_setup!().with("--pin-workers", "on").start().await;
    // So that threads for the disk, which workers start, are among them.
    let answer = server.client().await.register(register(1, SERVICE, vec![instance("a")])).await;
    answer.expect("a registration");
    let (pinned, threads) = server.pinned_threads();
    assert!(
        pinned == processors && threads > pinned,
        "{pinned} of {threads} threads, {processors} processors"
    );

    let (pinned, threads) = server_setup!().start().await.pinned_threads();
    assert!(pinned == 0 && threads > processors, "{pinned} of {threads} threads");
}

#[tokio::test]
async fn each_line_of_a_json_log_is_json() {
    let server = server_setup!().with("--log-format", "json").with("--grace", "1s").start().await;
    let listening = format!("listening on {}", server.address());
    server.terminate();
    let end = server.ended().await;
    assert_eq!(end.status.code(), Some(0), "{}", end.log);
    let mut messages = Vec::new();
    for line in end.log.lines() {
        let parsed: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for field in ["timestamp", "level", "target"] {
            assert!(parsed[field].is_string(), "no {field}: {line}");
        }
        messages.push(parsed["fields"]["message"].as_str().expect("a message").to_owned());
    }
    assert!(messages.contains(&listening) && messages.contains(&"stopped".to_owned()), "{messages:#?}");
}

#[tokio::test]
async fn memory_says_that_it_keeps_nothing_and_is_another_history_each_time() {
    let setup = server_setup!().with("--storage", "memory");
    let mut epochs = Vec::new();
    for _ in 0..2 {
        let server = setup.start().await;
        server.logged("memory keeps nothing").await;
        server.logged("store: memory, epoch ").await;
        let mut client = server.client().await;
        let list =
            client.list_services(v1::ListServicesRequest::default()).await.expect("a list").into_inner();
        assert!(list.services.is_empty(), "nothing is kept");
        let answer =
            client.register(register(1, SERVICE, vec![instance("a")])).await.expect("a registration");
        epochs.push(answer.into_inner().epoch);
        server.kill().await;
    }
    assert_ne!(epochs[0], epochs[1]);
    assert!(!setup.data_dir().exists(), "memory leaves no files");
}

#[tokio::test]
async fn what_it_cannot_do_it_says_and_ends() {
    let setup = server_setup!();
    let server = setup.start().await;
    let second = setup.ends().await;
    assert_eq!(second.status.code(), Some(1), "{}", second.log);
    assert!(second.log.contains("in use by another registry server"), "{}", second.log);
    assert!(second.log.contains(&setup.data_dir().display().to_string()), "{}", second.log);

    let same_address = server_setup!().at(server.address()).ends().await;
    assert_eq!(same_address.status.code(), Some(1), "{}", same_address.log);
    assert!(same_address.log.contains("cannot listen on"), "{}", same_address.log);

    for (flag, value, says) in [
        ("--storage", "disk", "embedded"),
        ("--ttl-min", "0s", "--ttl-min"),
        ("--ttl-max", "25h", "24h"),
        ("--ttl-max", "long", "invalid value"),
        ("--hold-share", "1.5", "0 to 1"),
        ("--hold-time", "0s", "--hold"),
        ("--log", "registry_server=loud", "--log"),
        ("--no-such-flag", "1", "--no-such-flag"),
    ] {
        let refused = server_setup!().with(flag, value).ends().await;
        assert_eq!(refused.status.code(), Some(2), "{flag} {value}: {}", refused.log);
        assert!(refused.log.contains(says), "{flag} {value}: {}", refused.log);
    }
    // The first one never noticed.
    server.client().await.discover(requests::discover(SERVICE)).await.expect("a reading");
}

#[tokio::test]
async fn reflection_lists_the_service_and_health_is_split_by_reads_and_writes() {
    let server = server_setup!().start().await;
    let channel = server.channel().await;
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(channel.clone());
    let mut answers =
        reflection.server_reflection_info(tokio_stream::once(ask)).await.expect("reflection").into_inner();
    let answer = answers.next().await.expect("an answer").expect("an answer").message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?} is no list") };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"registry.v1.Registry") && names.contains(&"grpc.health.v1.Health"), "{names:?}");

    let mut health = HealthClient::new(channel);
    for name in HEALTH {
        let asked = HealthCheckRequest { service: name.into() };
        let answer = health.check(asked).await.unwrap_or_else(|error| panic!("{name}: {error}")).into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{name}");
    }
    let unknown = health.check(HealthCheckRequest { service: "no.such.Service".into() }).await;
    assert_eq!(unknown.expect_err("an unknown name").code(), Code::NotFound);
}

const HEALTH: [&str; 4] =
    ["", "registry.v1.Registry", "registry.v1.Registry.reads", "registry.v1.Registry.writes"];

#[tokio::test]
async fn sigterm_sends_watchers_away_ends_what_is_in_flight_and_loses_nothing() {
    let setup = server_setup!().with("--grace", "4s");
    let recorder = Recorder::default();
    let server = setup.start().await;
    let client = server.client().await;
    let mut history = History::default();

    let mut healths = Vec::new();
    for name in HEALTH {
        let asked = HealthCheckRequest { service: name.into() };
        let mut statuses =
            HealthClient::new(server.channel().await).watch(asked).await.expect("health").into_inner();
        let first = statuses.next().await.expect("a status").expect("a status");
        assert_eq!(first.status(), ServingStatus::Serving);
        healths.push(statuses);
    }
    let mut subscribed = Watcher::of("subscribed", SERVICE, Over::Subscribe, &recorder);
    let mut watching = Watcher::of("watching", SERVICE, Over::Watch, &recorder);
    for watcher in [&mut subscribed, &mut watching] {
        watcher.open(&client).await.expect("a watch");
        watcher.settle().await;
    }
    // Many write, and are cut off somewhere.
    let mut writing = JoinSet::new();
    for number in 0..16 {
        let (client, recorder) = (client.clone(), recorder.clone());
        writing.spawn(async move {
            let mut writer = Writer::new(number, SERVICE, 2, &recorder);
            while writer.write(&client, 1).await.is_ok() {}
            writer
        });
    }
    subscribed.until("some writes", |view| view.items.len() > 60).await;
    server.terminate();

    for (name, statuses) in HEALTH.iter().zip(&mut healths) {
        let next = within("health", Duration::from_secs(30), statuses.next()).await;
        let next = next.expect("a status").expect("a status");
        assert_eq!(next.status(), ServingStatus::NotServing, "{name}");
    }
    let ended = watching.drain().await;
    assert_eq!((ended.code(), requests::reason(&ended).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    assert!(ended.get_error_details().retry_info().is_some_and(|retry| retry.retry_delay.is_some()));
    subscribed.drain().await;
    let asked_to_leave =
        subscribed.since_opened().iter().filter(|event| matches!(event, Event::GoAway)).count();
    assert_eq!(asked_to_leave, 1, "go_away comes once");
    drop(healths);
    for writer in writing.join_all().await {
        history.writes.extend(writer.writes);
    }
    drop(client);
    let end = server.ended().await;
    assert_eq!(end.status.code(), Some(0), "{}", end.log);
    assert!(end.log.contains("shutting down") && end.log.contains("stopped"), "{}", end.log);
    assert!(!end.log.contains("cut off"), "{}", end.log);

    let server = setup.start().await;
    let client = server.client().await;
    let reading = writers::read(&client, SERVICE, 2, &recorder).await.expect("a reading");
    for mut watcher in [subscribed, watching] {
        watcher.open(&client).await.expect("the cursor is good after a restart");
        watcher.settle().await;
        assert_eq!(watcher.view().digest, reading.digest);
        history.watchers.push(watcher.into_record());
    }
    history.readings.push(reading);
    assert_kept(&history);
}

/// A registrant of one lease with two instances.
async fn registered(client: &Client, lease: u64, ttl_millis: i64) -> LeaseRecord {
    let ids = vec![format!("l{lease}-a"), format!("l{lease}-b")];
    let instances = ids.iter().map(|id| instance(id)).collect();
    client
        .clone()
        .register(register_for(ttl_millis, lease, SERVICE, instances))
        .await
        .expect("a registration");
    LeaseRecord { view: SERVICE.into(), ids, ..LeaseRecord::default() }
}

async fn watching(server: &Server, recorder: &Recorder) -> Watcher {
    let mut watcher = Watcher::of("w", SERVICE, Over::Subscribe, recorder);
    watcher.open(&server.client().await).await.expect("a watch");
    watcher.settle().await;
    watcher
}

#[tokio::test]
async fn an_unrenewed_lease_ends_as_a_whole_and_renewed_ones_live_on() {
    // Without the guard: it has a test of its own.
    let server = server_setup!().with("--hold", "off").start().await;
    let client = server.client().await;
    let recorder = Recorder::default();
    let mut watcher = watching(&server, &recorder).await;
    let mut kept = registered(&client, 1, 4_000).await;
    let registrant = Registrant::start(&client, vec![requests::lease(1)], Duration::from_millis(300)).await;
    let registrant = registrant.expect("renewals");
    let abandoned = LeaseRecord { abandoned: true, ..registered(&client, 2, 1_000).await };
    watcher.until("the instances of both", |view| view.items.len() == 4).await;
    // The watch says when the lease is over.
    watcher.until("the end of the abandoned lease", |view| view.items.len() == 2).await;
    // Renewals go on for longer than the TTL.
    kept.exceptions = registrant.renewed(16).await.exceptions;
    let unknown = Registrant::start(&client, vec![requests::lease(2)], Duration::from_millis(300)).await;
    let told = unknown.expect("renewals").renewed(1).await.exceptions;
    assert!(told.first().is_some_and(|exception| exception.contains("Unknown")), "{told:?}");
    server.logged("leases ran out").await;

    // Why it left: `Explain`.
    let why = v1::ExplainRequest { key: Some(key(SERVICE)), id: abandoned.ids[0].clone() };
    let events = client.clone().explain(why).await.expect("an explanation").into_inner().events;
    assert_eq!(
        events.iter().map(v1::Event::cause).collect::<Vec<_>>(),
        [v1::Cause::Expire, v1::Cause::Register]
    );
    assert!(events[0].instance.is_none() && events[1].instance.is_some());
    assert_eq!(events[1].actor, "r2#1");
    assert_kept(&History {
        watchers: vec![watcher.into_record()],
        leases: vec![kept, abandoned],
        ..History::default()
    });
}

#[tokio::test]
async fn time_in_which_the_server_was_frozen_does_not_count_against_leases() {
    let server = server_setup!().with("--hold", "off").start().await;
    let client = server.client().await;
    let recorder = Recorder::default();
    let mut watcher = watching(&server, &recorder).await;
    let mut leases = Vec::new();
    for lease in 0..8 {
        leases.push(registered(&client, lease, 2_000).await);
    }
    watcher.until("all instances", |view| view.items.len() == 16).await;
    let all = (0..8).map(requests::lease).collect();
    let registrant = Registrant::start(&client, all, Duration::from_millis(400)).await.expect("renewals");
    registrant.renewed(2).await;
    server.freeze();
    // Not to wait for anything: this is how long the server is frozen, which is three times the TTL.
    tokio::time::sleep(Duration::from_secs(6)).await;
    server.thaw();
    server.logged("the server could not run").await;
    // Well beyond another TTL.
    let renewed = registrant.renewed(12).await;
    for lease in &mut leases {
        lease.exceptions.clone_from(&renewed.exceptions);
    }
    let reading = writers::read(&client, SERVICE, 1, &recorder).await.expect("a reading");
    assert_eq!(reading.items.len(), 16, "L1 no early expiry");
    watcher.reach(reading.revision).await;
    assert_kept(&History { watchers: vec![watcher.into_record()], leases, ..History::default() });
}

#[tokio::test]
async fn an_operators_override_outlives_registrations_and_restarts() {
    let setup = server_setup!();
    let recorder = Recorder::default();
    let server = setup.start().await;
    let mut client = server.client().await;
    let mut watcher = watching(&server, &recorder).await;
    let weighing = |lease, weight| {
        register(lease, SERVICE, vec![v1::Instance { weight: Some(weight), ..instance("a") }, instance("b")])
    };
    let known = client.register(weighing(1, 10)).await.expect("a registration").into_inner().revision;
    let set = client.set_override(requests::override_weight(SERVICE, "a", 77)).await.expect("an override");
    let v1::SetOverrideResponse { epoch, revision: set_at } = set.into_inner();
    let asked = |set: Option<u32>, known: u64, done: u64| {
        let at = |revision| Cursor { epoch: epoch.as_str().into(), revision };
        let (view, id) = (SERVICE.to_owned(), "a".to_owned());
        OverrideRecord { view, id, set, knows: at(known), answer: Some(at(done)) }
    };
    // Its own words change, it leaves, and it comes back under another lease.
    client.register(weighing(1, 20)).await.expect("an update");
    client.deregister(requests::deregister(SERVICE, &["a".into()])).await.expect("a deregistration");
    let last = client.register(weighing(2, 30)).await.expect("a new incarnation").into_inner().revision;
    watcher.reach(last).await;
    assert_eq!(watcher.view().items["a"].weight, 77);
    server.kill().await;

    let server = setup.start().await;
    let mut client = server.client().await;
    watcher.open(&client).await.expect("a watch");
    let reading = writers::read(&client, SERVICE, 2, &recorder).await.expect("a reading");
    assert_eq!(reading.items["a"].weight, 77, "L4 overrides last");
    client.register(weighing(3, 40)).await.expect("a registration after the restart");
    let overrides =
        client.list_overrides(v1::ListOverridesRequest::default()).await.expect("a list").into_inner();
    let [found] = overrides.overrides.as_slice() else { panic!("{:?}", overrides.overrides) };
    let set = found.r#override.clone().expect("what is set");
    assert_eq!((set.weight, set.actor.as_str(), set.reason.as_str()), (Some(77), "operator", "a test"));
    let clear = requests::clear_override(SERVICE, "a");
    let cleared = client.set_override(clear).await.expect("it is cleared").into_inner().revision;
    watcher.reach(cleared).await;
    assert_eq!(watcher.view().items["a"].weight, 40, "its own word again");

    // One with an expiry ends by itself: the watch says when.
    let lasting = v1::Override {
        status: v1::InstanceStatus::Down.into(),
        expires_in: Some(requests::seconds(1)),
        ..Default::default()
    };
    let set = v1::SetOverrideRequest {
        action: Some(v1::set_override_request::Action::Set(lasting)),
        ..requests::override_weight(SERVICE, "b", 0)
    };
    client.set_override(set).await.expect("an override");
    let status = |wanted: v1::InstanceStatus| {
        move |view: &integration_tests::replica::Replica| {
            view.items.get("b").is_some_and(|item| item.status == i32::from(wanted))
        }
    };
    watcher.until("the override", status(v1::InstanceStatus::Down)).await;
    watcher.until("the override's end", status(v1::InstanceStatus::Up)).await;
    assert_kept(&History {
        watchers: vec![watcher.into_record()],
        readings: vec![reading],
        overrides: vec![asked(Some(77), known, set_at), asked(None, set_at, cleared)],
        ..History::default()
    });
}

#[tokio::test]
async fn expiry_removes_half_of_a_service_and_holds_the_rest_until_someone_resolves_it() {
    let setup = server_setup!();
    let recorder = Recorder::default();
    let server = setup.start().await;
    let mut client = server.client().await;
    let mut watcher = watching(&server, &recorder).await;
    let ids: Vec<String> = (0..10).map(|number| format!("i{number}")).collect();
    for (lease, id) in (0..).zip(&ids) {
        // The window is as long as the longest TTL: all ten run out within it.
        client
            .register(register_for(4_000, lease, SERVICE, vec![instance(id)]))
            .await
            .expect("a registration");
    }
    watcher.until("all ten", |view| view.items.len() == 10).await;
    let held = |view: &integration_tests::replica::Replica| {
        view.items.values().filter(|it| it.held.is_some()).count()
    };
    watcher.until("five that are held", |view| held(view) == 5 && view.items.len() == 5).await;
    let expiry = MassExpiry { view: SERVICE.into(), ids: ids.clone(), base: 10 };
    assert_kept(&History {
        watchers: vec![watcher.clone_record()],
        expiries: vec![expiry],
        ..History::default()
    });
    server.logged("instances are held").await;

    // Visible, and explained.
    let held_ids: Vec<String> = watcher.view().items.keys().map(ToString::to_string).collect();
    let summary =
        client.list_services(v1::ListServicesRequest::default()).await.expect("a list").into_inner();
    assert_eq!((summary.services[0].instances, summary.services[0].held), (5, 5));
    let why = |id: &String| v1::ExplainRequest { key: Some(key(SERVICE)), id: id.clone() };
    let events = client.explain(why(&held_ids[0])).await.expect("an explanation").into_inner().events;
    assert_eq!(events[0].cause(), v1::Cause::Expire);
    let explained = events[0].instance.as_ref().and_then(|it| it.held.as_ref()).expect("it is held");
    assert!(explained.reason.contains("10 instances") && explained.until != explained.since, "{explained:?}");
    assert_eq!(events[0].detail, explained.reason);
    let gone = ids.iter().find(|id| !held_ids.contains(id)).expect("five are gone");
    let events = client.explain(why(gone)).await.expect("an explanation").into_inner().events;
    assert_eq!((events[0].cause(), events[0].instance.is_none()), (v1::Cause::Expire, true));

    // Held is durable.
    server.kill().await;
    let server = setup.start().await;
    let mut client = server.client().await;
    watcher.open(&client).await.expect("a watch");
    watcher.settle().await;
    assert_eq!(held(watcher.view()), 5, "L5: held state is durable");

    // One renews, one is evicted, the others are released by an operator.
    let number = |id: &String| id[1..].parse().expect("a number");
    let renewing =
        Registrant::start(&client, vec![requests::lease(number(&held_ids[0]))], Duration::from_millis(500));
    let renewing = renewing.await.expect("renewals");
    let is_free = |id: &str, view: &integration_tests::replica::Replica| {
        view.items.get(id).is_some_and(|item| item.held.is_none())
    };
    watcher.until("the renewed one", |view| is_free(&held_ids[0], view)).await;
    let resolve = |ids: &[String], action: v1::resolve_hold_request::Action| v1::ResolveHoldRequest {
        key: Some(key(SERVICE)),
        ids: ids.to_vec(),
        action: action.into(),
        actor: "operator".into(),
    };
    let evicted =
        client.resolve_hold(resolve(&held_ids[1..2], Evict)).await.expect("an eviction").into_inner();
    assert_eq!(evicted.resolved, 1);
    watcher.until("the eviction", |view| !view.items.contains_key(held_ids[1].as_str())).await;
    let released = client.resolve_hold(resolve(&[], Release)).await.expect("a release").into_inner();
    assert_eq!(released.resolved, 3);
    watcher.until("the release", |view| is_free(&held_ids[2], view)).await;
    let events = client.explain(why(&held_ids[2])).await.expect("an explanation").into_inner().events;
    assert_eq!((events[0].cause(), events[0].actor.as_str()), (v1::Cause::ResolveHold, "operator"));
    assert!(renewing.renewed(1).await.exceptions.is_empty());
    assert_kept(&History { watchers: vec![watcher.into_record()], ..History::default() });
}

#[tokio::test]
async fn a_real_scale_down_by_deregistration_is_not_held() {
    let server = server_setup!().start().await;
    let mut client = server.client().await;
    let mut watcher = watching(&server, &Recorder::default()).await;
    let ids: Vec<String> = (0..10).map(|number| format!("i{number}")).collect();
    for (lease, id) in (0..).zip(&ids) {
        client.register(register(lease, SERVICE, vec![instance(id)])).await.expect("a registration");
    }
    watcher.until("all ten", |view| view.items.len() == 10).await;
    // Four fifths at once, far beyond what expiry may take.
    client.deregister(requests::deregister(SERVICE, &ids[..8])).await.expect("a deregistration");
    watcher.until("the rest", |view| view.items.len() == 2).await;
    assert!(watcher.view().items.values().all(|item| item.held.is_none()));
    let none_held =
        |event: &Event| !matches!(event, Event::Told(told) if told.put.iter().any(|it| it.held.is_some()));
    assert!(watcher.since_opened().iter().all(none_held));
    for id in &ids[..8] {
        let why = v1::ExplainRequest { key: Some(key(SERVICE)), id: id.clone() };
        let events = client.explain(why).await.expect("an explanation").into_inner().events;
        assert_eq!(
            (events[0].cause(), events[0].detail.as_str()),
            (v1::Cause::Deregister, "was deregistered")
        );
    }
    let summary =
        client.list_services(v1::ListServicesRequest::default()).await.expect("a list").into_inner();
    let service = &summary.services[0];
    assert_eq!((service.instances, service.held, service.held_reason.as_str()), (2, 0, ""));
}

/// Services that lose many at the same moment: each has its own line in the log, with its own number.
#[tokio::test]
async fn each_service_of_which_instances_are_held_is_named_in_the_log() {
    let server = server_setup!().start().await;
    let mut client = server.client().await;
    for (service, size) in [("larger", 8), ("smaller", 4)] {
        let instances = (0..size).map(|number| instance(&format!("{service}{number}"))).collect();
        let lease = u64::try_from(size).expect("small");
        client.register(register_for(1_500, lease, service, instances)).await.expect("a registration");
    }
    for (service, held) in [("larger", 4), ("smaller", 2)] {
        let line = server.logged(&format!("service=default/{service} held={held} ")).await;
        assert!(line.contains("instances are held") && line.contains("reason="), "{line}");
    }
}

#[tokio::test]
async fn a_hold_ends_by_itself_and_small_services_are_never_held() {
    let server = server_setup!().with("--hold-time", "1s").start().await;
    let mut client = server.client().await;
    let mut watcher = watching(&server, &Recorder::default()).await;
    let mut small = Watcher::of("small", "small", Over::Watch, &Recorder::default());
    small.open(&client).await.expect("a watch");
    for lease in 0..3 {
        let it = vec![instance(&format!("s{lease}"))];
        client.register(register_for(3_000, 100 + lease, "small", it)).await.expect("a registration");
    }
    for lease in 0..4 {
        let it = vec![instance(&format!("i{lease}"))];
        client.register(register_for(3_000, lease, SERVICE, it)).await.expect("a registration");
    }
    small.until("all three", |view| view.items.len() == 3).await;
    small.until("their end", |view| view.items.is_empty()).await;
    let never_held =
        |event: &Event| !matches!(event, Event::Told(told) if told.put.iter().any(|it| it.held.is_some()));
    assert!(small.since_opened().iter().all(never_held));
    watcher.until("all four", |view| view.items.len() == 4).await;
    watcher
        .until("two that are held", |view| {
            view.items.len() == 2 && view.items.values().all(|item| item.held.is_some())
        })
        .await;
    watcher.until("the end of the hold", |view| view.items.is_empty()).await;
    let why = v1::ExplainRequest { key: Some(key(SERVICE)), id: "i0".into() };
    let causes: Vec<_> = client
        .explain(why)
        .await
        .expect("an explanation")
        .into_inner()
        .events
        .iter()
        .map(v1::Event::cause)
        .collect();
    assert!(matches!(causes[0], v1::Cause::Expire | v1::Cause::HoldExpire), "{causes:?}");
    assert_kept(&History {
        watchers: vec![watcher.into_record(), small.into_record()],
        ..History::default()
    });
}
