//! What the commits, answers, runs and stalls come to, one after the other: the stage on which L1–L5 and D3 are judged.
//!
//! Owns the order and the leases and instances of the moment; [`Judge`]s look on and own the rules.

use std::collections::{BTreeMap, HashMap};

use registry_server::core::Cause;

use super::Broken;
use crate::history::{Answer, Asked, Commit, Granted, History, Lease, Millis, Name, Placed, Run, Stamp};

/// A lease that goes on.
pub(super) struct LeaseNow {
    pub(super) grant: Granted,
    /// When it was last granted.
    pub(super) stamp: Stamp,
}

/// What there is just now.
#[derive(Default)]
pub(super) struct Ledger<'a> {
    pub(super) leases: BTreeMap<Lease, LeaseNow>,
    pub(super) placed: BTreeMap<Name, Placed>,
    /// By their numbers, answered or not.
    pub(super) asked: HashMap<u64, &'a Asked>,
    /// The store of the run that goes on has failed.
    pub(super) failed: bool,
    epoch: String,
}

/// Looks on. Each is told before the ledger changes.
pub(super) trait Judge {
    /// It is so late. Not told of time in which the server did not run or could not write.
    fn passed(&mut self, _now: Millis, _ledger: &Ledger<'_>) -> Result<(), Broken> {
        Ok(())
    }
    /// The server could not run.
    fn stalled(&mut self, _from: Millis, _until: Millis) {}
    /// A run begins.
    fn began(&mut self, _run: &Run, _ledger: &Ledger<'_>) {}
    /// Something was answered.
    fn answered(
        &mut self,
        _asked: &Asked,
        _at: Millis,
        _answer: &Answer,
        _ledger: &Ledger<'_>,
    ) -> Result<(), Broken> {
        Ok(())
    }
    /// A revision was committed.
    fn committed(&mut self, commit: &Commit, ledger: &Ledger<'_>) -> Result<(), Broken>;
    /// A revision was committed, and the ledger says so.
    fn after(&mut self, _commit: &Commit, _ledger: &Ledger<'_>) -> Result<(), Broken> {
        Ok(())
    }
}

enum Step<'a> {
    Run(&'a Run),
    Failed,
    Commit(&'a Commit),
    Answer(&'a Asked, Millis, &'a Answer),
}

/// Walks through all that happened, in its order.
pub(super) fn walk(history: &History, judge: &mut dyn Judge) -> Result<(), Broken> {
    let mut steps: Vec<(Stamp, Millis, Step<'_>)> = Vec::new();
    for run in &history.runs {
        steps.push((run.began.0, run.began.1, Step::Run(run)));
        steps.extend(run.failed.map(|(stamp, at)| (stamp, at, Step::Failed)));
    }
    steps.extend(history.commits.iter().map(|commit| (commit.stamp, commit.at, Step::Commit(commit))));
    for asked in &history.asked {
        if let Some((stamp, at, answer)) = &asked.answer {
            steps.push((*stamp, *at, Step::Answer(asked, *at, answer)));
        }
    }
    steps.sort_by_key(|(stamp, _, _)| *stamp);
    let mut ledger = Ledger {
        asked: history.asked.iter().map(|asked| (asked.number, asked)).collect(),
        ..Ledger::default()
    };
    let mut stalls = history.stalls.iter().peekable();
    for (_, now, step) in steps {
        while let Some(stall) = stalls.next_if(|stall| stall.until <= now) {
            judge.stalled(stall.from, stall.until);
        }
        if !ledger.failed && !matches!(step, Step::Run(_)) {
            judge.passed(now, &ledger)?;
        }
        match step {
            Step::Run(run) => {
                ledger.begin(run);
                judge.began(run, &ledger);
            }
            Step::Failed => ledger.failed = true,
            Step::Answer(asked, at, answer) => judge.answered(asked, at, answer, &ledger)?,
            Step::Commit(commit) => {
                judge.committed(commit, &ledger)?;
                ledger.apply(commit);
                judge.after(commit, &ledger)?;
            }
        }
    }
    Ok(())
}

impl Ledger<'_> {
    /// The TTL of a lease, if it goes on.
    pub(super) fn ttl(&self, lease: Lease) -> Option<Millis> {
        self.leases.get(&lease).map(|lease| lease.grant.ttl)
    }

    /// Whether a higher generation of a lease's registrant holds a lease.
    pub(super) fn is_superseded(&self, lease: Lease) -> bool {
        self.leases.get(&lease).is_some_and(|own| {
            let newer =
                |it: &LeaseNow| it.grant.uid == own.grant.uid && it.grant.generation > own.grant.generation;
            self.leases.values().any(newer)
        })
    }

    /// The instances of a service.
    pub(super) fn of<'s>(&'s self, service: &'s str) -> impl Iterator<Item = &'s Placed> {
        self.placed.iter().filter(move |(name, _)| &*name.0 == service).map(|(_, placed)| placed)
    }

    /// The instances of a lease, with their names.
    pub(super) fn carried(&self, lease: Lease) -> impl Iterator<Item = (&Name, &Placed)> {
        self.placed.iter().filter(move |(_, placed)| placed.lease == lease)
    }

    fn begin(&mut self, run: &Run) {
        self.failed = false;
        if self.epoch != *run.epoch {
            self.epoch = run.epoch.to_string();
            self.leases.clear();
            self.placed.clear();
        }
    }

    fn apply(&mut self, commit: &Commit) {
        for grant in &commit.granted {
            self.leases.insert(grant.lease, LeaseNow { grant: grant.clone(), stamp: commit.stamp });
        }
        for lease in &commit.ended {
            self.leases.remove(lease);
        }
        for changed in &commit.changes {
            match &changed.after {
                Some(placed) => self.placed.insert(changed.name.clone(), placed.clone()),
                None => self.placed.remove(&changed.name),
            };
        }
    }
}

/// The number of what was asked, by what the commit says or leaves behind. `None`: the registry's own doing, or nobody
/// left a number.
pub(super) fn number(commit: &Commit) -> Option<u64> {
    if commit.cause != Cause::Register {
        return commit.actor.strip_prefix("op")?.parse().ok();
    }
    commit.changes.iter().find_map(|changed| {
        let after = changed.after.as_ref()?;
        let released = changed.before.as_ref().is_some_and(|it| it.item.value == after.item.value);
        after.item.value.filter(|_| !released)
    })
}
