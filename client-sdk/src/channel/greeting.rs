//! Listens on a connection's byte stream: for its peer's greeting, and then for what has to be known without anybody reading
//! it.
//!
//! An HTTP/2 server's first frame is SETTINGS (RFC 9113, 3.4). Until it is here, a connection that TCP calls open may
//! lead to a process that is stuck, to a proxy without a backend, or to a server of another protocol.
//!
//! Afterwards it hears which streams have ended: h2 tells that only to whoever reads an answer to its end, and an answer that
//! nobody reads yet must not take a place that the peer has free. A stream takes its place as long as either half of it is
//! open (RFC 9113, 5.1.2), so what is written is listened to as well: an end counts when it passes, not when h2 is given it.
//!
//! ```text
//!   open ---- END_STREAM read ----> we have to end it ------ END_STREAM written ---+--> ended: its place is free
//!     |                                                                            |
//!     +------ END_STREAM written -> the peer has to end it - END_STREAM read ------+
//!     +------ RST_STREAM, read or written, also from the other two ----------------+
//! ```
//!
//! And it hears that there is news, SETTINGS or GOAWAY, of which h2 wakes nobody.
//!
//! The counts of what passed cost a store each. Those of reads tell keepalive that the peer lives; those of writes tell a
//! call that nothing left since it was begun, and so neither did it.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};

use super::frames::{DATA, END_STREAM, Frame, Frames, GOAWAY, HEADERS, RST_STREAM, SETTINGS};
use crate::runtime::Io;

/// A byte stream that tells when the greeting has passed, and what else it hears.
pub(super) struct Greeting {
    io: Box<dyn Io>,
    /// What the peer says.
    read: Frames,
    /// What we say.
    written: Frames,
    traffic: Arc<Traffic>,
    /// News that h2 may not have taken in yet.
    news: bool,
    /// `None` once it is known.
    waiting: Option<oneshot::Sender<Greeted>>,
}

/// That the greeting is here. Else what the byte stream failed with.
pub(super) type Greeted = Result<(), Option<io::Error>>;

/// What passed over a byte stream. One task reads and writes it.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    reads: AtomicU64,
    writes: AtomicU64,
    news: AtomicBool,
    /// The streams of which a half is open.
    streams: Mutex<Streams>,
    /// How many have ended since somebody last asked.
    ended: AtomicUsize,
}

type Streams = HashMap<u32, Halves, foldhash::fast::RandomState>;

/// Which halves of a stream have ended.
#[derive(Clone, Copy, Debug)]
struct Halves {
    peers: bool,
    ours: bool,
}

impl Greeting {
    pub(super) fn new(io: Box<dyn Io>) -> (Self, oneshot::Receiver<Greeted>, Arc<Traffic>) {
        let (tell, told) = oneshot::channel();
        let traffic = Arc::<Traffic>::default();
        let (read, written, waiting) = (Frames::default(), Frames::of_client(), Some(tell));
        (Self { io, read, written, traffic: Arc::clone(&traffic), news: false, waiting }, told, traffic)
    }

    fn hear(&mut self, new: &[u8]) {
        let Self { read, traffic, news, waiting, .. } = self;
        read.take(new, |frame| {
            tell(waiting, if frame.kind == SETTINGS { Ok(()) } else { Err(None) });
            *news |= matches!(frame.kind, SETTINGS | GOAWAY);
            traffic.passed(frame, Halves { peers: true, ours: false });
        });
        if read.begun().is_some_and(|frame| frame.kind != SETTINGS) {
            tell(waiting, Err(None));
        }
    }

    /// So much of these was written.
    fn wrote<'a>(&mut self, mut length: usize, parts: impl IntoIterator<Item = &'a [u8]>) {
        let Self { written, traffic, .. } = self;
        count(&traffic.writes);
        for part in parts {
            let part = &part[..part.len().min(length)];
            length -= part.len();
            written.take(part, |frame| traffic.passed(frame, Halves { peers: false, ours: true }));
        }
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

    /// Whether h2 knows of news since somebody last asked.
    pub(super) fn take_news(&self) -> bool {
        self.news.load(Ordering::Acquire) && self.news.swap(false, Ordering::AcqRel)
    }

    /// A stream was begun. `is_all`: and we end it with its first frame, which may have passed already.
    pub(super) fn begin(&self, stream: u32, is_all: bool) {
        self.streams().insert(stream, Halves { peers: false, ours: is_all });
    }

    /// Nobody cares for a stream any more. Whether it had not ended.
    pub(super) fn forget(&self, stream: u32) -> bool {
        self.streams().remove(&stream).is_some()
    }

    /// How many streams that somebody cares for have ended since somebody last asked.
    pub(super) fn take_ended(&self) -> usize {
        if self.ended.load(Ordering::Acquire) == 0 { 0 } else { self.ended.swap(0, Ordering::AcqRel) }
    }

    /// A frame has passed, from whoever has these halves.
    fn passed(&self, frame: Frame, by: Halves) {
        let ends = match frame.kind {
            DATA | HEADERS if frame.flags & END_STREAM != 0 => by,
            RST_STREAM => Halves { peers: true, ours: true },
            _ => return,
        };
        if let Entry::Occupied(mut stream) = self.streams().entry(frame.stream) {
            let ended = stream.get_mut();
            ended.peers |= ends.peers;
            ended.ours |= ends.ours;
            if ended.peers && ended.ours {
                stream.remove();
                self.ended.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Only one task counts, so that needs no exchange.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

fn tell(waiting: &mut Option<oneshot::Sender<Greeted>>, greeted: Greeted) {
    if let Some(waiting) = waiting.take() {
        // Nobody waits any more if connecting took too long.
        let _ = waiting.send(greeted);
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
        if std::mem::take(&mut self.news) {
            // h2 reads on only after it has taken in all that it has.
            self.traffic.news.store(true, Ordering::Release);
        }
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        match &read {
            Ok(()) if buf.filled().len() > before => {
                count(&self.traffic.reads);
                self.hear(&buf.filled()[before..]);
            }
            Ok(()) => {}
            Err(error) => {
                tell(&mut self.waiting, Err(Some(io::Error::new(error.kind(), error.to_string()))));
            }
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Greeting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let length = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        self.wrote(length, [buf]);
        Poll::Ready(Ok(length))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs))?;
        self.wrote(length, bufs.iter().map(|buf| &**buf));
        Poll::Ready(Ok(length))
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
    async fn a_stream_that_we_ended_and_the_peer_ends_is_told_of_once_if_somebody_cares() {
        let (near, mut far) = tokio::io::duplex(64);
        let (mut greeting, _told, traffic) = Greeting::new(Box::new(near));
        for stream in [1, 3, 5, 7] {
            traffic.begin(stream, true);
        }
        assert!(traffic.forget(5));
        for (kind, flags, stream, ended) in [
            (SETTINGS, 0, 0, 0),
            (HEADERS, 4, 1, 0),
            (DATA, 0, 1, 0),
            (DATA, END_STREAM, 1, 1),
            (RST_STREAM, 0, 1, 0),
            (RST_STREAM, 0, 3, 1),
            (HEADERS, END_STREAM, 5, 0),
            (HEADERS, END_STREAM, 7, 1),
        ] {
            far.write_all(&[0, 0, 0, kind, flags, 0, 0, 0, stream]).await.expect("room");
            greeting.read_exact(&mut [0; 9]).await.expect("a frame");
            assert_eq!(traffic.take_ended(), ended, "{kind} on {stream}");
        }
        assert!(!traffic.forget(7));
    }

    #[tokio::test]
    async fn a_stream_has_ended_once_both_have_ended_it_in_either_order_or_one_has_reset_it() {
        enum By {
            Peer,
            Us,
        }
        let (near, mut far) = tokio::io::duplex(256);
        let (mut greeting, _told, traffic) = Greeting::new(Box::new(near));
        greeting.write_all(&[0; 24]).await.expect("room for the preface");
        for stream in [1, 3, 5, 7, 9] {
            traffic.begin(stream, false);
        }
        for (by, kind, flags, stream, ended) in [
            (By::Peer, HEADERS, END_STREAM, 1, 0),
            (By::Peer, DATA, END_STREAM, 1, 0), // what it may not: it ends nothing else
            (By::Us, DATA, 0, 1, 0),
            (By::Us, DATA, END_STREAM, 1, 1),
            (By::Us, RST_STREAM, 0, 1, 0),
            (By::Us, HEADERS, END_STREAM | 4, 3, 0),
            (By::Peer, DATA, END_STREAM, 3, 1),
            (By::Peer, RST_STREAM, 0, 5, 1),
            (By::Us, DATA, END_STREAM, 7, 0),
            (By::Us, RST_STREAM, 0, 7, 1),
            (By::Peer, RST_STREAM, 0, 7, 0),
            (By::Peer, DATA, END_STREAM, 9, 0),
            (By::Peer, RST_STREAM, 0, 9, 1),
        ] {
            let frame = [0, 0, 0, kind, flags, 0, 0, 0, stream];
            match by {
                By::Peer => {
                    far.write_all(&frame).await.expect("room");
                    greeting.read_exact(&mut [0; 9]).await.expect("a frame");
                }
                By::Us => {
                    let (head, tail) = frame.split_at(5);
                    let parts = [io::IoSlice::new(head), io::IoSlice::new(tail)];
                    let mut written = greeting.write_vectored(&parts).await.expect("room");
                    while written < frame.len() {
                        written += greeting.write(&frame[written..]).await.expect("room");
                    }
                }
            }
            assert_eq!(traffic.take_ended(), ended, "{kind} on {stream}");
            assert_eq!(traffic.take_ended(), 0);
        }
        traffic.begin(11, false);
        far.write_all(&[0, 0, 0, DATA, END_STREAM, 0, 0, 0, 11]).await.expect("room");
        greeting.read_exact(&mut [0; 9]).await.expect("a frame");
        assert!(traffic.forget(11), "one half is still open");
        assert!(!traffic.forget(9));
    }

    #[tokio::test]
    async fn there_is_news_once_whoever_reads_reads_on() {
        let (near, mut far) = tokio::io::duplex(64);
        let (mut greeting, _told, traffic) = Greeting::new(Box::new(near));
        for (kind, news) in [(SETTINGS, true), (DATA, false), (GOAWAY, true), (HEADERS, false)] {
            far.write_all(&[0, 0, 0, kind, 0, 0, 0, 0, 0, 0]).await.expect("room");
            greeting.read_exact(&mut [0; 9]).await.expect("a frame");
            assert!(!traffic.take_news(), "{kind}");
            greeting.read_exact(&mut [0; 1]).await.expect("one more");
            assert_eq!(traffic.take_news(), news, "{kind}");
            assert!(!traffic.take_news(), "{kind}");
            far.write_all(&[0, 0, 6, 0, 0, 0, 0, 0]).await.expect("room");
            greeting.read_exact(&mut [0; 8]).await.expect("the rest of it");
        }
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
