//! What takes several witnesses: watchers beside each other, and beside what the writers know they wrote.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{Broken, Promise, play, truth::Truth};
use crate::{
    history::{Event, History, Items, Outcome, Told, WatcherRecord, Write},
    replica::Replica,
};

/// The values that the members of a batch have; they are all one if nothing is torn.
pub(super) fn values<'a>(items: &'a Items, members: &'a [String]) -> impl Iterator<Item = Option<u64>> + 'a {
    members.iter().map(|id| items.get(id.as_str()).and_then(|item| item.value))
}

/// Each batch of a service: its members, and its writes in their order.
pub(super) fn batches<'a>(history: &'a History, view: &str) -> Vec<Vec<&'a Write>> {
    let mut batches: BTreeMap<&str, Vec<&Write>> = BTreeMap::new();
    for write in history.writes.iter().filter(|write| write.view == view) {
        batches.entry(write.members.first().map_or("", String::as_str)).or_default().push(write);
    }
    batches.into_values().collect()
}

/// W4: all that one revision did to a view comes at once: no state in between shows a part of a write.
pub fn w4_atomic(history: &History) -> Result<(), Broken> {
    let mut by_member: HashMap<(&str, &str), &Arc<[String]>> = HashMap::new();
    for write in &history.writes {
        for member in write.members.iter() {
            by_member.insert((&write.view, member), &write.members);
        }
    }
    let truth = Truth::of(history);
    for record in &history.watchers {
        play(record, |event, before, after| {
            let Event::Told(told) = event else { return Ok(()) };
            if let Some(what) = torn(&truth, record, told, (before, after)) {
                return Err(Promise::W4.broken(format!("{}: {what}", record.name)));
            }
            let changed = told.put.iter().map(|item| &item.id).chain(told.removed.iter().map(|(id, _)| id));
            for id in changed {
                let Some(members) = by_member.get(&(record.view.as_str(), &**id)) else { continue };
                let first = values(&after.items, members).next();
                if values(&after.items, members).any(|value| Some(value) != first) {
                    let seen: Vec<_> = values(&after.items, members).collect();
                    return Err(Promise::W4.broken(format!(
                        "{}: at revision {} the batch of {id} shows the writes {seen:?}",
                        record.name, told.revision
                    )));
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// W6: two watchers of one view have the same at the same revision, whichever way they came to it.
pub fn w6_coalesced(history: &History) -> Result<(), Broken> {
    let truth = Truth::of(history);
    let mut seen: HashMap<(String, Arc<str>, u64), (u64, &str)> = HashMap::new();
    for record in &history.watchers {
        play(record, |event, before, after| {
            let Event::Told(told) = event else { return Ok(()) };
            // Of one revision alone, W2 says the same.
            let missed = truth.between(&told.epoch, before.cursor, told.revision);
            let concerns = |commit: &&crate::history::Commit| {
                commit.changes.iter().any(|it| *it.name.0 == *record.service)
            };
            let missed = missed.filter(concerns).count();
            if let Some(what) = truth.differs(record, after).filter(|_| !told.snapshot && missed > 1) {
                let name = &record.name;
                return Err(Promise::W6.broken(format!("{name}: one delta for {missed} revisions: {what}")));
            }
            let place = (record.view.clone(), after.epoch.clone(), after.cursor);
            let (fingerprint, other) = *seen.entry(place).or_insert((after.fingerprint, &record.name));
            if fingerprint == after.fingerprint {
                return Ok(());
            }
            Err(Promise::W6.broken(format!(
                "{other} and {} see different instances at revision {}",
                record.name, after.cursor
            )))
        })?;
    }
    Ok(())
}

/// W7: after a bookmark, nothing comes from before it; and at the bookmark, every write acknowledged up to its revision
/// is in the view.
pub fn w7_true_bookmarks(history: &History) -> Result<(), Broken> {
    let truth = Truth::of(history);
    for record in &history.watchers {
        let batches = batches(history, &record.view);
        let mut marked: Option<(Arc<str>, u64)> = None;
        let broken = |what: String| Promise::W7.broken(format!("{}: {what}", record.name));
        play(record, |event, _, after| match event {
            Event::Opened { .. } => {
                marked = None;
                Ok(())
            }
            Event::Bookmark(bookmark) => {
                marked = Some((bookmark.epoch.clone(), bookmark.revision));
                if let Some(what) = truth.differs(record, after).filter(|_| after.epoch == bookmark.epoch) {
                    return Err(broken(format!("at the bookmark {}: {what}", bookmark.revision)));
                }
                missing(&batches, after, bookmark.revision).map_or(Ok(()), |what| {
                    Err(broken(format!("at the bookmark {}: {what}", bookmark.revision)))
                })
            }
            Event::Told(told) => {
                let Some((epoch, revision)) = &marked else { return Ok(()) };
                let from_before = told.put.iter().find(|item| item.mod_revision <= *revision);
                if *epoch != told.epoch || told.snapshot {
                    return Ok(());
                }
                match from_before {
                    Some(item) => Err(broken(format!(
                        "{} as of revision {} came after the bookmark {revision}",
                        item.id, item.mod_revision
                    ))),
                    None if told.revision <= *revision => {
                        Err(broken(format!("revision {} came after the bookmark {revision}", told.revision)))
                    }
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        })?;
    }
    Ok(())
}

/// W9: a view is empty only when nothing can be in it, and the counts beside it say the same.
pub fn w9_empty_safe(history: &History) -> Result<(), Broken> {
    let truth = Truth::of(history);
    for record in &history.watchers {
        let batches = batches(history, &record.view);
        let broken = |what: String| Promise::W9.broken(format!("{}: {what}", record.name));
        play(record, |event, before, after| {
            let Event::Told(told) = event else { return Ok(()) };
            let shown = after.items.len();
            if let Some(what) = untrue(&truth, history.rules.forgets, record, told, after) {
                return Err(broken(what));
            }
            if (told.service_instances as usize) < shown {
                return Err(broken(format!("{shown} instances of a service of {}", told.service_instances)));
            }
            if !told.exists && (shown > 0 || told.service_instances > 0) {
                return Err(broken("instances of a service that does not exist".into()));
            }
            if shown > 0 {
                return Ok(());
            }
            let unselected = history.writes.iter().any(|write| write.view == record.view);
            if unselected && told.service_instances > 0 {
                return Err(broken(format!("nothing of a service of {}", told.service_instances)));
            }
            if let Some(what) = missing(&batches, after, told.revision) {
                return Err(broken(format!("an empty view at revision {}: {what}", told.revision)));
            }
            let had_and_lost = told.snapshot && !before.items.is_empty() && told.epoch == before.epoch;
            if had_and_lost && !batches.is_empty() && told.exists && told.service_instances > 0 {
                return Err(broken(format!("a snapshot emptied the view at revision {}", told.revision)));
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// A revision of which a view shows one part and not another, where commits are known.
fn torn(
    truth: &Truth<'_>,
    record: &WatcherRecord,
    told: &Told,
    (before, after): (&Replica, &Replica),
) -> Option<String> {
    if truth.is_silent() {
        return None;
    }
    let known = if told.snapshot { 0 } else { before.cursor };
    let last = truth.at(&told.epoch, &record.service, told.revision);
    for commit in truth.between(&told.epoch, known, told.revision) {
        let (mut shown, mut hidden) = (None, None);
        for changed in commit.changes.iter().filter(|it| *it.name.0 == *record.service) {
            let (id, item) = (&changed.name.1, changed.after.as_ref().map(|it| &it.item));
            let takes = |it: &Option<crate::history::Placed>| {
                it.as_ref().is_some_and(|it| record.selection.takes(&it.item))
            };
            // What a later revision changed again says nothing; nor what the view never had.
            let final_here = last.get(id) == item;
            let had = before.items.contains_key(id) && !told.snapshot;
            if !final_here || !(takes(&changed.after) || takes(&changed.before) && had) {
                continue;
            }
            let expected = item.filter(|item| record.selection.takes(item));
            if after.items.get(id) == expected {
                shown = Some(id);
            } else {
                hidden = Some(id);
            }
        }
        if let (Some(shown), Some(hidden)) = (shown, hidden) {
            return Some(format!("of revision {} it shows {shown} and not {hidden}", commit.revision));
        }
    }
    None
}

/// Emptiness, or numbers beside it, that are not true, where commits are known. A registry that `forgets` services may say of
/// an empty one that nobody registered it.
fn untrue(
    truth: &Truth<'_>,
    forgets: bool,
    record: &WatcherRecord,
    told: &Told,
    after: &Replica,
) -> Option<String> {
    if truth.is_silent() {
        return None;
    }
    let (epoch, service, revision) = (&*told.epoch, record.service.as_str(), told.revision);
    let items = truth.at(epoch, service, revision);
    if after.items.is_empty() && items.values().any(|item| record.selection.takes(item)) {
        return Some(format!("an empty view at revision {revision}, which has {}", items.len()));
    }
    let forgotten = forgets && items.is_empty() && !told.exists;
    if told.exists != truth.exists(epoch, service, revision) && !forgotten {
        return Some(format!("at revision {revision} it says that the service exists: {}", told.exists));
    }
    // Of a selection, the number may be newer than the view's last change.
    let upto = if record.selection.is_all() { revision } else { u64::MAX };
    let counts = truth.counts(epoch, service, revision, upto);
    let counted = counts.contains(&(told.service_instances as usize));
    (!counted).then(|| format!("{} instances at revision {revision}, not {counts:?}", told.service_instances))
}

/// A batch that does not show what was acknowledged at `revision` or before, nor anything that came later.
fn missing(batches: &[Vec<&Write>], view: &Replica, revision: u64) -> Option<String> {
    batches.iter().find_map(|writes| {
        let acked =
            |write: &&&Write| matches!(write.outcome, Outcome::Acked { revision: at, .. } if at <= revision);
        let base = writes.iter().rposition(|write| acked(&write))?;
        let members = &writes[base].members;
        let shown = values(&view.items, members).next()?;
        let possible = writes[base..]
            .iter()
            .filter(|write| write.outcome != Outcome::Refused)
            .any(|write| write.action.result() == shown);
        (!possible).then(|| {
            format!(
                "{members:?} shows {shown:?}, although {:?} was acknowledged",
                writes[base].action.result()
            )
        })
    })
}
