//! The tool's only clock, and waiting until a moment of it.

use std::time::{Duration, Instant};

/// Now. The tool measures real servers, so this is the one real clock there is.
#[allow(clippy::disallowed_methods)] // the home of the clock
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Sleeps until a moment; not at all if it has passed.
pub(crate) async fn until(moment: Instant) {
    tokio::time::sleep(moment.saturating_duration_since(now())).await;
}

/// Spawns a task that is part of a scenario: it ends with it, or with the program.
#[allow(clippy::disallowed_methods)] // the home of spawning
pub(crate) fn spawn<T: Send + 'static>(
    task: impl Future<Output = T> + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    tokio::spawn(task)
}

/// Microseconds of a duration.
#[allow(clippy::cast_precision_loss)] // figures for people
pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1_000.0
}
