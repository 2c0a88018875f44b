//! An instance's life, as its callers see it.

use std::{sync::Arc, time::Duration};

use client_sdk::{
    channel::{BalancedChannel, ChannelError, Standing},
    discover::Discover as _,
    model::{Endpoint, Instance, Selector, Status},
};
use integration_tests::server_setup;

use crate::kit::{
    Greeter, SERVICE, call, channel, discover, greeter, shares, shows, slow_call, soon, spreads,
};

#[tokio::test]
async fn an_instance_is_called_reweighed_drained_and_gone() {
    let registry = server_setup!().start().await;
    let at = [registry.address()];
    let a = Greeter::start("a", &at).await;
    let b = Greeter::start("b", &at).await;
    let channel = channel(&discover(&at));
    spreads(&channel, &["a", "b"]).await;
    assert_eq!(shares(&channel, 100).await, [("a".to_owned(), 50), ("b".to_owned(), 50)].into());

    a.registration().update(|instance| instance.weight = 9).await.expect("updated");
    soon("the weight", channel.wait_until(|s| s.instance("a").is_some_and(|a| a.instance.weight == 9))).await;
    let share = shares(&channel, 100).await["a"];
    assert!((85..=95).contains(&share), "a has 9 of 10 shares and got {share} of 100 calls");

    // C4: a call is in flight while it drains; no new one comes; the one in flight ends well.
    let in_flight = tokio::spawn({
        let channel = channel.clone();
        async move {
            loop {
                match soon("a slow call", slow_call(&channel)).await {
                    Ok(who) if who == "b" => {}
                    other => return other,
                }
            }
        }
    });
    b.open_gate(); // should the first slow call go to b
    a.arrived().await;
    let calls = a.calls();
    let (finish, finished) = tokio::sync::oneshot::channel::<()>();
    let drain = a.registration().drain_after(async {
        let _ = finished.await;
    });
    let callers = async {
        let draining = |s: &client_sdk::channel::Snapshot| {
            s.instance("a").is_some_and(|a| a.standing == Standing::Draining)
        };
        soon("a to drain", channel.wait_until(draining)).await;
        assert_eq!(shares(&channel, 100).await, [("b".to_owned(), 100)].into());
        assert_eq!(a.calls(), calls, "it takes no new call");
        a.open_gate();
        assert_eq!(in_flight.await.expect("no panic").expect("what was in flight ends well"), "a");
        finish.send(()).expect("the drain waits for it");
    };
    let (drained, ()) = soon("the drain", Box::pin(async { tokio::join!(drain, callers) })).await;
    drained.expect("drained");
    soon("a to go", channel.wait_until(|s| s.instance("a").is_none_or(|a| a.standing == Standing::Removed)))
        .await;
    assert_eq!(shares(&channel, 20).await, [("b".to_owned(), 20)].into());
    // Done already is fine.
    a.registration().deregister().await.expect("it is gone");
}

#[tokio::test]
async fn a_killed_instance_is_passed_over_and_gone_when_its_lease_ends() {
    let registry = server_setup!().start().await;
    let at = [registry.address()];
    let short = |ttl| Greeter::start_with("killed", &at, |i| i, move |r| r.ttl(ttl));
    let mut killed = short(Duration::from_secs(3)).await;
    let _b = Greeter::start("b", &at).await;
    let discover = discover(&at);
    let channel = channel(&discover);
    spreads(&channel, &["killed", "b"]).await;
    let calls = killed.calls();
    killed.kill();
    // Only what is written to its connection before that is seen to be broken may be lost; all else goes to b, although
    // the dead one is still registered.
    for _ in 0..200 {
        match soon("an answer", call(&channel)).await {
            Ok(who) => assert!(who == "b" || killed.calls() > calls, "{who}"),
            Err(status) => {
                let lost = ChannelError::of(&status);
                assert!(matches!(lost, Some(ChannelError::Lost { .. })), "{status:?}");
            }
        }
    }
    spreads(&channel, &["b"]).await;
    assert_eq!(shares(&channel, 100).await, [("b".to_owned(), 100)].into());
    let mut view = discover.view(&greeter()).expect("followed");
    shows(&mut view, "the lease to end", |all| all.iter().map(|i| &*i.id).eq(["b"])).await;
    assert_eq!(discover.resyncs(), 0);
}

#[tokio::test]
async fn a_status_of_its_own_takes_an_instance_out_and_back() {
    let registry = server_setup!().start().await;
    let at = [registry.address()];
    let a = Greeter::start("a", &at).await;
    let _b = Greeter::start("b", &at).await;
    let channel = channel(&discover(&at));
    spreads(&channel, &["a", "b"]).await;
    for status in [Status::Down, Status::Draining] {
        a.registration().update(move |instance| instance.status = status).await.expect("updated");
        spreads(&channel, &["b"]).await;
        let calls = a.calls();
        shares(&channel, 50).await;
        assert_eq!(a.calls(), calls, "{status:?} takes no call");
        a.registration().update(|instance| instance.status = Status::Up).await.expect("updated");
        spreads(&channel, &["a", "b"]).await;
        assert!(shares(&channel, 10).await.contains_key("a"));
    }
}

#[tokio::test]
async fn dropping_a_registration_takes_the_instance_out_at_once() {
    let registry = server_setup!().start().await;
    let at = [registry.address()];
    let mut a = Greeter::start("a", &at).await;
    let _b = Greeter::start("b", &at).await;
    let channel = channel(&discover(&at));
    spreads(&channel, &["a", "b"]).await;
    drop(a.registration.take());
    // Long before the lease of 15 s: or this would be a timing of its own.
    spreads(&channel, &["b"]).await;
    assert_eq!(call(&channel).await.expect("answered"), "b");
}

#[tokio::test]
async fn selections_follow_the_tags_and_all_views_share_one_stream() {
    let registry = server_setup!().start().await;
    let at = [registry.address()];
    let a = Greeter::start_with("a", &at, |i| i.tag("version", "1").locality("r", "z1"), |r| r).await;
    let _b = Greeter::start_with("b", &at, |i| i.tag("version", "2").locality("r", "z2"), |r| r).await;
    let discover = discover(&at);
    let select = |selector| {
        let endpoint = Endpoint::builder(SERVICE).selector(selector).build();
        BalancedChannel::builder(Arc::clone(&discover), endpoint).build()
    };
    let everyone = channel(&discover);
    let second = select(Selector::all().tag("version", "2"));
    let zone = select(Selector::all().zone("z1"));
    spreads(&everyone, &["a", "b"]).await;
    spreads(&second, &["b"]).await;
    spreads(&zone, &["a"]).await;
    // Seconds ago it was not there, and no poll brings it.
    a.registration()
        .update(|instance| _ = instance.tags.insert("version".into(), "2".into()))
        .await
        .expect("updated");
    spreads(&second, &["a", "b"]).await;
    assert_eq!(shares(&second, 20).await.len(), 2);
    a.registration()
        .update(|instance| _ = instance.tags.insert("version".into(), "3".into()))
        .await
        .expect("updated");
    spreads(&second, &["b"]).await;
    assert_eq!(shares(&second, 20).await, [("b".to_owned(), 20)].into());
    let mut missing = discover.view(&Endpoint::new("nobody-registered-this")).expect("followed");
    shows(&mut missing, "that it is empty", <[_]>::is_empty).await;
    assert_eq!((discover.streams(), discover.resyncs()), (1, 0));
}

#[tokio::test]
async fn when_many_die_at_once_some_are_held_and_calls_go_to_the_living() {
    let registry = server_setup!().start().await;
    let at = [registry.address()];
    let mut greeters = Vec::new();
    for name in ["a", "b", "c", "d", "e", "f"] {
        let ttl = Duration::from_secs(2);
        greeters.push(Greeter::start_with(name, &at, |i| i, |r| r.ttl(ttl)).await);
    }
    let discover = discover(&at);
    let channel = channel(&discover);
    spreads(&channel, &["a", "b", "c", "d", "e", "f"]).await;
    for greeter in &mut greeters[..5] {
        greeter.kill();
    }
    spreads(&channel, &["f"]).await;
    let mut view = discover.view(&greeter()).expect("followed");
    // L5: expiry removes at most half of them; the rest stays, and says so.
    let held = |all: &[Arc<Instance>]| all.iter().filter(|instance| instance.held).count();
    shows(&mut view, "the guard", |all| all.len() == 3 && held(all) == 2).await;
    assert_eq!(shares(&channel, 50).await, [("f".to_owned(), 50)].into());
}
