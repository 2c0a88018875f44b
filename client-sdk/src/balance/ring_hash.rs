//! A ring of points: a key goes to the next point, and moves only if that point's instance comes or goes.
//!
//! Consistent hashing (D. Karger et al., STOC 1997) with points in the manner of ketama, on a ring of 2^32 places. An
//! instance has points in proportion to its weight; a point is XXH64 of the instance's id and the point's number, as 8
//! bytes, so that how many digits a number has moves nothing. With [`POINTS`] points for a middling weight the most loaded
//! of 100 instances has no more than 1.25 times the mean.
//!
//! `jump` has what happens when an instance did not take a request, `bounded` the same policy with bounded load.

use std::sync::Arc;

use xxhash_rust::xxh64::xxh64;

use super::{Bounded, Connects, LoadFactorError, Pick, PickContext, PickError, Picker, Places, Policy, jump};
use crate::model::{Instance, InstanceList};

/// Points of an instance of middling weight.
const POINTS: f64 = 256.0;
/// Points of the whole ring at most; beyond it every instance has half of them, or a quarter.
const MAX_POINTS: f64 = 4_000_000.0;

/// Chooses by the request's hash key: the same key goes to the same instance for as long as that one is there.
///
/// With [`PickContext::attempt`] above 0 the key goes on to another instance, for each attempt to one that those before did
/// not go to.
///
/// How many points a weight gets follows the mean weight, in steps: for weights that are all alike it never changes, but
/// when a change of weights takes their mean from one power of two to the next (at 1.41, 2.83, 5.66, …), about half of the
/// keys move, once. Whoever changes weights that differ sets [`points_per_weight`](Self::points_per_weight).
#[derive(Clone, Copy, Debug, Default)]
pub struct RingHash {
    /// `None`: by the mean weight.
    per_weight: Option<u32>,
}

/// Chooses for [`RingHash`].
#[derive(Debug)]
pub struct RingHashPicker {
    instances: InstanceList,
    ring: Ring,
}

/// The points, and an index of them.
///
/// ```text
///   slots    │  0 ──► a  │ 1: points │  2 ──► c  │ …    as many places of the ring each
///   points   ┼───────────┼──a───b────┼───────────┼─c
/// ```
///
/// A slot without a point in it has one owner, that of the next point, and answers by itself.
#[derive(Debug)]
struct Ring {
    /// Ordered by place; one at a place.
    points: Box<[Point]>,
    /// An instance, or `POINTS_WITHIN` and the first point in the slot.
    slots: Box<[u32]>,
    shift: u32,
}

const POINTS_WITHIN: u32 = 1 << 31;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    place: u32,
    instance: u32,
}

impl RingHash {
    /// A ring.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many points each unit of weight gets, at least 1, whatever the other weights are: then a change of one
    /// weight moves keys to or from that instance only. An instance should have some 256: set 256 for weights around 1, and
    /// 2 or 3 for weights around 100. Default: by the mean weight. A ring of more than 4,000,000 points gets half of
    /// them, or a quarter, and so on.
    ///
    /// Not to be set with shapers ([`shape`](super::shape)), which scale weights.
    #[must_use]
    pub fn points_per_weight(mut self, points: u32) -> Self {
        self.per_weight = Some(points.max(1));
        self
    }

    /// The same with bounded load: no instance gets more than 1.25 times the mean for its weight.
    pub fn bounded(self) -> Bounded<Self> {
        Bounded::new(self)
    }

    /// The same with the load bounded to `factor` times the mean, a number above 1.
    pub fn bounded_by(self, factor: f64) -> Result<Bounded<Self>, LoadFactorError> {
        Bounded::by(self, factor)
    }
}

impl Policy for RingHash {
    type Picker = RingHashPicker;

    fn connects(&self) -> Connects {
        Connects::OnDemand
    }

    fn build(&self, instances: &InstanceList) -> RingHashPicker {
        RingHashPicker {
            instances: Arc::clone(instances),
            ring: Ring::of(points(instances, self.per_weight)),
        }
    }
}

impl Picker for RingHashPicker {
    #[inline]
    fn pick(&self, context: &PickContext) -> Result<Pick<'_>, PickError> {
        jump::pick(self, context)
    }
}

impl Places for RingHashPicker {
    #[inline]
    fn instances(&self) -> &[Arc<Instance>] {
        &self.instances
    }

    #[inline]
    fn owner(&self, place: u64) -> Option<usize> {
        self.ring.owner(place)
    }
}

impl Ring {
    fn of(points: Vec<Point>) -> Self {
        if points.is_empty() {
            return Self { points: Box::default(), slots: Box::default(), shift: 0 };
        }
        // Two slots a point at least, so that most have none in them.
        let bits = (points.len().ilog2() + 2).min(24);
        let shift = u32::BITS - bits;
        let mut next = 0_u32;
        let slots = (0..1_u64 << bits).map(|slot| {
            let end = (slot + 1) << shift;
            let first = next;
            while points.get(next as usize).is_some_and(|point| u64::from(point.place) < end) {
                next += 1;
            }
            let after = points.get(next as usize).or(points.first()).map_or(0, |point| point.instance);
            if first == next { after } else { POINTS_WITHIN | first }
        });
        Self { slots: slots.collect(), points: points.into(), shift }
    }

    /// The instance of the first point at or past a place.
    #[inline]
    fn owner(&self, place: u64) -> Option<usize> {
        // The leading half counts.
        let place = u32::try_from(place >> 32).unwrap_or(u32::MAX);
        let slot = *self.slots.get((place >> self.shift) as usize)?;
        let instance =
            if slot & POINTS_WITHIN == 0 { slot } else { self.search(slot & !POINTS_WITHIN, place)? };
        Some(instance as usize)
    }

    #[inline]
    fn search(&self, from: u32, place: u32) -> Option<u32> {
        let within = self.points.get(from as usize..)?;
        let next = within.iter().find(|point| point.place >= place).or_else(|| self.points.first())?;
        Some(next.instance)
    }
}

/// The points of all instances, in order.
fn points(instances: &[Arc<Instance>], per_weight: Option<u32>) -> Vec<Point> {
    let weights = instances.iter().map(|instance| instance.weight);
    let per_weight = points_per_weight(weights, per_weight);
    // The place in the upper half, the instance in the lower: numbers are sorted faster than pairs.
    let mut packed = Vec::new();
    for (number, instance) in (0_u64..).zip(instances.iter()) {
        let seed = xxh64(instance.id.as_bytes(), 0);
        let places = (0..count(instance.weight, per_weight)).map(|index| xxh64(&index.to_le_bytes(), seed));
        packed.extend(places.map(|place| place & !u64::from(u32::MAX) | number));
    }
    packed.sort_unstable();
    #[allow(clippy::cast_possible_truncation)] // both halves, on purpose
    let unpack = |point: u64| Point { place: (point >> 32) as u32, instance: point as u32 };
    let mut points: Vec<Point> = packed.into_iter().map(unpack).collect();
    // Of several at one place the one with the least id has it, wherever they stand in the list.
    let id = |point: &Point| instances.get(point.instance as usize).map(|instance| &instance.id);
    points.dedup_by(|next, kept| {
        let same = next.place == kept.place;
        if same && id(next) < id(kept) {
            *kept = *next;
        }
        same
    });
    points
}

fn count(weight: u32, per_weight: f64) -> u64 {
    if weight == 0 {
        return 0;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bounded by MAX_POINTS
    let points = (f64::from(weight) * per_weight).round() as u64;
    points.max(1)
}

/// As set, or scaled by the power of two next to the mean weight: a change of one weight moves the other instances' points
/// only when the mean passes from one power to another. Halved until the whole ring is not too large.
fn points_per_weight(weights: impl ExactSizeIterator<Item = u32> + Clone, set: Option<u32>) -> f64 {
    let (total, heavy) = weights
        .filter(|weight| *weight > 0)
        .fold((0.0, 0.0), |(total, count), weight| (total + f64::from(weight), count + 1.0));
    if heavy == 0.0 {
        return 0.0;
    }
    let by_mean = || POINTS / (total / heavy).log2().round().exp2();
    let mut points = set.map_or_else(by_mean, f64::from);
    while points * total > MAX_POINTS {
        points /= 2.0;
    }
    points
}

#[cfg(test)]
mod tests;
