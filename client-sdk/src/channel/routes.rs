//! Where a call may go right now: what the driver publishes and every call reads, without a lock.
//!
//! Keeps C2: [`Routes`] hands out only instances of the newest view that are up, of a weight above 0, and connected. A
//! choice is an instance together with its own connection, never an index that a later list could give another meaning.

use std::{
    collections::HashMap,
    ops::RangeInclusive,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use super::{
    chooser::{AnyPolicy, Chooser},
    connection::{Connection, ConnectionState},
    error::{ChannelError, SharedError},
};
use crate::{
    balance::{Eligible, Pick, PickContext, PickError, Picker},
    model::{Address, Endpoint, Instance, InstanceList, Status},
};

/// One state of the view and of its connections.
pub(super) struct Routes {
    /// Grows with each publication.
    pub(super) version: u64,
    /// The instances of the view in its order, then those that left it and still finish what they have.
    pub(super) entries: Vec<Entry>,
    /// Whether a view is known at all.
    pub(super) discovered: bool,
    /// Why the view may be out of date or is not there.
    pub(super) error: Option<SharedError>,
    /// Over the connected instances that may be chosen; those held only if there are no others. `None`: there are none.
    built: Option<Arc<Built>>,
    /// Connected instances that may be chosen, as an index into the entries.
    by_id: HashMap<Arc<str>, usize>,
    by_address: HashMap<Address, usize>,
}

/// A picker, and what it was built over. It is kept as long as that stays the same, so that an instance that comes and
/// goes in vain does not start everybody's round anew.
struct Built {
    over: InstanceList,
    picker: Box<dyn Picker>,
}

/// An instance and its connection.
pub(super) struct Entry {
    pub(super) instance: Arc<Instance>,
    pub(super) connection: Arc<Connection>,
    /// It left the view.
    pub(super) removed: bool,
}

/// Whether an instance is chosen, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Among those that calls are spread over.
    Chosen,
    /// The registry only holds it, and there are others: the last resort.
    Held,
    /// Not connected.
    NotConnected,
    /// Its weight is 0.
    WeightZero,
    /// It is draining.
    Draining,
    /// It is down.
    Down,
    /// It left the view.
    Removed,
}

/// The connections that a call was given to already, each by the numbers of its HTTP/2 connections.
#[derive(Default)]
pub(super) struct Tried(Vec<(Arc<Connection>, RangeInclusive<u64>)>);

/// What a call that finds no instance may hope for.
pub(super) enum Outlook {
    /// A first answer or a first connection is on its way.
    Hopeful(ChannelError),
    /// Only a change in the world can help.
    Bleak(ChannelError),
}

impl Routes {
    /// Nothing known yet.
    pub(super) fn unknown() -> Self {
        Self {
            version: 0,
            entries: Vec::new(),
            discovered: false,
            error: None,
            built: None,
            by_id: HashMap::new(),
            by_address: HashMap::new(),
        }
    }

    /// Lays routes over the entries, with a new picker if the one of `before` does not fit.
    pub(super) fn build(
        before: &Self,
        entries: Vec<Entry>,
        discovered: bool,
        error: Option<SharedError>,
        chooser: &Chooser,
    ) -> Self {
        let mut by_id = HashMap::new();
        let mut by_address = HashMap::new();
        for (index, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.is_open()) {
            by_id.insert(Arc::clone(&entry.instance.id), index);
            by_address.entry(entry.instance.address.clone()).or_insert(index);
        }
        let built = match chooser {
            Chooser::Policy(policy) => {
                let ready = chosen(entries.iter().filter(|entry| entry.is_open()));
                match &before.built {
                    _ if ready.is_empty() => None,
                    Some(built) if same(&built.over, &ready) => Some(Arc::clone(built)),
                    _ => built(&**policy, ready).map(Arc::new),
                }
            }
            Chooser::LoadBalance(_) => None,
        };
        Self { version: before.version + 1, entries, discovered, error, built, by_id, by_address }
    }

    /// Whether a call could be sent somewhere.
    pub(super) fn is_open(&self) -> bool {
        !self.by_id.is_empty()
    }

    /// An instance that the call was not given to yet, and its connection. `None`: there is none.
    ///
    /// The first choice is the built picker's; after that one is built over what is left, which only calls pay for that
    /// an instance did not take.
    pub(super) fn pick(
        &self,
        policy: &dyn AnyPolicy,
        context: &PickContext,
        tried: &Tried,
    ) -> Result<Option<(Pick, &Arc<Connection>)>, PickError> {
        let pick = if tried.0.is_empty() {
            let Some(built) = &self.built else { return Ok(None) };
            built.picker.pick(context)?
        } else {
            let left = self
                .entries
                .iter()
                .filter(|entry| entry.is_open() && self.routes(entry) && !tried.contains(&entry.connection));
            let left = chosen(left);
            if left.is_empty() {
                return Ok(None);
            }
            policy.build(&left).pick(context)?
        };
        let index = self.by_id.get(&pick.instance.id).ok_or(PickError::NoInstances)?;
        Ok(Some((pick, &self.entries[*index].connection)))
    }

    /// The instance at an address, if it is connected and may be chosen, and the call was not given to it yet.
    pub(super) fn at(&self, address: &Address, tried: &Tried) -> Option<(Pick, &Arc<Connection>)> {
        let entry = &self.entries[*self.by_address.get(address)?];
        (!tried.contains(&entry.connection))
            .then(|| (Pick::new(Arc::clone(&entry.instance)), &entry.connection))
    }

    /// What to tell, or to expect for, a call that finds no instance. `last`: what its last attempt failed with.
    pub(super) fn outlook(&self, endpoint: &Endpoint, last: Option<&SharedError>) -> Outlook {
        let endpoint = endpoint.to_string();
        if !self.discovered {
            let error = ChannelError::Discovery { endpoint, source: self.error.clone() };
            return if self.error.is_none() { Outlook::Hopeful(error) } else { Outlook::Bleak(error) };
        }
        let eligible = || self.entries.iter().filter(|entry| entry.is_eligible());
        let instances = eligible().count();
        if instances == 0 {
            let present = self.entries.iter().filter(|entry| !entry.removed);
            let reason = eligible_of(present).refused().to_string();
            return Outlook::Bleak(ChannelError::NoInstances { endpoint, reason });
        }
        let connected = eligible().filter(|entry| entry.connection.state() == ConnectionState::Ready).count();
        let last = last.cloned().or_else(|| {
            eligible().rev().find_map(|entry| entry.connection.last_error()).map(|error| error as SharedError)
        });
        let error = ChannelError::AllUnavailable { endpoint, instances, connected, last };
        // Ready, but not routed to: the driver is about to publish it.
        let coming = |entry: &Entry| {
            entry.connection.is_hopeful()
                || (entry.connection.state() == ConnectionState::Ready && !self.routes(entry))
        };
        if eligible().any(coming) { Outlook::Hopeful(error) } else { Outlook::Bleak(error) }
    }

    /// Whether the entry is chosen, and why not.
    pub(super) fn standing(&self, entry: &Entry) -> Standing {
        let instance = &entry.instance;
        if entry.removed {
            return Standing::Removed;
        }
        match instance.status {
            Status::Draining => return Standing::Draining,
            Status::Down => return Standing::Down,
            Status::Up => {}
        }
        if instance.weight == 0 {
            Standing::WeightZero
        } else if !self.routes(entry) || entry.connection.state() != ConnectionState::Ready {
            Standing::NotConnected
        } else if instance.held && self.by_id.values().any(|i| !self.entries[*i].instance.held) {
            Standing::Held
        } else {
            Standing::Chosen
        }
    }

    fn routes(&self, entry: &Entry) -> bool {
        self.by_id
            .get(&entry.instance.id)
            .is_some_and(|index| Arc::ptr_eq(&self.entries[*index].connection, &entry.connection))
    }
}

impl Entry {
    /// Whether it may be chosen at all (C2).
    fn is_eligible(&self) -> bool {
        !self.removed && self.instance.takes_requests()
    }

    /// Whether a request could be sent to it.
    fn is_open(&self) -> bool {
        self.is_eligible() && self.connection.state() == ConnectionState::Ready
    }
}

impl Tried {
    /// The call was given to the nth connection to this instance.
    pub(super) fn add(&mut self, connection: &Arc<Connection>, nth: u64) {
        self.0.push((Arc::clone(connection), nth..=nth));
    }

    /// This instance does not want the call, whichever of its connections brings it.
    pub(super) fn add_all(&mut self, connection: &Arc<Connection>) {
        self.0.push((Arc::clone(connection), 0..=connection.opened()));
    }

    /// Whether the call was given to the nth connection to this instance.
    pub(super) fn has(&self, connection: &Arc<Connection>, nth: u64) -> bool {
        self.0.iter().any(|(tried, which)| Arc::ptr_eq(tried, connection) && which.contains(&nth))
    }

    /// Whether the call was given to every connection to this instance that takes requests.
    fn contains(&self, connection: &Arc<Connection>) -> bool {
        !connection.offers(|nth| self.has(connection, nth))
    }
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Chosen => "chosen",
            Self::Held => "held by the registry, and there are others",
            Self::NotConnected => "not connected",
            Self::WeightZero => "its weight is 0",
            Self::Draining => "draining",
            Self::Down => "down",
            Self::Removed => "left the view",
        })
    }
}

/// A picker over `over`. A policy that panics must not take the channel's driver with it.
fn built(policy: &dyn AnyPolicy, over: InstanceList) -> Option<Built> {
    let picker = catch_unwind(AssertUnwindSafe(|| policy.build(&over)));
    if picker.is_err() {
        tracing::error!("the policy panicked while it built a picker; it is asked again at the next change");
    }
    picker.ok().map(|picker| Built { over, picker })
}

/// Whether both are the very same instances in the same order.
fn same(one: &InstanceList, other: &InstanceList) -> bool {
    one.len() == other.len() && one.iter().zip(other.iter()).all(|(one, other)| Arc::ptr_eq(one, other))
}

/// What calls are spread over: those that are not held; if there are none, those that are.
fn chosen<'a>(entries: impl Iterator<Item = &'a Entry>) -> InstanceList {
    Arc::clone(eligible_of(entries).first())
}

fn eligible_of<'a>(entries: impl Iterator<Item = &'a Entry>) -> Eligible {
    Eligible::of(&entries.map(|entry| Arc::clone(&entry.instance)).collect())
}
