//! One stream at a time on a connection, read frame by frame where the frames lie (RFC 9113).
//!
//! A library for HTTP/2 is made for many streams: it finds the stream of each frame, queues what came and wakes who waits, which
//! is most of what a watcher would do with an event, and a caller with an answer. Here whoever waits reads the socket itself.
//!
//! Owns the frames of such a connection. Headers are not read, so of a call's status nothing is known but that the stream has
//! ended, with a message or without. A server that is measured does not shut down: one that says so has failed.

mod headers;

use std::net::SocketAddr;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use self::headers::Headers;
use super::{CONNECTION_WINDOW, Rest, STREAM_WINDOW};
use crate::failure::{During, Failure, Result};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Of every connection, before any is asked for more.
const FIRST_WINDOW: u32 = 65_535;
/// The largest frame that anybody may send who was not allowed more.
const MAX_FRAME: usize = 16_384;
/// Before each frame: its length, type, flags and stream.
const HEAD: usize = 9;
/// What a server keeps of headers at least, unless it says that it keeps less.
const HEADER_TABLE: u32 = 4_096;
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

const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// A connection, and the stream that was opened last.
#[derive(Debug)]
pub(super) struct Alone {
    io: TcpStream,
    headers: Headers,
    /// What was read and belongs to no message yet.
    read: BytesMut,
    /// Bytes that the server takes of all streams together.
    room: i64,
    /// Bytes that the server takes of a stream at first.
    first_room: u32,
    /// Bytes of data, padding included, that the server was not yet told are read: of the connection.
    taken: u32,
    stream: Stream,
}

#[derive(Debug)]
struct Stream {
    /// For messages.
    method: &'static str,
    number: u32,
    rest: Rest,
    /// The server said that it answers.
    begun: bool,
    /// The server says nothing more.
    ended: bool,
    /// Of the bytes that were not yet told of, those of this stream.
    taken: u32,
}

impl Alone {
    /// Connects.
    pub(super) async fn connect(address: SocketAddr) -> Result<Self> {
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
        io.write_all(&hello).await.during(&failed())?;
        // A number that no stream of a client's has, and nothing can come of it.
        let stream =
            Stream { method: "", number: 0, rest: Rest::default(), begun: false, ended: true, taken: 0 };
        Ok(Self {
            io,
            headers: Headers::new(address.to_string()),
            read: BytesMut::new(),
            room: FIRST_WINDOW.into(),
            first_room: FIRST_WINDOW,
            taken: 0,
            stream,
        })
    }

    /// Opens a stream in place of the one before, which has ended, and asks a framed question if there is one. `over`: nothing else
    /// will be asked.
    pub(super) async fn ask(
        &mut self,
        method: &'static str,
        question: Option<Bytes>,
        over: bool,
    ) -> Result<()> {
        let longest = MAX_FRAME.min(self.first_room as usize);
        if question.as_ref().is_some_and(|question| question.len() > longest) {
            return Err(Failure(format!("{method}: the question is longer than the server takes at once")));
        }
        let number = match self.stream.number {
            0 => 1,
            last => last + 2,
        };
        self.stream = Stream { method, number, rest: Rest::default(), begun: false, ended: false, taken: 0 };
        let mut said = BytesMut::new();
        put_frame(&mut said, HEADERS, END_HEADERS, number, &self.headers.of(method));
        if let Some(question) = question {
            let length = i64::try_from(question.len()).during(method)?;
            while self.room < length {
                self.hear().await?;
            }
            self.room -= length;
            put_frame(&mut said, DATA, if over { END_STREAM } else { 0 }, number, &question);
        }
        self.io.write_all(&said).await.during(method)
    }

    /// One framed message there, and one message back. `None`: there was none, so it did not go well.
    pub(super) async fn unary(&mut self, method: &'static str, framed: Bytes) -> Result<Option<Bytes>> {
        self.ask(method, Some(framed), true).await?;
        let Some(answer) = self.message().await? else { return Ok(None) };
        match self.message().await? {
            None => Ok(Some(answer)),
            Some(_) => Err(self.failure("has answered more than once")),
        }
    }

    /// Waits until the server says that it answers.
    pub(super) async fn begun(&mut self) -> Result<()> {
        while !self.stream.begun {
            self.hear().await?;
        }
        Ok(())
    }

    /// The next message; `None` when the stream has ended. Not to be dropped half-way: what this side says meanwhile may be cut.
    pub(super) async fn message(&mut self) -> Result<Option<Bytes>> {
        loop {
            let stream = &mut self.stream;
            if let Some(message) = stream.rest.message().during(stream.method)? {
                return Ok(Some(message));
            }
            if stream.ended {
                let whole = stream.rest.is_empty();
                return if whole { Ok(None) } else { Err(self.failure("has ended it within a message")) };
            }
            self.hear().await?;
        }
    }

    /// Takes in one frame.
    async fn hear(&mut self) -> Result<()> {
        let Frame { kind, flags, stream, mut payload } = self.frame().await?;
        let ours = stream == self.stream.number;
        match (kind, stream) {
            (DATA, _) if ours => {
                // A frame is 16 KiB at most.
                let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
                self.taken = self.taken.saturating_add(length);
                self.stream.taken = self.stream.taken.saturating_add(length);
                if flags & PADDED != 0 {
                    let padding = usize::from(payload.try_get_u8().during(self.stream.method)?);
                    let length = payload.len().checked_sub(padding);
                    payload.truncate(length.ok_or_else(|| self.failure("sends more padding than data"))?);
                }
                if !payload.is_empty() {
                    self.stream.rest.push(payload);
                }
                if self.taken >= STREAM_WINDOW / 2 {
                    let taken = std::mem::take(&mut self.taken).to_be_bytes();
                    self.say(WINDOW_UPDATE, 0, 0, &taken).await?;
                }
                if self.stream.taken >= STREAM_WINDOW / 2 {
                    let taken = std::mem::take(&mut self.stream.taken).to_be_bytes();
                    self.say(WINDOW_UPDATE, 0, stream, &taken).await?;
                }
            }
            (HEADERS, _) if ours => self.stream.begun = true,
            (SETTINGS, 0) if flags & ACK == 0 => {
                self.settle(payload)?;
                self.say(SETTINGS, ACK, 0, &[]).await?;
            }
            (PING, 0) if flags & ACK == 0 => self.say(PING, ACK, 0, &payload).await?,
            (WINDOW_UPDATE, 0) => {
                let more = payload.try_get_u32().during(self.stream.method)?;
                self.room = self.room.saturating_add((more & 0x7fff_ffff).into());
            }
            (RST_STREAM, _) if ours => {
                return Err(self.failure(&format!("has reset the stream ({})", code(&payload))));
            }
            (GOAWAY, 0) => {
                // Behind the last stream that it serves.
                let code = code(payload.get(4..).unwrap_or_default());
                return Err(self.failure(&format!("closes the connection ({code})")));
            }
            // The rest of headers, of which nothing is read; what a stream may be sent further; what an extension says.
            _ => {}
        }
        if ours && matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            self.stream.ended = true;
        }
        Ok(())
    }

    /// What the server says of itself.
    fn settle(&mut self, mut settings: Bytes) -> Result<()> {
        while settings.has_remaining() {
            let (Ok(setting), Ok(value)) = (settings.try_get_u16(), settings.try_get_u32()) else {
                return Err(self.failure("sends half a setting"));
            };
            match setting {
                HEADER_TABLE_SIZE if value < HEADER_TABLE => {
                    return Err(
                        self.failure("keeps less of headers than is usual, which this tool cannot do")
                    );
                }
                INITIAL_WINDOW_SIZE => self.first_room = value,
                _ => {}
            }
        }
        Ok(())
    }

    async fn frame(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = Frame::take(&mut self.read).during(self.stream.method)? {
                return Ok(frame);
            }
            self.read.reserve(READ);
            if self.io.read_buf(&mut self.read).await.during(self.stream.method)? == 0 {
                return Err(self.failure("has closed the connection"));
            }
        }
    }

    async fn say(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<()> {
        let mut frame = BytesMut::with_capacity(HEAD + payload.len());
        put_frame(&mut frame, kind, flags, stream, payload);
        self.io.write_all(&frame).await.during(self.stream.method)
    }

    pub(super) fn failure(&self, what: &str) -> Failure {
        Failure(format!("{}: the server {what}", self.stream.method))
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
    // A frame is 16 KiB at most, whoever says it.
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

#[cfg(test)]
mod tests;
