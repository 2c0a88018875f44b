//! One stream that has a connection to itself, read frame by frame where the frames lie (RFC 9113).
//!
//! A library for HTTP/2 is made for many streams: it finds the stream of each frame, queues what came and wakes who waits, which
//! is most of what a watcher would do with an event. Here whoever waits reads the socket itself.
//!
//! Owns the frames of such a connection. Headers are not read, so of a call's status nothing is known but that the stream has
//! ended. A server that is measured does not shut down: one that says so has failed.

use std::net::SocketAddr;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{CONNECTION_WINDOW, Rest, STREAM_WINDOW};
use crate::failure::{During, Failure, Result};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Of every connection, before any is asked for more.
const FIRST_WINDOW: u32 = 65_535;
/// The largest frame that anybody may send who was not allowed more.
const MAX_FRAME: usize = 16_384;
/// Before each frame: its length, type, flags and stream.
const HEAD: usize = 9;
/// The one stream.
const STREAM: u32 = 1;
/// Bytes that are read at once, where there is room for no more.
const READ: usize = 2 << 10;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
/// Of settings and pings.
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

const ENABLE_PUSH: u16 = 2;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// A stream of answers.
#[derive(Debug)]
pub(super) struct Alone {
    method: &'static str,
    io: TcpStream,
    /// What was read and belongs to no message yet.
    read: BytesMut,
    rest: Rest,
    /// The server said that it answers.
    begun: bool,
    /// Bytes of data, padding included, that the server was not yet told are read.
    taken: u32,
}

impl Alone {
    /// Connects, opens the stream, and asks a framed question if there is one.
    pub(super) async fn open(
        address: SocketAddr,
        method: &'static str,
        question: Option<Bytes>,
    ) -> Result<Self> {
        let failed = || format!("cannot connect to {address}");
        let mut io = TcpStream::connect(address).await.during(&failed())?;
        io.set_nodelay(true).during(&failed())?;
        let mut hello = BytesMut::from(PREFACE);
        let mut settings = BytesMut::new();
        for (setting, value) in [(ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, STREAM_WINDOW)] {
            settings.put_u16(setting);
            settings.put_u32(value);
        }
        put_frame(&mut hello, SETTINGS, 0, 0, &settings);
        let more = CONNECTION_WINDOW - FIRST_WINDOW;
        put_frame(&mut hello, WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        put_frame(&mut hello, HEADERS, END_HEADERS, STREAM, &headers(method, &address.to_string()));
        if let Some(question) = question {
            put_frame(&mut hello, DATA, 0, STREAM, &question);
        }
        io.write_all(&hello).await.during(&failed())?;
        Ok(Self { method, io, read: BytesMut::new(), rest: Rest::default(), begun: false, taken: 0 })
    }

    /// Waits until the server says that it answers.
    pub(super) async fn begun(&mut self) -> Result<()> {
        while !self.begun {
            self.hear().await?;
        }
        Ok(())
    }

    /// The next message. Not to be dropped half-way: what this side says meanwhile may be cut.
    pub(super) async fn message(&mut self) -> Result<Bytes> {
        loop {
            if let Some(message) = self.rest.message().during(self.method)? {
                return Ok(message);
            }
            self.hear().await?;
        }
    }

    /// Takes in one frame.
    async fn hear(&mut self) -> Result<()> {
        let Frame { kind, flags, stream, mut payload } = self.frame().await?;
        match (kind, stream) {
            (DATA, STREAM) => {
                // A frame is 16 KiB at most.
                self.taken = self.taken.saturating_add(u32::try_from(payload.len()).unwrap_or(u32::MAX));
                if flags & PADDED != 0 {
                    let padding = usize::from(payload.try_get_u8().during(self.method)?);
                    let length = payload.len().checked_sub(padding);
                    payload.truncate(length.ok_or_else(|| self.failure("sends more padding than data"))?);
                }
                if !payload.is_empty() {
                    self.rest.push(payload);
                }
                if self.taken >= STREAM_WINDOW / 2 {
                    let taken = std::mem::take(&mut self.taken).to_be_bytes();
                    self.say(WINDOW_UPDATE, 0, 0, &taken).await?;
                    self.say(WINDOW_UPDATE, 0, STREAM, &taken).await?;
                }
            }
            (HEADERS, STREAM) => self.begun = true,
            (SETTINGS, 0) if flags & ACK == 0 => self.say(SETTINGS, ACK, 0, &[]).await?,
            (PING, 0) if flags & ACK == 0 => self.say(PING, ACK, 0, &payload).await?,
            (RST_STREAM, STREAM) => {
                return Err(self.failure(&format!("has reset the stream ({})", code(&payload))));
            }
            (GOAWAY, 0) => {
                // Behind the last stream that it serves.
                let code = code(payload.get(4..).unwrap_or_default());
                return Err(self.failure(&format!("closes the connection ({code})")));
            }
            // The rest of headers, of which nothing is read; what it may be sent; what an extension says.
            _ => {}
        }
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            return Err(self.failure("has ended the stream"));
        }
        Ok(())
    }

    async fn frame(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = Frame::take(&mut self.read).during(self.method)? {
                return Ok(frame);
            }
            self.read.reserve(READ);
            if self.io.read_buf(&mut self.read).await.during(self.method)? == 0 {
                return Err(self.failure("has closed the connection"));
            }
        }
    }

    async fn say(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<()> {
        let mut frame = BytesMut::with_capacity(HEAD + payload.len());
        put_frame(&mut frame, kind, flags, stream, payload);
        self.io.write_all(&frame).await.during(self.method)
    }

    fn failure(&self, what: &str) -> Failure {
        Failure(format!("{}: the server {what}", self.method))
    }
}

#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Bytes,
}

/// A server goes beyond what it was allowed.
#[derive(Debug, thiserror::Error)]
#[error("the server sends a frame of {0} bytes, of {MAX_FRAME} allowed")]
struct TooLong(usize);

impl Frame {
    /// The first frame, if all of it is there.
    fn take(read: &mut BytesMut) -> std::result::Result<Option<Self>, TooLong> {
        let Some(&[l0, l1, l2, kind, flags, s0, s1, s2, s3]) = read.first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        if length > MAX_FRAME {
            return Err(TooLong(length));
        }
        if read.len() < HEAD + length {
            return Ok(None);
        }
        read.advance(HEAD);
        let payload = read.split_to(length).freeze();
        // The first bit of a stream's number means nothing.
        let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
        Ok(Some(Self { kind, flags, stream, payload }))
    }
}

fn put_frame(into: &mut BytesMut, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    // What is said here is a few dozen bytes, and a ping's answer no longer than its frame was.
    into.put_uint(payload.len() as u64, 3);
    into.put_u8(kind);
    into.put_u8(flags);
    into.put_u32(stream);
    into.put_slice(payload);
}

/// Of an error, as a word of the protocol where it is one that servers say (RFC 9113, 7).
fn code(mut payload: &[u8]) -> String {
    match payload.try_get_u32() {
        Ok(code) => h2::Reason::from(code).to_string(),
        Err(_) => "it does not say why".to_owned(),
    }
}

/// What a gRPC call begins with, each field as it is and to be remembered by nobody (RFC 7541, 6.2.2).
fn headers(method: &str, authority: &str) -> BytesMut {
    let mut block = BytesMut::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.put_u8(0);
        for text in [name, value] {
            // Under 127 bytes, so the length is one byte.
            block.put_u8(u8::try_from(text.len()).unwrap_or_default() & 0x7f);
            block.put_slice(text.as_bytes());
        }
    }
    block
}

#[cfg(test)]
mod tests;
