//! Changes lost, ended, refused; keys and owners that go.

use std::{
    future::Future as _,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};

use client_sdk::{
    balance::{Balancer, Cached, Handle, LoadBalance, PickContext, RoundRobin},
    model::Endpoint,
    runtime::Runtime,
};

use crate::fake::{Fake, Key, endpoint, eventually, instance, settle};

fn balancer(fake: &Arc<Fake>) -> Balancer<Fake, RoundRobin> {
    Balancer::builder(Arc::clone(fake), RoundRobin::with_seed(1)).idle(Duration::from_mins(1)).build()
}

fn picked(handle: &mut Handle<RoundRobin>) -> String {
    handle
        .pick(&PickContext::default())
        .map_or_else(|error| error.to_string(), |pick| pick.instance().id.to_string())
}

#[tokio::test(start_paused = true)]
async fn an_overflow_of_the_broadcast_is_followed_by_a_read() {
    for versioned in [false, true] {
        let fake = Fake::new(2, versioned);
        fake.set("s", &[instance(1, 1)]);
        let balancer = balancer(&fake);
        let mut handle = balancer.handle(&endpoint()).await.unwrap();
        fake.publish("s", &[instance(2, 1)]);
        // Pushes the change of `s` out of the broadcast before anyone could receive it.
        for _ in 0..5 {
            fake.publish("other", &[]);
        }
        eventually(|| picked(&mut handle) == "a:2").await;
        fake.publish("s", &[instance(3, 1)]);
        eventually(|| picked(&mut handle) == "a:3").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_read_after_an_overflow_keeps_the_last_good_view() {
    let fake = Fake::new(2, false);
    fake.set("s", &[instance(1, 1)]);
    let balancer = balancer(&fake);
    let mut handle = balancer.handle(&endpoint()).await.unwrap();
    fake.fail(true);
    fake.publish("s", &[instance(2, 1)]);
    for _ in 0..5 {
        fake.publish("other", &[]);
    }
    eventually(|| fake.discovers() > 3).await;
    assert_eq!(picked(&mut handle), "a:1");
    assert!(balancer.get(&endpoint()).await.is_ok());
    fake.fail(false);
    eventually(|| picked(&mut handle) == "a:2").await;
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_overflows_does_not_put_reads_off() {
    let fake = Fake::new(1, false);
    let balancer = balancer(&fake);
    let mut handles = Vec::new();
    for key in 0..200 {
        let service = format!("s{key}");
        fake.set(&service, &[instance(1, 1)]);
        handles.push(balancer.handle(&Endpoint::new(&*service)).await.unwrap());
        fake.set(&service, &[instance(2, 1)]);
    }
    // The reads are spread over a millisecond for each key, and no more.
    for _ in 0..210 {
        fake.publish("other", &[]);
        fake.publish("other", &[]);
        settle().await;
    }
    assert!(handles.iter_mut().all(|handle| picked(handle) == "a:2"));
}

#[tokio::test(start_paused = true)]
async fn a_closed_channel_is_not_polled_in_a_hot_loop_and_keeps_the_last_good_view() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let balancer = balancer(&fake);
    let mut handle = balancer.handle(&endpoint()).await.unwrap();
    fake.close();
    // Paused time goes on only when every task waits: a hot loop would keep this from ever returning.
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!(picked(&mut handle), "a:1");
    assert_eq!(fake.discovers(), 1);
    // Other keys can still be read.
    fake.set("t", &[instance(7, 1)]);
    assert_eq!(picked(&mut balancer.handle(&Endpoint::new("t")).await.unwrap()), "a:7");
}

#[tokio::test(start_paused = true)]
async fn keys_that_nobody_uses_go_and_come_back() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    fake.set("t", &[instance(2, 1)]);
    let balancer = balancer(&fake);
    let mut held = balancer.handle(&Endpoint::new("t")).await.unwrap();
    assert!(balancer.get(&endpoint()).await.is_ok());
    assert_eq!(balancer.keys(), 2);
    tokio::time::sleep(Duration::from_secs(121)).await;
    // The one that a handle holds stays, and is kept up to date.
    assert_eq!(balancer.keys(), 1);
    fake.publish("t", &[instance(3, 1)]);
    settle().await;
    assert_eq!(picked(&mut held), "a:3");
    fake.set("s", &[instance(4, 1)]);
    assert_eq!(picked(&mut balancer.handle(&endpoint()).await.unwrap()), "a:4");

    let cached: Cached<RoundRobin, Key> =
        Cached::new(RoundRobin::with_seed(1), &Runtime::tokio()).idle(Duration::from_mins(1));
    assert!(cached.get_picker(&endpoint(), &*fake).await.is_ok());
    for _ in 0..3 {
        assert_eq!(cached.len(), 1);
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert!(cached.get_picker(&endpoint(), &*fake).await.is_ok());
        LoadBalance::<Fake>::rebalance(&cached, fake.set("other", &[]));
    }
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(61)).await;
        LoadBalance::<Fake>::rebalance(&cached, fake.set("other", &[]));
    }
    assert!(cached.is_empty());
}

#[tokio::test(start_paused = true)]
async fn dropping_the_balancer_ends_its_tasks_and_reads() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let balancer = balancer(&fake);
    let mut handle = balancer.handle(&endpoint()).await.unwrap();
    fake.open(false);
    // A read that never ends.
    let other = Endpoint::new("t");
    assert!(tokio::time::timeout(Duration::from_secs(1), balancer.handle(&other)).await.is_err());
    assert!(Arc::strong_count(&fake) > 1);
    drop(balancer);
    eventually(|| Arc::strong_count(&fake) == 1).await;
    // What a handle knows it still answers.
    assert_eq!(picked(&mut handle), "a:1");
}

#[tokio::test(start_paused = true)]
async fn a_read_that_hangs_delays_no_change_and_no_other_key() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let balancer = balancer(&fake);
    let mut handle = balancer.handle(&endpoint()).await.unwrap();
    fake.open(false);
    let hanging = Endpoint::new("t");
    let mut hangs = Box::pin(balancer.handle(&hanging));
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut hangs).await.is_err());
    fake.publish("s", &[instance(2, 1)]);
    eventually(|| picked(&mut handle) == "a:2").await;
    // A change of the key that hangs answers for it.
    fake.publish("t", &[instance(3, 1)]);
    assert_eq!(picked(&mut hangs.await.unwrap()), "a:3");
}

#[tokio::test(start_paused = true)]
async fn a_first_caller_that_gives_up_in_the_queue_leaves_no_key_that_nobody_reads() {
    let fake = Fake::with("last", &[instance(1, 1)]);
    let balancer = balancer(&fake);
    let endpoints: Vec<Endpoint> = (0..64).map(|n| Endpoint::new(format!("s{n}"))).collect();
    let last = Endpoint::new("last");
    let mut calls: Vec<_> =
        endpoints.iter().chain([&last]).map(|endpoint| Box::pin(balancer.handle(endpoint))).collect();
    // The tracker does not run in between, so the last one finds its queue full.
    for call in &mut calls {
        let waits = call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending();
        assert!(waits);
    }
    drop(calls);
    settle().await;
    let before = fake.discovers();
    // A change of a key that the tracker does not know.
    fake.publish("last", &[instance(2, 1)]);
    settle().await;
    assert_eq!(picked(&mut balancer.handle(&last).await.unwrap()), "a:2");
    assert_eq!(fake.discovers(), before + 1, "it is read, and from now on read again when changes are lost");
}

#[tokio::test(start_paused = true)]
async fn an_idle_time_without_end_is_no_overflow() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let balancer = Balancer::builder(Arc::clone(&fake), RoundRobin::with_seed(1)).idle(Duration::MAX).build();
    assert_eq!(picked(&mut balancer.handle(&endpoint()).await.unwrap()), "a:1");
}
