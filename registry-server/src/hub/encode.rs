//! Changes as bytes: encoded once, in parts, shared by everyone who is sent them.
//!
//! A part is the encoded field `change = 2` of a `SubscribeResponse` (and of a `DiscoverResponse`, which has it under
//! the same number): whatever a stream adds of its own stands before it, since concatenated protobuf is legal protobuf
//! and a repeated embedded message is merged. `Watch` sends the part without the field's own tag and length.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{self, WireType};
use registry_proto::{digest, v1};

use super::body;
use crate::core::{Held, Instance, Override, Revision, ServiceKey, Status};

/// Where a part ends, unless a single instance is larger. Well under the 1 MiB that a message may have.
pub const MAX_PART_BYTES: usize = 128 << 10;
/// So that a page of a reading stays under 1 MiB.
pub(super) const PARTS_PER_PAGE: usize = 7;

const CHANGE_FIELD: u32 = 2;
const ALL: u32 = 6;
const ADDED: u32 = 7;
const UPDATED: u32 = 8;
const REMOVED: u32 = 9;
const PART: u32 = 14;
const LAST_PART: u32 = 15;

/// An instance as it is published: its words for selectors, its bytes for watchers.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) instance: Arc<Instance>,
    /// Length and content of a `v1::Instance`, to stand behind any field's tag.
    pub(super) body: Box<[u8]>,
}

impl Entry {
    pub(super) fn new(instance: &Arc<Instance>) -> Arc<Self> {
        Arc::new(Self { instance: Arc::clone(instance), body: body::of(instance) })
    }

    /// What it adds to its view's digest. Computed when it is asked for, and not kept: there is an entry for every instance.
    pub(super) fn digest(&self) -> u64 {
        let Instance { id, create_revision, mod_revision, .. } = &*self.instance;
        digest::of(id, *create_revision, *mod_revision)
    }
}

/// One message's share of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    framed: Bytes,
    body_at: usize,
}

impl Part {
    /// As the field `change` of a larger message.
    pub fn as_field(&self) -> Bytes {
        self.framed.clone()
    }

    /// The same, of one's own copy.
    pub fn into_field(self) -> Bytes {
        self.framed
    }

    /// As a `Change` by itself.
    pub fn as_message(&self) -> Bytes {
        self.framed.slice(self.body_at..)
    }
}

/// The fields of a change that every part carries, and those that the last one carries.
#[derive(Clone, Debug)]
pub(super) struct Header<'a> {
    pub(super) key: &'a ServiceKey,
    pub(super) kind: v1::ChangeKind,
    pub(super) epoch: &'a str,
    pub(super) revision: Revision,
    pub(super) previous_revision: Revision,
    pub(super) digest: u64,
    pub(super) service_instances: usize,
    pub(super) exists: bool,
}

/// Cuts a change into parts as it is written.
pub(super) struct PartWriter<'a> {
    header: Header<'a>,
    current: BytesMut,
    finished: Vec<BytesMut>,
}

impl<'a> PartWriter<'a> {
    pub(super) fn new(header: Header<'a>) -> Self {
        Self { header, current: BytesMut::new(), finished: Vec::new() }
    }

    pub(super) fn all(&mut self, entry: &Entry) {
        self.instance(ALL, entry);
    }

    pub(super) fn added(&mut self, entry: &Entry) {
        self.instance(ADDED, entry);
    }

    pub(super) fn updated(&mut self, entry: &Entry) {
        self.instance(UPDATED, entry);
    }

    pub(super) fn removed(&mut self, entry: &Entry) {
        let removed = v1::Removed {
            id: entry.instance.id.to_string(),
            create_revision: entry.instance.create_revision,
        };
        self.make_room(removed.encoded_len() + 8);
        encoding::message::encode(REMOVED, &removed, &mut self.current);
    }

    pub(super) fn finish(mut self) -> Vec<Part> {
        self.finished.push(std::mem::take(&mut self.current));
        let last = self.finished.len() - 1;
        let header = &self.header;
        let common = v1::Change {
            key: Some(wire_key(header.key)),
            kind: header.kind.into(),
            epoch: header.epoch.to_owned(),
            revision: header.revision,
            previous_revision: header.previous_revision,
            service_instances: u32::try_from(header.service_instances).unwrap_or(u32::MAX),
            exists: header.exists,
            ..v1::Change::default()
        }
        .encode_to_vec();
        let finished = std::mem::take(&mut self.finished);
        finished
            .into_iter()
            .enumerate()
            .map(|(index, items)| frame(&common, &items, index, last, header.digest))
            .collect()
    }

    fn instance(&mut self, field: u32, entry: &Entry) {
        self.make_room(entry.body.len() + 8);
        encoding::encode_key(field, WireType::LengthDelimited, &mut self.current);
        self.current.put_slice(&entry.body);
    }

    fn make_room(&mut self, bytes: usize) {
        if !self.current.is_empty() && self.current.len() + bytes > MAX_PART_BYTES {
            self.finished.push(std::mem::take(&mut self.current));
        }
    }
}

fn frame(common: &[u8], items: &[u8], index: usize, last: usize, digest: u64) -> Part {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let mut tail = BytesMut::new();
    if index > 0 {
        encoding::uint32::encode(PART, &number(index), &mut tail);
    }
    if last > 0 {
        encoding::uint32::encode(LAST_PART, &number(last), &mut tail);
    }
    if index == last && digest != 0 {
        encoding::fixed64::encode(10, &digest, &mut tail);
    }
    let length = common.len() + items.len() + tail.len();
    let mut framed = BytesMut::with_capacity(length + 8);
    encoding::encode_key(CHANGE_FIELD, WireType::LengthDelimited, &mut framed);
    encoding::encode_varint(length as u64, &mut framed);
    let body_at = framed.len();
    framed.put_slice(common);
    framed.put_slice(items);
    framed.put_slice(&tail);
    Part { framed: framed.freeze(), body_at }
}

pub(crate) fn wire_key(key: &ServiceKey) -> v1::ServiceKey {
    v1::ServiceKey { namespace: String::from(&*key.namespace), service: String::from(&*key.service) }
}

pub(crate) fn wire_status(status: Status) -> v1::InstanceStatus {
    match status {
        Status::Up => v1::InstanceStatus::Up,
        Status::Draining => v1::InstanceStatus::Draining,
        Status::Down => v1::InstanceStatus::Down,
    }
}

/// Milliseconds since the Unix epoch as the wire has them.
pub(crate) fn wire_time(wall: u64) -> prost_types::Timestamp {
    let nanos = i32::try_from(wall % 1000 * 1_000_000).unwrap_or(0);
    prost_types::Timestamp { seconds: i64::try_from(wall / 1000).unwrap_or(i64::MAX), nanos }
}

pub(crate) fn wire_override(over: &Override) -> v1::Override {
    v1::Override {
        weight: over.weight.map(u32::from),
        status: over.status.map_or(v1::InstanceStatus::Unspecified, wire_status).into(),
        expires_in: None,
        expires_at: over.expires_at.map(wire_time),
        set_at: Some(wire_time(over.set_at)),
        revision: over.revision,
        actor: over.actor.to_string(),
        reason: over.reason.to_string(),
    }
}

pub(super) fn wire_held(held: &Held) -> v1::Held {
    v1::Held {
        since: Some(wire_time(held.since)),
        until: Some(wire_time(held.until)),
        reason: held.reason.to_string(),
    }
}

pub(crate) fn wire_instance(instance: &Instance) -> v1::Instance {
    let spec = &instance.spec;
    let locality = (!spec.region.is_empty() || !spec.zone.is_empty())
        .then(|| v1::Locality { region: spec.region.to_string(), zone: spec.zone.to_string() });
    v1::Instance {
        id: instance.id.to_string(),
        address: spec.address.to_string(),
        weight: Some(u32::from(instance.weight())),
        tags: spec.tags.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        locality,
        status: wire_status(instance.status()).into(),
        create_revision: instance.create_revision,
        mod_revision: instance.mod_revision,
        registered_at: Some(wire_time(instance.registered_at)),
        changed_at: Some(wire_time(instance.changed_at)),
        held: instance.held.as_deref().map(wire_held),
        r#override: instance.over.as_deref().map(wire_override),
    }
}
