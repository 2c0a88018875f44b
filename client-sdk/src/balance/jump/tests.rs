//! Where attempts go: to other instances, the same ones each time, whatever the order of the list.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::{
    balance::{Maglev, Policy, RingHash},
    model::InstanceList,
};

fn list(weights: impl IntoIterator<Item = (usize, u32)>) -> InstanceList {
    let build = |(id, weight): (usize, u32)| {
        let address = format!("10.0.0.1:{}", id + 1).parse().expect("valid");
        Arc::new(Instance::builder(address).id(format!("i-{id}")).weight(weight).build())
    };
    weights.into_iter().map(build).collect()
}

fn way(picker: &impl Picker, key: u64, attempts: u32) -> Vec<Arc<str>> {
    let at = |attempt| PickContext::new().hash_key(key).attempt(attempt);
    let id = |attempt| Arc::clone(&picker.pick(&at(attempt)).expect("an instance").instance().id);
    (0..attempts).map(id).collect()
}

/// Both hashes, and both with bounded load and nothing active.
fn ways(instances: &InstanceList, keys: std::ops::Range<u64>, attempts: u32) -> Vec<Vec<Arc<str>>> {
    let maglev = Maglev::with_table_size(1_009).expect("a prime");
    let (ring, table) = (RingHash::new().build(instances), maglev.build(instances));
    let bounded = (RingHash::new().bounded().build(instances), maglev.bounded().build(instances));
    keys.flat_map(|key| {
        [
            way(&ring, key, attempts),
            way(&table, key, attempts),
            way(&bounded.0, key, attempts),
            way(&bounded.1, key, attempts),
        ]
    })
    .collect()
}

#[test]
fn an_attempt_goes_to_another_instance_than_those_before() {
    for count in [2_usize, 3, 10, 16] {
        let instances = list((0..count).map(|id| (id, 1)));
        for way in ways(&instances, 0..20, u32::try_from(count).expect("small")) {
            assert_eq!(way.iter().collect::<HashSet<_>>().len(), count, "{way:?}");
        }
    }
}

#[test]
fn of_skewed_weights_even_the_lightest_is_come_to() {
    let instances = list([(0, 60_000), (1, 1), (2, 1)]);
    for way in ways(&instances, 0..20, 3) {
        assert_eq!(way.iter().collect::<HashSet<_>>().len(), 3, "{way:?}");
    }
}

#[test]
fn more_attempts_than_instances_go_around_again() {
    let instances = list([(0, 1), (1, 2), (2, 3)]);
    for way in ways(&instances, 7..9, 9) {
        assert_eq!(way[..3], way[3..6]);
        assert_eq!(way[..3], way[6..]);
    }
}

#[test]
fn attempts_are_spread_over_all_by_weight_not_to_a_neighbour() {
    // The keys of one instance, when it does not take them, go to all others.
    let instances = list((0..20).map(|id| (id, if id < 10 { 1 } else { 3 })));
    let picker = RingHash::new().build(&instances);
    let mut light = 0_u32;
    let second: Vec<_> =
        (0..40_000).map(|key| way(&picker, key, 2)).filter(|way| &*way[0] == "i-3").collect();
    let reached: HashSet<_> = second.iter().map(|way| &way[1]).collect();
    assert_eq!(reached.len(), 19, "all but itself");
    for way in &second {
        let id: usize = way[1][2..].parse().expect("a number");
        light += u32::from(id < 10);
    }
    // 9 of the others' 39 units of weight.
    let share = f64::from(light) / f64::from(u32::try_from(second.len()).expect("few"));
    assert!((0.15..0.32).contains(&share), "{share} went to the light ones");
}

#[test]
fn a_weight_of_0_is_on_nobodys_way() {
    let instances = list([(0, 1), (1, 0), (2, 0), (3, 2)]);
    for way in ways(&instances, 0..50, 8) {
        assert!(way.iter().all(|id| ["i-0", "i-3"].contains(&&**id)), "{way:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_order_of_the_list_changes_no_way(
        weights in prop::collection::vec(1_u32..9, 1..12),
        key in 0..u64::MAX,
        attempts in 1_u32..20,
    ) {
        let named: Vec<_> = weights.into_iter().enumerate().collect();
        let one = ways(&list(named.iter().copied()), key..key + 1, attempts);
        let other = ways(&list(named.iter().rev().copied()), key..key + 1, attempts);
        prop_assert_eq!(one, other);
    }
}
