//! tower's discoveries as ours.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_broadcast::{RecvError, TryRecvError};
use client_sdk::{
    balance::{Balancer, RoundRobin},
    bridge::{TowerDiscover, TowerDiscoverError},
    discover::Discover,
    model::{Endpoint, Instance, Selector},
    runtime::Runtime,
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tower::discover::{Change, ServiceList};

use crate::fake::{Told, endpoint, instance, settle};

type Item = Result<Change<&'static str, Instance>, Told>;

/// Says what the test says.
fn fed(capacity: usize) -> (mpsc::Sender<Item>, TowerDiscover) {
    let (feed, changes) = mpsc::channel(capacity);
    let describe = |_: &&'static str, instance: &Instance| instance.clone();
    (feed, TowerDiscover::new(ReceiverStream::new(changes), &Runtime::tokio(), describe))
}

/// Says what it has, one after the other, then that it ended; counts how often it is asked.
struct Counted<T> {
    items: std::vec::IntoIter<T>,
    polls: Arc<AtomicUsize>,
}

impl<T: Unpin> Stream for Counted<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<T>> {
        self.polls.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(self.items.next())
    }
}

/// Fails whenever it is asked.
struct Failing(Arc<AtomicUsize>);

impl Stream for Failing {
    type Item = Item;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Item>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(Some(Err(Told)))
    }
}

async fn ids(discover: &TowerDiscover) -> Vec<String> {
    discover.discover(&endpoint()).await.unwrap().iter().map(|instance| instance.id.to_string()).collect()
}

fn at(id: &'static str, port: u16) -> Instance {
    Instance::builder(format!("a:{port}").parse().unwrap()).id(id).build()
}

#[tokio::test(start_paused = true)]
async fn towers_service_list_is_a_view() {
    let services = ServiceList::new::<()>([1_u16, 2, 3].map(|port| {
        // What tower would call; here it is only named.
        tower::util::MapRequest::new(tower::service_fn(|(): ()| async { Ok::<_, Told>(()) }), move |()| {
            assert!(port > 0);
        })
    }));
    let discover = TowerDiscover::new(services, &Runtime::tokio(), |key, _| {
        Instance::builder(format!("a:{}", key + 1).parse().unwrap()).build()
    });
    assert_eq!(ids(&discover).await, ["a:1", "a:2", "a:3"]);
    let balancer = Balancer::builder(Arc::new(discover), RoundRobin::with_seed(1)).build();
    let mut picked: Vec<_> = balancer.get(&endpoint()).await.unwrap().map(|a| a.to_string()).collect();
    picked.sort_unstable();
    assert_eq!(picked, ["a:1", "a:2", "a:3"], "all that balances over ours balances over it");
}

#[tokio::test(start_paused = true)]
async fn an_ended_stream_is_not_polled_again() {
    let polls = Arc::new(AtomicUsize::new(0));
    let items = vec![Ok::<_, Told>(Change::Insert("x", at("x", 1)))].into_iter();
    let changes = Counted { items, polls: Arc::clone(&polls) };
    let discover = TowerDiscover::new(changes, &Runtime::tokio(), |_, i: &Instance| i.clone());
    assert_eq!(ids(&discover).await, ["x"]);
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(ids(&discover).await, ["x"], "the last view stays");
    assert_eq!(polls.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_without_a_word_names_nobody() {
    let changes = tokio_stream::empty::<Item>();
    let discover = TowerDiscover::new(changes, &Runtime::tokio(), |_, i: &Instance| i.clone());
    assert!(ids(&discover).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_is_an_error_that_says_so() {
    let (feed, discover) = fed(1);
    let error = discover.discover(&endpoint()).await.unwrap_err();
    assert!(matches!(error, TowerDiscoverError::Silent { .. }));
    assert_eq!(error.to_string(), "cannot discover default/s: the tower stream named no instance within 5s");
    feed.send(Ok(Change::Insert("x", at("x", 1)))).await.unwrap();
    assert_eq!(ids(&discover).await, ["x"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_ready_together_is_one_change_and_the_last_of_a_key_counts() {
    let (feed, discover) = fed(1000);
    let mut changes = discover.watch().unwrap();
    feed.send(Ok(Change::Insert("x", at("x", 1)))).await.unwrap();
    assert_eq!(ids(&discover).await, ["x"]);
    assert_eq!(changes.recv().await.unwrap().added.len(), 1);
    for port in 2..400 {
        feed.try_send(Ok(Change::Insert("x", at("x", port)))).unwrap();
        feed.try_send(Ok(Change::Insert("y", at("y", port)))).unwrap();
    }
    feed.try_send(Ok(Change::Remove("y"))).unwrap();
    feed.try_send(Ok(Change::Remove("never inserted"))).unwrap();
    feed.try_send(Ok(Change::Insert("z", at("z", 9)))).unwrap();
    let change = changes.recv().await.unwrap();
    assert_eq!((change.all.len(), change.removed.len()), (2, 0));
    assert_eq!(change.updated[0].address.to_string(), "a:399");
    assert_eq!(&*change.added[0].id, "z");
    assert_eq!(changes.try_recv().unwrap_err(), TryRecvError::Empty);
    assert_eq!(ids(&discover).await, ["x", "z"], "in the order in which they came");
}

#[tokio::test(start_paused = true)]
async fn an_id_that_two_keys_share_is_there_once() {
    let (feed, discover) = fed(8);
    feed.try_send(Ok(Change::Insert("one", at("x", 1)))).unwrap();
    feed.try_send(Ok(Change::Insert("two", at("x", 2)))).unwrap();
    let list = discover.discover(&endpoint()).await.unwrap();
    assert_eq!((list.len(), list[0].address.to_string()), (1, "a:2".to_owned()));
    feed.try_send(Ok(Change::Remove("two"))).unwrap();
    settle().await;
    let list = discover.discover(&endpoint()).await.unwrap();
    assert_eq!((list.len(), list[0].address.to_string()), (1, "a:1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_discovery_error_is_not_fatal_to_callers() {
    let (feed, discover) = fed(8);
    feed.send(Err(Told)).await.unwrap();
    let error = discover.discover(&endpoint()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot discover default/s: the tower stream failed: the fake was told to fail"
    );
    feed.send(Ok(Change::Insert("x", at("x", 1)))).await.unwrap();
    let view = discover.view(&endpoint()).unwrap();
    crate::fake::eventually(|| view.borrow().view.is_some()).await;
    assert!(view.borrow().error.is_none());

    feed.send(Err(Told)).await.unwrap();
    settle().await;
    assert_eq!(view.borrow().error.as_ref().unwrap().to_string(), "the fake was told to fail");
    assert_eq!(ids(&discover).await, ["x"], "the last view stays");
    feed.send(Ok(Change::Insert("y", at("y", 2)))).await.unwrap();
    crate::fake::eventually(|| view.borrow().error.is_none()).await;
    assert_eq!(ids(&discover).await, ["x", "y"]);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_one_view_does_not_see_clears_its_error_too() {
    let (feed, discover) = fed(8);
    feed.send(Ok(Change::Insert("x", at("x", 1)))).await.unwrap();
    let blue = Endpoint::builder("s").selector(Selector::all().tag("color", "blue")).build();
    let view = discover.view(&blue).unwrap();
    settle().await;
    feed.send(Err(Told)).await.unwrap();
    settle().await;
    assert!(view.borrow().error.is_some());
    feed.send(Ok(Change::Insert("y", at("y", 2)))).await.unwrap();
    crate::fake::eventually(|| view.borrow().error.is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_always_fails_is_not_polled_in_a_hot_loop() {
    let polls = Arc::new(AtomicUsize::new(0));
    let changes = Failing(Arc::clone(&polls));
    let discover = TowerDiscover::new(changes, &Runtime::tokio(), |_, i: &Instance| i.clone());
    tokio::time::sleep(Duration::from_mins(10)).await;
    assert!(
        matches!(polls.load(Ordering::Relaxed), 60..=140),
        "between 5 s and 10 s each, but for the first"
    );
    assert!(matches!(discover.discover(&endpoint()).await, Err(TowerDiscoverError::Failed { .. })));
}

#[tokio::test(start_paused = true)]
async fn after_a_success_the_next_pause_is_a_short_one_again() {
    let (feed, discover) = fed(16);
    for _ in 0..10 {
        feed.try_send(Err(Told)).unwrap();
    }
    feed.try_send(Ok(Change::Insert("x", at("x", 1)))).unwrap();
    let view = discover.view(&endpoint()).unwrap();
    crate::fake::eventually(|| view.borrow().view.is_some()).await;
    feed.try_send(Err(Told)).unwrap();
    feed.try_send(Ok(Change::Insert("y", at("y", 2)))).unwrap();
    tokio::time::sleep(Duration::from_millis(101)).await;
    assert_eq!(ids(&discover).await, ["x", "y"]);
}

#[tokio::test(start_paused = true)]
async fn it_is_drained_though_nobody_asks() {
    let (feed, discover) = fed(1);
    let feeding = async {
        for port in 1..=2000 {
            feed.send(Ok(Change::Insert("x", at("x", port)))).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(1), feeding).await.unwrap();
    settle().await;
    let list = discover.discover(&endpoint()).await.unwrap();
    assert_eq!(list[0].address.to_string(), "a:2000");
}

#[tokio::test(start_paused = true)]
async fn a_slow_listener_loses_the_oldest_changes_and_is_told_while_others_go_on() {
    let (feed, discover) = fed(1);
    let (mut slow, view) = (discover.watch().unwrap(), discover.view(&endpoint()).unwrap());
    for port in 1..=3000 {
        feed.send(Ok(Change::Insert("x", at("x", port)))).await.unwrap();
        tokio::task::yield_now().await;
    }
    settle().await;
    assert_eq!(view.borrow().view.as_ref().unwrap().instances[0].address.to_string(), "a:3000");
    assert!(matches!(slow.recv().await, Err(RecvError::Overflowed(_))));
    let mut last = None;
    while let Ok(change) = slow.try_recv() {
        last = Some(change);
    }
    assert_eq!(last.unwrap().all[0].address.to_string(), "a:3000");
}

#[tokio::test(start_paused = true)]
async fn a_time_without_listeners_closes_nothing() {
    let (feed, discover) = fed(8);
    drop(discover.watch());
    feed.send(Ok(Change::Insert("x", at("x", 1)))).await.unwrap();
    assert_eq!(ids(&discover).await, ["x"]);
    let mut changes = discover.watch().unwrap();
    assert_eq!(ids(&discover).await, ["x"]);
    feed.send(Ok(Change::Remove("x"))).await.unwrap();
    assert_eq!(&*changes.recv().await.unwrap().removed[0].id, "x");
}

#[tokio::test(start_paused = true)]
async fn each_selector_sees_its_own_instances_and_its_own_changes() {
    let tagged = |id: &'static str, color: &'static str| {
        Instance::builder(format!("{id}:1").parse().unwrap()).id(id).tag("color", color).build()
    };
    let (feed, discover) = fed(8);
    let blue = Endpoint::builder("s").selector(Selector::all().tag("color", "blue")).build();
    let mut changes = discover.watch().unwrap();
    feed.try_send(Ok(Change::Insert("r", tagged("r", "red")))).unwrap();
    feed.try_send(Ok(Change::Insert("b", tagged("b", "blue")))).unwrap();
    assert_eq!(discover.discover(&blue).await.unwrap().len(), 1);
    let (all, only_blue) = (discover.view(&endpoint()).unwrap(), discover.view(&blue).unwrap());
    let version = only_blue.borrow().view.as_ref().unwrap().version;
    while changes.try_recv().is_ok() {}
    feed.try_send(Ok(Change::Insert("r2", tagged("r2", "red")))).unwrap();
    settle().await;
    let change = changes.try_recv().unwrap();
    assert_eq!((change.key, change.all.len()), (Selector::all(), 3));
    assert!(changes.try_recv().is_err(), "nothing changed for the blue ones");
    feed.try_send(Ok(Change::Insert("b", tagged("b", "red")))).unwrap();
    settle().await;
    assert_eq!(all.borrow().view.as_ref().unwrap().instances.len(), 3);
    assert!(only_blue.borrow().view.as_ref().unwrap().instances.is_empty());
    assert!(only_blue.borrow().view.as_ref().unwrap().version > version);
}

#[tokio::test(start_paused = true)]
async fn a_panic_leaves_the_last_view_and_is_seen() {
    let (feed, changes) = mpsc::channel::<Item>(8);
    let discover =
        TowerDiscover::new(ReceiverStream::new(changes), &Runtime::tokio(), |key, i: &Instance| {
            assert_ne!(*key, "bad", "the test's own panic");
            i.clone()
        });
    feed.send(Ok(Change::Insert("x", at("x", 1)))).await.unwrap();
    assert_eq!(ids(&discover).await, ["x"]);
    let view = discover.view(&endpoint()).unwrap();
    feed.send(Ok(Change::Insert("bad", instance(2, 1)))).await.unwrap();
    settle().await;
    assert!(view.borrow().error.as_ref().unwrap().to_string().contains("panicked"));
    assert_eq!(ids(&discover).await, ["x"]);
}

#[tokio::test(start_paused = true)]
async fn the_last_clone_to_go_drops_the_stream() {
    let (feed, discover) = fed(8);
    let clone = discover.clone();
    drop(discover);
    settle().await;
    assert!(!feed.is_closed());
    drop(clone);
    settle().await;
    assert!(feed.is_closed());
}
