//! A request that was given to an instance: counted until it ends, and its policy told how.

use std::sync::Arc;

use super::meters::Meters;
use crate::balance::{Outcome, Pick};

/// A request that was given to an instance. Dropping it is giving it up.
#[derive(Debug)]
#[must_use = "dropping it ends the request as given up"]
pub(crate) struct Ongoing {
    /// `None` once it has ended.
    pick: Option<Pick<'static>>,
    meters: Arc<Meters>,
}

impl Ongoing {
    pub(super) fn begin(pick: Pick<'static>, meters: &Arc<Meters>) -> Self {
        meters.picked();
        Self { pick: Some(pick), meters: Arc::clone(meters) }
    }

    /// Its answer began.
    pub(crate) fn answered(&mut self) {
        if let Some(pick) = &mut self.pick {
            pick.answered();
        }
    }

    /// It ended, and how.
    pub(crate) fn finish(mut self, outcome: Outcome) {
        self.end(outcome);
    }

    /// The instance did not take it: it goes on to another, and says nothing about this one.
    pub(crate) fn not_taken(mut self) {
        if let Some(pick) = self.pick.take() {
            self.meters.not_taken();
            drop(pick);
        }
    }

    fn end(&mut self, outcome: Outcome) {
        if let Some(pick) = self.pick.take() {
            self.meters.ended(outcome);
            pick.finish(outcome);
        }
    }
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        self.end(Outcome::Cancelled);
    }
}
