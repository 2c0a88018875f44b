//! What comes out of filters and shapers that do what they like.

use proptest::prelude::*;

use super::{
    super::{Filter, PanicThreshold, SlowStart, Subset, TagSubset, ZoneAware},
    *,
};
use crate::{
    balance::{PickContext, Picker, Policy, RingHash},
    model::Locality,
};

const CALLER: CallerOrder = CallerOrder::new(7);

fn instances(count: usize) -> InstanceList {
    let build = |number: usize| {
        let address = format!("a:{}", number + 1).parse().expect("valid");
        let plain = Instance::builder(address).id(number.to_string()).tag("number", number.to_string());
        Arc::new(plain.locality("r", if number.is_multiple_of(2) { "even" } else { "odd" }).build())
    };
    (0..count).map(build).collect()
}

fn open(instances: &InstanceList) -> Vec<Candidate<'_>> {
    instances.iter().map(Candidate::open).collect()
}

fn ids(list: &InstanceList) -> Vec<&str> {
    list.iter().map(|instance| &*instance.id).collect()
}

fn weights(shaped: &Shaped) -> Vec<u32> {
    shaped.over.iter().map(|instance| instance.weight).collect()
}

/// What a function makes of the instances.
struct Of<F>(F);

impl<F: Fn(&InstanceList) -> InstanceList + Send + Sync + 'static> Filter for Of<F> {
    fn filter(&self, instances: &InstanceList, _: CallerOrder) -> InstanceList {
        (self.0)(instances)
    }
}

/// Weights times what a function says of the place.
struct Times<F>(F, Option<Duration>);

impl<F: Fn(usize) -> f64 + Send + Sync + 'static> Shaper for Times<F> {
    fn shape(&self, shares: &mut [Share<'_>], _: Duration) -> Option<Duration> {
        for (place, share) in shares.iter_mut().enumerate() {
            share.weight *= (self.0)(place);
        }
        self.1
    }
}

fn shape(shaping: &Shaping, candidates: &[Candidate<'_>]) -> Shaped {
    shape_at(shaping, &mut State::default(), candidates, 0)
}

fn shape_at(shaping: &Shaping, state: &mut State, candidates: &[Candidate<'_>], seconds: u64) -> Shaped {
    shaping.shape(state, candidates, &shaping.choose(candidates), Duration::from_secs(seconds))
}

#[test]
fn filters_run_in_their_order() {
    let all = instances(10);
    let first = || Of(|list: &InstanceList| list.iter().take(3).cloned().collect());
    let last = || Of(|list: &InstanceList| list.iter().rev().take(2).cloned().collect());
    let one_way = Shaping::new().filter(first()).filter(last());
    assert_eq!(ids(&one_way.keep(Arc::clone(&all), CALLER)), ["1", "2"]);
    let other_way = Shaping::new().filter(last()).filter(first());
    assert_eq!(ids(&other_way.keep(Arc::clone(&all), CALLER)), ["8", "9"]);
    let tagged =
        Shaping::new().filter(TagSubset::new([("number", "4")]).or_any()).filter(Subset::new(2).expect("2"));
    assert_eq!(ids(&tagged.keep(Arc::clone(&all), CALLER)), ["4"]);
    assert_eq!(tagged.keep(all[..4].iter().cloned().collect(), CALLER).len(), 2, "of any");
}

#[test]
fn shapers_run_in_their_order_and_the_soonest_is_asked_again_first() {
    let all = instances(2);
    let shaping = Shaping::new()
        .shaper(Times(|place| if place == 0 { 0.5 } else { 1.0 }, Some(Duration::from_secs(5))))
        .shaper(Times(|place| if place == 0 { 0.5 } else { 1.0 }, Some(Duration::ZERO)))
        .shaper(Times(|_| 1.0, None));
    let shaped = shape_at(&shaping, &mut State::default(), &open(&all), 100);
    assert_eq!(weights(&shaped), [8_192, 32_768]);
    assert_eq!(shaped.again, Some(Duration::from_secs(100) + SOONEST));
}

/// C2: a filter cannot bring back what was left out, make something up, or have one twice.
#[test]
fn what_a_filter_makes_up_is_left_out() {
    let all = instances(3);
    let alien = instances(5);
    let shaping = Shaping::new().filter(Of(move |list: &InstanceList| {
        list.iter().rev().chain(alien.iter()).chain(&list[..1]).cloned().collect()
    }));
    assert_eq!(ids(&shaping.keep(all, CALLER)), ["0", "1", "2"]);
}

#[test]
fn a_panic_of_a_filter_or_a_shaper_ends_nothing() {
    let all = instances(2);
    let filter = Shaping::new().filter(Of(|_: &InstanceList| panic!("as the test wants it")));
    assert!(filter.keep(Arc::clone(&all), CALLER).is_empty());
    let half = |place| if place == 0 { 0.5 } else { 1.0 };
    let panics = |place: usize| if place == 1 { panic!("as the test wants it") } else { 0.001 };
    let shapers = Shaping::new().shaper(Times(half, None)).shaper(Times(panics, Some(Duration::ZERO)));
    let shaped = shape(&shapers, &open(&all));
    assert_eq!((weights(&shaped), shaped.again), (vec![16_384, 32_768], None));
}

#[test]
fn what_is_no_share_is_none_and_no_shares_at_all_are_passed_over() {
    let all = instances(4);
    for wrong in [f64::NAN, f64::INFINITY, -1.0, 0.0] {
        let some = Shaping::new().shaper(Times(move |place| if place < 2 { wrong } else { 1.0 }, None));
        let shaped = shape(&some, &open(&all));
        assert_eq!((ids(&shaped.over), &*shaped.from), (vec!["2", "3"], &[2, 3][..]));
        assert!(Arc::ptr_eq(&shaped.over[0], &all[2]), "its own weight will do");
        let none = Shaping::new().shaper(Times(move |_| wrong, None));
        assert_eq!(ids(&shape(&none, &open(&all)).over), ["0", "1", "2", "3"]);
    }
}

#[test]
fn a_list_that_comes_out_as_before_is_the_very_same_instances() {
    let all = instances(3);
    let shaping = Shaping::new().shaper(Times(|place| if place == 0 { 0.1 } else { 1.0 }, None));
    let mut state = State::default();
    let mut once = || shape_at(&shaping, &mut state, &open(&all), 0).over;
    let (first, second) = (once(), once());
    assert!(first.iter().zip(second.iter()).all(|(one, other)| Arc::ptr_eq(one, other)));
    assert_eq!(first[0].address, all[0].address, "only the weight is another");
    let plain = Shaping::new().shaper(Times(|_| 0.3, None));
    let plain = shape_at(&plain, &mut state, &open(&all), 0).over;
    assert!(plain.iter().zip(all.iter()).all(|(one, other)| Arc::ptr_eq(one, other)));
}

/// Shares change by scaling weights; the points of a ring must not follow that.
#[test]
fn when_one_starts_slowly_the_ring_moves_keys_to_it_and_no_others() {
    let built = |number: usize, weight| {
        let address = format!("a:{number}").parse().expect("valid");
        Arc::new(Instance::builder(address).weight(weight).build())
    };
    let before: InstanceList =
        [1, 2, 3, 1, 2, 3].into_iter().enumerate().map(|(n, w)| built(n + 1, w)).collect();
    let after: InstanceList = before.iter().cloned().chain([built(9, 2)]).collect();
    let mut state = State::default();
    let shaping = Shaping::new().shaper(SlowStart::new(Duration::from_secs(20)).expect("in range"));
    shaping.note(&mut state, &before, Duration::ZERO);
    shaping.note(&mut state, &after, Duration::from_secs(100));
    let shaped = shape_at(&shaping, &mut state, &open(&after), 105).over;
    let (before, after) = (RingHash::new().build(&before), RingHash::new().build(&shaped));
    let mut moved = 0;
    for key in 0..10_000_u64 {
        let context = PickContext::new().hash_key(key.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (was, is) = (before.pick(&context).expect("one"), after.pick(&context).expect("one"));
        if was.instance().id != is.instance().id {
            assert_eq!(&*is.instance().id, "a:9");
            moved += 1;
        }
    }
    assert!((250..550).contains(&moved), "a quarter of 2 of 12.5: {moved}");
}

/// Held and ejected ones are spared while at least half are healthy.
#[test]
fn the_panic_threshold_has_both_sides() {
    let chosen = |shaping: &Shaping, ejected: usize, lost: usize| {
        let all = instances(10);
        let mut candidates = open(&all);
        candidates[..ejected].iter_mut().for_each(|candidate| candidate.trust = Trust::Ejected);
        for candidate in &mut candidates[ejected..ejected + lost] {
            (candidate.open, candidate.reach) = (false, Reach::Broken);
        }
        shape(shaping, &candidates).over.len()
    };
    let usual = Shaping::new();
    assert_eq!((chosen(&usual, 5, 0), chosen(&usual, 6, 0)), (5, 10));
    // What is out of reach does not count: of four two are healthy, then of five two.
    assert_eq!((chosen(&usual, 2, 6), chosen(&usual, 3, 5)), (2, 5));
    let off = Shaping::new().panic_threshold(PanicThreshold::OFF);
    assert_eq!((chosen(&off, 9, 0), chosen(&off, 10, 0)), (1, 10), "and all, if there is nobody else");
}

#[test]
fn held_ones_count_as_ill_and_come_before_ejected_ones() {
    let held = |held: &[bool]| -> InstanceList {
        let build =
            |(all, held): (&Arc<Instance>, &bool)| Arc::new(Instance { held: *held, ..Instance::clone(all) });
        instances(held.len()).iter().zip(held).map(build).collect()
    };
    let usual = Shaping::new();
    assert_eq!(ids(&shape(&usual, &open(&held(&[true, false, false]))).over), ["1", "2"]);
    assert_eq!(shape(&usual, &open(&held(&[true, true, false]))).over.len(), 3, "a third is healthy");
    let off = Shaping::new().panic_threshold(PanicThreshold::OFF);
    let all = held(&[true, true, false]);
    let mut candidates = open(&all);
    assert_eq!(ids(&shape(&off, &candidates).over), ["2"]);
    candidates[2].trust = Trust::Ejected;
    assert_eq!(ids(&shape(&off, &candidates).over), ["0", "1"]);
    candidates[2].trust = Trust::Probing;
    assert_eq!(
        ids(&shape(&off, &candidates).over),
        ["2"],
        "it lets one in at a time; the others are there for the rest"
    );
}

#[test]
fn without_shapers_nothing_is_cloned_and_nobody_is_asked_again() {
    let all = instances(3);
    let shaped = shape(&Shaping::new(), &open(&all));
    assert!(shaped.over.iter().zip(all.iter()).all(|(one, other)| Arc::ptr_eq(one, other)));
    assert_eq!(shaped.again, None);
}

#[test]
fn a_zone_that_only_begins_to_be_connected_gets_what_it_can_take() {
    let all = instances(4);
    let aware = ZoneAware::new(Locality::new("r", "even")).expect("a zone");
    let shaping = Shaping::new().shaper(aware);
    let mut candidates = open(&all);
    // Neither connected nor lost: nothing is known of it yet.
    candidates[0].open = false;
    let shaped = shape(&shaping, &candidates);
    let local = f64::from(shaped.over.iter().find(|it| &*it.id == "2").expect("there").weight);
    let total: f64 = shaped.over.iter().map(|it| f64::from(it.weight)).sum();
    assert!(
        (local / total - 2.0 / 3.0).abs() < 0.001,
        "one of three, for half of the callers: {}",
        local / total
    );
    candidates[0].reach = Reach::Broken;
    assert_eq!(ids(&shape(&shaping, &candidates).over).len(), 3, "half of it is lost: it keeps 70 %");
}

proptest! {
    /// Whatever is chosen takes requests, and its weight is one that the registry allows.
    #[test]
    fn whatever_comes_out_was_open_and_its_weight_is_allowed(
        kinds in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), 1_u32..70_000), 1..40),
        factors in prop::collection::vec(prop_oneof![Just(0.0), 1e-9_f64..1e9], 40),
        now in 0_u64..100,
    ) {
        let all: InstanceList = instances(kinds.len()).iter().zip(&kinds).map(|(it, kind)| {
            Arc::new(Instance { held: kind.0, weight: kind.4, ..Instance::clone(it) })
        }).collect();
        let candidates: Vec<_> = all.iter().zip(&kinds).map(|(instance, kind)| {
            let reach = if !kind.1 && kind.2 { Reach::Failed } else { Reach::Fine };
            let trust = match (kind.3, kind.2) {
                (false, _) => Trust::Admitted,
                (true, true) => Trust::Probing,
                (true, false) => Trust::Ejected,
            };
            Candidate { instance, open: kind.1, reach, trust }
        }).collect();
        let shaping = Shaping::new()
            .shaper(Times(move |place| factors[place], None))
            .shaper(ZoneAware::new(Locality::new("r", "odd")).expect("a zone"))
            .shaper(SlowStart::new(Duration::from_secs(20)).expect("in range"));
        let mut state = State::default();
        shaping.note(&mut state, &all[..1], Duration::ZERO);
        shaping.note(&mut state, &all, Duration::ZERO);
        let shaped = shape_at(&shaping, &mut state, &candidates, now);
        prop_assert_eq!(shaped.over.len(), shaped.from.len());
        prop_assert_eq!(shaped.over.is_empty(), candidates.iter().all(|it| !it.open), "someone, if there is anyone");
        for (instance, place) in shaped.over.iter().zip(&shaped.from) {
            prop_assert!(candidates[*place].open && candidates[*place].instance.id == instance.id);
            prop_assert!(instance.weight > 0 && (instance.weight <= 65_535 || instance.weight == all[*place].weight));
        }
    }
}
