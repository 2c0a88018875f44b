//! Either hash with bounded load: a key whose instance is full goes on to another.
//!
//! `bound` has what makes an instance full, `jump` where to go on to.

use std::time::Duration;

use super::{
    Connects, Load, LoadFactorError, Pick, PickContext, PickError, Picker, Places, Policy,
    bound::{Bound, Group},
    jump,
};
use crate::model::InstanceList;

/// A policy that hashes, with bounded load: an instance takes a request only while it has no more than its weight's share
/// of all active ones, times a factor.
///
/// A request is active from its pick until the pick is finished or dropped. Counts survive changes of the instances: they
/// are kept by instance. Most keys stay with their instances; those of a full one are spread over the others, the same key
/// to the same ones in the same order, and come back when it has room.
///
/// ```
/// use client_sdk::balance::{Maglev, RingHash};
/// let even = RingHash::new().bounded();
/// let twice_the_mean = Maglev::new().bounded_by(2.0)?;
/// # Ok::<(), client_sdk::balance::LoadFactorError>(())
/// ```
#[derive(Debug)]
pub struct Bounded<H> {
    hash: H,
    bound: Bound,
}

/// Chooses for [`Bounded`].
#[derive(Debug)]
pub struct BoundedPicker<P> {
    places: P,
    group: Group,
}

impl<H> Bounded<H> {
    /// Bounds loads to 1.25 times the mean.
    pub fn new(hash: H) -> Self {
        Self { hash, bound: Bound::default() }
    }

    /// Bounds loads to `factor` times the mean, a number above 1. Near 1 the load is even and keys are often away from
    /// their instances; with 2 they leave only those that have twice their share.
    pub fn by(hash: H, factor: f64) -> Result<Self, LoadFactorError> {
        Ok(Self { hash, bound: Bound::new(factor)? })
    }
}

impl<H: Policy<Picker: Places>> Policy for Bounded<H> {
    type Picker = BoundedPicker<H::Picker>;

    fn connects(&self) -> Connects {
        self.hash.connects()
    }

    fn rebuild_every(&self) -> Option<Duration> {
        self.hash.rebuild_every()
    }

    fn build(&self, instances: &InstanceList) -> Self::Picker {
        BoundedPicker { places: self.hash.build(instances), group: self.bound.group(instances) }
    }
}

impl<P: Places> Picker for BoundedPicker<P> {
    fn pick(&self, context: &PickContext) -> Result<Pick<'_>, PickError> {
        let key = context.hash_key.ok_or(PickError::NoHashKey)?;
        let index = jump::find(&self.places, Some(&self.group), key, context.attempt)?;
        self.group.pick(self.places.instances(), index)
    }

    fn load(&self, index: usize) -> Option<Load> {
        self.group.load(index)
    }
}

#[cfg(test)]
mod tests;
