//! One read of a view while it is under way: a task of its own, and its answer.

use std::{error::Error, sync::Arc};

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

/// What a read reports to. A discovery that panics must not leave its key without an answer.
struct Report<K: Clone> {
    to: mpsc::Sender<Answer<K>>,
    key: K,
    read: u64,
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
        let report = Report { to, key, read: number };
        let task = runtime.spawn(async move {
            let result = discover.discover_versioned(&endpoint).await;
            report.tell(result.map_err(|error| Arc::new(error) as SharedError)).await;
        });
        Self { number, superseded: false, again: false, _task: task }
    }
}

impl<K: Clone> Report<K> {
    async fn tell(self, result: Result<View, SharedError>) {
        // An error means that the tracker is gone: nobody to tell.
        let _ = self.to.send(Answer { key: self.key.clone(), read: self.read, result }).await;
    }
}

impl<K: Clone> Drop for Report<K> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let result = Err(Arc::new(DiscoverPanicked) as SharedError);
            let _ = self.to.try_send(Answer { key: self.key.clone(), read: self.read, result });
        }
    }
}
