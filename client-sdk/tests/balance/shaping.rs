//! Filters and shapers before the policy of a balancer and of a cache, on paused time.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use client_sdk::{
    balance::{
        Balancer, Cached, CallerOrder, Handle, LoadBalance, Pick, PickContext, PickError, Picker, Policy,
        RoundRobin,
        shape::{PanicThreshold, Shaping, SlowStart, Subset, TagSubset, ZoneAware},
    },
    model::{Address, Endpoint, Instance, InstanceList, Locality, Status},
    runtime::Runtime,
};

use crate::fake::{Fake, endpoint, eventually, instance, settle};

const SECOND: Duration = Duration::from_secs(1);

/// Counts how often it builds, as often as it wants to.
struct Counts(Arc<AtomicUsize>, Option<Duration>);

struct First(InstanceList);

impl Policy for Counts {
    type Picker = First;

    fn build(&self, instances: &InstanceList) -> First {
        self.0.fetch_add(1, Ordering::Relaxed);
        First(Arc::clone(instances))
    }

    fn rebuild_every(&self) -> Option<Duration> {
        self.1
    }
}

impl Picker for First {
    fn pick(&self, _: &PickContext) -> Result<Pick<'_>, PickError> {
        Pick::new(&self.0, 0)
    }
}

/// How many of so many picks each instance gets.
fn picks<P: Policy>(handle: &mut Handle<P>, count: u32) -> HashMap<Arc<str>, u32> {
    let mut picks = HashMap::new();
    for _ in 0..count {
        let pick = handle.pick(&PickContext::new()).unwrap();
        *picks.entry(Arc::clone(&pick.instance().id)).or_default() += 1;
    }
    picks
}

fn in_zone(port: u16, zone: &str) -> Instance {
    with(instance(port, 1), |it| it.locality = Locality::new("r", zone))
}

fn with(mut instance: Instance, change: impl FnOnce(&mut Instance)) -> Instance {
    change(&mut instance);
    instance
}

fn held(instance: Instance) -> Instance {
    with(instance, |it| it.held = true)
}

#[tokio::test(start_paused = true)]
async fn a_handle_follows_a_slow_start_without_anything_changing() {
    let runtime = Runtime::tokio();
    let fake = Fake::with("s", &[instance(1, 1)]);
    let balancer = Balancer::builder(Arc::clone(&fake), RoundRobin::with_seed(1))
        .shaper(SlowStart::new(20 * SECOND).unwrap())
        .runtime(runtime.clone())
        .build();
    let mut handle = balancer.handle(&endpoint()).await.unwrap();
    tokio::time::sleep((100 * SECOND).saturating_sub(runtime.now())).await;
    fake.publish("s", &[instance(1, 1), instance(2, 1)]);
    settle().await;
    for (age, share) in [(0, 0.1), (2, 0.1), (5, 0.25), (10, 0.5), (19, 0.95), (20, 1.0), (60, 1.0)] {
        let then = (100 + age) * SECOND + SECOND / 100;
        tokio::time::sleep(then.saturating_sub(runtime.now())).await;
        let picks = picks(&mut handle, 20_000);
        let got = f64::from(picks["a:2"]) / f64::from(picks["a:1"]);
        assert!((got - share).abs() < 0.002, "after {age} s {got} and not {share}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_balancer_builds_anew_as_often_as_the_policy_wants_and_otherwise_never() {
    for (every, expected) in [(None, 0), (Some(SECOND), 120), (Some(7 * SECOND), 16)] {
        let built = Arc::new(AtomicUsize::new(0));
        let fake = Fake::with("s", &[instance(1, 1)]);
        fake.set("t", &[instance(1, 1)]);
        let balancer = Balancer::builder(Arc::clone(&fake), Counts(Arc::clone(&built), every)).build();
        let mut one = balancer.handle(&endpoint()).await.unwrap();
        let _other = balancer.handle(&Endpoint::new("t")).await.unwrap();
        settle().await;
        let before = built.load(Ordering::Relaxed);
        tokio::time::sleep(60 * SECOND).await;
        let after = built.load(Ordering::Relaxed) - before;
        assert!(after.abs_diff(expected) <= expected / 10, "{every:?}: {after} for both keys");
        drop(balancer);
        let last = built.load(Ordering::Relaxed);
        tokio::time::sleep(60 * SECOND).await;
        assert_eq!(built.load(Ordering::Relaxed), last, "it ends with its balancer");
        assert!(one.pick(&PickContext::new()).is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_handle_keeps_to_its_zone_and_retries_go_beyond_it_held_ones_last() {
    let all = [in_zone(1, "a"), in_zone(2, "a"), in_zone(3, "b"), in_zone(4, "b")];
    let fake = Fake::with("s", &[&all[..], &[held(in_zone(5, "a"))]].concat());
    let balancer = Balancer::builder(Arc::clone(&fake), RoundRobin::with_seed(1))
        .shaper(ZoneAware::new(Locality::new("r", "a")).unwrap())
        .build();
    let mut handle = balancer.handle(&endpoint()).await.unwrap();
    let picks = picks(&mut handle, 100);
    assert_eq!(picks.keys().map(|id| &**id).collect::<HashSet<_>>(), HashSet::from(["a:1", "a:2"]));
    for _ in 0..20 {
        let order: Vec<_> = balancer.get(&endpoint()).await.unwrap().map(|it| it.to_string()).collect();
        assert_eq!(order.len(), 5);
        assert!(order[..2].iter().all(|it| ["a:1", "a:2"].contains(&&**it)), "{order:?}");
        assert_eq!(order[4], "a:5", "{order:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn filters_leave_nobody_to_picks_or_retries_but_those_they_keep() {
    let tagged = |port, version: &'static str| {
        let address: Address = format!("a:{port}").parse().unwrap();
        Instance::builder(address).tag("version", version).build()
    };
    let fake = Fake::with("s", &[tagged(1, "1"), tagged(2, "2"), tagged(3, "2"), tagged(4, "2")]);
    let balancer = Balancer::builder(Arc::clone(&fake), RoundRobin::with_seed(1))
        .filter(TagSubset::new([("version", "2")]))
        .filter(Subset::new(2).unwrap())
        .caller(CallerOrder::new(1))
        .build();
    let mut handle = balancer.handle(&endpoint()).await.unwrap();
    let two: HashSet<_> = picks(&mut handle, 100).into_keys().map(|id| id.to_string()).collect();
    assert_eq!((two.len(), two.contains("a:1")), (2, false));
    let tried: HashSet<_> = balancer.get(&endpoint()).await.unwrap().map(|it| it.to_string()).collect();
    assert_eq!(tried, two);
    assert_eq!(handle.refused().to_string(), "4 instances: 2 left out by a filter");
    fake.publish("s", &[tagged(1, "1")]);
    settle().await;
    assert!(handle.pick(&PickContext::new()).is_err());
    let error = balancer.get(&endpoint()).await.map(drop).unwrap_err().to_string();
    assert_eq!(error, "no instance of default/s takes requests: 1 instance: 1 left out by a filter");
    let named = Endpoint::builder("s").address("b:1".parse().unwrap()).build();
    assert!(balancer.handle(&named).await.unwrap().pick(&PickContext::new()).is_ok(), "passes them by");
}

/// C2, whatever the threshold.
#[tokio::test(start_paused = true)]
async fn the_panic_threshold_ignores_held_and_never_weight_0_draining_or_down() {
    let hold = |port| held(instance(port, 1));
    let never = [
        instance(7, 0),
        with(instance(8, 1), |it| it.status = Status::Draining),
        with(held(instance(9, 1)), |it| it.status = Status::Down),
    ];
    for (threshold, expected) in [(PanicThreshold::default(), 3), (PanicThreshold::OFF, 1)] {
        let fake = Fake::with("s", &[&[instance(1, 1), hold(2), hold(3)][..], &never].concat());
        let balancer =
            Balancer::builder(Arc::clone(&fake), RoundRobin::with_seed(1)).panic_threshold(threshold).build();
        let mut handle = balancer.handle(&endpoint()).await.unwrap();
        assert_eq!(picks(&mut handle, 99).len(), expected);
        assert_eq!(balancer.get(&endpoint()).await.unwrap().count(), 3, "and in retries");
        fake.publish("s", &[&[instance(1, 1), hold(2)][..], &never].concat());
        eventually(|| picks(&mut handle, 100).len() == 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_cache_by_itself_shapes_when_a_view_changes() {
    let runtime = Runtime::tokio();
    let fake = Fake::with("s", &[in_zone(1, "a"), in_zone(2, "b")]);
    let shaping = Shaping::new().shaper(ZoneAware::new(Locality::new("r", "b")).unwrap());
    let cached: Cached<_, crate::fake::Key> =
        Cached::new(RoundRobin::with_seed(1), &runtime).shaping(shaping).caller(CallerOrder::new(1));
    for _ in 0..10 {
        let first = cached.get_picker(&endpoint(), &*fake).await.unwrap().next().unwrap();
        assert_eq!(first.to_string(), "a:2");
    }
    let change = fake.set("s", &[in_zone(1, "a"), held(in_zone(2, "b"))]);
    LoadBalance::<Fake>::rebalance(&cached, change);
    let first = cached.get_picker(&endpoint(), &*fake).await.unwrap().next().unwrap();
    assert_eq!(first.to_string(), "a:1", "held is not usable");
}
