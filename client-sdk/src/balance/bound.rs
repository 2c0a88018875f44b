//! Bounded load: how many requests an instance may have at once, in proportion to what all of them have.
//!
//! V. Mirrokni, M. Thorup, M. Zadimoghaddam, *Consistent Hashing with Bounded Loads* (SODA 2018; arXiv 1608.01350, 2016).
//! With `m` requests active, this one included, an instance of weight `w` takes it only while it has no more than
//! ⌈factor · m · w ÷ W⌉ then, `W` being the sum of all weights. A factor above 1 leaves room in some instance always.
//!
//! A request counts at its instance, wherever it was picked: counts are kept by instance and outlive rebuilds. The total
//! belongs to a picker: the sum over just its instances, exact while pickers come and go and share instances (one policy
//! serves many endpoints, whose views may overlap). So a request adds to its instance, and to the total of each picker that
//! has the instance; a picker joins with what the instance has at that moment:
//!
//! ```text
//!   state of an instance:  [ epoch | active ]   one word; adding to either half tells what the other was
//!   join:     list the total as valid from epoch + 1 ──► epoch + 1, which tells `active`: the total starts with it
//!   request:  active ± 1, which tells the epoch ──► ± 1 on each total listed as valid from that epoch or an earlier one
//! ```
//!
//! Whichever of the two comes first in the word's history, each request is in each total once. Nobody waits for anybody.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;

use super::{Load, Outcome, Pick, PickError, Report, loads::Loads};
use crate::model::Instance;

/// The factor unless another is set.
const FACTOR: f64 = 1.25;
const EPOCH: u64 = 1 << 32;

/// A factor that bounds no load.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error(
    "loads cannot be bounded by {factor} times the mean: it must be a number above 1; 1.25 is a good one"
)]
pub struct LoadFactorError {
    factor: f64,
}

/// The bound of a policy.
#[derive(Debug)]
pub(super) struct Bound {
    factor: f64,
    loads: Loads<Active>,
    /// Pickers join one at a time.
    joining: Mutex<()>,
}

/// A picker's instances, with their total.
#[derive(Debug)]
pub(super) struct Group {
    seats: Box<[Seat]>,
    factor: f64,
    weight: f64,
    total: Arc<Total>,
}

#[derive(Debug)]
struct Seat {
    active: Arc<Active>,
    /// The same, as what a pick reports to.
    report: Arc<dyn Report>,
    weight: f64,
}

/// Requests of one instance that have not ended, and the totals that they belong to.
#[derive(Debug, Default)]
struct Active {
    /// The epoch in the upper half, the count in the lower.
    state: AtomicU64,
    totals: ArcSwap<Vec<Joined>>,
}

#[derive(Clone, Debug)]
struct Joined {
    since: u64,
    total: Arc<Total>,
}

#[derive(Debug, Default)]
struct Total {
    /// Below zero for a moment, when a request ends before its start is known here.
    active: AtomicI64,
    /// Its picker is gone.
    ended: AtomicBool,
}

impl Bound {
    /// Loads up to `factor` times the mean.
    pub(super) fn new(factor: f64) -> Result<Self, LoadFactorError> {
        if factor.is_finite() && factor > 1.0 {
            Ok(Self::of(factor))
        } else {
            Err(LoadFactorError { factor })
        }
    }

    fn of(factor: f64) -> Self {
        Self { factor, loads: Loads::default(), joining: Mutex::default() }
    }

    /// The instances of a new picker.
    pub(super) fn group(&self, instances: &[Arc<Instance>]) -> Group {
        let actives = self.loads.of(instances, Active::default);
        let total = Arc::new(Total::default());
        {
            let _one = self.joining.lock().unwrap_or_else(PoisonError::into_inner);
            actives.iter().for_each(|active| active.join(&total));
        }
        let seats = instances.iter().zip(actives).map(|(instance, active)| Seat {
            report: Arc::clone(&active) as Arc<dyn Report>,
            active,
            weight: f64::from(instance.weight),
        });
        let seats: Box<[Seat]> = seats.collect();
        Group { factor: self.factor, weight: seats.iter().map(|seat| seat.weight).sum(), seats, total }
    }
}

impl Default for Bound {
    fn default() -> Self {
        Self::of(FACTOR)
    }
}

impl Group {
    /// Whether the instance may take one more request.
    pub(super) fn has_room(&self, index: usize) -> bool {
        self.seats.get(index).is_some_and(|seat| self.admits(seat, seat.active.count()))
    }

    /// Counts one more request of the instance if it may take it. Of several threads at once, none takes another's room.
    pub(super) fn claim(&self, index: usize) -> bool {
        self.seats.get(index).is_some_and(|seat| seat.active.add_if(|count| self.admits(seat, count)))
    }

    /// Counts one more request of the instance, in any case.
    pub(super) fn add(&self, index: usize) {
        if let Some(seat) = self.seats.get(index) {
            seat.active.add_if(|_| true);
        }
    }

    /// The pick of an instance that has counted it.
    pub(super) fn pick<'a>(
        &'a self,
        instances: &'a [Arc<Instance>],
        index: usize,
    ) -> Result<Pick<'a>, PickError> {
        let seat = self.seats.get(index).ok_or(PickError::NoInstances)?;
        Ok(Pick::new(instances, index)?.reporting(&seat.report, Duration::ZERO))
    }

    /// How loaded the instance would be with one more request, for its weight.
    pub(super) fn load_per_weight(&self, index: usize) -> f64 {
        self.seats.get(index).map_or(f64::INFINITY, |seat| f64::from(seat.active.count() + 1) / seat.weight)
    }

    /// For people who look.
    pub(super) fn load(&self, index: usize) -> Option<Load> {
        Some(Load { in_flight: self.seats.get(index)?.active.count(), latency: None })
    }

    /// Whether an instance with so many requests may have one more: count + 1 ≤ ⌈factor · m · w ÷ W⌉, which is the same as
    /// count · W < factor · m · w, without a division that rounds.
    fn admits(&self, seat: &Seat, count: u32) -> bool {
        #[allow(clippy::cast_precision_loss)] // requests at one time: far below 2^53
        let with_this = self.total() as f64 + 1.0;
        f64::from(count) * self.weight < self.factor * with_this * seat.weight
    }

    pub(super) fn total(&self) -> i64 {
        self.total.active.load(Ordering::Relaxed).max(0)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.total.ended.store(true, Ordering::Relaxed);
    }
}

impl Active {
    fn count(&self) -> u32 {
        count(self.state.load(Ordering::Relaxed))
    }

    /// One at a time.
    fn join(&self, total: &Arc<Total>) {
        let known = self.totals.load();
        // Twice in one list, it is still one instance.
        if known.last().is_some_and(|joined| Arc::ptr_eq(&joined.total, total)) {
            return;
        }
        let since = (self.state.load(Ordering::Relaxed) / EPOCH) + 1;
        let mut totals = Vec::with_capacity(known.len() + 1);
        totals.extend(known.iter().filter(|joined| !joined.total.ended.load(Ordering::Relaxed)).cloned());
        totals.push(Joined { since, total: Arc::clone(total) });
        self.totals.store(Arc::new(totals));
        // Whoever sees the new epoch sees the new list.
        let before = self.state.fetch_add(EPOCH, Ordering::AcqRel);
        total.active.fetch_add(i64::from(count(before)), Ordering::Relaxed);
    }

    fn add_if(&self, admits: impl Fn(u32) -> bool) -> bool {
        let add = |state: u64| admits(count(state)).then_some(state + 1);
        match self.state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, add) {
            Ok(before) => {
                self.tell(before / EPOCH, 1);
                true
            }
            Err(_) => false,
        }
    }

    fn tell(&self, epoch: u64, by: i64) {
        for joined in self.totals.load().iter().filter(|joined| joined.since <= epoch) {
            joined.total.active.fetch_add(by, Ordering::Relaxed);
        }
    }
}

impl Report for Active {
    fn finished(&self, _: Outcome, _: Option<Duration>) {
        let before = self.state.fetch_sub(1, Ordering::AcqRel);
        self.tell(before / EPOCH, -1);
    }
}

#[allow(clippy::cast_possible_truncation)] // the lower half, on purpose
fn count(state: u64) -> u32 {
    state as u32
}
