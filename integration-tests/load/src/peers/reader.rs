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

/// The number at the end of an instance's id.
#[inline]
pub(super) fn number(id: &[u8]) -> Option<u32> {
    let digits = id.last_chunk::<DIGITS>()?;
    digits.iter().try_fold(0, |number, digit| {
        Some(number * 10 + u32::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?))
    })
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
            VARINT => self.varint().map(drop),
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
}
