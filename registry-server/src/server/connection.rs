//! One connection is one task: what its wire reads and writes, and all its calls, take turns in it.
//!
//! ```text
//!   bytes, room to write, an answer's first part ──► wire bell ─┐
//!   a change, the writer's answer, a deadline    ──► call bell ─┼─► Turn ──► the task, woken once
//!   the server closes                            ──► door bell ─┘              │
//!                       ┌── calls that were rung for ◄─────────────────────────┘
//!                       └── then the wire: what they said goes out together;   until nobody rings
//!                           what it read begins further calls
//! ```
//!
//! hyper leaves calls to an executor, and commonly that makes a task of each: a change then wakes a watcher's task, which wakes
//! its connection's, both lock what they share, and each pays for its own way through the scheduler. Here the second wake-up,
//! the second task's memory and the lock's contention are gone, and the changes of many views on one connection are written at once.
//! The price is that the calls of one connection use one processor at a time; those of different connections do not.
//!
//! Owns no call's meaning; who rang is kept in [`calls`]. A call that panics ends alone, as it would in a task of its own.

mod calls;

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use hyper::{
    Request, Response,
    body::Incoming,
    rt::Executor,
    server::conn::http2::{Builder, Connection as Http2},
    service::Service,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};
use tonic::body::Body;
use tracing::debug;

use self::calls::{CALLS, Call, Calls, DOOR, Turn, WIRE};
use super::{MAX_STREAMS_PER_CONNECTION, PING_INTERVAL, PING_TIMEOUT};

/// Rounds of calls and wire in one turn; then other tasks have theirs.
const ROUNDS: u32 = 8;

/// A connection that is served until it ends.
pub(super) struct Connection<C, S>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>,
{
    wire: Pin<Box<Http2<TokioIo<C>, S, Begun>>>,
    calls: Calls,
    begun: Begun,
    /// `None`: it was asked to close.
    closing: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    turn: Arc<Turn>,
    wire_bell: Waker,
    door_bell: Waker,
    /// Whoever closes the server waits until all of these are gone.
    _open: watch::Receiver<bool>,
}

impl<C, S> Connection<C, S>
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
{
    /// Serves until its client goes, or `closing` says true and all its calls have ended.
    pub(super) fn new(io: C, service: S, closing: watch::Receiver<bool>) -> Self {
        let begun = Begun::default();
        let mut builder = Builder::new(begun.clone());
        builder
            .timer(TokioTimer::new())
            // gRPC has no use for it.
            .auto_date_header(false)
            .keep_alive_interval(Some(PING_INTERVAL))
            .keep_alive_timeout(PING_TIMEOUT)
            .max_concurrent_streams(Some(MAX_STREAMS_PER_CONNECTION));
        let turn = Turn::new(WIRE | DOOR);
        let mut told = closing.clone();
        Self {
            wire: Box::pin(builder.serve_connection(TokioIo::new(io), service)),
            calls: Calls::new(&turn),
            begun,
            closing: Some(Box::pin(async move {
                // An error means that nobody waits for this connection any more.
                let _ = told.wait_for(|closing| *closing).await;
            })),
            wire_bell: turn.bell(WIRE),
            door_bell: turn.bell(DOOR),
            turn,
            _open: closing,
        }
    }

    /// Ready: the connection has ended.
    fn poll_round(&mut self, mut rung: u64) -> Poll<()> {
        if rung & DOOR != 0
            && let Some(closing) = &mut self.closing
            && closing.as_mut().poll(&mut Context::from_waker(&self.door_bell)).is_ready()
        {
            self.closing = None;
            self.wire.as_mut().graceful_shutdown();
            rung |= WIRE;
        }
        if rung & CALLS != 0 {
            self.calls.poll(rung);
        }
        // What the calls have said just now goes out with this round.
        rung |= self.turn.take(WIRE);
        if rung & WIRE != 0 {
            let ended = self.wire.as_mut().poll(&mut Context::from_waker(&self.wire_bell));
            if let Poll::Ready(ended) = ended {
                if let Err(error) = ended {
                    debug!("a connection failed: {error}");
                }
                // Calls that are not answered cannot be any more.
                return Poll::Ready(());
            }
            self.begun.take().into_iter().for_each(|call| self.calls.begin(call));
        }
        Poll::Pending
    }
}

impl<C, S> Future for Connection<C, S>
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let mut rung = this.turn.begin(cx.waker());
        for _ in 0..ROUNDS {
            if this.poll_round(rung).is_ready() {
                return Poll::Ready(());
            }
            if this.turn.end() {
                return Poll::Pending;
            }
            rung = this.turn.go_on();
        }
        // What was taken out of the word is put back.
        this.turn.ring(rung);
        this.turn.put_off();
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Calls that the wire has read and that have not begun yet. Only the connection's own task touches it.
#[derive(Clone, Default)]
struct Begun(Arc<Mutex<Vec<Call>>>);

impl Begun {
    fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Begun {
    fn execute(&self, call: F) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::pin(call));
    }
}

#[cfg(test)]
mod tests;
