//! Whether an instance is chosen and why not, and what a request that finds none may hope for.

use super::{
    ConnectionState, Member, RouteError, SharedError,
    routes::{Entry, Routes, eligible_of},
};
use crate::model::{Endpoint, Status};

/// Whether an instance is chosen, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Among those that requests are spread over.
    Chosen,
    /// The registry only holds it, and there are others: the last resort.
    Held,
    /// Not connected.
    NotConnected,
    /// Not connected, for enough others are.
    Spare,
    /// Its weight is 0.
    WeightZero,
    /// It is draining.
    Draining,
    /// It is down.
    Down,
    /// This connection is given up: its instance left the view or moved, or more are connected than need be.
    Removed,
}

/// What a request that finds no instance may hope for.
pub(super) enum Outlook {
    /// A first answer or a first connection is on its way.
    Hopeful(RouteError),
    /// Only a change in the world can help.
    Bleak(RouteError),
}

impl<M: Member> Routes<M> {
    /// What to tell, or to expect for, a request that finds no instance. `last`: what its last attempt failed with.
    /// `connect_ahead`: how many instances the driver connects by itself.
    pub(super) fn outlook(
        &self,
        endpoint: &Endpoint,
        last: Option<&SharedError>,
        connect_ahead: usize,
    ) -> Outlook {
        let endpoint = endpoint.to_string();
        if !self.discovered {
            let error = RouteError::Discovery { endpoint, source: self.error.clone() };
            return if self.error.is_none() { Outlook::Hopeful(error) } else { Outlook::Bleak(error) };
        }
        let eligible = || self.entries.iter().filter(|entry| entry.is_eligible());
        let instances = eligible().count();
        if instances == 0 {
            let present = self.entries.iter().filter(|entry| !entry.removed);
            let reason = eligible_of(present).refused().to_string();
            return Outlook::Bleak(RouteError::NoInstances { endpoint, reason });
        }
        let connected = eligible().filter(|entry| entry.member.state() == ConnectionState::Ready).count();
        let last = last.cloned().or_else(|| eligible().rev().find_map(|entry| entry.member.last_error()));
        let error = RouteError::AllUnavailable { endpoint, instances, connected, last };
        let ready = |entry: &Entry<M>| entry.member.state() == ConnectionState::Ready;
        // One more is connected for each that fails; beyond that one at rest stays so.
        let well = eligible().filter(|entry| entry.wanted && (ready(entry) || entry.member.is_hopeful()));
        let more = self.on_demand || well.count() < connect_ahead;
        // Ready, but not routed to: the driver is about to publish it.
        let coming = |entry: &Entry<M>| {
            (entry.member.is_hopeful() && (entry.wanted || more)) || (ready(entry) && !self.routes(entry))
        };
        if eligible().any(coming) { Outlook::Hopeful(error) } else { Outlook::Bleak(error) }
    }

    /// Whether the entry is chosen, and why not.
    pub(super) fn standing(&self, entry: &Entry<M>) -> Standing {
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
            return Standing::WeightZero;
        }
        let state = entry.member.state();
        if !self.takes(entry) {
            return match state {
                ConnectionState::Idle if !entry.wanted && !self.on_demand => Standing::Spare,
                _ => Standing::NotConnected,
            };
        }
        let others = || self.entries.iter().any(|other| !other.instance.held && self.takes(other));
        if instance.held && others() { Standing::Held } else { Standing::Chosen }
    }
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Chosen => "chosen",
            Self::Held => "held by the registry, and there are others",
            Self::NotConnected => "not connected",
            Self::Spare => "not connected, for enough others are",
            Self::WeightZero => "its weight is 0",
            Self::Draining => "draining",
            Self::Down => "down",
            Self::Removed => "given up: left the view, moved, or one too many",
        })
    }
}
