//! Registration: the lease is kept alive, words survive, what is lost is told, and leaving is orderly.
#![allow(clippy::disallowed_methods, clippy::unchecked_time_subtraction)] // the calls under test run beside the script

mod support;

use std::time::Duration;

use client_sdk::{
    client::{CallError, MissingRegistry, RegisterError},
    model::Instance,
    registration::{Drained, EndError, LostReason, Registration, RegistrationState, UpdateError},
};
use registry_proto::v1::{self, lease_exception::Kind, lost_instance::Reason};
use support::{Fake, Net, Renewals, address, soon};
use tokio::sync::oneshot;
use tonic::Status;

const TTL: Duration = Duration::from_secs(12);

/// Two instances under one lease, and the stream that renews it.
async fn registered(net: &Net, fake: &mut Fake, endpoints: &[&str]) -> (Registration, Renewals) {
    let builder = Registration::builder(net.client(endpoints))
        .service("greeter")
        .address(address("a:80"))
        .instance(Instance::builder(address("b:80")).id("b").weight(2).tag("k", "v").build())
        .ttl(TTL);
    let (registration, request, renewals) = fake.leased(builder).await;
    assert_eq!(request.registrations.len(), 2);
    (registration, renewals)
}

async fn until(registration: &Registration, wanted: impl Fn(&RegistrationState) -> bool) {
    let mut events = registration.events();
    soon(events.wait_for(|status| wanted(&status.state))).await.expect("the state");
}

fn lost(id: &str, reason: Reason) -> v1::LostInstance {
    let key = v1::ServiceKey { namespace: "default".into(), service: "greeter".into() };
    v1::LostInstance { key: Some(key), id: id.into(), reason: reason.into() }
}

fn ids(request: &v1::RegisterRequest) -> Vec<&str> {
    request.registrations.iter().map(|r| r.instance.as_ref().expect("set").id.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_at_a_third_of_its_ttl_on_one_stream() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, mut renewals) = registered(&net, &mut fake, &["r:1"]).await;
    let runtime = net.runtime(0);
    let mut last = runtime.now();
    for _ in 0..5 {
        let renewal = renewals.next().await;
        let now = runtime.now();
        assert!((now - last).abs_diff(TTL / 3) < Duration::from_millis(20), "{:?}", now - last);
        assert_eq!(renewal.lease_ids, [registration.lease_id().to_vec()]);
        renewals.answer(&renewal, &[]).await;
        last = now;
    }
    assert_eq!(registration.status().state, RegistrationState::Registered { revision: 1 });
    assert!(fake.is_quiet());
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_renewal_asks_another_replica_after_a_sixth_of_the_ttl() {
    let net = Net::default();
    let mut a = net.start("a:1");
    let (registration, mut renewals) = registered(&net, &mut a, &["a:1", "b:1"]).await;
    let mut b = net.start("b:1");
    let unanswered = renewals.next().await;
    let asked = net.runtime(0);
    let mut elsewhere = b.renewals().await;
    let renewal = elsewhere.next().await;
    let waited = asked.now();
    assert!(waited <= TTL / 6 + Duration::from_millis(50), "{waited:?}");
    assert_eq!(renewal.lease_ids, unanswered.lease_ids);
    assert!(matches!(registration.status().state, RegistrationState::Unconfirmed { .. }));
    elsewhere.answer(&renewal, &[]).await;
    until(&registration, |state| *state == RegistrationState::Registered { revision: 1 }).await;
}

#[tokio::test(start_paused = true)]
async fn a_killed_replica_is_left_for_another_at_once() {
    let net = Net::default();
    let mut a = net.start("a:1");
    let (registration, renewals) = registered(&net, &mut a, &["a:1", "b:1"]).await;
    let mut b = net.start("b:1");
    drop((a, renewals));
    let mut elsewhere = b.renewals().await;
    let renewal = elsewhere.next().await;
    elsewhere.answer(&renewal, &[]).await;
    until(&registration, |state| *state == RegistrationState::Registered { revision: 1 }).await;
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_lease_is_registered_again_with_its_current_words() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, mut renewals) = registered(&net, &mut fake, &["r:1"]).await;
    let update = registration.update(|instance| {
        instance.weight += 10;
        instance.id = "another".into();
    });
    let (updated, request) = tokio::join!(update, fake.registered(2));
    assert_eq!(updated.expect("updated"), 2);
    assert_eq!(ids(&request), ["a:80", "b"], "an update does not change ids");

    let renewal = renewals.next().await;
    renewals.answer(&renewal, &[(Kind::Unknown, vec![])]).await;
    let asked = net.runtime(0);
    let again = fake.registered(3).await;
    assert!(asked.now() <= Duration::from_secs(1), "promptly");
    assert_eq!(again, request, "the same lease, registrant and words");
    let weights: Vec<_> =
        again.registrations.iter().map(|r| r.instance.as_ref().expect("set").weight).collect();
    assert_eq!(weights, [Some(11), Some(12)]);
    until(&registration, |state| *state == RegistrationState::Registered { revision: 3 }).await;
    // And it is renewed again.
    fake.renewals().await.next().await;
}

#[tokio::test(start_paused = true)]
async fn instances_taken_over_are_told_and_not_registered_again_and_expired_ones_are() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, mut renewals) = registered(&net, &mut fake, &["r:1"]).await;
    let renewal = renewals.next().await;
    let gone = vec![lost("b", Reason::TakenOver), lost("a:80", Reason::Expired)];
    renewals.answer(&renewal, &[(Kind::Partial, gone)]).await;
    let again = fake.registered(2).await;
    assert_eq!(ids(&again), ["a:80"]);
    until(&registration, |state| *state == RegistrationState::Registered { revision: 2 }).await;
    let status = registration.status();
    assert_eq!(status.lost.len(), 1);
    assert_eq!((&*status.lost[0].id, status.lost[0].reason), ("b", LostReason::TakenOver));
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_lost_everything_stops() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, mut renewals) = registered(&net, &mut fake, &["r:1"]).await;
    let renewal = renewals.next().await;
    let gone = vec![lost("b", Reason::Deregistered), lost("a:80", Reason::TakenOver)];
    renewals.answer(&renewal, &[(Kind::Partial, gone)]).await;
    until(&registration, |state| *state == RegistrationState::Lost).await;
    let error = registration.update(|_| {}).await.expect_err("ended");
    assert_eq!(error, UpdateError::Ended(RegistrationState::Lost));
    drop(registration);
    tokio::time::sleep(TTL * 3).await;
    assert!(fake.is_quiet(), "nothing is renewed, registered or deregistered");
}

#[tokio::test(start_paused = true)]
async fn a_superseded_registrant_stops_and_tells() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, mut renewals) = registered(&net, &mut fake, &["r:1"]).await;
    let renewal = renewals.next().await;
    renewals.answer(&renewal, &[(Kind::Superseded, vec![])]).await;
    until(&registration, |state| *state == RegistrationState::Superseded).await;
    tokio::time::sleep(TTL * 3).await;
    assert!(fake.is_quiet());
    let error = registration.deregister().await.expect_err("not ours any longer");
    assert_eq!(error, EndError::Ended(RegistrationState::Superseded));
}

#[tokio::test(start_paused = true)]
async fn an_update_that_is_refused_leaves_the_old_words() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, mut renewals) = registered(&net, &mut fake, &["r:1"]).await;
    let update = registration.update(|instance| instance.weight = 99_999);
    let refuse = async { fake.register().await.answer(Err(Status::invalid_argument("too heavy"))) };
    let (updated, ()) = tokio::join!(update, refuse);
    assert!(matches!(updated, Err(UpdateError::Refused(_))), "{updated:?}");
    let renewal = renewals.next().await;
    renewals.answer(&renewal, &[(Kind::Unknown, vec![])]).await;
    let again = fake.registered(3).await;
    assert_eq!(again.registrations[1].instance.as_ref().expect("set").weight, Some(2));
}

#[tokio::test(start_paused = true)]
async fn an_update_waits_for_a_registry_that_is_away_for_a_moment() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, renewals) = registered(&net, &mut fake, &["r:1"]).await;
    drop((fake, renewals));
    let updated = tokio::spawn(async move {
        let revision = registration.update(|instance| instance.weight = 7).await;
        (registration, revision)
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut fake = net.start("r:1");
    let taken = fake.registered(5).await;
    assert_eq!(taken.registrations[0].instance.as_ref().expect("set").weight, Some(7));
    let (_registration, revision) = updated.await.expect("no panic");
    assert_eq!(revision, Ok(5));
}

#[tokio::test(start_paused = true)]
async fn an_update_while_the_registry_is_down_is_sent_when_it_is_back() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, renewals) = registered(&net, &mut fake, &["r:1"]).await;
    drop((fake, renewals));
    let updated = registration.update(|instance| instance.weight = 7).await;
    assert!(matches!(updated, Err(UpdateError::Pending(_))), "{updated:?}");
    let mut fake = net.start("r:1");
    let again = fake.registered(5).await;
    assert_eq!(again.registrations[0].instance.as_ref().expect("set").weight, Some(7));
    until(&registration, |state| *state == RegistrationState::Registered { revision: 5 }).await;
}

#[tokio::test(start_paused = true)]
async fn dropping_the_handle_deregisters() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, _renewals) = registered(&net, &mut fake, &["r:1"]).await;
    let lease_id = registration.lease_id();
    drop(registration);
    let call = fake.deregister().await;
    assert_eq!(call.request.lease_id, lease_id);
    assert!(call.request.instances.is_empty());
    call.answer(Ok(v1::DeregisterResponse::default()));
    tokio::time::sleep(TTL * 3).await;
    assert!(fake.is_quiet());
}

#[tokio::test(start_paused = true)]
async fn a_drain_marks_waits_lets_finish_and_only_then_deregisters() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, mut renewals) = registered(&net, &mut fake, &["r:1"]).await;
    let (finish, finished) = oneshot::channel::<()>();
    let drain = async {
        registration
            .drain_after(async {
                finished.await.expect("finished");
            })
            .await
    };
    let script = async {
        let request = fake.registered(2).await;
        for registration in request.registrations {
            let status = registration.instance.expect("set").status;
            assert_eq!(status, i32::from(v1::InstanceStatus::Draining));
        }
        let wait = fake.wait_applied().await;
        assert_eq!(wait.request.revision, 2);
        assert_eq!(wait.request.key.as_ref().expect("set").service, "greeter");
        wait.answer(Err(Status::unimplemented("not yet")));
        // The lease stays alive for as long as it takes.
        for _ in 0..3 {
            let renewal = renewals.next().await;
            renewals.answer(&renewal, &[]).await;
        }
        assert!(fake.is_quiet(), "nothing is deregistered while work is in flight");
        finish.send(()).expect("waited for");
        fake.deregister().await.answer(Ok(v1::DeregisterResponse::default()));
    };
    let (drained, ()) = tokio::join!(drain, script);
    assert_eq!(drained, Ok(Drained::Grace(Duration::from_secs(1))));
    assert_eq!(registration.status().state, RegistrationState::Deregistered);
    assert!(registration.status().state.is_final());
    registration.deregister().await.expect("done already");
}

#[tokio::test(start_paused = true)]
async fn a_missing_registry_at_start_fails_fast_or_is_waited_for_as_chosen() {
    let net = Net::default();
    let builder =
        || Registration::builder(net.client(&["r:1"])).service("greeter").address(address("a:80")).ttl(TTL);
    let error = builder().register().await.expect_err("missing");
    assert!(matches!(error, RegisterError::Failed(CallError::Unreachable(_))), "{error}");

    let waiting = tokio::spawn(builder().missing_registry(MissingRegistry::Wait).register());
    tokio::time::sleep(Duration::from_mins(5)).await;
    assert!(!waiting.is_finished());
    let mut fake = net.start("r:1");
    fake.registered(1).await;
    soon(waiting).await.expect("no panic").expect("registered");
}

#[tokio::test]
async fn an_incomplete_registration_is_refused_before_anything_is_sent() {
    let net = Net::default();
    let nothing = Registration::builder(net.client(&["r:1"])).service("s").register().await;
    assert!(matches!(nothing, Err(RegisterError::Incomplete(_))));
    let nowhere = Registration::builder(net.client(&["r:1"])).address(address("a:80")).register().await;
    assert!(matches!(nowhere, Err(RegisterError::Incomplete(_))));
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_keeps_forgetting_is_not_asked_in_a_loop() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (_registration, mut renewals) = registered(&net, &mut fake, &["r:1"]).await;
    let (clock, mut registrations) = (net.runtime(0), 0);
    while clock.now() < Duration::from_mins(1) {
        let renewal = renewals.next().await;
        renewals.answer(&renewal, &[(Kind::Unknown, vec![])]).await;
        fake.registered(1).await;
        renewals = fake.renewals().await;
        registrations += 1;
    }
    assert!(registrations < 30, "{registrations} in a minute");
}

/// A registry repeats what a lease has lost with every renewal.
#[tokio::test(start_paused = true)]
async fn a_loss_that_is_repeated_is_told_once_and_registers_nothing() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, mut renewals) = registered(&net, &mut fake, &["r:1"]).await;
    for _ in 0..5 {
        let renewal = renewals.next().await;
        renewals.answer(&renewal, &[(Kind::Partial, vec![lost("b", Reason::TakenOver)])]).await;
    }
    assert!(fake.is_quiet());
    let status = registration.status();
    assert_eq!(status.state, RegistrationState::Registered { revision: 1 });
    assert_eq!(status.lost.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_takes_no_words_goes_on_being_told_that_the_lease_lives() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, mut renewals) = registered(&net, &mut fake, &["r:1"]).await;
    let updated = tokio::spawn(async move {
        let pending = registration.update(|instance| instance.weight = 7).await;
        (registration, pending)
    });
    let (clock, mut renewed_at, mut refused) = (net.runtime(0), Duration::ZERO, 0);
    while clock.now() < TTL * 5 {
        tokio::select! {
            call = fake.register() => {
                call.answer(Err(Status::resource_exhausted("the queue is full")));
                refused += 1;
            }
            renewal = renewals.next() => {
                let pause = clock.now() - std::mem::replace(&mut renewed_at, clock.now());
                assert!(pause < TTL / 2, "{pause:?} between two renewals");
                renewals.answer(&renewal, &[]).await;
            }
        }
    }
    assert!((5..30).contains(&refused), "{refused} attempts in five TTLs");
    let (registration, pending) = updated.await.expect("no panic");
    assert!(matches!(pending, Err(UpdateError::Pending(_))), "{pending:?}");
    assert!(matches!(registration.status().state, RegistrationState::Reregistering { .. }));
    let taken = fake.registered(9).await;
    assert_eq!(taken.registrations[0].instance.as_ref().expect("set").weight, Some(7));
    until(&registration, |state| *state == RegistrationState::Registered { revision: 9 }).await;
}

#[tokio::test(start_paused = true)]
async fn words_that_are_refused_after_an_outage_give_way_to_those_before_them() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, renewals) = registered(&net, &mut fake, &["r:1"]).await;
    drop((fake, renewals));
    let updated = registration.update(|instance| instance.weight = 99_999).await;
    assert!(matches!(updated, Err(UpdateError::Pending(_))), "{updated:?}");
    let mut fake = net.start("r:1");
    let poison = fake.register().await;
    assert_eq!(poison.request.registrations[1].instance.as_ref().expect("set").weight, Some(99_999));
    poison.answer(Err(Status::invalid_argument("too heavy")));
    let again = fake.registered(5).await;
    assert_eq!(again.registrations[1].instance.as_ref().expect("set").weight, Some(2));
    until(&registration, |state| *state == RegistrationState::Registered { revision: 5 }).await;
}

#[tokio::test(start_paused = true)]
async fn a_ttl_of_next_to_nothing_is_not_renewed_in_a_hot_loop() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let builder = Registration::builder(net.client(&["r:1"])).service("greeter").address(address("a:80"));
    let grant = async {
        let ttl = Duration::from_nanos(1).try_into().ok();
        let granted = v1::RegisterResponse { epoch: "e".into(), revision: 1, ttl, instances: vec![] };
        fake.register().await.answer(Ok(granted));
    };
    let (registration, ()) = tokio::join!(builder.register(), grant);
    let _registration = registration.expect("registered");
    let mut renewals = fake.renewals().await;
    let clock = net.runtime(0);
    for _ in 0..10 {
        let renewal = renewals.next().await;
        renewals.answer(&renewal, &[]).await;
    }
    assert!(clock.now() > Duration::from_secs(2), "10 renewals in {:?}", clock.now());
}

#[tokio::test(start_paused = true)]
async fn an_update_that_panics_costs_nobody_the_lease() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, mut renewals) = registered(&net, &mut fake, &["r:1"]).await;
    let updated = registration
        .update(|instance| {
            instance.weight = 7;
            panic!("a fault of the caller's own");
        })
        .await;
    assert_eq!(updated, Err(UpdateError::Panicked));
    let renewal = renewals.next().await;
    renewals.answer(&renewal, &[(Kind::Unknown, vec![])]).await;
    let again = fake.registered(2).await;
    assert_eq!(again.registrations[0].instance.as_ref().expect("set").weight, Some(1));
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_renewal_asks_another_replica_in_time_while_words_are_owed() {
    let net = Net::default();
    let mut a = net.start("a:1");
    let (registration, mut renewals) = registered(&net, &mut a, &["a:1", "b:1"]).await;
    let full = async { a.register().await.answer(Err(Status::resource_exhausted("the queue is full"))) };
    let (pending, ()) = tokio::join!(registration.update(|instance| instance.weight = 7), full);
    assert!(matches!(pending, Err(UpdateError::Pending(_))), "{pending:?}");
    // From now on it answers nothing, neither words nor renewals.
    let mut b = net.start("b:1");
    renewals.next().await;
    let asked = net.runtime(0);
    b.renewals().await.next().await;
    let waited = asked.now();
    assert!(waited <= TTL / 6 + Duration::from_millis(50), "{waited:?}");
}
