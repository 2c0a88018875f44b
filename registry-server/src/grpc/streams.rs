//! The two streams to watchers, as what they say around a [`super::feeder::Feeder`]: `Watch` ([`WatchStream`], one view) and
//! `Subscribe` ([`SubscribeStream`], many, and what its client asks). Here is what both share: how they end when the server stops.

use std::{future::Future, pin::Pin, time::Duration};

mod answer;
mod requests;
mod subscribe;
mod watch;

pub(super) use self::{
    answer::answer,
    requests::Requests,
    subscribe::{BEHIND_WAIT, SubscribeStream},
    watch::WatchStream,
};

/// How long a stream stays open after the time at which it was asked to leave, where all leave within `spread`: half of
/// that, and half a second at most.
pub(crate) fn leave_margin(spread: Duration) -> Duration {
    spread.min(Duration::from_secs(1)) / 2
}

/// Tells streams that the server stops, and over what time they are to leave.
pub(super) type Stopping = tokio::sync::watch::Receiver<Option<Duration>>;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Resolves when the server stops.
fn stopped(mut stopping: Stopping) -> BoxFuture<Duration> {
    Box::pin(async move {
        let delay = match stopping.wait_for(Option::is_some).await {
            Ok(delay) => *delay,
            Err(_) => None,
        };
        delay.unwrap_or_default()
    })
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
#[cfg(test)]
mod handover_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
pub(super) mod tests;
