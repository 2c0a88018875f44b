//! A stream of answers that ends, with a reason, when the server stops.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use tokio::time::sleep;
use tokio_stream::Stream;
use tonic::Status;

use super::{status, streams::Stopping};
use crate::runtime::Runtime;

/// Resolves some time after the server stops: each at another time, all within the time that streams have to leave.
pub(super) async fn leaving(mut stopping: Stopping, runtime: Runtime) {
    let spread = stopping.wait_for(Option::is_some).await.map(|spread| *spread);
    // An error means that the server is gone altogether.
    sleep(runtime.jitter(spread.ok().flatten().unwrap_or_default())).await;
}

/// The items of a stream until `stopped`, then `UNAVAILABLE`. An item does not cost a look at `stopped`: that rings.
pub(super) struct Until<S, F> {
    items: Pin<Box<S>>,
    stopped: Option<Pin<Box<F>>>,
    bell: Arc<Bell>,
    /// The bell, as what `stopped` is polled with.
    rings: Waker,
    /// Whom the bell wakes.
    task: Waker,
}

/// Whether something wants to be looked at, and whose task that is.
struct Bell {
    rang: AtomicBool,
    task: Mutex<Waker>,
}

impl Bell {
    /// Nothing panics while it is held.
    fn task(&self) -> MutexGuard<'_, Waker> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rang.store(true, Ordering::Release);
        // Kept there: as long as the task is the same, nothing has to be said of it again.
        self.task().wake_by_ref();
    }
}

impl<S, F> Until<S, F> {
    pub(super) fn new(items: S, stopped: F) -> Self {
        let task = Waker::noop().clone();
        let bell = Arc::new(Bell { rang: AtomicBool::new(true), task: Mutex::new(task.clone()) });
        let rings = Waker::from(Arc::clone(&bell));
        Self { items: Box::pin(items), stopped: Some(Box::pin(stopped)), bell, rings, task }
    }
}

impl<T, S, F> Stream for Until<S, F>
where
    S: Stream<Item = Result<T, Status>>,
    F: Future<Output = ()>,
{
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(stopped) = &mut this.stopped else { return Poll::Ready(None) };
        // First: what rings from here on wakes this task.
        if !this.task.will_wake(cx.waker()) {
            this.task.clone_from(cx.waker());
            this.bell.task().clone_from(cx.waker());
        }
        if this.bell.rang.load(Ordering::Acquire)
            && this.bell.rang.swap(false, Ordering::AcqRel)
            && stopped.as_mut().poll(&mut Context::from_waker(&this.rings)).is_ready()
        {
            this.stopped = None;
            return Poll::Ready(Some(Err(status::shutting_down(Duration::from_millis(500)))));
        }
        this.items.as_mut().poll_next(cx)
    }
}
