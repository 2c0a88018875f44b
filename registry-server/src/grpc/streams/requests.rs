//! The messages of a request that is a stream, read as they came.
//!
//! tonic's own way copies all that comes into a buffer that it keeps for as long as the stream lives. Commonly a message is one piece,
//! and is read where it lies; only of one that comes in several pieces these are put together, and nothing is kept of it. What says
//! that it is compressed does not come here.

use std::{
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use http_body::Body as HttpBody;
use prost::Message;
use tokio_stream::Stream;
use tonic::Status;

use crate::grpc::head::{HEAD, length};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The messages of a body, each of so many bytes at most. After an error there is nothing more.
pub(in crate::grpc) struct Requests<B, M> {
    /// `None`: it has ended.
    body: Option<B>,
    /// What came last, and was not read yet.
    piece: Bytes,
    /// The beginning of a message of which `piece` is more, if it came in several.
    begun: BytesMut,
    most: usize,
    message: PhantomData<fn() -> M>,
}

impl<B, M: Message + Default> Requests<B, M> {
    pub(in crate::grpc) fn new(body: B, most: usize) -> Self {
        Self { body: Some(body), piece: Bytes::new(), begun: BytesMut::new(), most, message: PhantomData }
    }

    /// The first message of what came, if all of it did.
    fn take(&mut self) -> Result<Option<M>, Status> {
        if self.begun.is_empty() {
            let Some(length) = length(&self.piece, self.most)? else { return Ok(None) };
            if self.piece.len() - HEAD < length {
                return Ok(None);
            }
            let message = decode(&self.piece[HEAD..HEAD + length])?;
            self.piece.advance(HEAD + length);
            return Ok(Some(message));
        }
        // Of a message that is in pieces no more than what belongs to it.
        let head = self.piece.split_to(HEAD.saturating_sub(self.begun.len()).min(self.piece.len()));
        self.begun.extend_from_slice(&head);
        let Some(length) = length(&self.begun, self.most)? else { return Ok(None) };
        let rest = self.piece.split_to((HEAD + length - self.begun.len()).min(self.piece.len()));
        self.begun.extend_from_slice(&rest);
        if self.begun.len() < HEAD + length {
            return Ok(None);
        }
        let whole = std::mem::take(&mut self.begun);
        decode(&whole[HEAD..]).map(Some)
    }

    /// More came. What is left of what came before is the beginning of a message.
    fn push(&mut self, piece: Bytes) {
        let left = std::mem::replace(&mut self.piece, piece);
        self.begun.extend_from_slice(&left);
    }

    /// Nothing more comes.
    fn end(&mut self) -> Option<Status> {
        let within = !self.piece.is_empty() || !self.begun.is_empty();
        (self.body, self.piece, self.begun) = (None, Bytes::new(), BytesMut::new());
        within.then(|| Status::internal("the stream of requests ends within a message"))
    }
}

impl<B, M> Stream for Requests<B, M>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    M: Message + Default,
{
    type Item = Result<M, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            let Some(body) = &mut this.body else { return Poll::Ready(None) };
            // Pinned anew for each frame, so that it can be let go of.
            let refused = if this.piece.is_empty() {
                match ready!(Pin::new(body).poll_frame(cx)) {
                    None => return Poll::Ready(this.end().map(Err)),
                    Some(Err(error)) => Status::from_error(error.into()),
                    Some(Ok(frame)) => {
                        // Trailers of a request mean nothing here.
                        if let Ok(piece) = frame.into_data() {
                            this.push(piece);
                        }
                        continue;
                    }
                }
            } else {
                match this.take() {
                    Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                    Ok(None) => {
                        // What is left belongs to what comes next.
                        this.push(Bytes::new());
                        continue;
                    }
                    Err(refused) => refused,
                }
            };
            this.end();
            return Poll::Ready(Some(Err(refused)));
        }
    }
}

fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, Status> {
    M::decode(bytes).map_err(|error| Status::internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use http_body::Frame;
    use registry_proto::v1::KeepAliveRequest;
    use tokio_stream::StreamExt;

    use super::*;

    /// A body of these pieces, and how it ends.
    struct Pieces(VecDeque<Bytes>, Option<Status>);

    impl HttpBody for Pieces {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            let piece = self.0.pop_front().map(|piece| Ok(Frame::data(piece)));
            Poll::Ready(piece.or_else(|| self.1.take().map(Err)))
        }
    }

    fn request(id: u64, leases: usize) -> KeepAliveRequest {
        KeepAliveRequest { request_id: id, lease_ids: vec![vec![7; 16]; leases] }
    }

    fn framed(requests: &[KeepAliveRequest]) -> Vec<u8> {
        let frame = |request: &KeepAliveRequest| {
            let bytes = request.encode_to_vec();
            let length = u32::try_from(bytes.len()).expect("short").to_be_bytes();
            [&[0][..], &length, &bytes].concat()
        };
        requests.iter().flat_map(frame).collect()
    }

    async fn read(pieces: Vec<Bytes>, end: Option<Status>) -> Vec<Result<KeepAliveRequest, tonic::Code>> {
        let requests = Requests::new(Pieces(pieces.into(), end), 1_000);
        requests.map(|read| read.map_err(|status| status.code())).collect().await
    }

    #[tokio::test]
    async fn messages_are_the_same_however_they_are_cut() {
        let requests = [request(1, 1), request(2, 0), request(0, 0), request(3, 40), request(4, 2)];
        let bytes = framed(&requests);
        let expected: Vec<_> = requests.iter().cloned().map(Ok).collect();
        for size in 1..=bytes.len() {
            let pieces = bytes.chunks(size).map(Bytes::copy_from_slice).collect();
            assert_eq!(read(pieces, None).await, expected, "pieces of {size} bytes");
        }
        let seeds = 0..200;
        for seed in seeds {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut left, mut pieces) = (&bytes[..], Vec::new());
            while !left.is_empty() {
                let (piece, rest) = left.split_at(random.usize(0..=left.len().min(90)));
                pieces.push(Bytes::copy_from_slice(piece));
                left = rest;
            }
            assert_eq!(read(pieces, None).await, expected, "seed {seed}");
        }
    }

    #[tokio::test]
    async fn nothing_is_kept_between_messages() {
        let bytes = framed(&[request(1, 40), request(2, 40)]);
        let pieces: Vec<_> = bytes.chunks(100).map(Bytes::copy_from_slice).collect();
        let mut requests = Requests::<_, KeepAliveRequest>::new(Pieces(pieces.into(), None), 1_000);
        for _ in 0..2 {
            requests.next().await.expect("a message").expect("read");
            assert_eq!(requests.begun.capacity(), 0);
        }
        assert!(requests.next().await.is_none());
    }

    #[tokio::test]
    async fn what_is_wrong_is_refused_and_ends_it() {
        use tonic::Code;
        let good = framed(&[request(1, 1)]);
        let after = |bad: &[u8]| vec![Bytes::from([&good[..], bad].concat())];
        let refused = |code| vec![Ok(request(1, 1)), Err(code)];
        assert_eq!(read(after(b"\0\0\0\0"), None).await, refused(Code::Internal), "it ends within a head");
        assert_eq!(read(after(&good[..9]), None).await, refused(Code::Internal), "or within a message");
        assert_eq!(read(after(b"\x01\0\0\0\x01x"), None).await, refused(Code::Internal));
        assert_eq!(read(after(b"\x02\0\0\0\x01x"), None).await, refused(Code::Internal));
        assert_eq!(read(after(b"\0\0\0\0\x01\xff"), None).await, refused(Code::Internal), "no message");
        assert_eq!(read(after(b"\0\0\0\x03\xe9"), None).await, refused(Code::OutOfRange), "before it comes");
        let broken = Some(Status::cancelled("reset"));
        assert_eq!(read(after(b""), broken).await, refused(Code::Cancelled));
    }
}
