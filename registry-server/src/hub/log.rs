//! The recent log: the only history there is.
//!
//! One queue over all services, bounded by count, age and bytes. The entries of a service are indexed by its feed, which
//! is told when its oldest one goes. After a restart it is made again from the records that the store kept, in the same
//! way, so that watchers resume from it (W5).

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::{feed::Feed, logged::Logged};

/// Bounds of the recent log. Whichever is reached first, the oldest entries go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Changes of a service by a revision. 10,000.
    pub count: usize,
    /// Age, by the server's wall clock. 10 min.
    pub age: Duration,
    /// Bytes of the encoded instances in them. 64 MiB.
    pub bytes: usize,
}

impl LogLimits {
    /// Whether what happened at `wall` is older than it may be at `now_wall`.
    pub(crate) fn is_too_old(&self, wall: u64, now_wall: u64) -> bool {
        let age = u64::try_from(self.age.as_millis()).unwrap_or(u64::MAX);
        now_wall.saturating_sub(wall) > age
    }
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { count: 10_000, age: Duration::from_mins(10), bytes: 64 << 20 }
    }
}

/// Room is made for so many entries at most before there are any.
const MOST_AT_ONCE: usize = 1 << 15;

#[derive(Debug)]
pub(super) struct RecentLog {
    limits: LogLimits,
    entries: VecDeque<(Arc<Feed>, Arc<Logged>)>,
    bytes: usize,
    newest_wall: u64,
}

impl RecentLog {
    pub(super) fn new(limits: LogLimits, now_wall: u64) -> Self {
        // No more than there will be: grown by doubling it would be twice as large.
        let entries = VecDeque::with_capacity((limits.count + 1).min(MOST_AT_ONCE));
        Self { limits, entries, bytes: 0, newest_wall: now_wall }
    }

    pub(super) fn push(&mut self, feed: Arc<Feed>, logged: Arc<Logged>) {
        self.bytes += logged.bytes();
        self.entries.push_back((feed, logged));
    }

    /// Entries.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of the encoded instances in them.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn trim(&mut self, now_wall: u64) {
        // A wall clock that was set back does not make entries younger.
        self.newest_wall = self.newest_wall.max(now_wall);
        while let Some((_, oldest)) = self.entries.front() {
            let within = self.entries.len() <= self.limits.count
                && self.bytes <= self.limits.bytes
                && !self.limits.is_too_old(oldest.wall, self.newest_wall);
            if within {
                return;
            }
            if let Some((feed, oldest)) = self.entries.pop_front() {
                self.bytes -= oldest.bytes();
                feed.drop_oldest(oldest.revision);
            }
        }
    }
}
