//! What a watcher is told, read where it lies: of each instance its id, and whether it is held.
//!
//! Load and servers share a machine. A client that builds messages which nobody looks at would take the processor from the server.

use super::super::News;

// Fields of `SubscribeResponse`, `Change`, `Instance` and `Removed`.
const CHANGE: u64 = 2;
const ALL: u64 = 6;
const ADDED: u64 = 7;
const UPDATED: u64 = 8;
const REMOVED: u64 = 9;
const ID: u64 = 1;
const HELD: u64 = 12;
const VIEW_ERROR: u64 = 3;

// Wire types.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const LENGTH: u64 = 2;
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

/// Reads a `SubscribeResponse`.
pub(super) fn read(message: &[u8], news: &mut Vec<News>) -> Result<(), Problem> {
    let mut message = Message(message);
    while let Some((field, wire)) = message.field()? {
        match field {
            CHANGE => change(Message(message.bytes()?), news)?,
            VIEW_ERROR => return Err(Problem::Refused),
            _ => message.skip(wire)?,
        }
    }
    Ok(())
}

fn change(mut change: Message<'_>, news: &mut Vec<News>) -> Result<(), Problem> {
    while let Some((field, wire)) = change.field()? {
        if !matches!(field, ALL | ADDED | UPDATED | REMOVED) {
            change.skip(wire)?;
            continue;
        }
        let (number, held) = instance(Message(change.bytes()?))?;
        let Some(number) = number else { continue };
        news.push(match field {
            REMOVED => News::Gone(number),
            _ if held => News::Held(number),
            _ => News::There(number),
        });
    }
    Ok(())
}

/// The number in the id, and whether it is held.
#[inline]
fn instance(mut instance: Message<'_>) -> Result<(Option<u32>, bool), Problem> {
    let (mut id, mut held) = (None, false);
    while let Some((field, wire)) = instance.field()? {
        if field == ID && wire == LENGTH {
            id = number(instance.bytes()?);
        } else {
            held |= field == HELD;
            instance.skip(wire)?;
        }
    }
    Ok((id, held))
}

#[inline]
fn number(id: &[u8]) -> Option<u32> {
    let digits = id.last_chunk::<DIGITS>()?;
    digits.iter().try_fold(0, |number, digit| {
        Some(number * 10 + u32::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?))
    })
}

/// What is left of a message.
struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    /// The number and the wire type of the next field.
    #[inline]
    fn field(&mut self) -> Result<Option<(u64, u64)>, Problem> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        Ok(Some((key >> 3, key & 7)))
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Problem> {
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
    fn bytes(&mut self) -> Result<&'a [u8], Problem> {
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
    fn skip(&mut self, wire: u64) -> Result<(), Problem> {
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
    use prost::Message as _;
    use registry_proto::v1;

    use super::*;

    #[test]
    fn what_a_change_says_is_read_from_its_bytes_and_half_of_it_is_refused() {
        let instance = |number: u32, held: bool| v1::Instance {
            id: format!("i-{number:08}"),
            address: "10.0.0.1:8080".to_owned(),
            weight: Some(70_000),
            mod_revision: u64::MAX,
            held: held.then(v1::Held::default),
            tags: [("key".to_owned(), "value".to_owned())].into(),
            ..v1::Instance::default()
        };
        let change = v1::Change {
            epoch: "an epoch".to_owned(),
            digest: 7,
            all: vec![instance(1, false)],
            added: vec![instance(12_345_678, true)],
            updated: vec![instance(3, false)],
            removed: vec![v1::Removed { id: "i-00000004".to_owned(), create_revision: 300 }],
            ..v1::Change::default()
        };
        let response = Some(v1::subscribe_response::Response::Change(change));
        let bytes = v1::SubscribeResponse { view_id: 300, response }.encode_to_vec();
        let mut news = Vec::new();
        read(&bytes, &mut news).expect("a message");
        assert_eq!(news, [News::There(1), News::Held(12_345_678), News::There(3), News::Gone(4)]);
        for length in 4..bytes.len() {
            assert!(read(&bytes[..length], &mut Vec::new()).is_err(), "{length} bytes of {}", bytes.len());
        }
        let error = v1::subscribe_response::Response::ViewError(v1::ViewError::default());
        let bytes = v1::SubscribeResponse { view_id: 1, response: Some(error) }.encode_to_vec();
        assert!(matches!(read(&bytes, &mut news), Err(Problem::Refused)));
        assert!(number(b"i-0000000x").is_none() && number(b"1234567").is_none());
    }
}
