//! Calls with one request and one answer: the request's bytes are read as they came, and the answer goes out in one piece.
//!
//! ```text
//!   body ──► read: five bytes, one message ──► (its handler) ──► Answer: five bytes, one message ──► trailers
//! ```
//!
//! tonic's own way is made for streams: each call has a decoder and an encoder with buffers of their own, and several boxes
//! around both. This one has none of it, and says what tonic says: a request that is no message is `INTERNAL`, one that is too
//! long `OUT_OF_RANGE`. It is stricter in three things: a second message is refused and not ignored, a request that breaks off before its end is
//! not done, and one has to be there in some time. What says that it is compressed does not come here.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, Response,
    header::{CONTENT_TYPE, HeaderValue},
};
use http_body::{Body as HttpBody, Frame as HttpFrame};
use prost::Message;
use registry_proto::Frame;
use tokio::time::timeout;
use tonic::{Status, body::Body, metadata::GRPC_CONTENT_TYPE};

use super::head::{HEAD, length};

/// A frame that is shorter than this is copied into one piece: that takes less than several frames of HTTP/2.
const LONG: usize = 4 << 10;
/// A request is there after this at the latest, or it is refused: what has come of it is kept meanwhile.
pub(super) const ARRIVES_WITHIN: Duration = Duration::from_secs(30);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The one message of a request's body, of at most so many bytes. Keeps no more than what that message says of its length, and what
/// came with its end.
pub(super) async fn read<M, B>(body: B, most: usize) -> Result<M, Status>
where
    M: Message + Default,
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let mut arriving = pin!(arrive(body, most));
    // Nearly all are there at once, and need no timer.
    if let Poll::Ready(arrived) = poll_fn(|cx| Poll::Ready(arriving.as_mut().poll(cx))).await {
        return arrived;
    }
    timeout(ARRIVES_WITHIN, arriving).await.unwrap_or_else(|_| {
        Err(Status::deadline_exceeded(format!(
            "the request was not all there after {ARRIVES_WITHIN:?}; nothing was done"
        )))
    })
}

async fn arrive<M, B>(mut body: B, most: usize) -> Result<M, Status>
where
    M: Message + Default,
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let mut received = Received::default();
    while !body.is_end_stream() {
        let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await else {
            if body.is_end_stream() {
                break;
            }
            // A stream that was reset for no error says no more than this.
            return Err(Status::cancelled("the request broke off; nothing was done"));
        };
        let frame = frame.map_err(|error| Status::from_error(error.into()))?;
        // Trailers of a request mean nothing here.
        if let Ok(data) = frame.into_data() {
            received.push(data);
            only(received.bytes(), most)?;
        }
    }
    let bytes = received.bytes();
    match only(bytes, most)? {
        Some(length) if bytes.len() - HEAD == length => {
            M::decode(&bytes[HEAD..]).map_err(|error| Status::internal(error.to_string()))
        }
        None if bytes.is_empty() => Err(Status::internal("the request has no message")),
        _ => Err(Status::internal("the request ends within its message")),
    }
}

/// What came of a body. Commonly that is one piece, which is not copied.
#[derive(Default)]
struct Received {
    first: Bytes,
    /// All of it, if it is more than one piece.
    all: BytesMut,
}

impl Received {
    fn push(&mut self, data: Bytes) {
        if self.bytes().is_empty() {
            self.first = data;
            return;
        }
        if self.all.is_empty() {
            self.all.extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.all.extend_from_slice(&data);
    }

    fn bytes(&self) -> &[u8] {
        if self.all.is_empty() { &self.first } else { &self.all }
    }
}

/// The message's length, once its head is there. Nothing may follow it.
fn only(bytes: &[u8], most: usize) -> Result<Option<usize>, Status> {
    let length = length(bytes, most)?;
    if length.is_some_and(|length| bytes.len() > HEAD + length) {
        return Err(Status::internal("the request has more than one message; this method takes one"));
    }
    Ok(length)
}

/// The body of an answer that is one message.
#[derive(Debug)]
pub(super) struct Answer {
    first: Bytes,
    more: std::vec::IntoIter<Bytes>,
    /// Whether the trailers are still to be sent.
    open: bool,
}

impl Answer {
    /// A message that is nobody else's.
    pub(super) fn message<M: Message>(message: &M) -> Self {
        let length = message.encoded_len();
        // Into a slice, where prost's many small writes are cheapest.
        let mut piece = vec![0; HEAD + length];
        piece[..HEAD].copy_from_slice(&head(length));
        let encoded = message.encode(&mut &mut piece[HEAD..]);
        debug_assert!(encoded.is_ok(), "there is room for all that it says to have");
        Self::new(piece.into(), Vec::new())
    }

    /// A message whose bytes are shared: what is long goes out as it is.
    pub(super) fn frame(frame: &Frame) -> Self {
        let length = frame.len();
        let long = length >= LONG;
        let mut first = Vec::with_capacity(HEAD + if long { frame.prefix.len() } else { length });
        first.extend_from_slice(&head(length));
        first.extend_from_slice(&frame.prefix);
        let rest = std::iter::once(&frame.shared).chain(&frame.more).chain([&frame.suffix]);
        if long {
            let apart = rest.filter(|piece| !piece.is_empty()).cloned().collect();
            return Self::new(first.into(), apart);
        }
        rest.for_each(|piece| first.extend_from_slice(piece));
        Self::new(first.into(), Vec::new())
    }

    fn new(first: Bytes, more: Vec<Bytes>) -> Self {
        Self { first, more: more.into_iter(), open: true }
    }

    /// As the answer to a call that went well.
    pub(super) fn into_http(self) -> Response<Body> {
        let mut response = Response::new(Body::new(self));
        response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
        response
    }
}

/// The head of a message of so many bytes.
fn head(length: usize) -> [u8; HEAD] {
    // No answer comes near: they are bounded by what requests and snapshots' parts are.
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [0, a, b, c, d]
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<HttpFrame<Bytes>, Status>>> {
        let first = Some(std::mem::take(&mut self.first)).filter(|first| !first.is_empty());
        if let Some(piece) = first.or_else(|| self.more.next()) {
            return Poll::Ready(Some(Ok(HttpFrame::data(piece))));
        }
        if !std::mem::take(&mut self.open) {
            return Poll::Ready(None);
        }
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Poll::Ready(Some(Ok(HttpFrame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        !self.open
    }
}

#[cfg(test)]
mod tests;
