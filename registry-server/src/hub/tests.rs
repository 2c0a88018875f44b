//! The watchers' promises, held against random histories and random readers.

use std::{collections::BTreeMap, time::Duration};

use proptest::{collection::vec, prelude::*};
use prost::Message;
use registry_proto::{digest, v1};

use super::*;
use crate::core::{Cause, Command, Committed, Core, LeaseId, Now, Registrant, Settings, Spec, Status};

/// A core with a hub on top, written to by one hand.
struct World {
    core: Core,
    hub: Hub,
    revision: Revision,
    wall: u64,
}

impl World {
    fn new(settings: HubSettings) -> Self {
        let core = Core::new(Settings::default());
        let hub = Hub::new("e", core.state(), 0, settings);
        Self { core, hub, revision: 0, wall: 1_000 }
    }

    fn write(&mut self, commands: impl IntoIterator<Item = Command>) {
        let now = Now { mono: self.wall, wall: self.wall };
        let mut changes = Vec::new();
        for command in commands {
            let proposal = self.core.decide(now, &command).expect("an accepted command");
            if !proposal.record.events.is_empty() {
                // Revisions may skip.
                self.revision += 1 + self.revision % 3;
                let committed = Committed { revision: self.revision, record: proposal.record };
                changes.extend(self.core.evolve(now, &committed));
            }
        }
        self.hub.publish(&changes, self.core.state().revision());
    }

    fn truth(&self, key: &ServiceKey, selector: &Selector) -> BTreeMap<String, u64> {
        let service = self.core.state().service(key);
        let instances = service.into_iter().flat_map(|service| service.instances.values());
        instances.filter(|it| selector.matches(it)).map(|it| (it.id.to_string(), it.mod_revision)).collect()
    }
}

/// A watcher by the book: the acceptance rule, parts, digests, and nothing of the server's code.
#[derive(Default)]
struct Reader {
    view: BTreeMap<String, v1::Instance>,
    cursor: Revision,
    parts: Vec<v1::Change>,
    resets: Vec<v1::ResetReason>,
    deltas: usize,
}

impl Reader {
    fn take(&mut self, step: &Step) {
        let message = step.part.as_message();
        assert!(message.len() < 1 << 20, "a message of {} bytes", message.len());
        let change = v1::Change::decode(message).expect("a change");
        if change.part == 0 {
            self.parts.clear();
        }
        assert_eq!(self.parts.len(), change.part as usize, "parts come in order");
        let last = change.part == change.last_part;
        let kind = change.kind();
        self.parts.push(change);
        if !last {
            return;
        }
        let parts = std::mem::take(&mut self.parts);
        let change = parts.last().expect("at least one part");
        match kind {
            v1::ChangeKind::Snapshot => {
                self.resets.push(step.reset_reason.expect("a snapshot says why"));
                self.view.clear();
                self.fill(parts.iter().flat_map(|part| &part.all));
            }
            v1::ChangeKind::Delta => {
                assert!(
                    change.previous_revision <= self.cursor && self.cursor < change.revision,
                    "W1/W2: cursor {} and a delta of [{}, {})",
                    self.cursor,
                    change.previous_revision,
                    change.revision
                );
                self.deltas += 1;
                for part in &parts {
                    for gone in &part.removed {
                        let was = self.view.remove(&gone.id).expect("W2: only what was there leaves");
                        assert_eq!(was.create_revision, gone.create_revision);
                    }
                    part.added
                        .iter()
                        .for_each(|it| assert!(!self.view.contains_key(&it.id), "W2: added twice"));
                    part.updated
                        .iter()
                        .for_each(|it| assert!(self.view.contains_key(&it.id), "W2: updated unseen"));
                }
                self.fill(parts.iter().flat_map(|part| part.added.iter().chain(&part.updated)));
                if parts.iter().any(|part| !part.all.is_empty()) {
                    let all: BTreeMap<_, _> = parts
                        .iter()
                        .flat_map(|part| &part.all)
                        .map(|it| (it.id.clone(), it.clone()))
                        .collect();
                    assert_eq!(all, self.view, "include_all tells the same as the delta");
                }
            }
            other => panic!("{other:?} is not for a view"),
        }
        self.cursor = change.revision;
        let sum = self
            .view
            .values()
            .fold(0u64, |sum, it| sum.wrapping_add(digest::of(&it.id, it.create_revision, it.mod_revision)));
        assert_eq!(sum, change.digest, "W8");
    }

    fn fill<'a>(&mut self, instances: impl Iterator<Item = &'a v1::Instance>) {
        self.view.extend(instances.map(|it| (it.id.clone(), it.clone())));
    }

    fn drain(&mut self, cursor: &mut Cursor) {
        while let Some(step) = cursor.next_step() {
            self.take(&step);
        }
    }

    fn seen(&self) -> BTreeMap<String, u64> {
        self.view.iter().map(|(id, it)| (id.clone(), it.mod_revision)).collect()
    }
}

fn key(service: &str) -> ServiceKey {
    ServiceKey { namespace: "n".into(), service: service.into() }
}

fn register(service: &str, id: usize, lease: u8, weight: u16, zone: &str) -> Command {
    let spec = Spec {
        address: "127.0.0.1:1".into(),
        weight,
        tags: BTreeMap::new().into(),
        region: "".into(),
        zone: zone.into(),
        status: Status::Up,
    };
    Command::Register {
        lease: LeaseId([lease; 16]),
        registrant: Registrant { uid: format!("r{lease}").into(), generation: 1 },
        ttl: 15_000,
        instances: vec![(key(service), format!("i{id}").into(), Arc::new(spec))],
    }
}

fn remove(service: &str, id: usize) -> Command {
    let instances = vec![(key(service), format!("i{id}").into(), 0)];
    Command::Deregister { lease: None, instances, actor: "".into() }
}

fn in_zone(zone: &str) -> Selector {
    Selector::new(BTreeMap::new(), zone, [])
}

fn open(world: &World, selector: &Selector, start: &Start) -> (Cursor, Arc<Signal>) {
    let signal = Signal::new();
    let cursor = world.hub.watch(&key("s"), selector, false, start, &signal, 7).expect("a view");
    (cursor, signal)
}

fn resume(cursor: Revision) -> Start {
    Start::Resume { epoch: "e".to_owned(), revision: cursor }
}

fn small_log(count: usize) -> HubSettings {
    HubSettings { log: LogLimits { count, ..LogLimits::default() }, ..HubSettings::default() }
}

#[derive(Clone, Debug)]
enum Action {
    Register(usize, u8, u16, bool),
    Remove(usize),
    Publish,
    Read(usize, usize),
    Reopen(usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (0..6usize, 0..2u8, 0..3u16, any::<bool>()).prop_map(|(i, l, w, z)| Action::Register(i, l, w, z)),
        3 => (0..6usize).prop_map(Action::Remove),
        3 => Just(Action::Publish),
        5 => (0..6usize, 1..4usize).prop_map(|(reader, steps)| Action::Read(reader, steps)),
        1 => (0..6usize).prop_map(Action::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// W1, W2, W4, W5, W6, W8, W9: whatever is written, however slowly and with whatever breaks it is read, through
    /// whatever selector, and however little history is kept.
    #[test]
    fn every_reader_ends_at_the_truth(actions in vec(action(), 1..80), count in 1..12usize) {
        let mut world = World::new(small_log(count));
        // Some of them share a view, and so its deltas.
        let all = Selector::default;
        let selectors = [all(), in_zone("a"), in_zone("b"), all(), all(), in_zone("a")];
        let mut readers: Vec<_> = selectors.iter().enumerate().map(|(index, selector)| {
            let signal = Signal::new();
            let cursor = world.hub.watch(&key("s"), selector, index == 3, &Start::Fresh, &signal, 0).expect("a view");
            (Reader::default(), cursor, signal)
        }).collect();
        let mut waiting = Vec::new();
        for action in actions {
            match action {
                Action::Register(id, lease, weight, zone) => {
                    waiting.push(register("s", id, lease, weight, if zone { "a" } else { "b" }));
                    // One group holds nothing that conflicts: write it by itself.
                    world.write(waiting.drain(..));
                }
                Action::Remove(id) => world.write([remove("s", id)]),
                Action::Publish => { world.wall += 700; world.write([register("other", 1, 9, (world.revision % 100) as u16, "")]); }
                Action::Read(reader, steps) => {
                    let (reader, cursor, _) = &mut readers[reader];
                    for _ in 0..steps {
                        if let Some(step) = cursor.next_step() { reader.take(&step); }
                    }
                }
                Action::Reopen(index) => {
                    let (reader, cursor, signal) = &mut readers[index];
                    reader.parts.clear();
                    let start = resume(reader.cursor);
                    *cursor = world.hub.watch(&key("s"), &selectors[index], index == 3, &start, signal, 0).expect("a view");
                }
            }
        }
        for ((reader, cursor, signal), selector) in readers.iter_mut().zip(&selectors) {
            reader.drain(cursor);
            prop_assert_eq!(reader.seen(), world.truth(&key("s"), selector));
            while signal.take().is_some() {}
            prop_assert!(cursor.next_step().is_none());
        }
    }

    /// What is read at once is what is watched.
    #[test]
    fn a_reading_shows_the_head(actions in vec(action(), 1..40)) {
        let mut world = World::new(HubSettings::default());
        for action in actions {
            match action {
                Action::Register(id, lease, weight, zone) => world.write([register("s", id, lease, weight, if zone { "a" } else { "b" })]),
                Action::Remove(id) => world.write([remove("s", id)]),
                _ => continue,
            }
            for selector in [Selector::default(), in_zone("a")] {
                let page = world.hub.read(&key("s"), &selector);
                let mut reader = Reader::default();
                page.parts.iter().for_each(|part| reader.take(&Step { part: part.clone(), revision: 0, reset_reason: Some(v1::ResetReason::Initial) }));
                prop_assert_eq!(reader.seen(), world.truth(&key("s"), &selector));
                prop_assert_eq!(page.revision, world.hub.head());
            }
        }
    }
}

#[test]
fn a_change_is_encoded_once_for_all_watchers() {
    let mut world = World::new(HubSettings::default());
    let mut watchers: Vec<_> = (0..100).map(|_| open(&world, &Selector::default(), &Start::Fresh)).collect();
    for (cursor, _) in &mut watchers {
        Reader::default().drain(cursor);
    }
    world.write([register("s", 1, 1, 1, "")]);
    let sent: Vec<_> = watchers
        .iter_mut()
        .map(|(cursor, _)| cursor.next_step().expect("a delta").part.as_message())
        .collect();
    assert!(
        sent.windows(2).all(|pair| pair[0].as_ptr() == pair[1].as_ptr()),
        "the same bytes, not equal ones"
    );
}

#[test]
fn a_slow_watcher_gets_the_net_effect_in_one_delta() {
    let mut world = World::new(HubSettings::default());
    let (mut cursor, _) = open(&world, &Selector::default(), &Start::Fresh);
    let mut reader = Reader::default();
    reader.drain(&mut cursor);
    for weight in 0..50 {
        world.write([register("s", 1, 1, weight, "")]);
        world.write([register("s", 2, 1, weight, "")]);
    }
    world.write([remove("s", 2)]);
    let before = reader.deltas;
    reader.drain(&mut cursor);
    assert_eq!(reader.deltas - before, 1);
    assert_eq!(reader.view.keys().collect::<Vec<_>>(), ["i1"]);
}

#[test]
fn a_coalesced_delta_without_net_effect_is_still_sent() {
    let mut world = World::new(HubSettings::default());
    let (mut cursor, _) = open(&world, &Selector::default(), &Start::Fresh);
    let mut reader = Reader::default();
    reader.drain(&mut cursor);
    world.write([register("s", 1, 1, 1, "")]);
    world.write([remove("s", 1)]);
    reader.drain(&mut cursor);
    assert_eq!((reader.deltas, reader.cursor), (1, world.hub.head()));
}

#[test]
fn slow_watchers_hold_no_memory_but_the_bounded_log() {
    // etcd #16839, nacos #11637: a watcher that does not read must not make the server keep what it did not read.
    let mut world = World::new(small_log(10));
    let (mut cursor, signal) = open(&world, &Selector::default(), &Start::Fresh);
    let mut reader = Reader::default();
    reader.drain(&mut cursor);
    while signal.take().is_some() {}
    for weight in 0..1_000 {
        world.write([register("s", 1, 1, weight, "")]);
    }
    let marks = std::iter::from_fn(|| signal.take()).count();
    assert_eq!(marks, 1, "a mark, however much happened");
    assert_eq!(lock(&world.hub.inner.publisher).log.len(), 10);
    reader.drain(&mut cursor);
    assert_eq!(reader.resets, [v1::ResetReason::Initial, v1::ResetReason::Lagged]);
    assert_eq!(reader.seen(), world.truth(&key("s"), &Selector::default()));
}

#[test]
fn w10_not_one_copy_of_a_change_is_kept_beyond_the_bounded_log() {
    const LOG: usize = 10;
    let mut world = World::new(small_log(LOG));
    let mut watchers: Vec<_> = (0..50).map(|_| open(&world, &Selector::default(), &Start::Fresh)).collect();
    for (cursor, _) in &mut watchers {
        Reader::default().drain(cursor);
    }
    let (mut published, mut sent) = (Vec::new(), Vec::new());
    for weight in 0..1_000 {
        world.write([register("s", 1, 1, weight, "")]);
        let service = world.core.state().service(&key("s")).expect("it is registered");
        published.extend(service.instances.values().map(Arc::downgrade));
        // One reads everything; all the others nothing.
        let (reader, _) = &mut watchers[0];
        while let Some(step) = reader.next_step() {
            sent.push(step.part.as_message());
        }
    }
    assert_eq!((published.len(), sent.len()), (1_000, 1_000));
    let instances = published.iter().filter(|instance| instance.strong_count() > 0).count();
    let encodings = sent.iter().filter(|message| !message.is_unique()).count();
    // Each change in the log holds the instance before it and after it; the snapshots hold one each.
    assert!(instances <= LOG + 4, "W10 bounded: {instances} of 1,000 instances are kept");
    assert!(encodings <= LOG, "W10 bounded: {encodings} of 1,000 encodings are kept");
}

#[test]
fn a_reader_of_an_old_snapshot_starts_over_and_pins_nothing() {
    let mut world = World::new(small_log(1));
    let fill = |world: &mut World, weight: u16| {
        (0..900).for_each(|id| world.write([register("s", id, 1, weight, &"z".repeat(250))]));
    };
    fill(&mut world, 1);
    let (mut slow, _) = open(&world, &Selector::default(), &Start::Fresh);
    let mut reader = Reader::default();
    reader.take(&slow.next_step().expect("the first of several parts"));
    assert!(!reader.parts.is_empty(), "the snapshot has more than one part");
    for weight in 2..5 {
        world.wall += 2_000;
        fill(&mut world, weight);
        // Others join and make new generations.
        Reader::default().drain(&mut open(&world, &Selector::default(), &Start::Fresh).0);
    }
    reader.drain(&mut slow);
    assert_eq!(reader.resets, [v1::ResetReason::SnapshotReplaced]);
    assert_eq!(reader.seen(), world.truth(&key("s"), &Selector::default()));
}

#[test]
fn joiners_share_a_snapshot_even_while_the_service_changes() {
    let mut world = World::new(HubSettings::default());
    world.write([register("s", 1, 1, 1, "")]);
    let (mut first, _) = open(&world, &Selector::default(), &Start::Fresh);
    let one = first.next_step().expect("a snapshot");
    world.write([register("s", 1, 1, 2, "")]);
    let (mut second, _) = open(&world, &Selector::default(), &Start::Fresh);
    let two = second.next_step().expect("the same snapshot");
    assert_eq!(one.part.as_message().as_ptr(), two.part.as_message().as_ptr());
    let mut reader = Reader::default();
    reader.take(&two);
    reader.drain(&mut second);
    assert_eq!(reader.seen(), world.truth(&key("s"), &Selector::default()), "a delta brings it up to date");
}

#[test]
fn resume_reasons() {
    let mut world = World::new(small_log(2));
    world.write([register("s", 1, 1, 1, "")]);
    let past = world.hub.head();
    (2..6).for_each(|weight| world.write([register("s", 1, 1, weight, "")]));
    let reason = |world: &World, start: &Start| {
        open(world, &Selector::default(), start).0.next_step().and_then(|step| step.reset_reason)
    };
    assert_eq!(reason(&world, &Start::Fresh), Some(v1::ResetReason::Initial));
    assert_eq!(reason(&world, &Start::Forced), Some(v1::ResetReason::Requested));
    let other = Start::Resume { epoch: "other".to_owned(), revision: past };
    assert_eq!(reason(&world, &other), Some(v1::ResetReason::EpochChanged));
    assert_eq!(reason(&world, &resume(past)), Some(v1::ResetReason::HistoryGone));
    let (mut current, _) = open(&world, &Selector::default(), &resume(world.hub.head()));
    assert_eq!(current.next_step(), None, "W5: a cursor at the last change is current and gets no snapshot");
}

#[test]
fn a_removed_service_is_remembered_and_then_forgotten_honestly() {
    let settings = HubSettings { remembered_services: 2, ..small_log(1) };
    let mut world = World::new(settings);
    world.write([register("s", 1, 1, 1, "")]);
    let before = world.hub.head();
    world.write([remove("s", 1)]);
    let after = world.hub.head();
    let opened = |world: &World, at| {
        open(world, &Selector::default(), &resume(at)).0.next_step().and_then(|step| step.reset_reason)
    };
    assert_eq!(opened(&world, after), None, "remembered: current");
    for other in ["a", "b", "c"] {
        world.write([register(other, 1, 1, 1, "")]);
        world.write([remove(other, 1)]);
    }
    assert_eq!(
        opened(&world, before),
        Some(v1::ResetReason::HistoryGone),
        "forgotten: never silently skipped"
    );
    let (mut fresh, _) = open(&world, &Selector::default(), &Start::Fresh);
    let change =
        v1::Change::decode(fresh.next_step().expect("a snapshot").part.as_message()).expect("a change");
    assert!(!change.exists && change.all.is_empty());
}

#[test]
fn a_change_marks_views_in_the_order_in_which_they_were_made() {
    let mut world = World::new(HubSettings::default());
    let signal = Signal::new();
    let statuses = [
        vec![Status::Up],
        vec![Status::Up, Status::Draining],
        vec![Status::Up, Status::Down],
        vec![Status::Up, Status::Draining, Status::Down],
    ];
    let both =
        |statuses: &Vec<Status>| ["", "1"].map(|zone| Selector::new(BTreeMap::new(), zone, statuses.clone()));
    let mut cursors = Vec::new();
    for (slot, selector) in (0..).zip(statuses.iter().flat_map(both)) {
        let watched = world.hub.watch(&key("s"), &selector, false, &Start::Fresh, &signal, slot);
        cursors.push(watched.expect("few views are open"));
    }
    for cursor in &mut cursors {
        Reader::default().drain(cursor);
    }
    while signal.take().is_some() {}
    world.write([register("s", 1, 1, 1, "1")]);
    let marked: Vec<u32> = std::iter::from_fn(|| signal.take()).collect();
    assert_eq!(marked, (0..8).collect::<Vec<_>>(), "what a stream sends first is no chance");
}

#[test]
fn views_are_counted_and_go_with_their_last_watcher() {
    let world = World::new(HubSettings { max_views_per_service: 2, ..HubSettings::default() });
    let one = open(&world, &in_zone("1"), &Start::Fresh);
    let two = open(&world, &in_zone("2"), &Start::Fresh);
    let again = open(&world, &in_zone("2"), &Start::Fresh);
    let signal = Signal::new();
    let third = world.hub.watch(&key("s"), &in_zone("3"), false, &Start::Fresh, &signal, 0);
    assert!(matches!(third, Err(ViewRefused::TooManyViews { limit: 2, .. })));
    drop(two);
    assert!(
        world.hub.watch(&key("s"), &in_zone("3"), false, &Start::Fresh, &signal, 0).is_err(),
        "one is left"
    );
    drop(again);
    assert!(world.hub.watch(&key("s"), &in_zone("3"), false, &Start::Fresh, &signal, 0).is_ok());
    let third = world.hub.watch(&key("s"), &in_zone("3"), false, &Start::Fresh, &signal, 0);
    let whole = world.hub.watch(&key("s"), &Selector::default(), false, &Start::Fresh, &signal, 0);
    assert!(whole.is_ok(), "whoever wants the whole service is never refused for what others select");
    drop((one, third, whole));
    assert_eq!(world.hub.feeds(), 0, "a service that nobody registered or watches leaves nothing behind");
}

#[test]
fn d2_a_first_registration_is_not_lost_to_a_reader_who_drops_the_feed() {
    let mut world = World::new(HubSettings::default());
    // As the publisher finds it, before it takes the change in.
    let found = world.hub.feed(&key("s"));
    assert_eq!(world.hub.read(&key("s"), &Selector::default()).parts.len(), 1);
    assert_eq!(world.hub.feeds(), 0, "the reader leaves nothing behind");
    let before = world.core.state().clone();
    world.write([register("s", 1, 1, 1, "")]);
    let committed = Committed { revision: 1, record: decide_record(&before, &register("s", 1, 1, 1, "")) };
    let change = before.clone().evolve(&committed).pop().expect("a change");
    assert!(found.publish(&change).is_none(), "a dropped feed takes nothing in: the publisher looks again");
    let mut reader = Reader::default();
    reader.drain(&mut open(&world, &Selector::default(), &Start::Fresh).0);
    assert_eq!(reader.seen().len(), 1);
}

fn decide_record(state: &State, command: &Command) -> crate::core::Record {
    crate::core::decide(state, &Settings::default(), Now { mono: 0, wall: 0 }, command)
        .expect("accepted")
        .record
}

#[test]
fn w5_a_service_that_came_and_went_twice_is_not_forgotten_at_its_first_end() {
    let mut world = World::new(HubSettings { remembered_services: 2, ..small_log(1) });
    world.write([register("s", 1, 1, 1, "")]);
    world.write([remove("s", 1)]);
    world.write([register("s", 1, 1, 1, "")]);
    let holding = world.hub.head();
    world.write([remove("s", 1)]);
    for other in ["a", "b", "c"] {
        world.write([register(other, 1, 1, 1, "")]);
        world.write([remove(other, 1)]);
        let (mut cursor, _) = open(&world, &Selector::default(), &resume(holding));
        let reason = cursor.next_step().and_then(|step| step.reset_reason);
        assert_eq!(reason, Some(v1::ResetReason::HistoryGone), "its second end is never silently skipped");
    }
}

#[test]
fn w9_who_selects_nothing_learns_whether_there_is_a_service() {
    let told = |cursor: &mut Cursor| {
        let step = std::iter::from_fn(|| cursor.next_step()).last().expect("something to say");
        let change = v1::Change::decode(step.part.as_message()).expect("a change");
        assert!(change.all.is_empty() && change.added.is_empty() && change.removed.is_empty());
        (change.exists, change.service_instances)
    };
    let mut world = World::new(HubSettings::default());
    let (mut early, _) = open(&world, &in_zone("x"), &Start::Fresh);
    assert_eq!(told(&mut early), (false, 0));
    let joiner = |world: &World| told(&mut open(world, &in_zone("x"), &Start::Fresh).0);
    world.write([register("s", 1, 1, 1, "y")]);
    assert_eq!((told(&mut early), joiner(&world)), ((true, 1), (true, 1)));
    world.write([remove("s", 1)]);
    assert_eq!((told(&mut early), joiner(&world)), ((true, 0), (true, 0)));
    world.write([register("s", 1, 1, 1, "y")]);
    world.write([register("s", 2, 1, 1, "y")]);
    assert_eq!((told(&mut early), joiner(&world)), ((true, 2), (true, 2)));
    world.write([register("s", 3, 1, 1, "y")]);
    assert_eq!(early.next_step(), None, "what changes nothing for it is not sent");
}

#[test]
fn a_slow_reader_of_a_large_delta_is_not_pushed_out_by_small_ones() {
    // etcd #17529: a slow watcher that starts over for ever is starved.
    let mut world = World::new(HubSettings::default());
    let all = Selector::default();
    let ((mut slow, _), (mut fast, _)) =
        (open(&world, &all, &Start::Fresh), open(&world, &all, &Start::Fresh));
    let (mut slow_reader, mut fast_reader) = (Reader::default(), Reader::default());
    slow_reader.drain(&mut slow);
    fast_reader.drain(&mut fast);
    (0..900).for_each(|id| world.write([register("s", id, 1, 1, &"z".repeat(250))]));
    fast_reader.drain(&mut fast);
    let part = |step: &Step| v1::Change::decode(step.part.as_message()).expect("a change").part;
    for expected in 0..3 {
        let step = slow.next_step().expect("a part");
        assert_eq!(part(&step), expected);
        slow_reader.take(&step);
        for weight in 0..20 {
            world.write([register("s", 1, 1, weight, "")]);
            fast_reader.drain(&mut fast);
        }
    }
    slow_reader.drain(&mut slow);
    assert_eq!(slow_reader.seen(), world.truth(&key("s"), &all));
}

#[test]
fn a_page_token_is_good_for_its_own_reading_only() {
    let mut world = World::new(HubSettings::default());
    (0..6_000).for_each(|id| world.write([register("s", id, 1, 1, &"z".repeat(250))]));
    let all = Selector::default();
    let token = world.hub.read(&key("s"), &all).next.expect("more than one page");
    assert!(world.hub.read_on(&key("s"), &all, token).is_some());
    assert!(world.hub.read_on(&key("s"), &in_zone("z"), token).is_none(), "another selection");
    assert!(world.hub.read_on(&key("other"), &all, token).is_none(), "another service");
    let restarted = Hub::new("e", world.core.state(), 1, HubSettings::default());
    assert!(restarted.read(&key("s"), &all).next.is_some());
    assert!(restarted.read_on(&key("s"), &all, token).is_none(), "another run of the server");
}

#[test]
fn a_reading_is_encoded_once_until_its_service_changes() {
    let mut world = World::new(HubSettings::default());
    world.write([register("s", 1, 1, 1, "")]);
    let bytes = |page: &ReadPage| page.parts[0].as_message().as_ptr();
    let first = world.hub.read(&key("s"), &Selector::default());
    world.write([register("other", 1, 9, 1, "")]);
    let second = world.hub.read(&key("s"), &Selector::default());
    assert_eq!(bytes(&first), bytes(&second), "nothing happened to this service");
    assert!(second.revision > first.revision, "D2: it shows what was written before it began");
    world.write([register("s", 1, 1, 2, "")]);
    let third = world.hub.read(&key("s"), &Selector::default());
    assert_ne!(bytes(&second), bytes(&third));
}

#[test]
fn pages_of_one_reading_show_one_revision_until_they_expire() {
    let mut world = World::new(HubSettings::default());
    let big = "z".repeat(250);
    (0..6_000).for_each(|id| world.write([register("s", id, 1, 1, &big)]));
    let first = world.hub.read(&key("s"), &Selector::default());
    let token = first.next.expect("more than one page");
    world.write([register("s", 1, 1, 2, "")]);
    let mut reader = Reader::default();
    let mut take = |page: &ReadPage| {
        let bytes: usize = page.parts.iter().map(|part| part.as_field().len()).sum();
        assert!(bytes < 1 << 20);
        page.parts.iter().for_each(|part| {
            reader.take(&Step {
                part: part.clone(),
                revision: 0,
                reset_reason: Some(v1::ResetReason::Initial),
            });
        });
    };
    take(&first);
    let mut next = Some(token);
    while let Some(token) = next {
        let page = world.hub.read_on(&key("s"), &Selector::default(), token).expect("still kept");
        take(&page);
        next = page.next;
    }
    assert_eq!((reader.view.len(), reader.view["i1"].weight), (6_000, Some(1)));
    for weight in 3..9 {
        world.write([register("s", 1, 1, weight, "")]);
        world.hub.read(&key("s"), &Selector::default());
    }
    assert!(world.hub.read_on(&key("s"), &Selector::default(), token).is_none(), "too many readings since");
}

#[test]
fn the_log_is_bounded_by_age_and_bytes_too() {
    let limits = LogLimits { age: Duration::from_secs(10), bytes: 2_000, ..LogLimits::default() };
    let mut world = World::new(HubSettings { log: limits, ..HubSettings::default() });
    (0..100).for_each(|weight| world.write([register("s", 1, 1, weight, "")]));
    let kept = lock(&world.hub.inner.publisher).log.len();
    assert!((2..40).contains(&kept), "{kept} changes in 2,000 bytes");
    world.wall += 60_000;
    world.write([register("s", 1, 1, 1_000, "")]);
    assert_eq!(lock(&world.hub.inner.publisher).log.len(), 1, "all the others are too old");
}

#[test]
fn why_an_instance_came_and_left() {
    let mut world = World::new(HubSettings::default());
    world.write([register("s", 1, 1, 1, "")]);
    world.write([remove("s", 1)]);
    let past = world.hub.explain(&key("s"), &"i1".into());
    let causes: Vec<_> = past.events.iter().map(|event| event.cause).collect();
    assert_eq!(causes, [Cause::Deregister, Cause::Register]);
    assert!(world.hub.explain(&key("nobody"), &"i1".into()).events.is_empty());
}

#[test]
fn touched_is_the_change_that_a_view_must_have_applied() {
    let mut world = World::new(small_log(4));
    let (near, far) = (in_zone("a"), in_zone("b"));
    world.write([register("s", 1, 1, 1, "a")]);
    let first = world.revision;
    let touched =
        |world: &World, selector: &Selector, revision| world.hub.touched(&key("s"), selector, revision);
    world.write([register("s", 2, 2, 1, "b")]);
    let second = world.revision;
    assert_eq!(touched(&world, &Selector::default(), second), Some(second));
    assert_eq!(touched(&world, &far, second), Some(second));
    assert_eq!(touched(&world, &near, second), None, "of another zone");
    assert_eq!(
        touched(&world, &far, first),
        None,
        "the service was born, and yet the view had nothing of it"
    );
    // One that leaves a selection was in it before.
    world.write([register("s", 1, 1, 1, "c")]);
    assert_eq!(touched(&world, &near, world.revision), Some(world.revision));
    // A revision of another service's stands for what touched the view before.
    world.write([register("other", 1, 3, 1, "a")]);
    assert_eq!(touched(&world, &far, world.revision), Some(second));
    assert!(world.hub.is_known(&key("s"), world.revision) && !world.hub.is_known(&key("t"), world.revision));
    // What the log no longer has touched everybody, for all that is known.
    for weight in 2..6 {
        world.write([register("other", 1, 3, weight, "a")]);
    }
    assert_eq!(touched(&world, &near, second), Some(second));
    assert!(touched(&world, &far, world.revision).is_some());
}
