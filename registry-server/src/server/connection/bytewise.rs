//! A connection's bytes, in few calls to the system.
//!
//! h2 writes what goes before a longer piece of an answer together with that, by itself, and flushes; what comes after it, if only an
//! answer's trailers, is a write of its own. A call to the system takes several times what it takes to copy a short answer. So what
//! comes in several pieces is held back once, until more comes or it is flushed again:
//!
//! ```text
//!   one piece, nothing held ──► written
//!   several pieces, short   ──► held ── flush: more may follow ── more ──► held with it ── flush ──► written as one
//!                                                              └─ flush: nothing follows ──────────► written
//! ```
//!
//! h2 always flushes once more before it rests (`Prioritize::poll_complete`), so nothing stays here. What is held is gone when it is
//! written, buffer and all: a connection at rest keeps nothing.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are held at most.
const MOST: usize = 16 << 10;

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

/// A connection's bytes. Notes that some came.
pub(super) struct Bytewise<C> {
    io: C,
    heard: Heard,
    held: BytesMut,
    /// What is held came since the last flush, and more may follow.
    fresh: bool,
}

impl<C> Bytewise<C> {
    pub(super) fn new(io: C, heard: Heard) -> Self {
        Self { io, heard, held: BytesMut::new(), fresh: false }
    }

    /// Whether so many more may be held.
    fn has_room(&self, bytes: usize) -> bool {
        self.held.len() + bytes <= MOST
    }
}

impl<C: AsyncWrite + Unpin> Bytewise<C> {
    /// Writes what is held.
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.held))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.advance(written);
        }
        self.held = BytesMut::new();
        Poll::Ready(Ok(()))
    }
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
        if !self.held.is_empty() {
            if self.has_room(bytes.len()) {
                self.held.extend_from_slice(bytes);
                self.fresh = false;
                return Poll::Ready(Ok(bytes.len()));
            }
            ready!(self.poll_release(cx))?;
        }
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [piece] = pieces {
            // The system's call for several does more, also for one.
            return self.poll_write(cx, piece);
        }
        let bytes = pieces.iter().map(|piece| piece.len()).sum();
        if self.has_room(bytes) {
            self.held.reserve(bytes);
            for piece in pieces {
                self.held.extend_from_slice(piece);
            }
            self.fresh = true;
            return Poll::Ready(Ok(bytes));
        }
        ready!(self.poll_release(cx))?;
        Pin::new(&mut self.io).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.fresh) {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_release(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_release(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes a write at most, and none at all once in a while; notes what was written, and in how many pieces.
    #[derive(Default)]
    struct Said {
        writes: Vec<(usize, Vec<u8>)>,
        most: Option<usize>,
        shut: bool,
    }

    impl AsyncWrite for Said {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            pieces: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let mut bytes = pieces.iter().flat_map(|piece| piece.iter().copied()).collect::<Vec<_>>();
            if let Some(most) = self.most {
                if most == 0 {
                    return Poll::Pending;
                }
                bytes.truncate(most);
            }
            let taken = bytes.len();
            self.writes.push((pieces.len(), bytes));
            Poll::Ready(Ok(taken))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.shut = true;
            Poll::Ready(Ok(()))
        }
    }

    type Wire = Bytewise<Said>;

    fn wire() -> Wire {
        Bytewise::new(Said::default(), Heard::default())
    }

    fn write(wire: &mut Wire, pieces: &[&[u8]]) -> Poll<usize> {
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        let pieces: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        Pin::new(wire).poll_write_vectored(cx, &pieces).map(|written| written.expect("written"))
    }

    fn flush(wire: &mut Wire) -> Poll<()> {
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        Pin::new(wire).poll_flush(cx).map(|flushed| flushed.expect("flushed"))
    }

    fn said(wire: &mut Wire) -> Vec<(usize, Vec<u8>)> {
        std::mem::take(&mut wire.io.writes)
    }

    #[test]
    fn an_answer_and_what_follows_it_are_written_as_one() {
        let mut wire = wire();
        assert!(wire.is_write_vectored());
        assert_eq!(write(&mut wire, &[b"head ", b"answer "]), Poll::Ready(12));
        assert_eq!(flush(&mut wire), Poll::Ready(()));
        assert_eq!(said(&mut wire), [], "more may follow");
        assert_eq!(write(&mut wire, &[b"trailers"]), Poll::Ready(8));
        assert_eq!(flush(&mut wire), Poll::Ready(()));
        assert_eq!(said(&mut wire), [(1, b"head answer trailers".to_vec())]);
        assert_eq!(wire.held.capacity(), 0, "at rest nothing is kept");
    }

    #[test]
    fn an_answer_that_nothing_follows_is_written_when_that_is_known() {
        let mut wire = wire();
        assert_eq!(write(&mut wire, &[b"head ", b"part"]), Poll::Ready(9));
        assert_eq!((flush(&mut wire), flush(&mut wire)), (Poll::Ready(()), Poll::Ready(())));
        assert_eq!(said(&mut wire), [(1, b"head part".to_vec())]);
    }

    #[test]
    fn what_is_one_piece_or_long_is_not_held() {
        let mut wire = wire();
        let long = vec![b'x'; MOST];
        assert_eq!(write(&mut wire, &[b"one"]), Poll::Ready(3));
        assert_eq!(said(&mut wire), [(1, b"one".to_vec())]);
        assert_eq!(write(&mut wire, &[b"head ", &long]), Poll::Ready(5 + MOST));
        assert_eq!(said(&mut wire).iter().map(|(pieces, _)| *pieces).collect::<Vec<_>>(), [2]);
        // Nothing overtakes what is held.
        assert_eq!(write(&mut wire, &[b"a", b"b"]), Poll::Ready(2));
        assert_eq!(write(&mut wire, &[b"head ", &long]), Poll::Ready(5 + MOST));
        assert_eq!(write(&mut wire, &[b"c", b"d"]), Poll::Ready(2));
        assert_eq!(write(&mut wire, &[&long]), Poll::Ready(MOST));
        let (pieces, bytes): (Vec<_>, Vec<_>) =
            said(&mut wire).into_iter().map(|(pieces, bytes)| (pieces, bytes.len())).unzip();
        assert_eq!((pieces, bytes), (vec![1, 2, 1, 1], vec![2, 5 + MOST, 2, MOST]));
    }

    #[test]
    fn a_peer_that_takes_little_gets_all_of_it_in_order() {
        let mut wire = wire();
        assert_eq!(write(&mut wire, &[b"abc", b"def"]), Poll::Ready(6));
        assert_eq!(flush(&mut wire), Poll::Ready(()));
        wire.io.most = Some(0);
        assert_eq!(flush(&mut wire), Poll::Pending);
        wire.io.most = Some(4);
        assert_eq!(write(&mut wire, &[b"ghi"]), Poll::Ready(3));
        assert_eq!(flush(&mut wire), Poll::Ready(()));
        let bytes = said(&mut wire).into_iter().flat_map(|(_, bytes)| bytes).collect::<Vec<_>>();
        assert_eq!(bytes, b"abcdefghi");
    }

    #[test]
    fn what_is_held_goes_out_before_the_end() {
        let mut wire = wire();
        assert_eq!(write(&mut wire, &[b"last ", b"words"]), Poll::Ready(10));
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut wire).poll_shutdown(cx).is_ready());
        assert_eq!(said(&mut wire), [(1, b"last words".to_vec())]);
        assert!(wire.io.shut);
    }
}
