//! What became of leases, overrides and holds, as watchers saw it.

use std::{collections::HashMap, sync::Arc};

use super::{
    Broken, Promise,
    expiry::Expiry,
    fences::{Fences, Overrides},
    guard::Guard,
    ledger::walk,
    play,
};
use crate::{
    history::{Cursor, Event, History, Items, OverrideRecord, WatcherRecord},
    replica::Replica,
};

/// L1: while its renewals are acknowledged, nothing of a lease leaves or is held.
pub fn l1_no_early_expiry(history: &History) -> Result<(), Broken> {
    walk(history, &mut Expiry::new(&history.rules, Promise::L1))?;
    for lease in history.leases.iter().filter(|lease| !lease.abandoned) {
        if let Some(exception) = lease.exceptions.first() {
            let ids = &lease.ids;
            return Err(Promise::L1.broken(format!("a renewal of {ids:?} was answered with {exception}")));
        }
        for record in watchers(history, &lease.view) {
            play(record, |event, before, after| {
                if !matches!(event, Event::Told(_)) || before.epoch != after.epoch {
                    return Ok(());
                }
                let lost = lease.ids.iter().find(|id| {
                    let now = after.items.get(id.as_str());
                    before.items.contains_key(id.as_str()) && now.is_none_or(|item| item.held.is_some())
                });
                lost.map_or(Ok(()), |id| {
                    Err(Promise::L1.broken(format!(
                        "{}: {id} expired at revision {}, and its lease was being renewed",
                        record.name, after.cursor
                    )))
                })
            })?;
        }
    }
    Ok(())
}

/// L2: what an unrenewed lease carries goes (or is held) at once, and in the end nothing of it is left as if it lived.
pub fn l2_prompt_expiry(history: &History) -> Result<(), Broken> {
    walk(history, &mut Expiry::new(&history.rules, Promise::L2))?;
    for lease in history.leases.iter().filter(|lease| lease.abandoned) {
        let alive = |items: &Items| {
            let lives = |id: &&String| items.get(id.as_str()).is_some_and(|item| item.held.is_none());
            lease.ids.iter().filter(lives).count()
        };
        for record in watchers(history, &lease.view) {
            let mut last = 0;
            play(record, |_, before, after| {
                let (had, has) = (alive(&before.items), alive(&after.items));
                last = has;
                if has < had && has > 0 && before.epoch == after.epoch {
                    return Err(Promise::L2.broken(format!(
                        "{}: of one lease {had} lived, and {has} after revision {}",
                        record.name, after.cursor
                    )));
                }
                Ok(())
            })?;
            if last > 0 {
                let ids = &lease.ids;
                return Err(Promise::L2.broken(format!(
                    "{}: {last} of {ids:?} are there still, and nobody renews them",
                    record.name
                )));
            }
        }
    }
    Ok(())
}

/// L3: an incarnation is only ever followed by a newer one.
pub fn l3_fenced(history: &History) -> Result<(), Broken> {
    walk(history, &mut Fences::default())?;
    for record in &history.watchers {
        let mut newest: HashMap<(Arc<str>, Arc<str>), u64> = HashMap::new();
        play(record, |event, _, after| {
            let told = match event {
                Event::Told(told) => told,
                // A snapshot that was asked for may be a little older.
                Event::Opened { forced: true, .. } => {
                    newest.clear();
                    return Ok(());
                }
                _ => return Ok(()),
            };
            for item in &told.put {
                let known = newest.entry((after.epoch.clone(), item.id.clone())).or_default();
                if item.create_revision < *known {
                    return Err(Promise::L3.broken(format!(
                        "{}: the incarnation {} of {} came after {known}",
                        record.name, item.create_revision, item.id
                    )));
                }
                *known = item.create_revision;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// L4: from the revision that set it until the one that cleared it, every view shows the override.
pub fn l4_overrides_last(history: &History) -> Result<(), Broken> {
    walk(history, &mut Overrides::new(&history.rules))?;
    for (place, over) in history.overrides.iter().enumerate() {
        let (Some(weight), Some(set)) = (over.set, &over.answer) else { continue };
        let until = laid_until(&history.overrides, place, set);
        let judge = |who: &str, epoch: &str, revision: u64, items: &Items| {
            let shown = items.get(over.id.as_str()).map_or(weight, |item| item.weight);
            let laid = *epoch == *set.epoch && revision >= set.revision && revision < until;
            if shown == weight || !laid {
                return Ok(());
            }
            Err(Promise::L4.broken(format!(
                "{who}: {} has the weight {shown} at revision {revision}, although an operator set {weight} by revision {}",
                over.id, set.revision
            )))
        };
        for record in watchers(history, &over.view) {
            play(record, |_, _, after: &Replica| {
                judge(&record.name, &after.epoch, after.cursor, &after.items)
            })?;
        }
        for reading in history.readings.iter().filter(|reading| reading.view == over.view) {
            judge("a reading", &reading.epoch, reading.revision, &reading.items)?;
        }
    }
    Ok(())
}

/// Up to which revision, that one left out, an override is surely there which was `set` by what was asked at this `place`: until
/// something else was done about it, or may have been. What was not answered may be done at any time after what its operator
/// knew: also if it was asked before.
fn laid_until(asked: &[OverrideRecord], place: usize, set: &Cursor) -> u64 {
    let own = &asked[place];
    let others = asked
        .iter()
        .enumerate()
        .filter(|(at, it)| *at != place && (&it.view, &it.id) == (&own.view, &own.id));
    let ends = others.map(|(at, it)| match &it.answer {
        Some(answer) if answer.epoch == set.epoch && answer.revision > set.revision => answer.revision,
        None if it.knows.epoch == set.epoch => it.knows.revision + 1,
        // It may be done in a history that came after the one that was known.
        None if at < place => 0,
        _ => u64::MAX,
    });
    ends.min().unwrap_or(u64::MAX)
}

/// L5: expiry removes at most half of a service of four or more within a window; the rest is held, and says why.
pub fn l5_blast_radius(history: &History) -> Result<(), Broken> {
    walk(history, &mut Guard::new(&history.rules))?;
    for expiry in &history.expiries {
        let may_go = if expiry.base < 4 { expiry.base } else { expiry.base / 2 };
        for record in watchers(history, &expiry.view) {
            let mut last = Items::new();
            play(record, |_, before, after| {
                last = after.items.clone();
                let before = expiry.ids.iter().filter(|id| before.items.contains_key(id.as_str())).count();
                let there = expiry.ids.iter().filter(|id| after.items.contains_key(id.as_str())).count();
                if there < before && there + may_go < expiry.ids.len() {
                    return Err(Promise::L5.broken(format!(
                        "{}: expiry removed {} of {} at revision {}; it may remove {may_go}",
                        record.name,
                        expiry.ids.len() - there,
                        expiry.base,
                        after.cursor
                    )));
                }
                Ok(())
            })?;
            let silent = expiry.ids.iter().filter_map(|id| last.get(id.as_str()));
            if let Some(item) =
                silent.into_iter().find(|item| item.held.as_ref().is_none_or(String::is_empty))
            {
                return Err(Promise::L5.broken(format!(
                    "{}: {} ran out of its lease and is neither gone nor held with a reason",
                    record.name, item.id
                )));
            }
        }
    }
    Ok(())
}

fn watchers<'a>(history: &'a History, view: &'a str) -> impl Iterator<Item = &'a WatcherRecord> {
    history.watchers.iter().filter(move |record| record.view == view)
}
