//! What a gRPC call begins with, in as few bytes as a library would take: what was said once is said by its place (HPACK, RFC 7541).

use bytes::{BufMut, BytesMut};

/// `:method: POST` and `:scheme: http`, which every table begins with (RFC 7541, A).
const POST: u8 = 0x80 | 3;
const HTTP: u8 = 0x80 | 6;
/// In front of a field that is to be remembered, and of one that is not; its name follows.
const REMEMBERED: u8 = 0x40;
const NOT_REMEMBERED: u8 = 0;
/// The place of what was remembered last.
const LAST: usize = 62;
/// Fields that are remembered at most: their places are one byte, and a server's table has room for them.
const MOST: usize = 20;

/// The headers of a connection's calls.
#[derive(Debug)]
pub(super) struct Headers {
    authority: String,
    /// What the server remembers, in the order in which it was said.
    remembered: Vec<(&'static str, String)>,
}

impl Headers {
    pub(super) fn new(authority: String) -> Self {
        Self { authority, remembered: Vec::new() }
    }

    /// The headers of the next call.
    pub(super) fn of(&mut self, method: &str) -> BytesMut {
        let mut block = BytesMut::from(&[POST, HTTP][..]);
        let authority = self.authority.clone();
        for (name, value) in [
            (":authority", &*authority),
            (":path", method),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ] {
            self.put(name, value, &mut block);
        }
        block
    }

    fn put(&mut self, name: &'static str, value: &str, block: &mut BytesMut) {
        let known = self.remembered.iter().rev().position(|known| *known == (name, value.to_owned()));
        if let Some(since) = known.and_then(|since| u8::try_from(LAST + since).ok()) {
            block.put_u8(0x80 | since);
            return;
        }
        if self.remembered.len() < MOST {
            block.put_u8(REMEMBERED);
            self.remembered.push((name, value.to_owned()));
        } else {
            block.put_u8(NOT_REMEMBERED);
        }
        for text in [name, value] {
            // Under 127 bytes, so the length is one byte.
            block.put_u8(u8::try_from(text.len()).unwrap_or_default() & 0x7f);
            block.put_slice(text.as_bytes());
        }
    }
}
