//! What a `Subscribe` stream says to what it is asked, without a network.

use std::{sync::Arc, task::Poll};

use prost::Message as _;
use registry_proto::{
    Frame,
    v1::{self, subscribe_request::Request, subscribe_response::Response},
};
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::Status;

use super::{
    fuzzing::{Asked, Publisher, watch_service},
    *,
};
use crate::{
    grpc::{
        feeder::{LONGEST_REST, REST, SOON},
        seats::Seat,
    },
    runtime::Runtime,
};

struct World {
    publisher: Publisher,
    asked: Asked,
    stream: SubscribeStream<Asked>,
    _stopping: watch::Sender<Option<Duration>>,
}

async fn rested(milliseconds: u64) {
    tokio::time::advance(Duration::from_millis(milliseconds)).await;
}

impl World {
    fn new() -> Self {
        let publisher = Publisher::new();
        let asked = Asked::default();
        let (stop, stopping) = watch::channel(None);
        let seat = Seat::take(&Arc::default(), 1).expect("free");
        let Publisher { hub, watchers, .. } = &publisher;
        let stream =
            SubscribeStream::new(hub.clone(), watchers, asked.clone(), stopping, Runtime::tokio(), seat);
        Self { publisher, asked, stream, _stopping: stop }
    }

    async fn polled(&mut self) -> Poll<Option<Result<Frame, Status>>> {
        std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut self.stream).poll_next(cx))).await
    }

    /// What the stream says now, or once it has rested; `None`: nothing.
    async fn said(&mut self) -> Option<v1::SubscribeResponse> {
        let mut polled = self.polled().await;
        if polled.is_pending() {
            rested(LONGEST_REST).await;
            polled = self.polled().await;
        }
        match polled {
            Poll::Pending => None,
            Poll::Ready(frame) => {
                let frame = frame.expect("it goes on").expect("no error");
                let bytes = [frame.prefix, frame.shared].concat();
                Some(v1::SubscribeResponse::decode(bytes.as_slice()).expect("a message"))
            }
        }
    }

    /// Whether the stream ends now.
    async fn ends(&mut self) -> bool {
        matches!(self.polled().await, Poll::Ready(None))
    }

    async fn all_said(&mut self) -> Vec<(u32, Response)> {
        let mut all = Vec::new();
        while let Some(said) = self.said().await {
            all.push((said.view_id, said.response.expect("something")));
        }
        all
    }
}

#[tokio::test(start_paused = true)]
async fn w10_who_asks_and_does_not_read_piles_up_nothing() {
    let mut world = World::new();
    (0..1_000).for_each(|_| world.asked.subscribe(1, Some(watch_service())));
    for frames in 1..10 {
        world.said().await.expect("something to say");
        assert!(world.asked.read() <= frames, "{} requests read for {frames} frames", world.asked.read());
    }
    let said = world.all_said().await;
    assert_eq!(world.asked.read(), 1_000, "all are heard in the end");
    assert!(matches!(said.last(), Some((0, Response::Bookmark(_)))));
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_while_there_is_much_to_say_is_heard() {
    let mut world = World::new();
    (1..=100).for_each(|view| world.asked.subscribe(view, Some(watch_service())));
    world.asked.unsubscribe(1);
    let said = world.all_said().await;
    assert_eq!(world.asked.read(), 101);
    let bookmarks = said.iter().filter(|(_, it)| matches!(it, Response::Bookmark(_))).count();
    assert_eq!(bookmarks, 1, "one, when the initial state of all of them is complete");
    world.publisher.register();
    let changed: Vec<_> = world.all_said().await.into_iter().map(|(view, _)| view).collect();
    assert_eq!(changed, (2..=100).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_view_that_is_opened_anew_and_refused_has_ended() {
    let mut world = World::new();
    world.asked.subscribe(1, Some(watch_service()));
    world.asked.subscribe(2, Some(watch_service()));
    world.all_said().await;
    world.asked.subscribe(1, None);
    let said = world.all_said().await;
    assert!(matches!(said.as_slice(), [(1, Response::ViewError(_))]), "{said:?}");
    world.publisher.register();
    let said = world.all_said().await;
    assert!(matches!(said.as_slice(), [(2, Response::Change(_))]), "{said:?}");
}

#[tokio::test(start_paused = true)]
async fn view_0_is_the_stream_itself() {
    let mut world = World::new();
    world.asked.subscribe(0, Some(watch_service()));
    let said = world.all_said().await;
    let [(0, Response::ViewError(error))] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!((error.field.as_str(), error.reason.as_str()), ("subscribe.view_id", "INVALID_FIELD"));
}

#[tokio::test(start_paused = true)]
async fn a_view_ahead_of_the_server_opens_when_it_has_caught_up() {
    let mut world = World::new();
    let cursor = Some(v1::Cursor { epoch: "e".into(), revision: 2 });
    world.asked.subscribe(1, Some(v1::WatchRequest { cursor, ..watch_service() }));
    world.asked.subscribe(2, Some(watch_service()));
    let said = world.all_said().await;
    assert!(
        matches!(said.as_slice(), [(2, Response::Change(_))]),
        "never older data, and no bookmark: {said:?}"
    );
    world.publisher.register();
    let said = world.all_said().await;
    assert!(matches!(said.as_slice(), [(2, Response::Change(_))]), "not there yet: {said:?}");
    world.publisher.register();
    let said = world.all_said().await;
    let [(2, Response::Change(_)), (0, Response::Bookmark(it))] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!(it.revision, 2, "now all of them are at the head");
    world.publisher.register();
    let changed: Vec<_> = world.all_said().await.into_iter().map(|(view, _)| view).collect();
    assert!(changed.contains(&1), "{changed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_view_that_stays_ahead_is_refused() {
    let mut world = World::new();
    let cursor = Some(v1::Cursor { epoch: "e".into(), revision: 2 });
    world.asked.subscribe(1, Some(v1::WatchRequest { cursor, ..watch_service() }));
    assert!(world.all_said().await.is_empty());
    tokio::time::sleep(BEHIND_WAIT).await;
    let said = world.all_said().await;
    let Some((1, Response::ViewError(error))) = said.first() else { panic!("{said:?}") };
    assert_eq!(error.reason, "REPLICA_BEHIND");
    assert!(error.retry_after.is_some());
}

fn service() -> crate::core::ServiceKey {
    crate::core::ServiceKey { namespace: "default".into(), service: "s".into() }
}

fn hello(acks: bool) -> Request {
    Request::Hello(v1::Hello { client_id: "client".into(), acks })
}

/// A client that acks has one view, and was told all there is.
async fn acking() -> World {
    let mut world = World::new();
    world.publisher.register();
    world.asked.ask(hello(true));
    world.asked.subscribe(1, Some(watch_service()));
    world.all_said().await;
    world.publisher.register();
    world
}

#[tokio::test(start_paused = true)]
async fn c4_an_ack_is_asked_for_at_once_if_somebody_waits_and_once() {
    let mut world = acking().await;
    let said = world.all_said().await;
    assert!(matches!(said.as_slice(), [(1, Response::Change(_))]), "nobody waits: {said:?}");
    let wait = world.publisher.watchers.wait(&service(), 2, 1.0);
    let said = world.all_said().await;
    let [(0, Response::Bookmark(bookmark))] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!((bookmark.revision, bookmark.ack_requested), (2, true));
    assert!(world.all_said().await.is_empty());
    assert!(!wait.answered(Duration::ZERO).await.satisfied);
    world.asked.ask(Request::Ack(v1::Ack { epoch: "e".into(), revision: 2 }));
    assert!(world.all_said().await.is_empty());
    assert!(wait.answered(Duration::ZERO).await.satisfied);
    // The next who waits for the same need not ask.
    let wait = world.publisher.watchers.wait(&service(), 2, 1.0);
    assert!(world.all_said().await.is_empty() && wait.answered(Duration::ZERO).await.satisfied);
}

#[tokio::test(start_paused = true)]
async fn w7_an_ack_is_asked_for_after_the_change() {
    let mut world = acking().await;
    let _wait = world.publisher.watchers.wait(&service(), 2, 1.0);
    let said = world.all_said().await;
    let [(1, Response::Change(_)), (0, Response::Bookmark(bookmark))] = said.as_slice() else {
        panic!("{said:?}")
    };
    assert!(bookmark.ack_requested);
}

#[tokio::test(start_paused = true)]
async fn c4_who_waited_and_went_leaves_nothing_to_say() {
    let mut world = acking().await;
    world.all_said().await;
    drop(world.publisher.watchers.wait(&service(), 2, 1.0));
    assert!(world.all_said().await.is_empty());
    tokio::time::sleep(super::super::feeder::BOOKMARK_INTERVAL).await;
    let said = world.all_said().await;
    let [(0, Response::Bookmark(bookmark))] = said.as_slice() else { panic!("{said:?}") };
    assert!(!bookmark.ack_requested);
}

#[tokio::test(start_paused = true)]
async fn c4_one_that_vanished_holds_up_the_answer_for_20_s() {
    let World { publisher, stream, .. } = acking().await;
    let clock = Runtime::tokio();
    let wait = publisher.watchers.wait(&service(), 2, 1.0);
    drop(stream);
    let applied = wait.answered(Duration::from_secs(5)).await;
    assert_eq!((applied.counts.disconnected, applied.satisfied), (1, false));
    assert_eq!(clock.now().mono, 5_000, "at the end of its time");
    let applied = wait.answered(Duration::from_mins(1)).await;
    assert_eq!((applied.counts.disconnected, applied.satisfied), (0, true));
    assert_eq!(clock.now().mono, 20_000);
}

#[tokio::test(start_paused = true)]
async fn c4_a_wait_that_is_slept_through_hears_of_one_that_vanishes_later() {
    let World { publisher, stream, .. } = acking().await;
    let clock = Runtime::tokio();
    let wait = publisher.watchers.wait(&service(), 2, 1.0);
    let leaving = async {
        tokio::time::sleep(Duration::from_secs(7)).await;
        drop(stream);
    };
    let (applied, ()) = tokio::join!(wait.answered(Duration::from_mins(1)), leaving);
    assert!(applied.satisfied);
    assert_eq!(clock.now().mono, 27_000);
}

#[tokio::test(start_paused = true)]
async fn c4_who_gives_up_its_views_and_closes_its_side_has_left_for_good() {
    let mut world = acking().await;
    world.asked.subscribe(2, Some(watch_service()));
    world.all_said().await;
    let wait = world.publisher.watchers.wait(&service(), 2, 1.0);
    world.all_said().await;
    assert_eq!(wait.answered(Duration::ZERO).await.counts.lagging, 1);
    world.asked.unsubscribe(1);
    world.asked.unsubscribe(2);
    world.asked.close();
    assert!(world.ends().await, "so it knows that it was heard");
    let applied = wait.answered(Duration::ZERO).await;
    assert_eq!((applied.counts, applied.satisfied), (crate::applied::Counts::default(), true));
    let World { publisher, stream, .. } = world;
    drop(stream);
    assert!(publisher.watchers.wait(&service(), 2, 1.0).answered(Duration::ZERO).await.satisfied);
}

#[tokio::test(start_paused = true)]
async fn c4_who_leaves_while_there_is_much_to_say_is_heard() {
    let mut world = acking().await;
    (2..=5).for_each(|view| world.asked.subscribe(view, Some(watch_service())));
    world.all_said().await;
    world.publisher.register();
    (1..=5).for_each(|view| world.asked.unsubscribe(view));
    world.asked.close();
    let mut frames = 0;
    while !world.ends().await {
        frames += 1;
        assert!(frames <= 5, "it goes on");
    }
    assert!(world.publisher.watchers.wait(&service(), 2, 1.0).answered(Duration::ZERO).await.satisfied);
}

#[tokio::test(start_paused = true)]
async fn c4_who_closes_its_side_and_has_a_view_may_come_back_and_is_waited_for() {
    let mut world = acking().await;
    world.asked.subscribe(2, Some(watch_service()));
    world.all_said().await;
    world.asked.unsubscribe(2);
    world.asked.close();
    assert!(world.all_said().await.is_empty() && !world.ends().await);
    world.publisher.register();
    let said = world.all_said().await;
    assert!(matches!(said.as_slice(), [(1, Response::Change(_))]), "it goes on reading: {said:?}");
    let wait = world.publisher.watchers.wait(&service(), 3, 1.0);
    assert_eq!(wait.answered(Duration::ZERO).await.counts.lagging, 1);
    let World { publisher: _publisher, stream, .. } = world;
    drop(stream);
    let applied = wait.answered(Duration::ZERO).await;
    assert_eq!((applied.counts.disconnected, applied.satisfied), (1, false), "as one whose connection broke");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_closed_its_side_hears_that_its_last_view_is_refused_and_then_the_end() {
    let mut world = World::new();
    let cursor = Some(v1::Cursor { epoch: "e".into(), revision: 2 });
    world.asked.subscribe(1, Some(v1::WatchRequest { cursor, ..watch_service() }));
    world.asked.close();
    assert!(world.all_said().await.is_empty(), "it may catch up yet");
    tokio::time::sleep(BEHIND_WAIT).await;
    let said = world.said().await.and_then(|said| said.response);
    assert!(matches!(said, Some(Response::ViewError(_))), "{said:?}");
    assert!(world.ends().await);
}

#[tokio::test(start_paused = true)]
async fn who_acks_says_so_before_its_views() {
    let mut world = World::new();
    world.asked.subscribe(1, Some(watch_service()));
    world.all_said().await;
    world.asked.ask(hello(false));
    assert!(world.all_said().await.is_empty(), "a name by itself may come late");
    world.asked.ask(hello(true));
    let said = world.all_said().await;
    let [(0, Response::ViewError(error))] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!((error.field.as_str(), error.reason.as_str()), ("hello", "INVALID_FIELD"));
}

#[tokio::test(start_paused = true)]
async fn c4_a_view_that_is_opened_anew_is_waited_for_all_the_while() {
    let mut world = acking().await;
    world.all_said().await;
    let wait = world.publisher.watchers.wait(&service(), 2, 1.0);
    let ahead = Some(v1::Cursor { epoch: "e".into(), revision: 9 });
    world.asked.subscribe(1, Some(v1::WatchRequest { cursor: ahead, ..watch_service() }));
    world.all_said().await;
    assert_eq!(wait.answered(Duration::ZERO).await.counts.lagging, 1, "nobody knows yet what becomes of it");
    world.asked.subscribe(1, Some(v1::WatchRequest { force_snapshot: true, ..watch_service() }));
    let said = world.all_said().await;
    assert!(said.iter().any(|(_, it)| matches!(it, Response::Bookmark(it) if it.ack_requested)), "{said:?}");
    assert_eq!(wait.answered(Duration::ZERO).await.counts.lagging, 1);
    world.asked.subscribe(1, None);
    world.all_said().await;
    assert!(wait.answered(Duration::ZERO).await.satisfied, "it was refused, and has ended");
}

/// However fast a service changes: what happens while a stream rests comes as one (W6).
#[tokio::test(start_paused = true)]
async fn a_stream_that_has_said_all_it_had_rests_and_then_says_the_rest_as_one() {
    let mut world = World::new();
    world.asked.subscribe(1, Some(watch_service()));
    world.publisher.register();
    assert_eq!(world.all_said().await.len(), 2, "a snapshot and a bookmark");
    rested(REST + SOON).await;
    world.publisher.register();
    assert!(world.polled().await.is_ready(), "the first change comes at once");
    assert!(world.polled().await.is_pending(), "and is all there was");
    for _ in 0..5 {
        world.publisher.register();
        assert!(world.polled().await.is_pending(), "it rests");
    }
    rested(REST).await;
    let said = world.said().await.expect("something").response.expect("something");
    let Response::Change(change) = said else { panic!("{said:?}") };
    assert_eq!((change.previous_revision, change.revision), (2, 7));
    assert!(world.polled().await.is_pending(), "that was all");
    world.publisher.register();
    rested(2 * REST - 1).await;
    assert!(world.polled().await.is_pending(), "the second rest in a row is longer");
    rested(1).await;
    assert!(world.polled().await.is_ready());
    assert!(world.polled().await.is_pending(), "that was all");
    rested(4 * REST + SOON - 1).await;
    world.publisher.register();
    assert!(world.polled().await.is_ready(), "nothing is held up that comes after a rest");
    assert!(world.polled().await.is_pending(), "that was all");
    world.publisher.register();
    rested(8 * REST - 1).await;
    assert!(world.polled().await.is_pending(), "but soon after it is as good as during it");
    rested(1).await;
    assert!(world.polled().await.is_ready());
    assert!(world.polled().await.is_pending(), "that was all");
    rested(16 * REST + SOON - 1).await;
    for _ in 0..2 {
        world.publisher.register();
        assert!(world.polled().await.is_ready());
        assert!(world.polled().await.is_pending());
        world.publisher.register();
        rested(SOON - 1).await;
        assert!(world.polled().await.is_pending(), "but never for longer than so");
        rested(1).await;
        assert!(world.polled().await.is_ready());
        assert!(world.polled().await.is_pending(), "that was all");
        rested(2 * SOON + SOON - 1).await;
    }
    rested(LONGEST_REST + SOON).await;
    for rest in [0, REST] {
        world.publisher.register();
        rested(rest).await;
        assert!(world.polled().await.is_ready(), "after that it begins anew");
        assert!(world.polled().await.is_pending());
    }
}

/// What a change costs a stream: its other sources are left alone.
#[tokio::test(start_paused = true)]
async fn a_change_has_a_stream_poll_nothing_but_its_view() {
    let mut world = World::new();
    world.asked.subscribe(1, Some(watch_service()));
    world.publisher.register();
    world.all_said().await;
    let polls = world.asked.polls();
    for _ in 0..3 {
        rested(LONGEST_REST).await;
        world.publisher.register();
        assert!(matches!(world.polled().await, Poll::Ready(Some(Ok(_)))));
        assert!(world.polled().await.is_pending());
    }
    assert_eq!(world.asked.polls(), polls, "nobody asked for anything");
    world.asked.subscribe(2, Some(watch_service()));
    assert!(!world.all_said().await.is_empty(), "what rings is heard");
    assert!(world.asked.polls() > polls);
}

/// A stream rests between changes, and never before an answer.
#[tokio::test(start_paused = true)]
async fn a_view_that_is_asked_for_is_there_at_once_however_lately_something_was_said() {
    let mut world = World::new();
    world.publisher.register();
    for view in 1..=50 {
        world.asked.subscribe(view, Some(watch_service()));
        let said = world.polled().await;
        assert!(matches!(said, Poll::Ready(Some(Ok(_)))), "view {view}: its snapshot");
        let said = world.polled().await;
        assert!(matches!(said, Poll::Ready(Some(Ok(_)))), "view {view}: its bookmark");
        assert!(world.polled().await.is_pending());
    }
}

/// However fast it asks: others have their turn, and the server's end is heard.
#[tokio::test(start_paused = true)]
async fn who_asks_without_end_holds_up_nobody() {
    let mut world = World::new();
    (0..1_000).for_each(|_| world.asked.unsubscribe(7));
    assert!(world.polled().await.is_pending(), "there is nothing to say to it");
    assert!(world.asked.read() < 100, "{} requests in one turn", world.asked.read());
    world.asked.subscribe(1, Some(watch_service()));
    assert!(world.all_said().await.is_empty(), "it is behind the others");
    while world.asked.read() <= 1_000 {
        assert!(world.polled().await.is_pending() || world.asked.read() > 1_000);
    }
}

/// Each revision changes the view, which is asked for anew again and again: no bookmark may be ahead of what was delivered.
#[tokio::test]
async fn w7_a_bookmark_is_true_of_views_that_are_read_anew_while_changes_are_published() {
    const CHANGES: u64 = 20_000;
    let World { mut publisher, asked, mut stream, _stopping } = World::new();
    publisher.register();
    let anew = || v1::WatchRequest { force_snapshot: true, ..watch_service() };
    asked.subscribe(1, Some(anew()));
    let publishing = std::thread::spawn(move || (1..CHANGES).for_each(|_| publisher.register()));
    let (mut delivered, mut told, mut newest) = (0, 0, 0);
    while told < CHANGES {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await;
        let frame = frame.expect("it goes on").expect("no error");
        let bytes = [frame.prefix, frame.shared].concat();
        match v1::SubscribeResponse::decode(bytes.as_slice()).expect("a message").response {
            Some(Response::Change(change)) => {
                // A snapshot may be up to a second old; the change behind it comes before any bookmark.
                delivered = change.revision;
                newest = newest.max(delivered);
            }
            Some(Response::Bookmark(bookmark)) => {
                assert!(bookmark.revision <= delivered, "W7: {} and {delivered}", bookmark.revision);
                told = bookmark.revision;
                asked.subscribe(1, Some(anew()));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(newest, CHANGES);
    publishing.join().expect("it ends");
}
