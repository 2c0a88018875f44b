//! Weighted round robin, smooth: one counter, no lock, no allocation per pick.
//!
//! The idea is the static stride of gRPC's weighted round robin (gRFC A58): instances stand in a ring that a counter walks;
//! in round `g` of the walk an instance of weight `w` is taken iff `(w·g + offset) mod M ≥ M − w`, with `M` the greatest
//! weight, otherwise it is passed over. Over `M` rounds that takes it exactly `w` times, evenly spread. Here weights are
//! not rounded to 16 bits, so a full cycle honours them exactly, and two things keep picks fast:
//!
//! - A weight above twice the mean is split over several places in the ring, so that on average fewer than three places
//!   are passed over for each that is taken, however skewed the weights are.
//! - A cycle that is short is walked once, when the picker is built, and written down: then a pick is one addition and
//!   one look-up.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{
    Pick, PickContext, PickError, Picker, Policy,
    random::{GOLDEN, Random},
};
use crate::{
    model::{Instance, InstanceList},
    runtime::Runtime,
};

/// How many picks a written-down cycle may have: so many for each instance, within these bounds.
const CYCLE_PER_INSTANCE: usize = 8;
const SHORT_CYCLE: usize = 1 << 10;
const LONG_CYCLE: usize = 1 << 16;

/// Weighted round robin: over a full cycle each instance gets exactly its weight's share. Each picker starts at a random
/// place, so that callers that learn of a change at the same time do not all call the same instance first.
#[derive(Debug)]
pub struct RoundRobin {
    starts: Random,
}

/// Chooses for [`RoundRobin`].
#[derive(Debug)]
pub struct RoundRobinPicker {
    instances: InstanceList,
    turns: Turns,
    next: AtomicU64,
}

/// Whose turn it is.
#[derive(Debug)]
enum Turns {
    /// Everyone's, one after the other: equal weights.
    Equal,
    /// The cycle written down, as indices of instances.
    Cycle(Box<[u32]>),
    /// Calculated.
    Stride(Stride),
}

#[derive(Debug)]
struct Stride {
    places: Box<[Place]>,
    /// The greatest weight of a place.
    modulus: u64,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    instance: u32,
    /// 1 to 2^32 − 1.
    weight: u64,
    /// Below the modulus.
    offset: u64,
}

impl RoundRobin {
    /// Weighted round robin, with its randomness from the runtime.
    pub fn new(runtime: &Runtime) -> Self {
        Self::with_seed(runtime.random())
    }

    /// Weighted round robin that repeats itself for the same seed.
    pub fn with_seed(seed: u64) -> Self {
        Self { starts: Random::new(seed) }
    }
}

impl Policy for RoundRobin {
    type Picker = RoundRobinPicker;

    fn build(&self, instances: &InstanceList) -> RoundRobinPicker {
        // Half the range, so that the counter does not wrap in anyone's lifetime: a wrap would break the cycle.
        let start = self.starts.next() >> 1;
        RoundRobinPicker {
            instances: Arc::clone(instances),
            turns: Turns::of(instances),
            next: AtomicU64::new(start),
        }
    }
}

impl Picker for RoundRobinPicker {
    fn pick(&self, _: &PickContext) -> Result<Pick<'_>, PickError> {
        let index = match &self.turns {
            Turns::Equal => modulo(self.turn(), self.instances.len()),
            Turns::Cycle(cycle) => {
                modulo(self.turn(), cycle.len()).and_then(|at| cycle.get(at)).map(|i| *i as usize)
            }
            // It ends: the place with the greatest weight is never passed over.
            Turns::Stride(stride) => loop {
                if let Some(index) = stride.at(self.turn()) {
                    break Some(index as usize);
                }
            },
        };
        Pick::new(&self.instances, index.ok_or(PickError::NoInstances)?)
    }
}

impl RoundRobinPicker {
    fn turn(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

impl Turns {
    fn of(instances: &[Arc<Instance>]) -> Self {
        let weight = |instance: &Arc<Instance>| u64::from(instance.weight);
        let first = instances.first().map_or(0, weight);
        if instances.iter().all(|instance| weight(instance) == first) {
            // Nobody's turn, if someone builds over nothing but weights of 0.
            return if first == 0 { Self::Cycle(Box::default()) } else { Self::Equal };
        }
        let divisor = instances.iter().map(weight).fold(0, greatest_common_divisor);
        let stride = Stride::of(instances.iter().map(|instance| weight(instance) / divisor));
        let cycle: u64 = stride.places.iter().map(|place| place.weight).sum();
        let limit = (instances.len() * CYCLE_PER_INSTANCE).clamp(SHORT_CYCLE, LONG_CYCLE);
        match usize::try_from(cycle) {
            Ok(cycle) if cycle <= limit => {
                Self::Cycle((0_u64..).filter_map(|turn| stride.at(turn)).take(cycle).collect())
            }
            _ => Self::Stride(stride),
        }
    }
}

impl Stride {
    /// Needs one weight above 0 at least; all of them fit in 32 bits.
    fn of(weights: impl ExactSizeIterator<Item = u64> + Clone) -> Self {
        let total: u64 = weights.clone().sum();
        let count = weights.len() as u64;
        let most = (2 * total).div_ceil(count).max(1);
        let mut places = Vec::with_capacity(weights.len() * 2);
        for (instance, weight) in (0_u32..).zip(weights).filter(|(_, weight)| *weight > 0) {
            // A place of its own for each `most` of the weight, evenly spread over the ring from a phase of its own.
            let parts = weight.div_ceil(most);
            let phase = u64::from(instance).wrapping_mul(GOLDEN);
            for part in 0..parts {
                let position = (u128::from(part) << 64 | u128::from(phase)) / u128::from(parts);
                let share = weight / parts + u64::from(part < weight % parts);
                places.push((position, Place { instance, weight: share, offset: 0 }));
            }
        }
        places.sort_by_key(|(position, place)| (*position, place.instance));
        let modulus = places.iter().map(|(_, place)| place.weight).max().unwrap_or(1);
        let places = (0_u64..).zip(places).map(|(index, (_, place))| {
            // Offsets that spread evenly keep equal weights from being taken in the same rounds.
            let offset = (u128::from(index.wrapping_mul(GOLDEN)) * u128::from(modulus)) >> 64;
            Place { offset: u64::try_from(offset).unwrap_or(0), ..place }
        });
        Self { places: places.collect(), modulus }
    }

    /// Who is taken at this turn; `None` if the place is passed over.
    fn at(&self, turn: u64) -> Option<u32> {
        let count = self.places.len() as u64;
        let place = self.places.get(modulo(turn, self.places.len())?)?;
        // No overflow: weight and round are below 2^32, as is the offset.
        let round = turn / count % self.modulus;
        let taken = (place.weight * round + place.offset) % self.modulus >= self.modulus - place.weight;
        taken.then_some(place.instance)
    }
}

fn modulo(turn: u64, count: usize) -> Option<usize> {
    usize::try_from(turn.checked_rem(count as u64)?).ok()
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests;
