//! `follow`, over discoveries that have no view of their own.

use std::{sync::Arc, time::Duration};

use client_sdk::{
    discover::{Discover, Followed, StaticDiscover, follow},
    model::{Endpoint, Selector},
    runtime::Runtime,
};

use crate::fake::{Fake, endpoint, eventually, instance, settle};

fn ids(followed: &Followed) -> Option<Vec<String>> {
    let view = followed.state().view?;
    Some(view.instances.iter().map(|instance| instance.id.to_string()).collect())
}

fn start(fake: &Arc<Fake>) -> Followed {
    follow(Arc::clone(fake), endpoint(), &Runtime::tokio())
}

#[tokio::test(start_paused = true)]
async fn it_tells_the_first_view_and_each_change_of_its_own_key() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let mut followed = start(&fake);
    followed.receiver().changed().await.unwrap();
    assert_eq!(ids(&followed).unwrap(), ["a:1"]);
    fake.publish("other", &[instance(9, 1)]);
    fake.publish("s", &[instance(1, 1), instance(2, 1)]);
    followed.receiver().changed().await.unwrap();
    assert_eq!(ids(&followed).unwrap(), ["a:1", "a:2"]);
}

#[tokio::test(start_paused = true)]
async fn a_change_during_the_first_discover_wins_over_its_answer() {
    for versioned in [false, true] {
        let fake = Fake::new(16, versioned);
        fake.set("s", &[instance(1, 1)]);
        fake.open(false);
        let followed = start(&fake);
        settle().await;
        fake.publish("s", &[instance(2, 1)]);
        settle().await;
        fake.open(true);
        settle().await;
        assert_eq!(ids(&followed).unwrap(), ["a:2"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_discover_shows_its_error_and_is_tried_again() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    fake.fail(true);
    let mut followed = start(&fake);
    followed.receiver().changed().await.unwrap();
    let state = followed.state();
    assert!(state.view.is_none());
    assert_eq!(state.error.unwrap().to_string(), "the fake was told to fail");
    tokio::time::sleep(Duration::from_hours(1)).await;
    // With backoff: about every 7.5 s after the first ten seconds.
    assert!((300..800).contains(&fake.discovers()), "{} attempts in an hour", fake.discovers());
    fake.fail(false);
    eventually(|| ids(&followed).is_some()).await;
    assert!(followed.state().error.is_none());
}

#[tokio::test(start_paused = true)]
async fn after_an_overflow_it_reads_again_and_an_error_meanwhile_empties_nothing() {
    let fake = Fake::new(1, true);
    fake.set("s", &[instance(1, 1)]);
    let followed = start(&fake);
    settle().await;
    fake.fail(true);
    fake.publish("s", &[instance(2, 1)]);
    fake.publish("other", &[]);
    eventually(|| followed.state().error.is_some()).await;
    assert_eq!(ids(&followed).unwrap(), ["a:1"]);
    fake.fail(false);
    eventually(|| followed.state().error.is_none()).await;
    assert_eq!(ids(&followed).unwrap(), ["a:2"]);
    // One that brings nothing new clears the error too.
    fake.fail(true);
    fake.publish("other", &[]);
    fake.publish("other", &[]);
    eventually(|| followed.state().error.is_some()).await;
    fake.fail(false);
    eventually(|| followed.state().error.is_none()).await;
    assert_eq!(ids(&followed).unwrap(), ["a:2"]);
}

#[tokio::test(start_paused = true)]
async fn a_closed_broadcast_is_not_polled_in_a_hot_loop_and_leaves_the_last_good_view() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let followed = start(&fake);
    settle().await;
    fake.close();
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!(ids(&followed).unwrap(), ["a:1"]);
    assert_eq!(fake.discovers(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_empty_answer_is_asked_for_again() {
    let fake = Fake::new(0, false);
    let followed = start(&fake);
    settle().await;
    assert_eq!(ids(&followed).unwrap().len(), 0);
    fake.set("s", &[instance(1, 1)]);
    eventually(|| ids(&followed).is_some_and(|ids| ids == ["a:1"])).await;
    let before = fake.discovers();
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!(fake.discovers(), before);
}

#[tokio::test(start_paused = true)]
async fn dropping_it_ends_its_task() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let followed = start(&fake);
    settle().await;
    drop(followed);
    eventually(|| Arc::strong_count(&fake) == 1).await;
}

#[tokio::test(start_paused = true)]
async fn an_address_in_the_endpoint_is_all_there_is() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let endpoint = Endpoint::builder("s").address("b:7".parse().unwrap()).build();
    let mut followed = follow(Arc::clone(&fake), endpoint, &Runtime::tokio());
    assert_eq!(ids(&followed).unwrap(), ["b:7"]);
    assert!(followed.receiver().changed().await.is_err());
    assert_eq!(fake.discovers(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_static_list_serves_every_endpoint_and_honours_selectors() {
    let peers = Arc::new(StaticDiscover::parse(["a:1", "a:2"]).unwrap());
    let followed = follow(Arc::clone(&peers), Endpoint::new("whatever"), &Runtime::tokio());
    assert_eq!(ids(&followed).unwrap(), ["a:1", "a:2"]);
    let tagged = Endpoint::builder("whatever").selector(Selector::all().tag("v", "2")).build();
    assert!(peers.discover(&tagged).await.unwrap().is_empty());
    assert_ne!(peers.key(&tagged), peers.key(&Endpoint::new("whatever")));
    assert!(StaticDiscover::parse(["a:1", "nonsense"]).is_err());
}
