//! Messages read where they lie, field by field.
//!
//! Load and servers share a machine. A client that builds messages which nobody looks at would take the processor from the server.
//! Owns protobuf's wire format; which field means what its users know.

// Wire types.
pub(super) const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
pub(super) const LENGTH: u64 = 2;
const FIXED_32: u64 = 5;

/// Digits at the end of an instance's id.
const DIGITS: usize = 8;

/// Why something cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    /// It has a wire type that there is not, or a number of more than ten bytes.
    #[error("it is no message")]
    Broken,
    /// It ends within a field.
    #[error("it ends too early")]
    Short,
    /// The view was refused.
    #[error("the view was refused")]
    Refused,
}

/// The number at the end of an instance's id: its digits taken all at once, first in pairs, then these in fours, then both (Lemire,
/// *Quickly parsing eight digits*, 2018).
#[inline]
pub(super) fn number(id: &[u8]) -> Option<u32> {
    let each = |byte: u8| u64::from_ne_bytes([byte; DIGITS]);
    // The first digit is the lowest byte from here on.
    let digits = u64::from_le_bytes(*id.last_chunk::<DIGITS>()?) ^ each(b'0');
    // More than nine reaches the eighth bit of its byte.
    if (digits | digits.wrapping_add(each(0x7f - 9))) & each(0x80) != 0 {
        return None;
    }
    let pairs = (digits * 10 + (digits >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs * 100 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    u32::try_from((fours * 10_000 + (fours >> 32)) & 0xffff_ffff).ok()
}

/// What is left of a message.
pub(super) struct Message<'a>(pub(super) &'a [u8]);

impl<'a> Message<'a> {
    /// The number and the wire type of the next field.
    #[inline]
    pub(super) fn field(&mut self) -> Result<Option<(u64, u64)>, Problem> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        Ok(Some((key >> 3, key & 7)))
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, Problem> {
        // Nearly all are of one byte.
        match self.0.split_first() {
            Some((byte, rest)) if *byte < 0x80 => {
                self.0 = rest;
                Ok(u64::from(*byte))
            }
            _ => self.long_varint(),
        }
    }

    #[inline]
    fn skip_varint(&mut self) -> Result<(), Problem> {
        // Revisions are of two or three.
        match self.0 {
            [..0x80, rest @ ..] | [_, ..0x80, rest @ ..] | [_, _, ..0x80, rest @ ..] => {
                self.0 = rest;
                Ok(())
            }
            _ => self.long_varint().map(drop),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Problem> {
        let mut value = 0;
        for (at, byte) in self.0.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * at);
            if *byte < 0x80 {
                self.0 = &self.0[at + 1..];
                return Ok(value);
            }
        }
        Err(if self.0.len() < 10 { Problem::Short } else { Problem::Broken })
    }

    /// The bytes of a field that begins with its length.
    #[inline]
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Problem> {
        let length = self.varint()?;
        self.take(usize::try_from(length).map_err(|_| Problem::Short)?)
    }

    #[inline]
    fn take(&mut self, length: usize) -> Result<&'a [u8], Problem> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Problem::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    #[inline]
    pub(super) fn skip(&mut self, wire: u64) -> Result<(), Problem> {
        match wire {
            VARINT => self.skip_varint(),
            LENGTH => self.bytes().map(drop),
            FIXED_64 => self.take(8).map(drop),
            FIXED_32 => self.take(4).map(drop),
            _ => Err(Problem::Broken),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_end_in_eight_digits_has_no_number() {
        assert_eq!(number(b"i-00000012"), Some(12));
        assert!(number(b"i-0000000x").is_none() && number(b"1234567").is_none());
    }

    #[test]
    fn a_number_is_that_of_its_digits_and_each_must_be_one() {
        for number in [0, 1, 9, 10, 12_345_678, 90_807_060, 99_999_999] {
            let id = format!("i-{number:08}");
            assert_eq!(super::number(id.as_bytes()), Some(number), "{id}");
            for at in 2..id.len() {
                for other in (0..=u8::MAX).filter(|byte| !byte.is_ascii_digit()) {
                    let mut id = id.clone().into_bytes();
                    id[at] = other;
                    assert_eq!(super::number(&id), None, "{id:?}");
                }
            }
        }
    }

    #[test]
    fn a_number_is_skipped_however_long_it_is() {
        for number in (0..64).map(|bits| 1_u64 << bits) {
            let mut bytes = vec![8];
            prost::encoding::encode_varint(number, &mut bytes);
            bytes.extend([16, 7]);
            for length in 1..bytes.len() - 2 {
                let mut short = Message(&bytes[..length]);
                assert!(short.field().is_ok() && short.skip(VARINT).is_err(), "{length} bytes of {number}");
            }
            let mut message = Message(&bytes);
            assert_eq!(message.field().expect("a field"), Some((1, VARINT)));
            message.skip(VARINT).expect("a number");
            assert_eq!(message.field().expect("a field"), Some((2, VARINT)), "after {number}");
        }
    }
}
