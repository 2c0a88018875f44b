//! What one watcher can judge by itself: order, gaps, repetitions, resuming, digests.

use registry_proto::v1::ResetReason;

use super::{Broken, Promise, play, truth::Truth};
use crate::{
    history::{Cursor, Event, History, Told, WatcherRecord},
    replica::Replica,
};

/// A log of so many bytes holds all that the floors ever put into it.
const AMPLE: usize = 64 << 20;

/// W1: the revisions of one view only grow; across streams too, unless the history is another or the watcher began anew.
pub fn w1_ordered(history: &History) -> Result<(), Broken> {
    for record in &history.watchers {
        let mut newest: Option<Cursor> = None;
        for event in &record.events {
            let (at, may_stay) = match event {
                Event::Opened { cursor, forced, .. } => {
                    if cursor.is_none() || *forced {
                        newest = None;
                    }
                    continue;
                }
                Event::Told(told) => (Cursor { epoch: told.epoch.clone(), revision: told.revision }, false),
                Event::Bookmark(bookmark) => (bookmark.clone(), true),
                Event::Refused(_) | Event::GoAway => continue,
            };
            if let Some(newest) = newest.filter(|newest| newest.epoch == at.epoch)
                && (at.revision < newest.revision || at.revision == newest.revision && !may_stay)
            {
                return Err(Promise::W1.broken(format!(
                    "{} was told of revision {} after {}",
                    record.name, at.revision, newest.revision
                )));
            }
            newest = Some(at);
        }
    }
    Ok(())
}

/// W2: every delta applies by the acceptance rule, and what results is the view that the server has at that revision.
pub fn w2_gapless(history: &History) -> Result<(), Broken> {
    let truth = Truth::of(history);
    for record in &history.watchers {
        let broken = |what: String| Promise::W2.broken(format!("{}: {what}", record.name));
        play(record, |event, before, after| {
            if let Event::Told(told) = event {
                before.accepts(told).map_err(broken)?;
            }
            if let Some(what) = truth.differs(record, after) {
                return Err(broken(what));
            }
            let same = |reading: &&crate::history::Reading| {
                (&reading.view, &reading.epoch, reading.revision)
                    == (&record.view, &after.epoch, after.cursor)
            };
            if let Some(reading) = history.readings.iter().find(same)
                && reading.items != after.items
            {
                return Err(broken(format!(
                    "at revision {} it has {} instances, and a reading of that revision other {}",
                    after.cursor,
                    after.items.len(),
                    reading.items.len()
                )));
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// W3: nothing is delivered twice on one stream.
pub fn w3_unique(history: &History) -> Result<(), Broken> {
    for record in &history.watchers {
        play(record, |event, before, _| {
            let Event::Told(told) = event else { return Ok(()) };
            if told.snapshot {
                return Ok(());
            }
            let known = |item: &&std::sync::Arc<crate::history::Item>| {
                before.items.get(&item.id).is_some_and(|had| had.mod_revision == item.mod_revision)
            };
            match told.put.iter().find(known) {
                Some(twice) => Err(Promise::W3.broken(format!(
                    "{} was told twice of {} as of revision {}",
                    record.name, twice.id, twice.mod_revision
                ))),
                None if told.removed.iter().any(|(id, _)| !before.items.contains_key(id)) => {
                    let removed = &told.removed;
                    Err(Promise::W3.broken(format!(
                        "{} was told twice that {removed:?} left, by revision {}",
                        record.name, told.revision
                    )))
                }
                None if told.revision == before.cursor => Err(Promise::W3
                    .broken(format!("{} was told twice of revision {}", record.name, told.revision))),
                None => Ok(()),
            }
        })?;
    }
    Ok(())
}

/// W5: a stream that resumes goes on with deltas, or with a snapshot that names a reason which is true.
pub fn w5_resumable(history: &History) -> Result<(), Broken> {
    let truth = Truth::of(history);
    for record in &history.watchers {
        let broken = |what: String| Promise::W5.broken(format!("{}: {what}", record.name));
        let mut opened: Option<(Option<Cursor>, bool)> = None;
        let mut run = 0;
        play(record, |event, before, _| match event {
            Event::Opened { cursor, forced, run: asked, .. } => {
                run = *asked;
                opened = Some((cursor.clone(), *forced));
                Ok(())
            }
            Event::Told(told) => {
                let first = opened.take();
                if !told.snapshot {
                    return match first {
                        Some((None, _)) => Err(broken("a stream without a cursor began with a delta".into())),
                        _ => Ok(()),
                    };
                }
                let expected: &[ResetReason] = match &first {
                    Some((_, true)) => &[ResetReason::Requested],
                    Some((None, _)) => &[ResetReason::Initial],
                    Some((Some(cursor), _)) if cursor.epoch != told.epoch => &[ResetReason::EpochChanged],
                    // The history may go between opening and reading.
                    Some((Some(_), _)) => &[ResetReason::HistoryGone, ResetReason::Lagged],
                    None => &[ResetReason::Lagged],
                };
                // Whatever the reason was, the snapshot may have been replaced while it was read.
                let named = expected.contains(&told.reason) || told.reason == ResetReason::SnapshotReplaced;
                if !named {
                    return Err(broken(format!("a snapshot because of {:?}, not {expected:?}", told.reason)));
                }
                if matches!(told.reason, ResetReason::HistoryGone | ResetReason::Lagged) {
                    let cursor = first.as_ref().and_then(|(cursor, _)| cursor.as_ref());
                    let cursor = cursor.map_or(before.cursor, |cursor| cursor.revision);
                    needless(history, &truth, record, told, (run, cursor)).map_err(broken)?;
                }
                behind(before, told, first.as_ref().is_some_and(|(_, forced)| *forced)).map_err(broken)
            }
            _ => Ok(()),
        })?;
    }
    Ok(())
}

/// W8: the digest of every change is that of the view that it leads to.
pub fn w8_self_verifying(history: &History) -> Result<(), Broken> {
    for record in &history.watchers {
        play(record, |event, _, after| match event {
            Event::Told(told) if told.digest != after.digest => Err(Promise::W8.broken(format!(
                "{}: at revision {} the view's digest is {:x}, and the server says {:x}",
                record.name, told.revision, after.digest, told.digest
            ))),
            Event::Told(told) if record.include_all && !told.snapshot => {
                let all = told.all.iter().map(|item| (item.id.clone(), item.clone())).collect();
                if after.items == all {
                    return Ok(());
                }
                Err(Promise::W8.broken(format!(
                    "{}: at revision {} `all` is not what the deltas come to",
                    record.name, told.revision
                )))
            }
            _ => Ok(()),
        })?;
    }
    for reading in &history.readings {
        let digest = reading.items.values().fold(0u64, |sum, item| sum.wrapping_add(item.digest));
        if digest != reading.digest {
            return Err(
                Promise::W8.broken(format!("a reading at revision {} has another digest", reading.revision))
            );
        }
    }
    Ok(())
}

/// A snapshot because of lost history, where nothing was lost that it takes.
fn needless(
    history: &History,
    truth: &Truth<'_>,
    record: &WatcherRecord,
    told: &Told,
    (run, cursor): (u32, u64),
) -> Result<(), String> {
    if truth.is_silent() || history.rules.forgets {
        return Ok(());
    }
    let reason = told.reason;
    let last = truth.last_change(&told.epoch, &record.service, told.revision);
    if last <= cursor {
        return Err(format!(
            "a snapshot because of {reason:?}, and nothing changed since the cursor {cursor}"
        ));
    }
    let (Some((entries, bytes)), Some(run)) =
        (history.rules.log, history.runs.iter().find(|it| it.number == run))
    else {
        return Ok(());
    };
    let mut services = 0;
    // What was not published when it was read had not pushed anything out of the log, so all that there ever was counts.
    for commit in truth.between(&told.epoch, cursor, u64::MAX).filter(|it| it.run <= run.number) {
        let named: std::collections::BTreeSet<_> = commit.changes.iter().map(|it| &it.name.0).collect();
        services += named.len();
    }
    if bytes >= AMPLE && cursor >= run.base && services <= entries {
        return Err(format!(
            "a snapshot because of {reason:?} at the cursor {cursor}, and the log has room for the {services} changes since"
        ));
    }
    Ok(())
}

/// A snapshot of the same history that is older than what the watcher knew.
fn behind(before: &Replica, told: &Told, forced: bool) -> Result<(), String> {
    if told.epoch == before.epoch && told.revision < before.cursor && !forced {
        return Err(format!("a snapshot of revision {} at the cursor {}", told.revision, before.cursor));
    }
    Ok(())
}
