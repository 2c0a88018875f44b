//! What a pool is used for right now, as demand in members' worth.

/// More than this no demand is: it could not be reckoned with.
const MOST: f64 = 1e9;

/// How many members there are, and how much of them is used, at one moment.
///
/// Demand is counted in members: 2.5 is what two members and a half are needed for. A member's worth is its limit of requests
/// in flight, or less, if it says itself that it takes no more (it is *busy*).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    ready: usize,
    coming: usize,
    used: f64,
    waiting: f64,
}

impl Usage {
    /// What is used: of each member that takes requests, or would if it were not busy, how many it has in flight and whether it
    /// is busy; `coming` members in the making, or made and not ready yet; `waiting` requests that have no member.
    ///
    /// `limit` is how many requests a member may have in flight; 0 is taken as 1.
    pub fn of(
        limit: usize,
        members: impl IntoIterator<Item = (usize, bool)>,
        coming: usize,
        waiting: usize,
    ) -> Self {
        let limit = limit.max(1);
        let (mut ready, mut in_flight, mut used) = (0, 0, 0.0);
        for (of_this, busy) in members {
            ready += 1;
            in_flight += of_this;
            used += if busy || of_this >= limit { 1.0 } else { number(of_this) / number(limit) };
        }
        // Where requests wait all members have what they can: that shows how many make up a member's worth.
        let worth = if in_flight == 0 { number(limit) } else { (number(in_flight) / number(ready)).max(1.0) };
        Self { ready, coming, used, waiting: number(waiting) / worth }
    }

    /// What is used on average: `used` and `waiting` in members' worth, of `ready` members, with `coming` ones in the making. For
    /// whoever measures it over time, instead of looking at one moment. What is no demand (below 0, not a number) is none, and
    /// none is more than a billion.
    pub fn averaged(ready: usize, coming: usize, used: f64, waiting: f64) -> Self {
        // Not a number is none, too.
        let demand = |it: f64| if it > 0.0 { it.min(MOST) } else { 0.0 };
        Self { ready, coming, used: demand(used), waiting: demand(waiting) }
    }

    /// How many members there are, those that come included.
    pub fn size(&self) -> usize {
        self.ready + self.coming
    }

    /// How many members are in the making, or not ready yet.
    pub fn coming(&self) -> usize {
        self.coming
    }

    /// The demand, in members.
    ///
    /// What waits counts as a quarter of the members at most, and at least as one: a backlog tells that there are too few, but
    /// not how many are needed, for it goes on growing while further ones are made.
    pub fn demand(&self) -> f64 {
        self.used + self.waiting.min((number(self.ready) / 4.0).max(1.0))
    }
}

/// Counts of things are far below 2^52, where a float is exact.
#[allow(clippy::cast_precision_loss)]
pub(super) fn number(count: usize) -> f64 {
    count as f64
}
