//! Promises, checked on what everyone saw. Each panics with the promise's name and the trace.

use std::{collections::BTreeMap, time::Duration};

use super::trace::{Event, Seen, Trace};

/// C1: once a watcher knew instances, it knows some for ever; once a caller was answered, it always has someone to ask.
pub fn c1_last_known_good(trace: &Trace) {
    let mut known: BTreeMap<String, bool> = BTreeMap::new();
    for (at, event) in trace.events() {
        let (who, knows) = match event {
            Event::View { who, all, .. } => (who, !all.is_empty()),
            Event::Called { who, outcome: Ok(_), .. } => (who, true),
            Event::Called { who, nobody: true, .. } => (who, false),
            _ => continue,
        };
        let before = known.entry(who.clone()).or_default();
        assert!(knows || !*before, "C1 broken at {at:?}: {who} knows no instance any longer\n{trace}");
        *before |= knows;
    }
}

/// L1, where every registrant can renew: once a watcher saw an instance, it sees it for ever.
pub fn l1_no_early_expiry(trace: &Trace) {
    let mut views: BTreeMap<String, Seen> = BTreeMap::new();
    for (at, event) in trace.events() {
        let Event::View { who, all, .. } = event else { continue };
        let before = views.entry(who.clone()).or_default();
        for id in before.keys() {
            assert!(all.contains_key(id), "L1 broken at {at:?}: {who} lost {id}, which renews\n{trace}");
        }
        *before = all;
    }
}

/// W2, as far as the application sees: each change's difference leads from the view before it to the view after it.
pub fn w2_gapless(trace: &Trace) {
    let mut views: BTreeMap<String, Seen> = BTreeMap::new();
    for (at, event) in trace.events() {
        let Event::View { who, all, added, updated, removed } = event else { continue };
        let view = views.entry(who.clone()).or_default();
        let odd = added.keys().any(|id| view.contains_key(id))
            || updated.keys().chain(removed.keys()).any(|id| !view.contains_key(id));
        view.retain(|id, _| !removed.contains_key(id));
        view.extend(added.into_iter().chain(updated));
        assert!(
            !odd && *view == all,
            "W2 broken at {at:?}: {who}'s change does not lead to its view\n{trace}"
        );
    }
}

/// W8, the other way round: what is served is right, so nobody ever reads a view anew.
pub fn w8_nothing_to_resync(trace: &Trace) {
    let resync = |_: &Duration, event: &Event| matches!(event, Event::Healthy { resyncs: 1.., .. });
    assert!(!trace.has(resync), "W8: a view did not match its digest\n{trace}");
}

/// The trace goes on as it should at its end: the watchers see exactly this, and calls reach everyone of it.
pub fn all_is_well(trace: &Trace, instances: &Seen, since: Duration) {
    let events = trace.events();
    let mut views: BTreeMap<&str, &Seen> = BTreeMap::new();
    for (_, event) in &events {
        if let Event::View { who, all, .. } = event {
            views.insert(who, all);
        }
    }
    assert!(!views.is_empty(), "nobody watched");
    for (who, view) in views {
        assert_eq!(view, instances, "{who} ends with another view\n{trace}");
    }
    let mut answered: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, event) in events.iter().filter(|(at, _)| *at >= since) {
        match event {
            Event::Called { outcome: Ok(who), .. } => *answered.entry(who).or_default() += 1,
            Event::Called { outcome: Err(error), .. } => panic!("a call failed at {at:?}: {error}\n{trace}"),
            _ => {}
        }
    }
    for id in instances.keys() {
        assert!(answered.contains_key(id.as_str()), "nobody reached {id} any more\n{trace}");
    }
}
