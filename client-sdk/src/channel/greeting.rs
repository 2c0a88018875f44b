//! Listens on a new connection's byte stream: for its peer's greeting, and then for whether anything passes at all.
//!
//! An HTTP/2 server's first frame is SETTINGS (RFC 9113, 3.4). Until it is here, a connection that TCP calls open may
//! lead to a process that is stuck, to a proxy without a backend, or to a server of another protocol. What the settings
//! say is h2's business.
//!
//! The counts of what passed cost a store each. Those of reads tell keepalive that the peer lives; those of writes tell a
//! call that nothing left since it was begun, and so neither did it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};

use crate::runtime::Io;

/// Length of a frame's header (RFC 9113, 4.1): three bytes of length, and the type.
const HEADER: usize = 9;
const TYPE: usize = 3;
const SETTINGS: u8 = 4;

/// A byte stream that tells when the greeting has passed, and counts.
pub(super) struct Greeting {
    io: Box<dyn Io>,
    traffic: Arc<Traffic>,
    /// `None` once it is known.
    waiting: Option<Waiting>,
}

/// That the greeting is here. Else what the byte stream failed with.
pub(super) type Greeted = Result<(), Option<io::Error>>;

/// How often anything was read from a byte stream, and written to it. One task does both.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    reads: AtomicU64,
    writes: AtomicU64,
}

struct Waiting {
    /// The part of the header that is here.
    header: [u8; HEADER],
    have: usize,
    /// How much of the settings is still to come. `None`: the header is.
    left: Option<usize>,
    tell: oneshot::Sender<Greeted>,
}

impl Greeting {
    pub(super) fn new(io: Box<dyn Io>) -> (Self, oneshot::Receiver<Greeted>, Arc<Traffic>) {
        let (tell, told) = oneshot::channel();
        let traffic = Arc::<Traffic>::default();
        let waiting = Waiting { header: [0; HEADER], have: 0, left: None, tell };
        (Self { io, traffic: Arc::clone(&traffic), waiting: Some(waiting) }, told, traffic)
    }

    fn look(&mut self, new: &[u8]) {
        let Some(mut waiting) = self.waiting.take() else { return };
        match waiting.take(new) {
            Some(known) => waiting.tell(known),
            None => self.waiting = Some(waiting),
        }
    }

    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(written, Poll::Ready(Ok(_))) {
            count(&self.traffic.writes);
        }
        written
    }
}

impl Traffic {
    /// Changes with everything that is read.
    pub(super) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Changes with everything that is written. Whoever compares two looks has had h2's lock in between, which orders
    /// them with the writes.
    pub(super) fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }
}

/// Only one task counts, so that needs no exchange.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

impl Waiting {
    /// The greeting, once its last byte is here.
    fn take(&mut self, mut new: &[u8]) -> Option<Greeted> {
        let left = match &mut self.left {
            Some(left) => left,
            None => {
                let (header, rest) = new.split_at(new.len().min(HEADER - self.have));
                self.header[self.have..][..header.len()].copy_from_slice(header);
                self.have += header.len();
                new = rest;
                if self.have < HEADER {
                    return None;
                }
                if self.header[TYPE] != SETTINGS {
                    return Some(Err(None));
                }
                let [a, b, c, ..] = self.header;
                self.left.insert(usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c))
            }
        };
        *left = left.saturating_sub(new.len());
        (*left == 0).then_some(Ok(()))
    }

    fn tell(self, greeted: Greeted) {
        // Nobody waits any more if connecting took too long.
        let _ = self.tell.send(greeted);
    }
}

/// The greeting, or that the stream ended or began with something else.
pub(super) async fn greeted(told: oneshot::Receiver<Greeted>) -> Greeted {
    told.await.unwrap_or(Err(None))
}

impl AsyncRead for Greeting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        match &read {
            Ok(()) => {
                if buf.filled().len() > before {
                    count(&self.traffic.reads);
                }
                if self.waiting.is_some() {
                    self.look(&buf.filled()[before..]);
                }
            }
            Err(error) => {
                if let Some(waiting) = self.waiting.take() {
                    waiting.tell(Err(Some(io::Error::new(error.kind(), error.to_string()))));
                }
            }
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Greeting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.wrote(written)
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

    async fn hears(bytes: &[u8]) -> Greeted {
        let (near, mut far) = tokio::io::duplex(64);
        let (mut greeting, told, _) = Greeting::new(Box::new(near));
        for byte in bytes {
            far.write_all(&[*byte]).await.expect("room");
            greeting.read_u8().await.expect("a byte");
        }
        drop(greeting);
        greeted(told).await
    }

    #[tokio::test]
    async fn only_a_settings_frame_is_a_greeting() {
        assert!(hears(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.is_ok());
        assert!(hears(&[0, 0, 8, 6, 0, 0, 0, 0, 0]).await.is_err(), "a ping");
        assert!(hears(b"HTTP/1.1 400").await.is_err());
        assert!(hears(&[0, 0, 0, 4]).await.is_err(), "cut short");
        assert!(hears(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3]).await.is_err(), "cut short in a setting");
    }

    #[tokio::test]
    async fn it_may_come_with_more_behind_it() {
        let (near, mut far) = tokio::io::duplex(64);
        let (mut greeting, told, traffic) = Greeting::new(Box::new(near));
        far.write_all(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 8, 6]).await.expect("room");
        greeting.read_exact(&mut [0; 19]).await.expect("all of it");
        greeted(told).await.expect("a greeting");
        assert_eq!((traffic.reads(), traffic.writes()), (1, 0));
        greeting.write_all(&[1]).await.expect("room");
        assert_eq!((traffic.reads(), traffic.writes()), (1, 1));
        drop(far);
        assert_eq!(greeting.read(&mut [0; 9]).await.expect("the end"), 0);
        assert_eq!(traffic.reads(), 1, "an end is nothing that was read");
    }

    #[tokio::test]
    async fn what_the_stream_failed_with_is_told() {
        let broken = broken_stream();
        let (mut greeting, told, traffic) = Greeting::new(Box::new(broken));
        greeting.read_u8().await.expect_err("broken");
        let error = greeted(told).await.expect_err("no greeting").expect("what it failed with");
        assert_eq!(error.to_string(), "broken on purpose");
        assert_eq!(traffic.reads(), 0);
    }

    /// A stream whose first read fails.
    fn broken_stream() -> impl Io {
        struct Broken;
        impl AsyncRead for Broken {
            fn poll_read(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
                _: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                Poll::Ready(Err(io::Error::other("broken on purpose")))
            }
        }
        impl AsyncWrite for Broken {
            fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                Poll::Ready(Ok(buf.len()))
            }
            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
            fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
        }
        Broken
    }
}
