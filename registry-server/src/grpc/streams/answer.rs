//! The body of an answer that is a stream of [`Frame`]s: each as the message that it is, with its five bytes before it.
//!
//! tonic's own body encodes into a buffer that it keeps for as long as the stream lives, as large as its largest message was: a
//! watcher that was once told much would cost that much from then on. This one keeps nothing (W10). What is short is copied
//! into one piece; what is long goes out as the bytes that all watchers share.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Response, header::CONTENT_TYPE};
use http_body::{Body as HttpBody, Frame as HttpFrame};
use registry_proto::Frame;
use tokio_stream::Stream;
use tonic::{Status, body::Body, metadata::GRPC_CONTENT_TYPE};

use crate::grpc::head::HEAD;

/// Shared bytes that are fewer than this are copied: that takes less than a frame of HTTP/2 of their own.
const LONG: usize = 4 << 10;
/// Short messages that are ready at once go out together, up to about as many bytes.
const TOGETHER: usize = 8 << 10;

/// An answer that streams these.
pub(in crate::grpc) fn answer<S>(frames: S) -> Response<Body>
where
    S: Stream<Item = Result<Frame, Status>> + Send + Unpin + 'static,
{
    let mut response =
        Response::new(Body::new(Messages { frames: Some(frames), shared: Bytes::new(), ended: None }));
    response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}

struct Messages<S> {
    /// `None`: it has ended.
    frames: Option<S>,
    /// What belongs to the message whose beginning was sent last.
    shared: Bytes,
    /// How it ended, until that is sent.
    ended: Option<Status>,
}

impl<S> Messages<S>
where
    S: Stream<Item = Result<Frame, Status>> + Unpin,
{
    /// What is ready, in one piece. `None`: nothing will be any more.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut piece = BytesMut::new();
        while let Some(frames) = &mut self.frames {
            match Pin::new(frames).poll_next(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if self.put(frame, &mut piece) || piece.len() >= TOGETHER {
                        break;
                    }
                }
                Poll::Ready(ended) => {
                    self.ended = Some(ended.and_then(Result::err).unwrap_or_else(|| Status::ok("")));
                    self.frames = None;
                }
                Poll::Pending if piece.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Some(piece.freeze()).filter(|piece| !piece.is_empty()))
    }

    /// Whether the frame's shared bytes are to follow by themselves.
    fn put(&mut self, frame: Frame, piece: &mut BytesMut) -> bool {
        let apart = frame.shared.len() >= LONG && frame.more.is_empty() && frame.suffix.is_empty();
        let length = frame.len();
        piece.reserve(HEAD + if apart { frame.prefix.len() } else { length });
        piece.put_u8(0);
        // A message is under 1 MiB.
        piece.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        piece.put_slice(&frame.prefix);
        if apart {
            self.shared = frame.shared;
        } else {
            piece.put_slice(&frame.shared);
            frame.more.iter().for_each(|more| piece.put_slice(more));
            piece.put_slice(&frame.suffix);
        }
        apart
    }
}

impl<S> HttpBody for Messages<S>
where
    S: Stream<Item = Result<Frame, Status>> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<HttpFrame<Bytes>, Status>>> {
        let this = &mut *self;
        if !this.shared.is_empty() {
            return Poll::Ready(Some(Ok(HttpFrame::data(std::mem::take(&mut this.shared)))));
        }
        if this.frames.is_some() {
            match this.poll_piece(cx) {
                Poll::Ready(Some(piece)) => return Poll::Ready(Some(Ok(HttpFrame::data(piece)))),
                Poll::Ready(None) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
        let Some(status) = this.ended.take() else { return Poll::Ready(None) };
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| HttpFrame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_none() && self.ended.is_none() && self.shared.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(prefix: usize, shared: usize) -> Frame {
        Frame {
            prefix: vec![b'p'; prefix].into(),
            shared: Bytes::from(vec![b's'; shared]),
            ..Frame::default()
        }
    }

    fn next<S>(messages: &mut Messages<S>) -> Option<HttpFrame<Bytes>>
    where
        S: Stream<Item = Result<Frame, Status>> + Unpin,
    {
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        match Pin::new(messages).poll_frame(cx) {
            Poll::Ready(frame) => frame.transpose().expect("it never fails"),
            Poll::Pending => panic!("these streams never wait"),
        }
    }

    fn messages(
        frames: Vec<Result<Frame, Status>>,
    ) -> Messages<impl Stream<Item = Result<Frame, Status>> + Unpin> {
        Messages { frames: Some(tokio_stream::iter(frames)), shared: Bytes::new(), ended: None }
    }

    #[test]
    fn short_messages_go_together_and_long_ones_as_the_very_bytes_that_are_shared() {
        let long = frame(3, LONG);
        let shared = long.shared.as_ptr();
        let mut messages = messages(vec![Ok(frame(2, 4)), Ok(frame(0, 1)), Ok(long), Ok(frame(1, 1))]);
        let together = next(&mut messages).and_then(|frame| frame.into_data().ok()).expect("data");
        assert_eq!(&together[..], b"\0\0\0\0\x06ppssss\0\0\0\0\x01s\0\0\0\x10\x03ppp");
        let apart = next(&mut messages).and_then(|frame| frame.into_data().ok()).expect("data");
        assert_eq!((apart.as_ptr(), apart.len()), (shared, LONG), "nobody copied it");
        let last = next(&mut messages).and_then(|frame| frame.into_data().ok()).expect("data");
        assert_eq!(&last[..], b"\0\0\0\0\x02ps");
        assert!(!messages.is_end_stream());
        let trailers = next(&mut messages).and_then(|frame| frame.into_trailers().ok()).expect("trailers");
        assert_eq!(trailers["grpc-status"], "0");
        assert!(messages.is_end_stream() && next(&mut messages).is_none());
    }

    #[test]
    fn what_was_said_before_an_error_is_said_and_then_the_error() {
        let mut messages = messages(vec![Ok(frame(0, 1)), Err(Status::unavailable("gone"))]);
        assert_eq!(
            &next(&mut messages).and_then(|it| it.into_data().ok()).expect("data")[..],
            b"\0\0\0\0\x01s"
        );
        let trailers = next(&mut messages).and_then(|frame| frame.into_trailers().ok()).expect("trailers");
        assert_eq!(
            (&trailers["grpc-status"], &trailers["grpc-message"]),
            (&"14".parse().expect("a value"), &"gone".parse().expect("a value"))
        );
        assert!(next(&mut messages).is_none());
    }

    /// However large a message was, the body keeps nothing of it once it is handed on.
    #[test]
    fn w10_a_stream_keeps_nothing_of_what_it_said() {
        let large = frame(2, 100_000);
        let watch = large.shared.clone();
        let mut messages = messages(vec![Ok(large), Ok(frame(2, 4))]);
        drop((next(&mut messages), next(&mut messages)));
        assert!(watch.is_unique(), "only this test has it");
    }
}
