//! `Explain`: why an instance came, changed and left, by whom, when; and what is said of what is not there.

use std::time::Duration;

use integration_tests::{
    history::Recorder,
    process::Client,
    requests::{self, instance, key, register, register_for},
    server_setup,
    watcher::{Over, Watcher},
};
use registry_proto::v1::{self, Cause};

const SERVICE: &str = "explained";

async fn explain(client: &Client, service: &str, id: &str) -> v1::ExplainResponse {
    let request = v1::ExplainRequest { key: Some(key(service)), id: id.into() };
    client.clone().explain(request).await.expect("an explanation").into_inner()
}

/// Cause, actor and words of each event, the oldest first.
fn told(past: &v1::ExplainResponse) -> Vec<(Cause, &str, &str)> {
    past.events
        .iter()
        .rev()
        .map(|event| (event.cause(), event.actor.as_str(), event.detail.as_str()))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn weighing(lease: u64, weight: u32) -> v1::RegisterRequest {
    register(lease, SERVICE, vec![v1::Instance { weight: Some(weight), ..instance("a") }])
}

#[tokio::test]
async fn everything_that_happened_is_told_with_its_cause_and_by_whom_also_after_a_restart() {
    let setup = server_setup!();
    let server = setup.start().await;
    let mut client = server.client().await;
    let mut watcher = Watcher::of("w", SERVICE, Over::Subscribe, &Recorder::default());
    watcher.open(&client).await.expect("a watch");
    let mut revisions = Vec::new();
    revisions.push(client.register(weighing(1, 1)).await.expect("registered").into_inner().revision);
    revisions.push(client.register(weighing(1, 2)).await.expect("changed").into_inner().revision);
    let over = requests::override_weight(SERVICE, "a", 7);
    revisions.push(client.set_override(over).await.expect("overridden").into_inner().revision);
    let cleared = v1::SetOverrideRequest {
        action: Some(v1::set_override_request::Action::Clear(v1::ClearOverride {})),
        ..requests::override_weight(SERVICE, "a", 0)
    };
    revisions.push(client.set_override(cleared).await.expect("cleared").into_inner().revision);
    let passing = v1::Override {
        status: v1::InstanceStatus::Down.into(),
        expires_in: Some(requests::seconds(1)),
        ..v1::Override::default()
    };
    let over = v1::SetOverrideRequest {
        action: Some(v1::set_override_request::Action::Set(passing)),
        ..requests::override_weight(SERVICE, "a", 0)
    };
    revisions.push(client.set_override(over).await.expect("overridden").into_inner().revision);
    let status = |status: v1::InstanceStatus| {
        move |view: &integration_tests::replica::Replica| {
            view.items.get("a").is_some_and(|item| item.status == i32::from(status))
        }
    };
    watcher.until("the override", status(v1::InstanceStatus::Down)).await;
    watcher.until("its end", status(v1::InstanceStatus::Up)).await;
    revisions.push(watcher.view().cursor);
    revisions.push(client.register(weighing(2, 3)).await.expect("taken over").into_inner().revision);
    let leaves = v1::DeregisterRequest {
        actor: "a deployment".into(),
        ..requests::deregister(SERVICE, &["a".into()])
    };
    revisions.push(client.deregister(leaves).await.expect("deregistered").into_inner().revision);

    let past = explain(&client, SERVICE, "a").await;
    let by = |number: u64| hex(&requests::lease(number));
    let superseded = format!(
        "was superseded: r2#1 registered it at revision {} under the lease {}, in the place of the incarnation of r1#1 from \
         revision {} under the lease {}",
        revisions[6],
        by(2),
        revisions[0],
        by(1)
    );
    assert_eq!(
        told(&past),
        [
            (Cause::Register, "r1#1", "was registered"),
            (Cause::Register, "r1#1", "was changed by its registrant"),
            (Cause::Override, "operator", "was overridden to weight 7: a test"),
            (Cause::Override, "operator", "its override was cleared"),
            (Cause::Override, "operator", "was overridden to status DOWN: a test"),
            (Cause::OverrideExpire, "", "its override expired"),
            (Cause::Supersede, "r2#1", superseded.as_str()),
            (Cause::Deregister, "a deployment", "was deregistered"),
        ]
    );
    let at = |event: &v1::Event| event.at.map(|at| (at.seconds, at.nanos)).expect("a time");
    assert!(past.events.windows(2).all(|pair| at(&pair[0]) >= at(&pair[1])), "the newest first: {past:?}");
    assert!(past.events.iter().rev().map(|event| event.revision).eq(revisions), "{past:?}");
    assert!(past.events[0].instance.is_none(), "it is gone");
    let weights: Vec<_> =
        past.events.iter().rev().filter_map(|event| event.instance.as_ref()?.weight).collect();
    assert_eq!(weights, [1, 2, 7, 2, 2, 2, 3], "as watchers saw it");
    assert_eq!(past.known_since_revision, 0, "nothing was forgotten yet");

    // Killed and started: the same is known.
    server.kill().await;
    let server = setup.start().await;
    let again = explain(&server.client().await, SERVICE, "a").await;
    assert_eq!((again.events, again.known_since_revision), (past.events, past.known_since_revision));
}

#[tokio::test]
async fn held_renewed_and_expired_are_told() {
    let server = server_setup!().with("--hold-time", "3s").start().await;
    let mut client = server.client().await;
    let mut watcher = Watcher::of("w", SERVICE, Over::Subscribe, &Recorder::default());
    watcher.open(&client).await.expect("a watch");
    let ids: Vec<String> = (0..4).map(|number| format!("i{number}")).collect();
    for (lease, id) in (0..).zip(&ids) {
        client.register(register_for(2_000, lease, SERVICE, vec![instance(id)])).await.expect("registered");
    }
    let held = |view: &integration_tests::replica::Replica| {
        view.items.len() == 2 && view.items.values().all(|item| item.held.is_some())
    };
    watcher.until("two that are held", held).await;
    let held: Vec<String> = watcher.view().items.keys().map(ToString::to_string).collect();
    let gone = ids.iter().find(|id| !held.contains(id)).expect("two are gone");
    let past = explain(&client, SERVICE, gone).await;
    let lease: u64 = gone[1..].parse().expect("a number");
    let registrant = format!("r{lease}#1");
    assert_eq!(
        told(&past),
        [
            (Cause::Register, registrant.as_str(), "was registered"),
            (Cause::Expire, "", "left: its lease ran out")
        ],
        "why it is not there"
    );

    // One renews, and is released; the other's hold time passes.
    let lease: u64 = held[0][1..].parse().expect("a number");
    let renewing = integration_tests::registrant::Registrant::start(
        &client,
        vec![requests::lease(lease)],
        Duration::from_millis(300),
    );
    let renewing = renewing.await.expect("renewals");
    watcher.until("the end of the other's hold", |view| !view.items.contains_key(held[1].as_str())).await;
    let causes = |past: &v1::ExplainResponse| past.events.iter().map(v1::Event::cause).collect::<Vec<_>>();
    let past = explain(&client, SERVICE, &held[0]).await;
    assert_eq!(causes(&past), [Cause::RenewHeld, Cause::Expire, Cause::Register]);
    assert_eq!(past.events[0].actor, format!("r{lease}#1"), "who renewed it");
    assert_eq!(past.events[0].detail, "was renewed, and is no longer held");
    let why =
        past.events[1].instance.as_ref().and_then(|instance| instance.held.as_ref()).expect("held then");
    assert_eq!(past.events[1].detail, why.reason, "the reason is the guard's own");
    let past = explain(&client, SERVICE, &held[1]).await;
    assert_eq!(causes(&past), [Cause::HoldExpire, Cause::Expire, Cause::Register]);
    assert_eq!(past.events[0].detail, "left: its hold time passed, and its lease had run out before");
    drop(renewing);
}

/// What an operator does about instances that are held, what a registrant does by registering again; after a restart, too.
#[tokio::test]
async fn released_evicted_and_registered_again_are_told_also_after_a_restart() {
    let setup = server_setup!().with("--hold-time", "1h");
    let server = setup.start().await;
    let mut client = server.client().await;
    let mut watcher = Watcher::of("w", SERVICE, Over::Subscribe, &Recorder::default());
    watcher.open(&client).await.expect("a watch");
    let ids: Vec<String> = (0..6).map(|number| format!("i{number}")).collect();
    for (lease, id) in (0..).zip(&ids) {
        client.register(register_for(1_000, lease, SERVICE, vec![instance(id)])).await.expect("registered");
    }
    let held = |view: &integration_tests::replica::Replica| {
        view.items.len() == 3 && view.items.values().all(|item| item.held.is_some())
    };
    watcher.until("three that are held", held).await;
    let held: Vec<String> = watcher.view().items.keys().map(ToString::to_string).collect();
    let resolve = |id: &str, action: v1::resolve_hold_request::Action| v1::ResolveHoldRequest {
        key: Some(key(SERVICE)),
        ids: vec![id.to_owned()],
        action: action.into(),
        actor: "a person".into(),
    };
    let evict = resolve(&held[0], v1::resolve_hold_request::Action::Evict);
    let evicted = client.resolve_hold(evict).await.expect("evicted").into_inner().revision;
    let lease: u64 = held[1][1..].parse().expect("a number");
    let again = register_for(3_600_000, lease, SERVICE, vec![instance(&held[1])]);
    client.register(again).await.expect("registered again");
    let release = resolve(&held[2], v1::resolve_hold_request::Action::Release);
    client.resolve_hold(release).await.expect("released");

    let newest = |past: &v1::ExplainResponse, id: &str| {
        let newest = past.events.iter().find(|event| event.cause() != Cause::Expire);
        let event = newest.unwrap_or_else(|| panic!("{id}: {past:?}"));
        (event.cause(), event.actor.clone(), event.detail.clone())
    };
    let mut server = Some(server);
    for life in ["the first", "after a restart"] {
        let one = server.as_ref().expect("it runs").client().await;
        let past = explain(&one, SERVICE, &held[0]).await;
        let words = "was evicted by an operator while it was held";
        assert_eq!(newest(&past, "0"), (Cause::ResolveHold, "a person".into(), words.into()), "{life}");
        assert_eq!((past.events[0].revision, past.events[0].instance.is_none()), (evicted, true), "{life}");
        let past = explain(&one, SERVICE, &held[1]).await;
        let words = "was registered again, and is no longer held";
        assert_eq!(newest(&past, "1"), (Cause::Register, format!("r{lease}#1"), words.into()), "{life}");
        let past = explain(&one, SERVICE, &held[2]).await;
        let freed = past.events.iter().find(|it| it.cause() == Cause::ResolveHold).expect("released");
        let words = ("a person", "was released by an operator, and is no longer held");
        assert_eq!((freed.actor.as_str(), freed.detail.as_str()), words, "{life}");
        let why = past.events.iter().find(|it| it.cause() == Cause::Expire).expect("held before");
        let then = why.instance.as_ref().and_then(|instance| instance.held.as_ref()).expect("held then");
        assert_eq!(why.detail, then.reason, "{life}");
        if life == "the first" {
            server.take().expect("it runs").kill().await;
            server = Some(setup.start().await);
        }
    }
}

/// A newer generation of the same registrant takes its instance over: the one before learns who it was, and so does whoever asks.
#[tokio::test]
async fn who_is_superseded_by_its_own_next_generation_is_told_so_also_after_a_restart() {
    let setup = server_setup!();
    let server = setup.start().await;
    let mut client = server.client().await;
    client.register(weighing(1, 1)).await.expect("registered");
    let newer = v1::RegisterRequest {
        registrant: Some(v1::Registrant { instance_uid: "r1".into(), generation: 2 }),
        ..weighing(2, 1)
    };
    let taken = client.register(newer).await.expect("the next generation").into_inner().revision;
    let late = client.register(weighing(1, 5)).await.expect_err("it is over");
    assert_eq!(requests::reason(&late), "SUPERSEDED");
    let mut server = Some(server);
    for life in ["the first", "after a restart"] {
        let client = server.as_ref().expect("it runs").client().await;
        let past = explain(&client, SERVICE, "a").await;
        let newest = &past.events[0];
        assert_eq!(
            (newest.cause(), newest.revision, newest.actor.as_str()),
            (Cause::Supersede, taken, "r1#2")
        );
        assert!(newest.at.is_some(), "{life}: when");
        assert!(newest.detail.starts_with("was superseded: r1#2 registered it"), "{life}: {}", newest.detail);
        assert!(newest.detail.contains("in the place of the incarnation of r1#1 from revision"), "{life}");
        assert_eq!(past.events.len(), 2, "{life}: what came too late left no trace");
        if life == "the first" {
            server.take().expect("it runs").kill().await;
            server = Some(setup.start().await);
        }
    }
}

#[tokio::test]
async fn why_is_it_not_there_has_an_answer_or_says_from_when_on_it_is_known() {
    let setup = server_setup!().with("--history-count", "4");
    let server = setup.start().await;
    let mut client = server.client().await;
    // Never there: nothing happened to it, and all of the past is known.
    client.register(weighing(1, 1)).await.expect("registered");
    let past = explain(&client, SERVICE, "never").await;
    assert_eq!((past.events.len(), past.known_since_revision), (0, 0));
    let past = explain(&client, "nobodys", "never").await;
    assert_eq!((past.events.len(), past.known_since_revision), (0, 0));

    // Gone, and so long ago that the log has forgotten it.
    let gone = client.deregister(requests::deregister(SERVICE, &["a".into()])).await.expect("deregistered");
    let gone = gone.into_inner().revision;
    assert_eq!(explain(&client, SERVICE, "a").await.events[0].cause(), Cause::Deregister);
    // As long as the log has its removal, that is told; from the very change on that pushes it out, not even that much.
    let mut told = 0;
    for weight in 0..10 {
        let past = explain(&client, SERVICE, "a").await;
        let knows = past.known_since_revision < gone;
        assert_eq!(past.events.iter().any(|event| event.revision == gone), knows, "{past:?}");
        told += usize::from(knows);
        let other = v1::Instance { weight: Some(weight), ..instance("other") };
        client.register(register(2, SERVICE, vec![other])).await.expect("changed");
    }
    assert!((1..10).contains(&told), "first known, then forgotten: {told}");
    let past = explain(&client, SERVICE, "a").await;
    assert!(past.events.is_empty(), "{past:?}");
    assert!(past.known_since_revision > gone, "it does not claim to know what was before: {past:?}");
    assert!(past.known_since.is_some(), "and says since when, for people");
    let known = explain(&client, SERVICE, "other").await;
    assert!(known.events.iter().all(|event| event.revision > known.known_since_revision), "{known:?}");

    // Killed and started: it does not claim more than before of what it forgot, nor of what never was.
    server.kill().await;
    let server = setup.start().await;
    let client = server.client().await;
    let past = explain(&client, SERVICE, "a").await;
    let knows = past.known_since_revision < gone;
    assert_eq!(past.events.iter().any(|event| event.revision == gone), knows, "{past:?}");
    assert!(explain(&client, SERVICE, "never").await.events.is_empty());
}
