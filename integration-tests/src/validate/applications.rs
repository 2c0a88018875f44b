//! What applications on the SDK saw, judged by a trace beside what registries hold: W2, W8 and L1 as far as they show there,
//! and that everyone ends up with the truth.

use std::{collections::BTreeMap, time::Duration};

use super::{Broken, Promise};
use crate::sim::{
    Fault, Trace,
    trace::{Event, Seen},
};

/// L1, where every registrant can renew all the time: once a watcher saw an instance, it sees it for ever.
pub fn l1_nobody_is_lost(trace: &Trace) -> Result<(), Broken> {
    let mut views: BTreeMap<String, Seen> = BTreeMap::new();
    for (at, event) in trace.events() {
        let Event::View { who, all, .. } = event else { continue };
        let before = views.entry(who.clone()).or_default();
        if let Some(id) = before.keys().find(|id| !all.contains_key(*id)) {
            return Err(Promise::L1.broken(format!("at {at:?} {who} lost {id}, which renews")));
        }
        *before = all;
    }
    Ok(())
}

/// W2, as far as the application sees: each change's difference leads from the view before it to the view after it.
pub fn w2_differences_lead_to_views(trace: &Trace) -> Result<(), Broken> {
    let mut views: BTreeMap<String, Seen> = BTreeMap::new();
    for (at, event) in trace.events() {
        if let Event::Fault(Fault::Crash(who)) = &event {
            views.remove(who);
        }
        let Event::View { who, all, added, updated, removed } = event else { continue };
        let view = views.entry(who.clone()).or_default();
        let odd = added.keys().any(|id| view.contains_key(id))
            || updated.keys().chain(removed.keys()).any(|id| !view.contains_key(id));
        view.retain(|id, _| !removed.contains_key(id));
        view.extend(added.into_iter().chain(updated));
        if odd || *view != all {
            return Err(Promise::W2.broken(format!("at {at:?} {who}'s change does not lead to its view")));
        }
    }
    Ok(())
}

/// W8, the other way round: what is served is right, so nobody ever reads a view anew.
pub fn w8_nothing_to_resync(trace: &Trace) -> Result<(), Broken> {
    let resync = trace.events().into_iter().find_map(|(at, event)| match event {
        Event::Healthy { who, resyncs: 1.., .. } => Some((at, who)),
        _ => None,
    });
    resync.map_or(Ok(()), |(at, who)| {
        Err(Promise::W8.broken(format!("at {at:?} a view of {who} did not match its digest")))
    })
}

/// In the end every registry holds exactly its instances, every view is that of a registry, and since `well` every call was
/// answered. `instances`: what each registry is to hold.
pub fn everyone_is_well(
    trace: &Trace,
    instances: &BTreeMap<String, Seen>,
    well: Duration,
) -> Result<(), Broken> {
    let mut views: BTreeMap<String, Seen> = BTreeMap::new();
    let mut holds: BTreeMap<String, Seen> = BTreeMap::new();
    let mut answered: BTreeMap<String, usize> = BTreeMap::new();
    for (at, event) in trace.events() {
        match event {
            Event::View { who, all, .. } => _ = views.insert(who, all),
            Event::Holds { who, all, .. } => _ = holds.insert(who, all),
            Event::Called { who, began, outcome, .. } => {
                let answers = answered.entry(who.clone()).or_default();
                if began < well {
                    continue;
                }
                if let Err(error) = outcome {
                    let what = format!("at {at:?} all is well, and a call of {who} fails: {error}");
                    return Err(Promise::C1.broken(what));
                }
                *answers += 1;
            }
            _ => {}
        }
    }
    for (registry, held) in &holds {
        if instances.get(registry) != Some(held) {
            let what = format!("{registry} ends with {held:?} and not with {:?}", instances.get(registry));
            return Err(Promise::L1.broken(what));
        }
    }
    if let Some((who, view)) = views.iter().find(|(_, view)| !instances.values().any(|it| it == *view)) {
        let what = format!("{who} ends with {view:?}, which no registry holds: {instances:?}");
        return Err(Promise::C3.broken(what));
    }
    match answered.iter().find(|(_, answers)| **answers == 0) {
        Some((who, _)) => Err(Promise::C1.broken(format!("since {well:?} {who} was not answered at all"))),
        None if views.is_empty() => Err(Promise::C3.broken("nobody watched")),
        None => Ok(()),
    }
}
