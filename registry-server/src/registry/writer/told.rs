//! What people should find in the log of the process. Decides nothing.

use std::collections::BTreeMap;

use tracing::{info, warn};

use crate::core::{Cause, Event, Record, Revision, ServiceChange};

/// What nobody asked for, and what operators did.
pub(super) fn tell(record: &Record, revision: Revision, changes: &[ServiceChange]) {
    let instances = || changes.iter().map(|change| change.items.len()).sum::<usize>();
    match record.cause {
        Cause::Expire => {
            let held = record.events.iter().filter(|event| matches!(event, Event::Held { .. })).count();
            info!(revision, instances = instances(), held, "leases ran out");
            tell_held(record, revision);
        }
        Cause::HoldExpire => info!(revision, instances = instances(), "hold times passed"),
        Cause::OverrideExpire => info!(revision, instances = instances(), "overrides expired"),
        Cause::Override | Cause::ResolveHold => {
            info!(revision, instances = instances(), actor = %record.actor, cause = ?record.cause, "an operator intervened");
        }
        Cause::Register | Cause::Deregister | Cause::RenewHeld => {}
    }
}

/// A line for each service of which instances are held now.
fn tell_held(record: &Record, revision: Revision) {
    let mut services: BTreeMap<_, (usize, _)> = BTreeMap::new();
    for event in &record.events {
        if let Event::Held { key, held, .. } = event {
            services.entry(key).or_insert((0, &held.reason)).0 += 1;
        }
    }
    for (service, (held, reason)) in services {
        warn!(revision, %service, held, %reason, "instances are held");
    }
}
