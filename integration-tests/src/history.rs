//! What was written, answered, read and received: the record that [`crate::validate`] judges.
//!
//! Order is by stamps from one counter, never by a clock: a stamp taken before a call and one taken after its answer say
//! what came before what. Instances are kept once however many watchers were told of them.

mod inside;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use registry_proto::{digest, v1};
use xxhash_rust::xxh3::xxh3_64;

pub use self::inside::{
    Answer, Ask, Asked, Changed, Commit, Gauge, Granted, Laid, Lease, Millis, Name, Placed, Rules, Run, Stall,
};

/// The tag in which writers leave the number of the write, for validators to recognise.
pub const VALUE_TAG: &str = "value";

/// A place in the order of things.
pub type Stamp = u64;

/// A view's instances by id. Clones in O(1), so that every state of a long history can be looked at.
pub type Items = imbl::OrdMap<Arc<str>, Arc<Item>>;

/// An instance as someone was shown it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Item {
    /// Unique in its service.
    pub id: Arc<str>,
    /// The incarnation.
    pub create_revision: u64,
    /// The revision of its last change.
    pub mod_revision: u64,
    /// The number in [`VALUE_TAG`], if there is one.
    pub value: Option<u64>,
    /// The effective weight.
    pub weight: u32,
    /// The effective status.
    pub status: i32,
    /// The tags.
    pub tags: BTreeMap<String, String>,
    /// The zone; empty if it has none.
    pub zone: String,
    /// Why it is held, if it is.
    pub held: Option<String>,
    /// What it adds to the digest, by the protocol's definition.
    pub digest: u64,
    /// A hash of all of its fields.
    pub fingerprint: u64,
}

/// Which instances of a service a view contains, in the protocol's words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Tags that must be equal.
    pub tags: BTreeMap<String, String>,
    /// The zone; empty: any.
    pub zone: String,
    /// The effective statuses; empty: any.
    pub statuses: Vec<i32>,
}

impl Selection {
    /// What a selector asks for.
    pub fn of(selector: &v1::Selector) -> Self {
        Self {
            tags: selector.tags.clone().into_iter().collect(),
            zone: selector.zone.clone(),
            statuses: selector.statuses.clone(),
        }
    }

    /// Whether it is the whole service.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the view contains the instance.
    pub fn takes(&self, item: &Item) -> bool {
        (self.statuses.is_empty() || self.statuses.contains(&item.status))
            && (self.zone.is_empty() || self.zone == item.zone)
            && self.tags.iter().all(|(key, value)| item.tags.get(key) == Some(value))
    }
}

/// A cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The history.
    pub epoch: Arc<str>,
    /// The revision.
    pub revision: u64,
}

/// A snapshot or delta, whole.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Whether it is a snapshot.
    pub snapshot: bool,
    /// The history.
    pub epoch: Arc<str>,
    /// The revision it leads to.
    pub revision: u64,
    /// DELTA: the first revision it applies to.
    pub previous: u64,
    /// SNAPSHOT: why.
    pub reason: v1::ResetReason,
    /// The digest it claims.
    pub digest: u64,
    /// Instances of the service before the selector.
    pub service_instances: u32,
    /// Whether the service was ever registered.
    pub exists: bool,
    /// SNAPSHOT: all. DELTA: added and updated.
    pub put: Vec<Arc<Item>>,
    /// DELTA: what left.
    pub removed: Vec<(Arc<str>, u64)>,
    /// DELTA with `include_all`: the whole view.
    pub all: Vec<Arc<Item>>,
    /// How many parts it came in.
    pub parts: u32,
}

/// One thing that a watcher did or was told.
#[derive(Clone, Debug)]
pub enum Event {
    /// It opened a stream.
    Opened {
        /// From where.
        cursor: Option<Cursor>,
        /// Whether it asked for a snapshot all the same.
        forced: bool,
        /// When.
        at: Stamp,
        /// Which run of the server it asked; 0 if that is not known.
        run: u32,
    },
    /// It was told of a change.
    Told(Told),
    /// It was told that it knows everything up to here.
    Bookmark(Cursor),
    /// Its view was refused or ended.
    Refused(v1::ViewError),
    /// It was asked to go elsewhere.
    GoAway,
}

/// All that one watcher was told of one view, over all its streams.
#[derive(Clone, Debug, Default)]
pub struct WatcherRecord {
    /// For messages.
    pub name: String,
    /// Names the view. Watchers of one name watch the same; the service's name if there is no selector.
    pub view: String,
    /// The service.
    pub service: String,
    /// Which of its instances.
    pub selection: Selection,
    /// Whether it asked for `all` in deltas.
    pub include_all: bool,
    /// What happened.
    pub events: Vec<Event>,
}

/// What a write was to do to each member of its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Register with this value.
    Put(u64),
    /// Deregister.
    Delete,
}

impl Action {
    /// The value that members have afterwards; `None` if they are gone.
    pub fn result(self) -> Option<u64> {
        match self {
            Self::Put(value) => Some(value),
            Self::Delete => None,
        }
    }
}

/// What a write came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was acknowledged.
    Acked {
        /// When the answer was there.
        at: Stamp,
        /// Which run of the server answered.
        run: u32,
        /// The answer's revision.
        revision: u64,
        /// The members' incarnations, if it registered them.
        incarnations: Vec<u64>,
    },
    /// It was refused: it must have changed nothing.
    Refused,
    /// Nobody knows: the answer never came.
    Unknown,
}

/// A write to a batch of instances that is only ever written as a whole, by one writer, one write after the other.
#[derive(Clone, Debug)]
pub struct Write {
    /// The service.
    pub view: String,
    /// The instances.
    pub members: Arc<[String]>,
    /// What it was to do.
    pub action: Action,
    /// When it was sent.
    pub started: Stamp,
    /// What it came to.
    pub outcome: Outcome,
}

/// A whole reading of a service.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// The service.
    pub view: String,
    /// When it was asked for.
    pub started: Stamp,
    /// Which run of the server answered.
    pub run: u32,
    /// The history.
    pub epoch: Arc<str>,
    /// The revision that it shows.
    pub revision: u64,
    /// The digest it claims.
    pub digest: u64,
    /// What it shows.
    pub items: Items,
}

/// A lease and what its registrant did for it.
#[derive(Clone, Debug, Default)]
pub struct LeaseRecord {
    /// The service.
    pub view: String,
    /// The instances under it.
    pub ids: Vec<String>,
    /// Exceptions that its renewals were answered with.
    pub exceptions: Vec<String>,
    /// Whether its registrant stopped renewing it, and the test waited for its end.
    pub abandoned: bool,
}

/// One thing that the one operator of an instance asked of its override. A history has them in the order in which they were
/// asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverrideRecord {
    /// The service.
    pub view: String,
    /// The instance.
    pub id: String,
    /// The weight to set; `None`: to clear it.
    pub set: Option<u32>,
    /// What the operator knew of when it asked: whatever becomes of it comes later.
    pub knows: Cursor,
    /// Where it was done. `None`: it was not answered, so it may have been done at any time since, or may be yet, or never.
    pub answer: Option<Cursor>,
}

/// Leases of one service that ran out within one window.
#[derive(Clone, Debug, Default)]
pub struct MassExpiry {
    /// The service.
    pub view: String,
    /// The instances whose leases ran out.
    pub ids: Vec<String>,
    /// How many instances the service had before.
    pub base: usize,
}

/// Everything that is known of one test's run.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// What watchers were told.
    pub watchers: Vec<WatcherRecord>,
    /// What writers did, each batch's writes in their order.
    pub writes: Vec<Write>,
    /// What was read.
    pub readings: Vec<Reading>,
    /// Leases.
    pub leases: Vec<LeaseRecord>,
    /// Overrides.
    pub overrides: Vec<OverrideRecord>,
    /// Mass expiries.
    pub expiries: Vec<MassExpiry>,
    /// What was asked, renewals included, in the order in which it was sent.
    pub asked: Vec<Asked>,
    /// What the registry committed, in the order of epochs and revisions. Empty if nobody could see that.
    pub commits: Vec<Commit>,
    /// Runs of the server, in order.
    pub runs: Vec<Run>,
    /// When the server could not run.
    pub stalls: Vec<Stall>,
    /// What the hub kept, now and then.
    pub gauges: Vec<Gauge>,
    /// What to judge by.
    pub rules: Rules,
}

/// Gives stamps, and keeps each instance once. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    stamps: Arc<AtomicU64>,
    items: Arc<Mutex<HashMap<u64, Arc<Item>>>>,
}

impl Recorder {
    /// The next place in the order of things.
    pub fn stamp(&self) -> Stamp {
        self.stamps.fetch_add(1, Ordering::SeqCst)
    }

    /// An instance, kept once.
    pub fn item(&self, instance: &v1::Instance) -> Arc<Item> {
        let fingerprint = fingerprint(instance);
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(items.entry(fingerprint).or_insert_with(|| {
            Arc::new(Item {
                id: instance.id.as_str().into(),
                create_revision: instance.create_revision,
                mod_revision: instance.mod_revision,
                value: instance.tags.get(VALUE_TAG).and_then(|value| value.parse().ok()),
                weight: instance.weight(),
                status: instance.status,
                tags: instance.tags.clone().into_iter().collect(),
                zone: instance.locality.as_ref().map(|it| it.zone.clone()).unwrap_or_default(),
                held: instance.held.as_ref().map(|held| held.reason.clone()),
                digest: digest::of(&instance.id, instance.create_revision, instance.mod_revision),
                fingerprint,
            })
        }))
    }
}

/// A hash of every field; a map has no order, so tags are sorted first.
fn fingerprint(instance: &v1::Instance) -> u64 {
    let mut text = String::with_capacity(256);
    let mut add = |part: &str| {
        text.push_str(part);
        text.push('\0');
    };
    add(&instance.id);
    add(&instance.address);
    for number in [
        u64::from(instance.weight.unwrap_or(u32::MAX)),
        u64::from(instance.status.cast_unsigned()),
        instance.create_revision,
        instance.mod_revision,
    ] {
        add(&number.to_string());
    }
    let mut tags: Vec<_> = instance.tags.iter().collect();
    tags.sort_unstable();
    for (key, value) in tags {
        add(key);
        add(value);
    }
    if let Some(locality) = &instance.locality {
        add(&locality.region);
        add(&locality.zone);
    }
    for time in [&instance.registered_at, &instance.changed_at] {
        add(&time.map(|time| format!("{}.{}", time.seconds, time.nanos)).unwrap_or_default());
    }
    if instance.held.is_some() || instance.r#override.is_some() {
        add(&format!("{:?} {:?}", instance.held, instance.r#override));
    }
    xxh3_64(text.as_bytes())
}
