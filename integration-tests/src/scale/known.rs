//! What a watcher knows: a view put together from the bytes that it was handed, by the protocol's rules.
//!
//! Watchers that know the same and are handed the same bytes know the same afterwards. So the views are persistent maps that
//! are shared, and each change is worked out once for all who stand in the same place: see [`Pool`].

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    task::{Wake, Waker},
};

use prost::Message;
use registry_proto::{digest, v1};
use registry_server::{core::Service, hub::Step};

use super::Untrue;

/// The instances of a view: id, incarnation, and what each adds to the digest.
type Items = imbl::OrdMap<Arc<str>, (u64, u64)>;

/// A view, as far as its watchers were told.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Names this state of a view among all.
    version: u64,
    /// Told everything up to here.
    pub(super) revision: u64,
    items: Items,
    digest: u64,
    /// A change of which parts are missing.
    partial: Option<Partial>,
}

#[derive(Clone, Debug)]
struct Partial {
    revision: u64,
    next: u32,
    items: Items,
    digest: u64,
}

/// Works out what watchers know, once for all that are alike.
#[derive(Debug, Default)]
pub(super) struct Pool {
    versions: u64,
    /// By what was known and by where the bytes are, while these are held.
    made: HashMap<(u64, usize), Arc<Known>>,
}

impl Pool {
    /// What a watcher knows after a step. The steps must be held until [`Self::forget`].
    pub(super) fn after(&mut self, known: &Known, step: &Step) -> Result<Arc<Known>, Untrue> {
        let bytes = step.part.as_message();
        // Only compared, for as long as the bytes are there.
        let place = (known.version, bytes.as_ptr().addr());
        if let Some(made) = self.made.get(&place) {
            return Ok(Arc::clone(made));
        }
        let change = v1::Change::decode(bytes).map_err(|error| Untrue(format!("no change: {error}")))?;
        self.versions += 1;
        let made = Arc::new(known.with(&change, self.versions)?);
        self.made.insert(place, Arc::clone(&made));
        Ok(made)
    }

    /// The steps are let go of.
    pub(super) fn forget(&mut self) {
        self.made.clear();
    }
}

impl Known {
    /// With one more part of a change, if the protocol allows it here.
    fn with(&self, change: &v1::Change, version: u64) -> Result<Self, Untrue> {
        let broken = |promise: &str| {
            let (service, part) = (change.key.clone().unwrap_or_default().service, change.part);
            Err(Untrue(format!(
                "{promise}: part {part} of {service} from {} to {} at {}",
                change.previous_revision, change.revision, self.revision
            )))
        };
        let snapshot = change.kind == i32::from(v1::ChangeKind::Snapshot);
        let (mut items, mut sum) = match &self.partial {
            _ if change.part == 0 && snapshot => (Items::new(), 0),
            _ if change.part == 0 => {
                let Self { revision, .. } = self;
                if !(change.previous_revision..change.revision).contains(revision) {
                    return broken("W2");
                }
                (self.items.clone(), self.digest)
            }
            Some(partial) if (partial.revision, partial.next) == (change.revision, change.part) => {
                (partial.items.clone(), partial.digest)
            }
            _ => return broken("W4"),
        };
        for removed in &change.removed {
            let gone = items.get(removed.id.as_str()).copied();
            // A newer incarnation stays.
            if let Some((_, of)) = gone.filter(|(created, _)| *created <= removed.create_revision) {
                items.remove(removed.id.as_str());
                sum = sum.wrapping_sub(of);
            }
        }
        for item in change.all.iter().chain(&change.added).chain(&change.updated) {
            let of = digest::of(&item.id, item.create_revision, item.mod_revision);
            let before = items.insert(item.id.as_str().into(), (item.create_revision, of));
            sum = sum.wrapping_add(of).wrapping_sub(before.map_or(0, |(_, before)| before));
        }
        if change.part < change.last_part {
            let partial = Partial { revision: change.revision, next: change.part + 1, items, digest: sum };
            return Ok(Self { version, partial: Some(partial), ..self.clone() });
        }
        if sum != change.digest {
            return broken("W8");
        }
        Ok(Self { version, revision: change.revision, items, digest: sum, partial: None })
    }

    /// Whether this is the truth about a service.
    pub(super) fn is_true(&self, service: &Service) -> bool {
        let known = (self.partial.is_none(), self.items.len(), self.digest);
        // A snapshot may be of a revision after the service's last.
        self.revision >= service.last_change && known == (true, service.instances.len(), service.digest)
    }
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} instances of digest {} at {}", self.items.len(), self.digest, self.revision)
    }
}

/// Who was woken, in the order of it: what a runtime's queue of ready tasks is.
#[derive(Debug, Default)]
pub(super) struct Ready {
    woken: Mutex<Vec<u32>>,
}

impl Ready {
    /// Those who were woken since the last time, in exchange for an empty list.
    pub(super) fn exchange(&self, list: &mut Vec<u32>) {
        std::mem::swap(&mut *self.woken.lock().unwrap_or_else(PoisonError::into_inner), list);
    }

    /// What wakes a watcher.
    pub(super) fn waker(self: &Arc<Self>, watcher: u32) -> Waker {
        Waker::from(Arc::new(Task { watcher, ready: Arc::clone(self) }))
    }
}

struct Task {
    watcher: u32,
    ready: Arc<Ready>,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.woken.lock().unwrap_or_else(PoisonError::into_inner).push(self.watcher);
    }
}
