//! The body of a request, as it comes.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http_body::{Body, Frame};

/// The body of a request. What was read of it makes room for more on the wire.
#[derive(Debug)]
pub(in crate::server) struct RequestBody {
    stream: RecvStream,
    /// Its data are over: what may still come are trailers.
    told: bool,
}

impl RequestBody {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self { stream, told: false }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.told {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // It fails for more than has come only.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(failed(error)),
                None => self.told = true,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Err(error) => Poll::Ready(failed(error)),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}

/// A stream that is reset for no error wants nothing any more: its request ends before its end, without one.
fn failed<T>(error: h2::Error) -> Option<Result<T, h2::Error>> {
    Some(error).filter(|error| error.reason() != Some(Reason::NO_ERROR)).map(Err)
}
