//! What holds for any bytes from outside, as functions that panic where it does not. Fuzzers call them for hours (see
//! `docs/architecture.md`), tests with what proptest makes up; no program has use for them.

use crate::{grpc, store};

/// A client sends these bytes as a request; the first says which.
pub fn request(bytes: &[u8]) {
    if let Some((kind, message)) = bytes.split_first() {
        grpc::any_request(*kind, message);
    }
}

/// A client asks these things on a stream, while the service that it watches changes and others wait for it: records of a
/// kind, a length of two bytes, and that many bytes or what is left.
pub fn stream(mut bytes: &[u8]) {
    use grpc::stream::{Checked, Step};
    use prost::Message as _;
    let mut stream = Checked::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<3>() {
        let length = usize::from(u16::from_le_bytes([head[1], head[2]])).min(rest.len());
        let (record, rest) = rest.split_at(length);
        bytes = rest;
        stream.step(match head[0] % 16 {
            0 => Step::Publish,
            1 => Step::Wait,
            2 => Step::Reconnect,
            3..=7 => Step::Read(head[0] >> 4),
            _ => match registry_proto::v1::SubscribeRequest::decode(record) {
                Ok(request) => Step::Ask(request),
                Err(_) => continue,
            },
        });
    }
}

/// These bytes stand in a frame whose checksum is right, in a log or in a base.
pub fn payload(bytes: &[u8]) {
    store::fuzzing::group(bytes);
    store::fuzzing::part(bytes);
}

/// These bytes are the files of a data directory: records of a kind, a length of two bytes, and that many bytes or what is
/// left.
pub fn directory(mut bytes: &[u8]) {
    let pieces = std::iter::from_fn(move || {
        let (head, rest) = bytes.split_first_chunk::<3>()?;
        let length = usize::from(u16::from_le_bytes([head[1], head[2]])).min(rest.len());
        let (piece, rest) = rest.split_at(length);
        bytes = rest;
        Some((head[0], piece))
    });
    store::fuzzing::directory(pieces);
}
