//! The less loaded of two, by active requests per weight.
//!
//! The power of two choices: M. Mitzenmacher, *The Power of Two Choices in Randomized Load Balancing* (IEEE TPDS 2001).
//! Two different instances are drawn in proportion to their weights; the one with fewer active requests for its weight is
//! chosen, and of two that are equal the one drawn first, so that at rest requests go by weight. A request is active from
//! its pick until the pick is finished or dropped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use super::{
    Load, Outcome, Pick, PickContext, PickError, Picker, Policy, Report,
    alias::{AliasTable, select},
    loads::Loads,
    random::Random,
};
use crate::{model::InstanceList, runtime::Runtime};

/// Chooses the less loaded of two instances drawn by weight.
///
/// Counts survive changes of the instances: they are kept by instance.
#[derive(Debug)]
pub struct LeastRequest {
    seeds: Random,
    loads: Loads<Active>,
}

/// Chooses for [`LeastRequest`].
#[derive(Debug)]
pub struct LeastRequestPicker {
    instances: InstanceList,
    seats: Box<[Seat]>,
    table: AliasTable,
    random: Random,
}

/// What a pick looks at, side by side.
#[derive(Debug)]
struct Seat {
    active: Arc<Active>,
    /// The same, as what a pick reports to.
    report: Arc<dyn Report>,
    weight: u32,
}

/// Requests of one instance that have not ended.
#[derive(Debug, Default)]
struct Active(AtomicU32);

impl LeastRequest {
    /// Least request, with its randomness from the runtime.
    pub fn new(runtime: &Runtime) -> Self {
        Self::with_seed(runtime.random())
    }

    /// Least request that draws the same for the same seed.
    pub fn with_seed(seed: u64) -> Self {
        Self { seeds: Random::new(seed), loads: Loads::default() }
    }
}

impl Policy for LeastRequest {
    type Picker = LeastRequestPicker;

    fn build(&self, instances: &InstanceList) -> LeastRequestPicker {
        let active = self.loads.of(instances, Active::default);
        let seats = instances.iter().zip(active).map(|(instance, active)| Seat {
            report: Arc::clone(&active) as Arc<dyn Report>,
            active,
            weight: instance.weight,
        });
        LeastRequestPicker {
            instances: Arc::clone(instances),
            seats: seats.collect(),
            table: AliasTable::new(instances.iter().map(|instance| instance.weight)),
            random: Random::new(self.seeds.next()),
        }
    }
}

impl Seat {
    /// Whether it is more loaded than the other, for its weight.
    ///
    /// Without this request: of two at rest neither is, and the first drawn is chosen, by weight. With it the lighter one
    /// would be, and at rest hardly get anything, for the draw goes by weight already.
    #[inline]
    fn is_heavier(&self, other: &Self) -> bool {
        let active = |seat: &Self| u64::from(seat.active.0.load(Ordering::Relaxed));
        // Cross-multiplied: a comparison of fractions without a division.
        active(self) * u64::from(other.weight) > active(other) * u64::from(self.weight)
    }
}

impl Picker for LeastRequestPicker {
    #[inline]
    fn pick(&self, _: &PickContext) -> Result<Pick<'_>, PickError> {
        let (one, other) = draw_two(&self.table, &self.random)?;
        let (Some(first), Some(second)) = (self.seats.get(one), self.seats.get(other)) else {
            return Err(PickError::NoInstances);
        };
        let chosen = select(first.is_heavier(second), other, one);
        let seat = self.seats.get(chosen).ok_or(PickError::NoInstances)?;
        let pick = Pick::new(&self.instances, chosen)?;
        seat.active.0.fetch_add(1, Ordering::Relaxed);
        Ok(pick.reporting(&seat.report, Duration::ZERO))
    }

    fn load(&self, index: usize) -> Option<Load> {
        let in_flight = self.seats.get(index)?.active.0.load(Ordering::Relaxed);
        Some(Load { in_flight, latency: None })
    }
}

impl Report for Active {
    fn finished(&self, _: Outcome, _: Option<Duration>) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Two indices drawn by weight: different ones, unless a few draws find no second.
#[inline]
pub(super) fn draw_two(table: &AliasTable, random: &Random) -> Result<(usize, usize), PickError> {
    let draw = || table.draw(random.next()).ok_or(PickError::NoInstances);
    let one = draw()?;
    for _ in 0..4 {
        let other = draw()?;
        if other != one {
            return Ok((one, other));
        }
    }
    Ok((one, one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Instance;

    fn list(weights: &[u32]) -> InstanceList {
        let build = |(port, weight): (usize, &u32)| {
            let address = format!("a:{}", port + 1).parse().expect("valid");
            Arc::new(Instance::builder(address).weight(*weight).build())
        };
        weights.iter().enumerate().map(build).collect()
    }

    fn index(all: &InstanceList, pick: &Pick<'_>) -> usize {
        all.iter().position(|it| it.id == pick.instance().id).expect("of the list")
    }

    #[test]
    fn what_is_in_flight_is_held_near_the_weights() {
        let all = list(&[1, 2, 4, 8]);
        let picker = LeastRequest::with_seed(3).build(&all);
        let held: Vec<_> =
            (0..1_500).map(|_| picker.pick(&PickContext::default()).expect("eligible")).collect();
        let mut active = [0_u32; 4];
        for pick in &held {
            active[index(&all, pick)] += 1;
        }
        for (active, weight) in active.iter().zip([1, 2, 4, 8]) {
            let share = f64::from(*active) / f64::from(100 * weight);
            assert!((0.9..1.1).contains(&share), "{active:?} of weight {weight}");
        }
    }

    #[test]
    fn at_rest_requests_go_by_weight() {
        let all = list(&[1, 3, 4]);
        let picker = LeastRequest::with_seed(3).build(&all);
        let mut picks = [0_u32; 3];
        for _ in 0..80_000 {
            picks[index(&all, &picker.pick(&PickContext::default()).expect("eligible"))] += 1;
        }
        for (picks, weight) in picks.iter().zip([1, 3, 4]) {
            let share = f64::from(*picks) / f64::from(10_000 * weight);
            assert!((0.97..1.03).contains(&share), "{picks} of weight {weight}");
        }
    }

    #[test]
    fn an_instance_that_answers_slowly_gets_less() {
        let all = list(&[1; 10]);
        let picker = LeastRequest::with_seed(3).build(&all);
        let (mut held, mut slow) = (Vec::new(), 0);
        for _ in 0..1_000 {
            let pick = picker.pick(&PickContext::default()).expect("eligible");
            if index(&all, &pick) == 0 {
                slow += 1;
                held.push(pick);
            } else {
                pick.finish(Outcome::Success);
            }
        }
        assert!(slow <= 5, "the instance that never answers got {slow} of 1,000");
    }

    #[test]
    fn counts_survive_a_change_of_the_instances_and_end_with_their_picks() {
        let policy = LeastRequest::with_seed(1);
        let before = policy.build(&list(&[1, 1]));
        let held: Vec<_> =
            (0..10).map(|_| before.pick(&PickContext::default()).expect("eligible").into_owned()).collect();
        let after = policy.build(&list(&[1, 1, 1]));
        let active = |picker: &LeastRequestPicker| {
            picker.seats.iter().map(|it| it.active.0.load(Ordering::Relaxed)).sum::<u32>()
        };
        assert_eq!(active(&after), 10);
        drop(before);
        drop(held);
        assert_eq!(active(&after), 0);
    }

    #[test]
    fn one_instance_none_and_weights_of_0() {
        let policy = LeastRequest::with_seed(1);
        assert!(policy.build(&list(&[5])).pick(&PickContext::default()).is_ok());
        for weights in [&[][..], &[0], &[0, 0]] {
            assert_eq!(
                policy.build(&list(weights)).pick(&PickContext::default()).unwrap_err(),
                PickError::NoInstances
            );
        }
    }
}
