//! What a frame of a log covers, read without its records: enough to choose how far to fold.

use prost::Message;

use super::{DecodeError, malformed};
use crate::{core::Revision, store::wire};

/// What a frame of a log covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Extent {
    /// The last revision before the group.
    pub(in crate::store) previous: Revision,
    /// The last revision of the group, or `previous`.
    pub(in crate::store) last: Revision,
    /// The newest wall time in it.
    pub(in crate::store) wall: u64,
    /// The size of the frame.
    pub(in crate::store) bytes: u64,
}

/// Reads what a group covers, and nothing else of it. `bytes` is the size of its frame.
pub(in crate::store) fn decode_extent(payload: &[u8], bytes: u64) -> Result<Extent, DecodeError> {
    let failed = |error| malformed(format!("a group does not decode: {error}"));
    let head = wire::GroupHead::decode(payload).map_err(failed)?;
    let walls = wire::GroupWalls::decode(payload).map_err(failed)?;
    let wall = walls.records.iter().map(|record| record.wall).max().unwrap_or(0);
    Ok(Extent { previous: head.previous, last: head.last, wall, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{record::encode_group, samples};

    #[test]
    fn it_says_what_the_whole_group_would() {
        for size in 0..5 {
            let records: Vec<_> = (0..size).map(|n| samples::record(40 - 3 * n)).collect();
            let mut payload = Vec::new();
            encode_group(&mut payload, 7, &records);
            let wall = if size == 0 { 0 } else { 40 };
            let expected = Extent { previous: 7, last: 7 + size, wall, bytes: 99 };
            assert_eq!(decode_extent(&payload, 99), Ok(expected));
        }
        assert!(matches!(decode_extent(&[0x12, 200], 1), Err(DecodeError::Malformed(_))));
    }
}
