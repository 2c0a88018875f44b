//! Whether an instance is chosen and why not, and what a request that finds none may hope for.

use super::{
    ConnectionState, Member, RouteError, SharedError,
    lay::Rank,
    routes::{Entry, Routes, refused},
};
use crate::model::{Endpoint, Status};

/// Whether an instance is chosen, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Among those that requests are spread over.
    Chosen,
    /// The registry only holds it, and there are others: the last resort.
    Held,
    /// It failed too much, and gets no requests for a while: [`InstanceSnapshot::ejection`](super::InstanceSnapshot::ejection)
    /// says why and until when. Where ejections would leave nobody they do not matter, and it stays chosen.
    Ejected,
    /// Its ejection is over, and one request at a time shows whether it is well.
    Probing,
    /// It has no share now ([`Shaper`](crate::balance::shape::Shaper)): it is in another zone, for example, and those that are
    /// nearer do. A request that these do not take goes to it.
    Standby,
    /// A [`Filter`](crate::balance::shape::Filter) left it out: this caller does not use it.
    NotInSubset,
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
            let reason = refused(&self.entries).to_string();
            return Outlook::Bleak(RouteError::NoInstances { endpoint, reason });
        }
        let connected = eligible().filter(|entry| entry.member.state() == ConnectionState::Ready).count();
        let last = last.cloned().or_else(|| eligible().rev().find_map(|entry| entry.member.last_error()));
        let error = RouteError::AllUnavailable { endpoint, instances, connected, last };
        let ready = |entry: &Entry<M>| entry.member.state() == ConnectionState::Ready;
        // One more is connected for each that fails; beyond that one at rest stays so.
        let well = eligible().filter(|entry| {
            entry.wanted && entry.is_admitted() && (ready(entry) || entry.member.is_hopeful())
        });
        let more = self.on_demand || well.count() < connect_ahead;
        // Ready, but not routed to: the driver is about to publish it. One that is ejected only if nobody else is there.
        let anybody = eligible().any(|entry| self.routes(entry) && ready(entry));
        let left_out = |entry: &Entry<M>| entry.is_ejected() && anybody;
        let coming = |entry: &Entry<M>| {
            let hopeful = entry.member.is_hopeful() && !entry.is_ejected() && (entry.wanted || more);
            hopeful || (ready(entry) && !self.routes(entry) && !left_out(entry))
        };
        if eligible().any(coming) { Outlook::Hopeful(error) } else { Outlook::Bleak(error) }
    }

    /// Whether the entry at an index is chosen, and why not.
    pub(super) fn standing(&self, index: usize) -> Standing {
        let entry = &self.entries[index];
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
        if !entry.kept {
            return Standing::NotInSubset;
        }
        if self.heeds_ejection && entry.is_ejected() {
            return Standing::Ejected;
        }
        let state = entry.member.state();
        if !self.takes(entry) {
            return match state {
                ConnectionState::Idle if !entry.wanted && !self.on_demand => Standing::Spare,
                _ => Standing::NotConnected,
            };
        }
        if self.heeds_ejection && !entry.is_admitted() {
            return Standing::Probing;
        }
        match self.rank(index) {
            Rank::Chosen => Standing::Chosen,
            Rank::Held => Standing::Held,
            Rank::Standby | Rank::Out => Standing::Standby,
        }
    }
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Chosen => "chosen",
            Self::Held => "held by the registry, and there are others",
            Self::Ejected => "ejected: it failed too much",
            Self::Probing => "on probation after an ejection",
            Self::Standby => "has no share now, others come first",
            Self::NotInSubset => "left out by a filter",
            Self::NotConnected => "not connected",
            Self::Spare => "not connected, for enough others are",
            Self::WeightZero => "its weight is 0",
            Self::Draining => "draining",
            Self::Down => "down",
            Self::Removed => "given up: left the view, moved, or one too many",
        })
    }
}
