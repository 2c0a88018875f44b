//! Draining (C4): nothing in flight is waited for, and nothing deregistered, before the callers know, or before it is certain
//! that nobody can say so. On paused time: what sleeps where the registry can tell is seen in the clock.
#![allow(clippy::disallowed_methods)] // the calls under test run beside the script

mod support;

use std::time::Duration;

use client_sdk::registration::{Drained, EndError, Registration, RegistrationState, Watchers};
use registry_proto::v1::{self, lease_exception::Kind};
use support::{Fake, Net, Renewals, address, soon};
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};
use tonic::Status;

const TTL: Duration = Duration::from_secs(12);
const TIMEOUT: Duration = Duration::from_secs(10);

/// A drain under way.
struct Draining {
    registration: std::sync::Arc<Registration>,
    task: JoinHandle<Result<Drained, EndError>>,
    /// What is in flight was asked for.
    asked: oneshot::Receiver<()>,
    finish: oneshot::Sender<()>,
}

async fn registered(net: &Net, fake: &mut Fake, services: &[&str]) -> (Registration, Renewals) {
    let mut builder = Registration::builder(net.client(&["r:1"])).ttl(TTL).drain_timeout(TIMEOUT);
    for service in services {
        builder = builder.service(*service).address(address(&format!("{service}:80")));
    }
    let (registration, _, renewals) = fake.leased(builder).await;
    (registration, renewals)
}

fn drain(registration: Registration) -> Draining {
    let (ask, asked) = oneshot::channel();
    let (finish, finished) = oneshot::channel();
    let registration = std::sync::Arc::new(registration);
    let task = tokio::spawn({
        let registration = std::sync::Arc::clone(&registration);
        async move {
            let in_flight = async {
                ask.send(()).expect("the test is there");
                finished.await.expect("the test says so");
            };
            registration.drain_after(in_flight).await
        }
    });
    Draining { registration, task, asked, finish }
}

impl Draining {
    /// What is in flight is waited for, and not before.
    fn is_asked(&mut self) -> bool {
        self.asked.try_recv().is_ok()
    }

    async fn asked(&mut self) {
        soon(&mut self.asked).await.expect("it goes on");
    }

    async fn ends(self) -> Result<Drained, EndError> {
        self.finish.send(()).expect("it waits");
        soon(self.task).await.expect("no panic")
    }

    /// Lets it finish what is in flight; it then deregisters.
    async fn deregisters(self, fake: &mut Fake) -> Drained {
        let lease_id = self.registration.lease_id();
        let script = async {
            let call = fake.deregister().await;
            assert_eq!(call.request.lease_id, lease_id, "fenced: only what is under this lease");
            call.answer(Ok(v1::DeregisterResponse::default()));
        };
        let (drained, ()) = tokio::join!(self.ends(), script);
        drained.expect("drained")
    }

    /// So many callers know: it goes on, and deregisters.
    async fn goes_on(mut self, fake: &mut Fake, acked: u32) {
        self.asked().await;
        match self.deregisters(fake).await {
            Drained::Told(watchers) => assert_eq!(watchers.acked, acked),
            other => panic!("{other:?}"),
        }
    }
}

async fn marked(fake: &mut Fake, revision: u64) {
    for registration in fake.registered(revision).await.registrations {
        let status = registration.instance.expect("set").status;
        assert_eq!(status, i32::from(v1::InstanceStatus::Draining));
    }
}

fn all(acked: u32) -> v1::WaitAppliedResponse {
    v1::WaitAppliedResponse { acked, satisfied: true, ..v1::WaitAppliedResponse::default() }
}

fn watchers(drained: &Drained) -> Watchers {
    match drained {
        Drained::Told(watchers) | Drained::TimedOut(watchers) => *watchers,
        other => panic!("{other:?} counts nobody"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_in_each_service_until_callers_know_and_does_not_sleep() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, _renewals) = registered(&net, &mut fake, &["a", "b"]).await;
    let begun = Instant::now();
    let mut draining = drain(registration);
    marked(&mut fake, 2).await;
    for (service, acked) in [("a", 3), ("b", 4)] {
        let wait = fake.wait_applied().await;
        assert!(!draining.is_asked(), "callers of {service} may still send requests");
        assert_eq!(wait.request.revision, 2);
        assert_eq!(wait.request.key.as_ref().expect("set").service, service);
        assert!((wait.request.share - 1.0).abs() < f64::EPSILON, "all of them");
        wait.answer(Ok(v1::WaitAppliedResponse { not_acking: 1, ..all(acked) }));
    }
    draining.asked().await;
    assert!(fake.is_quiet(), "nothing is deregistered while something is in flight");
    let drained = draining.deregisters(&mut fake).await;
    assert!(matches!(drained, Drained::Told(_)), "{drained:?}");
    assert_eq!((watchers(&drained).acked, watchers(&drained).not_acking), (7, 2));
    assert_eq!(begun.elapsed().as_millis(), 0, "no sleep in it");
}

#[tokio::test(start_paused = true)]
async fn callers_that_do_not_say_so_are_waited_for_until_the_timeout_and_counted() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, mut renewals) = registered(&net, &mut fake, &["a", "b"]).await;
    let begun = Instant::now();
    let mut draining = drain(registration);
    marked(&mut fake, 2).await;
    let wait = fake.wait_applied().await;
    let patience: Duration = wait.request.timeout.expect("bounded").try_into().expect("positive");
    assert!(patience < TIMEOUT, "{patience:?}: the answer is there in time");
    let registry = async {
        tokio::time::sleep(patience).await;
        wait.answer(Ok(v1::WaitAppliedResponse { acked: 5, lagging: 2, ..Default::default() }));
        // The other service may still be well.
        fake.wait_applied().await.answer(Ok(all(1)));
    };
    let alive = async {
        loop {
            let renewal = renewals.next().await;
            renewals.answer(&renewal, &[]).await;
        }
    };
    tokio::select! {
        () = registry => {}
        () = alive => {}
    }
    draining.asked().await;
    assert!(begun.elapsed() <= TIMEOUT, "{:?}", begun.elapsed());
    let drained = draining.deregisters(&mut fake).await;
    assert!(matches!(drained, Drained::TimedOut(_)), "{drained:?}");
    assert_eq!((watchers(&drained).acked, watchers(&drained).lagging), (6, 2));
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_never_answers_is_waited_for_until_the_timeout() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, _renewals) = registered(&net, &mut fake, &["a"]).await;
    let begun = Instant::now();
    let mut draining = drain(registration);
    marked(&mut fake, 2).await;
    let _unanswered = fake.wait_applied().await;
    draining.asked().await;
    assert!(begun.elapsed().abs_diff(TIMEOUT) < Duration::from_millis(20), "{:?}", begun.elapsed());
    let drained = draining.deregisters(&mut fake).await;
    assert!(matches!(drained, Drained::Unknown { .. }), "{drained:?}");
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_cannot_tell_leaves_a_grace() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let builder = Registration::builder(net.client(&["r:1"])).service("a").address(address("a:80"));
    let grace = Duration::from_secs(3);
    let builder = builder.drain_grace(grace).drain_timeout(Duration::from_secs(2));
    let (registration, _, _renewals) = fake.leased(builder).await;
    let begun = Instant::now();
    let mut draining = drain(registration);
    marked(&mut fake, 2).await;
    fake.wait_applied().await.answer(Err(Status::unimplemented("older than that")));
    draining.asked().await;
    assert!(begun.elapsed().abs_diff(grace) < Duration::from_millis(20), "{:?}", begun.elapsed());
    assert_eq!(draining.deregisters(&mut fake).await, Drained::Grace(grace));
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_goes_away_while_it_is_asked_is_asked_again() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, _renewals) = registered(&net, &mut fake, &["a"]).await;
    let mut draining = drain(registration);
    marked(&mut fake, 2).await;
    let wait = fake.wait_applied().await;
    drop((fake, wait));
    let mut fake = net.start("r:1");
    let wait = fake.wait_applied().await;
    assert_eq!(wait.request.revision, 2, "it has the lease: nothing is registered anew");
    assert!(!draining.is_asked());
    wait.answer(Ok(all(1)));
    draining.goes_on(&mut fake, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_is_away_is_told_when_it_is_back() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, renewals) = registered(&net, &mut fake, &["a"]).await;
    drop((fake, renewals));
    let mut draining = drain(registration);
    // It gives up on the first call, and keeps the words.
    let mut status = draining.registration.events();
    let owed = status.wait_for(|it| matches!(it.state, RegistrationState::Reregistering { .. }));
    soon(owed).await.expect("it goes on");
    let mut fake = net.start("r:1");
    marked(&mut fake, 7).await;
    let wait = fake.wait_applied().await;
    assert_eq!(wait.request.revision, 7);
    assert!(!draining.is_asked());
    wait.answer(Ok(all(1)));
    draining.goes_on(&mut fake, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_stays_away_holds_nobody_up_for_longer_than_the_timeout() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, renewals) = registered(&net, &mut fake, &["a"]).await;
    drop((fake, renewals));
    let begun = Instant::now();
    let mut draining = drain(registration);
    draining.asked().await;
    assert!(begun.elapsed().abs_diff(TIMEOUT) < Duration::from_millis(20), "{:?}", begun.elapsed());
    let ended = draining.ends().await;
    assert!(matches!(ended, Err(EndError::Failed(_))), "{ended:?}");
    // The client's request timeout, and a call that was under way before.
    assert!(begun.elapsed() <= TIMEOUT + 2 * Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lease_lost_meanwhile_is_registered_anew_as_draining_and_waited_for_again() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, mut renewals) = registered(&net, &mut fake, &["a"]).await;
    let mut draining = drain(registration);
    marked(&mut fake, 2).await;
    let outdated = fake.wait_applied().await;
    let renewal = renewals.next().await;
    renewals.answer(&renewal, &[(Kind::Unknown, vec![])]).await;
    marked(&mut fake, 9).await;
    let wait = fake.wait_applied().await;
    assert_eq!(wait.request.revision, 9);
    outdated.answer(Ok(all(1)));
    assert!(!draining.is_asked(), "what was applied before is nothing now");
    wait.answer(Ok(all(2)));
    draining.goes_on(&mut fake, 2).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_is_superseded_meanwhile_finishes_and_touches_nothing() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, mut renewals) = registered(&net, &mut fake, &["a"]).await;
    let mut draining = drain(registration);
    marked(&mut fake, 2).await;
    let _unanswered = fake.wait_applied().await;
    let renewal = renewals.next().await;
    renewals.answer(&renewal, &[(Kind::Superseded, vec![])]).await;
    draining.asked().await;
    let ended = draining.ends().await;
    assert_eq!(ended, Err(EndError::Ended(RegistrationState::Superseded)));
    assert!(fake.is_quiet(), "what others registered is theirs");
}

#[tokio::test(start_paused = true)]
async fn one_that_was_superseded_before_finishes_what_it_has_at_once() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (registration, mut renewals) = registered(&net, &mut fake, &["a"]).await;
    let renewal = renewals.next().await;
    renewals.answer(&renewal, &[(Kind::Superseded, vec![])]).await;
    let mut status = registration.events();
    soon(status.wait_for(|status| status.state.is_final())).await.expect("told");
    let begun = Instant::now();
    let mut draining = drain(registration);
    draining.asked().await;
    assert_eq!(draining.ends().await, Err(EndError::Ended(RegistrationState::Superseded)));
    assert_eq!(begun.elapsed().as_millis(), 0);
    assert!(fake.is_quiet());
}
