//! L1 and L2 to the millisecond, where commits, answers and stalls are known: when each lease may run out, and by when it
//! must have.

use std::collections::BTreeMap;

use registry_server::core::Cause;

use super::{
    Broken, Promise,
    ledger::{Judge, Ledger},
};
use crate::history::{Answer, Ask, Asked, Commit, Lease, Millis, Rules, Run};

/// A stall may count for longer than it was: the server looks what time it is so often, before it and after it.
pub(super) const HEARTBEAT: Millis = 250;

/// When a lease runs out: not before, and at the latest.
#[derive(Clone, Copy, Default)]
struct Ends {
    earliest: Millis,
    latest: Millis,
}

pub(super) struct Expiry<'a> {
    rules: &'a Rules,
    /// Which of the two is judged.
    promise: Promise,
    ends: BTreeMap<Lease, Ends>,
    stalls: Vec<(Millis, Millis)>,
}

impl<'a> Expiry<'a> {
    /// Judges one of the two.
    pub(super) fn new(rules: &'a Rules, promise: Promise) -> Self {
        Self { rules, promise, ends: BTreeMap::new(), stalls: Vec::new() }
    }
}

impl Judge for Expiry<'_> {
    fn passed(&mut self, now: Millis, ledger: &Ledger<'_>) -> Result<(), Broken> {
        let Some(within) = self.rules.expiry.filter(|_| self.promise == Promise::L2) else { return Ok(()) };
        for (lease, ends) in self.ends.iter().filter(|(_, ends)| now > ends.latest + within) {
            if let Some((name, _)) = ledger.carried(*lease).find(|(_, placed)| placed.item.held.is_none()) {
                return Err(Promise::L2.broken(format!(
                    "{name:?} is there at {now} ms, and its lease {lease} ran out at {} ms",
                    ends.latest
                )));
            }
        }
        Ok(())
    }

    fn stalled(&mut self, from: Millis, until: Millis) {
        self.stalls.push((from, until));
        for ends in self.ends.values_mut() {
            ends.earliest += until - from;
            ends.latest += until - from + HEARTBEAT;
        }
    }

    fn began(&mut self, run: &Run, ledger: &Ledger<'_>) {
        let full = |(lease, it): (&Lease, &super::ledger::LeaseNow)| {
            let (at, ttl) = (run.began.1, it.grant.ttl);
            (*lease, Ends { earliest: at + ttl, latest: at + ttl + ttl / 5 + 1 })
        };
        self.ends = ledger.leases.iter().map(full).collect();
    }

    fn answered(
        &mut self,
        asked: &Asked,
        at: Millis,
        answer: &Answer,
        ledger: &Ledger<'_>,
    ) -> Result<(), Broken> {
        let sent = asked.sent.1;
        match (&asked.ask, answer) {
            (Ask::Register { grant, .. }, Answer::Done(_)) => {
                self.ends.insert(grant.lease, Ends { earliest: sent + grant.ttl, latest: at + grant.ttl });
            }
            (Ask::Renew(lease), answer) => {
                let slept = self.stalls.iter().any(|(from, until)| sent <= *until && *from <= at);
                if let Some(within) = self.rules.renewal.filter(|within| !slept && at - sent > *within)
                    && self.promise == Promise::L1
                {
                    return Err(Promise::L1.broken(format!(
                        "a renewal of lease {lease} was answered after {} ms, and is to be within {within}",
                        at - sent
                    )));
                }
                let ttl = ledger.ttl(*lease).filter(|_| *answer == Answer::Renewed);
                if let (Some(ends), Some(ttl)) = (self.ends.get_mut(lease), ttl) {
                    ends.earliest = ends.earliest.max(sent + ttl);
                    ends.latest = ends.latest.max(at + ttl);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn committed(&mut self, commit: &Commit, ledger: &Ledger<'_>) -> Result<(), Broken> {
        if commit.cause != Cause::Expire {
            return Ok(());
        }
        for changed in &commit.changes {
            let Some(before) = changed.before.as_ref().filter(|it| it.item.held.is_none()) else { continue };
            // As it was when it was decided.
            let since = self.stalls.iter().filter(|(_, until)| *until > commit.decided);
            let since: Millis = since.map(|(from, until)| until - from).sum();
            let earliest = self.ends.get(&before.lease).map_or(0, |ends| ends.earliest);
            let earliest = earliest.saturating_sub(since);
            // What was found by a restart nobody had heard of: renewals may have been acknowledged since it was decided.
            if commit.decided < earliest && commit.run > 0 && self.promise == Promise::L1 {
                return Err(Promise::L1.broken(format!(
                    "{:?} expired at {} ms by revision {}, and its lease {} lives until {earliest} ms",
                    changed.name, commit.decided, commit.revision, before.lease
                )));
            }
            let left = ledger.carried(before.lease).find(|(name, placed)| {
                placed.item.held.is_none() && commit.changes.iter().all(|it| it.name != **name)
            });
            if let Some((name, _)) = left.filter(|_| self.promise == Promise::L2) {
                return Err(Promise::L2.broken(format!(
                    "revision {} ends a part of lease {}: {name:?} is left",
                    commit.revision, before.lease
                )));
            }
        }
        Ok(())
    }

    fn after(&mut self, commit: &Commit, ledger: &Ledger<'_>) -> Result<(), Broken> {
        let from_now = |lease: Lease| ledger.ttl(lease).map(|ttl| commit.at + ttl);
        for changed in &commit.changes {
            let Some(after) = &changed.after else { continue };
            let released =
                changed.before.as_ref().is_some_and(|it| it.item.held.is_some()) && after.item.held.is_none();
            if let Some(at) = from_now(after.lease).filter(|_| released || commit.cause == Cause::Register) {
                let ends = self.ends.entry(after.lease).or_default();
                ends.latest = ends.latest.max(at);
            }
        }
        for grant in &commit.granted {
            // A shorter TTL ends it sooner.
            self.ends.entry(grant.lease).or_default().earliest = 0;
        }
        self.ends.retain(|lease, _| ledger.leases.contains_key(lease));
        Ok(())
    }
}
