//! One connection is one task: what its wire reads and writes, and all its calls, take turns in it.
//!
//! ```text
//!   bytes, room to write, an answer's first part ──► wire bell  ─┐
//!   a change, the writer's answer, a deadline    ──► call bell  ─┼─► Turn ──► the task, woken once
//!   the server closes                            ──► door bell  ─┤              │
//!   time to ping, a pong                         ──► pulse bell ─┘              │
//!                       ┌── calls that were rung for ◄──────────────────────────┘
//!                       └── then the wire: what they said goes out together;   until nobody rings
//!                           what it read begins further calls
//! ```
//!
//! A server commonly makes a task of each call: a change then wakes a watcher's task, which wakes its connection's, both lock
//! what they share, and each pays for its own way through the scheduler. Here the second wake-up, the second task's memory and
//! the lock's contention are gone, and the changes of many views on one connection are written at once.
//! The price is that the calls of one connection use one processor at a time; those of different connections do not.
//!
//! HTTP/2 itself is h2's. Owns no call's meaning; who rang is kept in [`calls`], how a call is answered is in [`exchange`], what it
//! is asked in [`request`], how its bytes are written in [`bytewise`], and whether its client is still there in [`pulse`]. A call
//! that panics ends alone, as it would in a task of its own.

mod bytewise;
mod calls;
mod exchange;
mod pulse;
mod request;
mod wire;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use http::{Request, Response};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};
use tonic::body::Body;
use tracing::debug;

pub(super) use self::request::RequestBody;
use self::{
    bytewise::Heard,
    calls::{CALLS, Calls, DOOR, PULSE, Turn, WIRE},
    pulse::Pulse,
    wire::{Moved, Wire},
};

/// Rounds of calls and wire in one turn; then other tasks have theirs.
const ROUNDS: u32 = 8;
/// Calls that begin in one round at most.
const BEGIN: u32 = 256;

/// A connection that is served until it ends.
pub(super) struct Connection<C, S> {
    wire: Wire<C>,
    pulse: Pulse,
    service: S,
    calls: Calls,
    /// `None`: it was asked to close.
    closing: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    turn: Arc<Turn>,
    wire_bell: Waker,
    door_bell: Waker,
    pulse_bell: Waker,
    /// Whoever closes the server waits until all of these are gone.
    _open: watch::Receiver<bool>,
}

impl<C, S, F> Connection<C, S>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: Fn(Request<RequestBody>) -> F,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    /// Serves until its client goes, or `closing` says true and all its calls have ended.
    pub(super) fn new(io: C, service: S, closing: watch::Receiver<bool>) -> Self {
        let turn = Turn::new(WIRE | DOOR | PULSE);
        let heard = Heard::default();
        let mut told = closing.clone();
        Self {
            wire: Wire::new(io, heard.clone()),
            pulse: Pulse::new(heard),
            service,
            calls: Calls::new(&turn),
            closing: Some(Box::pin(async move {
                // An error means that nobody waits for this connection any more.
                let _ = told.wait_for(|closing| *closing).await;
            })),
            wire_bell: turn.bell(WIRE),
            door_bell: turn.bell(DOOR),
            pulse_bell: turn.bell(PULSE),
            turn,
            _open: closing,
        }
    }

    /// Ready: the connection has ended, and calls that are not answered cannot be any more.
    fn poll_round(&mut self, mut rung: u64) -> Poll<()> {
        if rung & DOOR != 0
            && let Some(closing) = &mut self.closing
            && closing.as_mut().poll(&mut Context::from_waker(&self.door_bell)).is_ready()
        {
            self.closing = None;
            self.wire.close();
            self.pulse.close();
            rung |= WIRE | PULSE;
        }
        if rung & CALLS != 0 {
            self.calls.poll(rung);
        }
        // What the calls have said just now goes out with this round.
        rung |= self.turn.take(WIRE);
        if rung & WIRE != 0 && self.poll_wire().is_ready() {
            return Poll::Ready(());
        }
        // After the wire, which may have brought the pong.
        rung |= self.turn.take(PULSE);
        if rung & PULSE != 0 && self.pulse.poll(&mut Context::from_waker(&self.pulse_bell)).is_ready() {
            debug!("a client does not answer, its connection is ended");
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Reads what came and writes what was said. Ready: the connection has ended.
    fn poll_wire(&mut self) -> Poll<()> {
        let cx = &mut Context::from_waker(&self.wire_bell);
        for _ in 0..BEGIN {
            match ready!(self.wire.poll(cx)) {
                Moved::Met(pings) => {
                    self.pulse.met(pings);
                    self.turn.ring(PULSE);
                }
                Moved::Asked(request, reply) => {
                    let answering = (self.service)(request.map(RequestBody::new));
                    self.calls.begin(Box::pin(exchange::exchange(answering, reply)));
                }
                Moved::Ended => return Poll::Ready(()),
            }
        }
        self.turn.ring(WIRE);
        Poll::Pending
    }
}

impl<C, S, F> Future for Connection<C, S>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: Fn(Request<RequestBody>) -> F + Unpin,
    F: Future<Output = Response<Body>> + Send + 'static,
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

#[cfg(test)]
mod tests;
