//! A response's body that knows when the call is over: then the call is no longer in flight, and its policy is told how it
//! went.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tonic::Status;

use super::{
    connection::InFlight,
    error::{self, ChannelError},
    outcome,
};
use crate::balance::Outcome;

/// A response's body. The call counts as in flight until its trailers, its error, or its drop; its deadline holds until
/// then too.
#[derive(Debug)]
pub struct ResponseBody {
    /// `None` once it is over.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    body: Incoming,
    call: InFlight,
    deadline: Option<Deadline>,
}

#[derive(Debug)]
struct Deadline {
    timeout: Duration,
    sleep: Pin<Box<tokio::time::Sleep>>,
}

impl ResponseBody {
    /// `deadline`: the whole time that the call was given, and what is left of it.
    pub(super) fn new(
        headers: &HeaderMap,
        body: Incoming,
        mut call: InFlight,
        deadline: Option<(Duration, Duration)>,
    ) -> Self {
        if body.is_end_stream() {
            call.finish(outcome::of(headers));
            return Self { open: None };
        }
        call.answered();
        let deadline =
            deadline.map(|(timeout, left)| Deadline { timeout, sleep: Box::pin(tokio::time::sleep(left)) });
        Self { open: Some(Open { body, call, deadline }) }
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
        let polled = match Pin::new(&mut open.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                frame.map(|frame| frame.map_err(|error| error::in_flight(open.call.address(), error)))
            }
            Poll::Pending => {
                let Some(deadline) = &mut open.deadline else { return Poll::Pending };
                ready!(deadline.sleep.as_mut().poll(cx));
                Some(Err(ChannelError::DeadlineExceeded {
                    timeout: deadline.timeout,
                    reason: format!("{} had not finished its answer", open.call.address()),
                }))
            }
        };
        let ended = match &polled {
            Some(Ok(frame)) => frame.trailers_ref().map(outcome::of),
            // Broken, too late, or at an end without trailers.
            Some(Err(_)) | None => Some(Outcome::Failure),
        };
        if let Some(outcome) = ended
            && let Some(open) = self.open.take()
        {
            match &polled {
                Some(Err(error)) => open.call.failed(error),
                _ => open.call.finish(outcome),
            }
        }
        Poll::Ready(polled.map(|frame| frame.map_err(Status::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.open.as_ref().is_none_or(|open| open.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.open.as_ref().map_or_else(|| SizeHint::with_exact(0), |open| open.body.size_hint())
    }
}
