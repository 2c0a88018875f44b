//! One instance as bytes: what `wire_instance(..).encode_length_delimited()` gives, without the message in between.
//!
//! Every change encodes an instance, so this is on the way of every write; the message would copy each string first, and
//! hash the tags. What is rare (a hold, an override) does go through its message. Owns no meaning: the test compares it with
//! the message.

use prost::encoding::{self, WireType, encode_key, encode_varint};

use super::encode::{wire_held, wire_override, wire_status};
use crate::core::Instance;

const ID: u32 = 1;
const ADDRESS: u32 = 2;
const WEIGHT: u32 = 3;
const TAGS: u32 = 4;
const LOCALITY: u32 = 5;
const STATUS: u32 = 6;
const CREATE_REVISION: u32 = 8;
const MOD_REVISION: u32 = 9;
const REGISTERED_AT: u32 = 10;
const CHANGED_AT: u32 = 11;
const HELD: u32 = 12;
const OVERRIDE: u32 = 13;

/// Room for most instances, so that writing one does not grow it.
const USUAL: usize = 256;

/// Room in front for the length, which is known when all is written.
const ROOM: usize = 10;

/// Length and content of a `v1::Instance`, to stand behind any field's tag.
pub(super) fn of(instance: &Instance) -> Box<[u8]> {
    let spec = &instance.spec;
    let mut out = Vec::with_capacity(USUAL);
    out.extend_from_slice(&[0; ROOM]);
    text(ID, &instance.id, &mut out);
    text(ADDRESS, &spec.address, &mut out);
    encode_key(WEIGHT, WireType::Varint, &mut out);
    encode_varint(instance.weight().into(), &mut out);
    for (key, value) in spec.tags.iter() {
        pair(TAGS, key, value, &mut out);
    }
    if !spec.region.is_empty() || !spec.zone.is_empty() {
        pair(LOCALITY, &spec.region, &spec.zone, &mut out);
    }
    number(STATUS, u64::try_from(i32::from(wire_status(instance.status()))).unwrap_or(0), &mut out);
    number(CREATE_REVISION, instance.create_revision, &mut out);
    number(MOD_REVISION, instance.mod_revision, &mut out);
    time(REGISTERED_AT, instance.registered_at, &mut out);
    time(CHANGED_AT, instance.changed_at, &mut out);
    if let Some(held) = &instance.held {
        encoding::message::encode(HELD, &wire_held(held), &mut out);
    }
    if let Some(over) = &instance.over {
        encoding::message::encode(OVERRIDE, &wire_override(over), &mut out);
    }
    let length = (out.len() - ROOM) as u64;
    let front = ROOM - encoding::encoded_len_varint(length);
    encode_varint(length, &mut &mut out[front..ROOM]);
    out[front..].into()
}

/// A field that is left out where it is empty.
fn text(field: u32, text: &str, out: &mut Vec<u8>) {
    if !text.is_empty() {
        encode_key(field, WireType::LengthDelimited, out);
        encode_varint(text.len() as u64, out);
        out.extend_from_slice(text.as_bytes());
    }
}

fn text_len(field: u32, text: &str) -> usize {
    let length = text.len();
    if length == 0 {
        0
    } else {
        encoding::key_len(field) + encoding::encoded_len_varint(length as u64) + length
    }
}

/// A message of two texts: an entry of a map, or a locality.
fn pair(field: u32, first: &str, second: &str, out: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint((text_len(1, first) + text_len(2, second)) as u64, out);
    text(1, first, out);
    text(2, second, out);
}

/// A field that is left out where it is 0.
fn number(field: u32, number: u64, out: &mut Vec<u8>) {
    if number != 0 {
        encode_key(field, WireType::Varint, out);
        encode_varint(number, out);
    }
}

/// Milliseconds since the Unix epoch as a `Timestamp`.
fn time(field: u32, wall: u64, out: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, out);
    let at = out.len();
    out.push(0);
    number(1, wall / 1000, out);
    number(2, wall % 1000 * 1_000_000, out);
    // Two numbers of at most ten bytes each: the length has one byte.
    out[at] = u8::try_from(out.len() - at - 1).unwrap_or(u8::MAX);
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use registry_proto::v1;

    use super::*;
    use crate::{
        core::{LeaseId, Spec},
        hub::encode::wire_instance,
        store::samples,
    };

    proptest::proptest! {
        #[test]
        fn a_body_is_the_message(mut base in samples::any_base()) {
            // An override beside each: bases keep them apart.
            let overs = base.overrides.drain(..).map(|(_, _, over)| over);
            let mut overs = overs.collect::<Vec<_>>().into_iter();
            for (_, mut instance) in base.instances {
                instance.over = overs.next().map(Into::into);
                let bytes = of(&instance);
                let message = wire_instance(&instance);
                if instance.spec.tags.len() < 2 {
                    assert_eq!(&*bytes, &*message.encode_length_delimited_to_vec());
                }
                // The message has its tags in no order.
                assert_eq!(v1::Instance::decode_length_delimited(&*bytes).expect("a message"), message);
            }
        }
    }

    #[test]
    fn the_largest_instance_is_the_message_too() {
        let long: std::sync::Arc<str> = "x".repeat(16 << 10).into();
        let spec = Spec {
            address: long.clone(),
            weight: u16::MAX,
            tags: [(long.clone(), long.clone())].into(),
            region: long.clone(),
            zone: long.clone(),
            status: crate::core::Status::Down,
        };
        let instance = Instance {
            id: long,
            spec: spec.into(),
            lease: LeaseId([0; 16]),
            create_revision: u64::MAX,
            mod_revision: u64::MAX,
            registered_at: 1_763_000_000_999,
            changed_at: 253_402_300_799_999,
            held: None,
            over: None,
        };
        assert_eq!(&*of(&instance), &*wire_instance(&instance).encode_length_delimited_to_vec());
    }
}
