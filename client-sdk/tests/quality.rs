//! How well the policies share, and how little moves: bounds that mean something, at 10, 100 and 1,000 instances. The
//! measured values stand in `docs/benchmarks.md`.

#![allow(clippy::cast_precision_loss)] // small counts

use std::sync::Arc;

use client_sdk::{
    balance::{
        LeastRequest, Maglev, PeakEwma, PickContext, PickError, Picker, Policy, RingHash, RoundRobin,
        WeightedRandom,
    },
    model::{Instance, InstanceList},
    runtime::Runtime,
};

const SIZES: [usize; 3] = [10, 100, 1_000];

fn instance(number: usize, weight: u32) -> Arc<Instance> {
    let address = format!("10.0.0.1:{}", number + 1).parse().expect("valid");
    Arc::new(Instance::builder(address).id(format!("i-{number}")).weight(weight).build())
}

fn list(count: usize, weight: impl Fn(usize) -> u32) -> InstanceList {
    (0..count).map(|number| instance(number, weight(number))).collect()
}

fn loads(picker: &impl Picker, instances: usize, picks: u64) -> Vec<f64> {
    let mut loads = vec![0.0; instances];
    for key in 0..picks {
        loads[picker.pick(&PickContext::new().hash_key(key)).expect("an instance").index()] += 1.0;
    }
    loads
}

/// The loads, each for its weight and by the mean.
fn evenness(picker: &impl Picker, instances: &InstanceList, picks: u64) -> Vec<f64> {
    let weights: f64 = instances.iter().map(|instance| f64::from(instance.weight)).sum();
    let per_weight = picks as f64 / weights;
    let loads = loads(picker, instances.len(), picks);
    loads.iter().zip(instances.iter()).map(|(load, it)| load / f64::from(it.weight) / per_weight).collect()
}

fn greatest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

/// The share of the keys that change from one instance to another, and of those, how many neither leave nor join `this`.
fn moved<P: Policy>(policy: &P, before: &InstanceList, after: &InstanceList, this: &str) -> (f64, f64) {
    const KEYS: u64 = 50_000;
    let (one, other) = (policy.build(before), policy.build(after));
    let owner = |picker: &P::Picker, key| {
        let pick = picker.pick(&PickContext::new().hash_key(key)).expect("an instance");
        Arc::clone(&pick.instance().id)
    };
    let (mut all, mut stray) = (0.0, 0.0);
    for key in 0..KEYS {
        let (from, to) = (owner(&one, key), owner(&other, key));
        if from != to {
            all += 1.0;
            stray += f64::from(u8::from(&*from != this && &*to != this));
        }
    }
    (all / KEYS as f64, stray / KEYS as f64)
}

#[test]
fn round_robin_honours_weights_exactly_over_a_full_cycle() {
    let skewed: [fn(usize) -> u32; 4] = [
        |_| 1,
        |number| 1 + u32::try_from(number % 4).expect("small"),
        |number| if number == 0 { 9_999 } else { 101 },
        |number| 1 + u32::try_from(number * number % 997).expect("small"),
    ];
    for weight in skewed {
        for count in [10, 100] {
            let instances = list(count, weight);
            let cycle = instances.iter().map(|instance| u64::from(instance.weight)).sum();
            let shares = evenness(&RoundRobin::with_seed(5).build(&instances), &instances, cycle);
            assert!(shares.iter().all(|share| (share - 1.0).abs() < 1e-9), "{shares:?}");
        }
    }
}

#[test]
fn keys_spread_evenly_over_maglev() {
    // As many keys as there are places many times over would only add noise: the table itself is counted in its own tests.
    for count in SIZES {
        let instances = list(count, |_| 3);
        let shares = evenness(&Maglev::new().build(&instances), &instances, 2_000 * count as u64);
        // Two thousand keys each by chance: four standard deviations are 9%.
        assert!(greatest(&shares) < 1.1, "{count}: {}", greatest(&shares));
    }
}

#[test]
fn the_ring_is_even_at_ten_a_hundred_and_a_thousand() {
    for (count, bound) in [(10, 1.2), (100, 1.25), (1_000, 1.3)] {
        let instances = list(count, |_| 1);
        let greatest =
            greatest(&evenness(&RingHash::new().build(&instances), &instances, 500 * count as u64));
        assert!(greatest <= bound, "{count}: max/mean is {greatest}");
    }
}

#[test]
fn the_ring_honours_weights() {
    let instances = list(100, |number| 1 + u32::try_from(number % 4).expect("small"));
    let picker = RingHash::new().build(&instances);
    let loads = loads(&picker, 100, 200_000);
    for weight in 1..=4_usize {
        // All instances of a weight together: 25 of 250 units for each.
        let together: f64 = loads.iter().skip(weight - 1).step_by(4).sum();
        let share = together / 200_000.0 / (weight as f64 * 25.0 / 250.0);
        assert!((share - 1.0).abs() < 0.06, "weight {weight}: {share} of its share");
    }
    let greatest = greatest(&evenness(&picker, &instances, 200_000));
    assert!(greatest <= 1.25, "max/mean is {greatest}");
}

#[test]
fn when_one_leaves_or_joins_the_ring_moves_no_other_key() {
    for count in SIZES {
        let (all, last) = (list(count, |_| 1), format!("i-{}", count - 1));
        let fewer: InstanceList = all[..count - 1].into();
        for (before, after) in [(&all, &fewer), (&fewer, &all)] {
            let (moved, stray) = moved(&RingHash::new(), before, after, &last);
            assert!(stray == 0.0, "{count}: {stray} of the keys moved between others");
            assert!(moved <= 1.3 / count as f64 + 0.001, "{count}: {moved} moved");
        }
    }
}

#[test]
fn when_one_leaves_or_joins_maglev_moves_one_key_in_a_hundred_more_at_most() {
    for count in SIZES {
        let (all, last) = (list(count, |_| 1), format!("i-{}", count - 1));
        let fewer: InstanceList = all[..count - 1].into();
        for (before, after) in [(&all, &fewer), (&fewer, &all)] {
            let (moved, stray) = moved(&Maglev::new(), before, after, &last);
            assert!(stray <= 0.01, "{count}: {stray} of the keys moved between others");
            assert!(moved > 0.0);
        }
    }
}

/// Lists at the edge, by any policy.
fn edges<P: Policy>(policy: &P) {
    let context = PickContext::new().hash_key(7);
    for weights in [&[][..], &[0], &[0, 0, 0]] {
        let picker = policy.build(&list(weights.len(), |number| weights[number]));
        let refused = picker.pick(&context).expect_err("nobody to pick");
        assert_eq!(refused, PickError::NoInstances);
        let refused = picker.pick(&context.attempt(3)).expect_err("nobody to pick");
        assert_eq!(refused, PickError::NoInstances);
    }
    let one = policy.build(&list(1, |_| 65_535));
    for attempt in 0..3 {
        assert_eq!(one.pick(&context.attempt(attempt)).expect("the only one").index(), 0);
    }
    let twice: InstanceList = [instance(0, 1), instance(0, 1), instance(1, 2)].into();
    let picker = policy.build(&twice);
    let picks: Vec<_> = (0..300)
        .map(|key| picker.pick(&PickContext::new().hash_key(key * 31)).expect("an instance").into_owned())
        .collect();
    let second = picks.iter().filter(|pick| &*pick.instance().id == "i-1").count();
    assert!((60..=240).contains(&second), "twice in the list, and {second} of 300 for the other");
    let weightless = policy.build(&list(4, |number| u32::from(number == 2)));
    for key in 0..200 {
        let picked = weightless.pick(&PickContext::new().hash_key(key).attempt(u32::from(key % 3 == 0)));
        assert_eq!(picked.expect("an instance").index(), 2, "a weight of 0 got traffic");
    }
}

#[test]
fn empty_weightless_single_and_duplicate_lists_behave() {
    edges(&RoundRobin::with_seed(1));
    edges(&WeightedRandom::with_seed(1));
    edges(&LeastRequest::with_seed(1));
    edges(&PeakEwma::new(&Runtime::tokio()));
    edges(&RingHash::new());
    edges(&RingHash::new().bounded());
    edges(&Maglev::new());
    edges(&Maglev::new().bounded());
}
