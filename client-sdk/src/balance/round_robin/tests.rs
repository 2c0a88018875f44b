//! Weighted round robin: every share is exact, and a weight of 0 is never picked.

use proptest::prelude::*;

use super::*;
use crate::model::Instance;

fn list(weights: &[u32]) -> InstanceList {
    let build = |(port, weight): (usize, &u32)| {
        let address = format!("a:{}", port + 1).parse().expect("valid");
        Arc::new(Instance::builder(address).weight(*weight).build())
    };
    weights.iter().enumerate().map(build).collect()
}

/// The indices of so many picks.
fn picks(picker: &RoundRobinPicker, count: usize) -> Vec<usize> {
    let index = |instance: &Arc<Instance>| picker.instances.iter().position(|i| Arc::ptr_eq(i, instance));
    (0..count)
        .map(|_| {
            index(picker.pick(&PickContext::default()).expect("eligible").instance()).expect("of the list")
        })
        .collect()
}

fn counts(picks: &[usize], of: usize) -> Vec<u64> {
    let mut counts = vec![0; of];
    for index in picks {
        counts[*index] += 1;
    }
    counts
}

fn longest_run(picks: &[usize]) -> usize {
    picks.chunk_by(|a, b| a == b).map(<[usize]>::len).max().unwrap_or(0)
}

proptest! {
    #[test]
    fn weights_are_honoured_exactly_over_a_full_cycle(
        weights in prop::collection::vec(prop_oneof![0_u32..5, 0_u32..2000], 1..30),
        seed: u64,
    ) {
        prop_assume!(weights.iter().any(|w| *w > 0));
        let picker = RoundRobin::with_seed(seed).build(&list(&weights));
        let divisor = weights.iter().map(|w| u64::from(*w)).fold(0, greatest_common_divisor);
        let expected: Vec<u64> = weights.iter().map(|w| u64::from(*w) / divisor).collect();
        let cycle = usize::try_from(expected.iter().sum::<u64>()).unwrap();
        // From wherever it starts, and again.
        for _ in 0..2 {
            prop_assert_eq!(counts(&picks(&picker, cycle), weights.len()), expected.clone());
        }
    }

    #[test]
    fn the_greatest_weights_neither_overflow_nor_hang(
        weights in prop::collection::vec(prop_oneof![Just(u32::MAX), Just(u32::MAX - 1), Just(1), Just(0)], 2..50),
        seed: u64,
    ) {
        prop_assume!(weights.iter().any(|w| *w > 0));
        let picker = RoundRobin::with_seed(seed).build(&list(&weights));
        let counts = counts(&picks(&picker, 10_000), weights.len());
        let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        for (count, weight) in counts.iter().zip(&weights) {
            let expected = 10_000.0 * f64::from(*weight) / total;
            #[allow(clippy::cast_precision_loss)] // at most 10,000
            let off = (*count as f64 - expected).abs();
            prop_assert!(off <= 60.0, "{count} picks instead of {expected}");
        }
    }

    #[test]
    fn the_instance_of_a_unit_is_found_in_few_steps_however_skewed_the_weights_are(
        weights in prop::collection::vec(prop_oneof![0_u64..4, Just(u64::from(u32::MAX)), Just(1_000)], 2..200),
        random in prop::collection::vec(any::<u64>(), 100),
    ) {
        let cycle: u64 = weights.iter().sum();
        prop_assume!(cycle > 0);
        let units = Units::of(weights.iter().copied(), cycle);
        for now in random.into_iter().chain([0, u64::MAX]) {
            let unit = scale(now, cycle) as u64;
            let searched = units.ends.iter().position(|end| unit < *end);
            prop_assert_eq!(units.owner(now, unit), searched);
        }
        // On average over the counter's range: every leading number's instances are looked at, once at the most.
        let steps: usize = units.guide.windows(2).map(|pair| (pair[1] - pair[0]) as usize + 1).sum();
        prop_assert!(steps <= units.guide.len() + weights.len());
    }
}

#[test]
fn equal_weights_take_turns() {
    let picker = RoundRobin::with_seed(3).build(&list(&[7, 7, 7, 7]));
    let picks = picks(&picker, 12);
    assert_eq!(longest_run(&picks), 1);
    assert_eq!(picks[..4], picks[4..8]);
}

#[test]
fn a_heavy_instance_does_not_get_its_share_in_one_run() {
    // A tenth of the instances, half of the traffic.
    let mut weights = vec![1; 90];
    weights.extend([9; 10]);
    let picker = RoundRobin::with_seed(3).build(&list(&weights));
    assert!(longest_run(&picks(&picker, 1800)) <= 2);
    let picker = RoundRobin::with_seed(3).build(&list(&[5, 1, 1]));
    assert!(longest_run(&picks(&picker, 70)) <= 3);
    // One of a hundred, half of the traffic, and too long a cycle to write down.
    let mut weights = vec![101; 99];
    weights.push(9999);
    let picker = RoundRobin::with_seed(3).build(&list(&weights));
    let picks = picks(&picker, 20_000);
    let heavy: Vec<bool> = picks.iter().map(|index| *index == 99).collect();
    let run = heavy.chunk_by(|a, b| a == b).map(<[bool]>::len).max().unwrap();
    assert!(run <= 20, "a run of {run}");
}

#[test]
fn over_nothing_but_weights_of_0_it_says_so() {
    for weights in [&[][..], &[0], &[0, 0, 0]] {
        let picker = RoundRobin::with_seed(1).build(&list(weights));
        assert_eq!(picker.pick(&PickContext::default()).unwrap_err(), PickError::NoInstances);
    }
}

#[test]
fn picks_one_after_another_take_one_turn_each_whatever_threads_make_them() {
    let picker = RoundRobin::with_seed(7).build(&list(&[1, 2, 3]));
    let of_a_cycle: Vec<usize> = (0..6)
        .flat_map(|_| std::thread::scope(|s| s.spawn(|| picks(&picker, 1)).join().expect("a pick")))
        .collect();
    assert_eq!(counts(&of_a_cycle, 3), [1, 2, 3]);
}

#[test]
fn picks_at_the_same_time_keep_the_shares() {
    const EACH: usize = 200_000;
    let picker = RoundRobin::with_seed(7).build(&list(&[1, 2, 3, 4]));
    let all: Vec<usize> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..4).map(|_| s.spawn(|| picks(&picker, EACH))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("picks")).collect()
    });
    for (count, weight) in counts(&all, 4).into_iter().zip(1_u64..) {
        let share = 4 * EACH as u64 * weight / 10;
        assert!(count.abs_diff(share) < share / 20, "{count} picks instead of {share}");
    }
}
