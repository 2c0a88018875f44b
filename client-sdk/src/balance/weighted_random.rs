//! Weighted random choice in constant time, by the alias method.
//!
//! M. D. Vose, *A Linear Algorithm For Generating Random Numbers With a Given Distribution* (1991). Every instance gets a
//! column of equal height; whatever a light one leaves free is filled with a part of one heavy one, its alias. A pick
//! draws a column and a height in it: two look-ups, however many instances there are. All arithmetic is in integers, so
//! no weight is lost to rounding.

use std::sync::Arc;

use super::{Pick, PickContext, PickError, Picker, Policy, random::Random};
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
    columns: Box<[Column]>,
    random: Random,
}

#[derive(Clone, Copy, Debug)]
struct Column {
    /// Heights below it are the column's own instance, others its alias.
    own: u64,
    alias: u32,
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
            columns: columns(weights),
            random: Random::new(self.seeds.next()),
        }
    }
}

impl Picker for WeightedRandomPicker {
    fn pick(&self, _: &PickContext) -> Result<Pick, PickError> {
        // Lemire's multiplication instead of a division: the high half is the column, the low half the height in it.
        let drawn = u128::from(self.random.next()) * self.columns.len() as u128;
        #[allow(clippy::cast_possible_truncation)] // both halves, on purpose
        let (index, height) = ((drawn >> 64) as usize, drawn as u64);
        let chosen = self
            .columns
            .get(index)
            .map(|column| if height < column.own { index } else { column.alias as usize });
        match chosen.and_then(|index| self.instances.get(index)) {
            Some(instance) => Ok(Pick::new(Arc::clone(instance))),
            None => Err(PickError::NoInstances),
        }
    }
}

fn columns(weights: impl ExactSizeIterator<Item = u32> + Clone) -> Box<[Column]> {
    let total: u128 = weights.clone().map(u128::from).sum();
    if total == 0 {
        return Box::default();
    }
    // In units of which a column holds `total`: then a weight fills `weight · count` of them.
    let count = weights.len() as u128;
    let mut filled: Vec<u128> = weights.map(|weight| u128::from(weight) * count).collect();
    let mut columns: Vec<Column> =
        (0_u32..).zip(&filled).map(|(index, _)| Column { own: u64::MAX, alias: index }).collect();
    let (mut light, mut heavy): (Vec<usize>, Vec<usize>) =
        (0..filled.len()).partition(|i| filled[*i] < total);
    while let (Some(small), Some(large)) = (light.pop(), heavy.last().copied()) {
        // Below 2^64: a light column is filled with less than `total`.
        let own = u64::try_from((filled[small] << 64) / total).unwrap_or(u64::MAX);
        columns[small] = Column { own, alias: u32::try_from(large).unwrap_or(u32::MAX) };
        filled[large] -= total - filled[small];
        if filled[large] < total {
            heavy.pop();
            light.push(large);
        }
    }
    columns.into()
}

#[cfg(test)]
mod tests;
