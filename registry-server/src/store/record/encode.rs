//! A group of records as bytes: what `wire::Group` would encode to, without the message in between.
//!
//! Every write goes this way, and the message would copy each of its strings once more only to be read once. What is rare (a
//! hold, an override) does go through its message. Owns no meaning: a test compares it with the message, byte by byte.

use prost::encoding::{self, WireType, encoded_len_varint};

use super::{
    held_to_wire,
    numbers::{cause_number, loss_number, status_number},
    override_to_wire,
};
use crate::core::{Event, InstanceId, LeaseId, Record, Registrant, Revision, ServiceKey, Spec};

/// Appends a group whose records get the revisions after `previous`.
pub(in crate::store) fn encode_group(out: &mut Vec<u8>, previous: Revision, records: &[Record]) {
    number(1, previous, out);
    for (revision, one) in (previous + 1..).zip(records) {
        message(2, out, |out| record(revision, one, out));
    }
    number(3, previous + records.len() as Revision, out);
}

fn record(revision: Revision, record: &Record, out: &mut Vec<u8>) {
    number(1, revision, out);
    number(2, record.wall, out);
    number(3, cause_number(record.cause).into(), out);
    text(4, &record.actor, out);
    for one in &record.events {
        message(5, out, |out| event(one, out));
    }
}

fn event(event: &Event, out: &mut Vec<u8>) {
    match event {
        Event::LeaseGranted { lease, registrant, ttl } => message(1, out, |out| {
            id(1, *lease, out);
            message(2, out, |out| of_registrant(registrant, out));
            number(3, *ttl, out);
        }),
        Event::LeaseEnded { lease } => message(2, out, |out| id(1, *lease, out)),
        Event::Registered { key, id: instance, spec, lease } => message(3, out, |out| {
            named(key, instance, out);
            message(3, out, |out| of_spec(spec, out));
            id(4, *lease, out);
        }),
        Event::Removed { key, id, loss } => message(4, out, |out| {
            named(key, id, out);
            number(3, loss.map_or(0, loss_number).into(), out);
        }),
        Event::Held { key, id, held } => message(5, out, |out| {
            named(key, id, out);
            encoding::message::encode(3, &held_to_wire(held), out);
        }),
        Event::Released { key, id } => message(6, out, |out| named(key, id, out)),
        Event::OverrideSet { key, id, over } => {
            encoding::message::encode(7, &override_to_wire(key, id, over), out);
        }
        Event::OverrideCleared { key, id } => message(8, out, |out| named(key, id, out)),
    }
}

fn of_registrant(registrant: &Registrant, out: &mut Vec<u8>) {
    text(1, &registrant.uid, out);
    number(2, registrant.generation, out);
}

fn of_spec(spec: &Spec, out: &mut Vec<u8>) {
    text(1, &spec.address, out);
    number(2, spec.weight.into(), out);
    for (key, value) in spec.tags.iter() {
        message(3, out, |out| {
            text(1, key, out);
            text(2, value, out);
        });
    }
    text(4, &spec.region, out);
    text(5, &spec.zone, out);
    number(6, status_number(spec.status).into(), out);
}

/// The first two fields of whatever is about an instance.
fn named(key: &ServiceKey, id: &InstanceId, out: &mut Vec<u8>) {
    message(1, out, |out| {
        text(1, &key.namespace, out);
        text(2, &key.service, out);
    });
    text(2, id, out);
}

fn id(field: u32, lease: LeaseId, out: &mut Vec<u8>) {
    bytes(field, &lease.0, out);
}

/// A field that is left out where it is empty.
fn text(field: u32, text: &str, out: &mut Vec<u8>) {
    if !text.is_empty() {
        bytes(field, text.as_bytes(), out);
    }
}

fn bytes(field: u32, bytes: &[u8], out: &mut Vec<u8>) {
    tag(field, WireType::LengthDelimited, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// A field that is left out where it is 0.
fn number(field: u32, number: u64, out: &mut Vec<u8>) {
    if number != 0 {
        tag(field, WireType::Varint, out);
        varint(number, out);
    }
}

/// A message within another. Its length stands before it: a byte is left for it, which nearly always is enough, and what is longer
/// is moved.
fn message(field: u32, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    tag(field, WireType::LengthDelimited, out);
    let at = out.len();
    out.push(0);
    fill(out);
    let length = (out.len() - at - 1) as u64;
    let more = encoded_len_varint(length) - 1;
    if more == 0 {
        out[at] = length.to_le_bytes()[0];
        return;
    }
    let end = out.len();
    out.resize(end + more, 0);
    out.copy_within(at + 1..end, at + 1 + more);
    encoding::encode_varint(length, &mut &mut out[at..=at + more]);
}

fn tag(field: u32, kind: WireType, out: &mut Vec<u8>) {
    varint(u64::from(field << 3 | kind as u32), out);
}

/// As prost does it, but without a call for each byte, of which most numbers have one.
fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};
    use prost::Message as _;

    use super::*;
    use crate::store::{
        record::{key_to_wire, registrant_to_wire, removed_to_wire, spec_to_wire},
        samples, wire,
    };

    fn by_message(previous: Revision, records: &[Record]) -> Vec<u8> {
        let records = (previous + 1..).zip(records).map(|(revision, record)| wire::Record {
            revision,
            wall: record.wall,
            cause: cause_number(record.cause),
            actor: record.actor.to_string(),
            events: record.events.iter().map(event_to_wire).collect(),
        });
        let records: Vec<_> = records.collect();
        let last = previous + records.len() as Revision;
        wire::Group { previous, records, last }.encode_to_vec()
    }

    fn event_to_wire(event: &Event) -> wire::Event {
        use wire::event::Kind;
        let named = |key: &ServiceKey, id: &InstanceId| wire::Named {
            key: Some(key_to_wire(key)),
            id: id.to_string(),
        };
        let kind = match event {
            Event::LeaseGranted { lease, registrant, ttl } => Kind::LeaseGranted(wire::Lease {
                id: lease.0.to_vec(),
                registrant: Some(registrant_to_wire(registrant)),
                ttl: *ttl,
                lost: Vec::new(),
            }),
            Event::LeaseEnded { lease } => Kind::LeaseEnded(wire::LeaseEnded { id: lease.0.to_vec() }),
            Event::Registered { key, id, spec, lease } => Kind::Registered(wire::Instance {
                key: Some(key_to_wire(key)),
                id: id.to_string(),
                spec: Some(spec_to_wire(spec)),
                lease: lease.0.to_vec(),
                ..wire::Instance::default()
            }),
            Event::Removed { key, id, loss } => Kind::Removed(removed_to_wire(key, id, *loss)),
            Event::Held { key, id, held } => Kind::Held(wire::HeldInstance {
                key: Some(key_to_wire(key)),
                id: id.to_string(),
                held: Some(held_to_wire(held)),
            }),
            Event::Released { key, id } => Kind::Released(named(key, id)),
            Event::OverrideSet { key, id, over } => Kind::OverrideSet(override_to_wire(key, id, over)),
            Event::OverrideCleared { key, id } => Kind::OverrideCleared(named(key, id)),
        };
        wire::Event { kind: Some(kind) }
    }

    proptest! {
        #[test]
        fn a_group_is_the_message(
            previous in prop_oneof![0..3_u64, any::<u32>().prop_map(u64::from)],
            records in collection::vec(samples::any_record(), 0..6),
        ) {
            let mut out = b"before".to_vec();
            encode_group(&mut out, previous, &records);
            prop_assert_eq!(&out[6..], by_message(previous, &records));
        }
    }

    #[test]
    fn long_ones_are_the_message_too() {
        let records: Vec<_> = (0..400).map(samples::record).collect();
        let all = records.iter().flat_map(|record| record.events.clone()).collect();
        let one = Record { events: all, ..records[0].clone() };
        let mut out = Vec::new();
        encode_group(&mut out, 9, &[one.clone(), one.clone()]);
        assert_eq!(out, by_message(9, &[one.clone(), one]));
    }
}
