//! What a watcher is told, read where it lies: of each instance its id, and whether it is held.
//!
//! Load and servers share a machine. A client that builds messages which nobody looks at would take the processor from the server.

use prost::{
    DecodeError,
    encoding::{self, DecodeContext, WireType},
};

use super::super::{News, instance_number};

// Fields of `SubscribeResponse`, `Change`, `Instance` and `Removed`.
const CHANGE: u32 = 2;
const ALL: u32 = 6;
const ADDED: u32 = 7;
const UPDATED: u32 = 8;
const REMOVED: u32 = 9;
const ID: u32 = 1;
const HELD: u32 = 12;
const VIEW_ERROR: u32 = 3;

/// Why something cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    /// It is no message.
    #[error(transparent)]
    Broken(#[from] DecodeError),
    /// It ends within a field.
    #[error("it ends too early")]
    Short,
    /// The view was refused.
    #[error("the view was refused")]
    Refused,
}

/// Reads a `SubscribeResponse`.
pub(super) fn read(mut message: &[u8], news: &mut Vec<News>) -> Result<(), Problem> {
    while !message.is_empty() {
        let (field, wire) = encoding::decode_key(&mut message)?;
        match field {
            CHANGE => change(embedded(&mut message)?, news)?,
            VIEW_ERROR => return Err(Problem::Refused),
            _ => encoding::skip_field(wire, field, &mut message, DecodeContext::default())?,
        }
    }
    Ok(())
}

fn change(mut change: &[u8], news: &mut Vec<News>) -> Result<(), Problem> {
    while !change.is_empty() {
        let (field, wire) = encoding::decode_key(&mut change)?;
        if !matches!(field, ALL | ADDED | UPDATED | REMOVED) {
            encoding::skip_field(wire, field, &mut change, DecodeContext::default())?;
            continue;
        }
        let (number, held) = instance(embedded(&mut change)?)?;
        news.extend(number.map(|number| match field {
            REMOVED => News::Gone(number),
            _ if held => News::Held(number),
            _ => News::There(number),
        }));
    }
    Ok(())
}

/// The number in the id, and whether it is held.
fn instance(mut instance: &[u8]) -> Result<(Option<u32>, bool), Problem> {
    let (mut number, mut held) = (None, false);
    while !instance.is_empty() {
        let (field, wire) = encoding::decode_key(&mut instance)?;
        if field == ID && wire == WireType::LengthDelimited {
            number = std::str::from_utf8(embedded(&mut instance)?).ok().and_then(instance_number);
        } else {
            held |= field == HELD;
            encoding::skip_field(wire, field, &mut instance, DecodeContext::default())?;
        }
    }
    Ok((number, held))
}

/// The bytes of the field that begins here.
fn embedded<'a>(message: &mut &'a [u8]) -> Result<&'a [u8], Problem> {
    let length = encoding::decode_varint(message)?;
    let length = usize::try_from(length).map_err(|_| Problem::Short)?;
    let (embedded, rest) = message.split_at_checked(length).ok_or(Problem::Short)?;
    *message = rest;
    Ok(embedded)
}
