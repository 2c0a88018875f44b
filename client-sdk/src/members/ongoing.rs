//! A request that was given to an instance: counted until it ends, and its policy told how.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{gate::Permit, meters::Meters};
use crate::{
    balance::{Outcome, Pick},
    orca::LoadReport,
};

/// A request that was given to an instance. Dropping it is giving it up.
#[derive(Debug)]
#[must_use = "dropping it ends the request as given up"]
pub(crate) struct Ongoing {
    /// `None` once it has ended.
    with: Option<(Pick<'static>, Permit)>,
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
    pub(super) fn begin(pick: Pick<'static>, permit: Permit, meters: &Arc<Meters>) -> Self {
        meters.picked();
        Self { with: Some((pick, permit)), meters: Arc::clone(meters), blame: None }
    }

    /// For whoever may give it up because its instance took too long.
    pub(crate) fn blame(&mut self) -> Blame {
        Blame(Arc::clone(self.blame.get_or_insert_default()))
    }

    /// Whether its policy goes by what instances report of their load.
    pub(crate) fn wants_load(&self) -> bool {
        self.with.as_ref().is_some_and(|(pick, _)| pick.wants_load())
    }

    /// What the instance reported of its load. `None`: it cannot be read.
    pub(crate) fn loaded(&self, report: Option<&LoadReport>) {
        self.meters.load_reported(report.is_some());
        if let (Some(report), Some((pick, _))) = (report, &self.with) {
            pick.loaded(report);
        }
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
        let blamed = self.blame.as_ref().is_some_and(|blame| blame.load(Ordering::Relaxed));
        let outcome = if blamed { Outcome::Failure } else { Outcome::Cancelled };
        self.end(outcome, outcome);
    }
}
