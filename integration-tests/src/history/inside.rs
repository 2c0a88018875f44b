//! What is known of the registry from the inside: what was asked of it and when, what it committed, when it ran, stalled
//! and failed, and how much it kept.
//!
//! Only floors that hold the registry in their hands can record this; validators judge by it where it is there, and by
//! what watchers and writers saw where it is not. Times are in milliseconds of simulated time, and order is by stamps.

use std::sync::Arc;

use registry_server::core::Cause;

use super::{Item, Stamp};

/// Simulated time in milliseconds, from an arbitrary start that all of a history shares.
pub type Millis = u64;

/// A lease's id.
pub type Lease = u128;

/// A service and an instance of it.
pub type Name = (Arc<str>, Arc<str>);

/// One revision, as the registry committed it.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The history.
    pub epoch: Arc<str>,
    /// The revision.
    pub revision: u64,
    /// When it was durable.
    pub stamp: Stamp,
    /// Which run of the server committed it. 0: none knew that it had; the next one found it.
    pub run: u32,
    /// The time that its decision bears.
    pub decided: Millis,
    /// When it was durable.
    pub at: Millis,
    /// Why it came to be.
    pub cause: Cause,
    /// Who it says was behind it.
    pub actor: Arc<str>,
    /// Leases opened, or changed in generation or TTL.
    pub granted: Vec<Granted>,
    /// Leases ended.
    pub ended: Vec<Lease>,
    /// Overrides set (`Some`) and cleared.
    pub overrides: Vec<(Name, Option<Laid>)>,
    /// Instances, each once.
    pub changes: Vec<Changed>,
}

/// A lease as it was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The lease.
    pub lease: Lease,
    /// Its registrant's name.
    pub uid: Arc<str>,
    /// Its registrant's generation.
    pub generation: u64,
    /// How long it lives without a renewal.
    pub ttl: Millis,
}

/// An override.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Laid {
    /// In place of the weight.
    pub weight: Option<u32>,
    /// In place of the status.
    pub status: Option<i32>,
    /// When it ends by itself.
    pub until: Option<Millis>,
}

/// What a revision did to one instance.
#[derive(Clone, Debug)]
pub struct Changed {
    /// Which.
    pub name: Name,
    /// Before; `None` if it was not there.
    pub before: Option<Placed>,
    /// After; `None` if it left.
    pub after: Option<Placed>,
}

/// An instance and what carries it.
#[derive(Clone, Debug)]
pub struct Placed {
    /// As everyone is to see it.
    pub item: Arc<Item>,
    /// The lease.
    pub lease: Lease,
}

/// Something asked of the registry.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Names it: registrations leave it in [`super::VALUE_TAG`], all others name themselves `op<number>`.
    pub number: u64,
    /// What.
    pub ask: Ask,
    /// Which run of the server was asked.
    pub run: u32,
    /// When it was sent.
    pub sent: (Stamp, Millis),
    /// When the answer was there, and what it was. `None`: it never came.
    pub answer: Option<(Stamp, Millis, Answer)>,
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Upsert a batch under a lease.
    Register {
        /// The lease, its registrant and TTL.
        grant: Granted,
        /// The instances.
        names: Vec<Name>,
    },
    /// Remove a lease (no names), or instances.
    Deregister {
        /// The lease that must carry the instances, or goes.
        lease: Option<Lease>,
        /// The instances, with the incarnation expected; 0: any.
        names: Vec<(Name, u64)>,
    },
    /// Set or clear an override.
    Override {
        /// The instance.
        name: Name,
        /// What to lay over it.
        set: Option<Laid>,
    },
    /// Release or evict held instances; no ids: all of the service.
    Resolve {
        /// The service.
        service: Arc<str>,
        /// The instances.
        ids: Vec<Arc<str>>,
        /// Evict.
        evict: bool,
    },
    /// Renew a lease.
    Renew(Lease),
}

/// How the registry answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A write was done: reads show this revision.
    Done(u64),
    /// A lease was renewed, or renewed with losses told.
    Renewed,
    /// A renewal's exception that is no renewal.
    Exception(String),
    /// By the rules; it changed nothing.
    Refused,
    /// The store failed.
    StoreFailed,
    /// The server stopped.
    Stopped,
}

/// A run of the server, from start to stop, crash or power loss.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// From 1.
    pub number: u32,
    /// The history it found or began.
    pub epoch: Arc<str>,
    /// When it began.
    pub began: (Stamp, Millis),
    /// The revision of the state that it began from; of records before that it knows nothing.
    pub base: u64,
    /// The revisions of the records that it found beyond the base, in order.
    pub found: Vec<u64>,
    /// When its store failed.
    pub failed: Option<(Stamp, Millis)>,
    /// How often the store was asked to write after it had failed.
    pub asked_after_failure: u64,
    /// Whether its health said so in the end.
    pub said_failed: bool,
}

/// The server could not run, from and until.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// The last moment at which it ran.
    pub from: Millis,
    /// When it ran again.
    pub until: Millis,
}

/// What the hub kept at some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauge {
    /// Watchers of views.
    pub watchers: usize,
    /// Views.
    pub views: usize,
    /// Entries of the recent log.
    pub log_entries: usize,
    /// Bytes of the encoded instances in them.
    pub log_bytes: usize,
    /// The most entries of it that are indexed for one view.
    pub indexed: usize,
    /// The most snapshots kept of one view.
    pub snapshots: usize,
    /// The most deltas kept of one view.
    pub deltas: usize,
    /// Marks waiting in the streams' signals.
    pub marks: usize,
}

/// What the floor set, that promises are judged by. What is `None` is not judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Within which renewals are answered, whatever the disk does, while the server runs.
    pub renewal: Option<Millis>,
    /// Within which an unrenewed lease's instances go after its deadline: 100 ms and what the disk may take.
    pub expiry: Option<Millis>,
    /// After which held instances go. `Some`: the guard is on, with a half of four or more.
    pub hold: Option<Millis>,
    /// Bounds of the recent log: entries and bytes. Nothing goes by age.
    pub log: Option<(usize, usize)>,
    /// So few empty services are remembered that cursors on them may be outdated.
    pub forgets: bool,
}
