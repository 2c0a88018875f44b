//! HTTP/2 over a connection's bytes: the greeting, then the calls that come, until there are none any more.
//!
//! ```text
//!   Greeting ──► Open ──► (asked to close: no more calls are taken) ──► ended
//! ```
//!
//! Owns the limits of HTTP/2 that a client may not go beyond. What calls say goes out whenever this is polled.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{
    PingPong, RecvStream,
    server::{Builder, Connection as Http2, Handshake, SendResponse},
};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tracing::debug;

use crate::server::MAX_STREAMS_PER_CONNECTION;

/// Bytes that a client may send on one stream, and on all of a connection, before they are read.
const WINDOW: u32 = 1 << 20;
/// Bytes of one answer that wait in the connection; then its call waits.
const MAX_WAITING: usize = 400 << 10;
/// Bytes of a call's headers.
const MAX_HEADERS: u32 = 16 << 10;

/// A connection's wire.
pub(super) struct Wire<C> {
    state: State<C>,
    /// It was asked to close before the greeting was over.
    close: bool,
}

enum State<C> {
    Greeting(Handshake<Bytewise<C>, Bytes>),
    Open(Http2<Bytewise<C>, Bytes>),
}

/// What a wire has come to.
#[allow(clippy::large_enum_variant)] // each is taken apart where it is made
pub(super) enum Moved {
    /// The greeting is over. Pings go by this.
    Met(Option<PingPong>),
    /// A call.
    Asked(Request<RecvStream>, SendResponse<Bytes>),
    /// Nothing more comes, and nothing can be said.
    Ended,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Wire<C> {
    pub(super) fn new(io: C, heard: Heard) -> Self {
        let greeting = Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_send_buffer_size(MAX_WAITING)
            .max_header_list_size(MAX_HEADERS)
            .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
            .handshake(Bytewise { io, heard });
        Self { state: State::Greeting(greeting), close: false }
    }

    /// Takes no more calls, and ends when those that are there have.
    pub(super) fn close(&mut self) {
        match &mut self.state {
            State::Greeting(_) => self.close = true,
            State::Open(http2) => http2.graceful_shutdown(),
        }
    }

    /// To be polled until it is pending, but for its end.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Moved> {
        match &mut self.state {
            State::Greeting(greeting) => match ready!(Pin::new(greeting).poll(cx)) {
                Ok(mut http2) => {
                    let pings = http2.ping_pong();
                    if self.close {
                        http2.graceful_shutdown();
                    }
                    self.state = State::Open(http2);
                    Poll::Ready(Moved::Met(pings))
                }
                Err(error) => Poll::Ready(ended(&error)),
            },
            State::Open(http2) => Poll::Ready(match ready!(http2.poll_accept(cx)) {
                Some(Ok((request, reply))) => Moved::Asked(request, reply),
                Some(Err(error)) => ended(&error),
                None => Moved::Ended,
            }),
        }
    }
}

fn ended(error: &h2::Error) -> Moved {
    debug!("a connection failed: {error}");
    Moved::Ended
}

/// Whether anything came over a wire of late. Clones are of the same wire.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<AtomicBool>);

impl Heard {
    /// Whether anything came since it was asked last.
    pub(super) fn since(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }

    fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A connection's bytes. Notes that some came, and writes what is one piece as one: the system's call for several does more, also
/// for one.
struct Bytewise<C> {
    io: C,
    heard: Heard,
}

impl<C: AsyncRead + Unpin> AsyncRead for Bytewise<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, into);
        if into.filled().len() > before {
            self.heard.note();
        }
        read
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Bytewise<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match pieces {
            [piece] => Pin::new(&mut self.io).poll_write(cx, piece),
            _ => Pin::new(&mut self.io).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// Says in how many pieces it was written to; 0 for plain bytes.
    struct Said(Vec<usize>);

    impl AsyncWrite for Said {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.0.push(0);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            pieces: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.0.push(pieces.len());
            Poll::Ready(Ok(pieces.iter().map(|piece| piece.len()).sum()))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn one_piece_is_written_as_one_and_several_together() {
        let mut bytewise = Bytewise { io: Said(Vec::new()), heard: Heard::default() };
        assert!(bytewise.is_write_vectored());
        for pieces in [&["one"][..], &["two", "three"]] {
            let bytes = pieces.concat().len();
            let pieces: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece.as_bytes())).collect();
            let written = poll_fn(|cx| Pin::new(&mut bytewise).poll_write_vectored(cx, &pieces)).await;
            assert_eq!(written.expect("written"), bytes);
        }
        assert_eq!(bytewise.io.0, [0, 2]);
    }
}
