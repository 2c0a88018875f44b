//! L3 and L4 on the registry's own commits: who may change what, and what an operator laid over it.

use std::collections::{BTreeMap, BTreeSet};

use registry_server::core::Cause;

use super::{
    Broken, Promise,
    expiry::HEARTBEAT,
    ledger::{Judge, Ledger, number},
};
use crate::history::{Answer, Ask, Asked, Commit, Laid, Lease, Millis, Name, Rules, Run};

/// L3: nothing older removes or changes anything newer.
#[derive(Default)]
pub(super) struct Fences {
    /// The newest incarnation of each instance.
    newest: BTreeMap<Name, u64>,
    /// What a lease lost to another one of its registrant.
    taken: BTreeSet<(Name, Lease)>,
    epoch: String,
}

impl Fences {
    fn registered(&self, commit: &Commit, asked: &Asked, ledger: &Ledger<'_>) -> Result<(), String> {
        let Ask::Register { grant, .. } = &asked.ask else { return Ok(()) };
        if let Some(owner) = ledger.leases.get(&grant.lease).filter(|it| it.grant.uid != grant.uid) {
            return Err(format!("{} took the lease of {}", grant.uid, owner.grant.uid));
        }
        let newer = |it: &&super::ledger::LeaseNow| {
            it.grant.uid == grant.uid && it.grant.generation > grant.generation
        };
        if let Some(newer) = ledger.leases.values().find(newer) {
            return Err(format!(
                "generation {} of {} registered, and generation {} holds lease {}",
                grant.generation, grant.uid, newer.grant.generation, newer.grant.lease
            ));
        }
        for changed in &commit.changes {
            let Some(carrier) = changed.before.as_ref().map(|before| before.lease) else { continue };
            let own = ledger.leases.get(&carrier).is_some_and(|it| it.grant.uid == grant.uid);
            if own && carrier != grant.lease && self.taken.contains(&(changed.name.clone(), grant.lease)) {
                let (name, lease) = (&changed.name, grant.lease);
                return Err(format!("lease {lease} took {name:?} back from the newer lease {carrier}"));
            }
        }
        Ok(())
    }

    fn deregistered(commit: &Commit, asked: &Asked) -> Result<(), String> {
        let Ask::Deregister { lease, names } = &asked.ask else { return Ok(()) };
        for changed in &commit.changes {
            let Some(before) = &changed.before else { continue };
            let (name, carrier, incarnation) = (&changed.name, before.lease, before.item.create_revision);
            if lease.is_some_and(|lease| lease != carrier) {
                return Err(format!("{name:?} of lease {carrier} was removed in the name of {lease:?}"));
            }
            let expected = names.iter().find(|(named, _)| named == name).map(|(_, expected)| *expected);
            let may = expected.map_or(names.is_empty(), |expected| expected == 0 || expected == incarnation);
            if !may {
                return Err(format!("{name:?} was removed as {incarnation}, and {expected:?} was to be"));
            }
        }
        Ok(())
    }
}

impl Judge for Fences {
    fn began(&mut self, run: &Run, _ledger: &Ledger<'_>) {
        if self.epoch != *run.epoch {
            *self = Self { epoch: run.epoch.to_string(), ..Self::default() };
        }
    }

    fn answered(
        &mut self,
        asked: &Asked,
        _at: Millis,
        answer: &Answer,
        ledger: &Ledger<'_>,
    ) -> Result<(), Broken> {
        let (Ask::Renew(lease), Answer::Renewed) = (&asked.ask, answer) else { return Ok(()) };
        let Some(own) = ledger.leases.get(lease) else { return Ok(()) };
        let newer = |it: &&super::ledger::LeaseNow| {
            it.grant.uid == own.grant.uid
                && it.grant.generation > own.grant.generation
                && it.stamp < asked.sent.0
        };
        ledger.leases.values().find(newer).map_or(Ok(()), |newer| {
            Err(Promise::L3.broken(format!(
                "lease {lease} of generation {} was renewed, and generation {} of {} holds lease {}",
                own.grant.generation, newer.grant.generation, own.grant.uid, newer.grant.lease
            )))
        })
    }

    fn committed(&mut self, commit: &Commit, ledger: &Ledger<'_>) -> Result<(), Broken> {
        let broken = |what: String| Promise::L3.broken(format!("by revision {}, {what}", commit.revision));
        if let Some(asked) = number(commit).and_then(|number| ledger.asked.get(&number)) {
            self.registered(commit, asked, ledger).map_err(broken)?;
            Self::deregistered(commit, asked).map_err(broken)?;
        }
        for changed in &commit.changes {
            let name = &changed.name;
            let Some(after) = &changed.after else {
                self.taken.retain(|(taken, _)| taken != name);
                continue;
            };
            let newest = self.newest.entry(name.clone()).or_default();
            let before = changed.before.as_ref();
            let another = before.is_none_or(|before| before.lease != after.lease);
            let incarnation = after.item.create_revision;
            if incarnation < *newest || another != (incarnation == commit.revision) {
                return Err(broken(format!("{name:?} is incarnation {incarnation} after {newest}")));
            }
            *newest = incarnation;
            let uid = |lease: Lease| ledger.leases.get(&lease).map(|it| &it.grant.uid);
            if let Some(loser) = before.map(|before| before.lease).filter(|_| another) {
                self.taken.remove(&(name.clone(), after.lease));
                let granted = commit.granted.iter().find(|it| it.lease == after.lease).map(|it| &it.uid);
                if uid(loser).is_some() && uid(loser) == granted.or(uid(after.lease)) {
                    self.taken.insert((name.clone(), loser));
                }
            }
        }
        self.taken.retain(|(_, lease)| !commit.ended.contains(lease));
        Ok(())
    }
}

/// L4: what an operator laid over an instance is on it until cleared, or until its own expiry.
pub(super) struct Overrides<'a> {
    rules: &'a Rules,
    laid: BTreeMap<Name, Laid>,
    /// When the server last began, or ran again.
    resumed: Millis,
    epoch: String,
}

impl<'a> Overrides<'a> {
    pub(super) fn new(rules: &'a Rules) -> Self {
        Self { rules, laid: BTreeMap::new(), resumed: 0, epoch: String::new() }
    }
}

impl Judge for Overrides<'_> {
    fn passed(&mut self, now: Millis, _ledger: &Ledger<'_>) -> Result<(), Broken> {
        let Some(within) = self.rules.expiry else { return Ok(()) };
        let over = |laid: &Laid| laid.until.is_some_and(|until| now > until.max(self.resumed) + within);
        self.laid.iter().find(|(_, laid)| over(laid)).map_or(Ok(()), |(name, laid)| {
            Err(Promise::L4.broken(format!("the override {laid:?} of {name:?} is there still at {now} ms")))
        })
    }

    fn stalled(&mut self, _from: Millis, until: Millis) {
        self.resumed = self.resumed.max(until + HEARTBEAT);
    }

    fn began(&mut self, run: &Run, _ledger: &Ledger<'_>) {
        self.resumed = self.resumed.max(run.began.1);
        if self.epoch != *run.epoch {
            self.epoch = run.epoch.to_string();
            self.laid.clear();
        }
    }

    fn committed(&mut self, commit: &Commit, ledger: &Ledger<'_>) -> Result<(), Broken> {
        let broken = |what: String| Promise::L4.broken(format!("by revision {}, {what}", commit.revision));
        let asked = number(commit).and_then(|number| ledger.asked.get(&number)).map(|asked| &asked.ask);
        for (name, laid) in &commit.overrides {
            match (laid, commit.cause) {
                (Some(laid), Cause::Override) => {
                    let as_asked = match asked {
                        Some(Ask::Override { name: named, set: Some(set) }) => {
                            name == named && (set.weight, set.status) == (laid.weight, laid.status)
                        }
                        Some(_) => false,
                        None => true,
                    };
                    if !as_asked {
                        return Err(broken(format!("{name:?} got {laid:?}, and {asked:?} was asked")));
                    }
                    self.laid.insert(name.clone(), laid.clone());
                }
                (None, Cause::Override) if matches!(asked, None | Some(Ask::Override { set: None, .. })) => {
                    self.laid.remove(name);
                }
                (None, Cause::OverrideExpire) => {
                    let laid = self.laid.remove(name);
                    if laid.is_some_and(|it| it.until.is_none_or(|until| commit.decided < until)) {
                        return Err(broken(format!("the override of {name:?} ended before its time")));
                    }
                }
                (_, cause) => return Err(broken(format!("the override of {name:?} changed by {cause:?}"))),
            }
        }
        Ok(())
    }

    fn after(&mut self, commit: &Commit, ledger: &Ledger<'_>) -> Result<(), Broken> {
        for (name, laid) in &self.laid {
            let Some(item) = ledger.placed.get(name).map(|placed| &placed.item) else { continue };
            let shown = laid.weight.is_none_or(|weight| weight == item.weight)
                && laid.status.is_none_or(|status| status == item.status);
            if !shown {
                return Err(Promise::L4.broken(format!(
                    "at revision {}, {name:?} has weight {} and status {}, although {laid:?} is laid over it",
                    commit.revision, item.weight, item.status
                )));
            }
        }
        Ok(())
    }
}
