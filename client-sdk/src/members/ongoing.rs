//! A request that was given to an instance: counted until it ends, and its policy told how.

use std::sync::Arc;

use super::{gate::Permit, meters::Meters};
use crate::balance::{Outcome, Pick};

/// A request that was given to an instance. Dropping it is giving it up.
#[derive(Debug)]
#[must_use = "dropping it ends the request as given up"]
pub(crate) struct Ongoing {
    /// `None` once it has ended.
    with: Option<(Pick<'static>, Permit)>,
    meters: Arc<Meters>,
}

impl Ongoing {
    pub(super) fn begin(pick: Pick<'static>, permit: Permit, meters: &Arc<Meters>) -> Self {
        meters.picked();
        Self { with: Some((pick, permit)), meters: Arc::clone(meters) }
    }

    /// Its answer began.
    pub(crate) fn answered(&mut self) {
        if let Some((pick, permit)) = &mut self.with {
            pick.answered();
            permit.answered();
        }
    }

    /// It ended, and how.
    pub(crate) fn finish(mut self, outcome: Outcome) {
        self.end(outcome, outcome);
    }

    /// It was lost with its connection: a failure for its policy, and no reason to eject the instance, for the state of a
    /// connection speaks for itself.
    pub(crate) fn lost(mut self) {
        self.end(Outcome::Failure, Outcome::Cancelled);
    }

    /// The instance did not take it: it goes on to another, and says nothing about this one.
    pub(crate) fn not_taken(mut self) {
        if let Some(with) = self.with.take() {
            self.meters.not_taken();
            drop(with);
        }
    }

    /// `judged`: what it means for whether the instance is ejected.
    fn end(&mut self, outcome: Outcome, judged: Outcome) {
        if let Some((pick, permit)) = self.with.take() {
            self.meters.ended(outcome);
            pick.finish(outcome);
            permit.finish(judged);
        }
    }
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        self.end(Outcome::Cancelled, Outcome::Cancelled);
    }
}
