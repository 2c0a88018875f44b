//! What everyone in a simulation saw, and when: the history that a seed repeats, and that promises are checked on.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{script::Fault, world};

/// Instances by id, with their weights; draining and down ones with 0, which means the same to a caller.
pub type Seen = BTreeMap<String, u32>;

/// One thing that someone saw.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The script did something.
    Fault(Fault),
    /// A registry serves.
    Started {
        /// Its host.
        who: String,
        /// The name of its history.
        epoch: String,
        /// The revision that it loaded.
        revision: u64,
        /// How many instances it loaded.
        instances: usize,
    },
    /// The view of a watcher, or of a caller, is another one.
    View {
        /// Whose.
        who: String,
        /// The whole view.
        all: Seen,
        /// What the change says entered.
        added: Seen,
        /// What the change says changed.
        updated: Seen,
        /// What the change says left.
        removed: Seen,
    },
    /// It was told that its view may be out of date.
    Troubled {
        /// Whose.
        who: String,
        /// Why.
        error: String,
    },
    /// It was told that all is well again.
    Healthy {
        /// Whose.
        who: String,
        /// How many streams it opened so far.
        streams: u64,
        /// How often it read a view anew.
        resyncs: u64,
    },
    /// A call ended.
    Called {
        /// The caller.
        who: String,
        /// When it made the call.
        began: Duration,
        /// Who answered, or why nobody did.
        outcome: Result<String, String>,
        /// The caller had nobody to ask: its view was empty, or not known.
        nobody: bool,
    },
    /// A registration is in another state.
    Registration {
        /// The instance.
        who: String,
        /// The state.
        state: String,
    },
    /// What a registry holds of the service is another set: the truth, as told to a watcher on the registry's own host.
    Holds {
        /// The registry.
        who: String,
        /// The name of its history.
        epoch: String,
        /// What it holds.
        all: Seen,
    },
    /// A registry ends in good order, and calls and streams in flight are asked to.
    Stopping {
        /// Its host.
        who: String,
    },
    /// An instance goes on with its drain.
    Drain {
        /// The instance.
        who: String,
        /// How far it is.
        step: DrainStep,
    },
}

/// How far a drain is.
#[derive(Clone, Debug, PartialEq)]
pub enum DrainStep {
    /// It begins: the instance is to be marked at every registry.
    Began,
    /// It goes on to what is in flight: callers were told by the registry of this name as well as they could be.
    Told(String),
    /// What it was told there, known when it has left: whether all callers that can say so had said that they know.
    Knew {
        /// The registry.
        registry: String,
        /// Whether all had.
        all: bool,
    },
    /// Nothing is in flight and no registry has it any longer, or can be told: its process ends.
    Left,
}

/// The record. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Trace(Arc<Mutex<Vec<(Duration, Event)>>>);

impl Trace {
    /// Adds what the host that this runs on saw now.
    pub fn saw(&self, event: Event) {
        self.add(world::now(), event);
    }

    /// Adds what happened then.
    pub fn add(&self, at: Duration, event: Event) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((at, event));
    }

    /// All of it, in the order in which it happened.
    pub fn events(&self) -> Vec<(Duration, Event)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The newest view of a watcher.
    pub fn view(&self, watcher: &str) -> Option<Seen> {
        let events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        events.iter().rev().find_map(|(_, event)| match event {
            Event::View { who, all, .. } if who == watcher => Some(all.clone()),
            _ => None,
        })
    }

    /// How often a registry started so far.
    pub fn starts(&self, registry: &str) -> u32 {
        let events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let started =
            |(_, event): &&(_, Event)| matches!(event, Event::Started { who, .. } if who == registry);
        u32::try_from(events.iter().filter(started).count()).unwrap_or(u32::MAX)
    }

    /// Whether something like this was seen.
    pub fn has(&self, like: impl Fn(&Duration, &Event) -> bool) -> bool {
        let events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        events.iter().any(|(at, event)| like(at, event))
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.events().iter().try_for_each(|(at, event)| writeln!(f, "{:>8} ms  {event:?}", at.as_millis()))
    }
}
