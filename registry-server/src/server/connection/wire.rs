//! HTTP/2 over a connection's bytes: the greeting, then the calls that come, until there are none any more.
//!
//! ```text
//!   Greeting ──► Open ──► (asked to close: no more calls are taken) ──► ended
//! ```
//!
//! Owns the limits of HTTP/2 that a client may not go beyond. What calls say goes out whenever this is polled.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{
    PingPong, RecvStream,
    server::{Builder, Connection as Http2, Handshake, SendResponse},
};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::debug;

use super::bytewise::{Bytewise, Heard};
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
            .handshake(Bytewise::new(io, heard));
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
