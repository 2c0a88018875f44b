//! All views of a stream against a registry that says what it likes: true things, false things, and nonsense; on streams that
//! come and go, while views are followed and dropped.

use proptest::{collection::vec, prelude::*};
use registry_proto::v1::{self, subscribe_response::Response};

use super::fuzzing::{Checked, Step};
use crate::view::{
    fuzzing::LIMITS,
    samples::{any_change, instance, wire_digest},
    wire,
};

/// What happens next; what is true of a view is worked out when it happens.
#[derive(Clone, Debug)]
enum Action {
    Step(Step),
    /// The whole view, of so many instances, in an epoch, after so many revisions.
    Snapshot {
        view: u32,
        epoch: char,
        instances: u64,
        ahead: u64,
    },
    /// One instance comes or changes, and another goes.
    Delta {
        view: u32,
        put: u64,
        remove: u64,
        ahead: u64,
    },
    /// The first parts of a large snapshot.
    Parts {
        view: u32,
        parts: u32,
        size: usize,
    },
}

fn heard(view_id: u32, response: Response) -> Step {
    Step::Heard(v1::SubscribeResponse { view_id, response: Some(response) })
}

fn any_response() -> impl Strategy<Value = Response> {
    let number = || prop_oneof![0..20_u64, Just(u64::MAX)];
    let seconds = prop_oneof![Just(i64::MIN), Just(-1), 0..100_i64, Just(i64::MAX)];
    let duration = (seconds, prop_oneof![Just(i32::MIN), Just(0), Just(i32::MAX)])
        .prop_map(|(seconds, nanos)| Some(prost_types::Duration { seconds, nanos }));
    let reason = prop_oneof![Just("REPLICA_BEHIND"), Just(""), Just("?")];
    prop_oneof![
        4 => any_change().prop_map(Response::Change),
        1 => ("[efg]?", number(), any::<bool>())
            .prop_map(|(epoch, revision, ack_requested)| Response::Bookmark(v1::Bookmark { epoch, revision, ack_requested })),
        1 => (any::<i32>(), reason, duration.clone()).prop_map(|(code, reason, retry_after)| {
            Response::ViewError(v1::ViewError { code, reason: reason.to_owned(), retry_after, ..Default::default() })
        }),
        1 => duration.prop_map(|delay| Response::GoAway(v1::GoAway { delay })),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let view = || prop_oneof![9 => 1..6_u32, 1 => Just(0), 1 => Just(u32::MAX)];
    let epoch = prop_oneof![Just('e'), Just('f')];
    prop_oneof![
        4 => (view(), any_response()).prop_map(|(view, response)| Action::Step(heard(view, response))),
        1 => view().prop_map(|view_id| Action::Step(Step::Heard(v1::SubscribeResponse { view_id, response: None }))),
        4 => (view(), epoch, 0..4_u64, 0..3_u64)
            .prop_map(|(view, epoch, instances, ahead)| Action::Snapshot { view, epoch, instances, ahead }),
        6 => (view(), 0..5_u64, 0..5_u64, 0..3_u64)
            .prop_map(|(view, put, remove, ahead)| Action::Delta { view, put, remove, ahead }),
        2 => (view(), 1..6_u32, 0..4_000_usize).prop_map(|(view, parts, size)| Action::Parts { view, parts, size }),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(key, restored)| Action::Step(Step::Follow(key, restored))),
        1 => any::<u8>().prop_map(|key| Action::Step(Step::Drop(key))),
        2 => Just(Action::Step(Step::Send)),
        1 => Just(Action::Step(Step::Disconnect)),
        1 => Just(Action::Step(Step::Begin)),
        1 => prop_oneof![Just(10), Just(2_000), Just(40_000)].prop_map(|millis| Action::Step(Step::Wait(millis))),
    ]
}

/// What a change says if all of this is the view.
fn whole(all: &[v1::Instance]) -> v1::Change {
    let service_instances = u32::try_from(all.len()).expect("small");
    v1::Change { digest: wire_digest(all), service_instances, exists: true, ..v1::Change::default() }
}

fn run(views: &mut Checked, action: Action) {
    match action {
        Action::Step(step) => views.step(step),
        Action::Snapshot { view, epoch, instances, ahead } => {
            let known = views.known(view).and_then(|(cursor, _)| cursor).map_or(0, |cursor| cursor.revision);
            let revision = known.saturating_add(ahead);
            let all: Vec<_> = (0..instances).map(|n| instance(&format!("i{n}"), 1, 1, 1 + n)).collect();
            let kind = v1::ChangeKind::Snapshot.into();
            let change = v1::Change { kind, epoch: epoch.into(), revision, all: all.clone(), ..whole(&all) };
            views.step(heard(view, Response::Change(change)));
        }
        Action::Delta { view, put, remove, ahead } => {
            let Some((Some(cursor), known)) = views.known(view) else { return };
            let revision = cursor.revision.saturating_add(ahead);
            let mut all: Vec<_> = known.iter().map(|instance| wire::to_wire(instance)).collect();
            let (put, remove) = (format!("i{put}"), format!("i{remove}"));
            all.retain(|instance| instance.id != put && instance.id != remove);
            let removed = vec![v1::Removed { id: remove.clone(), create_revision: u64::MAX }];
            let added = vec![instance(&put, 2, revision, revision)];
            if put != remove {
                all.extend(added.clone());
            }
            let change = v1::Change {
                kind: v1::ChangeKind::Delta.into(),
                epoch: cursor.epoch.to_string(),
                previous_revision: cursor.revision,
                revision,
                added: if put == remove { Vec::new() } else { added },
                removed,
                ..whole(&all)
            };
            views.step(heard(view, Response::Change(change)));
        }
        Action::Parts { view, parts, size } => {
            for part in 0..parts {
                let mut large = instance(&format!("i{part}"), 1, 1, 1);
                large.tags.insert("k".to_owned(), "v".repeat(size));
                let kind = v1::ChangeKind::Snapshot.into();
                let change =
                    v1::Change { kind, part, last_part: 9, all: vec![large], ..v1::Change::default() };
                views.step(heard(view, Response::Change(change)));
            }
        }
    }
}

proptest! {
    #[test]
    fn whatever_a_registry_says_nothing_panics_or_is_emptied_or_grows(actions in vec(action(), 1..80)) {
        let mut views = Checked::new();
        for key in 0..4 {
            views.step(Step::Follow(key, key == 2));
        }
        views.step(Step::Send);
        for action in actions {
            run(&mut views, action);
        }
    }
}

fn part(view: u32, part: u32) -> Step {
    let mut large = instance(&format!("i{part}"), 1, 1, 1);
    large.tags.insert("k".to_owned(), "v".repeat(LIMITS.bytes / 8));
    let kind = v1::ChangeKind::Snapshot.into();
    let change = v1::Change {
        kind,
        epoch: "e".to_owned(),
        part,
        last_part: 4,
        all: vec![large],
        ..v1::Change::default()
    };
    heard(view, Response::Change(change))
}

#[test]
fn of_views_that_are_half_received_the_largest_starts_over_and_the_others_go_on() {
    let mut views = Checked::new();
    for key in 0..3 {
        views.step(Step::Follow(key, false));
    }
    views.step(Step::Send);
    for (view, parts) in [(1, 0..2), (2, 0..4), (3, 0..1)] {
        for number in parts {
            views.step(part(view, number));
        }
    }
    // Two, four and one eighths and a little: now it is too much, and the second has most.
    views.step(part(1, 2));
    assert_eq!((views.pending(2), views.resyncs()), (0, 1));
    assert!(views.pending(1) > 0 && views.pending(3) > 0);
}

#[test]
fn a_registry_that_empties_a_view_and_fills_it_again_in_ever_new_epochs_leaves_no_deadlines_behind() {
    let mut views = Checked::new();
    views.step(Step::Follow(0, false));
    views.step(Step::Send);
    for n in 0..1_000_u64 {
        let all: Vec<_> = if n % 2 == 0 { vec![instance("a", 1, 1, 1)] } else { Vec::new() };
        let kind = v1::ChangeKind::Snapshot.into();
        let change =
            v1::Change { kind, epoch: format!("e{n}"), revision: n, all: all.clone(), ..whole(&all) };
        views.step(heard(1, Response::Change(change)));
        views.step(Step::Wait(1));
    }
}
