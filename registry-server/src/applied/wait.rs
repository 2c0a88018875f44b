//! One who waits: which views it is about, and how far their clients are.
//!
//! Keeps four numbers and no list of clients; [`super::acks`] keeps them true.

use std::collections::BTreeMap;

use super::held::{Held, Place, Who};
use crate::core::{Revision, Selector};

/// One who waits.
pub(super) type WaitId = u64;
/// The change that a view must have applied: its revision, or `None` if the view is not touched.
pub(super) type Touched = Box<dyn Fn(&Selector) -> Option<Revision> + Send>;

/// How far the clients concerned are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Applied it.
    pub acked: u32,
    /// Connected, and did not say so yet.
    pub lagging: u32,
    /// Vanished before they said so, less than 20 s ago.
    pub disconnected: u32,
    /// Streams that cannot ack.
    pub not_acking: u32,
}

/// What a client is to a wait; of several views, the last in this order counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    NotAcking,
    Acked,
    Disconnected,
    Lagging,
}

pub(super) struct Wait {
    pub(super) id: WaitId,
    pub(super) share: f64,
    pub(super) counts: Counts,
    touched: Touched,
    /// What `touched` said, so that it is the same for as long as this wait lasts.
    learnt: BTreeMap<Selector, Option<Revision>>,
}

impl Counts {
    /// Whether a share of those who can ack and may still act on what was before has applied it.
    pub(super) fn reached(&self, share: f64) -> bool {
        let all = f64::from(self.acked) + f64::from(self.lagging) + f64::from(self.disconnected);
        all == 0.0 || f64::from(self.acked) / all >= share
    }

    pub(super) fn of(&mut self, standing: Standing) -> &mut u32 {
        match standing {
            Standing::NotAcking => &mut self.not_acking,
            Standing::Acked => &mut self.acked,
            Standing::Disconnected => &mut self.disconnected,
            Standing::Lagging => &mut self.lagging,
        }
    }
}

impl Wait {
    pub(super) fn new(id: WaitId, share: f64, touched: Touched) -> Self {
        Self { id, share, counts: Counts::default(), touched, learnt: BTreeMap::new() }
    }

    /// Finds out about selectors that it has not met.
    pub(super) fn learn(&mut self, held: &[Held]) {
        for held in held {
            if !self.learnt.contains_key(&held.selector) {
                self.learnt.insert(held.selector.clone(), (self.touched)(&held.selector));
            }
        }
    }

    /// The change that this view must have applied.
    pub(super) fn due(&self, held: &Held) -> Option<Revision> {
        self.learnt.get(&held.selector).copied().flatten().filter(|change| held.began < *change)
    }

    /// What a client is to this wait. `None`: it is not concerned.
    pub(super) fn standing(&self, who: &Who, held: &[Held]) -> Option<Standing> {
        let of_view = |held: &Held| {
            let change = self.due(held)?;
            Some(match (who, held.place) {
                (Who::Stream(_), _) => Standing::NotAcking,
                (Who::Client(_), _) if held.acked >= change => Standing::Acked,
                (Who::Client(_), Place::Connected { .. }) => Standing::Lagging,
                (Who::Client(_), Place::Vanished { .. }) => Standing::Disconnected,
            })
        };
        held.iter().filter_map(of_view).max()
    }

    /// The change that a view's stream is to be asked for, beyond what it was asked for already.
    pub(super) fn to_ask(&self, who: &Who, held: &Held, asked: Option<Revision>) -> Option<Revision> {
        let acks = matches!(who, Who::Client(_));
        let change = self.due(held).filter(|change| acks && held.acked < *change);
        change.filter(|change| asked.is_none_or(|asked| asked < *change))
    }
}
