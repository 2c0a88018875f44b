//! L5, worked out a second time from the commits alone: the windows, what each lets expiry remove, and what becomes of
//! what is held.

use std::collections::{BTreeMap, HashMap};

use registry_server::core::Cause;

use super::{
    Broken, Promise,
    expiry::HEARTBEAT,
    ledger::{Judge, Ledger},
};
use crate::history::{Answer, Ask, Asked, Commit, Lease, Millis, Name, Rules, Run};

/// A service of so many is guarded.
const GUARDED: usize = 4;

struct Window {
    end: Millis,
    base: usize,
    removed: usize,
}

impl Window {
    fn allows(&self) -> usize {
        if self.base < GUARDED { usize::MAX } else { self.base / 2 }
    }
}

pub(super) struct Guard<'a> {
    rules: &'a Rules,
    windows: HashMap<String, Window>,
    /// When each was held.
    held: BTreeMap<Name, Millis>,
    /// Leases renewed while held, and when.
    owed: BTreeMap<Lease, Millis>,
    /// When each lease was last renewed.
    renewed: BTreeMap<Lease, Millis>,
    /// When the server last began, or ran again.
    resumed: Millis,
}

impl<'a> Guard<'a> {
    pub(super) fn new(rules: &'a Rules) -> Self {
        Self {
            rules,
            windows: HashMap::new(),
            held: BTreeMap::new(),
            owed: BTreeMap::new(),
            renewed: BTreeMap::new(),
            resumed: 0,
        }
    }

    fn expired(&mut self, commit: &Commit, ledger: &Ledger<'_>) -> Result<(), Broken> {
        let broken = |what: String| Promise::L5.broken(format!("by revision {}, {what}", commit.revision));
        let mut services: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for changed in &commit.changes {
            let (removed, held) = services.entry(&changed.name.0).or_default();
            match &changed.after {
                None => *removed += 1,
                Some(after) => match after.item.held.as_deref() {
                    Some("") | None => {
                        return Err(broken(format!("{:?} expired and names no reason", changed.name)));
                    }
                    Some(_) => *held += 1,
                },
            }
        }
        for (service, (removed, held)) in services {
            self.windows.retain(|_, window| window.end > commit.decided);
            let window = self.windows.entry(service.to_owned()).or_insert_with(|| {
                let ttls = ledger.of(service).filter_map(|placed| ledger.ttl(placed.lease));
                let end = commit.decided + ttls.max().unwrap_or(0);
                Window { end, base: ledger.of(service).count(), removed: 0 }
            });
            window.removed += removed;
            let (gone, base, allows) = (window.removed, window.base, window.allows());
            if removed > 0 && gone > allows {
                return Err(broken(format!("expiry removed {gone} of {base} instances of {service}")));
            }
            if held > 0 && gone < allows {
                return Err(broken(format!(
                    "{held} of {service} are held, and only {gone} of {base} are gone"
                )));
            }
        }
        Ok(())
    }
}

impl Judge for Guard<'_> {
    fn passed(&mut self, now: Millis, ledger: &Ledger<'_>) -> Result<(), Broken> {
        let (Some(hold), Some(within)) = (self.rules.hold, self.rules.expiry) else { return Ok(()) };
        let overdue = |(name, at): &(&Name, &Millis)| {
            // Whoever could not renew, or just did, has a TTL from then.
            let lease = ledger.placed.get(*name).map_or(0, |placed| placed.lease);
            let resumed = self.renewed.get(&lease).copied().unwrap_or(0).max(self.resumed);
            now > (*at + hold).max(resumed + ledger.ttl(lease).unwrap_or(0)) + within
        };
        if let Some((name, at)) = self.held.iter().find(overdue) {
            return Err(
                Promise::L5.broken(format!("{name:?} is held since {at} ms, and still is at {now} ms"))
            );
        }
        for (lease, renewed) in self.owed.iter().filter(|(_, renewed)| now > **renewed + within) {
            let held = |(name, _): &(&Name, _)| self.held.get(*name).is_some_and(|at| at < renewed);
            if let Some((name, _)) = ledger.carried(*lease).find(held) {
                return Err(Promise::L5.broken(format!(
                    "{name:?} is held at {now} ms, and its lease {lease} was renewed at {renewed} ms"
                )));
            }
        }
        self.owed.retain(|_, renewed| now <= *renewed + within);
        Ok(())
    }

    fn stalled(&mut self, from: Millis, until: Millis) {
        self.resumed = self.resumed.max(until + HEARTBEAT);
        for renewed in self.owed.values_mut() {
            *renewed += until - from + HEARTBEAT;
        }
    }

    fn began(&mut self, run: &Run, ledger: &Ledger<'_>) {
        self.windows.clear();
        self.owed.clear();
        self.held.retain(|name, _| ledger.placed.contains_key(name));
        self.resumed = self.resumed.max(run.began.1);
    }

    fn answered(
        &mut self,
        asked: &Asked,
        at: Millis,
        answer: &Answer,
        ledger: &Ledger<'_>,
    ) -> Result<(), Broken> {
        let Ask::Renew(lease) = asked.ask else { return Ok(()) };
        let holds = ledger.carried(lease).any(|(_, placed)| placed.item.held.is_some());
        if *answer == Answer::Renewed && holds {
            self.owed.entry(lease).or_insert(at);
            self.renewed.insert(lease, at);
        }
        Ok(())
    }

    fn after(&mut self, _: &Commit, ledger: &Ledger<'_>) -> Result<(), Broken> {
        // Whoever is superseded for however short a time releases nothing until he renews again.
        self.owed.retain(|lease, _| !ledger.is_superseded(*lease));
        Ok(())
    }

    fn committed(&mut self, commit: &Commit, ledger: &Ledger<'_>) -> Result<(), Broken> {
        let Some(hold) = self.rules.hold else { return Ok(()) };
        for changed in &commit.changes {
            let was = changed.before.as_ref().is_some_and(|it| it.item.held.is_some());
            let is = changed.after.as_ref().is_some_and(|it| it.item.held.is_some());
            let broken = |what: &str| {
                let (name, revision) = (&changed.name, commit.revision);
                Err(Promise::L5
                    .broken(format!("{name:?} {what}, by revision {revision} ({:?})", commit.cause)))
            };
            let cause = commit.cause;
            if changed.before.is_none() && cause != Cause::Register {
                return broken("came back, and nobody registered it");
            }
            if !was && is && cause != Cause::Expire {
                return broken("is held, and did not expire");
            }
            if was && changed.after.is_none() {
                if !matches!(cause, Cause::Deregister | Cause::ResolveHold | Cause::HoldExpire) {
                    return broken("was held, and is gone");
                }
                let since = self.held.get(&changed.name).copied().unwrap_or(0);
                if cause == Cause::HoldExpire && commit.decided < since + hold {
                    return broken("was held, and its hold ended too early");
                }
            }
            if was
                && !is
                && changed.after.is_some()
                && !matches!(cause, Cause::Register | Cause::RenewHeld | Cause::ResolveHold)
            {
                return broken("was held, and no longer is");
            }
        }
        match commit.cause {
            Cause::Expire => self.expired(commit, ledger)?,
            Cause::Deregister | Cause::ResolveHold => {
                for changed in commit.changes.iter().filter(|it| it.after.is_none()) {
                    if let Some(window) = self.windows.get_mut(&*changed.name.0) {
                        window.base = window.base.saturating_sub(1);
                    }
                }
            }
            _ => {}
        }
        for changed in &commit.changes {
            let held = changed.after.as_ref().is_some_and(|it| it.item.held.is_some());
            if held {
                self.held.entry(changed.name.clone()).or_insert(commit.decided);
            } else {
                self.held.remove(&changed.name);
            }
        }
        Ok(())
    }
}
