//! One read of a view while it is under way: a task of its own, and an answer, also of a discovery that panics.

use std::{
    error::Error,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
};

use tokio::sync::mpsc;

use super::{Discover, View};
use crate::{
    model::Endpoint,
    runtime::{Runtime, Task},
};

/// An error that many see.
pub(crate) type SharedError = Arc<dyn Error + Send + Sync>;

/// A read that is under way. Dropping it ends it.
pub(super) struct Read {
    pub(super) number: u64,
    /// A change arrived since it began.
    pub(super) superseded: bool,
    /// Changes were lost since it began: its answer may be too old.
    pub(super) again: bool,
    _task: Task,
}

/// What a read came to.
pub(super) struct Answer<K> {
    pub(super) key: K,
    /// Its number.
    pub(super) read: u64,
    pub(super) result: Result<View, SharedError>,
}

#[derive(Debug, thiserror::Error)]
#[error("the discovery panicked; its panic says where")]
struct DiscoverPanicked;

impl Read {
    /// Asks `discover` for the key's view; `to` is told what it answers.
    pub(super) fn begin<D: Discover>(
        number: u64,
        key: D::Key,
        discover: Arc<D>,
        endpoint: Endpoint,
        to: mpsc::Sender<Answer<D::Key>>,
        runtime: &Runtime,
    ) -> Self {
        let task = runtime.spawn(async move {
            let mut reading = pin!(async { discover.discover_versioned(&endpoint).await });
            let result = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| reading.as_mut().poll(cx))) {
                Ok(poll) => poll.map_err(|error| Arc::new(error) as SharedError),
                // Or its key would never be read again.
                Err(_) => Poll::Ready(Err(Arc::new(DiscoverPanicked) as SharedError)),
            });
            let answer = Answer { key, read: number, result: result.await };
            // An error means that the tracker is gone: nobody to tell.
            let _ = to.send(answer).await;
        });
        Self { number, superseded: false, again: false, _task: task }
    }
}
