//! What the registry's commits prove of its store, beside what answers and readings prove: D1, D3, D4; and of its memory:
//! W10.

use std::collections::{HashMap, HashSet};

use super::{
    Broken, Promise,
    ledger::{Judge, Ledger, number},
};
use crate::history::{Answer, Ask, Commit, History, Stamp};

/// D1: every revision that one run committed, and every revision that it answered with, is there in all later runs.
pub(super) fn durable(history: &History) -> Result<(), Broken> {
    for run in &history.runs {
        let found: HashSet<u64> = run.found.iter().copied().collect();
        let earlier = |it: &&Commit| it.run < run.number && it.epoch == run.epoch && it.stamp < run.began.0;
        let lost = |it: &&Commit| it.revision > run.base && !found.contains(&it.revision);
        if let Some(commit) = history.commits.iter().filter(earlier).find(lost) {
            return Err(Promise::D1.broken(format!(
                "run {} lacks revision {}, which run {} committed",
                run.number, commit.revision, commit.run
            )));
        }
        let newest = run.found.last().copied().unwrap_or(run.base);
        let same_history =
            |number: u32| history.runs.iter().any(|it| it.number == number && it.epoch == run.epoch);
        for asked in history.asked.iter().filter(|it| it.run < run.number && same_history(it.run)) {
            if let Some((_, _, Answer::Done(revision))) = asked.answer
                && revision > newest
            {
                return Err(Promise::D1.broken(format!(
                    "run {} found revisions up to {newest}, and run {} answered with {revision}",
                    run.number, asked.run
                )));
            }
        }
    }
    Ok(())
}

/// D3: each command is one revision, which does all that was asked and nothing else; a refused one is none.
#[derive(Default)]
pub(super) struct Wholes {
    done: HashMap<u64, u64>,
    newest: u64,
    epoch: String,
}

impl Judge for Wholes {
    fn committed(&mut self, commit: &Commit, ledger: &Ledger<'_>) -> Result<(), Broken> {
        let broken = |what: String| Promise::D3.broken(format!("revision {} {what}", commit.revision));
        if self.epoch != *commit.epoch {
            (self.epoch, self.newest) = (commit.epoch.to_string(), 0);
        }
        if commit.revision <= std::mem::replace(&mut self.newest, commit.revision) {
            return Err(broken("was given twice, or out of order".into()));
        }
        let Some((number, asked)) = number(commit).and_then(|it| Some((it, ledger.asked.get(&it)?))) else {
            return Ok(());
        };
        if let Some(before) = self.done.insert(number, commit.revision) {
            return Err(broken(format!("does a second part of what revision {before} did")));
        }
        if matches!(asked.answer, Some((_, _, Answer::Refused))) {
            return Err(broken(format!("does what was refused: {:?}", asked.ask)));
        }
        match &asked.ask {
            Ask::Register { names, .. } => {
                let value = |name: &crate::history::Name| {
                    let changed = commit.changes.iter().find(|changed| changed.name == *name)?;
                    changed.after.as_ref()?.item.value
                };
                if let Some(left) = names.iter().find(|name| value(name) != Some(number)) {
                    return Err(broken(format!("registers {names:?} but for {left:?}")));
                }
                let released = |changed: &crate::history::Changed| {
                    changed.before.as_ref().is_some_and(|before| before.item.held.is_some())
                };
                let more =
                    |changed: &&crate::history::Changed| !names.contains(&changed.name) && !released(changed);
                if let Some(more) = commit.changes.iter().find(more) {
                    return Err(broken(format!("registers {names:?}, and changes {:?}", more.name)));
                }
            }
            Ask::Deregister { names, .. } if !names.is_empty() => {
                let there = |name: &&crate::history::Name| ledger.placed.contains_key(*name);
                let goes = |name: &&crate::history::Name| {
                    commit.changes.iter().any(|it| it.name == **name && it.after.is_none())
                };
                if let Some(left) = names.iter().map(|(name, _)| name).filter(there).find(|it| !goes(it)) {
                    return Err(broken(format!("removes {names:?} but for {left:?}")));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// D4: after its store failed, a run writes nothing, says so, and shows what it committed last; it never asks the store
/// again.
pub fn d4_fail_stop(history: &History) -> Result<(), Broken> {
    for run in &history.runs {
        let Some((failed, _)) = run.failed else { continue };
        let broken = |what: String| Err(Promise::D4.broken(format!("run {}: {what}", run.number)));
        let mine = |it: &&Commit| it.run == run.number;
        if run.asked_after_failure > 0 {
            return broken(format!("its store failed, and was asked {} times more", run.asked_after_failure));
        }
        if !run.said_failed {
            return broken("its store failed, and its health does not say so".into());
        }
        if let Some(commit) = history.commits.iter().filter(mine).find(|it| it.stamp > failed) {
            return broken(format!("its store failed, and it committed revision {}", commit.revision));
        }
        // What was committed before the failure may be answered after it, and what changes nothing needs no store.
        let last = history.commits.iter().filter(mine).map(|it| it.revision).max();
        let last = last.or(run.found.last().copied()).unwrap_or(run.base);
        for asked in history.asked.iter().filter(|it| it.run == run.number && it.sent.0 > failed) {
            match (&asked.ask, &asked.answer) {
                (Ask::Renew(_), Some((_, _, Answer::StoreFailed))) => {
                    return broken("its store failed, and so did a renewal".into());
                }
                (Ask::Renew(_), _) | (_, None | Some((_, _, Answer::StoreFailed | Answer::Stopped))) => {}
                (ask, Some((_, _, answer))) => {
                    return broken(format!("its store failed, and {ask:?} was answered with {answer:?}"));
                }
            }
        }
        let shown = |it: &&crate::history::Reading| it.run == run.number && it.started > failed;
        if let Some(reading) = history.readings.iter().filter(shown).find(|it| it.revision != last) {
            return broken(format!(
                "its store failed after revision {last}, and a reading shows {}",
                reading.revision
            ));
        }
    }
    Ok(())
}

/// W10: what is kept does not grow with slow watchers: the log stays in its bounds, a view keeps two snapshots and few
/// deltas, a watcher one mark.
pub fn w10_bounded(history: &History) -> Result<(), Broken> {
    /// Snapshots of a view that may be alive.
    const SNAPSHOTS: usize = 2;
    /// Deltas of a view that may be kept for others: of one part, and of several.
    const DELTAS: usize = 16;
    for gauge in &history.gauges {
        let broken = |what: String| Err(Promise::W10.broken(format!("{what}, with {gauge:?}")));
        if let Some((entries, bytes)) = history.rules.log
            && (gauge.log_entries > entries || gauge.log_bytes > bytes)
        {
            return broken(format!("the log may have {entries} entries of {bytes} bytes"));
        }
        if gauge.indexed > gauge.log_entries {
            return broken("a view remembers more than the log".into());
        }
        if gauge.snapshots > SNAPSHOTS {
            return broken(format!("a view may keep {SNAPSHOTS} snapshots"));
        }
        if gauge.deltas > DELTAS {
            return broken(format!("a view may keep {DELTAS} deltas"));
        }
        if gauge.marks > gauge.watchers || gauge.views > gauge.watchers {
            return broken("a watcher may have one mark, and a view is there for its watchers".into());
        }
    }
    Ok(())
}

/// When the newest of the writes answered by a run before a moment was, by its revision.
pub(super) fn answered_before(history: &History, run: u32, before: Stamp) -> u64 {
    let done = history.asked.iter().filter_map(|asked| match &asked.answer {
        Some((stamp, _, Answer::Done(revision))) if asked.run == run && *stamp < before => Some(*revision),
        _ => None,
    });
    done.max().unwrap_or(0)
}
