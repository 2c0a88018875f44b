//! Promises, checked on what everyone saw. Each panics with the promise's name and the trace.

use std::{collections::BTreeMap, time::Duration};

use super::trace::{Event, Seen, Trace};

/// C1: once a watcher knew instances, it knows some for ever; once a caller was answered, it always has someone to ask.
pub fn c1_last_known_good(trace: &Trace) {
    let mut before: BTreeMap<String, bool> = BTreeMap::new();
    for (at, event) in trace.events() {
        let (who, knows) = match event {
            Event::View { who, all, .. } => (who, !all.is_empty()),
            Event::Called { who, outcome: Ok(_), .. } => (who, true),
            Event::Called { who, nobody: true, .. } => (who, false),
            _ => continue,
        };
        let knew = before.entry(who.clone()).or_default();
        assert!(knows || !*knew, "C1 broken at {at:?}: {who} knows no instance any longer\n{trace}");
        *knew |= knows;
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

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn seen(ids: &[&str]) -> Seen {
        ids.iter().map(|id| ((*id).to_owned(), 1)).collect()
    }

    /// A watcher that saw these views, with the differences that lead from one to the next.
    fn watched(views: &[&[&str]]) -> Trace {
        let trace = Trace::default();
        let mut before = Seen::new();
        for all in views {
            let all = seen(all);
            let missing = |from: &Seen, of: &Seen| {
                from.iter().filter(|(id, _)| !of.contains_key(*id)).map(|(id, w)| (id.clone(), *w)).collect()
            };
            trace.add(
                NOW,
                Event::View {
                    who: "watcher".to_owned(),
                    added: missing(&all, &before),
                    updated: Seen::new(),
                    removed: missing(&before, &all),
                    all: all.clone(),
                },
            );
            before = all;
        }
        trace
    }

    fn called(trace: &Trace, outcome: Result<&str, &str>, nobody: bool) {
        let outcome = outcome.map(str::to_owned).map_err(str::to_owned);
        trace.add(NOW, Event::Called { who: "caller".to_owned(), outcome, nobody });
    }

    #[test]
    fn kept_promises_pass() {
        let trace = watched(&[&[], &["a"], &["a", "b"]]);
        called(&trace, Err("not discovered yet"), true);
        called(&trace, Ok("a"), false);
        called(&trace, Ok("b"), false);
        c1_last_known_good(&trace);
        l1_no_early_expiry(&trace);
        w2_gapless(&trace);
        w8_nothing_to_resync(&trace);
        all_is_well(&watched(&[&[]]), &Seen::new(), NOW);
    }

    #[test]
    #[should_panic(expected = "C1 broken at 0ns: watcher")]
    fn an_emptied_view_breaks_c1() {
        c1_last_known_good(&watched(&[&["a"], &[]]));
    }

    #[test]
    #[should_panic(expected = "C1 broken at 0ns: caller")]
    fn a_caller_left_with_nobody_breaks_c1() {
        let trace = Trace::default();
        called(&trace, Ok("a"), false);
        called(&trace, Err("nobody"), true);
        c1_last_known_good(&trace);
    }

    #[test]
    #[should_panic(expected = "L1 broken at 0ns: watcher lost a")]
    fn a_lost_instance_breaks_l1() {
        l1_no_early_expiry(&watched(&[&["a", "b"], &["b"]]));
    }

    #[test]
    #[should_panic(expected = "W2 broken")]
    fn a_difference_that_leads_elsewhere_breaks_w2() {
        let trace = watched(&[&["a"]]);
        let none = Seen::new;
        let all = seen(&["a", "b"]);
        let who = "watcher".to_owned();
        trace.add(NOW, Event::View { who, all, added: none(), updated: none(), removed: none() });
        w2_gapless(&trace);
    }

    #[test]
    #[should_panic(expected = "W8")]
    fn a_resync_breaks_w8() {
        let trace = Trace::default();
        trace.add(NOW, Event::Healthy { who: "watcher".to_owned(), streams: 1, resyncs: 1 });
        w8_nothing_to_resync(&trace);
    }

    #[test]
    #[should_panic(expected = "nobody reached b")]
    fn an_instance_that_is_never_called_is_not_well() {
        let trace = watched(&[&["a", "b"]]);
        called(&trace, Ok("a"), false);
        all_is_well(&trace, &seen(&["a", "b"]), NOW);
    }
}
