//! Acks (C4): the registry hears of a revision when everybody in this process who acts on a view has put it to use, and not
//! before; and what was acked is never shown older again.

mod support;

use std::time::Duration;

use client_sdk::{
    client::RegistryClient,
    discover::{Discover as _, RegistryDiscover, ViewReceiver},
};
use registry_proto::v1::{self, subscribe_request::Request};
use support::{Fake, Net, Subscription, adding, endpoint, instance, snapshot, soon};

fn over(client: RegistryClient) -> RegistryDiscover {
    RegistryDiscover::builder(client).build()
}

/// Follows `s`, whose view is `{a}` at revision 5 of epoch `e`.
async fn following(fake: &mut Fake, discover: &RegistryDiscover) -> (ViewReceiver, Subscription, u32) {
    let mut view = discover.view(&endpoint("s")).expect("it has views");
    let mut stream = fake.subscription().await;
    let (id, _, _) = stream.subscribe().await;
    stream.change(id, snapshot("e", 5, vec![instance("a", 1, 5)])).await;
    stream.bookmark("e", 5).await;
    shows(&mut view, &["a"]).await;
    (view, stream, id)
}

async fn shows(view: &mut ViewReceiver, wanted: &[&str]) {
    let shown = view.wait_for(|state| {
        state
            .view
            .as_ref()
            .is_some_and(|view| view.instances.iter().map(|i| &*i.id).eq(wanted.iter().copied()))
    });
    soon(shown).await.expect("the view is followed");
}

/// Everything that was sent on the stream has been taken in, and an ack that could be sent would have been: an ack goes
/// before the request that is returned here.
async fn taken_in(stream: &mut Subscription, discover: &RegistryDiscover, service: &str) -> u32 {
    // A timer fires only when everybody waits.
    tokio::time::sleep(Duration::from_millis(1)).await;
    drop(discover.view(&endpoint(service)));
    match stream.next().await {
        Request::Subscribe(subscribe) => subscribe.view_id,
        other => panic!("{other:?} comes before the subscription of `{service}`"),
    }
}

fn version(view: &ViewReceiver) -> Option<u64> {
    view.borrow().view.as_ref().and_then(|view| view.version)
}

/// A delta to `{a, b}`.
fn with_b(revision: u64) -> v1::Change {
    let b = instance("b", 1, revision);
    adding("e", (5, revision), vec![b.clone()], &[instance("a", 1, 5), b])
}

#[tokio::test(start_paused = true)]
async fn it_says_who_it_is_and_that_it_acks_under_the_same_name_on_every_stream() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let client = net.client_builder(&["r:1"], 1).client_id("web-1").build().expect("a client");
    let (one, other) = (over(client.clone()), over(client));
    let _view = one.view(&endpoint("s"));
    let (stream, hello) = fake.greeted().await;
    assert_eq!((hello.client_id.as_str(), hello.acks), ("web-1", true));
    drop(stream);
    let (_stream, hello) = fake.greeted().await;
    assert_eq!(hello.client_id, "web-1", "the same again");
    let _view = other.view(&endpoint("s"));
    let (_other, hello) = fake.greeted().await;
    assert_eq!(hello.client_id, "web-1/1", "what one applied says nothing of another one");
}

#[tokio::test(start_paused = true)]
async fn a_bookmark_that_asks_is_acked_and_no_other_one() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = over(net.client(&["r:1"]));
    let (_view, mut stream, _) = following(&mut fake, &discover).await;
    stream.bookmark("e", 6).await;
    taken_in(&mut stream, &discover, "t").await;
    stream.ask("e", 7).await;
    assert_eq!(stream.acked().await, ("e".into(), 7));
    taken_in(&mut stream, &discover, "u").await;
}

#[tokio::test(start_paused = true)]
async fn an_ack_waits_for_every_follower_that_is_there() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = over(net.client(&["r:1"]));
    let [one, other] = [(); 2].map(|()| discover.follower(&endpoint("s")).expect("somebody wants to know"));
    let (mut view, mut stream, id) = following(&mut fake, &discover).await;
    let before = version(&view);
    one.applied(before);
    other.applied(before);
    stream.change(id, with_b(6)).await;
    stream.ask("e", 6).await;
    shows(&mut view, &["a", "b"]).await;
    taken_in(&mut stream, &discover, "t").await;
    one.applied(version(&view));
    taken_in(&mut stream, &discover, "u").await;
    other.applied(before);
    taken_in(&mut stream, &discover, "v").await;
    other.applied(version(&view));
    assert_eq!(stream.acked().await, ("e".into(), 6));

    // One that hangs is not waited for when it is gone.
    stream.ask("e", 7).await;
    assert_eq!(stream.acked().await, ("e".into(), 7), "nothing has changed: there is nothing to apply");
    let after = [instance("a", 1, 5), instance("b", 1, 6), instance("c", 1, 8)];
    stream.change(id, adding("e", (7, 8), vec![after[2].clone()], &after)).await;
    stream.ask("e", 8).await;
    shows(&mut view, &["a", "b", "c"]).await;
    one.applied(version(&view));
    taken_in(&mut stream, &discover, "w").await;
    drop(other);
    assert_eq!(stream.acked().await, ("e".into(), 8));
}

#[tokio::test(start_paused = true)]
async fn the_newest_is_acked_and_newer_ones_starve_none() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = over(net.client(&["r:1"]));
    let follower = discover.follower(&endpoint("s")).expect("somebody wants to know");
    let (mut view, mut stream, id) = following(&mut fake, &discover).await;
    let mut all = vec![instance("a", 1, 5)];
    let mut versions = Vec::new();
    for (name, revision) in [("b", 6), ("c", 7), ("d", 8)] {
        let new = instance(name, 1, revision);
        all.push(new.clone());
        stream.change(id, adding("e", (revision - 1, revision), vec![new], &all)).await;
        stream.ask("e", revision).await;
        soon(
            view.wait_for(|state| state.view.as_ref().is_some_and(|view| view.instances.len() == all.len())),
        )
        .await
        .expect("followed");
        versions.push(version(&view));
    }
    taken_in(&mut stream, &discover, "t").await;
    follower.applied(versions[0]);
    assert_eq!(stream.acked().await, ("e".into(), 6));
    follower.applied(versions[1]);
    taken_in(&mut stream, &discover, "u").await;
    follower.applied(versions[2]);
    assert_eq!(stream.acked().await, ("e".into(), 8), "of those that waited, the newest");
    taken_in(&mut stream, &discover, "v").await;
}

#[tokio::test(start_paused = true)]
async fn a_view_that_is_read_anew_holds_the_ack_up_until_it_is_there() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = over(net.client(&["r:1"]));
    let (mut view, mut stream, id) = following(&mut fake, &discover).await;
    let mut bad = with_b(6);
    bad.digest = 1;
    stream.change(id, bad).await;
    stream.ask("e", 6).await;
    // The view is asked for again, and that comes before any ack.
    let (again, _, watch) = stream.subscribe().await;
    assert_eq!((again, watch.force_snapshot), (id, true));
    taken_in(&mut stream, &discover, "t").await;
    stream.change(id, snapshot("e", 6, vec![instance("a", 1, 5), instance("b", 1, 6)])).await;
    assert_eq!(stream.acked().await, ("e".into(), 6));
    shows(&mut view, &["a", "b"]).await;
}

#[tokio::test(start_paused = true)]
async fn half_a_change_is_not_acked_whatever_a_bookmark_says() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = over(net.client(&["r:1"]));
    let (mut view, mut stream, id) = following(&mut fake, &discover).await;
    let whole = with_b(6);
    let first = v1::Change { last_part: 1, digest: 0, ..whole.clone() };
    let second = v1::Change { part: 1, last_part: 1, added: Vec::new(), ..whole };
    stream.change(id, first).await;
    stream.ask("e", 6).await;
    taken_in(&mut stream, &discover, "t").await;
    stream.change(id, second).await;
    assert_eq!(stream.acked().await, ("e".into(), 6));
    shows(&mut view, &["a", "b"]).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_acked_is_not_shown_older_to_one_that_comes_later() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = over(net.client(&["r:1"]));
    let (_view, mut stream, _) = following(&mut fake, &discover).await;
    stream.ask("e", 9).await;
    assert_eq!(stream.acked().await, ("e".into(), 9));
    let mut late = discover.view(&endpoint("t")).expect("it has views");
    let (id, _, _) = stream.subscribe().await;
    // A snapshot that others had made up to a second ago; the delta to the head follows at once.
    stream.change(id, snapshot("e", 8, vec![instance("old", 1, 8)])).await;
    taken_in(&mut stream, &discover, "u").await;
    assert!(late.borrow().view.is_none(), "{:?}", late.borrow());
    let new = instance("new", 1, 9);
    let mut delta = adding("e", (8, 9), vec![new.clone()], &[new]);
    delta.removed = vec![v1::Removed { id: "old".into(), create_revision: 8 }];
    stream.change(id, delta).await;
    shows(&mut late, &["new"]).await;

    // Where nothing has changed since, the bookmark that follows says so.
    let mut quiet = discover.view(&endpoint("v")).expect("it has views");
    let (id, _, _) = stream.subscribe().await;
    stream.change(id, snapshot("e", 8, vec![instance("same", 1, 8)])).await;
    stream.bookmark("e", 9).await;
    shows(&mut quiet, &["same"]).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_of_a_registry_that_lost_its_data_is_not_acked_away() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = over(net.client(&["r:1"]));
    let (view, mut stream, id) = following(&mut fake, &discover).await;
    stream.change(id, snapshot("f", 1, vec![])).await;
    stream.ask("f", 1).await;
    taken_in(&mut stream, &discover, "t").await;
    assert_eq!(view.borrow().view.as_ref().map(|view| view.instances.len()), Some(1), "C1");
    let back = [instance("a", 1, 2)];
    stream.change(id, adding("f", (1, 2), back.to_vec(), &back)).await;
    assert_eq!(stream.acked().await, ("f".into(), 1), "and now it shows something newer");
}

#[tokio::test(start_paused = true)]
async fn an_ack_is_owed_on_the_stream_that_asked_for_it() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = over(net.client(&["r:1"]));
    let follower = discover.follower(&endpoint("s")).expect("somebody wants to know");
    let (mut view, stream, id) = following(&mut fake, &discover).await;
    stream.change(id, with_b(6)).await;
    stream.ask("e", 6).await;
    shows(&mut view, &["a", "b"]).await;
    drop(stream);
    let mut stream = fake.subscription().await;
    let (id, _, watch) = stream.subscribe().await;
    assert_eq!(watch.cursor.expect("resumed").revision, 6);
    follower.applied(version(&view));
    taken_in(&mut stream, &discover, "t").await;
    stream.ask("e", 6).await;
    // Of the new stream nothing was heard of `s` yet, and nothing has to be: its cursor is there.
    assert_eq!(stream.acked().await, ("e".into(), 6));
    let _ = id;
}
