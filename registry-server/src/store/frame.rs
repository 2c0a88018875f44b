//! The outer format of the embedded store's files: a header, then frames. Settled: later versions only add.
//!
//! ```text
//! file    header, frame, frame, ...                                   integers little-endian
//! header  magic 8 │ version u32 │ zero u32 │ epoch u128 │ revision u64 │ XXH3-64 of the 40 bytes before
//! frame   marker 4 │ checksum u64 │ check u32 │ length u32 │ payload
//!         checksum: XXH3-64 of length and payload; check: the low half of XXH3-64 of the length alone;
//!         both seeded with the frame's offset in the file
//! ```
//!
//! The header keeps this layout in every version, so that an unknown version can be told from damage. The marker is
//! no UTF-8 and the checksums depend on the place, so that no text that a registrant sends can pass for a frame. The
//! length has a check of its own, so that a frame whose payload is damaged still tells where it ends.
//! Knows nothing of payloads.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::StoreError;

/// The format that this code writes, and the only one that it reads.
pub(super) const VERSION: u32 = 1;
/// The size of a file's header.
pub(super) const HEADER: usize = 48;
/// The size of what stands before a frame's payload.
pub(super) const FRAME: usize = 20;
/// The most that one frame's payload may have.
pub(super) const MAX_PAYLOAD: usize = 1 << 30;

/// The least that a disk writes as a whole.
const SECTOR: usize = 512;

const MARKER: [u8; 4] = [0xF5, 0x52, 0x47, 0xFE];

// Where in a frame what stands after the marker begins.
const SUM: usize = 4;
const CHECK: usize = 12;
const LENGTH: usize = 16;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Groups of records.
    Log,
    /// The state at one revision.
    Base,
}

impl Kind {
    fn magic(self) -> [u8; 8] {
        match self {
            Self::Log => *b"\x89REGLOG\n",
            Self::Base => *b"\x89REGBAS\n",
        }
    }
}

/// What every file opens with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// What the file is.
    pub(super) kind: Kind,
    /// The history that it belongs to.
    pub(super) epoch: u128,
    /// Of a base: its revision. Of a log: the last revision before its first.
    pub(super) revision: u64,
}

impl Header {
    /// Its bytes.
    pub(super) fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&self.kind.magic());
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.revision.to_le_bytes());
        let sum = xxh3_64(&bytes[..40]);
        bytes[40..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads the header of `file`, whose name is for messages.
    pub(super) fn decode(file: &str, kind: Kind, bytes: &[u8]) -> Result<Self, StoreError> {
        let corrupt =
            |what: &str| StoreError::Corrupt { file: file.to_owned(), offset: 0, what: what.to_owned() };
        let Some(bytes) = bytes.first_chunk::<HEADER>() else {
            return Err(corrupt("its header is incomplete"));
        };
        if bytes[..8] != kind.magic() {
            return Err(corrupt("it does not begin as a file of this kind"));
        }
        if xxh3_64(&bytes[..40]) != u64_at(bytes, 40) {
            return Err(corrupt("the checksum of its header does not match"));
        }
        let found = u32_at(bytes, 8);
        if found != VERSION {
            return Err(StoreError::FormatVersion { file: file.to_owned(), found, known: VERSION });
        }
        let epoch = u128::from(u64_at(bytes, 16)) | u128::from(u64_at(bytes, 24)) << 64;
        Ok(Self { kind, epoch, revision: u64_at(bytes, 32) })
    }
}

/// What stands at a place where a frame may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// A whole frame.
    Frame {
        /// What it carries.
        payload: &'a [u8],
        /// Where the next one begins.
        end: usize,
    },
    /// Nothing more: the file ends, or only zeros follow.
    End,
    /// Something that is no whole frame.
    Bad(&'static str),
}

/// Appends to `out` the frame that stands at `offset` of its file; `fill` writes the payload. Gives the payload's size
/// instead, and leaves `out` as it was, if that is more than [`MAX_PAYLOAD`].
pub(super) fn push(out: &mut Vec<u8>, offset: u64, fill: impl FnOnce(&mut Vec<u8>)) -> Result<(), usize> {
    let start = out.len();
    out.extend_from_slice(&MARKER);
    out.extend_from_slice(&[0; FRAME - MARKER.len()]);
    fill(out);
    let size = out.len() - start - FRAME;
    let length = match u32::try_from(size) {
        Ok(length) if size <= MAX_PAYLOAD => length,
        _ => {
            out.truncate(start);
            return Err(size);
        }
    };
    out[start + LENGTH..start + FRAME].copy_from_slice(&length.to_le_bytes());
    out[start + CHECK..start + LENGTH].copy_from_slice(&check(length, offset).to_le_bytes());
    let sum = xxh3_64_with_seed(&out[start + LENGTH..], offset);
    out[start + SUM..start + CHECK].copy_from_slice(&sum.to_le_bytes());
    Ok(())
}

/// Looks at what stands at `at`.
pub(super) fn next(bytes: &[u8], at: usize) -> Next<'_> {
    let rest = bytes.get(at..).unwrap_or_default();
    if rest.iter().all(|byte| *byte == 0) {
        return Next::End;
    }
    match whole(rest, at) {
        Ok(payload) => Next::Frame { payload, end: at + FRAME + payload.len() },
        Err(what) => Next::Bad(what),
    }
}

/// Whether what is bad at `at` is no torn tail: gives a place after it that was written later. A frame is written only
/// when those before it are durable, so after a torn one stands neither a whole frame nor, beyond its own end, anything
/// but zeros.
pub(super) fn written_after(bytes: &[u8], at: usize) -> Option<usize> {
    if let Some(length) = bytes.get(at..).and_then(|rest| sound_length(rest, at)) {
        let end = at + FRAME + length;
        if bytes.get(end..).is_some_and(|rest| rest.iter().any(|byte| *byte != 0)) {
            return Some(end);
        }
    }
    (at + 1..bytes.len()).find(|&at| bytes[at..].starts_with(&MARKER) && whole(&bytes[at..], at).is_ok())
}

/// Whether what is bad at `at` may be the rest of a write that was interrupted. A log is written where nothing but zeros
/// was, or beyond its end: so of such a write all is zero from some byte on, or whole sectors are. What is bad with all of
/// its sectors there was written whole and damaged later. (etcd's write-ahead log tells the two apart in this way, too.)
pub(super) fn is_unfinished(bytes: &[u8], at: usize) -> bool {
    let rest = bytes.get(at..).unwrap_or_default();
    let head = at + FRAME;
    // How far it certainly goes: of a frame whose head is damaged or missing nobody knows more than that.
    let (sure, end) = match sound_length(rest, at) {
        Some(length) => (head + length, head + length),
        None => (head, bytes.len()),
    };
    if sure > bytes.len() {
        return true;
    }
    // No payload of a log ends with a zero: the last thing in it is the last byte of a number that is not 0.
    let ends_in_zeros =
        if sure == end { bytes[end - 1] == 0 } else { bytes[head..].iter().all(|byte| *byte == 0) };
    let first = at / SECTOR * SECTOR;
    ends_in_zeros
        || (first..sure)
            .step_by(SECTOR)
            .any(|sector| bytes[sector.max(at)..(sector + SECTOR).min(end)].iter().all(|byte| *byte == 0))
}

fn whole(rest: &[u8], offset: usize) -> Result<&[u8], &'static str> {
    if rest.len() < FRAME {
        return Err("a frame is incomplete");
    }
    let Some(length) = sound_length(rest, offset) else {
        return Err("no frame begins here");
    };
    let Some(summed) = rest.get(LENGTH..FRAME + length) else {
        return Err("a frame reaches beyond the end of the file");
    };
    if xxh3_64_with_seed(summed, offset as u64) != u64_at(rest, SUM) {
        return Err("the checksum of a frame does not match");
    }
    Ok(&summed[FRAME - LENGTH..])
}

/// The length that a frame claims, if its marker is there and its length is what was written.
fn sound_length(rest: &[u8], offset: usize) -> Option<usize> {
    if rest.len() < FRAME || !rest.starts_with(&MARKER) {
        return None;
    }
    let length = u32_at(rest, LENGTH);
    let sound = u32_at(rest, CHECK) == check(length, offset as u64) && length as usize <= MAX_PAYLOAD;
    sound.then_some(length as usize)
}

#[allow(clippy::cast_possible_truncation)] // the low half is what is meant
fn check(length: u32, offset: u64) -> u32 {
    xxh3_64_with_seed(&length.to_le_bytes(), offset) as u32
}

/// `at + 4` must be within `bytes`.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}

/// `at + 8` must be within `bytes`.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(eight)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOG: Header = Header { kind: Kind::Log, epoch: 7, revision: 3 };

    #[test]
    fn an_unknown_version_is_told_from_damage() {
        let mut bytes = LOG.encode();
        assert_eq!(Header::decode("f", Kind::Log, &bytes), Ok(LOG));
        bytes[8] = 9;
        assert!(matches!(Header::decode("f", Kind::Log, &bytes), Err(StoreError::Corrupt { .. })));
        let sum = xxh3_64(&bytes[..40]);
        bytes[40..].copy_from_slice(&sum.to_le_bytes());
        let error = Header::decode("f", Kind::Log, &bytes).unwrap_err();
        assert_eq!(error, StoreError::FormatVersion { file: "f".into(), found: 9, known: 1 });
        assert!(error.to_string().contains("version 9") && error.to_string().contains("version 1"));
    }

    #[test]
    fn the_bytes_of_the_format_stay_as_they_are() {
        let mut out = LOG.encode().to_vec();
        push(&mut out, 48, |out| out.extend_from_slice(b"abc")).unwrap();
        assert_eq!(&out[..12], b"\x89REGLOG\n\x01\0\0\0");
        assert_eq!(
            out[12..40],
            [0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(out.len(), HEADER + FRAME + 3);
        assert_eq!(&out[48..52], b"\xF5RG\xFE");
        assert!(out.ends_with(b"\x03\0\0\0abc"));
        assert_eq!(xxh3_64(&out), 12_845_109_109_261_261_007, "the checksums are computed in another way");
    }

    proptest! {
        #[test]
        fn frames_round_trip(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6)) {
            let mut out = LOG.encode().to_vec();
            for payload in &payloads {
                let at = out.len() as u64;
                push(&mut out, at, |out| out.extend_from_slice(payload)).unwrap();
            }
            out.extend_from_slice(&[0; 20]);
            let (mut at, mut read) = (HEADER, Vec::new());
            while let Next::Frame { payload, end } = next(&out, at) {
                read.push(payload.to_vec());
                at = end;
            }
            prop_assert_eq!(next(&out, at), Next::End);
            prop_assert_eq!(read, payloads);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0_usize..220) {
            let _ = Header::decode("f", Kind::Base, &bytes);
            let _ = next(&bytes, at);
            let _ = written_after(&bytes, at);
            let _ = is_unfinished(&bytes, at);
        }

        #[test]
        fn what_an_interrupted_write_leaves_is_told_from_what_was_damaged(
            before in 0..1_100_usize,
            size in 1..1_600_usize,
            cut in any::<prop::sample::Index>(),
            survive in any::<u8>(),
            flipped in any::<prop::sample::Index>(),
        ) {
            let mut whole = vec![0xEE; before];
            push(&mut whole, before as u64, |out| out.resize(out.len() + size, 0x55)).unwrap();
            let end = whole.len();
            whole.resize(end + 700, 0);

            let cut = before + cut.index(end - before);
            let mut prefix = whole.clone();
            prefix[cut..end].fill(0);
            prop_assert!(cut == before || is_unfinished(&prefix, before), "zeros from {} on", cut);
            prefix.truncate(cut);
            prop_assert!(is_unfinished(&prefix, before), "cut at {}", cut);

            let mut holes = whole.clone();
            for (nth, sector) in (before / SECTOR * SECTOR..end).step_by(SECTOR).enumerate() {
                if (survive >> nth) & 1 == 0 {
                    holes[sector.max(before)..(sector + SECTOR).min(end)].fill(0);
                }
            }
            let lost_none = holes == whole;
            prop_assert!(lost_none || next(&holes, before) == Next::End || is_unfinished(&holes, before));

            let flipped = before + flipped.index(end - before);
            whole[flipped] ^= 0x10;
            prop_assert!(!is_unfinished(&whole, before), "a bit flipped at {}", flipped);
        }

        #[test]
        fn no_flipped_bit_goes_unnoticed(payload in prop::collection::vec(any::<u8>(), 0..40), bit in any::<prop::sample::Index>()) {
            let mut out = Vec::new();
            push(&mut out, 0, |out| out.extend_from_slice(&payload)).unwrap();
            let bit = bit.index(out.len() * 8);
            out[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(matches!(next(&out, 0), Next::Bad(_)));
        }
    }
}
