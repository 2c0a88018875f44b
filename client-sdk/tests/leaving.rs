//! Leaving the registry in good order (C4): what is not followed any more is unsubscribed, and a client that stops says so,
//! so that no drain waits for it.

mod support;

use std::{io, sync::Arc, time::Duration};

use client_sdk::{
    balance::{Balancer, RoundRobin},
    client::RegistryClient,
    discover::{Discover as _, RegistryDiscover, RegistryDiscoverError},
    model::Address,
    runtime::{BoxFuture, Connect, Io, Runtime, TokioClock, TokioSpawn},
    view::ViewKey,
    watch::{LeaveError, Sink, Update, Watcher},
};
use registry_proto::v1::subscribe_request::Request;
use support::{Fake, Net, Subscription, adding, endpoint, instance, snapshot, soon};
use tokio_test::{assert_pending, assert_ready};

/// Tokio's timers are this coarse.
const TICK: Duration = Duration::from_millis(2);

fn over(client: RegistryClient) -> RegistryDiscover {
    RegistryDiscover::builder(client).build()
}

/// Follows each of the services, which have an instance `a`.
async fn following(
    fake: &mut Fake,
    discover: &RegistryDiscover,
    services: &[&str],
) -> (Subscription, Vec<u32>) {
    let views: Vec<_> = services.iter().map(|service| discover.view(&endpoint(service))).collect();
    let mut stream = fake.subscription().await;
    let mut ids = Vec::new();
    for view in views {
        let (id, _, _) = stream.subscribe().await;
        stream.change(id, snapshot("e", 5, vec![instance("a", 1, 5)])).await;
        ids.push(id);
        let mut view = view.expect("it has views");
        drop(soon(view.wait_for(|state| state.view.is_some())).await.expect("followed"));
    }
    stream.bookmark("e", 5).await;
    (stream, ids)
}

/// The client unsubscribes these, and closes its side; it does not break the stream.
async fn takes_leave(stream: &mut Subscription, mut ids: Vec<u32>) {
    while !ids.is_empty() {
        match stream.next().await {
            Request::Unsubscribe(view) => {
                let at = ids.iter().position(|id| *id == view.view_id).expect("one that is there, once");
                ids.remove(at);
            }
            other => panic!("{other:?} is not taking leave of {ids:?}"),
        }
    }
    let end = soon(stream.requests.message()).await.expect("in good order");
    assert!(end.is_none(), "{end:?}");
    assert!(stream.is_open(), "it waits until it was heard");
}

#[tokio::test(start_paused = true)]
async fn c4_closing_unsubscribes_everything_and_ends_when_the_registry_has_heard() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = over(net.client(&["r:1"]));
    let (mut stream, ids) = following(&mut fake, &discover, &["s", "t"]).await;
    let (one, other) = (discover.clone(), discover.clone());
    let mut closing = tokio_test::task::spawn(one.close());
    let mut again = tokio_test::task::spawn(other.close());
    assert_pending!(closing.poll());
    assert_pending!(again.poll());
    // What is said meanwhile does not disturb it.
    stream.bookmark("e", 6).await;
    takes_leave(&mut stream, ids).await;
    assert_pending!(closing.poll());
    drop(stream);
    assert_eq!(soon(closing).await, Ok(()));
    assert_eq!(soon(again).await, Ok(()));
    assert_eq!(discover.close().await, Ok(()), "any number of times");

    // What is known stays, and nothing else can be asked for.
    let known = discover.discover(&endpoint("s")).await.expect("known");
    assert_eq!(known.len(), 1);
    let refused = discover.discover(&endpoint("u")).await;
    assert!(matches!(refused, Err(RegistryDiscoverError::Closed { .. })), "{refused:?}");
    assert!(fake.is_quiet(), "it is gone for good");
}

#[tokio::test(start_paused = true)]
async fn c4_the_last_handle_that_is_dropped_leaves_and_none_before_it() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let client = net.client(&["r:1"]);
    let discover = Arc::new(over(client));
    let balancer = Balancer::builder(Arc::clone(&discover), RoundRobin::new(&net.runtime(2))).build();
    let (mut stream, ids) = following(&mut fake, &discover, &["s"]).await;
    balancer.handle(&endpoint("s")).await.expect("a handle");
    drop(discover);
    // It lives as long as somebody acts by it.
    stream.ask("e", 6).await;
    assert_eq!(stream.acked().await, ("e".into(), 6));
    drop(balancer);
    takes_leave(&mut stream, ids).await;
    drop(stream);
}

#[tokio::test(start_paused = true)]
async fn c4_one_that_stops_while_it_lags_leaves_all_the_same() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = over(net.client(&["r:1"]));
    let hangs = discover.follower(&endpoint("s"));
    let (mut stream, ids) = following(&mut fake, &discover, &["s"]).await;
    let b = instance("b", 1, 6);
    stream.change(ids[0], adding("e", (5, 6), vec![b.clone()], &[instance("a", 1, 5), b])).await;
    stream.ask("e", 6).await;
    let mut view = discover.view(&endpoint("s")).expect("it has views");
    let both = view.wait_for(|state| state.view.as_ref().is_some_and(|view| view.instances.len() == 2));
    drop(soon(both).await.expect("followed"));
    drop(discover);
    // Not an ack, which would not be true.
    takes_leave(&mut stream, ids).await;
    drop(hangs);
}

struct Nobody;

impl Sink for Nobody {
    fn update(&mut self, _: Update) {}
}

#[tokio::test(start_paused = true)]
async fn c4_a_view_that_is_dropped_is_unsubscribed_also_if_it_is_the_last() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let (client, clock) = (net.client(&["r:1"]), net.runtime(2));
    let watcher = Watcher::new(client, Nobody);
    let key = |service| ViewKey::from(&endpoint(service));
    watcher.follow(key("s"), None);
    let mut stream = fake.subscription().await;
    let (s, _, _) = stream.subscribe().await;
    watcher.follow(key("t"), None);
    let (t, _, _) = stream.subscribe().await;
    watcher.unfollow(key("s"));
    match stream.next().await {
        Request::Unsubscribe(view) => assert_eq!(view.view_id, s),
        other => panic!("{other:?}"),
    }
    watcher.unfollow(key("t"));
    takes_leave(&mut stream, vec![t]).await;
    let left = clock.now();
    watcher.follow(key("u"), None);
    let mut next = fake.subscription().await;
    let (u, service, _) = next.subscribe().await;
    assert_eq!(service, "u", "it lives on");
    assert_eq!(clock.now(), left, "and waits for nobody");
    // It has left for good when both are heard.
    let mut closing = tokio_test::task::spawn(watcher.close());
    assert_pending!(closing.poll());
    takes_leave(&mut next, vec![u]).await;
    drop(next);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_pending!(closing.poll());
    drop(stream);
    assert_eq!(soon(closing).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_does_not_confirm_is_not_waited_for_beyond_the_request_timeout() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let patience = Duration::from_secs(3);
    let client = net.client_builder(&["r:1"], 1).request_timeout(patience).build().expect("a client");
    let discover = over(client.clone());
    let begun = client.runtime().now();
    let (stream, _) = following(&mut fake, &discover, &["s"]).await;
    assert_eq!(soon(discover.close()).await, Err(LeaveError::Unconfirmed(patience)));
    assert!(client.runtime().now() <= begun + patience + TICK);
    drop(stream);
}

/// A network on which it takes this long to connect.
struct Slow(Net, Duration);

impl Connect for Slow {
    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
        Box::pin(async move {
            tokio::time::sleep(self.1).await;
            self.0.connect(address).await
        })
    }
}

#[tokio::test(start_paused = true)]
async fn to_close_while_a_stream_is_being_opened_takes_one_request_timeout_and_not_two() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let patience = Duration::from_secs(3);
    let slow = Slow(net.clone(), Duration::from_secs(2));
    let runtime = Runtime::new(TokioClock::default(), slow, TokioSpawn, 1);
    let client = net.client_builder(&["r:1"], 1).runtime(runtime.clone()).request_timeout(patience);
    let discover = over(client.build().expect("a client"));
    let _view = discover.view(&endpoint("s")).expect("it has views");
    tokio::task::yield_now().await;
    let begun = runtime.now();
    let closing = async { soon(discover.close()).await };
    let registry = async {
        let mut stream = fake.subscription().await;
        let (id, _, _) = stream.subscribe().await;
        takes_leave(&mut stream, vec![id]).await;
        stream
    };
    let (left, stream) = tokio::join!(closing, registry);
    assert_eq!(left, Err(LeaveError::Unconfirmed(patience)));
    assert!(runtime.now() <= begun + patience + TICK);
    drop(stream);
}

#[tokio::test(start_paused = true)]
async fn without_a_stream_it_says_that_the_registry_may_not_know() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = over(net.client(&["r:1"]));
    assert_eq!(over(net.client(&["r:1"])).close().await, Ok(()), "it followed nothing");
    let (stream, _) = following(&mut fake, &discover, &["s"]).await;
    drop((stream, fake));
    let mut view = discover.view(&endpoint("s")).expect("it has views");
    drop(soon(view.wait_for(|state| state.error.is_some())).await.expect("followed"));
    assert_eq!(soon(discover.close()).await, Err(LeaveError::NoStream));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_while_it_is_left_is_no_leave() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = over(net.client(&["r:1"]));
    let (stream, _) = following(&mut fake, &discover, &["s"]).await;
    let mut closing = tokio_test::task::spawn(discover.close());
    assert_pending!(closing.poll());
    drop(fake);
    assert_eq!(soon(closing).await, Err(LeaveError::NoStream));
    drop(stream);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_first_view_is_told_that_it_was_closed() {
    let net = Net::default();
    let fake = net.start("r:1");
    fake.freeze();
    let discover = over(net.client(&["r:1"]));
    let s = endpoint("s");
    let mut waiting = tokio_test::task::spawn(discover.discover(&s));
    assert_pending!(waiting.poll());
    let mut closing = tokio_test::task::spawn(discover.close());
    assert_pending!(closing.poll());
    assert!(waiting.is_woken());
    let told = assert_ready!(waiting.poll());
    assert!(matches!(told, Err(RegistryDiscoverError::Closed { .. })), "{told:?}");
    // Nobody knows what becomes of a stream that is being opened.
    let _ = soon(closing).await;
}
