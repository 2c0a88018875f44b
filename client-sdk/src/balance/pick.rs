//! A chosen instance, and the guard that tells its policy how the request went.
//!
//! ```text
//!   Picker::pick ──► Pick ──finish(outcome)──► Report::finished(outcome, since)
//!                      └────────drop─────────► Report::finished(Outcome::Cancelled, since)
//! ```
//!
//! A pick of a policy that learns nothing costs one atomic addition; one of a policy that learns a second.

use std::{fmt, sync::Arc, time::Duration};

use crate::model::Instance;

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
    /// A request ended. `since` is what the picker said when it made the pick: by whatever clock the policy has.
    fn finished(&self, outcome: Outcome, since: Duration);
}

/// A chosen instance. Finishing or dropping it tells the policy that the request has ended.
#[must_use = "dropping a pick tells its policy that the request has ended"]
#[non_exhaustive]
pub struct Pick {
    /// The instance.
    pub instance: Arc<Instance>,
    guard: Option<Guard>,
}

struct Guard {
    /// `None` once it is told.
    report: Option<Arc<dyn Report>>,
    since: Duration,
}

impl Pick {
    /// The instance, with nothing to report to.
    pub fn new(instance: Arc<Instance>) -> Self {
        Self { instance, guard: None }
    }

    /// The instance, and who is told how the request went. `since` is handed to it: usually the time of the pick.
    pub fn reporting(instance: Arc<Instance>, report: Arc<dyn Report>, since: Duration) -> Self {
        Self { instance, guard: Some(Guard { report: Some(report), since }) }
    }

    /// Says how the request went.
    pub fn finish(self, outcome: Outcome) {
        if let Some(mut guard) = self.guard {
            guard.tell(outcome);
        }
    }
}

impl Guard {
    fn tell(&mut self, outcome: Outcome) {
        if let Some(report) = self.report.take() {
            report.finished(outcome, self.since);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.tell(Outcome::Cancelled);
    }
}

impl fmt::Debug for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pick")
            .field("instance", &self.instance)
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
        fn finished(&self, outcome: Outcome, _: Duration) {
            self.0.lock().expect("unpoisoned").push(outcome);
        }
    }

    #[test]
    fn a_policy_is_told_once_how_a_request_went() {
        let instance = Arc::new(Instance::builder("a:1".parse().expect("valid")).build());
        let told = Arc::new(Told::default());
        let pick =
            || Pick::reporting(Arc::clone(&instance), Arc::clone(&told) as Arc<dyn Report>, Duration::ZERO);
        pick().finish(Outcome::Success);
        drop(pick());
        pick().finish(Outcome::Failure);
        assert_eq!(
            *told.0.lock().expect("unpoisoned"),
            [Outcome::Success, Outcome::Cancelled, Outcome::Failure]
        );
    }
}
