//! A local view against a model of what a registry would say: W2, W4 and W8 hold whatever is sent.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    fuzzing::{Checked, LIMITS},
    samples::{any_change, instance, wire_digest},
    *,
};

/// What a registry would say about one service, revision by revision.
#[derive(Clone, Debug, Default)]
struct Model {
    states: Vec<BTreeMap<String, v1::Instance>>,
}

impl Model {
    /// State `r` is the view at revision `r`; state 0 is empty.
    fn new(edits: &[(u8, Option<u32>)]) -> Self {
        let mut states = vec![BTreeMap::new()];
        for (i, (id, weight)) in edits.iter().enumerate() {
            let revision = i as u64 + 1;
            let mut state = states[i].clone();
            let id = format!("i{id}");
            match weight {
                None => {
                    state.remove(&id);
                }
                Some(weight) => {
                    let created = state.get(&id).map_or(revision, |old: &v1::Instance| old.create_revision);
                    state.insert(id.clone(), instance(&id, *weight, created, revision));
                }
            }
            states.push(state);
        }
        Self { states }
    }

    fn head(&self) -> u64 {
        self.states.len() as u64 - 1
    }

    fn at(&self, revision: u64) -> &BTreeMap<String, v1::Instance> {
        &self.states[usize::try_from(revision).expect("small")]
    }

    fn snapshot(&self, epoch: &str, revision: u64) -> v1::Change {
        let all: Vec<_> = self.at(revision).values().cloned().collect();
        let service_instances = u32::try_from(all.len()).expect("small");
        v1::Change {
            kind: v1::ChangeKind::Snapshot.into(),
            epoch: epoch.into(),
            revision,
            digest: wire_digest(&all),
            service_instances,
            exists: true,
            all,
            ..v1::Change::default()
        }
    }

    fn delta(&self, epoch: &str, from: u64, to: u64) -> v1::Change {
        let (before, after) = (self.at(from), self.at(to));
        let all: Vec<_> = after.values().cloned().collect();
        v1::Change {
            kind: v1::ChangeKind::Delta.into(),
            epoch: epoch.into(),
            previous_revision: from,
            revision: to,
            added: after.iter().filter(|(id, _)| !before.contains_key(*id)).map(|(_, i)| i.clone()).collect(),
            updated: after
                .iter()
                .filter(|(id, new)| before.get(*id).is_some_and(|old| old != *new))
                .map(|(_, i)| i.clone())
                .collect(),
            removed: before
                .iter()
                .filter(|(id, _)| !after.contains_key(*id))
                .map(|(id, i)| v1::Removed { id: id.clone(), create_revision: i.create_revision })
                .collect(),
            digest: wire_digest(&all),
            service_instances: u32::try_from(all.len()).expect("small"),
            exists: true,
            ..v1::Change::default()
        }
    }

    fn view(&self, revision: u64) -> Vec<Arc<Instance>> {
        self.at(revision).values().map(|i| Arc::new(wire::instance(i.clone()).expect("readable"))).collect()
    }
}

/// Cuts a change into `n` parts, the claims on the last one only.
fn cut(change: &v1::Change, n: u32) -> Vec<v1::Change> {
    let last_part = n - 1;
    let share = |i: usize, part: u32| i % n as usize == part as usize;
    (0..n)
        .map(|part| {
            let last = part == last_part;
            v1::Change {
                all: pick(&change.all, |i| share(i, part)),
                added: pick(&change.added, |i| share(i, part)),
                updated: pick(&change.updated, |i| share(i, part)),
                removed: pick(&change.removed, |i| share(i, part)),
                digest: if last { change.digest } else { 0 },
                service_instances: if last { change.service_instances } else { 0 },
                part,
                last_part,
                ..change.clone()
            }
        })
        .collect()
}

fn pick<T: Clone>(items: &[T], keep: impl Fn(usize) -> bool) -> Vec<T> {
    items.iter().enumerate().filter(|(i, _)| keep(*i)).map(|(_, item)| item.clone()).collect()
}

fn key() -> ViewKey {
    ViewKey { namespace: "default".into(), service: "s".into(), selector: Selector::all() }
}

fn view() -> LocalView {
    LocalView::new(key())
}

fn three() -> Model {
    Model::new(&[(1, Some(1)), (2, Some(1)), (1, Some(5)), (2, None), (1, None)])
}

#[test]
fn a_snapshot_then_deltas_with_what_changed() {
    let (model, mut view) = (three(), view());
    let change = view.apply(model.snapshot("e", 1), || 1).expect("good").expect("the first");
    assert_eq!((change.added.len(), change.all.len(), change.version), (1, 1, Some(1)));
    let change = view.apply(model.delta("e", 1, 3), || 2).expect("good").expect("a change");
    assert_eq!((change.added.len(), change.updated.len(), change.removed.len()), (1, 1, 0));
    assert_eq!(change.updated[0].weight, 5);
    let change = view.apply(model.delta("e", 3, 4), || 3).expect("good").expect("a change");
    assert_eq!(&*change.removed[0].id, "i2");
    assert_eq!(change.all.to_vec(), model.view(4));
}

#[test]
fn a_duplicate_changes_nothing_and_a_gap_asks_for_a_snapshot() {
    let (model, mut view) = (three(), view());
    view.apply(model.snapshot("e", 2), || 1).expect("good");
    assert_eq!(view.apply(model.delta("e", 1, 2), || unreachable!()), Ok(None));
    assert_eq!(view.apply(model.delta("e", 3, 4), || 2), Err(Resync::Gap { previous: 3, cursor: 2 }));
    // Until the snapshot comes, neither deltas nor bookmarks move the view: they may rest on what was missed.
    assert_eq!(view.apply(model.delta("e", 2, 3), || 2), Ok(None));
    view.bookmark("e", 5);
    assert_eq!(view.cursor().map(|c| c.revision), Some(2));
    assert_eq!(view.instances().to_vec(), model.view(2));
    view.apply(model.snapshot("e", 4), || 2).expect("good").expect("a change");
    assert!(!view.needs_snapshot());
    assert_eq!(view.instances().to_vec(), model.view(4));
}

#[test]
fn a_bookmark_lets_a_delta_from_later_on_apply() {
    let (model, mut view) = (three(), view());
    view.apply(model.snapshot("e", 1), || 1).expect("good");
    let mut delta = model.delta("e", 1, 2);
    (delta.previous_revision, delta.revision) = (10, 11);
    let mut without = LocalView::restored(key(), view.cursor().expect("set").clone(), model.view(1));
    assert!(without.apply(delta.clone(), || 2).is_err());
    view.bookmark("e", 10);
    view.bookmark("other", 99);
    assert!(view.apply(delta, || 2).expect("good").is_some());
}

#[test]
fn a_false_digest_keeps_the_last_good_view() {
    let (model, mut view) = (three(), view());
    view.apply(model.snapshot("e", 2), || 1).expect("good");
    let mut delta = model.delta("e", 2, 3);
    delta.digest ^= 1;
    assert_eq!(view.apply(delta, || 2), Err(Resync::Digest(3)));
    assert_eq!(view.instances().to_vec(), model.view(2));
    let mut snapshot = model.snapshot("e", 3);
    snapshot.digest ^= 1;
    assert_eq!(view.apply(snapshot, || 2), Err(Resync::Digest(3)));
    assert_eq!(view.instances().to_vec(), model.view(2));
}

#[test]
fn an_epoch_without_end_is_refused_by_name_and_not_kept() {
    let (model, mut view) = (three(), view());
    view.apply(model.snapshot("e", 1), || 1).expect("good");
    let long = "e".repeat(254);
    for change in [model.snapshot(&long, 2), model.delta(&long, 1, 2)] {
        let refused = view.apply(change, || 2).expect_err("too long");
        assert!(refused.to_string().contains("`epoch`") && refused.to_string().len() < 100, "{refused}");
        assert_eq!(view.instances().to_vec(), model.view(1), "C1: the last good view stays");
    }
    view.apply(model.snapshot(&long[..253], 1), || 3).expect("as long as any registry's");
}

#[test]
fn only_a_snapshot_changes_the_epoch() {
    let (model, mut view) = (three(), view());
    view.apply(model.snapshot("e", 3), || 1).expect("good");
    assert_eq!(view.apply(model.delta("f", 3, 4), || 2), Err(Resync::Epoch("f".into())));
    // A new history may be younger.
    let change = view.apply(model.snapshot("f", 1), || 2).expect("good").expect("a change");
    assert_eq!((change.updated.len(), change.removed.len()), (1, 1));
    // The same one may not.
    view.apply(model.delta("f", 1, 3), || 3).expect("good");
    assert_eq!(view.apply(model.snapshot("f", 2), || 4), Err(Resync::Older { offered: 2, known: 3 }));
}

#[test]
fn an_empty_snapshot_is_believed_only_if_everything_says_so() {
    let (model, mut view) = (three(), view());
    view.apply(model.snapshot("e", 2), || 1).expect("good");
    let empty = model.snapshot("e", 5);
    assert!(empty.all.is_empty());
    for falsely in [
        v1::Change { digest: 7, ..empty.clone() },
        v1::Change { service_instances: 2, ..empty.clone() },
        v1::Change { last_part: 1, ..empty.clone() },
    ] {
        let _ = view.apply(falsely, || 2);
        assert_eq!(view.instances().to_vec(), model.view(2));
    }
    let change = view.apply(empty, || 2).expect("good").expect("a change");
    assert_eq!((change.all.len(), change.removed.len()), (0, 2));

    // A selection may be empty although the service is not.
    let mut selected = LocalView::new(ViewKey { selector: Selector::all().zone("z"), ..key() });
    let snapshot = v1::Change { all: vec![], digest: 0, ..model.snapshot("e", 2) };
    assert!(selected.apply(snapshot, || 1).expect("good").expect("a change").all.is_empty());
}

#[test]
fn a_half_snapshot_is_replaced_by_one_that_starts_over() {
    let (model, mut view) = (three(), view());
    let old = cut(&model.snapshot("e", 2), 2);
    assert_eq!(view.apply(old[0].clone(), || 1), Ok(None));
    for part in cut(&model.snapshot("e", 3), 3) {
        let last = part.part == part.last_part;
        assert_eq!(view.apply(part, || 1).expect("good").is_some(), last);
    }
    assert_eq!(view.instances().to_vec(), model.view(3));
    assert!(matches!(view.apply(old[1].clone(), || 2), Err(Resync::Parts(_))));
    assert_eq!(view.instances().to_vec(), model.view(3));
}

#[test]
fn absurd_part_counts_are_refused() {
    let snapshot = v1::Change { last_part: u32::MAX, ..three().snapshot("e", 1) };
    assert!(matches!(view().apply(snapshot, || 1), Err(Resync::Parts(_))));
}

#[test]
fn an_instance_of_an_unknown_kind_of_address_counts_for_the_digest_only() {
    let (model, mut view) = (three(), view());
    let mut snapshot = model.snapshot("e", 2);
    snapshot.all[0].address = "vsock:3:80".into();
    assert_eq!(view.apply(snapshot, || 1).expect("good").expect("a change").all.len(), 1);
    assert!(view.apply(model.delta("e", 2, 4), || 2).expect("good").is_some());
    assert_eq!(view.instances().to_vec(), model.view(4));
}

#[test]
fn a_removal_of_an_older_incarnation_leaves_the_newer_one() {
    let (model, mut view) = (three(), view());
    view.apply(model.snapshot("e", 3), || 1).expect("good");
    let mut delta = model.delta("e", 3, 4);
    delta.removed[0].create_revision = 1;
    delta.digest = model.snapshot("e", 3).digest;
    assert_eq!(view.apply(delta, || 2), Ok(None));
    assert_eq!(view.instances().to_vec(), model.view(3));
}

/// One thing that may come over a watch.
#[derive(Clone, Debug)]
enum Step {
    /// A delta from `back` revisions before the cursor (0: from it) over `ahead` revisions.
    Delta {
        back: u64,
        ahead: u64,
        parts: u32,
    },
    /// A change that was delivered already.
    Duplicate,
    Bookmark,
    /// A snapshot `ahead` revisions on, after an interrupted one if `torn`.
    Snapshot {
        ahead: u64,
        parts: u32,
        torn: bool,
    },
    /// A new stream.
    Reset,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..3u64, 1..5u64, 1..4u32).prop_map(|(back, ahead, parts)| Step::Delta { back, ahead, parts }),
        1 => Just(Step::Duplicate),
        1 => Just(Step::Bookmark),
        1 => (0..5u64, 1..4u32, any::<bool>())
            .prop_map(|(ahead, parts, torn)| Step::Snapshot { ahead, parts, torn }),
        1 => Just(Step::Reset),
    ];
    prop::collection::vec(step, 1..40)
}

fn edits() -> impl Strategy<Value = Vec<(u8, Option<u32>)>> {
    prop::collection::vec((0..6u8, prop::option::weighted(0.7, 0..4u32)), 1..60)
}

proptest! {
    #[test]
    fn whatever_is_valid_gives_exactly_the_models_view(edits in edits(), steps in steps()) {
        let model = Model::new(&edits);
        let mut view = view();
        let mut mirror: BTreeMap<Arc<str>, Arc<Instance>> = BTreeMap::new();
        let mut version = 0;
        let mut last = None;
        view.apply(model.snapshot("e", 0), || 0).expect("good");
        for step in steps {
            let at = view.cursor().expect("set").revision;
            let messages = match step {
                Step::Delta { back, ahead, parts } => {
                    let to = (at + ahead).min(model.head());
                    if to == at { continue }
                    // It must name every id that differs from any state since where it says it starts.
                    let from = at.saturating_sub(back);
                    let mut delta = model.delta("e", at, to);
                    delta.previous_revision = from;
                    last = Some(delta.clone());
                    cut(&delta, parts)
                }
                Step::Duplicate => last.clone().into_iter().filter(|d: &v1::Change| d.revision <= at).collect(),
                Step::Bookmark => { view.bookmark("e", at); vec![] }
                Step::Snapshot { ahead, parts, torn } => {
                    let snapshot = model.snapshot("e", (at + ahead).min(model.head()));
                    let mut messages = cut(&snapshot, parts);
                    if torn { messages.insert(0, cut(&snapshot, parts.max(2))[0].clone()); }
                    messages
                }
                Step::Reset => { view.stream_reset(); vec![] }
            };
            for message in messages {
                version += 1;
                if let Some(change) = view.apply(message, || version).expect("valid") {
                    prop_assert_eq!(change.version, Some(version));
                    // The differences, applied one after the other, are the view too.
                    for gone in change.removed.iter() { prop_assert!(mirror.remove(&gone.id).is_some()); }
                    for new in change.added.iter() {
                        prop_assert!(mirror.insert(Arc::clone(&new.id), Arc::clone(new)).is_none());
                    }
                    for new in change.updated.iter() {
                        prop_assert!(mirror.insert(Arc::clone(&new.id), Arc::clone(new)).is_some());
                    }
                    prop_assert_eq!(change.all.to_vec(), mirror.values().cloned().collect::<Vec<_>>());
                }
            }
            let at = view.cursor().expect("set").revision;
            prop_assert_eq!(view.instances().to_vec(), model.view(at), "at {}", at);
        }
    }

    #[test]
    fn whatever_is_sent_nothing_panics_or_is_emptied_or_grows(messages in prop::collection::vec(any_change(), 1..40)) {
        let mut view = Checked::new();
        for message in messages {
            let _ = view.apply(message);
        }
    }
}

/// C2 before C1: what is gone is not called, although what is there instead cannot be.
#[test]
fn instances_that_cannot_be_called_do_not_keep_those_alive_that_are_gone() {
    let (model, mut view) = (three(), view());
    view.apply(model.snapshot("e", 1), || 1).expect("good");
    let strange = v1::Instance { address: "vsock:3:80".into(), ..instance("i9", 1, 2, 2) };
    let mut delta = model.delta("e", 1, 4);
    delta.removed = vec![v1::Removed { id: "i1".to_owned(), create_revision: 1 }];
    (delta.added, delta.updated, delta.digest) = (vec![strange.clone()], Vec::new(), wire_digest(&[strange]));
    let change = view.apply(delta, || 2).expect("good").expect("a change");
    assert_eq!((change.all.len(), change.removed.len()), (0, 1));
}

/// A part of a snapshot that never ends, of about a kilobyte.
fn endless(part: u32) -> v1::Change {
    let mut large = instance(&format!("i{part}"), 1, 1, 1);
    large.tags.insert("k".to_owned(), "v".repeat(1_000));
    v1::Change { all: vec![large], part, last_part: 1_000, ..three().snapshot("e", 1) }
}

#[test]
fn parts_that_never_end_are_kept_up_to_the_limit_and_then_forgotten() {
    let mut view = Checked::new();
    let mut given_up = 0;
    for part in 0..1_000 {
        // It starts over whenever it was given up.
        let accepted = view.apply(endless(part)).or_else(|error| {
            assert!(matches!(error, Resync::TooLarge | Resync::Parts(_)), "{error}");
            given_up += 1;
            view.apply(endless(0))
        });
        assert_eq!(accepted, Ok(None));
    }
    assert!(given_up > 10, "it is only tried {given_up} times");
    assert!(view.view.instances().is_empty() && view.view.cursor().is_none());
}

#[test]
fn a_view_that_would_take_more_than_its_limit_is_refused_and_the_last_good_one_stays() {
    let mut view = Checked::new();
    let mut all = Vec::new();
    let mut refused = None;
    for revision in 1..=1_000 {
        let mut large = instance(&format!("i{revision:04}"), 1, revision, revision);
        large.tags.insert("k".to_owned(), "v".repeat(1_500));
        all.push(large.clone());
        let delta = v1::Change {
            kind: v1::ChangeKind::Delta.into(),
            epoch: "e".to_owned(),
            previous_revision: revision - 1,
            revision,
            added: vec![large],
            digest: wire_digest(&all),
            ..v1::Change::default()
        };
        if revision == 1 {
            let first =
                v1::Change { kind: v1::ChangeKind::Snapshot.into(), all: delta.added.clone(), ..delta };
            view.apply(first).expect("good");
        } else if let Err(error) = view.apply(delta) {
            refused = Some((revision, error));
            break;
        }
    }
    let (revision, error) = refused.expect("nothing bounds what deltas add up to");
    assert_eq!(error, Resync::TooLarge);
    let kept = view.view.instances().len();
    assert_eq!(kept as u64, revision - 1);
    assert!(kept < LIMITS.instances, "the bytes were to be the limit");
    // One that fits is taken again.
    view.apply(v1::Change { revision: 2_000, ..three().snapshot("e", 2) }).expect("good").expect("a change");
}

#[test]
fn the_ends_of_all_numbers_are_numbers() {
    let model = three();
    let mut view = Checked::new();
    let last = v1::Change { revision: u64::MAX, previous_revision: u64::MAX, ..model.snapshot("e", 2) };
    view.apply(last.clone()).expect("good").expect("the first");
    view.view.bookmark("e", u64::MAX);
    let beyond = v1::Change { kind: v1::ChangeKind::Delta.into(), added: last.all.clone(), ..last };
    assert_eq!(view.apply(beyond), Ok(None), "nothing is newer than the newest");
    for (part, last_part) in [(u32::MAX, u32::MAX), (0, u32::MAX), (u32::MAX, 0), (1, 0)] {
        let parts = v1::Change { part, last_part, ..model.snapshot("f", 1) };
        assert!(matches!(view.apply(parts), Err(Resync::Parts(_))), "{part} of {last_part}");
    }
    // A younger history may begin after it.
    view.apply(model.snapshot("f", 1)).expect("good").expect("a change");
}
