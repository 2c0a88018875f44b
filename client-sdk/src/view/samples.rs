//! Messages for tests, by hand and by proptest.

use proptest::prelude::*;
use registry_proto::{digest, v1};

/// An instance with an address like all others.
pub(crate) fn instance(id: &str, weight: u32, create_revision: u64, mod_revision: u64) -> v1::Instance {
    v1::Instance {
        id: id.into(),
        address: "127.0.0.1:80".into(),
        weight: Some(weight),
        create_revision,
        mod_revision,
        ..v1::Instance::default()
    }
}

/// The digest of these.
pub(crate) fn wire_digest(all: &[v1::Instance]) -> u64 {
    all.iter().fold(0, |sum, i| sum.wrapping_add(digest::of(&i.id, i.create_revision, i.mod_revision)))
}

/// Any change of a small world, some with a true digest: lists, parts and numbers fit together or do not.
pub(crate) fn any_change() -> impl Strategy<Value = v1::Change> {
    let id = || prop_oneof![Just(String::new()), "[a-c]"];
    let text = prop_oneof![8 => Just(0_usize), 1 => Just(700), 1 => Just(9_000)];
    let instance = (id(), prop_oneof![Just("a:1".to_owned()), Just("?".to_owned())], 0..4u64, 0..4u64, text)
        .prop_map(|(id, address, c, m, text)| {
            let tags = [("k".to_owned(), "v".repeat(text))].into();
            v1::Instance { address, tags, ..instance(&id, 1, c, m) }
        });
    let list = || prop::collection::vec(instance.clone(), 0..3);
    let removed = (id(), 0..4u64).prop_map(|(id, create_revision)| v1::Removed { id, create_revision });
    let number = || prop_oneof![0..6u64, Just(u64::MAX)];
    let part = || prop_oneof![0..3u32, Just(u32::MAX)];
    (
        (-1..5i32, "[ef]", number(), number()),
        (list(), list(), list(), prop::collection::vec(removed, 0..3)),
        (any::<bool>(), part(), part(), 0..2u32),
    )
        .prop_map(
            |((kind, epoch, revision, previous_revision), lists, (honest, part, last_part, count))| {
                let (all, added, updated, removed) = lists;
                v1::Change {
                    kind,
                    epoch,
                    revision,
                    previous_revision,
                    digest: if honest { wire_digest(&all) } else { 1 },
                    all,
                    added,
                    updated,
                    removed,
                    part,
                    last_part,
                    service_instances: count,
                    ..v1::Change::default()
                }
            },
        )
}
