//! What callers were promised, judged on what everyone in a simulation saw: C1–C4.
//!
//! A trace has one order for all hosts, and true times. What a validator cannot know it does not claim: a call that fails
//! while the network does is nobody's fault, and a registry that can not be reached tells nobody anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Broken, Promise};
use crate::sim::{
    Fault, Trace,
    trace::{DrainStep, Event, Seen},
};

/// C3: within this long it is noticed that a registry is out of reach: 15 s, by a clock that may be slow, after what was
/// under way when the network broke.
pub const NOTICED_WITHIN: Duration = Duration::from_secs(16);
/// C3: within this long a registry that can be reached is followed: the SDK's longest backoff, and two attempts to connect.
pub const RESUMED_WITHIN: Duration = Duration::from_secs(20);
/// An empty view of a history that is new to a client may be right after this long: the SDK doubts it for 30 s by its own
/// clock.
const DOUBTED: Duration = Duration::from_secs(29);
/// What a registry held this long ago may be what someone is just told.
const UNDER_WAY: Duration = Duration::from_secs(2);

/// A validator of what callers saw: of a trace, and when it ended.
pub type CallerValidator = fn(&Trace, Duration) -> Result<(), Broken>;

/// All of them.
pub const CALLERS: &[CallerValidator] =
    &[c1_last_known_good, c2_no_dead_picks, c3_never_deaf, c4_drain_without_a_sleep];

/// C1: nobody's view becomes empty unless a registry's did, by removals that it was asked for; and nobody whose view has
/// someone to call is told that there is nobody.
pub fn c1_last_known_good(trace: &Trace, _: Duration) -> Result<(), Broken> {
    let mut truths: BTreeMap<String, Truth> = BTreeMap::new();
    let mut views: BTreeMap<String, Vec<(Duration, Seen)>> = BTreeMap::new();
    let broken = |at: Duration, what: String| Err(Promise::C1.broken(format!("at {at:?} {what}")));
    for (at, event) in trace.events() {
        match event {
            Event::Holds { who, epoch, all } => truths.entry(who).or_default().is_now(at, epoch, &all),
            Event::Fault(Fault::Crash(who)) => _ = views.remove(&who),
            Event::View { who, all, .. } => {
                let known = views.entry(who.clone()).or_default();
                let emptied = all.is_empty() && known.last().is_some_and(|(_, view)| !view.is_empty());
                if emptied && !truths.values().any(|truth| truth.was_empty(at)) {
                    return broken(at, format!("{who} knows no instance any longer"));
                }
                known.push((at, all));
            }
            Event::Called { who, began, nobody: true, .. } => {
                let known = during(views.get(&who), began);
                // Who never knew anyone was promised nobody.
                if !known.is_empty() && known.iter().all(|(_, view)| view.values().any(|weight| *weight > 0))
                {
                    return broken(at, format!("{who} has nobody to call, although it knows someone"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// C2: nobody answers a call whom the caller's own view lacked, or had with weight 0, from before the call was made until
/// its end.
pub fn c2_no_dead_picks(trace: &Trace, _: Duration) -> Result<(), Broken> {
    let mut views: BTreeMap<String, Vec<(Duration, Seen)>> = BTreeMap::new();
    for (at, event) in trace.events() {
        match event {
            Event::Fault(Fault::Crash(who)) => _ = views.remove(&who),
            Event::View { who, all, .. } => views.entry(who).or_default().push((at, all)),
            Event::Called { who, began, outcome: Ok(id), .. } => {
                let may_be_picked = |(_, view): &(_, Seen)| view.get(&id).is_some_and(|weight| *weight > 0);
                if !during(views.get(&who), began).iter().any(may_be_picked) {
                    return Err(Promise::C2.broken(format!(
                        "at {at:?} {who} called {id}, which its view ruled out before {began:?}"
                    )));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// C3: whoever is cut off from the registry it follows is told within 15 s, and is told that all is well again within 20 s,
/// counted from when it has been told and any registry can be reached.
pub fn c3_never_deaf(trace: &Trace, until: Duration) -> Result<(), Broken> {
    let mut network = Network::default();
    let mut followers: BTreeMap<String, Follower> = BTreeMap::new();
    for (at, event) in trace.events() {
        check(at, &followers)?;
        network.hear(&event);
        hear(&mut followers, &network, &event);
        for (who, follower) in &mut followers {
            follower.look(at, who, &network);
        }
    }
    check(until, &followers)
}

/// C4: when a registry says that its watchers have applied the mark of an instance that drains, nobody whose stream to that
/// registry lives would still pick the instance; and no call fails because instances drain, or registries restart, in good
/// order.
pub fn c4_drain_without_a_sleep(trace: &Trace, _: Duration) -> Result<(), Broken> {
    let mut network = Network::default();
    let mut followers: BTreeMap<String, Follower> = BTreeMap::new();
    let mut views: BTreeMap<String, Seen> = BTreeMap::new();
    // Who did not know when a drain went on.
    let mut told: BTreeMap<(String, String), Option<(Duration, String)>> = BTreeMap::new();
    // Who was answered before, and since when nothing but drains, weights and restarts in good order happened.
    let (mut served, mut quiet_since) = (BTreeSet::new(), Duration::ZERO);
    for (at, event) in trace.events() {
        network.hear(&event);
        hear(&mut followers, &network, &event);
        match event {
            Event::View { who, all, .. } => _ = views.insert(who, all),
            Event::Drain { who: instance, step: DrainStep::Told(registry) } => {
                let picks = |view: &Seen| view.get(&instance).is_some_and(|weight| *weight > 0);
                let unaware = followers.iter().find(|(who, follower)| {
                    follower.surely_follows(&registry) && views.get(*who).is_some_and(picks)
                });
                let unaware = unaware.map(|(who, _)| (at, who.clone()));
                told.insert((instance, registry), unaware);
            }
            Event::Drain { who: instance, step: DrainStep::Knew { registry, all } } => {
                // Only if the registry said so does the drain promise anything.
                if let Some(Some((at, who))) =
                    told.remove(&(instance.clone(), registry.clone())).filter(|_| all)
                {
                    return Err(Promise::C4.broken(format!(
                        "at {at:?} {instance} was told by {registry} that all callers know of its drain, and {who} does not"
                    )));
                }
            }
            Event::Called { who, outcome: Ok(_), .. } => _ = served.insert(who),
            Event::Called { who, began, outcome: Err(error), nobody: false }
                if served.contains(&who) && began > quiet_since + NOTICED_WITHIN + RESUMED_WITHIN =>
            {
                return Err(Promise::C4.broken(format!(
                    "at {at:?} a call of {who} failed while nothing but drains and restarts in good order happened: {error}"
                )));
            }
            Event::Fault(fault) => {
                if let Fault::Crash(who) = &fault {
                    views.remove(who);
                    served.remove(who);
                }
                if !matches!(fault, Fault::Weight(..) | Fault::Drain(_) | Fault::Restart(_)) {
                    quiet_since = at;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The views that counted between then and the newest one.
fn during(views: Option<&Vec<(Duration, Seen)>>, began: Duration) -> &[(Duration, Seen)] {
    let Some(views) = views else { return &[] };
    // Views that came in the same instant as the call may have come after it.
    let known = views.partition_point(|(at, _)| *at < began).saturating_sub(1);
    &views[known..]
}

/// What a registry holds, as far as emptiness goes.
#[derive(Default)]
struct Truth {
    epoch: String,
    /// Since when it has been empty, and whether by removals.
    empty: Option<(Duration, bool)>,
    /// When it was empty by removals, or long enough, for the last time.
    was: Option<Duration>,
}

impl Truth {
    fn is_now(&mut self, at: Duration, epoch: String, all: &Seen) {
        let same = self.epoch == epoch;
        if self.was_empty(at) && self.empty.is_some() {
            self.was = Some(at);
        }
        self.epoch = epoch;
        self.empty = all.is_empty().then_some(match self.empty {
            Some((since, removed)) => (since, removed && same),
            None => (at, same),
        });
    }

    fn was_empty(&self, at: Duration) -> bool {
        self.empty.is_some_and(|(since, removed)| removed || since + DOUBTED <= at)
            || self.was.is_some_and(|was| at <= was + UNDER_WAY)
    }
}

/// Who can reach whom.
#[derive(Default)]
struct Network {
    serving: BTreeSet<String>,
    /// All that ever served.
    registries: BTreeSet<String>,
    /// From whom to whom nothing comes.
    cut: BTreeSet<(String, String)>,
    lossy: BTreeSet<(String, String)>,
}

impl Network {
    fn hear(&mut self, event: &Event) {
        let both = |a: &String, b: &String| [(a.clone(), b.clone()), (b.clone(), a.clone())];
        match event {
            Event::Started { who, .. } => {
                self.serving.insert(who.clone());
                self.registries.insert(who.clone());
            }
            Event::Stopping { who } | Event::Fault(Fault::Crash(who)) => _ = self.serving.remove(who),
            Event::Fault(Fault::Partition(a, b)) => self.cut.extend(both(a, b)),
            Event::Fault(Fault::OneWay(from, to)) => _ = self.cut.insert((from.clone(), to.clone())),
            Event::Fault(Fault::Loss(a, b, _)) => self.lossy.extend(both(a, b)),
            Event::Fault(Fault::Repair(a, b)) => {
                for link in both(a, b) {
                    self.cut.remove(&link);
                    self.lossy.remove(&link);
                }
            }
            _ => {}
        }
    }

    /// Whether nothing comes from there.
    fn is_cut(&self, from: &str, to: &str) -> bool {
        !self.serving.contains(from) || self.cut.contains(&(from.to_owned(), to.to_owned()))
    }

    /// Whether everything comes through, both ways.
    fn is_whole(&self, who: &str, registry: &str) -> bool {
        let back = (who.to_owned(), registry.to_owned());
        !self.is_cut(registry, who) && !self.cut.contains(&back) && !self.lossy.contains(&back)
    }
}

/// Someone who follows a registry.
#[derive(Default)]
struct Follower {
    /// The registry that its view is of: each has weights of its own. `None` if it is not known.
    follows: Option<String>,
    /// Its stream was heard of since anything was wrong with it.
    heard: bool,
    /// It knows that something is wrong.
    troubled: bool,
    /// Since when it has been cut off without knowing it.
    cut_off: Option<Duration>,
    /// Since when it has known that something is wrong, and could have found a registry.
    waits: Option<Duration>,
}

impl Follower {
    fn surely_follows(&self, registry: &str) -> bool {
        self.heard && !self.troubled && self.follows.as_deref() == Some(registry)
    }

    fn look(&mut self, now: Duration, who: &str, network: &Network) {
        let since = |before: Option<Duration>, so: bool| so.then(|| before.unwrap_or(now));
        let cut = self.follows.as_ref().is_some_and(|registry| network.is_cut(registry, who));
        let reachable = network.registries.iter().any(|registry| network.is_whole(who, registry));
        self.cut_off = since(self.cut_off, !self.troubled && cut);
        self.waits = since(self.waits, self.troubled && reachable);
    }
}

fn hear(followers: &mut BTreeMap<String, Follower>, network: &Network, event: &Event) {
    // With one registry there is no doubt; with several the view's weights tell.
    let only = || network.registries.first().filter(|_| network.registries.len() == 1).cloned();
    match event {
        Event::View { who, all, .. } => {
            let follower = followers.entry(who.clone()).or_default();
            let of = |weight: &u32| format!("registry-{}", weight / 1_000);
            follower.follows = only().or_else(|| all.values().find(|weight| **weight > 0).map(of));
            follower.waits = None;
        }
        // It is not deaf: it heard something that it does not believe yet, of whomever.
        Event::Troubled { who, error } if error.contains(DOUBT) => {
            let follower = followers.entry(who.clone()).or_default();
            (follower.troubled, follower.heard, follower.follows) = (false, false, None);
        }
        Event::Troubled { who, .. } => {
            let follower = followers.entry(who.clone()).or_default();
            (follower.troubled, follower.heard, follower.follows) = (true, false, None);
        }
        Event::Healthy { who, .. } => {
            let follower = followers.entry(who.clone()).or_default();
            follower.troubled = false;
            follower.follows = follower.follows.take().or_else(only);
        }
        Event::Fault(Fault::Crash(who)) => _ = followers.remove(who),
        _ => {}
    }
    match event {
        Event::View { who, .. } | Event::Healthy { who, .. } => {
            if let Some(follower) = followers.get_mut(who) {
                let whole = |registry: &String| network.is_whole(who, registry);
                follower.heard = follower.follows.as_ref().is_some_and(whole);
            }
        }
        // Whatever was under way may be lost, with the stream.
        Event::Fault(
            Fault::Partition(a, b) | Fault::OneWay(a, b) | Fault::Loss(a, b, _) | Fault::Slow(a, b, _),
        ) => {
            for who in [a, b] {
                if let Some(follower) = followers.get_mut(who) {
                    follower.heard = false;
                }
            }
        }
        Event::Stopping { who: registry } | Event::Fault(Fault::Crash(registry)) => {
            for follower in followers.values_mut() {
                follower.heard &= follower.follows.as_ref() != Some(registry);
            }
        }
        _ => {}
    }
}

/// What the SDK's error says while it does not believe an empty view.
const DOUBT: &str = "the registry has lost its data";

fn check(at: Duration, followers: &BTreeMap<String, Follower>) -> Result<(), Broken> {
    for (who, Follower { follows, cut_off, waits, .. }) in followers {
        if cut_off.is_some_and(|since| at > since + NOTICED_WITHIN) {
            let from = follows.as_deref().unwrap_or_default();
            let what = format!("at {at:?} {who} does not notice that it is cut off from {from}");
            return Err(Promise::C3.broken(what));
        }
        if waits.is_some_and(|since| at > since + RESUMED_WITHIN) {
            let what = format!("at {at:?} {who} does not resume, although a registry can be reached");
            return Err(Promise::C3.broken(what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
