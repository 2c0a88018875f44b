//! From a key to an instance, for both hashes: the instance of the key's place, and where to go on to from there.
//!
//! ```text
//!   key ──probe 0──► instance ──did not take it, or is full──► key hashed anew with 1, 2, … ──► others
//!                                                                └─ 64 probes in all ──► the least loaded of the rest
//! ```
//!
//! It jumps instead of going to the neighbour: a neighbour gets all that its full neighbour cannot take, is full itself
//! soon, and so on along the ring; jumps spread it over all by weight (J. Chen, B. Coleman, A. Shrivastava, *Revisiting
//! Consistent Hashing with Bounded Loads*, AAAI 2021). Attempts go the same way, each to an instance that the ones before
//! did not go to, so that the same key goes to the same instances in the same order.

use std::{cmp::Ordering, sync::Arc};

use xxhash_rust::xxh64::xxh64;

use super::{
    Pick, PickContext, PickError, Picker,
    bound::Group,
    spread::{probe, spread},
};
use crate::model::Instance;

/// How often a key is hashed anew. Where a fifth of the capacity is free, which a factor of 1.25 sees to, all of them fail
/// in one case of a million.
const PROBES: u32 = 64;
/// How many instances of earlier attempts are told apart.
const REMEMBERED: usize = 16;

/// A picker that knows an instance for every place in the range of `u64`: what hashing by a key needs, with bounded load or
/// without.
pub trait Places: Picker {
    /// The instances that it was built over.
    fn instances(&self) -> &[Arc<Instance>];

    /// The index of the instance that a place belongs to. `None` if no instance has a place.
    fn owner(&self, place: u64) -> Option<usize>;
}

/// The instance for a request.
#[inline]
pub(super) fn pick<'a>(places: &'a impl Places, context: &PickContext) -> Result<Pick<'a>, PickError> {
    let key = context.hash_key.ok_or(PickError::NoHashKey)?;
    let index = if context.attempt == 0 {
        places.owner(spread(key)).ok_or(PickError::NoInstances)?
    } else {
        find(places, None, key, context.attempt)?
    };
    Pick::new(places.instances(), index)
}

/// The instance for a further attempt, or in a group, which has then counted the request. Aside, so that the common way is
/// short.
#[inline(never)]
pub(super) fn find(
    places: &impl Places,
    group: Option<&Group>,
    key: u64,
    attempt: u32,
) -> Result<usize, PickError> {
    let instances = places.instances();
    // As many attempts as there are instances go once around.
    let attempt = (attempt as usize).checked_rem(instances.len()).unwrap_or(0);
    let (mut passed, mut seen) = (0, [usize::MAX; REMEMBERED]);
    for number in 0..PROBES {
        let index = places.owner(spread(probe(key, number))).ok_or(PickError::NoInstances)?;
        if seen.contains(&index) {
            continue;
        }
        if passed == attempt {
            if group.is_none_or(|group| group.claim(index)) {
                return Ok(index);
            }
        } else if group.is_none_or(|group| group.has_room(index)) {
            if let Some(place) = seen.get_mut(passed) {
                *place = index;
            }
            passed += 1;
        }
    }
    loop {
        let index = least_loaded(instances, group, key, &seen)?;
        match seen.get_mut(passed) {
            Some(place) if passed < attempt => *place = index,
            _ => {
                group.inspect(|group| group.add(index));
                return Ok(index);
            }
        }
        passed += 1;
    }
}

/// Of those not passed by, the one with the least load for its weight; of all, if all were. Of equal ones the key decides,
/// so that the order of the list does not.
fn least_loaded(
    instances: &[Arc<Instance>],
    group: Option<&Group>,
    key: u64,
    passed_by: &[usize],
) -> Result<usize, PickError> {
    let load = |index: usize| group.map_or(0.0, |group| group.load_per_weight(index));
    let order = |index: usize| instances.get(index).map_or(0, |it| xxh64(it.id.as_bytes(), key));
    let compare = |a: &usize, b: &usize| -> Ordering {
        load(*a).total_cmp(&load(*b)).then_with(|| order(*a).cmp(&order(*b)))
    };
    let all = || (0..instances.len()).filter(|index| instances[*index].weight > 0);
    let rest = all().filter(|index| !passed_by.contains(index)).min_by(compare);
    rest.or_else(|| all().min_by(compare)).ok_or(PickError::NoInstances)
}

#[cfg(test)]
mod tests;
