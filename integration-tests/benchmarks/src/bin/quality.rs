//! Prints how evenly the policies share, and how many keys move: `cargo run --release --bin quality`, in this folder.
//!
//! Nothing is timed: the numbers are the same on every machine.

use std::sync::Arc;

use benchmarks::fixture::{address, weight};
use client_sdk::{
    balance::{Maglev, PickContext, Picker, Policy, RingHash, RoundRobin, WeightedRandom},
    model::{Instance, InstanceList},
};

const KEYS: u64 = 2_000_000;
const SIZES: [usize; 3] = [10, 100, 1_000];

fn main() {
    println!("| load | max ÷ mean at 10 | 100 | 1,000 |\n|---|--:|--:|--:|");
    for (weights, weight) in [("equal weights", one as fn(usize) -> u32), ("weights 1 to 4", weight)] {
        row(&format!("round robin, {weights}"), |size| {
            evenness(&RoundRobin::with_seed(1), &list(0..size, weight), cycle(size, weight))
        });
        row(&format!("weighted random, {weights}"), |size| {
            evenness(&WeightedRandom::with_seed(1), &list(0..size, weight), KEYS)
        });
        row(&format!("Maglev, {weights}"), |size| evenness(&Maglev::new(), &list(0..size, weight), KEYS));
        row(&format!("ring hash, {weights}"), |size| {
            evenness(&RingHash::new(), &list(0..size, weight), KEYS)
        });
    }
    println!("\n| keys that move | % at 10 | 100 | 1,000 |\n|---|--:|--:|--:|");
    row("one leaves: its own share", |size| share(1.0, size));
    row("Maglev, one leaves", |size| moved(&Maglev::new(), size, size - 1));
    row("ring hash, one leaves", |size| moved(&RingHash::new(), size, size - 1));
    row("one joins: its own share", |size| share(1.0, size + 1));
    row("Maglev, one joins", |size| moved(&Maglev::new(), size, size + 1));
    row("ring hash, one joins", |size| moved(&RingHash::new(), size, size + 1));
    println!(
        "\n| one key is half of the requests, all held | max ÷ mean at 10 | 100 | 1,000 |\n|---|--:|--:|--:|"
    );
    row("Maglev", |size| hot(&Maglev::new(), size));
    row("Maglev, bounded to 1.25", |size| hot(&Maglev::new().bounded(), size));
    row("ring hash", |size| hot(&RingHash::new(), size));
    row("ring hash, bounded to 1.25", |size| hot(&RingHash::new().bounded(), size));
}

fn row(name: &str, value: impl Fn(usize) -> f64) {
    print!("| {name} |");
    for size in SIZES {
        print!(" {:.3} |", value(size));
    }
    println!();
}

fn list(numbers: impl IntoIterator<Item = usize>, weight: impl Fn(usize) -> u32) -> InstanceList {
    let instance =
        |number| Arc::new(Instance::builder(address(number).into()).weight(weight(number)).build());
    numbers.into_iter().map(instance).collect()
}

fn one(_: usize) -> u32 {
    1
}

/// How many picks of round robin make a whole number of cycles.
fn cycle(size: usize, weight: fn(usize) -> u32) -> u64 {
    (0..size).map(|number| u64::from(weight(number))).sum::<u64>() * 10
}

#[allow(clippy::cast_precision_loss)] // small counts
fn share(of: f64, all: usize) -> f64 {
    100.0 * of / all as f64
}

/// The greatest load for its weight, by the mean.
#[allow(clippy::cast_precision_loss)] // small counts
fn evenness<P: Policy>(policy: &P, instances: &InstanceList, picks: u64) -> f64 {
    let picker = policy.build(instances);
    let mut loads = vec![0_u64; instances.len()];
    for key in 0..picks {
        loads[picker.pick(&PickContext::new().hash_key(key)).expect("an instance").index()] += 1;
    }
    let weights: f64 = instances.iter().map(|instance| f64::from(instance.weight)).sum();
    let per_weight = |(load, instance): (&u64, &Arc<Instance>)| *load as f64 / f64::from(instance.weight);
    loads.iter().zip(instances.iter()).map(per_weight).fold(0.0, f64::max) / (picks as f64 / weights)
}

/// How many percent of the keys have another instance when there are that many.
#[allow(clippy::cast_precision_loss)] // small counts
fn moved<P: Policy>(policy: &P, before: usize, after: usize) -> f64 {
    let (one, other) = (policy.build(&list(0..before, one)), policy.build(&list(0..after, one)));
    // The numbers of instances are their places in the lists.
    let owner = |picker: &P::Picker, key| {
        picker.pick(&PickContext::new().hash_key(key)).expect("an instance").index()
    };
    let moved = (0..KEYS).filter(|key| owner(&one, *key) != owner(&other, *key)).count();
    100.0 * moved as f64 / KEYS as f64
}

/// The greatest load by the mean, with a hundred requests held for each instance, half of them of one key.
#[allow(clippy::cast_precision_loss)] // small counts
fn hot<P: Policy>(policy: &P, size: usize) -> f64 {
    let instances = list(0..size, one);
    let picker = policy.build(&instances);
    let requests = size as u64 * 100;
    let mut loads = vec![0_u64; size];
    let held: Vec<_> = (0..requests)
        .map(|number| {
            let key = if number % 2 == 0 { u64::MAX } else { number };
            let pick = picker.pick(&PickContext::new().hash_key(key)).expect("an instance");
            loads[pick.index()] += 1;
            pick
        })
        .collect();
    drop(held);
    loads.into_iter().max().unwrap_or_default() as f64 / 100.0
}
