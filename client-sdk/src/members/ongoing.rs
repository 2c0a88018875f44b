//! A request that was given to an instance: counted until it ends, and its policy told how.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::meters::Meters;
use crate::{
    balance::{Outcome, Pick},
    orca::LoadReport,
};

/// A request that was given to an instance. Dropping it is giving it up.
#[derive(Debug)]
#[must_use = "dropping it ends the request as given up"]
pub(crate) struct Ongoing {
    /// `None` once it has ended.
    pick: Option<Pick<'static>>,
    meters: Arc<Meters>,
    blame: Option<Arc<AtomicBool>>,
}

/// Says of a request, wherever it is by now, that its instance is to blame if it is given up.
#[derive(Debug)]
pub(crate) struct Blame(Arc<AtomicBool>);

impl Blame {
    pub(crate) fn blame(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Ongoing {
    pub(super) fn begin(pick: Pick<'static>, meters: &Arc<Meters>) -> Self {
        meters.picked();
        Self { pick: Some(pick), meters: Arc::clone(meters), blame: None }
    }

    /// For whoever may give it up because its instance took too long.
    pub(crate) fn blame(&mut self) -> Blame {
        Blame(Arc::clone(self.blame.get_or_insert_default()))
    }

    /// Whether its policy goes by what instances report of their load.
    pub(crate) fn wants_load(&self) -> bool {
        self.pick.as_ref().is_some_and(Pick::wants_load)
    }

    /// What the instance reported of its load. `None`: it cannot be read.
    pub(crate) fn loaded(&self, report: Option<&LoadReport>) {
        self.meters.load_reported(report.is_some());
        if let (Some(report), Some(pick)) = (report, &self.pick) {
            pick.loaded(report);
        }
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
        let blamed = self.blame.as_ref().is_some_and(|blame| blame.load(Ordering::Relaxed));
        self.end(if blamed { Outcome::Failure } else { Outcome::Cancelled });
    }
}
