//! Watches a new connection for its peer's greeting.
//!
//! An HTTP/2 server's first frame is SETTINGS (RFC 9113, 3.4). Until it is here, a connection that TCP calls open may
//! lead to a process that is stuck, to a proxy without a backend, or to a server of another protocol.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};

use crate::runtime::Io;

/// Length of a frame's header (RFC 9113, 4.1); its fourth byte is the type.
const HEADER: usize = 9;
const TYPE: usize = 3;
const SETTINGS: u8 = 4;

/// A byte stream that tells when the greeting has passed.
pub(super) struct Greeting {
    io: Box<dyn Io>,
    /// `None` once it is known.
    waiting: Option<Waiting>,
}

struct Waiting {
    header: [u8; HEADER],
    have: usize,
    tell: oneshot::Sender<()>,
}

impl Greeting {
    pub(super) fn new(io: Box<dyn Io>) -> (Self, oneshot::Receiver<()>) {
        let (tell, told) = oneshot::channel();
        (Self { io, waiting: Some(Waiting { header: [0; HEADER], have: 0, tell }) }, told)
    }

    fn look(&mut self, new: &[u8]) {
        let Some(waiting) = &mut self.waiting else { return };
        let take = new.len().min(HEADER - waiting.have);
        waiting.header[waiting.have..waiting.have + take].copy_from_slice(&new[..take]);
        waiting.have += take;
        if waiting.have == HEADER
            && let Some(waiting) = self.waiting.take()
            && waiting.header[TYPE] == SETTINGS
        {
            // Nobody waits any more if connecting took too long.
            let _ = waiting.tell.send(());
        }
    }
}

/// Whether the greeting came: false if the stream ended or began with something else.
pub(super) async fn greeted(told: oneshot::Receiver<()>) -> bool {
    told.await.is_ok()
}

impl AsyncRead for Greeting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if self.waiting.is_some() {
            self.look(&buf.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Greeting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn hears(bytes: &[u8]) -> bool {
        let (near, mut far) = tokio::io::duplex(64);
        let (mut greeting, told) = Greeting::new(Box::new(near));
        for byte in bytes {
            far.write_all(&[*byte]).await.expect("room");
            greeting.read_u8().await.expect("a byte");
        }
        drop(greeting);
        greeted(told).await
    }

    #[tokio::test]
    async fn only_a_settings_frame_is_a_greeting() {
        assert!(hears(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await);
        assert!(!hears(&[0, 0, 8, 6, 0, 0, 0, 0, 0]).await, "a ping");
        assert!(!hears(b"HTTP/1.1 400").await);
        assert!(!hears(&[0, 0, 0, 4]).await, "cut short");
    }
}
