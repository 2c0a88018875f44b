//! Weighted round robin, smooth: one counter, no lock, no allocation per pick.
//!
//! Static stride, after the scheduler of gRPC's weighted round robin (gRFC A58): a cycle has as many turns as the weights
//! sum up to (divided by what they have in common), and an instance of weight `w` has `w` of them, a stride of cycle ÷ w
//! apart. There it is found by walking past instances whose turn it is not, with weights rounded to 16 bits; here nothing
//! is passed over nor rounded, and a full cycle honours the weights exactly:
//!
//! - A cycle that is short is laid out when the picker is built: a pick is one look-up.
//! - In a long one the weights are laid end to end, and turn `t` is unit `t·g mod cycle`, with `g` next to the golden
//!   section of the cycle and prime to it: each unit comes once in a cycle, and those of one instance at intervals of at
//!   most three lengths (the three-distance theorem, Sós 1958). A guide table (Chen and Asau, *On generating random
//!   variates from an empirical distribution*, 1974) finds the instance of a unit without a search.
//!
//! The counter is the turn as a fraction of the range of `u64`: it goes on by 2^64 ÷ cycle, so that one multiplication
//! gives the turn (D. Lemire et al., *Faster remainder by direct computation*, 2019). The step is rounded up, which
//! shifts the cycle by one turn after 2^64 ÷ cycle turns at the earliest: 2^48 where the cycle is laid out.
//!
//! A turn is taken by a load and a store. Picks that come after each other, on whatever threads, take one turn each; two
//! threads that pick within the same few nanoseconds may take the same turn, after which everyone goes on from there. A thread
//! that is preempted between its load and its store puts the counter back by as many turns as others took meanwhile, and
//! those come once more. So shares among threads hold on the average, not in each cycle, while a locked addition would triple
//! the cost of every pick, and make threads wait for each other.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{
    Pick, PickContext, PickError, Picker, Policy,
    random::{GOLDEN, Random},
    spread::scale,
};
use crate::{model::InstanceList, runtime::Runtime};

/// How many turns a cycle that is laid out may have: so many for each instance, within these bounds.
const CYCLE_PER_INSTANCE: usize = 8;
const SHORT_CYCLE: usize = 1 << 10;
const LONG_CYCLE: usize = 1 << 16;

/// Weighted round robin: over a full cycle each instance gets exactly its weight's share. Only picks that several threads make
/// at the same time may take turns twice: one together, or, if a thread is preempted in the middle of its pick, all that
/// others took meanwhile; then shares hold on the average. Each picker starts at a random place, so that callers that
/// learn of a change at the same time do not all call the same instance first.
#[derive(Debug)]
pub struct RoundRobin {
    starts: Random,
}

/// Chooses for [`RoundRobin`].
#[derive(Debug)]
pub struct RoundRobinPicker {
    instances: InstanceList,
    turns: Turns,
    /// Turns, or units of weight, of a whole cycle.
    cycle: u64,
    step: u64,
    next: AtomicU64,
}

/// Whose turn it is.
#[derive(Debug)]
enum Turns {
    /// Everyone's, one after the other: equal weights.
    Equal,
    /// The cycle laid out, as indices of instances.
    Laid(Box<[u32]>),
    /// The weights laid end to end.
    Units(Units),
}

#[derive(Debug)]
struct Units {
    /// Of each instance, the unit after its last.
    ends: Box<[u64]>,
    /// For each of the leading bits of the counter, the first instance that it may stand for.
    guide: Box<[u32]>,
    shift: u32,
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
        let weights: Vec<_> = instances.iter().map(|instance| instance.weight).collect();
        self.build_by(instances, &weights)
    }
}

impl RoundRobin {
    /// As [`build`](Policy::build), by other weights than the instances' own, in their order.
    pub(super) fn build_by(&self, instances: &InstanceList, weights: &[u32]) -> RoundRobinPicker {
        let (turns, cycle) = Turns::of(weights);
        let stride = if matches!(turns, Turns::Units(_)) { coprime_to(cycle) } else { 1 };
        let step = fraction(stride, cycle);
        let start = scale(self.starts.next(), cycle) as u64;
        RoundRobinPicker {
            instances: Arc::clone(instances),
            turns,
            cycle,
            step,
            next: AtomicU64::new(start.wrapping_mul(step)),
        }
    }
}

impl Picker for RoundRobinPicker {
    #[inline]
    fn pick(&self, _: &PickContext) -> Result<Pick<'_>, PickError> {
        Pick::new(&self.instances, self.next()?)
    }
}

impl RoundRobinPicker {
    /// Whose turn it is.
    #[inline]
    pub(super) fn next(&self) -> Result<usize, PickError> {
        let now = self.next.load(Ordering::Relaxed);
        self.next.store(now.wrapping_add(self.step), Ordering::Relaxed);
        let turn = scale(now, self.cycle);
        let index = match &self.turns {
            Turns::Equal => Some(turn),
            Turns::Laid(cycle) => cycle.get(turn).map(|index| *index as usize),
            Turns::Units(units) => units.owner(now, turn as u64),
        };
        index.ok_or(PickError::NoInstances)
    }
}

impl Turns {
    /// Whose turns, and how many in a cycle.
    fn of(weights: &[u32]) -> (Self, u64) {
        let count = weights.len();
        let first = weights.first().copied().unwrap_or(0);
        if weights.iter().all(|weight| *weight == first) {
            // Nobody's turn, if someone builds over nothing but weights of 0.
            let turns = if first == 0 { Self::Laid(Box::default()) } else { Self::Equal };
            return (turns, count as u64);
        }
        let divisor = weights.iter().map(|weight| u64::from(*weight)).fold(0, greatest_common_divisor);
        let weights = weights.iter().map(|weight| u64::from(*weight) / divisor);
        let cycle: u64 = weights.clone().sum();
        let limit = (count * CYCLE_PER_INSTANCE).clamp(SHORT_CYCLE, LONG_CYCLE);
        let turns = match usize::try_from(cycle) {
            Ok(turns) if turns <= limit => Self::Laid(lay_out(weights, turns)),
            _ => Self::Units(Units::of(weights, cycle)),
        };
        (turns, cycle)
    }
}

impl Units {
    fn of(weights: impl ExactSizeIterator<Item = u64>, cycle: u64) -> Self {
        // At least as many leading numbers as instances.
        let bits = weights.len().next_power_of_two().ilog2().max(1);
        let shift = u64::BITS - bits;
        let mut end = 0;
        let ends: Box<[u64]> = weights
            .map(|weight| {
                end += weight;
                end
            })
            .collect();
        let mut instance = 0_u32;
        let guide = (0..1_u64 << bits).map(|leading| {
            let first = scale(leading << shift, cycle) as u64;
            while ends.get(instance as usize).is_some_and(|end| *end <= first) {
                instance += 1;
            }
            instance
        });
        let guide = guide.collect();
        Self { ends, guide, shift }
    }

    /// The instance of a unit; `now` is the same as a fraction.
    #[inline]
    fn owner(&self, now: u64, unit: u64) -> Option<usize> {
        let leading = usize::try_from(now >> self.shift).ok()?;
        let from = *self.guide.get(leading)? as usize;
        // It is one or two further, on average over the units, for there are as many leading numbers as instances.
        let further = self.ends.get(from..)?.iter().position(|end| unit < *end)?;
        Some(from + further)
    }
}

/// A short cycle: each instance's turns evenly spread, from a phase of its own, and all of them in order.
fn lay_out(weights: impl Iterator<Item = u64>, turns: usize) -> Box<[u32]> {
    // The place in the upper half, in 2^32ths of the cycle; who takes the turn in the lower.
    let mut places: Vec<u64> = Vec::with_capacity(turns);
    for (instance, weight) in (0_u64..).zip(weights).filter(|(_, weight)| *weight > 0) {
        let stride = u64::MAX / weight;
        let phase = scale(instance.wrapping_mul(GOLDEN), stride) as u64;
        places.extend((0..weight).map(|turn| (turn * stride + phase) & !u64::from(u32::MAX) | instance));
    }
    places.sort_unstable();
    #[allow(clippy::cast_possible_truncation)] // the lower half, on purpose
    let cycle = places.into_iter().map(|place| place as u32);
    cycle.collect()
}

/// `part` of `whole`, as a fraction of the range of `u64`, rounded up.
fn fraction(part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    let fraction = (u128::from(part) << 64).div_ceil(u128::from(whole));
    #[allow(clippy::cast_possible_truncation)] // the whole is none of it
    let fraction = fraction as u64;
    fraction
}

/// The number next above the golden section of the cycle that has no divisor in common with it.
fn coprime_to(cycle: u64) -> u64 {
    let golden = scale(GOLDEN, cycle) as u64;
    (golden.max(1)..cycle).find(|it| greatest_common_divisor(*it, cycle) == 1).unwrap_or(1)
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests;
