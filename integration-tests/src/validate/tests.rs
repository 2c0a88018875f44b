//! Each validator bites: a history that keeps every promise, doctored in one place, breaks the one that it should.

use std::sync::Arc;

use registry_proto::{digest, v1::ResetReason};

use super::*;
use crate::history::{
    Action, Cursor, Item, Items, LeaseRecord, MassExpiry, Outcome, OverrideRecord, Reading, Told, Write,
};

const EPOCH: &str = "e1";

fn item(id: &str, created: u64, changed: u64, value: u64) -> Arc<Item> {
    Arc::new(Item {
        id: id.into(),
        create_revision: created,
        mod_revision: changed,
        value: Some(value),
        weight: 1,
        digest: digest::of(id, created, changed),
        fingerprint: changed * 1000 + value,
        ..Item::default()
    })
}

fn with(item: &Arc<Item>, change: impl FnOnce(&mut Item)) -> Arc<Item> {
    let mut changed = (**item).clone();
    change(&mut changed);
    Arc::new(changed)
}

fn sum<'a>(items: impl IntoIterator<Item = &'a Arc<Item>>) -> u64 {
    items.into_iter().fold(0, |sum, item| sum.wrapping_add(item.digest))
}

fn snapshot(revision: u64, items: &[Arc<Item>]) -> Told {
    Told {
        snapshot: true,
        epoch: EPOCH.into(),
        revision,
        reason: ResetReason::Initial,
        digest: sum(items),
        service_instances: u32::try_from(items.len()).expect("few"),
        exists: true,
        put: items.to_vec(),
        ..Told::default()
    }
}

/// A delta that leads to `view`.
fn delta(
    previous: u64,
    revision: u64,
    put: &[Arc<Item>],
    removed: &[(&str, u64)],
    view: &[Arc<Item>],
) -> Told {
    Told {
        snapshot: false,
        reason: ResetReason::Unspecified,
        previous,
        put: put.to_vec(),
        removed: removed.iter().map(|(id, created)| ((*id).into(), *created)).collect(),
        ..Told { digest: sum(view), ..snapshot(revision, view) }
    }
}

fn cursor(revision: u64) -> Cursor {
    Cursor { epoch: EPOCH.into(), revision }
}

fn opened(at: Option<u64>) -> Event {
    Event::Opened { cursor: at.map(cursor), forced: false, at: 0, run: 0 }
}

fn write(action: Action, started: u64, outcome: Outcome) -> Write {
    Write { view: "s".into(), members: ["a".into(), "b".into()].into(), action, started, outcome }
}

fn acked(at: u64, run: u32, revision: u64, incarnations: &[u64]) -> Outcome {
    Outcome::Acked { at, run, revision, incarnations: incarnations.to_vec() }
}

/// A batch of `a` and `b` written at 5 and at 7, then the server is killed during a third write, then restarted.
fn good() -> History {
    let first = [item("a", 5, 5, 1), item("b", 5, 5, 1)];
    let second = [item("a", 5, 7, 2), item("b", 5, 7, 2)];
    let resumed = vec![
        opened(None),
        Event::Told(snapshot(5, &first)),
        Event::Bookmark(cursor(6)),
        Event::Told(delta(5, 7, &second, &[], &second)),
        opened(Some(7)),
        Event::Bookmark(cursor(8)),
    ];
    let joined = vec![opened(None), Event::Told(snapshot(7, &second)), Event::Bookmark(cursor(7))];
    let record = |name: &str, events| WatcherRecord {
        name: name.into(),
        view: "s".into(),
        service: "s".into(),
        events,
        ..WatcherRecord::default()
    };
    let reading = |started, run, revision| Reading {
        view: "s".into(),
        started,
        run,
        epoch: EPOCH.into(),
        revision,
        digest: sum(&second),
        items: second.iter().map(|item| (item.id.clone(), item.clone())).collect(),
    };
    History {
        watchers: vec![record("resumed", resumed), record("joined", joined)],
        writes: vec![
            write(Action::Put(1), 1, acked(2, 1, 5, &[5, 5])),
            write(Action::Put(2), 3, acked(4, 1, 7, &[5, 5])),
            write(Action::Put(3), 6, Outcome::Unknown),
        ],
        readings: vec![reading(5, 1, 7), reading(9, 2, 8)],
        leases: vec![LeaseRecord {
            view: "s".into(),
            ids: vec!["a".into(), "b".into()],
            ..LeaseRecord::default()
        }],
        ..History::default()
    }
}

fn told(history: &mut History, watcher: usize, event: usize) -> &mut Told {
    match &mut history.watchers[watcher].events[event] {
        Event::Told(told) => told,
        other => panic!("{other:?} is no change"),
    }
}

#[track_caller]
fn breaks(judge: Validator, promise: Promise, doctor: impl FnOnce(&mut History)) {
    let mut history = good();
    assert_eq!(judge(&history), Ok(()), "the history is good before it is doctored");
    doctor(&mut history);
    let broken = judge(&history).expect_err("the doctored history breaks the promise");
    assert_eq!(broken.promise, promise);
    assert!(broken.to_string().starts_with(&promise.to_string()), "{broken} begins with the promise's name");
}

#[test]
fn a_good_history_keeps_every_promise() {
    assert_kept(&good());
}

#[test]
#[should_panic(expected = "W7 true bookmarks")]
fn a_broken_promise_is_printed_by_name() {
    let mut history = good();
    history.watchers[0].events[2] = Event::Bookmark(cursor(7));
    assert_kept(&history);
}

#[test]
fn w1_bites_on_revisions_that_go_back() {
    breaks(w1_ordered, Promise::W1, |history| told(history, 0, 3).revision = 4);
    breaks(w1_ordered, Promise::W1, |history| history.watchers[0].events[5] = Event::Bookmark(cursor(6)));
}

#[test]
fn w2_bites_on_a_missed_delta_and_on_another_view() {
    breaks(w2_gapless, Promise::W2, |history| told(history, 0, 3).previous = 7);
    breaks(w2_gapless, Promise::W2, |history| {
        told(history, 0, 3).put.pop();
    });
}

#[test]
fn w3_bites_on_what_is_told_twice() {
    breaks(w3_unique, Promise::W3, |history| {
        let again = history.watchers[0].events[3].clone();
        history.watchers[0].events.insert(4, again);
    });
}

#[test]
fn w4_bites_on_a_part_of_a_write() {
    breaks(w4_atomic, Promise::W4, |history| {
        told(history, 0, 3).put.pop();
    });
}

#[test]
fn w5_bites_on_snapshots_without_a_true_reason() {
    let snapshot_after = |reason, revision| {
        move |history: &mut History| {
            let again = [item("a", 5, 7, 2), item("b", 5, 7, 2)];
            history.watchers[0].events[5] = Event::Told(Told { reason, ..snapshot(revision, &again) });
        }
    };
    breaks(w5_resumable, Promise::W5, snapshot_after(ResetReason::Initial, 8));
    breaks(w5_resumable, Promise::W5, snapshot_after(ResetReason::Unspecified, 8));
    breaks(w5_resumable, Promise::W5, snapshot_after(ResetReason::HistoryGone, 6));
}

#[test]
fn w6_bites_on_two_views_of_one_revision() {
    breaks(w6_coalesced, Promise::W6, |history| {
        let other = with(&told(history, 1, 1).put[0], |item| item.fingerprint += 1);
        told(history, 1, 1).put[0] = other;
    });
}

#[test]
fn w7_bites_on_bookmarks_that_promise_too_much() {
    breaks(w7_true_bookmarks, Promise::W7, |history| {
        history.watchers[0].events[2] = Event::Bookmark(cursor(7));
    });
    // Nothing comes from before it, but what was acknowledged is not there.
    breaks(w7_true_bookmarks, Promise::W7, |history| {
        history.watchers[0].events.remove(3);
    });
}

#[test]
fn w8_bites_on_another_digest() {
    breaks(w8_self_verifying, Promise::W8, |history| told(history, 1, 1).digest += 1);
    breaks(w8_self_verifying, Promise::W8, |history| history.readings[0].digest += 1);
    breaks(w8_self_verifying, Promise::W8, |history| history.watchers[0].include_all = true);
}

#[test]
fn w9_bites_on_an_empty_list_that_is_not_true() {
    breaks(w9_empty_safe, Promise::W9, |history| *told(history, 1, 1) = snapshot(7, &[]));
    breaks(w9_empty_safe, Promise::W9, |history| told(history, 1, 1).service_instances = 1);
    breaks(w9_empty_safe, Promise::W9, |history| told(history, 1, 1).exists = false);
}

#[test]
fn d1_bites_on_what_a_restart_lost() {
    breaks(d1_durable, Promise::D1, |history| {
        let older = [item("a", 5, 5, 1), item("b", 5, 5, 1)];
        history.readings[1].items = older.iter().map(|item| (item.id.clone(), item.clone())).collect();
    });
    breaks(d1_durable, Promise::D1, |history| history.readings[1].items = Items::new());
}

#[test]
fn d2_bites_on_a_reading_from_before_the_answer() {
    breaks(d2_read_your_writes, Promise::D2, |history| history.readings[0].revision = 6);
    breaks(d2_read_your_writes, Promise::D2, |history| history.readings[0].items = Items::new());
}

#[test]
fn d3_bites_on_a_half_of_a_write_that_was_never_answered() {
    breaks(d3_all_or_nothing, Promise::D3, |history| {
        history.readings[1].items.insert("a".into(), item("a", 5, 8, 3));
    });
    breaks(d3_all_or_nothing, Promise::D3, |history| history.writes[0].outcome = acked(2, 1, 5, &[4, 5]));
}

#[test]
fn l1_bites_on_an_expiry_and_on_an_exception_while_renewing() {
    breaks(l1_no_early_expiry, Promise::L1, |history| {
        let left = [item("a", 5, 7, 2)];
        history.watchers[0].events.push(Event::Told(delta(7, 9, &[], &[("b", 5)], &left)));
    });
    breaks(l1_no_early_expiry, Promise::L1, |history| history.leases[0].exceptions.push("UNKNOWN".into()));
}

#[test]
fn l2_bites_on_a_lease_that_never_ends_or_ends_in_pieces() {
    breaks(l2_prompt_expiry, Promise::L2, |history| history.leases[0].abandoned = true);
    breaks(l2_prompt_expiry, Promise::L2, |history| {
        history.leases[0].abandoned = true;
        history.watchers.pop();
        let left = [item("a", 5, 7, 2)];
        history.watchers[0].events.push(Event::Told(delta(7, 9, &[], &[("b", 5)], &left)));
        history.watchers[0].events.push(Event::Told(delta(9, 10, &[], &[("a", 5)], &[])));
    });
}

#[test]
fn l3_bites_on_an_older_incarnation() {
    breaks(l3_fenced, Promise::L3, |history| {
        let older = [item("a", 4, 7, 2), item("b", 5, 7, 2)];
        told(history, 0, 3).put = older.to_vec();
    });
}

/// What an operator asked of `a`: to set a weight, or to clear it.
fn asked(set: Option<u32>, knows: u64, answer: Option<u64>) -> OverrideRecord {
    OverrideRecord { view: "s".into(), id: "a".into(), set, knows: cursor(knows), answer: answer.map(cursor) }
}

#[test]
fn l4_bites_on_an_override_that_is_gone() {
    breaks(l4_overrides_last, Promise::L4, |history| history.overrides.push(asked(Some(9), 6, Some(7))));
}

/// `a` with these weights at these revisions, and what an operator asked meanwhile.
fn ruled(weights: &[(u64, u32)], overrides: &[OverrideRecord]) -> Result<(), Broken> {
    let mut events = vec![opened(None)];
    for (revision, weight) in weights {
        let shown = with(&item("a", 5, *revision, 1), |item| item.weight = *weight);
        events.push(Event::Told(snapshot(*revision, &[shown])));
    }
    let record = WatcherRecord { name: "w".into(), view: "s".into(), events, ..WatcherRecord::default() };
    l4_overrides_last(&History {
        watchers: vec![record],
        overrides: overrides.to_vec(),
        ..History::default()
    })
}

#[test]
fn l4_what_was_asked_and_not_answered_may_be_done_at_any_time() {
    let set = asked(Some(9), 6, Some(7));
    let weights = [(5, 1), (7, 9), (9, 1), (11, 8), (13, 1)];
    // Cleared and set again, everything answered: then 13 needs a reason.
    let clear = |answer| asked(None, 8, answer);
    let again = asked(Some(8), 10, Some(11));
    assert_eq!(ruled(&weights[..4], &[set.clone(), clear(Some(9)), again.clone()]), Ok(()));
    assert!(ruled(&weights, &[set.clone(), clear(Some(9)), again.clone()]).is_err(), "it bites");
    // The clearing was not answered: it may be what shows at 9, and what shows at 13 as well.
    assert_eq!(ruled(&weights, &[set.clone(), clear(None), again.clone()]), Ok(()));
    // A setting that was not answered may come after the next one.
    let unanswered = asked(Some(9), 6, None);
    assert_eq!(ruled(&[(5, 1), (11, 8), (13, 9)], &[unanswered, again]), Ok(()));
    // But what nobody had asked for yet does not excuse anything.
    assert!(ruled(&[(7, 9), (8, 1)], &[set, clear(None)]).is_err(), "it bites up to what was known");
}

#[test]
fn l4_revisions_of_another_history_prove_nothing() {
    let mut kept = good();
    kept.overrides = vec![asked(Some(9), 1, Some(2))];
    assert!(l4_overrides_last(&kept).is_err(), "in this history it bites");
    // Its registry lost what it knew, and began to count anew.
    let other = |cursor: &mut Cursor| cursor.epoch = "e0".into();
    other(&mut kept.overrides[0].knows);
    kept.overrides[0].answer.as_mut().map(other);
    assert_eq!(l4_overrides_last(&kept), Ok(()));
    // And a clearing that was asked of the history before may have been done in this one.
    let mut late = asked(None, 1, None);
    other(&mut late.knows);
    kept.overrides = vec![late, asked(Some(9), 6, Some(7))];
    assert_eq!(l4_overrides_last(&kept), Ok(()));
}

#[test]
fn l5_bites_on_too_many_removed_and_on_a_hold_without_a_reason() {
    let fleet: Vec<_> = ["a", "b", "c", "d"].iter().map(|id| item(id, 5, 5, 1)).collect();
    let mass = |history: &mut History, left: &[Arc<Item>], removed: &[(&str, u64)]| {
        let events = vec![
            opened(None),
            Event::Told(snapshot(5, &fleet)),
            Event::Told(delta(5, 9, left, removed, left)),
        ];
        history.watchers =
            vec![WatcherRecord { name: "w".into(), view: "f".into(), events, ..WatcherRecord::default() }];
        let ids = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        history.expiries = vec![MassExpiry { view: "f".into(), ids, base: 4 }];
    };
    let held = |id: &str| with(&item(id, 5, 9, 1), |item| item.held = Some("a reason".into()));
    let mut kept = good();
    mass(&mut kept, &[held("c"), held("d")], &[("a", 5), ("b", 5)]);
    assert_eq!(l5_blast_radius(&kept), Ok(()));
    breaks(l5_blast_radius, Promise::L5, |history| {
        mass(history, &[held("d")], &[("a", 5), ("b", 5), ("c", 5)]);
    });
    breaks(l5_blast_radius, Promise::L5, |history| {
        mass(history, &[held("c"), item("d", 5, 9, 1)], &[("a", 5), ("b", 5)]);
    });
}
