//! A stream of answers that ends, with a reason, when the server stops.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
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

/// The items of a stream until `stopped`, then `UNAVAILABLE`.
pub(super) struct Until<S, F> {
    items: Pin<Box<S>>,
    stopped: Option<Pin<Box<F>>>,
}

impl<S, F> Until<S, F> {
    pub(super) fn new(items: S, stopped: F) -> Self {
        Self { items: Box::pin(items), stopped: Some(Box::pin(stopped)) }
    }
}

impl<T, S, F> Stream for Until<S, F>
where
    S: Stream<Item = Result<T, Status>>,
    F: Future<Output = ()>,
{
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(stopped) = &mut self.stopped else { return Poll::Ready(None) };
        if stopped.as_mut().poll(cx).is_ready() {
            self.stopped = None;
            return Poll::Ready(Some(Err(status::shutting_down(Duration::from_millis(500)))));
        }
        self.items.as_mut().poll_next(cx)
    }
}
