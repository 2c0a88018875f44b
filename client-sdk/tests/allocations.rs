//! A pick allocates nothing, by any policy, on a built picker and through a handle; nor does what ends it.

use std::{sync::Arc, time::Duration};

use allocation_counter::measure;
use client_sdk::{
    balance::{
        Balancer, LeastRequest, Maglev, Outcome, PeakEwma, PickContext, Picker, Policy, ReportedLoad,
        RingHash, RoundRobin, WeightedRandom,
        shape::{SlowStart, Subset, TagSubset, ZoneAware},
    },
    discover::WeightedStaticDiscover,
    model::{Endpoint, Instance, InstanceList, Locality},
    outlier::{Detector, OutlierDetection},
    runtime::Runtime,
};

/// A list of so many, and weights that repeat after so many different ones.
fn list(count: u16, weights: u32) -> InstanceList {
    let instance = |number| {
        let address = std::net::SocketAddr::from(([10, 0, 0, 1], number)).into();
        Arc::new(Instance::builder(address).weight(1 + u32::from(number) * 7 % weights).build())
    };
    (1..=count).map(instance).collect()
}

fn contexts() -> impl Iterator<Item = PickContext> {
    let of = |number: u64| {
        let context = PickContext::new().hash_key(number).attempt(u32::from(number.is_multiple_of(5)));
        if number.is_multiple_of(2) { context.now(Duration::from_millis(number)) } else { context }
    };
    (0..500).map(of)
}

async fn allocates_nothing<P: Policy>(policy: impl Fn() -> P, runtime: &Runtime) {
    // Equal weights, a short cycle, a long one.
    for (count, weights) in [(1, 1), (10, 1), (100, 4), (300, 9_973)] {
        let instances = list(count, weights);
        let picker = policy().build(&instances);
        let on_picker = measure(|| {
            for context in contexts() {
                drop(picker.pick(&context).expect("an instance"));
                picker.pick(&context).expect("an instance").into_owned().finish(Outcome::Success);
            }
        });
        assert_eq!(on_picker.count_total, 0, "on a picker over {count}");

        let discover: WeightedStaticDiscover = instances.iter().map(|it| Instance::clone(it)).collect();
        let balancer = Balancer::builder(Arc::new(discover), policy()).runtime(runtime.clone()).build();
        let mut handle = balancer.handle(&Endpoint::new("service")).await.expect("known");
        drop(handle.pick(&PickContext::new().hash_key(1)));
        let through_handle = measure(|| {
            for context in contexts() {
                handle.pick(&context).expect("an instance").finish(Outcome::Failure);
            }
        });
        assert_eq!(through_handle.count_total, 0, "through a handle on {count}");

        // In a zone of few, half of what is left by the filters: there are shares of all kinds.
        let zoned = |it: &Arc<Instance>| {
            let mut zoned = Instance::clone(it);
            zoned.locality = Locality::new("r", if it.weight.is_multiple_of(3) { "few" } else { "many" });
            zoned
        };
        let zoned: WeightedStaticDiscover = instances.iter().map(zoned).collect();
        let balancer = Balancer::builder(Arc::new(zoned), policy())
            .filter(TagSubset::new([("there", "no")]).or_any())
            .filter(Subset::new(1 + usize::from(count) / 2).expect("above 0"))
            .shaper(ZoneAware::new(Locality::new("r", "few")).expect("a zone"))
            .shaper(SlowStart::new(Duration::from_secs(30)).expect("in range"))
            .runtime(runtime.clone())
            .build();
        let mut handle = balancer.handle(&Endpoint::new("service")).await.expect("known");
        drop(handle.pick(&PickContext::new().hash_key(1)));
        let with_all_filters = measure(|| {
            for context in contexts() {
                handle.pick(&context).expect("an instance").finish(Outcome::Success);
            }
        });
        assert_eq!(with_all_filters.count_total, 0, "with all filters set, through a handle on {count}");
    }
}

#[tokio::test]
async fn a_pick_allocates_nothing() {
    let runtime = Runtime::tokio();
    allocates_nothing(|| RoundRobin::with_seed(1), &runtime).await;
    allocates_nothing(|| WeightedRandom::with_seed(1), &runtime).await;
    allocates_nothing(|| LeastRequest::with_seed(1), &runtime).await;
    allocates_nothing(|| PeakEwma::new(&runtime), &runtime).await;
    allocates_nothing(|| ReportedLoad::new(&runtime), &runtime).await;
    allocates_nothing(RingHash::new, &runtime).await;
    allocates_nothing(Maglev::new, &runtime).await;
    allocates_nothing(|| RingHash::new().bounded(), &runtime).await;
    allocates_nothing(|| Maglev::new().bounded(), &runtime).await;
}

#[test]
fn what_is_counted_of_an_instance_allocates_nothing() {
    let instances = list(2, 1);
    let mut detector = Detector::new(OutlierDetection::default(), Duration::ZERO, 0);
    detector.follow(&instances);
    let tally = Arc::clone(detector.tally(&instances[0]).expect("there"));
    let counted = measure(|| {
        for outcome in [Outcome::Success, Outcome::Failure, Outcome::Cancelled].into_iter().cycle().take(500)
        {
            let _ = tally.enter();
            let _ = tally.finished(outcome, None);
        }
    });
    assert_eq!(counted.count_total, 0);
}

#[test]
fn the_counter_counts() {
    assert_eq!(measure(|| drop(std::hint::black_box(vec![1]))).count_total, 1);
}
