//! Where the requests of each zone's callers go: as near as can be, and nowhere more than a zone can take.
//!
//! Pure arithmetic. All callers do the same sums, each for all zones, and read its own zone's row: so they agree without
//! talking to each other, as far as they see the same instances. With the callers' requests as 1 in all, and of a zone
//!
//! ```text
//!   share    what all its instances weigh ÷ what all instances weigh
//!   health   what its usable ones weigh ÷ what all of them weigh
//!   even     share · min(1, 1.4 · health)    what it gets if everyone gets the same
//!   most     share · 1.4 · health            what it can take, provisioned as it is
//!   callers  the share of all callers that are in it
//! ```
//!
//! the requests of the callers fill the zones in this order, until none is left:
//!
//! 1. their own zone, up to `even`: so local traffic stays local, and does not overload a zone of few instances
//! 2. their region, up to `even`, then up to `most`
//! 3. all zones, up to `even`, then up to `most`
//! 4. all zones alike, by what is usable in them: there is not enough for everyone
//!
//! Where several zones' callers want what is free, each gets the same part of what it wants, and what is free is filled
//! in proportion. Two things in this are known from elsewhere: with callers and instances spread alike, the first
//! step is the health arithmetic of Envoy's priority levels, overprovisioning factor included (see `failover`); with all
//! healthy, steps 1 to 3 are Envoy's zone aware routing (own zone up to instances ÷ callers, the rest by what the others
//! have left over).
//!
//! It follows that no zone gets more than `most` as long as that is enough for all (sums up to 1), and otherwise all usable
//! weight gets the same.

use std::sync::Arc;

/// A zone, and how full it is.
#[derive(Clone, Debug)]
pub(super) struct Zone {
    pub(super) region: Arc<str>,
    /// What all its instances weigh.
    pub(super) all: f64,
    /// What its usable ones weigh.
    pub(super) usable: f64,
    /// Which share of all callers is in it.
    pub(super) callers: f64,
}

/// The state of the filling.
struct Filling {
    /// What each zone has got of all callers' requests.
    got: Vec<f64>,
    /// What each zone's callers have not placed yet.
    left: Vec<f64>,
    /// What share of one zone's requests goes to each.
    mine: Vec<f64>,
    mine_left: f64,
}

/// What share of the requests of the callers in zone `mine` goes to each zone. Sums up to 1, or is 0 for all if nothing is
/// usable.
pub(super) fn row(zones: &[Zone], mine: usize, factor: f64) -> Vec<f64> {
    let all: f64 = zones.iter().map(|zone| zone.all).sum();
    let usable: f64 = zones.iter().map(|zone| zone.usable).sum();
    if usable <= 0.0 {
        return vec![0.0; zones.len()];
    }
    let most: Vec<f64> = zones.iter().map(|zone| factor * zone.usable / all).collect();
    let even: Vec<f64> = zones.iter().zip(&most).map(|(zone, most)| most.min(zone.all / all)).collect();
    let regions = regions(zones);
    let own: Vec<usize> = (0..zones.len()).collect();
    let everywhere = vec![0; zones.len()];

    let callers = zones.iter().map(|zone| zone.callers).collect();
    let mut filling =
        Filling { got: vec![0.0; zones.len()], left: callers, mine: vec![0.0; zones.len()], mine_left: 1.0 };
    for (groups, limits) in
        [(&own, &even), (&regions, &even), (&regions, &most), (&everywhere, &even), (&everywhere, &most)]
    {
        filling.fill(groups, limits, mine);
    }
    for (share, zone) in filling.mine.iter_mut().zip(zones) {
        *share += filling.mine_left * zone.usable / usable;
    }
    filling.mine
}

impl Filling {
    /// Each zone's callers fill the zones of its own group up to the limits.
    fn fill(&mut self, groups: &[usize], limits: &[f64], mine: usize) {
        let count = groups.len();
        let (mut free, mut wanted) = (vec![0.0; count], vec![0.0; count]);
        let room: Vec<f64> =
            limits.iter().zip(&self.got).map(|(limit, got)| (limit - got).max(0.0)).collect();
        for zone in 0..count {
            free[groups[zone]] += room[zone];
            wanted[groups[zone]] += self.left[zone];
        }
        // Of what is wanted in a group, the part that there is room for. All, if nothing worth mentioning is wanted.
        let part = |group: usize| if wanted[group] > free[group] { free[group] / wanted[group] } else { 1.0 };
        let here = groups[mine];
        if free[here] > 0.0 {
            let placed = self.mine_left * part(here);
            for zone in (0..count).filter(|zone| groups[*zone] == here) {
                self.mine[zone] += placed * room[zone] / free[here];
            }
            self.mine_left -= placed;
        }
        for zone in 0..count {
            let group = groups[zone];
            if free[group] > 0.0 {
                self.got[zone] += wanted[group] * part(group) * room[zone] / free[group];
                self.left[zone] *= 1.0 - part(group);
            }
        }
    }
}

/// The zones' regions, by the place where each stands first.
fn regions(zones: &[Zone]) -> Vec<usize> {
    let mut first = std::collections::HashMap::new();
    zones.iter().enumerate().map(|(index, zone)| *first.entry(&zone.region).or_insert(index)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FACTOR: f64 = 1.4;

    /// Region, all, usable, callers.
    type Plain = (&'static str, f64, f64, f64);

    fn zones(of: &[Plain]) -> Vec<Zone> {
        let callers: f64 = of.iter().map(|zone| zone.3).sum();
        let zone = |&(region, all, usable, share): &Plain| Zone {
            region: region.into(),
            all,
            usable,
            callers: share / callers,
        };
        of.iter().map(zone).collect()
    }

    /// What the callers of each zone send to each, in percent.
    fn table(of: &[Plain]) -> Vec<Vec<f64>> {
        let zones = zones(of);
        let row = |mine| row(&zones, mine, FACTOR).into_iter().map(|share| share * 100.0).collect();
        (0..zones.len()).map(row).collect()
    }

    fn sends(of: &[Plain], mine: usize, expected: &[f64]) {
        let table = table(of);
        let near = table[mine].iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 0.01);
        assert!(near, "{of:?}: from {mine} {:?} and not {expected:?}", table[mine]);
    }

    #[test]
    fn with_callers_and_instances_spread_alike_everything_stays_in_its_zone() {
        let three = [("r", 10.0, 10.0, 1.0); 3];
        assert_eq!(table(&three), [[100.0, 0.0, 0.0], [0.0, 100.0, 0.0], [0.0, 0.0, 100.0]]);
        // With more instances than callers as well: there is room.
        sends(&[("r", 20.0, 20.0, 1.0), ("r", 10.0, 10.0, 2.0)], 0, &[100.0, 0.0]);
    }

    /// The health of the local zone alone: Envoy's figures.
    #[test]
    fn what_an_ill_zone_cannot_take_spills_over_to_the_others() {
        for (usable, local) in
            [(10.0, 100.0), (7.2, 100.0), (7.1, 99.4), (5.0, 70.0), (2.5, 35.0), (1.0, 14.0), (0.0, 0.0)]
        {
            let fleet = [("r", 10.0, usable, 1.0), ("r", 10.0, 10.0, 1.0), ("r", 10.0, 10.0, 1.0)];
            let others = (100.0 - local) / 2.0;
            if usable > 1.1 {
                sends(&fleet, 0, &[local, others, others]);
                sends(&fleet, 1, &[0.0, 100.0, 0.0]);
            } else {
                // Less than 21.4/30 usable is not enough for all even at 1.4 each: the rest goes by what is usable.
                let sent = &table(&fleet)[0];
                assert!(sent[0] <= 20.0 && (sent[1] - sent[2]).abs() < 1e-9, "{sent:?}");
            }
        }
        // Two others, one of which is half ill: it has nothing left over for its neighbour.
        let two_ill = [("r", 10.0, 5.0, 1.0), ("r", 10.0, 5.0, 1.0), ("r", 10.0, 10.0, 1.0)];
        let sent = table(&two_ill);
        assert!(sent[0][2] > 3.0 * (sent[0][1] + 1.0), "{sent:?}");
    }

    /// A tenth of the instances, a third of the callers: the zone keeps 30 % of what its callers ask, and nobody else comes.
    #[test]
    fn local_traffic_does_not_overload_a_zone_of_few_instances() {
        let fleet = [("r", 10.0, 10.0, 1.0), ("r", 30.0, 30.0, 1.0), ("r", 60.0, 60.0, 1.0)];
        sends(&fleet, 0, &[30.0, 0.0, 70.0]);
        sends(&fleet, 1, &[0.0, 90.0, 10.0]);
        sends(&fleet, 2, &[0.0, 0.0, 100.0]);
        // The callers' shares as they are: with few callers there, all of theirs stays.
        let known = [("r", 10.0, 10.0, 1.0), ("r", 30.0, 30.0, 3.0), ("r", 60.0, 60.0, 6.0)];
        sends(&known, 0, &[100.0, 0.0, 0.0]);
    }

    #[test]
    fn the_callers_region_comes_before_the_rest() {
        let cut = |usable| {
            [
                ("eu", 10.0, usable, 1.0),
                ("eu", 10.0, 10.0, 1.0),
                ("eu", 10.0, 10.0, 1.0),
                ("us", 10.0, 10.0, 1.0),
                ("us", 10.0, 10.0, 1.0),
                ("us", 10.0, 10.0, 1.0),
            ]
        };
        sends(&cut(5.0), 0, &[70.0, 15.0, 15.0, 0.0, 0.0, 0.0]);
        // Cut off: its neighbours take 0.4 zones each, and only then the other region what is left.
        sends(&cut(0.0), 0, &[0.0, 40.0, 40.0, 6.667, 6.667, 6.667]);
        let region = [
            ("eu", 10.0, 0.0, 1.0),
            ("eu", 10.0, 0.0, 1.0),
            ("us", 10.0, 10.0, 1.0),
            ("us", 20.0, 20.0, 1.0),
        ];
        let sent = table(&region);
        assert!((sent[0][2] + sent[0][3] - 100.0).abs() < 1e-9, "a whole region is gone: {sent:?}");
    }

    #[test]
    fn a_caller_where_no_instance_is_uses_its_region() {
        let fleet = [("eu", 0.0, 0.0, 1.0), ("eu", 10.0, 10.0, 1.0), ("us", 10.0, 10.0, 1.0)];
        let sent = table(&fleet);
        assert!(sent[0][1] > 35.0 && sent[0][0] == 0.0, "{sent:?}");
        assert_eq!(row(&zones(&[("eu", 5.0, 0.0, 1.0)]), 0, FACTOR), [0.0], "nothing is usable");
    }

    fn fleet() -> impl Strategy<Value = Vec<Plain>> {
        let zone = (prop::sample::select(vec!["r", "s", "t"]), 0_u32..50, 0.0_f64..=1.0, 0_u32..20);
        let plain = |(region, all, health, callers): (&'static str, u32, f64, u32)| {
            (region, f64::from(all), f64::from(all) * health, f64::from(callers))
        };
        prop::collection::vec(zone.prop_map(plain), 1..8)
            .prop_filter("some callers, something usable", |zones| {
                zones.iter().any(|zone| zone.3 > 0.0) && zones.iter().any(|zone| zone.2 > 0.01)
            })
    }

    proptest! {
        /// Over all callers.
        #[test]
        fn no_zone_gets_more_than_it_can_take_if_there_is_enough(of in fleet()) {
            let zones = zones(&of);
            let all: f64 = zones.iter().map(|zone| zone.all).sum();
            let usable: f64 = zones.iter().map(|zone| zone.usable).sum();
            let mut load = vec![0.0; zones.len()];
            for mine in 0..zones.len() {
                let row = row(&zones, mine, FACTOR);
                prop_assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-9, "everything is sent: {row:?}");
                for (load, share) in load.iter_mut().zip(&row) {
                    prop_assert!(*share >= 0.0);
                    *load += zones[mine].callers * share;
                }
            }
            for (load, zone) in load.iter().zip(&zones) {
                let (most, alike) = (FACTOR * zone.usable / all, zone.usable / usable);
                // Enough for everyone: nobody beyond what it can take. Not enough: everybody the same.
                prop_assert!(*load <= most.max(alike) + 1e-9, "{load} of {zone:?}");
            }
        }

        #[test]
        fn with_all_usable_every_zone_gets_its_share_or_is_local(of in fleet()) {
            let of: Vec<Plain> = of.iter().map(|&(_, all, _, callers)| ("r", all + 1.0, all + 1.0, callers)).collect();
            let zones = zones(&of);
            let all: f64 = zones.iter().map(|zone| zone.all).sum();
            for (to, zone) in zones.iter().enumerate() {
                let sent = (0..zones.len()).map(|mine| zones[mine].callers * row(&zones, mine, FACTOR)[to]);
                prop_assert!((sent.sum::<f64>() - zone.all / all).abs() < 1e-9);
            }
            for (mine, zone) in zones.iter().enumerate().filter(|(_, zone)| zone.callers > 0.0) {
                let local = (zone.all / all / zone.callers).min(1.0);
                prop_assert!((row(&zones, mine, FACTOR)[mine] - local).abs() < 1e-9, "as much as can be is local");
            }
        }

        #[test]
        fn the_less_of_a_zone_is_usable_the_less_stays_there(of in fleet(), less in 0.0_f64..1.0) {
            let mut ill = of.clone();
            ill[0].2 *= less;
            prop_assume!(ill.iter().any(|zone| zone.2 > 0.01));
            let (well, ill) = (row(&zones(&of), 0, FACTOR), row(&zones(&ill), 0, FACTOR));
            prop_assert!(ill[0] <= well[0] + 1e-9, "{} and then {}", well[0], ill[0]);
        }
    }
}
