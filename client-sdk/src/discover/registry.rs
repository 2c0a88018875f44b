//! Discovery over the registry.
//!
//! Owns the views that callers asked for: each is followed from its first use, all over one stream, and dropped when it
//! was idle for long. Keeps C1: the registry being down, restarted or unreachable never empties a view, and with a cache
//! file not even a restart of this process does.
//!
//! ```text
//!   discover / view ── first use ──▶ Watcher ──▶ (stream) ──▶ Update ──▶ ViewState of the key ──▶ whoever waits
//!                                        ▲                       ├────▶ broadcast (overflows, never blocks)
//!                     cache file ────────┘                       └────▶ cache file (debounced, atomic)
//! ```

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::{
    Discover, Follower, View, ViewReceiver, ViewState, applied::Followers, broadcast::Broadcast,
    cache_file::CacheFile,
};
use crate::{
    client::{MissingRegistry, Refusal, RegistryClient},
    model::{Change, Endpoint, Instance},
    runtime::{BoxFuture, Runtime, Task},
    view::ViewKey,
    watch::{LeaveError, Sink, Update, WatchError, Watcher},
};

/// Discovers instances through the registry. Cheap to clone; the last clone to go ends the stream, and has the task behind it
/// leave the registry. A process that is about to end calls [`close`](Self::close) and waits for it, so that there is time for that.
///
/// ```no_run
/// use client_sdk::{client::RegistryClient, discover::{Discover, RegistryDiscover}, model::Endpoint};
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = RegistryClient::builder().endpoint("127.0.0.1:7400".parse()?).build()?;
/// let discover = RegistryDiscover::builder(client).cache_file("/var/cache/shop/registry").build();
/// let instances = discover.discover(&Endpoint::new("greeter")).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct RegistryDiscover {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    watcher: Arc<Watcher>,
    timeout: Duration,
    missing: MissingRegistry,
    _tasks: Vec<Task>,
}

/// What the watcher's task and the callers share.
#[derive(Debug)]
struct Shared {
    runtime: Runtime,
    /// Never held across an await, nor while a view is built.
    views: Mutex<BTreeMap<ViewKey, Followed>>,
    view_added: tokio::sync::Notify,
    /// For those who want to hear of every view.
    changes: Broadcast<Change<ViewKey>>,
    /// For those who hold the views that they want to hear of.
    viewed: Broadcast<Change<ViewKey>>,
    cache: Option<Arc<CacheFile>>,
    closed: AtomicBool,
}

#[derive(Debug)]
struct Followed {
    state: Arc<watch::Sender<ViewState>>,
    used_at: Duration,
    /// Those who act on it.
    followers: Arc<Followers>,
    /// The version of the newest change: what they are to apply.
    told: Option<u64>,
}

/// Builds a [`RegistryDiscover`].
#[derive(Clone, Debug)]
pub struct RegistryDiscoverBuilder {
    client: RegistryClient,
    cache_file: Option<PathBuf>,
    idle: Duration,
    timeout: Duration,
    missing: MissingRegistry,
}

/// Why instances cannot be told. Passing, save for [`Refused`](Self::Refused) and [`Closed`](Self::Closed).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryDiscoverError {
    /// No registry can be reached, nothing is cached, and the caller chose to fail fast.
    #[error("cannot discover {key}: {source}")]
    Missing {
        /// The service.
        key: ViewKey,
        /// What went wrong last.
        source: WatchError,
    },
    /// The first view did not arrive in time.
    #[error(
        "cannot discover {key}: its instances did not arrive within {after:?} ({})",
        last.as_ref().map_or_else(|| "the registry has not answered".to_owned(), ToString::to_string)
    )]
    Timeout {
        /// The service.
        key: ViewKey,
        /// How long it was waited for.
        after: Duration,
        /// What went wrong last, if anything did.
        last: Option<WatchError>,
    },
    /// The registry will never answer this: the endpoint is not a legal one.
    #[error("cannot discover {key}: the registry refused: {refusal}")]
    Refused {
        /// The service.
        key: ViewKey,
        /// What the registry said.
        refusal: Refusal,
    },
    /// It was not known yet when the discovery was closed.
    #[error("cannot discover {key}: this discovery was closed; build another one")]
    Closed {
        /// The service.
        key: ViewKey,
    },
}

impl RegistryDiscover {
    /// Builds a discovery over `client`.
    pub fn builder(client: RegistryClient) -> RegistryDiscoverBuilder {
        RegistryDiscoverBuilder {
            client,
            cache_file: None,
            idle: Duration::from_mins(10),
            timeout: Duration::from_secs(5),
            missing: MissingRegistry::Wait,
        }
    }

    /// How many times a view was read anew because what came did not fit (W8).
    pub fn resyncs(&self) -> u64 {
        self.inner.watcher.resyncs()
    }

    /// How many streams were opened: one, as long as nothing goes wrong.
    pub fn streams(&self) -> u64 {
        self.inner.watcher.streams()
    }

    /// Writes the cache file now, if one is set. It is written by itself about a second after a change.
    pub async fn save_cache(&self) -> io::Result<()> {
        match &self.inner.shared.cache {
            Some(cache) => cache.write().await,
            None => Ok(()),
        }
    }

    /// Leaves the registry for good, for all clones: to be called when a process stops, after its last call. Drains of what it
    /// watched do not wait for it then; of a process that just ends they wait for up to 20 s, as of one that crashed. What is
    /// known stays as it is, and is not kept up to date: nothing new may be begun by it. Ends when the registry has heard of
    /// it, and within the client's request timeout; an error says that it may not have.
    pub async fn close(&self) -> Result<(), LeaveError> {
        self.inner.shared.close();
        self.inner.watcher.close().await
    }

    /// The state of a view, followed from now on.
    fn follow(&self, endpoint: &Endpoint) -> (ViewKey, ViewReceiver) {
        self.with_view(endpoint, |followed| followed.state.subscribe())
    }

    /// Looks at a view that is followed from now on.
    fn with_view<T>(&self, endpoint: &Endpoint, look: impl FnOnce(&Followed) -> T) -> (ViewKey, T) {
        let (key, shared) = (ViewKey::from(endpoint), &self.inner.shared);
        let now = shared.runtime.now();
        let mut views = shared.views();
        if let Some(followed) = views.get_mut(&key) {
            followed.used_at = now;
            return (key, look(followed));
        }
        let followed =
            Followed { state: Arc::default(), used_at: now, followers: Arc::default(), told: None };
        let looked = look(&followed);
        views.insert(key.clone(), followed);
        let restored = shared.cache.as_ref().and_then(|cache| cache.get(&key));
        // Under the lock, so that no other caller's `unfollow` of the same key comes in between.
        self.inner.watcher.follow(key.clone(), restored);
        drop(views);
        shared.view_added.notify_one();
        (key, looked)
    }
}

impl Discover for RegistryDiscover {
    type Key = ViewKey;
    type Error = RegistryDiscoverError;

    async fn discover(&self, endpoint: &Endpoint) -> Result<Vec<Arc<Instance>>, RegistryDiscoverError> {
        Ok(self.discover_versioned(endpoint).await?.instances.to_vec())
    }

    fn key(&self, endpoint: &Endpoint) -> ViewKey {
        endpoint.into()
    }

    fn watch(&self) -> Option<async_broadcast::Receiver<Change<ViewKey>>> {
        Some(self.inner.shared.changes.listen())
    }

    fn watch_viewed(&self) -> Option<async_broadcast::Receiver<Change<ViewKey>>> {
        Some(self.inner.shared.viewed.listen())
    }

    async fn discover_versioned(&self, endpoint: &Endpoint) -> Result<View, RegistryDiscoverError> {
        let (key, mut receiver) = self.follow(endpoint);
        let after = self.inner.timeout;
        let fail_fast = self.inner.missing == MissingRegistry::FailFast;
        let first = async {
            loop {
                {
                    let state = receiver.borrow_and_update();
                    if let Some(view) = &state.view {
                        return Ok(view.clone());
                    }
                    if self.inner.shared.is_closed() {
                        return Err(RegistryDiscoverError::Closed { key: key.clone() });
                    }
                    match error_of(&state) {
                        Some(WatchError::Refused(refusal)) if refusal.is_final() => {
                            return Err(RegistryDiscoverError::Refused { key: key.clone(), refusal });
                        }
                        Some(WatchError::Refused(_) | WatchError::Resync(_)) | None => {}
                        Some(source) if fail_fast => {
                            return Err(RegistryDiscoverError::Missing { key: key.clone(), source });
                        }
                        Some(_) => {}
                    }
                }
                if receiver.changed().await.is_err() {
                    // The view is gone only with the discovery itself, which this call holds.
                    std::future::pending::<()>().await;
                }
            }
        };
        if let Ok(result) = tokio::time::timeout(after, first).await {
            return result;
        }
        let last = error_of(&receiver.borrow());
        Err(RegistryDiscoverError::Timeout { key, after, last })
    }

    fn view(&self, endpoint: &Endpoint) -> Option<ViewReceiver> {
        Some(self.follow(endpoint).1)
    }

    fn follower(&self, endpoint: &Endpoint) -> Option<Follower> {
        Some(self.with_view(endpoint, |followed| followed.followers.join()).1)
    }
}

impl RegistryDiscoverBuilder {
    /// Keeps the last known views in this file, and starts from them when the registry is missing. One process a file.
    /// Default: none.
    #[must_use]
    pub fn cache_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.cache_file = Some(path.into());
        self
    }

    /// A view that nobody has asked for in this time, and that nobody follows, is dropped. While anyone holds a receiver
    /// of [`watch`](Discover::watch), which hears of every view, none is; a channel and a
    /// [`Balancer`](crate::balance::Balancer) hold those only that they use. At least 1 s; default 10 min.
    #[must_use]
    pub fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle.max(Duration::from_secs(1));
        self
    }

    /// How long `discover` waits for the first view of a key. Default 5 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Whether `discover` waits for a missing registry, up to the timeout, or fails at once. Default: wait.
    #[must_use]
    pub fn missing_registry(mut self, missing: MissingRegistry) -> Self {
        self.missing = missing;
        self
    }

    /// The discovery. Must be called inside the runtime. Reads the cache file, and connects with the first key.
    pub fn build(self) -> RegistryDiscover {
        let runtime = self.client.runtime().clone();
        let cache = self.cache_file.map(|path| Arc::new(CacheFile::open(path)));
        let shared = Arc::new(Shared {
            runtime: runtime.clone(),
            views: Mutex::default(),
            view_added: tokio::sync::Notify::new(),
            changes: Broadcast::new(),
            viewed: Broadcast::new(),
            cache: cache.clone(),
            closed: AtomicBool::new(false),
        });
        let watcher = Arc::new(Watcher::new(self.client, ToViews(Arc::clone(&shared))));
        let mut tasks = vec![runtime.spawn(drop_idle(Arc::clone(&shared), Arc::clone(&watcher), self.idle))];
        tasks.extend(cache.map(|cache| runtime.spawn(cache.keep_writing())));
        let inner = Inner { shared, watcher, timeout: self.timeout, missing: self.missing, _tasks: tasks };
        RegistryDiscover { inner: Arc::new(inner) }
    }
}

impl Shared {
    fn views(&self) -> std::sync::MutexGuard<'_, BTreeMap<ViewKey, Followed>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whoever waits for a view waits in vain, and is told.
    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        for followed in self.views().values() {
            followed.state.send_modify(|_| {});
        }
    }

    fn state(&self, key: &ViewKey) -> Option<Arc<watch::Sender<ViewState>>> {
        self.views().get(key).map(|followed| Arc::clone(&followed.state))
    }

    fn told(&self, key: &ViewKey, version: Option<u64>) {
        if let Some(followed) = self.views().get_mut(key) {
            followed.told = version;
        }
    }

    /// Drops what was idle for long, and says when to look again. `None`: there is nothing to look at.
    fn drop_idle(&self, watcher: &Watcher, idle: Duration) -> Option<Duration> {
        let now = self.runtime.now();
        let heard = self.changes.is_heard();
        let mut views = self.views();
        views.retain(|key, followed| {
            if heard || followed.state.receiver_count() > 0 {
                followed.used_at = now;
            }
            let keep = now < followed.used_at.saturating_add(idle);
            if !keep {
                tracing::debug!(view = %key, "nobody asks for this view any longer");
                watcher.unfollow(key.clone());
            }
            keep
        });
        views.values().map(|followed| followed.used_at.saturating_add(idle).saturating_sub(now)).min()
    }
}

/// Brings the watcher's updates to the views.
#[derive(Debug)]
struct ToViews(Arc<Shared>);

impl Sink for ToViews {
    fn update(&mut self, update: Update) {
        match update {
            Update::Changed { change, cursor } => {
                if let Some(cache) = &self.0.cache {
                    cache.put(&change.key, cursor, Arc::clone(&change.all));
                }
                let Some(state) = self.0.state(&change.key) else { return };
                let view = View { instances: Arc::clone(&change.all), version: change.version };
                let before = state.send_replace(ViewState { view: Some(view), error: None });
                if before.view.is_none() || !change.is_empty() {
                    // What changes nothing is told to nobody, and so is nothing to apply.
                    self.0.told(&change.key, change.version);
                    self.0.viewed.tell(change.clone());
                    self.0.changes.tell(change);
                }
            }
            Update::Healthy { key } => {
                if let Some(state) = self.0.state(&key) {
                    state.send_modify(|state| state.error = None);
                }
            }
            Update::Failed { key, error } => {
                if let Some(state) = self.0.state(&key) {
                    state.send_modify(|state| state.error = Some(Arc::new(error)));
                }
            }
        }
    }

    fn applied(&mut self) -> BoxFuture<'static, ()> {
        let views = self.0.views();
        let behind: Vec<_> = views.values().filter_map(|it| it.followers.wait_for(it.told?)).collect();
        drop(views);
        Box::pin(async move {
            for follower in behind {
                follower.await;
            }
        })
    }
}

async fn drop_idle(shared: Arc<Shared>, watcher: Arc<Watcher>, idle: Duration) {
    loop {
        match shared.drop_idle(&watcher, idle) {
            Some(next) => tokio::time::sleep(next).await,
            None => shared.view_added.notified().await,
        }
    }
}

fn error_of(state: &ViewState) -> Option<WatchError> {
    state.error.as_ref().and_then(|error| error.downcast_ref()).cloned()
}
