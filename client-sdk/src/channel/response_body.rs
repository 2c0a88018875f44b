//! A response's body that knows when the call is over: then the call is no longer in flight, and its policy is told how it
//! went.

use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use super::{
    connection::InFlight,
    error::{self, ChannelError},
    outcome,
};
use crate::{balance::Outcome, runtime::Task};

/// A response's body. The call counts as in flight until its trailers, its error, or its drop; its deadline holds until
/// then too.
#[derive(Debug)]
pub struct ResponseBody {
    /// `None` once it is over.
    open: Option<Open>,
}

/// What it consists of ends in this order: whoever is told that there is room for another call finds it.
#[derive(Debug)]
struct Open {
    stream: RecvStream,
    /// Whether nothing but trailers is to come.
    data_done: bool,
    /// Still sends the request. It ends with the answer: nobody reads it then.
    _pump: Option<Task>,
    call: InFlight,
    deadline: Option<Deadline>,
}

#[derive(Debug)]
struct Deadline {
    timeout: Duration,
    sleep: Pin<Box<tokio::time::Sleep>>,
}

/// A frame, the end, or what it broke with.
type Polled = Option<Result<Frame<Bytes>, h2::Error>>;

impl Deadline {
    /// Looks at the clock alone: an answer that is all there, as most are, costs no timer.
    fn has_passed(&self) -> bool {
        !self.sleep.deadline().elapsed().is_zero()
    }
}

impl ResponseBody {
    /// `deadline`: the whole time that the call was given, and what is left of it.
    pub(super) fn new(
        headers: &HeaderMap,
        stream: RecvStream,
        pump: Option<Task>,
        mut call: InFlight,
        deadline: Option<(Duration, Duration)>,
    ) -> Self {
        if stream.is_end_stream() {
            call.hear(headers);
            drop((stream, pump));
            call.finish(outcome::of(headers));
            return Self { open: None };
        }
        call.answered();
        let deadline =
            deadline.map(|(timeout, left)| Deadline { timeout, sleep: Box::pin(tokio::time::sleep(left)) });
        Self { open: Some(Open { stream, data_done: false, _pump: pump, call, deadline }) }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(open) = &mut self.open else { return Poll::Ready(None) };
        let polled = match open.poll_in_time(cx) {
            Poll::Ready(Ok(frame)) => {
                frame.map(|frame| frame.map_err(|error| error::in_flight(&open.call, error)))
            }
            Poll::Ready(Err(timeout)) => Some(Err(ChannelError::DeadlineExceeded {
                timeout,
                reason: format!("{} had not finished its answer", open.call.address()),
            })),
            Poll::Pending => return Poll::Pending,
        };
        let ended = match &polled {
            Some(Ok(frame)) => frame.trailers_ref().map(outcome::of),
            // Broken, too late, or at an end without trailers.
            Some(Err(_)) | None => Some(Outcome::Failure),
        };
        if let Some(Ok(frame)) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            open.call.hear(trailers);
        }
        if let Some(outcome) = ended
            && let Some(open) = self.open.take()
        {
            open.end(|call| match &polled {
                Some(Err(error)) => call.failed(error),
                _ => call.finish(outcome),
            });
        }
        Poll::Ready(polled.map(|frame| frame.map_err(Status::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.open.as_ref().is_none_or(|open| open.stream.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        if self.open.is_some() { SizeHint::default() } else { SizeHint::with_exact(0) }
    }
}

impl Open {
    /// The next frame. `Err`: the deadline has passed, whose whole time this was.
    fn poll_in_time(&mut self, cx: &mut Context<'_>) -> Poll<Result<Polled, Duration>> {
        // Also for whoever reads slowly, and always has something to read.
        if let Some(deadline) = self.deadline.as_ref().filter(|deadline| deadline.has_passed()) {
            return Poll::Ready(Err(deadline.timeout));
        }
        if let Poll::Ready(frame) = self.poll_frame(cx) {
            return Poll::Ready(Ok(frame));
        }
        let Some(deadline) = &mut self.deadline else { return Poll::Pending };
        ready!(deadline.sleep.as_mut().poll(cx));
        Poll::Ready(Err(deadline.timeout))
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Polled> {
        if !self.data_done {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // It is the caller's now. Only a stream that is over has nothing to release.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_done = true,
            }
        }
        let trailers = ready!(pin!(self.stream.trailers()).poll(cx));
        Poll::Ready(trailers.transpose().map(|trailers| trailers.map(Frame::trailers)))
    }

    fn end(self, tell: impl FnOnce(InFlight)) {
        let Self { stream, _pump: pump, call, .. } = self;
        drop((stream, pump));
        tell(call);
    }
}
