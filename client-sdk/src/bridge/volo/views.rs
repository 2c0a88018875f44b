//! What volo was told of each key, and what it may have missed.
//!
//! ```text
//!   tracker ──view──► convert ──difference──► broadcast ──► volo's balancer
//!                        │                        │
//!                        └── answers `discover`   └── may be lost on its way ──1 s later──► the whole list once more
//! ```
//!
//! volo's balancers lose a change in two ways that they do not notice: one that comes between their `discover` and the
//! moment when they store its answer finds no entry to put it in, and an overflow is only logged. Both would leave an old
//! list in place for good, with instances that are gone (C2), so such a change is owed to them and repeated. To repeat is
//! harmless: they take `all`.

use std::{
    collections::{HashMap, VecDeque, hash_map},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ::volo::discovery::{Change as VoloChange, Instance as VoloInstance};
use tokio::sync::{Notify, watch};

use super::{
    VoloKey,
    convert::{self, Told},
};
use crate::{
    discover::{
        SharedError,
        broadcast::Broadcast,
        track::{Put, Sink},
    },
    model::Change,
    runtime::Runtime,
};

/// A change that comes so soon after an answer is owed, and so long after it is repeated.
const SETTLE: Duration = Duration::from_secs(1);

/// The keys that volo asked for. Its lock is never held across an await.
#[derive(Debug)]
pub(super) struct Views<K> {
    runtime: Runtime,
    changes: Broadcast<VoloChange<VoloKey<K>>>,
    state: Mutex<State<K>>,
    /// Something is owed.
    owing: Notify,
}

#[derive(Debug)]
struct State<K> {
    entries: HashMap<K, Entry>,
    /// What is to be repeated, and when; the earliest first.
    owed: VecDeque<(Duration, K)>,
}

#[derive(Debug)]
struct Entry {
    told: Option<Told>,
    error: Option<SharedError>,
    /// Whoever waits for the first view looks again.
    progress: watch::Sender<()>,
    used: bool,
    answered_at: Option<Duration>,
    owed: bool,
}

/// What is known of a key.
pub(super) enum Look {
    /// What volo is told.
    Known(Told),
    /// Nothing but that it failed.
    Failed(SharedError),
    /// Nothing yet; look again when this changes.
    Unknown(watch::Receiver<()>),
}

impl<K: Hash + Eq + Clone> Views<K> {
    pub(super) fn new(runtime: &Runtime) -> Self {
        let state = State { entries: HashMap::new(), owed: VecDeque::new() };
        Self {
            runtime: runtime.clone(),
            changes: Broadcast::new(),
            state: Mutex::new(state),
            owing: Notify::new(),
        }
    }

    pub(super) fn listen(&self) -> async_broadcast::Receiver<VoloChange<VoloKey<K>>> {
        self.changes.listen()
    }

    /// The answer to a `discover`, if there is one.
    pub(super) fn look(&self, key: &K) -> Look {
        let now = self.runtime.now();
        let mut state = self.state();
        let entry = state.entries.entry(key.clone()).or_insert_with(|| Entry {
            told: None,
            error: None,
            progress: watch::Sender::new(()),
            used: true,
            answered_at: None,
            owed: false,
        });
        entry.used = true;
        match (&entry.told, &entry.error) {
            (Some(told), _) => {
                entry.answered_at = Some(now);
                Look::Known(told.clone())
            }
            (None, Some(error)) => Look::Failed(Arc::clone(error)),
            (None, None) => Look::Unknown(entry.progress.subscribe()),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.state().entries.len()
    }

    /// Repeats what is owed, whenever something is, until the task is dropped.
    pub(super) async fn keep_repeating(self: Arc<Self>) {
        loop {
            match self.repeat_due() {
                Some(pause) => tokio::time::sleep(pause).await,
                None => self.owing.notified().await,
            }
        }
    }

    /// Repeats what is due, and says when the next is. `None`: nothing is owed.
    fn repeat_due(&self) -> Option<Duration> {
        let now = self.runtime.now();
        let mut state = self.state();
        loop {
            let (due, _) = state.owed.front()?;
            if *due > now {
                return Some(due.saturating_sub(now));
            }
            let (_, key) = state.owed.pop_front()?;
            let Some(entry) = state.entries.get_mut(&key) else { continue };
            entry.owed = false;
            if let Some(told) = &entry.told {
                let all = &told.instances;
                let change = convert::change(VoloKey::View(key), all, all);
                self.tell(&mut state, change);
            }
        }
    }

    /// Broadcasts, under the lock, so that what is told last is the newest. What a slow listener lost over it is owed, too:
    /// that ends, since with fewer keys than places at least one message in the queue is outdated, and owed to nobody.
    fn tell(&self, state: &mut State<K>, change: VoloChange<VoloKey<K>>) {
        if let Some(VoloChange { key: VoloKey::View(key), all, .. }) = self.changes.tell(change)
            && let Some(entry) = state.entries.get(&key)
            // A newer one of the key is still on its way otherwise.
            && entry.told.as_ref().is_some_and(|told| is_same(&told.instances, &all))
        {
            self.owe(state, key);
        }
    }

    fn changed(&self, change: Change<K>) {
        let before = match self.state().entries.get(&change.key) {
            Some(entry) => entry.told.as_ref().map(|told| Arc::clone(&told.instances)),
            None => return,
        };
        // Not under the lock. Nobody but this sink tells anything new.
        let told = Told::of(&change.all, before.as_deref().unwrap_or_default());
        let unusable = told.unusable;
        if unusable > 0 {
            tracing::warn!(
                unusable,
                "instances are left out: volo cannot call a host name or so long a socket path"
            );
        }
        let new = convert::change(
            VoloKey::View(change.key.clone()),
            before.as_deref().unwrap_or_default(),
            &told.instances,
        );
        let different = !(new.added.is_empty() && new.updated.is_empty() && new.removed.is_empty());
        let now = self.runtime.now();
        let mut state = self.state();
        let Some(entry) = state.entries.get_mut(&change.key) else { return };
        (entry.told, entry.error) = (Some(told), None);
        entry.progress.send_replace(());
        let unsettled = entry.answered_at.is_some_and(|at| now < at.saturating_add(SETTLE));
        if different {
            self.tell(&mut state, new);
            if unsettled {
                self.owe(&mut state, change.key);
            }
        }
    }

    fn owe(&self, state: &mut State<K>, key: K) {
        if let Some(entry) = state.entries.get_mut(&key)
            && !std::mem::replace(&mut entry.owed, true)
        {
            state.owed.push_back((self.runtime.now() + SETTLE, key));
            self.owing.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Brings the tracker's views to volo.
pub(super) struct ToVolo<K>(pub(super) Arc<Views<K>>);

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Sink<K> for ToVolo<K> {
    /// Volo's balancers cannot say what they have applied.
    fn changed(&mut self, change: Change<K>) -> Put {
        self.0.changed(change);
        Put::Later
    }

    fn failed(&mut self, key: &K, error: SharedError) {
        tracing::warn!(%error, "cannot read a view; it is tried again, and volo keeps what it has");
        if let Some(entry) = self.0.state().entries.get_mut(key) {
            entry.error = Some(error);
            entry.progress.send_replace(());
        }
    }

    fn recovered(&mut self, key: &K) {
        if let Some(entry) = self.0.state().entries.get_mut(key) {
            entry.error = None;
        }
    }

    fn keeps(&mut self, key: &K) -> bool {
        // A balancer that listens asks for a key only once, and counts on hearing of it from then on.
        if self.0.changes.is_heard() {
            return true;
        }
        match self.0.state().entries.entry(key.clone()) {
            hash_map::Entry::Occupied(mut entry) => {
                let used = std::mem::take(&mut entry.get_mut().used);
                if !used {
                    entry.remove();
                }
                used
            }
            hash_map::Entry::Vacant(_) => false,
        }
    }
}

fn is_same(told: &[Arc<VoloInstance>], other: &[Arc<VoloInstance>]) -> bool {
    told.len() == other.len() && told.iter().zip(other).all(|(told, other)| Arc::ptr_eq(told, other))
}
