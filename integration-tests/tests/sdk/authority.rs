//! Who may change what: operators before registrants (L4), newer generations before older ones, and nobody before a newer
//! lease (L3).

use std::time::Duration;

use client_sdk::{
    client::RegisterError,
    discover::Discover as _,
    registration::{EndError, RegistrationState, UpdateError},
};
use integration_tests::{requests, server_setup};
use registry_proto::v1;

use crate::kit::{
    Greeter, SERVICE, channel, client, discover, greeter, override_of, shares, shows, soon, spreads,
};

#[tokio::test]
async fn an_operators_override_survives_registration_anew_and_a_killed_registry() {
    let setup = server_setup!();
    let mut registry = setup.start().await;
    let at = [registry.address()];
    let setup = setup.at(registry.address());
    let (mut a, _b) = (Greeter::start("a", &at).await, Greeter::start("b", &at).await);
    let _c = Greeter::start("c", &at).await;
    let (operator, discover) = (client(&at), discover(&at));
    let channel = channel(&discover);
    spreads(&channel, &["a", "b", "c"]).await;
    override_of(&operator, "a", Some(v1::Override { weight: Some(0), ..v1::Override::default() })).await;
    let down = v1::Override { status: v1::InstanceStatus::Down.into(), ..v1::Override::default() };
    override_of(&operator, "b", Some(down)).await;
    spreads(&channel, &["c"]).await;

    // Its own words, a new process, a killed registry: nothing brings a back.
    a.registration().update(|instance| instance.weight = 5).await.expect("updated");
    a.kill();
    a = Greeter::start("a", &at).await;
    registry.kill().await;
    let mut view = discover.view(&greeter()).expect("followed");
    drop(soon("the outage", view.wait_for(|state| state.error.is_some())).await.expect("followed"));
    registry = setup.start().await;
    drop(soon("the registry", view.wait_for(|state| state.error.is_none())).await.expect("followed"));
    a.registration().update(|instance| instance.weight = 7).await.expect("updated");
    assert_eq!(shares(&channel, 30).await, [("c".to_owned(), 30)].into());
    assert_eq!(a.calls(), 0, "an operator took it out before it started");

    override_of(&operator, "a", None).await;
    spreads(&channel, &["a", "c"]).await;
    shows(&mut view, "its own words", |all| all.iter().any(|i| &*i.id == "a" && i.weight == 7)).await;
    assert!(shares(&channel, 16).await["a"] >= 12, "7 shares of 8");
    drop(registry);
}

#[tokio::test]
async fn a_newer_generation_takes_over_and_the_older_one_is_told_and_stops() {
    let registry = server_setup!().start().await;
    let at = [registry.address()];
    let ttl = Duration::from_secs(2);
    let start = |generation| {
        let named = move |r: client_sdk::registration::RegistrationBuilder| {
            r.instance_uid("greeter-host-1").generation(generation).ttl(ttl)
        };
        Greeter::start_with("a", &at, |i| i, named)
    };
    let mut old = start(1).await;
    let discover = discover(&at);
    let mut view = discover.view(&greeter()).expect("followed");
    shows(&mut view, "the first", |all| all.len() == 1 && all[0].address == old.address).await;
    let new = start(2).await;
    shows(&mut view, "the second", |all| all.len() == 1 && all[0].address == new.address).await;
    // Told by its next renewal.
    old.state(|state| *state == RegistrationState::Superseded).await;
    let superseded = old.registration().update(|instance| instance.weight = 9).await;
    assert_eq!(superseded, Err(UpdateError::Ended(RegistrationState::Superseded)));
    let superseded = old.registration().deregister().await;
    assert_eq!(superseded, Err(EndError::Ended(RegistrationState::Superseded)));
    drop(old.registration.take());
    // A late start of the old one is refused.
    let late = client_sdk::registration::Registration::builder(client(&at))
        .service(SERVICE)
        .address("127.0.0.1:9".parse().expect("an address"))
        .instance_uid("greeter-host-1")
        .generation(1);
    let late = soon("an answer", late.register()).await;
    assert!(matches!(late, Err(RegisterError::Superseded(_))), "{late:?}");
    // None of it touched the new one, which is what a change of its own shows last.
    new.registration().update(|instance| instance.weight = 3).await.expect("registered");
    shows(&mut view, "the change", |all| all.len() == 1 && all[0].weight == 3).await;
    let only = discover.discover(&greeter()).await.expect("discovered");
    assert_eq!(only[0].address, new.address);
}

#[tokio::test]
async fn a_deregistered_instance_came_back_from_an_old_lease() {
    let registry = server_setup!().start().await;
    let at = [registry.address()];
    let a = Greeter::start_with("a", &at, |i| i, |r| r.ttl(Duration::from_secs(1))).await;
    let b = Greeter::start("b", &at).await;
    let discover = discover(&at);
    let mut view = discover.view(&greeter()).expect("followed");
    shows(&mut view, "both", |all| all.len() == 2).await;
    let operator = client(&at);
    soon("an answer", operator.deregister(requests::deregister(SERVICE, &["a".to_owned()])))
        .await
        .expect("deregistered");
    shows(&mut view, "one", |all| all.len() == 1).await;
    // Its lease still renews; it is told that it lost everything, and does not register again.
    a.state(|state| *state == RegistrationState::Lost).await;
    assert!(a.registration().update(|instance| instance.weight = 2).await.is_err());
    b.registration().update(|instance| instance.weight = 2).await.expect("registered");
    shows(&mut view, "b's change", |all| all.iter().any(|i| i.weight == 2)).await;
    assert_eq!(discover.discover(&greeter()).await.expect("discovered").len(), 1);
}

#[tokio::test]
async fn an_instance_that_another_lease_took_over_is_not_removed_with_the_old_one() {
    let registry = server_setup!().start().await;
    let at = [registry.address()];
    let mut old = Greeter::start("a", &at).await;
    let discover = discover(&at);
    let mut view = discover.view(&greeter()).expect("followed");
    shows(&mut view, "the first", |all| all.len() == 1).await;
    let new = Greeter::start("a", &at).await;
    shows(&mut view, "the second", |all| all.len() == 1 && all[0].address == new.address).await;
    // Deregisters its lease, which has nothing left.
    let ended = soon("an answer", old.registration().deregister()).await;
    assert!(matches!(ended, Ok(()) | Err(EndError::Ended(_))), "{ended:?}");
    old.kill();
    new.registration().update(|instance| instance.weight = 3).await.expect("registered");
    shows(&mut view, "the change", |all| all.len() == 1 && all[0].weight == 3).await;
}
