//! One service as it is published: its instances, its part of the recent log, its views.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    mem,
    sync::{Arc, Mutex},
};

use super::{
    encode::Entry,
    explain::{Happened, Past},
    kept::Kept,
    lock,
    logged::{Logged, LoggedItem},
    signal::{Signal, Subscription},
    view::{
        Delta, Generation, Instances, Latest, Page, ServiceNow, Subscriptions, View, concerns, selected,
        snapshot,
    },
};
use crate::core::{InstanceId, Revision, Selector, Service, ServiceChange, ServiceKey};

/// Snapshots kept for readers who have pages to come.
const READINGS: usize = 4;

/// Names a view among those of its feed.
pub(super) type ViewId = u64;

/// A service as it is published. Shared between the hub, the log and the cursors on it.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) key: ServiceKey,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    now: Published,
    last_change: Revision,
    /// Changes after this revision are in `changes`.
    floor: Revision,
    changes: VecDeque<Arc<Logged>>,
    /// In one order, so that views of one stream are always marked in that order.
    views: BTreeMap<ViewId, View>,
    by_selector: HashMap<(Selector, bool), ViewId>,
    readings: VecDeque<(Selector, Arc<Generation>)>,
    next_id: u64,
    /// Dropped from the hub: whoever holds it must look for another.
    retired: bool,
    /// To be dropped from the hub when nobody watches.
    forget: bool,
}

/// What is in the service now.
#[derive(Debug, Default)]
struct Published {
    instances: Instances,
    exists: bool,
    wall: u64,
}

impl State {
    /// Whether nobody watches an empty service that nobody registered or that is to be forgotten.
    fn is_unused(&self) -> bool {
        self.views.is_empty() && self.now.instances.is_empty() && (self.forget || !self.now.exists)
    }
}

impl Published {
    fn take_in(&mut self, change: &ServiceChange, after: Vec<Option<Arc<Entry>>>) -> Vec<LoggedItem> {
        // Its last instances go at once, all that there are: there is nothing to look for.
        if change.instances == 0 && change.items.len() == self.instances.len() {
            let all = mem::take(&mut self.instances);
            return all
                .values()
                .map(|entry| LoggedItem { before: Some(entry.clone()), after: None })
                .collect();
        }
        let instances = change.items.iter().zip(after);
        let taken_in = instances.map(|(item, after)| {
            let before = match &after {
                Some(entry) => self.instances.insert(item.id.clone(), Arc::clone(entry)),
                None => self.instances.remove(&item.id),
            };
            LoggedItem { before, after }
        });
        taken_in.collect()
    }

    fn describe(&self, key: &ServiceKey, epoch: &Arc<str>) -> ServiceNow {
        ServiceNow {
            key: key.clone(),
            epoch: Arc::clone(epoch),
            instances: self.instances.clone(),
            exists: self.exists,
            wall: self.wall,
        }
    }
}

/// A view that a change concerns, and who watches it.
pub(super) type Concerned = (ViewId, Subscriptions);

/// What lies between a cursor and the head.
#[derive(Debug)]
pub(super) enum Between {
    Nothing,
    Delta {
        delta: Arc<Delta>,
        /// It leads to the view's newest change.
        newest: bool,
    },
    /// The history is gone: a snapshot is needed.
    Unknown,
}

impl Feed {
    /// A service as it was loaded, without history.
    pub(super) fn load(key: ServiceKey, service: &Service) -> Self {
        let instances =
            service.instances.iter().map(|(id, instance)| (id.clone(), Entry::new(instance))).collect();
        let now = Published { instances, exists: true, wall: service.changed_at };
        let state =
            State { now, last_change: service.last_change, floor: service.last_change, ..State::default() };
        Self { key, state: Mutex::new(state) }
    }

    /// A service that nobody registered, or that is long forgotten: older cursors than `floor` are outdated.
    pub(super) fn unknown(key: ServiceKey, floor: Revision) -> Self {
        Self { key, state: Mutex::new(State { floor, ..State::default() }) }
    }

    /// Takes a change in. Says which views it concerns, and who watches them: they are to be marked before the head moves, and
    /// after every lock is let go, since whoever is woken needs it. `None`: this feed was dropped from the hub.
    pub(super) fn publish(&self, change: &ServiceChange) -> Option<(Arc<Logged>, Vec<Concerned>)> {
        // Encoded before the lock is taken.
        let after: Vec<_> = change.items.iter().map(|item| item.after.as_ref().map(Entry::new)).collect();
        let mut state = lock(&self.state);
        if state.retired {
            return None;
        }
        let emptiness = (state.now.exists, state.now.instances.is_empty());
        let items = state.now.take_in(change, after);
        state.now.exists = true;
        let logged = Arc::new(Logged::new(
            change.revision,
            change.wall,
            change.cause,
            Arc::clone(&change.actor),
            items,
            emptiness != (true, state.now.instances.is_empty()),
        ));
        state.forget = false;
        state.last_change = change.revision;
        state.now.wall = change.wall;
        state.changes.push_back(Arc::clone(&logged));
        let mut concerned = Vec::new();
        for (id, view) in &mut state.views {
            concerned.extend(view.publish(&logged).map(|watchers| (*id, watchers.clone())));
        }
        Some((logged, concerned))
    }

    /// The log no longer holds this service's changes up to `revision`.
    pub(super) fn drop_oldest(&self, revision: Revision) {
        let mut state = lock(&self.state);
        while state.changes.front().is_some_and(|change| change.revision <= revision) {
            state.changes.pop_front();
        }
        state.floor = state.floor.max(revision);
        for view in state.views.values_mut() {
            view.drop_through(revision);
        }
    }

    /// Finds or makes the view. `None`: this feed was dropped from the hub. `Err`: too many views.
    pub(super) fn open(
        &self,
        selector: &Selector,
        include_all: bool,
        limit: usize,
    ) -> Result<Option<ViewId>, ()> {
        let mut state = lock(&self.state);
        if state.retired {
            return Ok(None);
        }
        let named = (selector.clone(), include_all);
        if let Some(id) = state.by_selector.get(&named) {
            return Ok(Some(*id));
        }
        // Whoever wants the whole service is never refused because of what others select.
        let selective = state.views.values().filter(|view| !view.selector.is_all()).count();
        if !selector.is_all() && selective >= limit {
            return Err(());
        }
        let id = state.next_id;
        state.next_id += 1;
        let view =
            View::new(selector.clone(), include_all, state.floor, &state.now.instances, &state.changes);
        state.views.insert(id, view);
        state.by_selector.insert(named, id);
        Ok(Some(id))
    }

    /// Adds a watcher to a view and names its place. `None`: the view is gone meanwhile.
    pub(super) fn subscribe(
        &self,
        view: ViewId,
        signal: &Arc<Signal>,
        slot: u32,
    ) -> Option<(u64, Arc<Subscription>, Arc<Latest>)> {
        let mut state = lock(&self.state);
        let id = state.next_id;
        state.next_id += 1;
        let subscription = Arc::new(Subscription::new(Arc::clone(signal), slot));
        let latest = state.views.get_mut(&view)?.subscribe(id, Arc::clone(&subscription));
        Some((id, subscription, latest))
    }

    /// Takes a watcher out; the view goes with its last one.
    pub(super) fn unsubscribe(&self, view: ViewId, id: u64) {
        let mut state = lock(&self.state);
        if state.views.get_mut(&view).is_some_and(|view| view.unsubscribe(id)) {
            state.views.remove(&view);
            state.by_selector.retain(|_, other| *other != view);
        }
    }

    /// Whether a cursor can go on in this view without a snapshot.
    pub(super) fn can_resume(&self, view: ViewId, cursor: Revision) -> bool {
        lock(&self.state).views.get(&view).is_some_and(|view| view.can_resume(cursor))
    }

    /// What lies between a cursor and the head.
    pub(super) fn between(&self, view: ViewId, cursor: Revision, epoch: &Arc<str>) -> Between {
        let mut state = lock(&self.state);
        let State { now, views, changes, .. } = &mut *state;
        let Some(view) = views.get_mut(&view) else { return Between::Nothing };
        if !view.can_resume(cursor) {
            return Between::Unknown;
        }
        match view.delta(cursor, || now.describe(&self.key, epoch), changes) {
            Some(delta) => Between::Delta { newest: view.newest() == Some(delta.revision), delta },
            None => Between::Nothing,
        }
    }

    /// The snapshot that a watcher of a view starts from.
    pub(super) fn join(
        &self,
        view: ViewId,
        epoch: &Arc<str>,
        head: Revision,
        number: impl FnOnce() -> u64,
    ) -> Option<Arc<Generation>> {
        let mut state = lock(&self.state);
        let State { now, views, last_change, floor, .. } = &mut *state;
        Some(views.get_mut(&view)?.join(
            // Of a service that was just forgotten the head may not speak yet.
            head.max(*last_change).max(*floor),
            || now.describe(&self.key, epoch),
            number,
            now.wall,
        ))
    }

    /// A snapshot of a view, while it is one of those kept.
    pub(super) fn generation(&self, view: ViewId, number: u64) -> Option<Arc<Generation>> {
        lock(&self.state).views.get(&view)?.generation(number)
    }

    /// The whole of a selection at the head (D2): from a snapshot that is still current, or a new one. And whether the feed may
    /// be [retired](Self::retire).
    pub(super) fn read(
        &self,
        selector: &Selector,
        epoch: &Arc<str>,
        head: Revision,
        number: impl FnOnce() -> u64,
    ) -> (Page, bool) {
        let (generation, unused) = {
            let mut state = lock(&self.state);
            let last_change = state.last_change;
            let current = |reading: &&(Selector, Arc<Generation>)| {
                reading.0 == *selector && reading.1.revision >= last_change
            };
            let generation = if let Some((_, generation)) = state.readings.iter().find(current) {
                Arc::clone(generation)
            } else {
                let digest = selected(&state.now.instances, selector)
                    .fold(0, |sum: u64, e| sum.wrapping_add(e.digest()));
                let now = state.now.describe(&self.key, epoch);
                let revision = head.max(last_change);
                let generation = Arc::new(snapshot(number(), revision, now, selector.clone(), digest));
                if state.readings.len() == READINGS {
                    state.readings.pop_front();
                }
                state.readings.push_back((selector.clone(), Arc::clone(&generation)));
                generation
            };
            (generation, state.is_unused())
        };
        let revision = generation.revision.max(head);
        (Page { generation: generation.number, revision, parts: Arc::clone(generation.parts()) }, unused)
    }

    /// A snapshot that a reader has further pages of.
    pub(super) fn read_on(&self, selector: &Selector, number: u64, revision: Revision) -> Option<Page> {
        let wanted = |it: &&(Selector, Arc<Generation>)| it.1.number == number && it.0 == *selector;
        let generation = lock(&self.state).readings.iter().find(wanted)?.1.clone();
        Some(Page { generation: number, revision, parts: Arc::clone(generation.parts()) })
    }

    /// What the recent log knows of an instance.
    pub(super) fn past(&self, id: &InstanceId) -> Past {
        let state = lock(&self.state);
        let of = |entry: &Option<Arc<Entry>>| {
            entry.as_ref().filter(|entry| entry.instance.id == *id).map(|entry| Arc::clone(&entry.instance))
        };
        let events = state.changes.iter().rev().flat_map(|change| {
            let ends = change.items().iter().map(|item| (of(&item.before), of(&item.after)));
            ends.filter(|(before, after)| before.is_some() || after.is_some()).map(|(before, after)| {
                Happened {
                    revision: change.revision,
                    wall: change.wall,
                    cause: change.cause,
                    actor: Arc::clone(&change.actor),
                    before,
                    after,
                }
            })
        });
        Past {
            events: events.collect(),
            known_since: state.floor,
            known_since_wall: state.changes.front().map(|oldest| oldest.wall),
        }
    }

    /// Adds what this service's views keep.
    pub(super) fn count(&self, kept: &mut Kept) {
        for view in lock(&self.state).views.values() {
            view.count(kept);
        }
    }

    /// The change of a selection that `revision` is about: see [`super::Hub::touched`].
    pub(super) fn touched(&self, selector: &Selector, revision: Revision) -> Option<Revision> {
        let state = lock(&self.state);
        if revision <= state.floor {
            return Some(revision);
        }
        let behind = state.changes.partition_point(|change| change.revision <= revision);
        let mut newest_first = state.changes.range(..behind).rev();
        let touches = |change: &&Arc<Logged>| change.items().iter().any(|item| concerns(selector, item));
        if let Some(change) = newest_first.clone().next().filter(|change| change.revision == revision) {
            return Some(change).filter(touches).map(|change| change.revision);
        }
        let known = newest_first.find(touches).map(|change| change.revision);
        known.or_else(|| Some(state.floor).filter(|floor| *floor > 0))
    }

    /// Whether somebody registered the service, or nobody knows whether up to `revision` somebody did.
    pub(super) fn is_known(&self, revision: Revision) -> bool {
        let state = lock(&self.state);
        state.now.exists || revision <= state.floor
    }

    /// To be dropped when nobody watches. False, and nothing happens, if it changed since it was emptied at `emptied_at`.
    pub(super) fn forget(&self, emptied_at: Revision) -> bool {
        let mut state = lock(&self.state);
        let still_empty = state.now.instances.is_empty() && state.last_change == emptied_at;
        state.forget |= still_empty;
        still_empty
    }

    /// Marks an empty, unwatched feed as dropped from the hub, if it may be: nobody registered the service, or it is to
    /// be forgotten. True if so.
    pub(super) fn retire(&self) -> bool {
        let mut state = lock(&self.state);
        let unused = state.is_unused();
        state.retired |= unused;
        unused
    }
}
