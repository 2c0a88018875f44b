//! Takes connections, each as a task of its own, until the server closes; then waits until all have ended.

use std::{future::Future, io, pin::pin, time::Duration};

use http::{Request, Response};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::sleep,
};
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tracing::warn;

use super::connection::{Connection, RequestBody};
use crate::runtime::Runtime;

/// After a connection could not be taken, most likely for want of file descriptors, which are there again when others end.
const REST_AFTER_ERROR: Duration = Duration::from_millis(50);

/// Serves whoever connects until `closing` resolves. No more are taken then, those that are there take no more calls, and
/// when the calls in flight have ended, this returns.
pub(super) async fn serve<I, C, S, F>(
    incoming: I,
    service: S,
    runtime: Runtime,
    closing: impl Future<Output = ()> + Send,
) where
    I: Stream<Item = io::Result<C>> + Send,
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(Request<RequestBody>) -> F + Clone + Send + Unpin + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (close, closes) = watch::channel(false);
    take(incoming, service, runtime, closing, &closes).await;
    drop(closes);
    close.send_replace(true);
    close.closed().await;
}

/// When this returns, nobody listens any more: whoever connects now is refused at once, and does not wait in vain.
async fn take<I, C, S, F>(
    incoming: I,
    service: S,
    runtime: Runtime,
    closing: impl Future<Output = ()> + Send,
    closes: &watch::Receiver<bool>,
) where
    I: Stream<Item = io::Result<C>> + Send,
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(Request<RequestBody>) -> F + Clone + Send + Unpin + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (mut incoming, mut closing) = (pin!(incoming), pin!(closing));
    loop {
        tokio::select! {
            biased;
            () = &mut closing => return,
            taken = incoming.next() => match taken {
                Some(Ok(io)) => {
                    runtime.spawn(Connection::new(io, service.clone(), closes.clone()));
                }
                Some(Err(error)) => {
                    warn!("a connection could not be taken: {error}");
                    sleep(REST_AFTER_ERROR).await;
                }
                None => return,
            }
        }
    }
}
