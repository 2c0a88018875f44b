//! Zones in an order of one's own: the first takes everything while it is well.
//!
//! Envoy's priority levels (*Priority levels* and *Overprovisioning factor* in its load balancing documentation). The health of
//! a level is the share of its weight that is usable, times the overprovisioning factor, 1 at most. The levels share the
//! requests in their order:
//!
//! ```text
//!   share of a level = min(health, what is left)      if the healths of all sum up to 1 or more
//!                    = health ÷ sum of all healths    otherwise: all are overloaded alike
//! ```
//!
//! So a level keeps everything until less than 1 ÷ 1.4 = 71.4 % of it is usable.

use std::{sync::Arc, time::Duration};

use super::{Shaper, ShapingError, Share};

/// The overprovisioning factor unless another is set.
pub(super) const OVERPROVISIONED: f64 = 1.4;

/// Sends requests to the zones in a set order: to the first while enough of it is usable, what it cannot take to the second,
/// and so on. Zones that are not named come last, all together.
///
/// It does not ask where other callers send theirs: where many callers of one zone could overload another,
/// [`ZoneAware`](super::ZoneAware) does.
///
/// ```
/// use client_sdk::balance::shape::Failover;
/// let home_first = Failover::new(["eu-central-1b", "eu-central-1a"])?;
/// # Ok::<(), client_sdk::balance::shape::ShapingError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Failover {
    zones: Vec<Arc<str>>,
    overprovisioning: f64,
}

impl Failover {
    /// Zones by their names (`locality.zone`), the first to be used first.
    pub fn new<Z: Into<Arc<str>>>(zones: impl IntoIterator<Item = Z>) -> Result<Self, ShapingError> {
        let zones: Vec<Arc<str>> = zones.into_iter().map(Into::into).collect();
        let twice = |(index, zone): &(usize, &Arc<str>)| zones[..*index].contains(zone);
        if let Some((_, zone)) = zones.iter().enumerate().find(twice) {
            return Err(ShapingError::ZoneTwice { zone: zone.to_string() });
        }
        if zones.is_empty() {
            return Err(ShapingError::NoPriorities);
        }
        Ok(Self { zones, overprovisioning: OVERPROVISIONED })
    }

    /// How many times what it usually gets a zone can take. 1 or more; default 1.4.
    pub fn overprovisioning(mut self, factor: f64) -> Result<Self, ShapingError> {
        self.overprovisioning = factor_of(factor)?;
        Ok(self)
    }
}

impl Shaper for Failover {
    fn shape(&self, shares: &mut [Share<'_>], _: Duration) -> Option<Duration> {
        let level = |share: &Share<'_>| {
            let named = self.zones.iter().position(|zone| *zone == share.instance.locality.zone);
            named.unwrap_or(self.zones.len())
        };
        let (mut all, mut usable) = (vec![0.0; self.zones.len() + 1], vec![0.0; self.zones.len() + 1]);
        for share in shares.iter() {
            all[level(share)] += share.weight;
            usable[level(share)] += if share.usable { share.weight } else { 0.0 };
        }
        let health = all.iter().zip(&usable).map(|(all, usable)| {
            if *all > 0.0 { (self.overprovisioning * usable / all).min(1.0) } else { 0.0 }
        });
        let loads = loads(&health.collect::<Vec<_>>());
        spread(shares, level, &loads, &usable);
        None
    }
}

/// Whether it is a factor.
pub(super) fn factor_of(factor: f64) -> Result<f64, ShapingError> {
    if factor.is_finite() && factor >= 1.0 {
        Ok(factor)
    } else {
        Err(ShapingError::Overprovisioning { factor })
    }
}

/// Has groups of instances get the loads of their groups, each within its group as before. `loads`: shares of all requests.
/// `usable`: what the usable ones of each group weigh together.
pub(super) fn spread(
    shares: &mut [Share<'_>],
    mut group: impl FnMut(&Share<'_>) -> usize,
    loads: &[f64],
    usable: &[f64],
) {
    let all: f64 = usable.iter().sum();
    for share in shares {
        let group = group(share);
        // Times the weight of all, so that a share that stays as it is keeps its weight.
        share.weight *= if usable[group] > 0.0 { loads[group] * all / usable[group] } else { 0.0 };
    }
}

/// What share of the requests each level gets, by its health from 0 to 1. Sums up to 1, or is 0 for all of no health.
fn loads(health: &[f64]) -> Vec<f64> {
    let sum: f64 = health.iter().sum();
    let together = sum.min(1.0);
    let mut left = 1.0;
    let mut load = |health: &f64| {
        let load = if together > 0.0 { (health / together).min(left) } else { 0.0 };
        left -= load;
        load
    };
    health.iter().map(&mut load).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Instance;

    /// So many usable ones of a hundred in each zone; the shares of the zones in percent.
    fn percent(failover: &Failover, zones: &[(&str, usize)]) -> Vec<f64> {
        let instance = |zone: &str| {
            Arc::new(Instance::builder("a:1".parse().expect("valid")).locality("r", zone).build())
        };
        let instances: Vec<_> = zones.iter().map(|(zone, _)| instance(zone)).collect();
        let share = |(zone, number): (usize, usize)| Share {
            instance: &instances[zone],
            weight: 1.0,
            usable: number < zones[zone].1,
            since: None,
        };
        let mut shares: Vec<_> =
            (0..zones.len()).flat_map(|zone| (0..100).map(move |number| (zone, number))).map(share).collect();
        assert_eq!(failover.shape(&mut shares, Duration::ZERO), None);
        let of = |zone: usize| shares[zone * 100..(zone + 1) * 100].iter().filter(|share| share.usable);
        let all: f64 = (0..zones.len()).flat_map(of).map(|share| share.weight).sum();
        (0..zones.len()).map(|zone| 100.0 * of(zone).map(|share| share.weight).sum::<f64>() / all).collect()
    }

    /// Two and three levels, as Envoy's documentation has them; there in whole percents.
    #[test]
    fn levels_share_as_envoys_do() {
        let failover = Failover::new(["a", "b"]).expect("two zones");
        let table: [(&[usize], &[f64]); 12] = [
            (&[100, 100], &[100.0, 0.0]),
            (&[72, 72], &[100.0, 0.0]),
            (&[71, 71], &[99.4, 0.6]),
            (&[50, 50], &[70.0, 30.0]),
            (&[25, 100], &[35.0, 65.0]),
            (&[25, 25], &[50.0, 50.0]),
            (&[0, 100], &[0.0, 100.0]),
            (&[100, 100, 100], &[100.0, 0.0, 0.0]),
            (&[25, 25, 100], &[35.0, 35.0, 30.0]),
            (&[25, 25, 20], &[35.714, 35.714, 28.571]),
            (&[0, 0, 50], &[0.0, 0.0, 100.0]),
            (&[50, 0, 1], &[98.039, 0.0, 1.961]),
        ];
        for (usable, expected) in table {
            let zones: Vec<_> = ["a", "b", "elsewhere"].into_iter().zip(usable.iter().copied()).collect();
            let got = percent(&failover, &zones);
            let near = got.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 0.01);
            assert!(near, "{usable:?}: {got:?} and not {expected:?}");
        }
    }

    #[test]
    fn with_a_factor_of_1_the_first_missing_one_spills_over() {
        let strict = Failover::new(["a"]).and_then(|it| it.overprovisioning(1.0)).expect("a factor");
        let got = percent(&strict, &[("b", 100), ("a", 99)]);
        assert!((got[0] - 1.0).abs() < 1e-6 && (got[1] - 99.0).abs() < 1e-6, "{got:?}");
    }

    #[test]
    fn what_is_no_order_is_refused() {
        assert_eq!(Failover::new(["a", "b", "a"]).unwrap_err(), ShapingError::ZoneTwice { zone: "a".into() });
        assert_eq!(Failover::new::<&str>([]).unwrap_err(), ShapingError::NoPriorities);
        let failover = Failover::new(["a"]).expect("one");
        assert!(
            failover.clone().overprovisioning(0.9).is_err() && failover.overprovisioning(f64::NAN).is_err()
        );
    }
}
