//! Requests stay in the caller's zone as far as that can take them; then in its region; then anywhere.
//!
//! `zones` has the arithmetic and its sources.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{
    Shaper, ShapingError, Share,
    failover::{OVERPROVISIONED, factor_of, spread},
    zones::{self, Zone},
};
use crate::model::Locality;

/// Keeps requests in the caller's zone, without overloading it or any other.
///
/// A zone is one of instances that name the same region and zone. Of the requests of its callers it gets, with the shares
/// of all instances by weight,
///
/// ```text
///   min(1, share of the instances that are in it ÷ share of the callers that are in it)
/// ```
///
/// and when less than 1 ÷ 1.4 = 71.4 % of it is usable, 1.4 times that. The rest goes to the other zones of its region
/// and then to all others, by what these have left over. Over all callers that do so no zone gets more than 1.4 times
/// what is usable in it (as its share), as long as that is enough for everyone; otherwise all instances get the same.
///
/// Capacities are what this caller sees: with a [`Subset`](super::Subset) before it, or where only some are connected ahead, a
/// sample. Keep these a multiple of the number of zones.
///
/// ```
/// use client_sdk::{balance::shape::ZoneAware, model::Locality};
/// let near = ZoneAware::new(Locality::new("eu-central", "eu-central-1b"))?;
/// # Ok::<(), client_sdk::balance::shape::ShapingError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ZoneAware {
    here: Locality,
    overprovisioning: f64,
    /// `None`: the same in each zone.
    callers: Option<Vec<(Locality, f64)>>,
}

impl ZoneAware {
    /// Of a caller that runs there. The zone must not be empty; region and zone must be named as instances name theirs.
    pub fn new(here: Locality) -> Result<Self, ShapingError> {
        if here.zone.is_empty() {
            return Err(ShapingError::NoZone);
        }
        Ok(Self { here, overprovisioning: OVERPROVISIONED, callers: None })
    }

    /// How many times what it usually gets an instance can take. 1 or more; default 1.4.
    pub fn overprovisioning(mut self, factor: f64) -> Result<Self, ShapingError> {
        self.overprovisioning = factor_of(factor)?;
        Ok(self)
    }

    /// Where the callers are: how many there are in each zone, or shares, or anything in proportion to the requests that
    /// they make. A zone that is not named has none. Default: the same in the caller's own zone and in each zone that has
    /// instances.
    pub fn callers(
        mut self,
        shares: impl IntoIterator<Item = (Locality, f64)>,
    ) -> Result<Self, ShapingError> {
        let callers: Vec<_> = shares.into_iter().collect();
        if let Some((zone, share)) = callers.iter().find(|(_, share)| !share.is_finite() || *share < 0.0) {
            return Err(ShapingError::CallersShare { zone: zone.zone.to_string(), share: *share });
        }
        if callers.iter().all(|(_, share)| *share <= 0.0) {
            return Err(ShapingError::NoCallers);
        }
        self.callers = Some(callers);
        Ok(self)
    }

    /// The caller's own zone, which is the first, and those of the instances; and which each instance is in.
    fn zones(&self, shares: &[Share<'_>]) -> (Vec<Zone>, Vec<usize>) {
        let mut found: HashMap<&Locality, usize> = HashMap::from([(&self.here, 0)]);
        let mut zones = vec![self.zone(&self.here)];
        let places = shares.iter().map(|share| {
            let place = *found.entry(&share.instance.locality).or_insert_with(|| {
                zones.push(self.zone(&share.instance.locality));
                zones.len() - 1
            });
            zones[place].all += share.weight;
            zones[place].usable += if share.usable { share.weight } else { 0.0 };
            place
        });
        let places = places.collect();
        if let Some(callers) = &self.callers {
            // Those in zones without instances go somewhere too.
            for (locality, _) in callers {
                if !found.contains_key(locality) {
                    found.insert(locality, zones.len());
                    zones.push(self.zone(locality));
                }
            }
        }
        let callers: f64 = zones.iter().map(|zone| zone.callers).sum();
        for zone in &mut zones {
            zone.callers /= callers;
        }
        (zones, places)
    }

    /// With nothing in it.
    fn zone(&self, locality: &Locality) -> Zone {
        let callers = match &self.callers {
            Some(callers) => {
                callers.iter().filter(|(zone, _)| zone == locality).map(|(_, share)| share).sum()
            }
            None => 1.0,
        };
        Zone { region: Arc::clone(&locality.region), all: 0.0, usable: 0.0, callers }
    }
}

impl Shaper for ZoneAware {
    fn shape(&self, shares: &mut [Share<'_>], _: Duration) -> Option<Duration> {
        let (zones, places) = self.zones(shares);
        let loads = zones::row(&zones, 0, self.overprovisioning);
        let usable: Vec<f64> = zones.iter().map(|zone| zone.usable).collect();
        let mut places = places.into_iter();
        spread(shares, |_| places.next().unwrap_or_default(), &loads, &usable);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Instance;

    fn at(zone: &str) -> Locality {
        Locality::new("r", zone)
    }

    /// Instances by zone, weight, and whether they are usable; the share of the usable ones of each zone in percent.
    fn percent(aware: &ZoneAware, fleet: &[(&'static str, u32, bool)]) -> HashMap<&'static str, f64> {
        let instance = |(zone, weight, _): &(&str, u32, bool)| {
            let address = "a:1".parse().expect("valid");
            Arc::new(Instance::builder(address).weight(*weight).locality("r", *zone).build())
        };
        let instances: Vec<_> = fleet.iter().map(instance).collect();
        let mut shares: Vec<_> = instances
            .iter()
            .zip(fleet)
            .map(|(instance, (_, weight, usable))| Share {
                instance,
                weight: f64::from(*weight),
                usable: *usable,
                since: None,
            })
            .collect();
        assert_eq!(aware.shape(&mut shares, Duration::ZERO), None);
        let usable = || shares.iter().zip(fleet).filter(|(share, _)| share.usable);
        let all: f64 = usable().map(|(share, _)| share.weight).sum();
        let mut percent = HashMap::new();
        for (share, (zone, ..)) in usable() {
            *percent.entry(*zone).or_default() += 100.0 * share.weight / all;
        }
        percent
    }

    #[test]
    fn shares_are_by_weight_and_within_a_zone_as_before() {
        let aware = ZoneAware::new(at("a")).expect("a zone");
        let fleet = [("a", 1, true), ("a", 1, true), ("b", 3, true), ("c", 5, true)];
        // A fifth of the weight, a third of the callers: 60 % stay, and what is free is only in c.
        let got = percent(&aware, &fleet);
        assert!((got["a"] - 60.0).abs() < 0.01 && (got["c"] - 40.0).abs() < 0.01, "{got:?}");
        let ill = percent(&aware, &[("a", 2, true), ("a", 2, false), ("b", 4, true)]);
        assert!((ill["a"] - 70.0).abs() < 0.01, "{ill:?}");
    }

    #[test]
    fn callers_that_are_known_are_taken_as_they_are() {
        let fleet = [("a", 1, true), ("b", 1, true)];
        let crowded =
            |mine: f64| ZoneAware::new(at("a")).and_then(|it| it.callers([(at("a"), mine), (at("b"), 1.0)]));
        assert!((percent(&crowded(4.0).expect("shares"), &fleet)["a"] - 62.5).abs() < 0.01);
        assert!((percent(&crowded(1.0).expect("shares"), &fleet)["a"] - 100.0).abs() < 0.01);
        // Without any callers, as far as was said, this one is no burden.
        assert!((percent(&crowded(0.0).expect("shares"), &fleet)["a"] - 100.0).abs() < 0.01);
    }

    #[test]
    fn a_zone_that_is_cut_off_gets_nothing() {
        let aware = ZoneAware::new(at("a")).expect("a zone");
        let got = percent(&aware, &[("a", 1, false), ("b", 1, true), ("c", 1, true)]);
        assert_eq!(got.len(), 2);
        assert!((got["b"] - 50.0).abs() < 0.01, "{got:?}");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let aware = || ZoneAware::new(at("a")).expect("a zone");
        assert_eq!(ZoneAware::new(at("")).unwrap_err(), ShapingError::NoZone);
        assert!(aware().overprovisioning(0.99).is_err());
        assert_eq!(aware().callers([(at("a"), 0.0)]).unwrap_err(), ShapingError::NoCallers);
        let wrong = aware().callers([(at("a"), 1.0), (at("b"), -1.0)]).unwrap_err();
        assert_eq!(wrong, ShapingError::CallersShare { zone: "b".into(), share: -1.0 });
    }
}
