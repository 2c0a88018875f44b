//! Watches a new connection for its peer's greeting.
//!
//! An HTTP/2 server's first frame is SETTINGS (RFC 9113, 3.4). Until it is here, a connection that TCP calls open may
//! lead to a process that is stuck, to a proxy without a backend, or to a server of another protocol. It also says how
//! many streams the peer allows at once; that a later SETTINGS frame may say otherwise is hyper's business alone.

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

/// Length of a frame's header (RFC 9113, 4.1): three bytes of length, and the type.
const HEADER: usize = 9;
const TYPE: usize = 3;
const SETTINGS: u8 = 4;
/// Length of one setting (RFC 9113, 6.5.1): two bytes that name it, and its value.
const SETTING: usize = 6;
const MAX_CONCURRENT_STREAMS: u16 = 3;

/// A byte stream that tells when the greeting has passed.
pub(super) struct Greeting {
    io: Box<dyn Io>,
    /// `None` once it is known.
    waiting: Option<Waiting>,
}

/// The greeting: how many streams the peer allows at once, if it says so. Else what the byte stream failed with.
pub(super) type Greeted = Result<Option<u32>, Option<io::Error>>;

struct Waiting {
    /// The part of the header, or of a setting, that is here.
    part: [u8; HEADER],
    have: usize,
    /// How much of the settings is still to come. `None`: the header is.
    left: Option<u32>,
    streams: Option<u32>,
    tell: oneshot::Sender<Greeted>,
}

impl Greeting {
    pub(super) fn new(io: Box<dyn Io>) -> (Self, oneshot::Receiver<Greeted>) {
        let (tell, told) = oneshot::channel();
        let waiting = Waiting { part: [0; HEADER], have: 0, left: None, streams: None, tell };
        (Self { io, waiting: Some(waiting) }, told)
    }

    fn look(&mut self, new: &[u8]) {
        let Some(mut waiting) = self.waiting.take() else { return };
        let known = new.iter().find_map(|byte| waiting.take(*byte));
        match known {
            Some(known) => waiting.tell(known),
            None => self.waiting = Some(waiting),
        }
    }
}

impl Waiting {
    /// The greeting, once its last byte is here.
    fn take(&mut self, byte: u8) -> Option<Greeted> {
        self.part[self.have] = byte;
        self.have += 1;
        match &mut self.left {
            None if self.have == HEADER => {
                if self.part[TYPE] != SETTINGS {
                    return Some(Err(None));
                }
                self.have = 0;
                self.left = Some(u32::from_be_bytes([0, self.part[0], self.part[1], self.part[2]]));
            }
            None => {}
            Some(left) => {
                *left -= 1;
                if self.have == SETTING {
                    let [a, b, value @ ..] = self.part;
                    if u16::from_be_bytes([a, b]) == MAX_CONCURRENT_STREAMS {
                        self.streams = Some(u32::from_be_bytes([value[0], value[1], value[2], value[3]]));
                    }
                    self.have = 0;
                }
            }
        }
        (self.left == Some(0)).then_some(Ok(self.streams))
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
            Ok(()) if self.waiting.is_some() => self.look(&buf.filled()[before..]),
            Ok(()) => {}
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

    async fn hears(bytes: &[u8]) -> Greeted {
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
        assert!(hears(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.is_ok());
        assert!(hears(&[0, 0, 8, 6, 0, 0, 0, 0, 0]).await.is_err(), "a ping");
        assert!(hears(b"HTTP/1.1 400").await.is_err());
        assert!(hears(&[0, 0, 0, 4]).await.is_err(), "cut short");
        assert!(hears(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3]).await.is_err(), "cut short in a setting");
    }

    #[tokio::test]
    async fn the_greeting_says_how_many_streams_the_peer_allows() {
        let window = [0, 4, 0, 1, 0, 0];
        let streams = |n: u8| [0, 3, 0, 0, 1, n];
        for (settings, expected) in [
            (vec![], None),
            (vec![window], None),
            (vec![streams(7)], Some(263)),
            (vec![window, streams(7), window], Some(263)),
            (vec![streams(7), streams(8)], Some(264)),
        ] {
            let length = u8::try_from(settings.len() * SETTING).expect("short");
            let mut frame = vec![0, 0, length, 4, 0, 0, 0, 0, 0];
            frame.extend(settings.concat());
            assert_eq!(hears(&frame).await.expect("a greeting"), expected, "{settings:?}");
        }
    }

    #[tokio::test]
    async fn what_the_stream_failed_with_is_told() {
        let broken = broken_stream();
        let (mut greeting, told) = Greeting::new(Box::new(broken));
        greeting.read_u8().await.expect_err("broken");
        let error = greeted(told).await.expect_err("no greeting").expect("what it failed with");
        assert_eq!(error.to_string(), "broken on purpose");
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
