//! What every view is to show at every revision, where the registry's commits are known: the truth that watchers and
//! readings are held against. Owns no promise.

use std::collections::HashMap;

use crate::{
    history::{Commit, History, Item, Items, WatcherRecord},
    replica::Replica,
};

/// What a service had from a revision on, in order.
type States = Vec<(u64, Items)>;

/// All services at all revisions. Empty where nobody could see the commits: then it judges nothing.
pub(super) struct Truth<'a> {
    /// By epoch and service.
    services: HashMap<&'a str, HashMap<&'a str, States>>,
    commits: &'a [Commit],
}

impl<'a> Truth<'a> {
    pub(super) fn of(history: &'a History) -> Self {
        let mut services: HashMap<&str, HashMap<&str, States>> = HashMap::new();
        for commit in &history.commits {
            for changed in &commit.changes {
                let states = services.entry(&commit.epoch).or_default().entry(&changed.name.0).or_default();
                let mut items = states.last().map(|(_, items)| items.clone()).unwrap_or_default();
                match &changed.after {
                    Some(placed) => items.insert(changed.name.1.clone(), placed.item.clone()),
                    None => items.remove(&changed.name.1),
                };
                match states.last_mut().filter(|(revision, _)| *revision == commit.revision) {
                    Some(state) => state.1 = items,
                    None => states.push((commit.revision, items)),
                }
            }
        }
        Self { services, commits: &history.commits }
    }

    /// Whether nothing is known.
    pub(super) fn is_silent(&self) -> bool {
        self.commits.is_empty()
    }

    /// The commits of an epoch after one revision and up to another, in order.
    pub(super) fn between(&self, epoch: &str, after: u64, upto: u64) -> impl Iterator<Item = &'a Commit> {
        let epoch = epoch.to_owned();
        let within = move |it: &&Commit| *it.epoch == *epoch && it.revision > after && it.revision <= upto;
        self.commits.iter().filter(within)
    }

    /// What the service has at a revision.
    pub(super) fn at(&self, epoch: &str, service: &str, revision: u64) -> Items {
        let states = self.states(epoch, service);
        let behind = states.partition_point(|(at, _)| *at <= revision);
        behind.checked_sub(1).map(|at| states[at].1.clone()).unwrap_or_default()
    }

    /// Whether the service had been registered by a revision.
    pub(super) fn exists(&self, epoch: &str, service: &str, revision: u64) -> bool {
        self.states(epoch, service).first().is_some_and(|(first, _)| *first <= revision)
    }

    /// The revision of the service's last change up to a revision; 0 if there was none.
    pub(super) fn last_change(&self, epoch: &str, service: &str, revision: u64) -> u64 {
        let states = self.states(epoch, service);
        let behind = states.partition_point(|(at, _)| *at <= revision);
        behind.checked_sub(1).map_or(0, |at| states[at].0)
    }

    /// Every number of instances that the service has from a revision on, up to another.
    pub(super) fn counts(&self, epoch: &str, service: &str, from: u64, upto: u64) -> Vec<usize> {
        let states = self.states(epoch, service).iter();
        let later = states.filter(|(at, _)| *at > from && *at <= upto).map(|(_, items)| items.len());
        std::iter::once(self.at(epoch, service, from).len()).chain(later).collect()
    }

    /// How a watcher's view differs from what it is to be; `None` if it does not, or nothing is known.
    pub(super) fn differs(&self, record: &WatcherRecord, view: &Replica) -> Option<String> {
        if self.is_silent() || view.epoch.is_empty() {
            return None;
        }
        let truth = self.at(&view.epoch, &record.service, view.cursor);
        let selected = |item: &&std::sync::Arc<Item>| record.selection.takes(item);
        if truth.values().filter(selected).eq(view.items.values()) {
            return None;
        }
        let missing = truth.values().filter(selected).find(|it| view.items.get(&it.id) != Some(*it));
        let stale = view.items.values().find(|it| !selected(it) || truth.get(&it.id) != Some(*it));
        let brief = |item: &std::sync::Arc<Item>| format!("{} as of {}", item.id, item.mod_revision);
        let (missing, stale) = (missing.map(brief), stale.map(brief));
        Some(format!("at revision {} it lacks {missing:?} and shows {stale:?}", view.cursor))
    }

    fn states(&self, epoch: &str, service: &str) -> &[(u64, Items)] {
        self.services.get(epoch).and_then(|its| its.get(service)).map_or(&[], Vec::as_slice)
    }
}
