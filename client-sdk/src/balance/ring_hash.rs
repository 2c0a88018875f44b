//! A ring of points: a key goes to the next point, and moves only if that point's instance comes or goes.
//!
//! Consistent hashing (D. Karger et al., STOC 1997) with points in the manner of ketama. An instance has points in
//! proportion to its weight; a point is XXH64 of the instance's id and the point's number, as 8 bytes, so that how many
//! digits a number has moves nothing. With [`POINTS`] points for a middling weight the most loaded of 100 instances has no
//! more than 1.25 times the mean.

use std::sync::Arc;

use xxhash_rust::xxh64::xxh64;

use super::{Connects, Pick, PickContext, PickError, Picker, Policy};
use crate::model::InstanceList;

/// Points of an instance of middling weight.
const POINTS: f64 = 512.0;
/// Points of the whole ring at most; beyond it every instance has fewer.
const MAX_POINTS: f64 = 4_000_000.0;

/// Chooses by the request's hash key: the same key goes to the same instance for as long as that one is there.
#[derive(Clone, Copy, Debug, Default)]
pub struct RingHash(());

/// Chooses for [`RingHash`].
#[derive(Debug)]
pub struct RingHashPicker {
    instances: InstanceList,
    /// Ordered by place.
    points: Box<[Point]>,
    /// For each of the leading bits of a place, the first point at or past it: a look-up instead of a search.
    starts: Box<[u32]>,
    shift: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    place: u64,
    instance: u32,
}

impl RingHash {
    /// A ring.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Policy for RingHash {
    type Picker = RingHashPicker;

    fn connects(&self) -> Connects {
        Connects::OnDemand
    }

    fn build(&self, instances: &InstanceList) -> RingHashPicker {
        let per_weight = points_per_weight(instances.iter().map(|instance| instance.weight));
        let mut points = Vec::new();
        for (number, instance) in (0_u32..).zip(instances.iter()) {
            for index in 0..count(instance.weight, per_weight) {
                let seed = xxh64(instance.id.as_bytes(), 0);
                points.push(Point { place: xxh64(&index.to_le_bytes(), seed), instance: number });
            }
        }
        // Two instances at one place are ordered by their ids, not by where they stand in the list.
        points.sort_unstable_by(|a, b| {
            let id = |point: &Point| instances.get(point.instance as usize).map(|instance| &*instance.id);
            a.place.cmp(&b.place).then_with(|| id(a).cmp(&id(b)))
        });
        let (starts, shift) = starts(&points);
        RingHashPicker { instances: Arc::clone(instances), points: points.into(), starts, shift }
    }
}

impl RingHashPicker {
    fn point(&self, key: u64) -> Option<Point> {
        // A key need not be well mixed; a place is.
        let place = mix(key);
        let bucket = usize::try_from(place >> self.shift).unwrap_or(usize::MAX);
        let from = self.starts.get(bucket).map_or(0, |start| *start as usize);
        let after = self.points.get(from..).unwrap_or_default().iter().find(|point| point.place >= place);
        after.or_else(|| self.points.first()).copied()
    }
}

impl Picker for RingHashPicker {
    fn pick(&self, context: &PickContext) -> Result<Pick<'_>, PickError> {
        let key = context.hash_key.ok_or(PickError::NoHashKey)?;
        let point = self.point(key).ok_or(PickError::NoInstances)?;
        Pick::new(&self.instances, point.instance as usize)
    }
}

/// Makes every bit of a key count for every bit of its place: XXH64 of its 8 bytes.
pub(super) fn mix(key: u64) -> u64 {
    xxh64(&key.to_le_bytes(), 0)
}

fn count(weight: u32, per_weight: f64) -> u64 {
    if weight == 0 {
        return 0;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bounded by MAX_POINTS
    let points = (f64::from(weight) * per_weight).round() as u64;
    points.max(1)
}

/// Scaled by the power of two next to the mean weight: a change of one weight moves the other instances' points only when
/// the mean passes from one power to another.
fn points_per_weight(weights: impl ExactSizeIterator<Item = u32> + Clone) -> f64 {
    let (total, heavy) = weights
        .filter(|weight| *weight > 0)
        .fold((0.0, 0.0), |(total, count), weight| (total + f64::from(weight), count + 1.0));
    if heavy == 0.0 {
        return 0.0;
    }
    let scale = (total / heavy).log2().round().exp2();
    (POINTS / scale).min(MAX_POINTS / total)
}

fn starts(points: &[Point]) -> (Box<[u32]>, u32) {
    // About two buckets a point.
    let bits = (points.len().max(1).ilog2() + 2).min(24);
    let shift = 64 - bits;
    let mut starts = vec![0_u32; 1 << bits];
    let mut next = 0_u32;
    for (bucket, start) in (0_u64..).zip(starts.iter_mut()) {
        while points.get(next as usize).is_some_and(|point| point.place >> shift < bucket) {
            next += 1;
        }
        *start = next;
    }
    (starts.into(), shift)
}

#[cfg(test)]
mod tests;
