//! What a watcher or a reader is told, read where it lies: of each instance its id, and whether it is held.

use super::super::{
    News,
    reader::{LENGTH, Message, Problem, number},
};

// Fields of `SubscribeResponse` and `DiscoverResponse`, `Change`, `Instance` and `Removed`.
const NEXT_PAGE_TOKEN: u64 = 1;
const CHANGE: u64 = 2;
const ALL: u64 = 6;
const ADDED: u64 = 7;
const UPDATED: u64 = 8;
const REMOVED: u64 = 9;
const ID: u64 = 1;
const HELD: u64 = 12;
const VIEW_ERROR: u64 = 3;

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

/// Reads a `DiscoverResponse`; says which page is next, and nothing after the last.
pub(super) fn read_page<'a>(message: &'a [u8], news: &mut Vec<News>) -> Result<&'a [u8], Problem> {
    let (mut message, mut next) = (Message(message), &[][..]);
    while let Some((field, wire)) = message.field()? {
        match field {
            NEXT_PAGE_TOKEN => next = message.bytes()?,
            CHANGE => change(Message(message.bytes()?), news)?,
            _ => message.skip(wire)?,
        }
    }
    Ok(next)
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
        let response = Some(v1::subscribe_response::Response::Change(change.clone()));
        let bytes = v1::SubscribeResponse { view_id: 300, response }.encode_to_vec();
        let mut news = Vec::new();
        read(&bytes, &mut news).expect("a message");
        assert_eq!(news, [News::There(1), News::Held(12_345_678), News::There(3), News::Gone(4)]);
        for length in 4..bytes.len() {
            assert!(read(&bytes[..length], &mut Vec::new()).is_err(), "{length} bytes of {}", bytes.len());
        }
        let page = v1::DiscoverResponse { next_page_token: "the next".to_owned(), change: Some(change) };
        let bytes = page.encode_to_vec();
        let mut paged = Vec::new();
        assert!(read_page(&bytes, &mut paged).is_ok_and(|next| next == b"the next"));
        assert_eq!(paged, news);
        assert!(read_page(&bytes[..bytes.len() - 1], &mut paged).is_err(), "not all of it");
        let error = v1::subscribe_response::Response::ViewError(v1::ViewError::default());
        let bytes = v1::SubscribeResponse { view_id: 1, response: Some(error) }.encode_to_vec();
        assert!(matches!(read(&bytes, &mut news), Err(Problem::Refused)));
    }
}
