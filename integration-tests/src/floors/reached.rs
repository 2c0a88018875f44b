//! What happened in a run of the whole system, by name and how often. A run shows of a promise only what it put to the test: a
//! validator that finds nothing to judge says nothing, and looks as one that finds nothing wrong. So those who play seeds
//! ask here that there was something.
//!
//! Owns the names. What must be among them is up to the tests.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use registry_proto::v1::ResetReason;

use super::system::Run;
use crate::{
    history::{self, Cursor, History, Outcome, OverrideRecord, Told, WatcherRecord},
    replica::Replica,
    sim::{
        Event, Fault, Trace,
        trace::{DrainStep, Seen},
    },
};

/// How often what happened, by its name.
pub type Reached = BTreeMap<String, usize>;

/// What happened in this run.
pub fn reached(run: &Run) -> Reached {
    let mut reached = Reached::new();
    seen(&run.recorded.trace, &mut reached);
    written(&run.recorded.history, &mut reached);
    reached
}

fn count(reached: &mut Reached, what: impl Into<String>) {
    add(reached, what, 1);
}

fn add(reached: &mut Reached, what: impl Into<String>, times: usize) {
    if times > 0 {
        *reached.entry(what.into()).or_default() += times;
    }
}

/// A fault's kind, and whom it hit.
fn named(fault: &Fault) -> String {
    let kind = |host: &str| host.trim_end_matches(|it: char| it.is_ascii_digit() || it == '-').to_owned();
    match fault {
        Fault::Partition(..) => "a partition".into(),
        Fault::OneWay(from, _) if from.starts_with("registry") => "a link cut from the registry only".into(),
        Fault::OneWay(..) => "a link cut one way".into(),
        Fault::Loss(..) => "a link that loses messages".into(),
        Fault::Slow(..) => "a slow link".into(),
        Fault::Repair(..) => "a link made whole again".into(),
        Fault::Crash(host) => format!("a crash of {}", kind(host)),
        Fault::Start(host) => format!("a start of {} after a crash", kind(host)),
        Fault::Restart(_) => "a restart in good order".into(),
        Fault::Weight(_, 0) => "a weight of 0".into(),
        Fault::Weight(..) => "another weight".into(),
        Fault::Drain(_) => "a drain".into(),
    }
}

/// What the trace shows.
fn seen(trace: &Trace, reached: &mut Reached) {
    let mut epochs: HashMap<String, String> = HashMap::new();
    let mut troubled = BTreeSet::new();
    let mut views: HashMap<String, Seen> = HashMap::new();
    for (_, event) in trace.events() {
        match event {
            Event::Fault(fault) => count(reached, named(&fault)),
            Event::Started { who, epoch, revision, .. } => match epochs.insert(who, epoch.clone()) {
                Some(before) if before != epoch => count(reached, "a registry that lost its data"),
                Some(_) if revision > 0 => count(reached, "a registry that took its data up again"),
                _ => {}
            },
            Event::Troubled { who, .. } => {
                count(reached, "a view known to be in doubt");
                troubled.insert(who);
            }
            Event::Healthy { who, .. } if troubled.remove(&who) => count(reached, "a view well again"),
            Event::View { who, all, removed, .. } => {
                add(reached, "an instance that left a caller's view", removed.len());
                views.insert(who, all);
            }
            Event::Called { who, outcome: Ok(_), .. } => {
                count(reached, "a call answered");
                let ruled_out = views.get(&who).is_some_and(|view| view.values().any(|weight| *weight == 0));
                add(reached, "a call answered while its view rules somebody out", usize::from(ruled_out));
            }
            Event::Called { outcome: Err(_), .. } => count(reached, "a call that failed"),
            Event::Drain { step: DrainStep::Told(_), .. } => count(reached, "a drain that went on"),
            Event::Drain { step: DrainStep::Knew { all: true, .. }, .. } => {
                count(reached, "a drain of which all callers knew");
            }
            Event::Drain { step: DrainStep::Knew { all: false, .. }, .. } => {
                count(reached, "a drain of which not all callers knew");
            }
            Event::Drain { step: DrainStep::Left, .. } => count(reached, "a drain to its end"),
            _ => {}
        }
    }
}

/// What those who speak the protocol by hand wrote down.
fn written(history: &History, reached: &mut Reached) {
    let mut shown: BTreeMap<(&str, Arc<str>, u64), BTreeSet<&str>> = BTreeMap::new();
    for record in &history.watchers {
        told(history, record, reached, &mut shown);
    }
    let twice = shown.values().filter(|watchers| watchers.len() > 1).count();
    add(reached, "a revision of a view that two watchers saw", twice);
    for write in &history.writes {
        count(
            reached,
            match write.outcome {
                Outcome::Acked { .. } => "a batch acknowledged",
                Outcome::Refused => "a batch refused",
                Outcome::Unknown => "a batch that nobody was answered for",
            },
        );
    }
    for reading in
        history.readings.iter().filter(|it| history.writes.iter().any(|write| write.view == it.view))
    {
        let before = |same: bool| {
            history.writes.iter().any(|write| match write.outcome {
                Outcome::Acked { at, run, .. } => at < reading.started && (run == reading.run) == same,
                _ => false,
            })
        };
        add(reached, "a reading after an acknowledged batch", usize::from(before(true)));
        add(reached, "a reading after a restart of what was acknowledged before", usize::from(before(false)));
    }
    for over in &history.overrides {
        count(
            reached,
            match over {
                OverrideRecord { answer: None, .. } => {
                    "an override of which nobody knows whether it was done"
                }
                OverrideRecord { set: Some(_), .. } => "an override set",
                OverrideRecord { set: None, .. } => "an override cleared",
            },
        );
    }
    for lease in &history.leases {
        let what = if lease.abandoned { "a lease given up" } else { "a lease renewed to the end" };
        count(reached, what);
    }
    add(reached, "a mass expiry", history.expiries.len());
}

/// What one watcher was told.
fn told<'a>(
    history: &History,
    record: &'a WatcherRecord,
    reached: &mut Reached,
    shown: &mut BTreeMap<(&'a str, Arc<str>, u64), BTreeSet<&'a str>>,
) {
    let mut view = Replica::default();
    let mut opened: Option<Option<Cursor>> = None;
    let given_up = |id: &str| {
        history
            .leases
            .iter()
            .any(|it| it.abandoned && it.view == record.view && it.ids.iter().any(|of| of == id))
    };
    for event in &record.events {
        match event {
            history::Event::Opened { cursor, .. } => opened = Some(cursor.clone()),
            history::Event::Bookmark(bookmark) => {
                count(reached, "a bookmark");
                let resumed = matches!(opened.take(), Some(Some(_)));
                add(reached, "a stream resumed with nothing to tell", usize::from(resumed));
                view.bookmark(bookmark);
            }
            history::Event::Told(told) => {
                let resumed = matches!(opened.take(), Some(Some(_)));
                count(reached, how(told, resumed));
                let revisions: BTreeSet<u64> = told.put.iter().map(|item| item.mod_revision).collect();
                add(
                    reached,
                    "a delta of several revisions",
                    usize::from(!told.snapshot && revisions.len() > 1),
                );
                let mut after = view.clone();
                after.apply(told);
                let held = told.put.iter().filter(|item| item.held.is_some() && given_up(&item.id)).count();
                add(reached, "an instance held", held);
                let gone = told.removed.iter().filter(|(id, _)| given_up(id)).count();
                add(reached, "an instance whose lease was given up that went", gone);
                let anew = |item: &&Arc<history::Item>| {
                    view.items.get(&item.id).is_some_and(|had| had.create_revision != item.create_revision)
                };
                add(reached, "an instance registered anew", told.put.iter().filter(anew).count());
                view = after;
                let place = (record.view.as_str(), view.epoch.clone(), view.cursor);
                shown.entry(place).or_default().insert(&record.name);
            }
            history::Event::Refused(_) => count(reached, "a view refused"),
            history::Event::GoAway => count(reached, "a stream asked to go elsewhere"),
        }
    }
}

/// By what a stream was told, and whether it was resumed by that.
fn how(told: &Told, resumed: bool) -> String {
    match (told.snapshot, resumed) {
        (false, false) => "a delta".into(),
        (false, true) => "a stream resumed by a delta".into(),
        (true, true) => format!("a stream resumed by a snapshot: {:?}", told.reason),
        (true, false) if told.reason == ResetReason::Initial => "a first snapshot".into(),
        (true, false) => format!("a snapshot on the way: {:?}", told.reason),
    }
}
