//! Shares, and what moves when instances come, go or change.

#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // small counts

use super::*;
use crate::model::Instance;

fn list(weights: impl IntoIterator<Item = (usize, u32)>) -> InstanceList {
    let build = |(id, weight): (usize, u32)| {
        let address = format!("10.0.0.1:{}", id + 1).parse().expect("valid");
        Arc::new(Instance::builder(address).id(format!("i-{id}")).weight(weight).build())
    };
    weights.into_iter().map(build).collect()
}

fn shares(picker: &MaglevPicker) -> Vec<f64> {
    let mut shares = vec![0.0; picker.instances.len()];
    picker.table.iter().for_each(|number| shares[*number as usize] += 1.0);
    shares.iter().map(|places| places / picker.table.len() as f64).collect()
}

#[test]
fn shares_are_as_even_as_the_weights_are() {
    for count in [10, 100, 1_000] {
        let shares = shares(&Maglev::new().build(&list((0..count).map(|id| (id, 1)))));
        let most = shares.iter().copied().fold(0.0, f64::max) * count as f64;
        assert!(most <= 1.02, "{count} instances: max/mean {most}");
    }
    // Weights within a hundredth of each share, for many and for few.
    let weights: Vec<_> = (0..500_usize).map(|id| (id, 1 + id as u32 % 4)).collect();
    for (share, (id, weight)) in shares(&Maglev::new().build(&list(weights.clone()))).iter().zip(&weights) {
        let off = share / (f64::from(*weight) / 1_250.0) - 1.0;
        // A place more or less than its due is a part in so many of a light one's share.
        assert!(off.abs() <= 0.01 + 1.0 / (65_537.0 * f64::from(*weight) / 1_250.0), "{id}: {off}");
    }
    let shares = shares(&Maglev::new().build(&list([(0, 1), (1, 3), (2, 6)])));
    for (share, expected) in shares.iter().zip([0.1, 0.3, 0.6]) {
        assert!((share - expected).abs() < 0.01, "{shares:?}");
    }
}

#[test]
fn few_keys_move_when_one_leaves() {
    let count = 50;
    let before = Maglev::new().build(&list((0..count).map(|id| (id, 1))));
    let after = Maglev::new().build(&list((0..count).filter(|id| *id != 7).map(|id| (id, 1))));
    let id = |picker: &MaglevPicker, place: usize| picker.instances[picker.table[place] as usize].id.clone();
    let moved = (0..before.table.len()).filter(|place| id(&before, *place) != id(&after, *place)).count();
    let beyond = moved as f64 / before.table.len() as f64 - 1.0 / f64::from(count as u32);
    assert!((0.0..=0.01).contains(&beyond), "{beyond} of the keys moved beside the leaver's");
}

#[test]
fn the_order_of_the_list_moves_nothing() {
    let one = Maglev::new().build(&list((0..20).map(|id| (id, 1))));
    let other = Maglev::new().build(&list((0..20).rev().map(|id| (id, 1))));
    for key in 0..5_000 {
        let context = PickContext::new().hash_key(key);
        let id = |picker: &MaglevPicker| picker.pick(&context).expect("an instance").instance().id.clone();
        assert_eq!(id(&one), id(&other));
    }
}

#[test]
fn a_size_must_be_a_prime_and_grows_with_the_instances() {
    assert_eq!(Maglev::with_table_size(100).unwrap_err().problem, "it is not a prime");
    assert!(Maglev::with_table_size(MAX_SIZE + 1).is_err());
    let picker = Maglev::with_table_size(101).expect("a prime").build(&list((0..30).map(|id| (id, 1))));
    assert!(picker.table.len() > 3_000 && is_prime(picker.table.len() as u32));
    assert!(is_prime(MAX_SIZE) && is_prime(DEFAULT_SIZE));
}

#[test]
fn no_key_no_instance_and_weights_of_0_have_their_errors() {
    let picker = Maglev::new().build(&list([(0, 1), (1, 0)]));
    assert_eq!(picker.pick(&PickContext::default()).unwrap_err(), PickError::NoHashKey);
    assert_eq!(shares(&picker), [1.0, 0.0]);
    for weights in [vec![], vec![(0, 0)]] {
        let picker = Maglev::new().build(&list(weights));
        let refused = picker.pick(&PickContext::new().hash_key(1));
        assert_eq!(refused.unwrap_err(), PickError::NoInstances);
    }
}
