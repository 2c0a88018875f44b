//! Who has applied what, and those who wait for it: C4 on the server's side.
//!
//! ```text
//!   streams ── Watcher: views, acks, the end ──► Acks (pure) ──► prompts: a stream is woken, and sends a bookmark that
//!   WaitApplied ── Waiting::answered ──────────►     │           asks for an ack, once all its views are at the head
//!                      ▲                             │
//!                      └── look again ◄──────────────┘
//! ```
//!
//! Knows what the hub published and the clock; nothing of gRPC. `acks` has the rules, `held` and `wait` its nouns.
//! Nobody who waits for nothing sends anything: without a wait, streams are as they would be without this room.

mod acks;
mod held;
mod wait;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::sleep};

pub use self::wait::Counts;
use self::{
    acks::{Acks, GRACE, Looked, News},
    held::{Origin, StreamId},
    wait::WaitId,
};
use crate::{
    core::{Revision, Selector, ServiceKey},
    hub::{Hub, Signal, Start},
    runtime::Runtime,
};

/// Who watches, and who waits for them. Cheap to clone.
#[derive(Clone)]
pub struct Watchers {
    inner: Arc<Inner>,
}

struct Inner {
    hub: Hub,
    runtime: Runtime,
    state: Mutex<State>,
}

struct State {
    acks: Acks,
    prompts: HashMap<StreamId, Arc<Signal>>,
    waiting: HashMap<WaitId, Arc<Notify>>,
}

/// One stream to a watcher. Dropping it says that the stream has ended.
pub struct Watcher {
    watchers: Watchers,
    id: StreamId,
    signal: Arc<Signal>,
}

/// One who waits. Dropping it forgets the wait.
pub struct Waiting {
    watchers: Watchers,
    id: WaitId,
    notify: Arc<Notify>,
}

/// What a wait came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// How far the watchers are.
    pub counts: Counts,
    /// Whether the share was reached.
    pub satisfied: bool,
}

impl Watchers {
    /// Nobody. If there is anything in the hub there may be watchers of this server's earlier life, who are unknown
    /// until they come back: for 20 s no wait is satisfied then.
    pub fn new(hub: Hub, runtime: Runtime) -> Self {
        let unknown_until = if hub.feeds() == 0 { 0 } else { runtime.now().mono.saturating_add(GRACE) };
        let state =
            State { acks: Acks::new(unknown_until), prompts: HashMap::new(), waiting: HashMap::new() };
        Self { inner: Arc::new(Inner { hub, runtime, state: Mutex::new(state) }) }
    }

    /// A stream that may send, woken through `signal`. Its client cannot ack until it is [`Watcher::named`].
    pub fn join(&self, signal: Arc<Signal>) -> Watcher {
        let now = self.inner.runtime.now().mono;
        let id = self.tell(|state| {
            let id = state.acks.joined(now);
            state.prompts.insert(id, Arc::clone(&signal));
            id
        });
        Watcher { watchers: self.clone(), id, signal }
    }

    /// Waits for a share, above 0 to 1, of those whose views of a service contained what `revision` changed. A revision
    /// at which nothing happened to the service stands for what happened to a view last before it. The head must be there.
    pub fn wait(&self, key: &ServiceKey, revision: Revision, share: f64) -> Waiting {
        let (hub, of) = (self.inner.hub.clone(), key.clone());
        let touched = Box::new(move |selector: &Selector| hub.touched(&of, selector, revision));
        let notify = Arc::new(Notify::new());
        let id = self.tell(|state| {
            let id = state.acks.wait(key, share, touched);
            state.waiting.insert(id, Arc::clone(&notify));
            id
        });
        Waiting { watchers: self.clone(), id, notify }
    }

    /// Tells what happened, and passes on what follows from it.
    fn tell<T>(&self, what: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let told = what(&mut state);
        let News { ask, look } = state.acks.take_news();
        for prompt in ask.iter().filter_map(|stream| state.prompts.get(stream)) {
            prompt.prompt();
        }
        for notify in look.iter().filter_map(|wait| state.waiting.get(wait)) {
            notify.notify_one();
        }
        told
    }

    /// No code of this room panics while it holds the lock; if it did, the data would still be whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher {
    /// The client has this name and acks. False, and nothing happens, if the stream has views already.
    pub fn named(&self, client: Arc<str>) -> bool {
        self.watchers.tell(|state| state.acks.named(self.id, client))
    }

    /// A view was opened, perhaps in place of another one of the same number.
    pub fn opened(&self, view: u32, key: &ServiceKey, selector: &Selector, start: &Start) {
        let origin = match start {
            Start::Fresh => Origin::Nothing,
            Start::Resume { epoch, revision } if epoch == self.watchers.inner.hub.epoch() => {
                Origin::Cursor(*revision)
            }
            Start::Resume { .. } | Start::Forced => Origin::Unknown,
        };
        self.watchers.tell(|state| state.acks.opened(self.id, view, key, selector, origin));
    }

    /// The first snapshot of a view shows this revision.
    pub fn began(&self, view: u32, revision: Revision) {
        self.watchers.tell(|state| state.acks.began(self.id, view, revision));
    }

    /// A view is no longer wanted, or was refused.
    pub fn closed(&self, view: u32) {
        self.watchers.tell(|state| state.acks.closed(self.id, view));
    }

    /// Whether an ack may be wanted: then a bookmark is due, see [`Self::asking`].
    pub fn is_prompted(&self) -> bool {
        self.signal.is_prompted()
    }

    /// A bookmark at `head` is about to be sent: whether it is to ask for an ack.
    pub fn asking(&self, head: Revision) -> bool {
        // Before it is looked at what is wanted: whoever comes after that prompts again.
        self.signal.take_prompt() && self.watchers.tell(|state| state.acks.asking(self.id, head))
    }

    /// The client has applied everything up to here, which it was told.
    pub fn acked(&self, revision: Revision) {
        self.watchers.tell(|state| state.acks.acked(self.id, revision));
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let now = self.watchers.inner.runtime.now().mono;
        self.watchers.tell(|state| {
            state.prompts.remove(&self.id);
            state.acks.left(self.id, now);
        });
    }
}

impl Waiting {
    /// What it came to, as soon as the share is reached, and after `timeout` at the latest.
    pub async fn answered(&self, timeout: Duration) -> Applied {
        let now = || self.watchers.inner.runtime.now().mono;
        let deadline = now().saturating_add(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        loop {
            let now = now();
            let looked = self.watchers.tell(|state| state.acks.look(self.id, now));
            let Some(Looked { counts, satisfied, until }) = looked else {
                return Applied { counts: Counts::default(), satisfied: false };
            };
            if satisfied || now >= deadline {
                return Applied { counts, satisfied };
            }
            let until = until.map_or(deadline, |until| until.min(deadline));
            tokio::select! {
                biased;
                () = self.notify.notified() => {}
                () = sleep(Duration::from_millis(until.saturating_sub(now))) => {}
            }
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl Waiting {
    /// How far the watchers are now.
    pub(crate) fn counts(&self) -> Counts {
        let now = self.watchers.inner.runtime.now().mono;
        self.watchers.tell(|state| state.acks.look(self.id, now)).map(|it| it.counts).unwrap_or_default()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.watchers.tell(|state| {
            state.waiting.remove(&self.id);
            state.acks.forget(self.id);
        });
    }
}

impl fmt::Debug for Watchers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchers").finish_non_exhaustive()
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher").field("stream", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("wait", &self.id).finish_non_exhaustive()
    }
}
