//! One view of one service: what of the service's changes concerns it, and the encodings its watchers share.
//!
//! All of it lives under its feed's lock. What is slow (folding changes, encoding) is prepared there in O(1) and done
//! outside by whoever asks first, once: see [`Lazy`].

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
};

use registry_proto::v1;

use super::{
    encode::{Entry, Header, Part, PartWriter},
    kept::Kept,
    lock,
    logged::{Logged, LoggedItem},
    signal::Subscription,
};
use crate::core::{InstanceId, Revision, Selector, ServiceKey};

/// Snapshots kept of a view at a time: a slow reader of an older one starts over (W10).
const GENERATIONS: usize = 2;
/// At most one new snapshot of a view in this time, in milliseconds: joiners get the current one and a delta.
const GENERATION_INTERVAL: u64 = 1_000;
/// Deltas of a view, of one part and of several each, whose encoding is kept for others who ask from the same place.
const DELTAS: usize = 8;

/// What is in a service, ordered by id. Clones in O(1).
pub(super) type Instances = imbl::OrdMap<InstanceId, Arc<Entry>>;

/// Who watches a view, in the order in which they came. Clones in O(1), to be marked outside the lock.
pub(super) type Subscriptions = imbl::OrdMap<u64, Arc<Subscription>>;

/// A computation that the first who asks makes, outside any lock that others need; its input is dropped with it.
pub(super) struct Lazy<T> {
    source: Mutex<Option<Box<dyn FnOnce() -> T + Send>>>,
    made: OnceLock<T>,
}

impl<T: Default> Lazy<T> {
    fn new(source: impl FnOnce() -> T + Send + 'static) -> Self {
        Self { source: Mutex::new(Some(Box::new(source))), made: OnceLock::new() }
    }

    pub(super) fn get(&self) -> &T {
        self.made.get_or_init(|| {
            let source = lock(&self.source).take();
            source.map(|make| make()).unwrap_or_default()
        })
    }

    /// What was made, if it was.
    fn made(&self) -> Option<&T> {
        self.made.get()
    }
}

impl<T> fmt::Debug for Lazy<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lazy").field("made", &self.made.get().is_some()).finish_non_exhaustive()
    }
}

/// A whole view at one revision.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) number: u64,
    pub(super) revision: Revision,
    wall: u64,
    parts: Lazy<Arc<[Part]>>,
}

impl Generation {
    pub(super) fn parts(&self) -> &Arc<[Part]> {
        self.parts.get()
    }
}

/// A page of parts, and the snapshot they belong to.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) generation: u64,
    pub(super) revision: Revision,
    pub(super) parts: Arc<[Part]>,
}

/// The delta that leads to a view's newest change from the one before it, once somebody asked for it: what nearly every
/// watcher is sent next. Readers find it without the feed's lock, which the publisher and all of them need.
#[derive(Debug, Default)]
pub(super) struct Latest(RwLock<Option<Arc<Delta>>>);

/// What a cursor is to be sent to know everything.
pub(super) enum Newest {
    /// All of it. Many readers take it at once, on several processors: what they count together is kept to this one reference.
    Whole(Part, Revision),
    /// It has several parts, or nobody has made them yet.
    Delta(Arc<Delta>),
}

impl Latest {
    /// What leads from the cursor to the newest change. `None`: ask the feed.
    pub(super) fn after(&self, cursor: Revision) -> Option<Newest> {
        let latest = self.0.read().unwrap_or_else(PoisonError::into_inner);
        // All cursors between two changes of the view stand on the same state.
        let delta = latest.as_ref().filter(|delta| (delta.previous..delta.revision).contains(&cursor))?;
        Some(match delta.parts.made().map(AsRef::as_ref) {
            Some([part]) => Newest::Whole(part.clone(), delta.revision),
            _ => Newest::Delta(Arc::clone(delta)),
        })
    }

    /// Under the feed's lock only, so that what is set is the latest.
    fn set(&self, delta: Option<Arc<Delta>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = delta;
    }
}

/// All that happened to a view after `previous` and up to `revision`, folded.
#[derive(Debug)]
pub(super) struct Delta {
    pub(super) previous: Revision,
    pub(super) revision: Revision,
    parts: Lazy<Arc<[Part]>>,
}

impl Delta {
    pub(super) fn parts(&self) -> &Arc<[Part]> {
        self.parts.get()
    }
}

/// What a view needs to know of its service to encode itself.
#[derive(Clone, Debug)]
pub(super) struct ServiceNow {
    pub(super) key: ServiceKey,
    pub(super) epoch: Arc<str>,
    pub(super) instances: Instances,
    pub(super) exists: bool,
    /// Wall time of the service's newest change.
    pub(super) wall: u64,
}

/// A view's state.
#[derive(Debug)]
pub(super) struct View {
    pub(super) selector: Selector,
    include_all: bool,
    digest: u64,
    /// Revisions at which the view changed and whose changes are still in the log.
    changes: VecDeque<Revision>,
    /// The view is known not to have changed after this revision and before the first of `changes`.
    floor: Revision,
    deltas: VecDeque<Arc<Delta>>,
    latest: Arc<Latest>,
    generations: VecDeque<Arc<Generation>>,
    subscriptions: Subscriptions,
}

impl View {
    pub(super) fn new(
        selector: Selector,
        include_all: bool,
        floor: Revision,
        instances: &Instances,
        log: &VecDeque<Arc<Logged>>,
    ) -> Self {
        let selected = instances.values().filter(|entry| selector.matches(&entry.instance));
        let digest = selected.fold(0u64, |sum, entry| sum.wrapping_add(entry.digest()));
        let concerned = |change: &&Arc<Logged>| {
            change.turned || change.items().iter().any(|item| concerns(&selector, item))
        };
        let changes = log.iter().filter(concerned).map(|change| change.revision).collect();
        Self {
            changes,
            digest,
            selector,
            include_all,
            floor,
            deltas: VecDeque::new(),
            latest: Arc::default(),
            generations: VecDeque::new(),
            subscriptions: Subscriptions::new(),
        }
    }

    /// Takes a change of the service in. Who is to be marked, if it concerns this view.
    pub(super) fn publish(&mut self, change: &Logged) -> Option<&Subscriptions> {
        let mut changed = change.turned;
        for item in change.items() {
            if let Some(before) = item.before.as_ref().filter(|entry| self.selector.matches(&entry.instance))
            {
                self.digest = self.digest.wrapping_sub(before.digest());
                changed = true;
            }
            if let Some(after) = item.after.as_ref().filter(|entry| self.selector.matches(&entry.instance)) {
                self.digest = self.digest.wrapping_add(after.digest());
                changed = true;
            }
        }
        changed.then(|| {
            self.changes.push_back(change.revision);
            // Before anybody is marked: whoever is, and reads without the lock, does not take it for the newest.
            self.latest.set(None);
            &self.subscriptions
        })
    }

    /// The revision of its newest change that is still in the log.
    pub(super) fn newest(&self) -> Option<Revision> {
        self.changes.back().copied()
    }

    /// The log no longer holds changes up to `revision`.
    pub(super) fn drop_through(&mut self, revision: Revision) {
        while self.changes.front().is_some_and(|oldest| *oldest <= revision) {
            self.floor = self.changes.pop_front().unwrap_or(self.floor);
        }
    }

    pub(super) fn subscribe(&mut self, id: u64, subscription: Arc<Subscription>) -> Arc<Latest> {
        self.subscriptions.insert(id, subscription);
        Arc::clone(&self.latest)
    }

    /// True if nobody is left.
    pub(super) fn unsubscribe(&mut self, id: u64) -> bool {
        self.subscriptions.remove(&id);
        self.subscriptions.is_empty()
    }

    /// Whether what happened after the cursor is still known.
    pub(super) fn can_resume(&self, cursor: Revision) -> bool {
        cursor >= self.floor
    }

    /// What happened after the cursor. `None`: nothing. The cursor must be one that [`Self::can_resume`].
    pub(super) fn delta(
        &mut self,
        cursor: Revision,
        service: impl FnOnce() -> ServiceNow,
        log: &VecDeque<Arc<Logged>>,
    ) -> Option<Arc<Delta>> {
        let revision = self.changes.back().copied().filter(|newest| *newest > cursor)?;
        // All cursors between two changes of the view stand on the same state: they share what follows.
        let behind = self.changes.partition_point(|change| *change <= cursor);
        let previous = if behind == 0 { self.floor } else { self.changes[behind - 1] };
        if let Some(delta) = self.deltas.iter().find(|delta| delta.previous == previous) {
            return Some(Arc::clone(delta));
        }
        let from = log.partition_point(|change| change.revision <= previous);
        let missed: Vec<Arc<Logged>> = log.iter().skip(from).cloned().collect();
        let (selector, digest, service, include_all) =
            (self.selector.clone(), self.digest, service(), self.include_all);
        let parts = Lazy::new(move || {
            let header = Header {
                key: &service.key,
                kind: v1::ChangeKind::Delta,
                epoch: &service.epoch,
                revision,
                previous_revision: previous,
                digest,
                service_instances: service.instances.len(),
                exists: service.exists,
            };
            let mut writer = PartWriter::new(header);
            net(&missed, &selector, &mut writer);
            if include_all {
                selected(&service.instances, &selector).for_each(|entry| writer.all(entry));
            }
            writer.finish().into()
        });
        let delta = Arc::new(Delta { previous, revision, parts });
        self.deltas.push_back(Arc::clone(&delta));
        self.drop_old_deltas();
        if behind + 1 == self.changes.len() {
            self.latest.set(Some(Arc::clone(&delta)));
        }
        Some(delta)
    }

    /// Those of several parts and those of one are counted apart: whoever reads slowly may be in the middle of the
    /// former, and would never come to an end if each small change pushed it out.
    fn drop_old_deltas(&mut self) {
        let long = |delta: &Arc<Delta>| delta.parts.made().is_none_or(|parts| parts.len() > 1);
        for kind in [true, false] {
            if self.deltas.iter().filter(|delta| long(delta) == kind).count() > DELTAS
                && let Some(oldest) = self.deltas.iter().position(|delta| long(delta) == kind)
            {
                self.deltas.remove(oldest);
            }
        }
    }

    /// The snapshot that someone who joins starts from; what happened since, it gets as a delta.
    pub(super) fn join(
        &mut self,
        head: Revision,
        service: impl FnOnce() -> ServiceNow,
        number: impl FnOnce() -> u64,
        newest_wall: u64,
    ) -> Arc<Generation> {
        if let Some(current) = self.generations.back() {
            // Changes that the log no longer holds moved the floor: they are not in `changes`.
            let nothing_since = self.can_resume(current.revision)
                && self.changes.back().is_none_or(|newest| *newest <= current.revision);
            let recent = newest_wall.saturating_sub(current.wall) < GENERATION_INTERVAL;
            if nothing_since || (recent && self.can_resume(current.revision)) {
                return Arc::clone(current);
            }
        }
        let generation = Arc::new(snapshot(number(), head, service(), self.selector.clone(), self.digest));
        if self.generations.len() == GENERATIONS {
            self.generations.pop_front();
        }
        self.generations.push_back(Arc::clone(&generation));
        generation
    }

    /// Adds what this view keeps.
    pub(super) fn count(&self, kept: &mut Kept) {
        kept.views += 1;
        kept.watchers += self.subscriptions.len();
        kept.indexed = kept.indexed.max(self.changes.len());
        kept.snapshots = kept.snapshots.max(self.generations.len());
        kept.deltas = kept.deltas.max(self.deltas.len());
    }

    pub(super) fn generation(&self, number: u64) -> Option<Arc<Generation>> {
        self.generations.iter().find(|generation| generation.number == number).cloned()
    }
}

/// The whole of a view at `revision`.
pub(super) fn snapshot(
    number: u64,
    revision: Revision,
    service: ServiceNow,
    selector: Selector,
    digest: u64,
) -> Generation {
    let wall = service.wall;
    let parts = Lazy::new(move || {
        let mut writer = PartWriter::new(Header {
            key: &service.key,
            kind: v1::ChangeKind::Snapshot,
            epoch: &service.epoch,
            revision,
            previous_revision: 0,
            digest,
            service_instances: service.instances.len(),
            exists: service.exists,
        });
        selected(&service.instances, &selector).for_each(|entry| writer.all(entry));
        writer.finish().into()
    });
    Generation { number, revision, wall, parts }
}

/// The entries that a selector chooses.
pub(super) fn selected<'a>(
    instances: &'a Instances,
    selector: &'a Selector,
) -> impl Iterator<Item = &'a Arc<Entry>> {
    instances.values().filter(|entry| selector.matches(&entry.instance))
}

/// Whether a selection contained an instance before or after.
pub(super) fn concerns(selector: &Selector, item: &LoggedItem) -> bool {
    [&item.before, &item.after].into_iter().flatten().any(|entry| selector.matches(&entry.instance))
}

/// Writes what the changes, one after the other, come to (W6).
fn net(changes: &[Arc<Logged>], selector: &Selector, writer: &mut PartWriter<'_>) {
    type Ends<'a> = (Option<&'a Arc<Entry>>, Option<&'a Arc<Entry>>);
    let mut ends: BTreeMap<&InstanceId, Ends<'_>> = BTreeMap::new();
    for item in changes.iter().flat_map(|change| change.items()) {
        let Some(named) = item.before.as_ref().or(item.after.as_ref()) else { continue };
        ends.entry(&named.instance.id).or_insert((item.before.as_ref(), None)).1 = item.after.as_ref();
    }
    let chosen = |entry: &&Arc<Entry>| selector.matches(&entry.instance);
    for (before, after) in
        ends.into_values().map(|(before, after)| (before.filter(chosen), after.filter(chosen)))
    {
        match (before, after) {
            (None, Some(after)) => writer.added(after),
            (Some(before), Some(after)) if before.digest() != after.digest() => writer.updated(after),
            (Some(before), None) => writer.removed(before),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }
}
