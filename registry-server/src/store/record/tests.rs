//! The format of records: it round-trips, it stays as it is, and no bytes make it panic.

use proptest::{collection, prelude::*};
use prost::Message;

use super::{super::samples, *};
use crate::core::{Cause, Status};

fn decode(payload: &[u8]) -> Result<Group, DecodeError> {
    decode_group(payload, 0, &mut Interner::default())
}

proptest! {
    #[test]
    fn records_round_trip(previous in 0..u64::MAX / 2, records in collection::vec(samples::any_record(), 0..4)) {
        let mut payload = Vec::new();
        encode_group(&mut payload, previous, &records);
        let group = decode(&payload).unwrap();
        prop_assert_eq!((group.previous, group.last), (previous, previous + records.len() as u64));
        prop_assert!(records.is_empty() || decode_group(&payload, group.last - 1, &mut Interner::default()).unwrap() == group);
        let unwanted = decode_group(&payload, group.last, &mut Interner::default()).unwrap();
        prop_assert_eq!((unwanted.previous, unwanted.last, unwanted.records.len()), (previous, group.last, 0));
        let revisions: Vec<_> = group.records.iter().map(|committed| committed.revision).collect();
        prop_assert_eq!(revisions, (previous + 1..).take(records.len()).collect::<Vec<_>>());
        prop_assert_eq!(group.records.into_iter().map(|committed| committed.record).collect::<Vec<_>>(), records);
    }

    #[test]
    fn bases_round_trip(base in samples::any_base()) {
        let mut payloads = Vec::new();
        encode_base(&base, |part| { payloads.push(part.encode_to_vec()); Ok::<_, ()>(()) }).unwrap();
        let (mut read, mut strings, mut footer) = (Base::default(), Interner::default(), None);
        for payload in &payloads {
            prop_assert_eq!(footer, None);
            if let Part::Footer(counts) = decode_part(payload, &mut read, &mut strings).unwrap() {
                footer = Some(counts);
            }
        }
        prop_assert_eq!(footer, Some(Counts::of(&base)));
        prop_assert_eq!(read, base);
    }

    #[test]
    fn no_bytes_panic(bytes in collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
        let _ = decode_part(&bytes, &mut Base::default(), &mut Interner::default());
    }

    #[test]
    fn no_damaged_message_panics(record in samples::any_record(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut payload = Vec::new();
        encode_group(&mut payload, 0, &[record]);
        let at = at.index(payload.len());
        payload[at] = byte;
        let _ = decode(&payload);
    }
}

fn one_event(event: wire::Event) -> Vec<u8> {
    let record = wire::Record { revision: 1, wall: 1, cause: 1, actor: String::new(), events: vec![event] };
    wire::Group { previous: 0, records: vec![record], last: 1 }.encode_to_vec()
}

#[test]
fn an_unknown_kind_of_event_is_refused_as_newer() {
    // What prost leaves of a kind that it does not know.
    let payload = one_event(wire::Event::default());
    assert!(matches!(decode(&payload), Err(DecodeError::Newer(_))));
    let unknown_cause =
        wire::Record { revision: 1, wall: 1, cause: 77, actor: String::new(), events: vec![] };
    let payload = wire::Group { previous: 0, records: vec![unknown_cause], last: 1 }.encode_to_vec();
    assert_eq!(decode(&payload), Err(DecodeError::Newer("the cause number 77".to_owned())));
}

#[test]
fn an_unknown_field_is_passed_over() {
    let mut payload = Vec::new();
    encode_group(&mut payload, 4, &[samples::record(1)]);
    // Field 100 of the group, a varint: tag (100 << 3 | 0) = 800.
    payload.extend_from_slice(&[0xA0, 0x06, 0x01]);
    assert_eq!(decode(&payload).unwrap().records.len(), 1);
}

#[test]
fn what_no_version_writes_is_malformed() {
    use wire::event::Kind;
    let no_key = wire::Named { key: None, id: "a".to_owned() };
    let short_lease = wire::LeaseEnded { id: vec![1; 15] };
    for kind in [Kind::Released(no_key), Kind::LeaseEnded(short_lease)] {
        let error = decode(&one_event(wire::Event { kind: Some(kind) })).unwrap_err();
        assert!(matches!(error, DecodeError::Malformed(_)), "{error:?}");
    }
    let mut payload = Vec::new();
    encode_group(&mut payload, 4, &[samples::record(1)]);
    let mut group = wire::Group::decode(&payload[..]).unwrap();
    group.previous = 5;
    assert!(
        matches!(decode(&group.encode_to_vec()), Err(DecodeError::Malformed(_))),
        "a revision that does not grow"
    );
}

#[test]
fn equal_strings_are_loaded_once() {
    let mut payload = Vec::new();
    encode_group(&mut payload, 0, &[samples::record(1), samples::record(4)]);
    let group = decode(&payload).unwrap();
    let keys: Vec<_> = group
        .records
        .iter()
        .flat_map(|committed| &committed.record.events)
        .map(|event| match event {
            Event::Registered { key, .. } => key.service.clone(),
            _ => unreachable!("the samples only register"),
        })
        .collect();
    assert!(Arc::ptr_eq(&keys[0], &keys[1]));
}

/// One of everything.
fn everything() -> (Vec<Record>, Base) {
    let key = ServiceKey { namespace: "default".into(), service: "greeter".into() };
    let id: InstanceId = "a".into();
    let lease = LeaseId([7; 16]);
    let registrant = Registrant { uid: "u".into(), generation: 2 };
    let spec = Arc::new(Spec {
        address: "1.2.3.4:5".into(),
        weight: 9,
        tags: [("k".into(), "v".into())].into(),
        region: "r".into(),
        zone: "z".into(),
        status: Status::Draining,
    });
    let held = Held { since: 1, until: 2, reason: "why".into() };
    let over = Override {
        weight: Some(0),
        status: Some(Status::Down),
        expires_at: Some(3),
        set_at: 4,
        revision: 5,
        actor: "ops".into(),
        reason: "because".into(),
    };
    let events = vec![
        Event::LeaseGranted { lease, registrant: registrant.clone(), ttl: 6 },
        Event::LeaseEnded { lease },
        Event::Registered { key: key.clone(), id: id.clone(), spec: spec.clone(), lease },
        Event::Removed { key: key.clone(), id: id.clone(), loss: Some(Loss::Expired) },
        Event::Held { key: key.clone(), id: id.clone(), held: held.clone() },
        Event::Released { key: key.clone(), id: id.clone() },
        Event::OverrideSet { key: key.clone(), id: id.clone(), over: over.clone() },
        Event::OverrideCleared { key: key.clone(), id: id.clone() },
    ];
    let record = Record { wall: 8, cause: Cause::HoldExpire, actor: "who".into(), events };
    let instance = Instance {
        id: id.clone(),
        spec,
        lease,
        create_revision: 1,
        mod_revision: 2,
        registered_at: 3,
        changed_at: 4,
        held: Some(held.into()),
        over: None,
    };
    let lost = [((key.clone(), id.clone()), Loss::Evicted)].into();
    let kept = Lease { registrant, ttl: 6, instances: crate::core::Carried::default(), lost };
    let base = Base {
        revision: 9,
        forgotten_through: 3,
        services: vec![(key.clone(), 9, 8)],
        instances: vec![(key.clone(), instance)],
        leases: vec![(lease, kept)],
        overrides: vec![(key, id, over)],
    };
    (vec![record], base)
}

#[test]
fn the_bytes_of_the_format_stay_as_they_are() {
    let (records, base) = everything();
    let mut bytes = Vec::new();
    encode_group(&mut bytes, 41, &records);
    assert_eq!(
        (bytes.len(), xxhash_rust::xxh3::xxh3_64(&bytes)),
        (319, 6_170_580_674_257_253_863),
        "records that are on disks read otherwise"
    );
    bytes.clear();
    encode_base(&base, |part| part.encode_length_delimited(&mut bytes)).unwrap();
    assert_eq!(
        (bytes.len(), xxhash_rust::xxh3::xxh3_64(&bytes)),
        (243, 2_809_849_624_423_873_471),
        "bases that are on disks read otherwise"
    );
}
