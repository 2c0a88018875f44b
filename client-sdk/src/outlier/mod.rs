//! Outlier detection: which instances do so much worse than they should that requests had better go elsewhere for a while.
//!
//! Owns what is counted of each instance, the algorithms that judge it, and how long a judgement holds. Pure and
//! deterministic: time is told, and the same seed comes to the same judgements. Does not own who is asked to choose among
//! whom (`members` leaves out what is ejected), nor connections: one that cannot be opened, or is lost, is its channel's state
//! and is not counted here.
//!
//! ```text
//!               judged, and the share allows it
//!   Admitted ------------------------------------> Ejected (for base x times, at most max)
//!      ^                                             |    ^
//!      | its answer was good                         |    | its answer was not, or did not come
//!      |                              time is up, at |    | (for longer than the last time)
//!      |                                   an interval    |
//!      +------------------------ Probing <-----------+    |
//!                                   |                     |
//!                                   +---------------------+
//!                          one request at a time
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `settings` | what may be set, and the defaults |
//! | `success_rate`, `failure_percentage`, `consecutive_failures` | an algorithm each |
//! | `share` | how many may be ejected |
//! | `tally` | what is counted of one instance by the requests themselves, without a lock, and its probe |
//! | `detector` | the state of all of them, and the interval |
//!
//! After [gRFC A50](https://github.com/grpc/proposal/blob/master/A50-xds-outlier-detection.md), in its order: counters are
//! taken, success rates judged, then failure percentages, then ejections end and multipliers fall. Different from it: failures
//! in a row eject at once; the worst are ejected first; never beyond the share, instead of once; a time that is up ends in a
//! probe, not in full traffic; a multiplier grows only as long as it makes a difference.

mod consecutive_failures;
mod detector;
mod failure_percentage;
mod settings;
mod share;
mod success_rate;
mod tally;

pub use detector::{Detector, Ejection, EjectionCause, Judgement, News};
pub use failure_percentage::FailurePercentage;
pub use settings::{OutlierDetection, OutlierDetectionBuilder, OutlierDetectionError};
pub use success_rate::SuccessRate;
pub use tally::{Passage, Probe, Tally, Told};

/// What one instance did within an interval.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Which instance, as the detector counts them.
    host: usize,
    successes: u64,
    failures: u64,
}

impl Sample {
    fn requests(&self) -> u64 {
        self.successes.saturating_add(self.failures)
    }

    /// Of at least one request.
    #[allow(clippy::cast_precision_loss)] // counts of one interval
    fn success_rate(&self) -> f64 {
        self.successes as f64 / self.requests() as f64
    }
}

/// The worst first, and among equals as the view has them.
fn worst_first(mut outliers: Vec<Sample>) -> Vec<usize> {
    outliers.sort_by(|one, other| one.success_rate().total_cmp(&other.success_rate()));
    outliers.iter().map(|sample| sample.host).collect()
}
