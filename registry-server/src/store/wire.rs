//! The messages of the store's format. Field numbers are settled: add, never change or reuse.
//!
//! Not the protocol's messages on purpose: what goes over the wire may change where what is on disks may not.
//! Times are milliseconds since the Unix epoch unless said otherwise.

use std::collections::BTreeMap;

/// A frame of a log.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Group {
    /// The last revision before this group.
    #[prost(uint64, tag = "1")]
    pub(super) previous: u64,
    #[prost(message, repeated, tag = "2")]
    pub(super) records: Vec<Record>,
    /// The revision of the last record; `previous` if there is none.
    #[prost(uint64, tag = "3")]
    pub(super) last: u64,
}

/// A [`Group`] without its records.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct GroupHead {
    #[prost(uint64, tag = "1")]
    pub(super) previous: u64,
    #[prost(uint64, tag = "3")]
    pub(super) last: u64,
}

/// A [`Group`] of which only the walls are wanted.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct GroupWalls {
    #[prost(message, repeated, tag = "2")]
    pub(super) records: Vec<RecordWall>,
}

/// A [`Record`] without anything else.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct RecordWall {
    #[prost(uint64, tag = "2")]
    pub(super) wall: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Record {
    #[prost(uint64, tag = "1")]
    pub(super) revision: u64,
    #[prost(uint64, tag = "2")]
    pub(super) wall: u64,
    #[prost(uint32, tag = "3")]
    pub(super) cause: u32,
    #[prost(string, tag = "4")]
    pub(super) actor: String,
    #[prost(message, repeated, tag = "5")]
    pub(super) events: Vec<Event>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Event {
    #[prost(oneof = "event::Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
    pub(super) kind: Option<event::Kind>,
}

pub(super) mod event {
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    pub(in super::super) enum Kind {
        /// `lost` is empty.
        #[prost(message, tag = "1")]
        LeaseGranted(super::Lease),
        #[prost(message, tag = "2")]
        LeaseEnded(super::LeaseEnded),
        /// Only `key`, `id`, `spec` and `lease`.
        #[prost(message, tag = "3")]
        Registered(super::Instance),
        #[prost(message, tag = "4")]
        Removed(super::Removed),
        #[prost(message, tag = "5")]
        Held(super::HeldInstance),
        #[prost(message, tag = "6")]
        Released(super::Named),
        #[prost(message, tag = "7")]
        OverrideSet(super::Override),
        #[prost(message, tag = "8")]
        OverrideCleared(super::Named),
    }
}

/// A frame of a base. The footer is alone in the last one.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Part {
    #[prost(message, repeated, tag = "1")]
    pub(super) services: Vec<Service>,
    #[prost(message, repeated, tag = "2")]
    pub(super) instances: Vec<Instance>,
    #[prost(message, repeated, tag = "3")]
    pub(super) leases: Vec<Lease>,
    #[prost(message, repeated, tag = "4")]
    pub(super) overrides: Vec<Override>,
    #[prost(message, optional, tag = "15")]
    pub(super) footer: Option<Footer>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Footer {
    #[prost(uint64, tag = "1")]
    pub(super) revision: u64,
    #[prost(uint64, tag = "2")]
    pub(super) forgotten_through: u64,
    #[prost(uint64, tag = "3")]
    pub(super) services: u64,
    #[prost(uint64, tag = "4")]
    pub(super) instances: u64,
    #[prost(uint64, tag = "5")]
    pub(super) leases: u64,
    #[prost(uint64, tag = "6")]
    pub(super) overrides: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Key {
    #[prost(string, tag = "1")]
    pub(super) namespace: String,
    #[prost(string, tag = "2")]
    pub(super) service: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Service {
    #[prost(message, optional, tag = "1")]
    pub(super) key: Option<Key>,
    #[prost(uint64, tag = "2")]
    pub(super) revision: u64,
    #[prost(uint64, tag = "3")]
    pub(super) changed_at: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Instance {
    #[prost(message, optional, tag = "1")]
    pub(super) key: Option<Key>,
    #[prost(string, tag = "2")]
    pub(super) id: String,
    #[prost(message, optional, tag = "3")]
    pub(super) spec: Option<Spec>,
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "4")]
    pub(super) lease: Vec<u8>,
    #[prost(uint64, tag = "5")]
    pub(super) create_revision: u64,
    #[prost(uint64, tag = "6")]
    pub(super) mod_revision: u64,
    #[prost(uint64, tag = "7")]
    pub(super) registered_at: u64,
    #[prost(uint64, tag = "8")]
    pub(super) changed_at: u64,
    #[prost(message, optional, tag = "9")]
    pub(super) held: Option<Held>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Spec {
    #[prost(string, tag = "1")]
    pub(super) address: String,
    #[prost(uint32, tag = "2")]
    pub(super) weight: u32,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(super) tags: BTreeMap<String, String>,
    #[prost(string, tag = "4")]
    pub(super) region: String,
    #[prost(string, tag = "5")]
    pub(super) zone: String,
    /// 1 up, 2 draining, 3 down.
    #[prost(uint32, tag = "6")]
    pub(super) status: u32,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Held {
    #[prost(uint64, tag = "1")]
    pub(super) since: u64,
    #[prost(uint64, tag = "2")]
    pub(super) until: u64,
    #[prost(string, tag = "3")]
    pub(super) reason: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct HeldInstance {
    #[prost(message, optional, tag = "1")]
    pub(super) key: Option<Key>,
    #[prost(string, tag = "2")]
    pub(super) id: String,
    #[prost(message, optional, tag = "3")]
    pub(super) held: Option<Held>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Named {
    #[prost(message, optional, tag = "1")]
    pub(super) key: Option<Key>,
    #[prost(string, tag = "2")]
    pub(super) id: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Removed {
    #[prost(message, optional, tag = "1")]
    pub(super) key: Option<Key>,
    #[prost(string, tag = "2")]
    pub(super) id: String,
    /// 0 none, 1 taken over, 2 deregistered, 3 expired, 4 evicted.
    #[prost(uint32, tag = "3")]
    pub(super) loss: u32,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Registrant {
    #[prost(string, tag = "1")]
    pub(super) uid: String,
    #[prost(uint64, tag = "2")]
    pub(super) generation: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Lease {
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) id: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    pub(super) registrant: Option<Registrant>,
    /// Milliseconds.
    #[prost(uint64, tag = "3")]
    pub(super) ttl: u64,
    #[prost(message, repeated, tag = "4")]
    pub(super) lost: Vec<Removed>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct LeaseEnded {
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) id: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Override {
    #[prost(message, optional, tag = "1")]
    pub(super) key: Option<Key>,
    #[prost(string, tag = "2")]
    pub(super) id: String,
    #[prost(uint32, optional, tag = "3")]
    pub(super) weight: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    pub(super) status: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    pub(super) expires_at: Option<u64>,
    #[prost(uint64, tag = "6")]
    pub(super) set_at: u64,
    #[prost(uint64, tag = "7")]
    pub(super) revision: u64,
    #[prost(string, tag = "8")]
    pub(super) actor: String,
    #[prost(string, tag = "9")]
    pub(super) reason: String,
}
