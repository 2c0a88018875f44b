//! Weighted random choice in constant time, by the alias method.
//!
//! `alias` has how it draws, and the source.

use std::sync::Arc;

use super::{Pick, PickContext, PickError, Picker, Policy, alias::AliasTable, random::Random};
use crate::{model::InstanceList, runtime::Runtime};

/// Chooses at random, each instance with a probability in proportion to its weight.
#[derive(Debug)]
pub struct WeightedRandom {
    seeds: Random,
}

/// Chooses for [`WeightedRandom`].
#[derive(Debug)]
pub struct WeightedRandomPicker {
    instances: InstanceList,
    table: AliasTable,
    random: Random,
}

impl WeightedRandom {
    /// Weighted random choice, with its randomness from the runtime.
    pub fn new(runtime: &Runtime) -> Self {
        Self::with_seed(runtime.random())
    }

    /// Weighted random choice that repeats itself for the same seed.
    pub fn with_seed(seed: u64) -> Self {
        Self { seeds: Random::new(seed) }
    }
}

impl Policy for WeightedRandom {
    type Picker = WeightedRandomPicker;

    fn build(&self, instances: &InstanceList) -> WeightedRandomPicker {
        let weights = instances.iter().map(|instance| instance.weight);
        WeightedRandomPicker {
            instances: Arc::clone(instances),
            table: AliasTable::new(weights),
            random: Random::new(self.seeds.next()),
        }
    }
}

impl Picker for WeightedRandomPicker {
    #[inline]
    fn pick(&self, _: &PickContext) -> Result<Pick<'_>, PickError> {
        let index = self.table.draw(self.random.next()).ok_or(PickError::NoInstances)?;
        Pick::new(&self.instances, index)
    }
}

#[cfg(test)]
mod tests;
