//! Shares, and what moves when instances come, go or change.

#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // small counts

use proptest::prelude::*;

use super::*;
use crate::{balance::spread::spread, model::Instance};

fn list(weights: impl IntoIterator<Item = (usize, u32)>) -> InstanceList {
    let build = |(id, weight): (usize, u32)| {
        let address = format!("10.0.0.1:{}", id + 1).parse().expect("valid");
        Arc::new(Instance::builder(address).id(format!("i-{id}")).weight(weight).build())
    };
    weights.into_iter().map(build).collect()
}

fn owner(picker: &RingHashPicker, key: u64) -> Arc<str> {
    let context = PickContext::new().hash_key(key);
    Arc::clone(&picker.pick(&context).expect("an instance").instance().id)
}

fn moved(before: &RingHashPicker, after: &RingHashPicker, keys: u64) -> Vec<(Arc<str>, Arc<str>)> {
    let ends = (0..keys).map(|key| (owner(before, key), owner(after, key)));
    ends.filter(|(from, to)| from != to).collect()
}

#[test]
fn the_most_loaded_of_a_hundred_has_a_quarter_more_than_the_mean_at_most() {
    let picker = RingHash::new().build(&list((0..100).map(|id| (id, 1))));
    let mut loads = std::collections::HashMap::new();
    (0..200_000).for_each(|key| *loads.entry(owner(&picker, key)).or_insert(0_u32) += 1);
    let most = f64::from(*loads.values().max().expect("some"));
    assert!(most / 2_000.0 <= 1.25, "max/mean is {}", most / 2_000.0);
    assert_eq!(loads.len(), 100);
}

#[test]
fn only_the_leavers_keys_move() {
    let before = RingHash::new().build(&list((0..20).map(|id| (id, 1))));
    let after = RingHash::new().build(&list((0..20).filter(|id| *id != 7).map(|id| (id, 1))));
    let moved = moved(&before, &after, 20_000);
    assert!(!moved.is_empty());
    assert!(moved.iter().all(|(from, _)| &**from == "i-7"));
}

#[test]
fn a_ring_whose_points_depended_on_the_digits_of_a_number() {
    // From 9 to 10 the heavier one gains what it should, and nothing else moves.
    let before = RingHash::new().build(&list([(0, 9), (1, 9), (2, 9), (3, 9)]));
    let after = RingHash::new().build(&list([(0, 10), (1, 9), (2, 9), (3, 9)]));
    let moved = moved(&before, &after, 50_000);
    assert!(moved.iter().all(|(_, to)| &**to == "i-0"), "keys moved between others");
    let share = moved.len() as f64 / 50_000.0;
    // It grows from 9/36 to 10/37 of the ring: 2.03%.
    assert!((0.01..0.035).contains(&share), "{share} of the keys moved");
}

#[test]
fn with_points_set_for_a_weight_no_change_of_weights_moves_keys_between_others() {
    let ring = RingHash::new().points_per_weight(24);
    // Their mean passes from one power of two to the next.
    let before = ring.build(&list([(0, 11), (1, 11), (2, 11), (3, 12)]));
    let after = ring.build(&list([(0, 12), (1, 11), (2, 11), (3, 12)]));
    let moves = moved(&before, &after, 50_000);
    assert!(moves.iter().all(|(_, to)| &**to == "i-0"), "keys moved between others");
    assert!(moves.len() < 2_000, "{} of 50,000 keys moved", moves.len());
    // What the documentation says of the default.
    let (before, after) = (
        RingHash::new().build(&list([(0, 11), (1, 11), (2, 11), (3, 12)])),
        RingHash::new().build(&list([(0, 12), (1, 11), (2, 11), (3, 12)])),
    );
    assert!(moved(&before, &after, 50_000).len() > 10_000, "the step is gone: say so in its documentation");
}

#[test]
fn a_ring_that_would_be_too_large_is_halved_and_then_stays_as_it_is() {
    let per_weight = |count| points_per_weight(std::iter::repeat_n(1, count), None);
    assert!((per_weight(15_000) - 256.0).abs() < 1e-9);
    assert!((per_weight(16_000) - 128.0).abs() < 1e-9);
    assert!((per_weight(16_001) - 128.0).abs() < 1e-9, "one that joins moves no others' points");
}

#[test]
fn weights_are_honoured() {
    let picker = RingHash::new().build(&list([(0, 1), (1, 2), (2, 5)]));
    let mut loads = [0_u32; 3];
    for key in 0..80_000 {
        let id: usize = owner(&picker, key)[2..].parse().expect("a number");
        loads[id] += 1;
    }
    for (load, weight) in loads.iter().zip([1.0, 2.0, 5.0]) {
        let share = f64::from(*load) / (10_000.0 * weight);
        // The lightest has some 128 points, whose gaps vary: one part in eleven is its standard deviation.
        assert!((0.7..1.3).contains(&share), "{loads:?}");
    }
}

#[test]
fn no_key_no_instance_and_weights_of_0_have_their_errors() {
    let picker = RingHash::new().build(&list([(0, 1)]));
    assert_eq!(picker.pick(&PickContext::default()).unwrap_err(), PickError::NoHashKey);
    for weights in [vec![], vec![(0, 0)], vec![(0, 0), (1, 0)]] {
        let picker = RingHash::new().build(&list(weights));
        let refused = picker.pick(&PickContext::new().hash_key(1));
        assert_eq!(refused.unwrap_err(), PickError::NoInstances);
    }
}

proptest! {
    /// The look-up finds what a search from the start finds, whatever the order of the list.
    #[test]
    fn the_next_point_is_found(weights in prop::collection::vec(0_u32..20, 1..12), keys in prop::collection::vec(any::<u64>(), 50)) {
        let named: Vec<_> = weights.into_iter().enumerate().collect();
        prop_assume!(named.iter().any(|(_, weight)| *weight > 0));
        let picker = RingHash::new().build(&list(named.iter().copied()));
        let reversed = RingHash::new().build(&list(named.iter().rev().copied()));
        for key in keys.into_iter().chain([0, u64::MAX]) {
            let place = (spread(key) >> 32) as u32;
            let points = &picker.ring.points;
            let searched = points.iter().find(|point| point.place >= place).or(points.first());
            prop_assert_eq!(picker.ring.owner(spread(key)), searched.map(|point| point.instance as usize));
            prop_assert_eq!(owner(&picker, key), owner(&reversed, key));
        }
    }
}
