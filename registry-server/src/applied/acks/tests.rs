//! Each rule by itself, and all of them against clients who keep their word: what a wait says is then true.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::{collection::vec, prelude::*};

use super::*;

fn key() -> ServiceKey {
    ServiceKey { namespace: "default".into(), service: "s".into() }
}

fn zone(name: &str) -> Selector {
    Selector::new([], name, [])
}

fn all() -> Selector {
    zone("")
}

/// A wait for `revision`, which touched the whole service and the zone `a`, and nothing of the zone `b`.
fn touching(revision: Revision) -> Touched {
    Box::new(move |selector: &Selector| (selector.zone() != "b").then_some(revision))
}

/// Streams as their clients open them.
struct World {
    acks: Acks,
    now: u64,
}

impl World {
    fn new() -> Self {
        Self { acks: Acks::new(0), now: 1_000 }
    }

    /// A client that acks, with one view.
    fn client(&mut self, name: &str, origin: Origin) -> StreamId {
        self.client_of(name, &all(), origin)
    }

    fn client_of(&mut self, name: &str, selector: &Selector, origin: Origin) -> StreamId {
        let stream = self.acks.joined(self.now);
        assert!(self.acks.named(stream, name.into()));
        self.acks.opened(stream, 1, &key(), selector, origin);
        stream
    }

    fn wait(&mut self, revision: Revision) -> WaitId {
        self.acks.wait(&key(), 1.0, touching(revision))
    }

    fn leave(&mut self, stream: StreamId) {
        self.acks.left(stream, self.now);
    }

    /// Asks whoever is to be asked, and lets them answer.
    fn answer(&mut self, stream: StreamId, head: Revision) {
        assert!(self.acks.asking(stream, head), "it is asked");
        self.acks.acked(stream, head);
    }

    fn look(&mut self, wait: WaitId) -> Looked {
        self.acks.look(wait, self.now).expect("it waits")
    }

    /// Acked, lagging, disconnected, not acking; and whether that is enough.
    fn seen(&mut self, wait: WaitId) -> ([u32; 4], bool) {
        let Looked { counts: it, satisfied, .. } = self.look(wait);
        ([it.acked, it.lagging, it.disconnected, it.not_acking], satisfied)
    }
}

#[test]
fn whoever_lags_is_asked_once_and_its_word_ends_the_wait() {
    let mut world = World::new();
    let (one, two) = (world.client("one", Origin::Cursor(3)), world.client("two", Origin::Cursor(3)));
    assert!(world.acks.take_news().ask.is_empty(), "nobody waits, nobody is asked");
    assert!(!world.acks.asking(one, 5));
    let wait = world.wait(5);
    assert_eq!(world.acks.take_news().ask, [one, two]);
    assert_eq!(world.seen(wait), ([0, 2, 0, 0], false));
    assert!(world.acks.asking(one, 6), "at the head, which may be further");
    assert!(!world.acks.asking(one, 6), "it was asked");
    world.acks.acked(one, 4);
    assert_eq!(world.seen(wait), ([0, 2, 0, 0], false), "too little");
    world.acks.acked(one, 6);
    assert_eq!(world.seen(wait), ([1, 1, 0, 0], false));
    assert!(!world.acks.asking(one, 7), "it has answered");
    world.acks.take_news();
    world.answer(two, 5);
    assert_eq!(world.acks.take_news().look, [wait]);
    assert_eq!(world.seen(wait), ([2, 0, 0, 0], true));
}

#[test]
fn a_view_that_never_held_it_or_began_later_does_not_count() {
    let mut world = World::new();
    world.client_of("elsewhere", &zone("b"), Origin::Cursor(1));
    let late = world.client("late", Origin::Nothing);
    world.acks.began(late, 1, 5);
    let wait = world.wait(5);
    assert_eq!(world.seen(wait), ([0, 0, 0, 0], true));
    // One whose first snapshot is older than the change did have it: it is told the change next.
    let early = world.client("early", Origin::Nothing);
    world.acks.began(early, 1, 4);
    world.client("forced", Origin::Unknown);
    assert_eq!(world.seen(wait), ([0, 2, 0, 0], false));
}

#[test]
fn a_share_counts_those_that_vanished_and_not_those_that_cannot_ack() {
    let mut world = World::new();
    let streams: Vec<_> = (0..10).map(|n| world.client(&format!("c{n}"), Origin::Cursor(1))).collect();
    let mute = world.acks.joined(0);
    world.acks.opened(mute, 1, &key(), &all(), Origin::Cursor(1));
    let wait = world.acks.wait(&key(), 0.7, touching(5));
    world.leave(streams[9]);
    for stream in &streams[..6] {
        world.answer(*stream, 5);
    }
    assert_eq!(world.seen(wait), ([6, 3, 1, 1], false));
    world.answer(streams[6], 5);
    assert_eq!(world.seen(wait), ([7, 2, 1, 1], true));
}

#[test]
fn one_that_vanished_counts_for_20_s_or_until_it_is_back_and_acks() {
    let mut world = World::new();
    let (gone, back) = (world.client("gone", Origin::Cursor(1)), world.client("back", Origin::Cursor(1)));
    let wait = world.wait(5);
    world.leave(gone);
    world.leave(back);
    assert_eq!(world.seen(wait), ([0, 0, 2, 0], false));
    assert_eq!(world.look(wait).until, Some(world.now + GRACE));
    world.acks.take_news();
    // What it received is known from its cursor; what it applied it says itself.
    let back = world.client("back", Origin::Cursor(5));
    assert_eq!(world.acks.take_news().ask, [back]);
    assert_eq!(world.seen(wait), ([0, 1, 1, 0], false));
    world.answer(back, 5);
    world.now += GRACE - 1;
    assert_eq!(world.seen(wait), ([1, 0, 1, 0], false));
    world.now += 1;
    assert_eq!(world.seen(wait), ([1, 0, 0, 0], true));
}

#[test]
fn one_that_acked_and_vanished_has_applied_it_and_needs_to_say_so_again_only_if_it_fell_back() {
    let mut world = World::new();
    let stream = world.client("c", Origin::Cursor(1));
    let wait = world.wait(5);
    world.answer(stream, 6);
    world.leave(stream);
    assert_eq!(world.seen(wait), ([1, 0, 0, 0], true));
    let stream = world.client("c", Origin::Cursor(5));
    assert_eq!(world.seen(wait), ([1, 0, 0, 0], true));
    world.leave(stream);
    world.client("c", Origin::Cursor(4));
    assert_eq!(world.seen(wait), ([0, 1, 0, 0], false), "it came back with what it had before");
}

#[test]
fn one_that_comes_back_with_nothing_may_still_hold_what_it_had() {
    let mut world = World::new();
    let stream = world.client("c", Origin::Cursor(1));
    world.leave(stream);
    let stream = world.client("c", Origin::Nothing);
    world.acks.began(stream, 1, 5);
    let wait = world.wait(5);
    assert_eq!(world.seen(wait), ([0, 1, 0, 0], false));
}

#[test]
fn a_client_has_applied_what_all_its_streams_have() {
    let mut world = World::new();
    let (one, two) = (world.client("c", Origin::Cursor(1)), world.client("c", Origin::Cursor(1)));
    let wait = world.wait(5);
    world.answer(one, 5);
    assert_eq!(world.seen(wait), ([0, 1, 0, 0], false));
    world.leave(one);
    assert_eq!(world.seen(wait), ([0, 1, 0, 0], false), "counted once");
    world.answer(two, 5);
    assert_eq!(world.seen(wait), ([1, 0, 0, 0], true));
}

#[test]
fn a_stream_whose_end_is_noticed_late_is_spoken_for_by_the_one_that_took_its_place() {
    let mut world = World::new();
    let dead = world.client("c", Origin::Cursor(1));
    let resumed = world.client("c", Origin::Cursor(1));
    let wait = world.wait(5);
    world.answer(resumed, 5);
    assert_eq!(world.seen(wait), ([0, 1, 0, 0], false), "nobody knows yet that it is dead");
    world.leave(dead);
    assert_eq!(world.seen(wait), ([1, 0, 0, 0], true));
}

#[test]
fn whoever_drops_its_views_before_it_goes_has_not_vanished() {
    let mut world = World::new();
    let stream = world.client("c", Origin::Cursor(1));
    let wait = world.wait(5);
    world.acks.closed(stream, 1);
    assert_eq!(world.seen(wait), ([0, 0, 0, 0], true));
    world.leave(stream);
    world.acks.forget(wait);
    assert!(world.acks.is_empty());
}

#[test]
fn an_ack_says_nothing_of_a_view_that_came_after_its_question() {
    let mut world = World::new();
    let stream = world.client("c", Origin::Cursor(1));
    let wait = world.wait(5);
    assert!(world.acks.asking(stream, 5));
    world.acks.opened(stream, 2, &key(), &zone("a"), Origin::Cursor(1));
    world.acks.take_news();
    world.acks.acked(stream, 5);
    assert_eq!(world.seen(wait), ([0, 1, 0, 0], false));
    assert!(world.acks.take_news().ask.contains(&stream), "it is asked again");
    world.answer(stream, 5);
    assert_eq!(world.seen(wait), ([1, 0, 0, 0], true));
    // A view that is opened anew is another one.
    world.acks.opened(stream, 1, &key(), &all(), Origin::Unknown);
    assert_eq!(world.seen(wait), ([0, 1, 0, 0], false));
}

#[test]
fn an_ack_that_nobody_asked_for_says_nothing() {
    let mut world = World::new();
    let stream = world.client("c", Origin::Cursor(1));
    world.acks.acked(stream, 5);
    let wait = world.wait(5);
    assert_eq!(world.seen(wait), ([0, 1, 0, 0], false));
}

#[test]
fn a_bookmark_from_before_the_change_does_not_ask_for_it() {
    let mut world = World::new();
    let stream = world.client("c", Origin::Cursor(1));
    world.wait(5);
    world.acks.take_news();
    assert!(!world.acks.asking(stream, 4));
    assert_eq!(world.acks.take_news().ask, [stream], "the next one does");
    assert!(world.acks.asking(stream, 5));
}

#[test]
fn a_name_comes_before_the_views() {
    let mut world = World::new();
    let stream = world.acks.joined(0);
    world.acks.opened(stream, 1, &key(), &all(), Origin::Cursor(1));
    assert!(!world.acks.named(stream, "c".into()));
    let wait = world.wait(5);
    assert_eq!(world.seen(wait), ([0, 0, 0, 1], true));
}

#[test]
fn a_server_that_does_not_know_who_watched_before_is_not_satisfied_at_first() {
    let mut acks = Acks::new(20_000);
    let wait = acks.wait(&key(), 1.0, touching(5));
    let looked = acks.look(wait, 19_999).expect("it waits");
    assert_eq!((looked.satisfied, looked.until), (false, Some(20_000)));
    assert!(acks.look(wait, 20_000).expect("it waits").satisfied);
}

#[test]
fn what_vanished_is_bounded_and_forgotten() {
    let mut world = World::new();
    for n in 0..u32::try_from(VANISHED).expect("it fits") + 10 {
        let stream = world.client(&format!("c{n}"), Origin::Cursor(1));
        world.leave(stream);
    }
    assert_eq!(world.acks.vanished.len(), VANISHED);
    let wait = world.wait(5);
    world.now += GRACE;
    assert!(world.look(wait).satisfied);
    world.acks.forget(wait);
    assert!(world.acks.is_empty());
}

/// A view as its client has it.
#[derive(Clone, Debug)]
struct Truth {
    zone: &'static str,
    received: Option<Revision>,
    /// What the client goes by. `None`: it has nothing to go by.
    applied: Option<Revision>,
    open: bool,
    gone_at: u64,
}

/// A client that keeps its word, and is as slow as it likes.
#[derive(Clone, Debug, Default)]
struct Honest {
    stream: Option<StreamId>,
    views: BTreeMap<u32, Truth>,
    questions: VecDeque<Revision>,
}

#[derive(Clone, Debug)]
enum Op {
    Publish {
        zone: &'static str,
    },
    Open {
        client: usize,
        view: u32,
        forced: bool,
    },
    Close {
        client: usize,
        view: u32,
    },
    Snapshot {
        client: usize,
        view: u32,
        age: u64,
    },
    Bookmark {
        client: usize,
    },
    Apply {
        client: usize,
        view: u32,
    },
    Answer {
        client: usize,
    },
    Vanish {
        client: usize,
    },
    /// Comes back with some of its views.
    Return {
        client: usize,
        views: u32,
    },
    Wait {
        back: u64,
    },
    GiveUp,
    Pass {
        millis: u64,
    },
}

const CLIENTS: usize = 3;

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let (client, view) = (0..CLIENTS, 1..4u32);
    let op = prop_oneof![
        4 => prop_oneof![Just("a"), Just("b")].prop_map(|zone| Op::Publish { zone }),
        6 => (client.clone(), view.clone(), any::<bool>())
            .prop_map(|(client, view, forced)| Op::Open { client, view, forced }),
        1 => (client.clone(), view.clone()).prop_map(|(client, view)| Op::Close { client, view }),
        4 => (client.clone(), view.clone(), 0..3u64)
            .prop_map(|(client, view, age)| Op::Snapshot { client, view, age }),
        8 => client.clone().prop_map(|client| Op::Bookmark { client }),
        6 => (client.clone(), view).prop_map(|(client, view)| Op::Apply { client, view }),
        6 => client.clone().prop_map(|client| Op::Answer { client }),
        2 => client.clone().prop_map(|client| Op::Vanish { client }),
        4 => (client, 0..8u32).prop_map(|(client, views)| Op::Return { client, views }),
        4 => (0..3u64).prop_map(|back| Op::Wait { back }),
        1 => Just(Op::GiveUp),
        2 => prop_oneof![Just(1u64), Just(9_000), Just(20_000)].prop_map(|millis| Op::Pass { millis }),
    ];
    vec(op, 1..120)
}

/// Clients, and the server's side of them.
struct Fleet {
    acks: Acks,
    now: u64,
    clients: Vec<Honest>,
    /// The zone that each revision changed, from 1 on.
    log: Vec<&'static str>,
    waits: Vec<(WaitId, Revision)>,
    prompted: BTreeSet<StreamId>,
}

impl Fleet {
    fn new() -> Self {
        let clients = vec![Honest::default(); CLIENTS];
        let (log, waits, prompted) = (vec!["a"], Vec::new(), BTreeSet::new());
        Self { acks: Acks::new(0), now: 0, clients, log, waits, prompted }
    }

    fn head(&self) -> Revision {
        self.log.len() as u64
    }

    fn touches(&self, revision: Revision, zone: &str) -> bool {
        let index = usize::try_from(revision - 1).expect("it fits");
        zone.is_empty() || self.log[index] == zone
    }

    fn connect(&mut self, client: usize) -> StreamId {
        if let Some(stream) = self.clients[client].stream {
            return stream;
        }
        let stream = self.acks.joined(self.now);
        assert!(self.acks.named(stream, format!("client {client}").into()));
        self.clients[client].stream = Some(stream);
        stream
    }

    fn open(&mut self, client: usize, view: u32, forced: bool) {
        let stream = self.connect(client);
        let truth = self.clients[client].views.get_mut(&view).expect("it is there");
        let origin = match truth.received {
            None => Origin::Nothing,
            Some(_) if forced => Origin::Unknown,
            Some(cursor) => Origin::Cursor(cursor),
        };
        if truth.received.is_none() {
            truth.applied = None;
        }
        truth.open = true;
        let selector = zone(truth.zone);
        self.acks.opened(stream, view, &key(), &selector, origin);
    }

    fn receive(&mut self, client: usize, view: u32, revision: Revision) {
        let stream = self.clients[client].stream.expect("it is connected");
        let truth = self.clients[client].views.get_mut(&view).expect("it is there");
        if truth.received.is_none() {
            self.acks.began(stream, view, revision);
        }
        truth.received = truth.received.max(Some(revision));
    }

    #[allow(clippy::needless_pass_by_value)] // what was done is not needed again
    fn run(&mut self, op: Op) {
        match op {
            Op::Publish { zone } => self.log.push(zone),
            Op::Open { client, view, forced } => {
                let had = self.clients[client].views.get(&view).is_some_and(|truth| truth.open);
                // A client has one view of a selection: whoever opens it again has it again.
                let zone = ["", "a", "b"][usize::try_from(view - 1).expect("it fits")];
                let fresh = Truth { zone, received: None, applied: None, open: false, gone_at: 0 };
                let vacant = !self.clients[client].views.contains_key(&view);
                if vacant {
                    self.clients[client].views.insert(view, fresh);
                }
                if vacant || had {
                    self.open(client, view, forced);
                }
            }
            Op::Close { client, view } => {
                let Some(stream) = self.clients[client].stream else { return };
                if self.clients[client].views.get(&view).is_some_and(|truth| truth.open) {
                    self.clients[client].views.remove(&view);
                    self.acks.closed(stream, view);
                }
            }
            Op::Snapshot { client, view, age } => {
                let truth = self.clients[client].views.get(&view);
                if truth.is_some_and(|truth| truth.open && truth.received.is_none()) {
                    self.receive(client, view, self.head().saturating_sub(age).max(1));
                }
            }
            Op::Bookmark { client } => self.bookmark(client),
            Op::Apply { client, view } => {
                if let Some(truth) = self.clients[client].views.get_mut(&view) {
                    truth.applied = truth.applied.max(truth.received);
                }
            }
            Op::Answer { client } => {
                let Honest { stream: Some(stream), views, questions } = &mut self.clients[client] else {
                    return;
                };
                let Some(question) = questions.front().copied() else { return };
                let mut open = views.values().filter(|truth| truth.open);
                if open.all(|truth| truth.applied >= Some(question)) {
                    questions.pop_front();
                    self.acks.acked(*stream, question);
                }
            }
            Op::Vanish { client } => {
                let honest = &mut self.clients[client];
                let Some(stream) = honest.stream.take() else { return };
                honest.questions.clear();
                for truth in honest.views.values_mut().filter(|truth| truth.open) {
                    (truth.open, truth.gone_at) = (false, self.now);
                }
                self.acks.left(stream, self.now);
            }
            Op::Return { client, views } => {
                let gone: Vec<u32> = self.clients[client]
                    .views
                    .iter()
                    .filter(|(view, truth)| !truth.open && views & (1 << (*view - 1)) != 0)
                    .map(|(view, _)| *view)
                    .collect();
                for view in gone {
                    self.open(client, view, false);
                }
            }
            Op::Wait { back } => {
                let revision = self.head().saturating_sub(back).max(1);
                let of = self.log[usize::try_from(revision - 1).expect("it fits")];
                let touched = Box::new(move |selector: &Selector| {
                    (selector.zone().is_empty() || selector.zone() == of).then_some(revision)
                });
                self.waits.push((self.acks.wait(&key(), 1.0, touched), revision));
            }
            Op::GiveUp => {
                if let Some((wait, _)) = self.waits.pop() {
                    self.acks.forget(wait);
                }
            }
            Op::Pass { millis } => self.now += millis,
        }
    }

    /// All views are at the head: a bookmark, if somebody is to be asked.
    fn bookmark(&mut self, client: usize) {
        let Some(stream) = self.clients[client].stream else { return };
        let head = self.head();
        let open: Vec<u32> = self.clients[client]
            .views
            .iter()
            .filter(|(_, truth)| truth.open)
            .map(|(view, _)| *view)
            .collect();
        for view in open {
            self.receive(client, view, head);
        }
        if self.prompted.remove(&stream) && self.acks.asking(stream, head) {
            self.clients[client].questions.push_back(head);
        }
    }

    fn check(&mut self) {
        let news = self.acks.take_news();
        self.prompted.extend(news.ask);
        for (wait, revision) in self.waits.clone() {
            let looked = self.acks.look(wait, self.now).expect("it waits");
            // The counts are kept, and are those of a count made anew.
            let service = &self.acks.services[&key()];
            let it = service.waits.iter().find(|it| it.id == wait).expect("it waits");
            let mut counts = Counts::default();
            for (who, held) in &service.held {
                if let Some(standing) = it.standing(who, held) {
                    *counts.of(standing) += 1;
                }
            }
            assert_eq!(looked.counts, counts);
            if looked.satisfied {
                self.nobody_goes_by_what_was_before(revision);
            }
        }
    }

    fn nobody_goes_by_what_was_before(&self, revision: Revision) {
        for (client, honest) in self.clients.iter().enumerate() {
            for truth in honest.views.values() {
                let counts = truth.open || self.now < truth.gone_at + GRACE;
                let goes_by = truth.applied.or(truth.received);
                let old = goes_by.is_some_and(|applied| applied < revision);
                assert!(
                    !(counts && old && self.touches(revision, truth.zone)),
                    "C4: client {client} goes by {goes_by:?}, not {revision}: {truth:?}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// Whatever clients do who keep their word: nobody is told that a change is applied while it is not; and if they all
    /// come back and answer, everybody is told.
    #[test]
    fn c4_what_a_wait_says_is_true_and_it_ends(ops in ops()) {
        let mut fleet = Fleet::new();
        for op in ops {
            fleet.run(op);
            fleet.check();
        }
        for client in 0..CLIENTS {
            fleet.run(Op::Return { client, views: 7 });
            fleet.check();
        }
        fleet.now += GRACE;
        for _ in 0..3 {
            for client in 0..CLIENTS {
                fleet.run(Op::Bookmark { client });
                (1..4).for_each(|view| fleet.run(Op::Apply { client, view }));
                (0..50).for_each(|_| fleet.run(Op::Answer { client }));
                fleet.check();
            }
        }
        for (wait, _) in fleet.waits.clone() {
            prop_assert!(fleet.acks.look(wait, fleet.now).expect("it waits").satisfied);
            fleet.acks.forget(wait);
        }
        for client in 0..CLIENTS {
            prop_assert!(fleet.clients[client].stream.is_none_or(|it| !fleet.acks.asking(it, u64::MAX)), "nobody waits");
            fleet.run(Op::Vanish { client });
        }
        let wait = fleet.acks.wait(&key(), 1.0, touching(1));
        fleet.acks.look(wait, fleet.now + GRACE);
        fleet.acks.forget(wait);
        prop_assert!(fleet.acks.is_empty(), "all is forgotten");
    }
}
