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
    assert_eq!(
        told(&past),
        [
            (Cause::Register, "r1#1", "came"),
            (Cause::Register, "r1#1", "changed"),
            (Cause::Override, "operator", "its override changed"),
            (Cause::Override, "operator", "its override changed"),
            (Cause::OverrideExpire, "", "its override changed"),
            (Cause::Register, "r2#1", "was taken over by a new incarnation under another lease"),
            (Cause::Deregister, "a deployment", "left"),
        ]
    );
    let at = |event: &v1::Event| event.at.map(|at| (at.seconds, at.nanos)).expect("a time");
    assert!(past.events.windows(2).all(|pair| at(&pair[0]) >= at(&pair[1])), "the newest first: {past:?}");
    assert!(past.events.iter().rev().map(|event| event.revision).eq(revisions), "{past:?}");
    assert!(past.events[0].instance.is_none(), "it is gone");
    let weights: Vec<_> =
        past.events.iter().rev().filter_map(|event| event.instance.as_ref()?.weight).collect();
    assert_eq!(weights, [1, 2, 7, 2, 2, 3], "as watchers saw it");
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
        [(Cause::Register, registrant.as_str(), "came"), (Cause::Expire, "", "left")],
        "its lease ran out"
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
    assert_eq!(past.events[0].detail, "is no longer held");
    let why =
        past.events[1].instance.as_ref().and_then(|instance| instance.held.as_ref()).expect("held then");
    assert_eq!(past.events[1].detail, why.reason, "the reason is the guard's own");
    let past = explain(&client, SERVICE, &held[1]).await;
    assert_eq!(causes(&past), [Cause::HoldExpire, Cause::Expire, Cause::Register]);
    drop(renewing);
}

#[tokio::test]
async fn why_is_it_not_there_has_an_answer_or_says_from_when_on_it_is_known() {
    let server = server_setup!().with("--history-count", "4").start().await;
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
}
