//! A chosen instance, and the guard that tells its policy how the request went.
//!
//! ```text
//!   Picker::pick ──► Pick<'picker> ──finish(outcome)──► Report::finished(outcome, Some(since))
//!                      │   │   └─────────drop─────────► Report::finished(Outcome::Cancelled, Some(since))
//!                      │   └─answered──► Report::answered(since), and later finished(outcome, None)
//!                      └─into_owned──► Pick<'static>: the same, for as long as one likes
//! ```
//!
//! A pick borrows from its picker: counting references would cost more than choosing does (an atomic addition is half of
//! what a whole pick takes).

use std::{fmt, sync::Arc, time::Duration};

use super::PickError;
use crate::{model::Instance, orca::LoadReport};

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was answered as it should be.
    Success,
    /// The instance failed: it broke, or answered that it cannot serve.
    Failure,
    /// The caller gave up, or never said how it went. Says nothing about the instance.
    Cancelled,
}

/// Learns how requests went. Called once for each pick, from whatever thread ends the request; must not block.
pub trait Report: Send + Sync + 'static {
    /// An answer began, and goes on: a stream may for hours. `since` is what the picker said when it made the pick, by
    /// whatever clock the policy has. Not every caller can tell; then it is not called. Default: nothing.
    fn answered(&self, since: Duration) {
        let _ = since;
    }

    /// A request ended. `since` as above; `None` if [`answered`](Self::answered) was told it: how long an answer goes on says
    /// nothing about its instance.
    fn finished(&self, outcome: Outcome, since: Option<Duration>);

    /// Whether it goes by what instances report of their own load: only then does a caller look for a report. Default: no.
    /// Whoever wraps another's report passes this on, and [`loaded`](Self::loaded) with it.
    fn wants_load(&self) -> bool {
        false
    }

    /// The instance reported its load with its answer, before that ended. Default: nothing.
    fn loaded(&self, report: &LoadReport) {
        let _ = report;
    }
}

/// A chosen instance. Finishing or dropping it tells the policy that the request has ended.
#[must_use = "dropping a pick tells its policy that the request has ended"]
pub struct Pick<'a> {
    instance: Lent<'a, Instance>,
    index: usize,
    guard: Option<Guard<'a>>,
}

enum Lent<'a, T: ?Sized> {
    Borrowed(&'a Arc<T>),
    Owned(Arc<T>),
}

struct Guard<'a> {
    /// `None` once it is told.
    report: Option<Lent<'a, dyn Report>>,
    /// `None` once its answer began.
    since: Option<Duration>,
}

impl<'a> Pick<'a> {
    /// The instance at `index` of the list that the picker was built over. Fails if there is none.
    #[inline]
    pub fn new(instances: &'a [Arc<Instance>], index: usize) -> Result<Self, PickError> {
        match instances.get(index) {
            Some(instance) => Ok(Self { instance: Lent::Borrowed(instance), index, guard: None }),
            None => Err(PickError::NoInstances),
        }
    }

    /// An instance by itself, of no list.
    pub fn of(instance: Arc<Instance>) -> Pick<'static> {
        Pick { instance: Lent::Owned(instance), index: usize::MAX, guard: None }
    }

    /// Adds who is told how the request went. `since` is handed to it: usually the time of the pick.
    #[inline]
    pub fn reporting(mut self, report: &'a Arc<dyn Report>, since: Duration) -> Self {
        self.guard = Some(Guard { report: Some(Lent::Borrowed(report)), since: Some(since) });
        self
    }

    /// The instance.
    #[inline]
    pub fn instance(&self) -> &Arc<Instance> {
        self.instance.get()
    }

    /// Where the instance stands in the list that the picker was built over.
    #[inline]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Says that its answer began: what comes from now on is not latency.
    pub fn answered(&mut self) {
        if let Some(guard) = &mut self.guard
            && let Some(report) = &guard.report
            && let Some(since) = guard.since.take()
        {
            report.get().answered(since);
        }
    }

    /// Whether its policy goes by what instances report of their load.
    pub fn wants_load(&self) -> bool {
        self.report().is_some_and(|report| report.wants_load())
    }

    /// Passes on what the instance reported of its load.
    pub fn loaded(&self, report: &LoadReport) {
        if let Some(to) = self.report() {
            to.loaded(report);
        }
    }

    fn report(&self) -> Option<&Arc<dyn Report>> {
        Some(self.guard.as_ref()?.report.as_ref()?.get())
    }

    /// Says how the request went.
    pub fn finish(mut self, outcome: Outcome) {
        if let Some(guard) = &mut self.guard {
            guard.tell(outcome);
        }
    }

    /// The same pick, borrowing from nobody: for a request that outlives the borrow of its picker or handle.
    pub fn into_owned(mut self) -> Pick<'static> {
        let guard = self
            .guard
            .take()
            .map(|mut guard| Guard { report: guard.report.take().map(Lent::into_owned), since: guard.since });
        Pick { instance: self.instance.into_owned(), index: self.index, guard }
    }
}

impl<T: ?Sized> Lent<'_, T> {
    #[inline]
    fn get(&self) -> &Arc<T> {
        match self {
            Self::Borrowed(it) => it,
            Self::Owned(it) => it,
        }
    }

    fn into_owned(self) -> Lent<'static, T> {
        Lent::Owned(match self {
            Self::Borrowed(it) => Arc::clone(it),
            Self::Owned(it) => it,
        })
    }
}

impl Guard<'_> {
    #[inline]
    fn tell(&mut self, outcome: Outcome) {
        if let Some(report) = self.report.take() {
            report.get().finished(outcome, self.since);
        }
    }
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.tell(Outcome::Cancelled);
    }
}

impl fmt::Debug for dyn Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report").finish_non_exhaustive()
    }
}

impl fmt::Debug for Pick<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pick")
            .field("instance", self.instance())
            .field("reports", &self.guard.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Told(Mutex<Vec<Outcome>>);

    impl Report for Told {
        fn finished(&self, outcome: Outcome, _: Option<Duration>) {
            self.0.lock().expect("unpoisoned").push(outcome);
        }
    }

    #[test]
    fn a_policy_is_told_once_how_a_request_went() {
        let instances = [Arc::new(Instance::builder("a:1".parse().expect("valid")).build())];
        let told = Arc::new(Told::default());
        let report = Arc::clone(&told) as Arc<dyn Report>;
        let pick = || Pick::new(&instances, 0).expect("there").reporting(&report, Duration::ZERO);
        pick().finish(Outcome::Success);
        drop(pick());
        pick().finish(Outcome::Failure);
        let owned = pick().into_owned();
        assert_eq!(told.0.lock().expect("unpoisoned").len(), 3, "made another's, it has not ended");
        drop(owned);
        pick().into_owned().finish(Outcome::Success);
        assert_eq!(
            *told.0.lock().expect("unpoisoned"),
            [Outcome::Success, Outcome::Cancelled, Outcome::Failure, Outcome::Cancelled, Outcome::Success]
        );
    }

    #[test]
    fn a_place_outside_of_the_list_is_an_error() {
        assert_eq!(Pick::new(&[], 0).unwrap_err(), PickError::NoInstances);
    }
}
