//! Weighted random choice: shares in proportion, no pick of a weight of 0, the same picks for the same seed.

use super::*;
use crate::model::Instance;

fn list(weights: &[u32]) -> InstanceList {
    let build = |(port, weight): (usize, &u32)| {
        let address = format!("a:{}", port + 1).parse().expect("valid");
        Arc::new(Instance::builder(address).weight(*weight).build())
    };
    weights.iter().enumerate().map(build).collect()
}

fn counts(picker: &WeightedRandomPicker, count: usize) -> Vec<u32> {
    let mut counts = vec![0; picker.instances.len()];
    for _ in 0..count {
        let pick = picker.pick(&PickContext::default()).expect("eligible");
        let instance = pick.instance();
        counts[picker.instances.iter().position(|i| Arc::ptr_eq(i, instance)).expect("of the list")] += 1;
    }
    counts
}

#[test]
fn picks_are_in_proportion_to_the_weights() {
    let weights = [1, 2, 3, 4, 10, 80];
    let picker = WeightedRandom::with_seed(7).build(&list(&weights));
    let chi_square: f64 = counts(&picker, 100_000)
        .into_iter()
        .zip(weights)
        .map(|(count, weight)| {
            let expected = 1000.0 * f64::from(weight);
            (f64::from(count) - expected).powi(2) / expected
        })
        .sum();
    // Five degrees of freedom: 20.5 is passed once in a thousand seeds.
    assert!(chi_square < 20.5, "{chi_square}");
}

#[test]
fn a_weight_of_0_is_never_picked() {
    let picker = WeightedRandom::with_seed(7).build(&list(&[1, 0]));
    assert_eq!(counts(&picker, 10_000), [10_000, 0]);
}

#[test]
fn over_nothing_but_weights_of_0_it_says_so() {
    for weights in [&[][..], &[0], &[0, 0, 0]] {
        let picker = WeightedRandom::with_seed(1).build(&list(weights));
        assert_eq!(picker.pick(&PickContext::default()).unwrap_err(), PickError::NoInstances);
    }
}

#[test]
fn a_seed_repeats_the_picks() {
    let all = list(&[1, 2, 3]);
    let draw = |seed| {
        let picker = WeightedRandom::with_seed(seed).build(&all);
        let id = |_| picker.pick(&PickContext::default()).unwrap().instance().id.clone();
        (0..50).map(id).collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}
