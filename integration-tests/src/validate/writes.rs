//! What answers and readings prove: durability, reading one's own writes, all or nothing.

use super::{Broken, Promise, ledger::walk, store, truth::Truth, views};
use crate::history::{Event, History, Outcome, Reading, Write};

/// D1: what one run of the server acknowledged, every later run shows, unless it was written again.
pub fn d1_durable(history: &History) -> Result<(), Broken> {
    store::durable(history)?;
    shown(history, Promise::D1, |run, reading| run < reading.run)?;
    true_readings(history, Promise::D1, |run, reading| run < reading.run)
}

/// D2: what a run of the server acknowledged before a reading was asked of it, the reading shows, at that revision or later.
pub fn d2_read_your_writes(history: &History) -> Result<(), Broken> {
    for reading in &history.readings {
        let newest = history.writes.iter().filter_map(|write| match write.outcome {
            Outcome::Acked { at, run, revision, .. } if run == reading.run && at < reading.started => {
                Some(revision)
            }
            _ => None,
        });
        let newest = newest.max().unwrap_or(0);
        if reading.revision < newest {
            return Err(Promise::D2.broken(format!(
                "a reading shows revision {}, and a write was answered at {newest} before",
                reading.revision
            )));
        }
    }
    for reading in &history.readings {
        let answered = store::answered_before(history, reading.run, reading.started);
        if reading.revision < answered {
            return Err(Promise::D2.broken(format!(
                "a reading shows revision {}, and {answered} was answered before",
                reading.revision
            )));
        }
    }
    watched(history)?;
    shown(history, Promise::D2, |run, reading| run == reading.run)?;
    true_readings(history, Promise::D2, |run, reading| run == reading.run)
}

/// D3: a write is there as a whole or not at all, also one that was never answered, and in one revision.
pub fn d3_all_or_nothing(history: &History) -> Result<(), Broken> {
    walk(history, &mut store::Wholes::default())?;
    for write in &history.writes {
        if let Outcome::Acked { incarnations, .. } = &write.outcome
            && incarnations.windows(2).any(|pair| pair[0] != pair[1])
        {
            let members = &write.members;
            return Err(Promise::D3.broken(format!("{members:?} came in the revisions {incarnations:?}")));
        }
    }
    for reading in &history.readings {
        for writes in views::batches(history, &reading.view) {
            let Some(members) = writes.first().map(|write| &write.members) else { continue };
            let seen: Vec<_> = views::values(&reading.items, members).collect();
            let one_revision = |id: &String| reading.items.get(id.as_str()).map(|item| item.mod_revision);
            let revisions: Vec<_> = members.iter().map(one_revision).collect();
            let torn = |pair: &[Option<u64>]| pair[0] != pair[1];
            if seen.windows(2).any(torn) || revisions.windows(2).any(torn) {
                return Err(Promise::D3.broken(format!(
                    "a reading at revision {} shows of {members:?} the writes {seen:?} in the revisions {revisions:?}",
                    reading.revision
                )));
            }
        }
    }
    Ok(())
}

/// Whether readings show what the runs chosen had acknowledged before, or what was written after that.
fn shown(history: &History, promise: Promise, chosen: fn(u32, &Reading) -> bool) -> Result<(), Broken> {
    for reading in &history.readings {
        for writes in views::batches(history, &reading.view) {
            let acked_before = |write: &&&Write| match write.outcome {
                Outcome::Acked { at, run, .. } => chosen(run, reading) && at < reading.started,
                _ => false,
            };
            let Some(base) = writes.iter().rposition(|write| acked_before(&write)) else { continue };
            let members = &writes[base].members;
            let seen = views::values(&reading.items, members).next().flatten();
            if !writes[base..].iter().any(|write| possible(write, seen)) {
                return Err(promise.broken(format!(
                    "{members:?} shows {seen:?} at revision {} in run {}, although {:?} was acknowledged",
                    reading.revision,
                    reading.run,
                    writes[base].action.result()
                )));
            }
        }
    }
    Ok(())
}

/// Whether the first bookmark of each stream says that it was told everything that was answered before it was opened.
fn watched(history: &History) -> Result<(), Broken> {
    for record in &history.watchers {
        let mut opened = None;
        for event in &record.events {
            match event {
                Event::Opened { at, run, .. } => opened = Some((*at, *run)),
                Event::Bookmark(bookmark) => {
                    let Some((at, run)) = opened.take() else { continue };
                    let answered = store::answered_before(history, run, at);
                    if bookmark.revision < answered {
                        return Err(Promise::D2.broken(format!(
                            "{}: told of all up to {}, and {answered} was answered before it watched",
                            record.name, bookmark.revision
                        )));
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether readings show what the runs chosen committed last of each instance, where commits are known.
fn true_readings(
    history: &History,
    promise: Promise,
    chosen: fn(u32, &Reading) -> bool,
) -> Result<(), Broken> {
    let truth = Truth::of(history);
    for reading in history.readings.iter().filter(|_| !truth.is_silent()) {
        let expected = truth.at(&reading.epoch, &reading.view, reading.revision);
        if expected == reading.items {
            continue;
        }
        let ids = expected.keys().chain(reading.items.keys());
        for id in ids.filter(|id| expected.get(*id) != reading.items.get(*id)) {
            let last = truth.between(&reading.epoch, 0, reading.revision).filter(|commit| {
                commit.changes.iter().any(|it| *it.name.0 == *reading.view && it.name.1 == *id)
            });
            let by = last.last().map_or((reading.run, 0), |commit| (commit.run, commit.revision));
            if chosen(by.0, reading) {
                return Err(promise.broken(format!(
                    "a reading of run {} at revision {} does not show {id} as of revision {} of run {}",
                    reading.run, reading.revision, by.1, by.0
                )));
            }
        }
    }
    Ok(())
}

fn possible(write: &Write, seen: Option<u64>) -> bool {
    write.outcome != Outcome::Refused && write.action.result() == seen
}
