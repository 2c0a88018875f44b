//! The loop that keeps views of any [`Discover`] up to date: it owns when to read again and which answer is newer.
//!
//! ```text
//!   track(key) ──► reading ──answer──► known ◄──change── watch()
//!                   ▲   │                │
//!           backoff │   │ error          │ overflow, or empty and no change would correct it
//!                   └── due ◄────────────┘
//! ```
//!
//! Changes are subscribed to before anything is read. A view with a version yields to a greater one only; without
//! versions, a change that arrives while a read is under way beats its answer. A failed read keeps what is known (C1). A
//! read runs as a task of its own, so that one that hangs delays no other key and no change.

use std::{collections::HashMap, future::pending, sync::Arc, time::Duration};

use async_broadcast::{Receiver, RecvError};
use tokio::sync::{mpsc, oneshot};

use super::{
    Discover, Follower, SharedError, View, ViewReceiver,
    read::{Answer, Read},
};
use crate::{
    backoff::Bounds,
    model::{Change, Endpoint},
    runtime::{Runtime, Task},
};

/// After an overflow reads start spread over so long for each key, and over a second at most.
const SPREAD_PER_KEY: Duration = Duration::from_millis(1);
/// How many orders and answers may wait.
const QUEUE: usize = 64;

/// What takes in what the tracker learns. Its methods are called from the tracker's task: they must not wait.
pub(crate) trait Sink<K>: Send + 'static {
    /// A newer view of a key that is tracked.
    fn changed(&mut self, change: Change<K>) -> Put;

    /// A key is tracked from now on. Of a sink that acts on views: takes a follower, which the tracker keeps for as long.
    fn follows(
        &mut self,
        key: &K,
        follower: impl FnOnce() -> Option<Arc<Follower>>,
    ) -> Option<Arc<Follower>> {
        let _ = (key, follower);
        None
    }

    /// A change of another key, which nobody reads again if one is lost.
    fn untracked(&mut self, change: Change<K>) {
        let _ = change;
    }

    /// A read failed; it will be tried again.
    fn failed(&mut self, key: &K, error: SharedError);

    /// A read succeeded after one that failed, and brought nothing newer.
    fn recovered(&mut self, key: &K) {
        let _ = key;
    }

    /// Once every idle time: forget what is not used.
    fn sweep(&mut self) {}

    /// After a sweep: whether the key is still wanted.
    fn keeps(&mut self, key: &K) -> bool {
        let _ = key;
        true
    }
}

/// Whether a view is in use when a sink has taken it in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// Nothing is chosen by an older one any more.
    InUse,
    /// Whoever puts it to use tells the follower; or nobody does.
    Later,
}

/// A running tracker. Dropping it ends its task, and all reads that are under way.
#[derive(Debug)]
pub(crate) struct Tracker<K> {
    orders: mpsc::Sender<Order<K>>,
    _task: Task,
}

/// A key is to be tracked.
#[derive(Debug)]
struct Order<K> {
    key: K,
    endpoint: Endpoint,
    /// Told when it is.
    tracked: oneshot::Sender<()>,
}

impl<K: Send + 'static> Tracker<K> {
    /// Starts tracking by `changes`, subscribed to already; `first` are tracked from the start. Without `idle` nothing is
    /// ever swept.
    pub(crate) fn spawn<D: Discover<Key = K>>(
        changes: Option<Receiver<Change<K>>>,
        discover: Arc<D>,
        sink: impl Sink<K>,
        first: impl IntoIterator<Item = (K, Endpoint)>,
        idle: Option<Duration>,
        runtime: &Runtime,
    ) -> Self {
        let (orders, inbox) = mpsc::channel(QUEUE);
        let (report, answers) = mpsc::channel(QUEUE);
        let now = runtime.now();
        let mut state = Loop {
            changes,
            discover,
            sink,
            runtime: runtime.clone(),
            tracked: HashMap::new(),
            places: 0,
            report,
            reads: 0,
            wake: None,
            sweep: idle.map(|idle| (idle, now.saturating_add(idle))),
        };
        let first: Vec<_> = first.into_iter().collect();
        let task = runtime.spawn(async move {
            for (key, endpoint) in first {
                state.track(key, endpoint);
            }
            state.run(inbox, answers).await;
        });
        Self { orders, _task: task }
    }

    /// Tracks the key: it is read, and read again where that is needed. If it is tracked already, the sink is told once
    /// more what is known. Returns when it is tracked, so that whoever is asked for the view from then on is waited for by
    /// acks (C4). False: the tracker's task is gone.
    pub(crate) async fn track(&self, key: K, endpoint: Endpoint) -> bool {
        let (tracked, is_tracked) = oneshot::channel();
        self.orders.send(Order { key, endpoint, tracked }).await.is_ok() && is_tracked.await.is_ok()
    }

    /// Waits until the tracker's task is gone, with its runtime for example.
    pub(crate) async fn ended(&self) {
        self.orders.closed().await;
    }
}

struct Loop<D: Discover, S> {
    discover: Arc<D>,
    sink: S,
    runtime: Runtime,
    changes: Option<Receiver<Change<D::Key>>>,
    tracked: HashMap<D::Key, Tracked>,
    places: u64,
    report: mpsc::Sender<Answer<D::Key>>,
    reads: u64,
    /// Not later than any key's `due`.
    wake: Option<Duration>,
    /// How often to sweep, and when next.
    sweep: Option<(Duration, Duration)>,
}

struct Tracked {
    /// Its place in the order of tracking: what is done to many keys is done in it, so that a seed repeats a run.
    place: u64,
    endpoint: Endpoint,
    known: Option<View>,
    read: Option<Read>,
    /// Changes were lost since `known`: what a change says was added or removed is not the difference to it.
    gap: bool,
    due: Option<Duration>,
    /// Reads in a row that failed, or found nothing.
    fruitless: u32,
    failed: bool,
    /// Held so that a discovery which forgets what nobody looks at keeps this one.
    _hold: Option<ViewReceiver>,
    /// Of a sink that acts on views.
    follower: Option<Arc<Follower>>,
}

impl<D: Discover, S: Sink<D::Key>> Loop<D, S> {
    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Order<D::Key>>,
        mut answers: mpsc::Receiver<Answer<D::Key>>,
    ) {
        loop {
            let wake = [self.wake, self.sweep.map(|(_, at)| at)].into_iter().flatten().min();
            let pause = wake.map(|at| at.saturating_sub(self.runtime.now()));
            // Biased, so that a seed repeats a run. Changes come last: a flood of them must not starve the others.
            tokio::select! {
                biased;
                order = inbox.recv() => match order {
                    Some(order) => self.take(order),
                    None => return,
                },
                Some(answer) = answers.recv() => self.answered(answer),
                () = sleep(pause) => self.timer(),
                change = next(&mut self.changes) => match change {
                    Ok(change) => self.change(change),
                    Err(RecvError::Overflowed(_)) => {
                        // Whoever ordered before a change was lost must be read again.
                        while let Ok(order) = inbox.try_recv() {
                            self.take(order);
                        }
                        self.overflowed();
                    }
                    // Polled once more it would answer at once, for ever. What is known stays.
                    Err(RecvError::Closed) => self.closed(),
                },
            }
        }
    }

    fn take(&mut self, Order { key, endpoint, tracked }: Order<D::Key>) {
        self.track(key, endpoint);
        // Whoever ordered it may have gone.
        _ = tracked.send(());
    }

    fn track(&mut self, key: D::Key, endpoint: Endpoint) {
        if let Some(tracked) = self.tracked.get(&key) {
            let follower = tracked.follower.clone();
            self.sink.follows(&key, || follower);
            if let Some(View { instances, version }) = tracked.known.clone() {
                let put = self.sink.changed(Change::between(key, &[], instances, version));
                tracked.applied(put, version);
            }
            return;
        }
        let discover = &self.discover;
        // First, so that no change comes in between unasked.
        let follower = self.sink.follows(&key, || discover.follower(&endpoint).map(Arc::new));
        let hold = discover.view(&endpoint);
        self.places += 1;
        let tracked = Tracked {
            place: self.places,
            endpoint,
            known: None,
            read: None,
            gap: false,
            due: None,
            fruitless: 0,
            failed: false,
            _hold: hold,
            follower,
        };
        self.tracked.insert(key.clone(), tracked);
        self.read(&key);
    }

    fn read(&mut self, key: &D::Key) {
        let Some(tracked) = self.tracked.get_mut(key) else { return };
        self.reads += 1;
        let (discover, endpoint) = (Arc::clone(&self.discover), tracked.endpoint.clone());
        tracked.read = Some(Read::begin(
            self.reads,
            key.clone(),
            discover,
            endpoint,
            self.report.clone(),
            &self.runtime,
        ));
        tracked.due = None;
    }

    fn answered(&mut self, Answer { key, read, result }: Answer<D::Key>) {
        let Some(tracked) = self.tracked.get_mut(&key) else { return };
        // Of a read that was begun before the key was forgotten, and tracked anew.
        let Some(read) = tracked.read.take_if(|current| current.number == read) else { return };
        let mut again = read.again.then_some(Duration::ZERO);
        match result {
            Ok(view) => {
                let newer = match (&tracked.known, view.version) {
                    (Some(View { version: Some(known), .. }), Some(version)) => version > *known,
                    _ => !read.superseded,
                };
                let failed = std::mem::take(&mut tracked.failed);
                if newer {
                    let before = tracked.known.as_ref().map(|view| &*view.instances).unwrap_or_default();
                    let change =
                        Change::between(key.clone(), before, Arc::clone(&view.instances), view.version);
                    let version = view.version;
                    tracked.known = Some(view);
                    tracked.gap = false;
                    let put = self.sink.changed(change);
                    tracked.applied(put, version);
                } else if failed {
                    self.sink.recovered(&key);
                }
                let empty = tracked.known.as_ref().is_some_and(|known| {
                    known.instances.is_empty() && (known.version.is_none() || self.changes.is_none())
                });
                if empty && !read.superseded {
                    tracked.fruitless = tracked.fruitless.saturating_add(1);
                    again = again.or_else(|| Some(Bounds::default().pause(tracked.fruitless, &self.runtime)));
                } else {
                    tracked.fruitless = 0;
                }
            }
            Err(error) => {
                tracked.failed = true;
                tracked.fruitless = tracked.fruitless.saturating_add(1);
                // However often changes are lost meanwhile: what fails is not hammered.
                again = Some(Bounds::default().pause(tracked.fruitless, &self.runtime));
                self.sink.failed(&key, error);
            }
        }
        if let Some(pause) = again {
            self.schedule(&key, pause);
        }
    }

    fn change(&mut self, mut change: Change<D::Key>) {
        let Some(tracked) = self.tracked.get_mut(&change.key) else { return self.sink.untracked(change) };
        if let (Some(View { version: Some(known), .. }), Some(version)) = (&tracked.known, change.version)
            && version <= *known
        {
            return;
        }
        if std::mem::take(&mut tracked.gap) {
            let before = tracked.known.as_ref().map(|view| &*view.instances).unwrap_or_default();
            change = Change::between(change.key, before, change.all, change.version);
        }
        tracked.known = Some(View { instances: Arc::clone(&change.all), version: change.version });
        if let Some(read) = &mut tracked.read {
            read.superseded = true;
            read.again = false;
        }
        tracked.failed = false;
        tracked.fruitless = 0;
        tracked.due = None;
        let version = change.version;
        let put = self.sink.changed(change);
        tracked.applied(put, version);
    }

    fn overflowed(&mut self) {
        // What is still queued is older than the reads that begin now.
        self.changes = self.changes.as_ref().map(Receiver::new_receiver);
        let spread = SPREAD_PER_KEY * u32::try_from(self.tracked.len()).unwrap_or(u32::MAX).min(1000);
        tracing::warn!(keys = self.tracked.len(), "changes were lost: reading all views again");
        for key in self.keys(|_| true) {
            let Some(tracked) = self.tracked.get_mut(&key) else { continue };
            tracked.gap = true;
            if let Some(read) = &mut tracked.read {
                read.again = true;
            } else if !tracked.failed {
                // One that failed is due anyway, after its backoff.
                let pause = self.runtime.jitter(spread);
                self.schedule(&key, pause);
            }
        }
    }

    fn closed(&mut self) {
        self.changes = None;
        tracing::warn!("the discovery's changes ended: what is known stays");
        let empty = |view: &View| view.instances.is_empty();
        for key in self.keys(|t| t.read.is_none() && t.due.is_none() && t.known.as_ref().is_some_and(empty)) {
            let pause = Bounds::default().pause(1, &self.runtime);
            self.schedule(&key, pause);
        }
    }

    fn schedule(&mut self, key: &D::Key, pause: Duration) {
        let due = self.runtime.now() + pause;
        if let Some(tracked) = self.tracked.get_mut(key) {
            // Never later than it already was, or a storm of overflows would put it off for ever.
            let due = tracked.due.map_or(due, |earlier| earlier.min(due));
            tracked.due = Some(due);
            self.wake = Some(self.wake.map_or(due, |wake| wake.min(due)));
        }
    }

    fn timer(&mut self) {
        let now = self.runtime.now();
        if let Some((idle, at)) = self.sweep
            && at <= now
        {
            self.sink.sweep();
            let sink = &mut self.sink;
            self.tracked.retain(|key, _| sink.keeps(key));
            self.sweep = Some((idle, now.saturating_add(idle)));
        }
        for key in self.keys(|tracked| tracked.due.is_some_and(|due| due <= now)) {
            self.read(&key);
        }
        self.wake = self.tracked.values().filter_map(|tracked| tracked.due).min();
    }

    /// The keys that are such, in the order in which they were tracked.
    fn keys(&self, such: impl Fn(&Tracked) -> bool) -> Vec<D::Key> {
        let mut keys: Vec<_> =
            self.tracked.iter().filter(|(_, t)| such(t)).map(|(key, t)| (t.place, key.clone())).collect();
        keys.sort_unstable_by_key(|(place, _)| *place);
        keys.into_iter().map(|(_, key)| key).collect()
    }
}

impl Tracked {
    fn applied(&self, put: Put, version: Option<u64>) {
        if let (Put::InUse, Some(follower)) = (put, &self.follower) {
            follower.applied(version);
        }
    }
}

async fn sleep(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => pending().await,
    }
}

async fn next<K: Clone>(changes: &mut Option<Receiver<Change<K>>>) -> Result<Change<K>, RecvError> {
    match changes {
        Some(changes) => changes.recv_direct().await,
        None => pending().await,
    }
}
