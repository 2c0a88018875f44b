//! Moves a request's body into its stream, as the peer's flow control allows.
//!
//! ```text
//!   the call polls it once --- all of it was there (as in a unary call) ---> done; no task, nothing to wait for
//!            |
//!            +--- more is to come ---> a task --- the stream has ended -------+---> the body is the call's again
//!                                       |  |                                  |
//!                                       |  +--- another attempt is to be made-+
//!                                       +--- an answer begins: it works on, and nobody asks for the body again
//! ```
//!
//! Takes no more from the caller than what the stream takes and one frame. A body that fails resets the stream, and so does one
//! that is taken away. The task ends with the call: dropping it resets a stream that is still open.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex},
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
    pumped: Pumped,
    ended: oneshot::Receiver<()>,
}

/// What a pump that works by itself works at. Empty once it was taken away; poisoned if the caller's own stream panicked, after
/// which nobody touches that any more.
#[derive(Clone)]
pub(super) struct Pumped(Arc<Mutex<Option<Pump>>>);

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
    pub(super) fn go_on(self, runtime: &Runtime) -> Pumping {
        let pumped = Pumped(Arc::new(Mutex::new(Some(self))));
        let (end, ended) = oneshot::channel();
        let works_at = pumped.clone();
        let task = runtime.spawn(async move {
            poll_fn(|cx| works_at.poll(cx)).await;
            let _ = end.send(()); // nobody waits for it once an answer began
        });
        Pumping { task, pumped, ended }
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
    /// Where the body is.
    pub(super) fn pumped(&self) -> Pumped {
        self.pumped.clone()
    }

    /// The body, once its stream has ended.
    pub(super) async fn back(self) -> Option<RequestBody> {
        let Self { task, pumped, ended } = self;
        let _ = ended.await; // without a word if the caller's own stream panicked
        drop(task);
        pumped.0.lock().ok()?.take().map(Pump::into_body)
    }

    /// The body, right now, and its stream is reset: its answer is there, and may be asked for elsewhere.
    pub(super) fn stop(self) -> Option<RequestBody> {
        self.pumped.take_if(|_| true)
    }

    /// An answer has begun: the body is never wanted back. The pump works until the task is dropped.
    pub(super) fn commit(self) -> Task {
        if let Ok(mut pump) = self.pumped.0.lock()
            && let Some(pump) = &mut *pump
        {
            pump.body.commit();
        }
        self.task
    }
}

impl Pumped {
    /// Whether the body could be sent again.
    pub(super) fn is_whole(&self) -> bool {
        self.0.lock().is_ok_and(|pump| pump.as_ref().is_some_and(|pump| pump.body.is_whole()))
    }

    /// The body, if it can be sent again: then its stream is reset. Else the pump works on.
    pub(super) fn take_whole(&self) -> Option<RequestBody> {
        self.take_if(RequestBody::is_whole)
    }

    fn take_if(&self, wanted: impl Fn(&RequestBody) -> bool) -> Option<RequestBody> {
        let mut pump = self.0.lock().ok()?.take_if(|pump| wanted(&pump.body))?;
        // Nothing comes of it if the stream is over already.
        pump.stream.send_reset(Reason::CANCEL);
        Some(pump.into_body())
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.0.lock().as_deref_mut() {
            Ok(Some(pump)) => pump.poll(cx),
            // It was taken away.
            Ok(None) | Err(_) => Poll::Ready(()),
        }
    }
}
