//! Promises, checked on what everyone saw. Each panics with the promise's name and the trace.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    script::Fault,
    trace::{Event, Seen, Trace},
};

/// C3: within this long it is noticed that a registry is out of reach.
const NOTICED_WITHIN: Duration = Duration::from_secs(15);
/// C3: within this long a registry that can be reached is followed: the SDK's longest backoff, and two attempts to connect.
const RESUMED_WITHIN: Duration = Duration::from_secs(20);

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

/// C2: nobody answers a call whom the caller's own view lacked, or had with weight 0, from before the call was made until
/// its end.
pub fn c2_no_dead_picks(trace: &Trace) {
    let mut views: BTreeMap<String, Vec<(Duration, Seen)>> = BTreeMap::new();
    for (at, event) in trace.events() {
        match event {
            Event::View { who, all, .. } => views.entry(who).or_default().push((at, all)),
            Event::Called { who, began, outcome: Ok(id), .. } => {
                let views = views.entry(who.clone()).or_default();
                // Views that came in the same instant as the call may have come after it.
                let known = views.partition_point(|(at, _)| *at < began).saturating_sub(1);
                let may_be_picked = |(_, view): &(_, Seen)| view.get(&id).is_some_and(|weight| *weight > 0);
                assert!(
                    views[known..].iter().any(may_be_picked),
                    "C2 broken at {at:?}: {who} called {id}, which its view ruled out before {began:?}\n{trace}"
                );
            }
            _ => {}
        }
    }
}

/// C3: whoever is cut off from the registry it follows is told within 15 s, and is told that all is well again within 20 s,
/// counted from when it has been told and any registry can be reached. `until`: when the trace ends.
pub fn c3_never_deaf(trace: &Trace, until: Duration) {
    let mut network = Network::default();
    let mut followers: BTreeMap<String, Follower> = BTreeMap::new();
    let check = |at: Duration, followers: &BTreeMap<String, Follower>| {
        for (who, Follower { follows, cut_off, waits, .. }) in followers {
            assert!(
                cut_off.is_none_or(|since| at <= since + NOTICED_WITHIN),
                "C3 broken at {at:?}: {who} does not notice that it is cut off from {follows}\n{trace}"
            );
            assert!(
                waits.is_none_or(|since| at <= since + RESUMED_WITHIN),
                "C3 broken at {at:?}: {who} does not resume, although a registry can be reached\n{trace}"
            );
        }
    };
    for (at, event) in trace.events() {
        check(at, &followers);
        match event {
            Event::View { who, all, .. } => {
                let follower = followers.entry(who).or_default();
                follower.waits = None;
                if let Some(weight) = all.values().find(|weight| **weight > 0) {
                    follower.follows = format!("registry-{}", weight / 1_000);
                }
            }
            Event::Troubled { who, .. } => followers.entry(who).or_default().troubled = true,
            Event::Healthy { who, .. } => followers.entry(who).or_default().troubled = false,
            Event::Started { who, .. } => _ = network.serving.insert(who),
            Event::Fault(fault) => network.hit(fault),
            Event::Called { .. } | Event::Registration { .. } => continue,
        }
        for (who, follower) in &mut followers {
            follower.look(at, who, &network);
        }
    }
    check(until, &followers);
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

/// The trace goes on as it should at its end: the watchers see exactly this, and calls reach everyone of it that has a
/// weight.
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
    for id in instances.iter().filter(|(_, weight)| **weight > 0).map(|(id, _)| id) {
        assert!(answered.contains_key(id.as_str()), "nobody reached {id} any more\n{trace}");
    }
}

/// Who can reach whom.
#[derive(Default)]
struct Network {
    serving: BTreeSet<String>,
    cut: BTreeSet<[String; 2]>,
    lossy: BTreeSet<[String; 2]>,
}

/// Someone who follows a registry.
#[derive(Default)]
struct Follower {
    /// The registry that its view is of: each has weights of its own. Empty if not known yet.
    follows: String,
    /// It knows that something is wrong.
    troubled: bool,
    /// Since when it has been cut off without knowing it.
    cut_off: Option<Duration>,
    /// Since when it has known that something is wrong, and could have found a registry.
    waits: Option<Duration>,
}

impl Network {
    fn hit(&mut self, fault: Fault) {
        match fault {
            Fault::Partition(a, b) => _ = self.cut.insert(link(&a, &b)),
            Fault::Loss(a, b, _) => _ = self.lossy.insert(link(&a, &b)),
            Fault::Repair(a, b) => {
                self.cut.remove(&link(&a, &b));
                self.lossy.remove(&link(&a, &b));
            }
            Fault::Crash(host) => _ = self.serving.remove(&host),
            // A registry says by itself when it serves.
            Fault::Start(_) | Fault::Weight(..) => {}
        }
    }
}

impl Follower {
    fn look(&mut self, now: Duration, who: &str, network: &Network) {
        let cut = |registry: &String| {
            !network.serving.contains(registry) || network.cut.contains(&link(who, registry))
        };
        let reachable = network
            .serving
            .iter()
            .any(|registry| !cut(registry) && !network.lossy.contains(&link(who, registry)));
        let since = |before: Option<Duration>, so: bool| so.then(|| before.unwrap_or(now));
        let cut_off = !self.troubled && !self.follows.is_empty() && cut(&self.follows);
        self.cut_off = since(self.cut_off, cut_off);
        self.waits = since(self.waits, self.troubled && reachable);
    }
}

fn link(a: &str, b: &str) -> [String; 2] {
    if a < b { [a.to_owned(), b.to_owned()] } else { [b.to_owned(), a.to_owned()] }
}

#[cfg(test)]
mod tests;
