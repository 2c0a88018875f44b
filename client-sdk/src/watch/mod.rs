//! Following many views on one stream, for as long as anyone wants them.
//!
//! Owns the `Subscribe` stream: the reconnect state machine (`machine`), the views that it carries (`views`), what it owes
//! the registry in acks (`acks`), and how it is left (`leave`).
//! Does not own what becomes of a change: that is the [`Sink`]'s business. Keeps W5 on the client's side (every view
//! resumes with its epoch and cursor), C3 (silence of 15 s is a dead stream, the next replica is asked), and the
//! promise that a watch never ends by itself and no error is fatal. Of C4: what is acked is in use, and nothing older is; and
//! whoever stops says so, and holds nobody up.

mod acks;
mod leave;
mod machine;
pub(crate) mod views;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

pub use leave::LeaveError;

use crate::{
    client::{ConnectError, Refusal, RegistryClient},
    model::{Change, Instance},
    runtime::BoxFuture,
    view::{Cursor, Resync, ViewKey},
};

/// A stream without a message for this long is dead (C3): bookmarks come every 5 s.
pub const SILENCE: Duration = Duration::from_secs(15);

/// However long a registry asks to wait (before trying again, before leaving it), it is not waited for longer (C3).
const LONGEST_DELAY: Duration = Duration::from_mins(1);

/// What a watch has to say. No update is the last one.
#[derive(Clone, Debug)]
pub enum Update {
    /// A view is another one. It is healthy, too.
    Changed {
        /// What changed.
        change: Change<ViewKey>,
        /// Where the view can be resumed.
        cursor: Cursor,
    },
    /// What was wrong with a view is over; it is as it was.
    Healthy {
        /// The view.
        key: ViewKey,
    },
    /// A view may be out of date, or is not there yet. The watch goes on trying.
    Failed {
        /// The view.
        key: ViewKey,
        /// Why.
        error: WatchError,
    },
}

/// Takes updates in. Called by the watch's own task: it must not block.
pub trait Sink: Send + 'static {
    /// Takes one update in.
    fn update(&mut self, update: Update);

    /// Ends when whoever acts on the views has put all updates so far to use. The registry is told so, for those who wait for
    /// it ([`Registration::drain`](crate::registration::Registration::drain)); the watch itself goes on meanwhile. Default:
    /// at once.
    fn applied(&mut self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Why a view may be out of date. Always passing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// Not one endpoint could be connected to.
    #[error(transparent)]
    Unreachable(ConnectError),
    /// The stream broke or was refused.
    #[error("the stream of changes was ended: {0}")]
    Ended(Refusal),
    /// The stream was closed without a reason.
    #[error("the registry closed the stream of changes")]
    Closed,
    /// Nothing came over the stream for too long.
    #[error("nothing was heard from the registry for {0:?}")]
    Silent(Duration),
    /// The registry refused this view, not the stream.
    #[error("the registry refused the view: {0}")]
    Refused(Refusal),
    /// The registry lost its data (the epoch is another one) and names no instance yet. Those that were known before stay
    /// for so long at most, for their registrants to come back.
    #[error(
        "the registry has lost its data and names no instance; those known before stay for {0:?} at most"
    )]
    Emptied(Duration),
    /// What came did not fit; a fresh snapshot was asked for.
    #[error("the view is being read anew: {0}")]
    Resync(Resync),
}

impl WatchError {
    /// When the registry asked to try again, within reason.
    fn retry_after(&self) -> Duration {
        match self {
            Self::Ended(refusal) | Self::Refused(refusal) => {
                refusal.retry_after.unwrap_or_default().min(LONGEST_DELAY)
            }
            _ => Duration::ZERO,
        }
    }
}

/// A view as it was known before, to start from: it is shown once the registry turns out to be missing, and resumed from
/// if it is there.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Where to resume.
    pub cursor: Cursor,
    /// The instances at that point.
    pub instances: Arc<[Arc<Instance>]>,
}

/// How a watcher left the registry, if it has.
type Left = Option<Result<(), LeaveError>>;

/// Follows views over one stream. Dropping it ends the stream, as [`close`](Self::close) does: the task behind it leaves the
/// registry, as well as it can, and ends within the client's request timeout.
#[derive(Debug)]
pub struct Watcher {
    wanted: Arc<Wanted>,
    counters: Arc<Counters>,
    left: tokio::sync::watch::Receiver<Left>,
}

/// What the handle asks of the task: by view, the newest wish only, so that it is bounded by the number of views.
#[derive(Debug, Default)]
struct Wanted {
    wishes: Mutex<BTreeMap<ViewKey, Wish>>,
    changed: tokio::sync::Notify,
    closing: AtomicBool,
}

#[derive(Debug)]
enum Wish {
    Follow(Option<Restored>),
    Drop,
}

#[derive(Debug, Default)]
struct Counters {
    resyncs: AtomicU64,
    streams: AtomicU64,
}

impl Watcher {
    /// A watcher of nothing yet: it connects with the first view. Must be called inside the runtime.
    pub fn new(client: RegistryClient, sink: impl Sink) -> Self {
        let wanted = Arc::new(Wanted::default());
        let counters = Arc::new(Counters::default());
        let runtime = client.runtime().clone();
        let machine = machine::Machine::new(client, sink, Arc::clone(&wanted), Arc::clone(&counters));
        let (leaving, left) = tokio::sync::watch::channel(None);
        // It outlives its owner for a moment, and ends by itself.
        runtime.detach(machine.run(leaving));
        Self { wanted, counters, left }
    }

    /// Leaves the registry for good: nothing is followed any more, and drains of what was followed do not wait for this
    /// watcher. So nothing new may be begun by what it told. Ends when the registry has heard of it, and within the client's
    /// request timeout; an error says that it may not have. May be called any number of times.
    pub async fn close(&self) -> Result<(), LeaveError> {
        self.wanted.close();
        let mut left = self.left.clone();
        // An error means that the task is gone without a word, with its runtime for example.
        let left = left.wait_for(Option::is_some).await.map(|left| *left);
        left.ok().flatten().unwrap_or(Err(LeaveError::NoStream))
    }

    /// Follows a view. If it is followed already, it is told to the sink again as a whole. A closed watcher follows nothing.
    pub fn follow(&self, key: ViewKey, restored: Option<Restored>) {
        self.wanted.wish(key, Wish::Follow(restored));
    }

    /// Does not follow a view any longer.
    pub fn unfollow(&self, key: ViewKey) {
        self.wanted.wish(key, Wish::Drop);
    }

    /// How many times a view was read anew because what came did not fit (W8), since the watcher began.
    pub fn resyncs(&self) -> u64 {
        self.counters.resyncs.load(Ordering::Relaxed)
    }

    /// How many streams were opened since the watcher began: one, as long as nothing goes wrong.
    pub fn streams(&self) -> u64 {
        self.counters.streams.load(Ordering::Relaxed)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.wanted.close();
    }
}

impl Wanted {
    fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    fn wish(&self, key: ViewKey, wish: Wish) {
        if self.is_closing() {
            return;
        }
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner).insert(key, wish);
        self.changed.notify_one();
    }

    fn take(&self) -> BTreeMap<ViewKey, Wish> {
        std::mem::take(&mut *self.wishes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
