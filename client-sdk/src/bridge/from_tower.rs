//! Any tower `Discover` as one of ours.
//!
//! A task of its own drains the stream, whether anyone asks or not. Keeps C1: an error, a panic or the end of the stream
//! leaves the last view.
//!
//! ```text
//!   tower Discover ──Insert, Remove──► keys and their instances ──all that is ready at once──► views, by selector
//!        ▲  │                                                                                    │
//!        │  └──error──► noted, pause, polled again                                               ├──► ViewReceiver
//!        └── never polled after its end                                                          └──► broadcast
//! ```

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    future::poll_fn,
    hash::Hash,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::watch;
use tower::discover::Change as TowerChange;

use crate::{
    backoff::Backoff,
    discover::{Discover, SharedError, View, ViewReceiver, ViewState, broadcast::Broadcast},
    model::{Change, Endpoint, Instance, InstanceList, Selector},
    runtime::{Runtime, Task},
};

/// How long `discover` waits for the stream's first word.
const FIRST: Duration = Duration::from_secs(5);
/// So many changes become one at most; a stream that always has another one must let others run, too.
const BATCH: usize = 4096;

/// Discovers what a tower `Discover` names. Cheap to clone; the last clone to go drops the stream.
///
/// One stream serves every endpoint, whatever service it names; the endpoint's selector still chooses among its instances.
/// Changes that are ready together become one change. Of a key that is inserted twice, and of an id that two keys share,
/// the last one counts.
///
/// An error of the stream shows in [`ViewState::error`] until the next change, and the stream is polled again after a
/// jittered backoff (100 ms doubling to 10 s). An ended stream is not polled again.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use client_sdk::{bridge::TowerDiscover, discover::Discover, model::{Address, Endpoint, Instance}, runtime::Runtime};
/// use tower::discover::Change;
///
/// let peer: Address = "10.0.0.7:8080".parse()?;
/// let changes = tokio_stream::iter([Ok::<_, std::io::Error>(Change::Insert("a", peer))]);
/// let discover = TowerDiscover::new(changes, &Runtime::tokio(), |key: &&str, peer: &Address| {
///     Instance::builder(peer.clone()).id(*key).build()
/// });
/// assert_eq!(discover.discover(&Endpoint::new("any")).await?.len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TowerDiscover {
    shared: Arc<Shared>,
    _feeder: Arc<Task>,
}

/// Why instances cannot be told. Passing: whatever the stream says next is taken in.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TowerDiscoverError {
    /// The stream failed, and has named nothing yet.
    #[error("cannot discover {endpoint}: the tower stream failed: {source}")]
    Failed {
        /// The endpoint.
        endpoint: String,
        /// What it said.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The stream has not said anything yet.
    #[error("cannot discover {endpoint}: the tower stream named no instance within {after:?}")]
    Silent {
        /// The endpoint.
        endpoint: String,
        /// How long it was waited for.
        after: Duration,
    },
}

#[derive(Debug, thiserror::Error)]
#[error(
    "the tower stream, or what describes its services, panicked; the last view stays, and it is not polled again"
)]
struct Panicked;

/// What the feeder and the callers share.
#[derive(Debug)]
struct Shared {
    runtime: Runtime,
    known: Mutex<Known>,
    changes: Broadcast<Change<Selector>>,
}

#[derive(Debug, Default)]
struct Known {
    all: ViewState,
    /// Of the selectors that somebody asked for.
    views: BTreeMap<Selector, watch::Sender<ViewState>>,
}

/// The feeder's own: what the stream inserted and did not remove.
struct Inserted<K, F> {
    describe: F,
    places: HashMap<K, u64>,
    instances: BTreeMap<u64, Arc<Instance>>,
    next_place: u64,
    /// Something changed since it was published.
    dirty: bool,
}

/// What the stream said.
enum Word {
    Changes,
    Error(SharedError),
    End,
}

/// Tells of a panic of the feeder.
struct Feeding(Arc<Shared>);

impl TowerDiscover {
    /// Starts draining the stream; `describe` makes an instance of each key and service that it inserts, once. The service
    /// itself is dropped: whoever discovers here connects by itself. What changes without a new insertion is not seen.
    ///
    /// Must be called where the runtime can spawn.
    pub fn new<T, F>(changes: T, runtime: &Runtime, describe: F) -> Self
    where
        T: tower::discover::Discover + Send + 'static,
        T::Key: Hash + Send,
        T::Error: Into<tower::BoxError>,
        F: Fn(&T::Key, &T::Service) -> Instance + Send + 'static,
    {
        let shared =
            Arc::new(Shared { runtime: runtime.clone(), known: Mutex::default(), changes: Broadcast::new() });
        let feeder = runtime.spawn(feed(changes, Inserted::new(describe), Feeding(Arc::clone(&shared))));
        Self { shared, _feeder: Arc::new(feeder) }
    }
}

impl Discover for TowerDiscover {
    type Key = Selector;
    type Error = TowerDiscoverError;

    async fn discover(&self, endpoint: &Endpoint) -> Result<Vec<Arc<Instance>>, TowerDiscoverError> {
        Ok(self.discover_versioned(endpoint).await?.instances.to_vec())
    }

    fn key(&self, endpoint: &Endpoint) -> Selector {
        endpoint.selector.clone()
    }

    fn watch(&self) -> Option<async_broadcast::Receiver<Change<Selector>>> {
        Some(self.shared.changes.listen())
    }

    async fn discover_versioned(&self, endpoint: &Endpoint) -> Result<View, TowerDiscoverError> {
        let mut receiver = self.shared.follow(&endpoint.selector);
        let first = async {
            loop {
                {
                    let state = receiver.borrow_and_update();
                    if let Some(view) = &state.view {
                        return Ok(view.clone());
                    }
                    if let Some(error) = &state.error {
                        let (endpoint, source) = (endpoint.to_string(), Arc::clone(error));
                        return Err(TowerDiscoverError::Failed { endpoint, source });
                    }
                }
                if receiver.changed().await.is_err() {
                    // The view is gone only with the discovery itself, which this call holds.
                    std::future::pending::<()>().await;
                }
            }
        };
        let silent = |_| TowerDiscoverError::Silent { endpoint: endpoint.to_string(), after: FIRST };
        tokio::time::timeout(FIRST, first).await.map_err(silent)?
    }

    fn view(&self, endpoint: &Endpoint) -> Option<ViewReceiver> {
        Some(self.shared.follow(&endpoint.selector))
    }
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&self, selector: &Selector) -> ViewReceiver {
        let mut known = self.known();
        if let Some(view) = known.views.get(selector) {
            return view.subscribe();
        }
        self.forget_unused(&mut known);
        let (view, receiver) = watch::channel(select(&known.all, selector));
        known.views.insert(selector.clone(), view);
        receiver
    }

    /// Takes in what the stream named now.
    fn publish(&self, all: InstanceList) {
        let view = View { instances: all, version: Some(self.runtime.next_version()) };
        let mut known = self.known();
        known.all = ViewState { view: Some(view), error: None };
        self.forget_unused(&mut known);
        let Known { all, views } = &mut *known;
        for (selector, state) in views {
            let new = select(all, selector);
            let Some(View { instances, version }) = new.view.clone() else { continue };
            let before = state.borrow().view.clone();
            let old = before.as_ref().map(|view| &*view.instances).unwrap_or_default();
            let change = Change::between(selector.clone(), old, instances, version);
            if before.is_some() && change.is_empty() {
                state.send_if_modified(|state| state.error.take().is_some());
            } else {
                state.send_replace(new);
                self.changes.tell(change);
            }
        }
    }

    fn fail(&self, error: &SharedError) {
        tracing::warn!(%error, "the tower stream failed; the last view stays");
        let mut known = self.known();
        known.all.error = Some(Arc::clone(error));
        for state in known.views.values() {
            state.send_modify(|state| state.error = Some(Arc::clone(error)));
        }
    }

    /// Whoever asks for a forgotten view again gets it made again, with a greater version.
    fn forget_unused(&self, known: &mut Known) {
        if !self.changes.is_heard() {
            known.views.retain(|_, view| view.receiver_count() > 0);
        }
    }
}

impl<K: Hash + Eq, F> Inserted<K, F> {
    fn new(describe: F) -> Self {
        let (places, instances) = (HashMap::new(), BTreeMap::new());
        Self { describe, places, instances, next_place: 0, dirty: false }
    }

    /// Takes in whatever the stream has ready.
    fn drain<T>(&mut self, mut changes: Pin<&mut T>, context: &mut Context<'_>) -> Poll<Word>
    where
        T: tower::discover::Discover<Key = K>,
        T::Error: Into<tower::BoxError>,
        F: Fn(&K, &T::Service) -> Instance,
    {
        for _ in 0..BATCH {
            match changes.as_mut().poll_discover(context) {
                Poll::Ready(Some(Ok(TowerChange::Insert(key, service)))) => {
                    let instance = Arc::new((self.describe)(&key, &service));
                    self.insert(key, instance);
                }
                Poll::Ready(Some(Ok(TowerChange::Remove(key)))) => self.remove(&key),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Word::Error(error.into().into())),
                Poll::Ready(None) => return Poll::Ready(Word::End),
                Poll::Pending if self.dirty => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Word::Changes)
    }

    fn insert(&mut self, key: K, instance: Arc<Instance>) {
        let place = match self.places.entry(key) {
            Entry::Occupied(place) => *place.get(),
            Entry::Vacant(vacant) => {
                self.next_place += 1;
                *vacant.insert(self.next_place)
            }
        };
        self.instances.insert(place, instance);
        self.dirty = true;
    }

    fn remove(&mut self, key: &K) {
        if let Some(place) = self.places.remove(key) {
            self.instances.remove(&place);
            self.dirty = true;
        }
    }

    /// In the order of the first insertion, each id once.
    fn list(&mut self) -> InstanceList {
        self.dirty = false;
        let mut list: Vec<Arc<Instance>> = Vec::with_capacity(self.instances.len());
        let mut at: HashMap<&str, usize> = HashMap::with_capacity(self.instances.len());
        for instance in self.instances.values() {
            match at.entry(&instance.id) {
                Entry::Occupied(at) => list[*at.get()] = Arc::clone(instance),
                Entry::Vacant(vacant) => {
                    vacant.insert(list.len());
                    list.push(Arc::clone(instance));
                }
            }
        }
        list.into()
    }
}

impl Drop for Feeding {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error: SharedError = Arc::new(Panicked);
            self.0.fail(&error);
        }
    }
}

async fn feed<T, F>(changes: T, mut inserted: Inserted<T::Key, F>, feeding: Feeding)
where
    T: tower::discover::Discover,
    T::Key: Hash,
    T::Error: Into<tower::BoxError>,
    F: Fn(&T::Key, &T::Service) -> Instance,
{
    let Feeding(shared) = &feeding;
    let mut changes = pin!(changes);
    let mut backoff = Backoff::default();
    loop {
        // Without tokio's budget, which would cut what is ready together into pieces: `drain` has a bound of its own.
        let drain = poll_fn(|context| inserted.drain(changes.as_mut(), context));
        let word = tokio::task::unconstrained(drain).await;
        let changed = inserted.dirty;
        // That it ended without naming any is an answer: none.
        if changed || matches!(word, Word::End) {
            shared.publish(inserted.list());
        }
        if changed {
            backoff.reset();
        }
        match word {
            Word::Changes => tokio::task::yield_now().await,
            Word::Error(error) => {
                shared.fail(&error);
                tokio::time::sleep(backoff.next(&shared.runtime)).await;
            }
            Word::End => {
                tracing::debug!("the tower stream ended; the last view stays");
                return;
            }
        }
    }
}

/// What the selector chooses of a state.
fn select(state: &ViewState, selector: &Selector) -> ViewState {
    let view = state.view.as_ref().map(|View { instances, version }| View {
        instances: if *selector == Selector::all() {
            Arc::clone(instances)
        } else {
            instances.iter().filter(|instance| selector.matches(instance)).cloned().collect()
        },
        version: *version,
    });
    ViewState { view, error: state.error.clone() }
}
