//! Moves a request's body into its stream, as the peer's flow control allows.
//!
//! ```text
//!   the call polls it once --- all of it was there (as in a unary call) ---> done; no task, nothing to wait for
//!            |
//!            +--- more is to come ---> a task, which gives the body back when the stream has ended
//! ```
//!
//! Takes no more from the caller than what the stream takes and one frame. A body that fails resets the stream. The task ends
//! with the call: dropping it resets a stream that is still open.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use tokio::sync::oneshot;

use super::request_body::{Piece, RequestBody};
use crate::runtime::{Runtime, Task};

/// A body on its way.
pub(super) struct Pump {
    body: RequestBody,
    stream: SendStream<Bytes>,
    /// What the peer has no room for yet.
    waiting: Option<Bytes>,
}

/// A pump that works by itself.
pub(super) struct Pumping {
    task: Task,
    stop: oneshot::Sender<()>,
    back: oneshot::Receiver<RequestBody>,
}

impl Pump {
    pub(super) fn new(body: RequestBody, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, waiting: None }
    }

    /// Sends what can be sent by now. Ready: there is no more to be sent, or nobody takes it.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let sent = ready!(self.poll_send(cx));
        if sent.is_err() {
            // Nothing comes of it if the stream is over already.
            self.stream.send_reset(Reason::CANCEL);
        }
        Poll::Ready(())
    }

    /// The body, of which no more is sent.
    pub(super) fn into_body(self) -> RequestBody {
        self.body
    }

    /// Goes on by itself.
    pub(super) fn go_on(mut self, runtime: &Runtime) -> Pumping {
        let (give, back) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let task = runtime.spawn(async move {
            let sent = poll_fn(|cx| {
                if give.is_closed() {
                    self.body.commit();
                }
                self.poll(cx)
            });
            tokio::select! {
                biased;
                () = sent => {}
                Ok(()) = stopped => self.stream.send_reset(Reason::CANCEL),
            }
            let _ = give.send(self.into_body()); // nobody wants it once an answer began
        });
        Pumping { task, stop, back }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Option<h2::Error>>> {
        loop {
            if self.waiting.is_some() {
                while self.stream.capacity() == 0 {
                    match ready!(self.stream.poll_capacity(cx)) {
                        Some(capacity) => capacity?,
                        None => return Poll::Ready(Err(None)),
                    };
                }
                self.stream.send_data(self.waiting.take().unwrap_or_default(), false)?;
            }
            let Poll::Ready(piece) = self.body.poll_piece(cx) else {
                // Whoever waits for its caller hears of a reset.
                let reset = ready!(self.stream.poll_reset(cx));
                return Poll::Ready(Err(reset.err()));
            };
            match piece {
                // It is all in memory already, and h2 sends it as there is room.
                Piece::Data { data, last: true } => {
                    return Poll::Ready(Ok(self.stream.send_data(data, true)?));
                }
                Piece::Data { data, last: false } if data.is_empty() => self.stream.send_data(data, false)?,
                Piece::Data { data, last: false } => {
                    // Not for all of it: what one stream has reserved others have to wait for.
                    self.stream.reserve_capacity(1);
                    self.waiting = Some(data);
                }
                Piece::Trailers(trailers) => return Poll::Ready(Ok(self.stream.send_trailers(trailers)?)),
                Piece::End => return Poll::Ready(Ok(self.stream.send_data(Bytes::new(), true)?)),
                Piece::Failed => return Poll::Ready(Err(None)),
            }
        }
    }
}

impl Pumping {
    /// The body, once its stream has ended.
    pub(super) async fn back(self) -> Option<RequestBody> {
        let Self { task, stop: _stop, back } = self;
        let body = back.await.ok();
        drop(task);
        body
    }

    /// The body, of which nobody wants any more: its answer is there, and may be asked for elsewhere.
    pub(super) async fn stop(self) -> Option<RequestBody> {
        let Self { task, stop, back } = self;
        let _ = stop.send(()); // it may have come to its end
        let body = back.await.ok();
        drop(task);
        body
    }

    /// An answer has begun: the body is never wanted back. The pump works until the task is dropped.
    pub(super) fn commit(self) -> Task {
        self.task
    }
}
