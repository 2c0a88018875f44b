//! Answers that are encoded once and shared between many callers.

use bytes::Bytes;
use prost::Message;

/// The encoding of one protobuf message in pieces: bytes that may be shared by any number of frames, and a few bytes of
/// one's own before and after them. Concatenated protobuf is legal protobuf, so the pieces together are one message; a
/// field that stands in several pieces has the value that it has in the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Fields that belong to this frame alone.
    pub prefix: Bytes,
    /// Fields shared with other frames.
    pub shared: Bytes,
    /// More of them, behind those.
    pub more: Vec<Bytes>,
    /// Fields that belong to this frame alone and take the place of shared ones.
    pub suffix: Bytes,
}

impl Frame {
    /// A frame of one message that is shared with nobody.
    pub fn of(message: &impl Message) -> Self {
        Self { prefix: message.encode_to_vec().into(), ..Self::default() }
    }

    /// The message's length in bytes.
    pub fn len(&self) -> usize {
        let more: usize = self.more.iter().map(Bytes::len).sum();
        self.prefix.len() + self.shared.len() + more + self.suffix.len()
    }

    /// Whether the message is empty, which is legal protobuf.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
