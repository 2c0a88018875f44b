//! The bound, with picks that are held; and the total, over rebuilds and over views that share instances.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    balance::{Maglev, Outcome, RingHash, RingHashPicker},
    model::Instance,
};

fn list(weights: impl IntoIterator<Item = (usize, u32)>) -> InstanceList {
    let build = |(id, weight): (usize, u32)| {
        let address = format!("10.0.0.1:{}", id + 1).parse().expect("valid");
        Arc::new(Instance::builder(address).id(format!("i-{id}")).weight(weight).build())
    };
    weights.into_iter().map(build).collect()
}

fn equal(count: usize) -> InstanceList {
    list((0..count).map(|id| (id, 1)))
}

fn pick(picker: &impl Picker, key: u64) -> Pick<'static> {
    picker.pick(&PickContext::new().hash_key(key)).expect("an instance").into_owned()
}

fn in_flight(picker: &impl Picker, count: usize) -> Vec<u32> {
    (0..count).map(|index| picker.load(index).expect("counted").in_flight).collect()
}

/// ⌈factor · m · w ÷ W⌉ in whole numbers, the factor in quarters.
fn capacity(quarters: u64, requests: u64, weight: u64, all: u64) -> u64 {
    (quarters * requests * weight).div_ceil(4 * all)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// No instance has more than its capacity at the moment it takes a request, whichever keys come and whichever end.
    #[test]
    fn no_load_passes_its_bound(
        weights in prop::collection::vec(1_u32..6, 1..12),
        steps in prop::collection::vec((any::<u64>(), 0_u8..4), 1..200),
        few_keys: bool,
        maglev: bool,
    ) {
        let instances = list(weights.iter().copied().enumerate());
        let ring = RingHash::new().bounded().build(&instances);
        let table = Maglev::with_table_size(1_009).expect("a prime").bounded().build(&instances);
        let all: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        let mut held = Vec::new();
        for (random, what) in steps {
            if what == 0 && !held.is_empty() {
                drop(held.swap_remove(usize::try_from(random).expect("64 bits") % held.len()));
                continue;
            }
            let key = if few_keys { random % 3 } else { random };
            let picked = if maglev { pick(&table, key) } else { pick(&ring, key) };
            let index = picked.index();
            held.push(picked);
            let loads = if maglev { in_flight(&table, weights.len()) } else { in_flight(&ring, weights.len()) };
            let capacity = capacity(5, held.len() as u64, u64::from(weights[index]), all);
            prop_assert!(
                u64::from(loads[index]) <= capacity,
                "{} at weight {} of {all}, with {} in all", loads[index], weights[index], held.len()
            );
            prop_assert_eq!(loads.iter().map(|load| *load as usize).sum::<usize>(), held.len());
        }
    }

    /// The total is the sum over the picker's instances, while views that share instances are rebuilt and picks end late.
    #[test]
    fn the_total_is_right_over_rebuilds_and_over_views_that_share_instances(
        steps in prop::collection::vec((0_u8..8, any::<u64>()), 1..120),
    ) {
        let policy = RingHash::new().bounded();
        // Two endpoints of one policy: 0 to 5, and 3 to 8.
        let views = [list((0..6).map(|id| (id, 1))), list((3..9).map(|id| (id, 1)))];
        let mut pickers: Vec<BoundedPicker<RingHashPicker>> = views.iter().map(|view| policy.build(view)).collect();
        let mut held: Vec<Pick<'static>> = Vec::new();
        for (step, random) in steps {
            let which = usize::from(random % 2 == 1);
            match step {
                0 => {
                    // One of its instances is away, or back.
                    let from = which * 3;
                    let away = from + usize::try_from(random / 2 % 7).expect("small");
                    pickers[which] = policy.build(&list((from..from + 6).filter(|id| *id != away).map(|id| (id, 1))));
                }
                1 | 2 if !held.is_empty() => {
                    let at = usize::try_from(random).expect("64 bits") % held.len();
                    held.swap_remove(at).finish(Outcome::Success);
                }
                _ => held.push(pick(&pickers[which], random)),
            }
            for picker in &pickers {
                let active = |instance: &Arc<Instance>| held.iter().filter(|it| it.instance().id == instance.id).count();
                let expected: usize = picker.places.instances().iter().map(active).sum();
                prop_assert_eq!(usize::try_from(picker.group.total()).expect("not negative"), expected);
            }
        }
        held.clear();
        prop_assert!(pickers.iter().all(|picker| picker.group.total() == 0));
    }
}

#[test]
fn a_key_that_everyone_asks_for_is_spread_when_its_instance_is_full() {
    let picker = RingHash::new().bounded().build(&equal(10));
    let held: Vec<_> = (0..100).map(|_| pick(&picker, 42)).collect();
    let loads = in_flight(&picker, 10);
    assert_eq!(*loads.iter().max().expect("some"), 13, "⌈1.25 · 100 ÷ 10⌉: {loads:?}");
    drop(held);
    assert_eq!(in_flight(&picker, 10), [0; 10]);
}

#[test]
fn while_nothing_is_full_keys_go_where_they_go_unbounded() {
    let instances = equal(10);
    let (bounded, plain) = (RingHash::new().bounded().build(&instances), RingHash::new().build(&instances));
    for key in 0..1_000 {
        assert_eq!(pick(&bounded, key).index(), pick(&plain, key).index());
    }
}

#[test]
fn the_overflow_of_one_instance_does_not_fill_its_neighbour() {
    // The keys of one instance are asked for as often as all others together. What it cannot take goes to all.
    let instances = equal(20);
    let (bounded, plain) = (RingHash::new().bounded().build(&instances), RingHash::new().build(&instances));
    let (hot, others): (Vec<u64>, Vec<u64>) = (0..30_000).partition(|key| pick(&plain, *key).index() == 3);
    let held: Vec<_> = hot
        .iter()
        .zip(&others)
        .take(1_000)
        .flat_map(|(a, b)| [pick(&bounded, *a), pick(&bounded, *b)])
        .collect();
    assert_eq!(held.len(), 2_000);
    let loads = in_flight(&bounded, 20);
    assert_eq!(loads[3], 125, "full: {loads:?}");
    assert!(loads.iter().all(|load| (70..=125).contains(load)), "{loads:?}");
    let full = loads.iter().filter(|load| **load >= 120).count();
    assert!(full <= 4, "{full} are full: {loads:?}");
}

#[test]
fn of_many_threads_at_once_none_takes_anothers_room() {
    let picker = Maglev::new().bounded().build(&equal(4));
    let held = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| (0..500).map(|_| pick(&picker, 1)).collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
    });
    let loads = in_flight(&picker, 4);
    // Within what the other threads were in the middle of.
    assert!(loads.iter().all(|load| *load <= 625 + 4), "{loads:?}");
    assert_eq!(picker.group.total(), 2_000);
    let mut other = held;
    let one = other.split_off(1_000);
    std::thread::scope(|scope| {
        scope.spawn(|| drop(one));
        drop(other);
    });
    assert_eq!((picker.group.total(), in_flight(&picker, 4)), (0, vec![0; 4]));
}

#[test]
fn joining_while_picks_begin_and_end_loses_none() {
    let policy = RingHash::new().bounded();
    let (first, instances) = (policy.build(&equal(8)), equal(8));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3_u64)
            .map(|thread| {
                let first = &first;
                scope.spawn(move || {
                    for n in 0..5_000 {
                        drop((pick(first, n * 3 + thread), pick(first, n)));
                    }
                })
            })
            .collect();
        let mut last = policy.build(&instances);
        while threads.iter().any(|thread| !thread.is_finished()) {
            last = policy.build(&instances);
        }
        for thread in threads {
            thread.join().expect("no panic");
        }
        assert_eq!((first.group.total(), last.group.total()), (0, 0));
    });
}

#[test]
fn an_instance_twice_in_one_list_counts_once() {
    let twice = list([(0, 1), (0, 1), (1, 1)]);
    let picker = RingHash::new().bounded().build(&twice);
    let held: Vec<_> = (0..20).map(|key| pick(&picker, key)).collect();
    assert_eq!(picker.group.total(), 20);
    drop(held);
    assert_eq!(picker.group.total(), 0);
}

#[test]
fn a_factor_must_be_above_1() {
    for factor in [1.0, 0.5, 0.0, -2.0, f64::NAN, f64::INFINITY] {
        let refused = RingHash::new().bounded_by(factor).expect_err("no factor");
        assert!(refused.to_string().contains("above 1"), "{refused}");
        assert!(Maglev::new().bounded_by(factor).is_err());
    }
    let picker = RingHash::new().bounded_by(2.0).expect("a factor").build(&equal(4));
    let held: Vec<_> = (0..8).map(|_| pick(&picker, 1)).collect();
    assert_eq!(in_flight(&picker, 4).into_iter().max(), Some(4), "twice the mean of 2");
    drop(held);
}

#[test]
fn one_instance_takes_all_and_none_have_their_errors() {
    let picker = Maglev::new().bounded().build(&equal(1));
    let held: Vec<_> = (0..50).map(|key| pick(&picker, key)).collect();
    assert_eq!(held.len(), 50);
    assert_eq!(picker.pick(&PickContext::new()).unwrap_err(), PickError::NoHashKey);
    for weights in [vec![], vec![(0, 0)], vec![(0, 0), (1, 0)]] {
        let instances = list(weights);
        let key = PickContext::new().hash_key(1);
        assert_eq!(
            RingHash::new().bounded().build(&instances).pick(&key).unwrap_err(),
            PickError::NoInstances
        );
        assert_eq!(Maglev::new().bounded().build(&instances).pick(&key).unwrap_err(), PickError::NoInstances);
    }
}
