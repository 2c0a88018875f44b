//! Filters, shapers and the panic threshold before a policy, on paused time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use client_sdk::{
    balance::{
        CallerOrder, LoadBalance, LoadBalanceError, Maglev, MissingKey, Pick, PickContext, PickError, Picker,
        Policy, RoundRobin,
        shape::{Failover, PanicThreshold, SlowStart, Subset, TagSubset, ZoneAware},
    },
    discover::Discover,
    layer::{LoadBalanced, LoadBalancedError, RouteError},
    members::Standing,
    model::{Address, Change, Endpoint, InstanceBuilder, InstanceList, Locality, Status},
    runtime::Runtime,
};

use crate::kit::{Balanced, Fleet, Host, Makes, World, all_wait, ask, builder, who};

const SECOND: Duration = Duration::from_secs(1);

/// How many of so many requests each host answers.
async fn answers(balanced: &Balanced, requests: usize) -> HashMap<String, usize> {
    let mut answers = HashMap::new();
    for _ in 0..requests {
        *answers.entry(who(balanced).await.expect("answered")).or_default() += 1;
    }
    answers
}

fn standing(balanced: &Balanced, id: &str) -> Standing {
    balanced.snapshot().instance(id).expect("known").standing
}

fn count(balanced: &Balanced, standing: Standing) -> usize {
    balanced.snapshot().instances.iter().filter(|instance| instance.standing == standing).count()
}

/// Writes down what it is given, by id, and when.
#[derive(Clone)]
struct Writes {
    runtime: Runtime,
    seen: Arc<Mutex<Vec<Seen>>>,
    every: Option<Duration>,
}

type Seen = (Duration, HashMap<String, u32>);

struct First(InstanceList);

impl Writes {
    fn new(runtime: &Runtime) -> Self {
        Self { runtime: runtime.clone(), seen: Arc::default(), every: None }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }
}

impl Policy for Writes {
    type Picker = First;

    fn build(&self, instances: &InstanceList) -> First {
        let weights = instances.iter().map(|instance| (instance.id.to_string(), instance.weight)).collect();
        self.seen.lock().expect("no panic").push((self.runtime.now(), weights));
        First(Arc::clone(instances))
    }

    fn rebuild_every(&self) -> Option<Duration> {
        self.every
    }
}

impl Picker for First {
    fn pick(&self, _: &PickContext) -> Result<Pick<'_>, PickError> {
        Pick::new(&self.0, 0)
    }
}

/// Hosts `a0`, `a1` … in zone `a`, and so on.
fn zones(world: &World, zones: &[(&str, usize)]) -> Vec<(Host, InstanceBuilder)> {
    let host = |zone: &str, number: usize| {
        let host = world.host(&format!("{zone}{number}"));
        let instance = host.instance().locality("r", zone);
        (host, instance)
    };
    zones.iter().flat_map(|(zone, hosts)| (0..*hosts).map(|number| host(zone, number))).collect()
}

fn fleet(hosts: &[(Host, InstanceBuilder)]) -> Fleet {
    Fleet::of(hosts.iter().map(|(_, instance)| instance.clone()))
}

fn zone_a() -> ZoneAware {
    ZoneAware::new(Locality::new("r", "a")).expect("a zone")
}

#[tokio::test(start_paused = true)]
async fn a_subset_of_k_keeps_k_services_and_one_that_leaves_is_replaced_by_one() {
    let world = World::default();
    let hosts: Vec<_> = (0..20).map(|number| world.host(&format!("h{number}"))).collect();
    let fleet = Fleet::of(hosts.iter().map(Host::instance));
    let balanced = builder(&fleet)
        .caller(CallerOrder::named("billing-1"))
        .filter(Subset::new(5).expect("above 0"))
        .service(world.clone());
    balanced.wait_until(|now| now.chosen() == 5).await;
    all_wait().await;
    let made = || -> Vec<usize> { (0..20).filter(|number| hosts[*number].alive() > 0).collect() };
    let before = made();
    assert_eq!((before.len(), count(&balanced, Standing::NotInSubset)), (5, 15));
    assert_eq!(answers(&balanced, 50).await.len(), 5);

    let gone = before[2];
    fleet.set((0..20).filter(|number| *number != gone).map(|number| hosts[number].instance()));
    balanced.wait_until(|now| now.chosen() == 5).await;
    all_wait().await;
    let after = made();
    assert_eq!((after.len(), after.iter().filter(|number| before.contains(number)).count()), (5, 4));
    assert_eq!(hosts.iter().map(Host::made).sum::<usize>(), 6, "the other four were not made anew");

    fleet.set(hosts.iter().map(Host::instance));
    balanced.wait_until(|now| now.chosen() == 5 && now.instances.len() == 20).await;
    all_wait().await;
    assert_eq!(made(), before, "and the one too many is given up");
}

#[tokio::test(start_paused = true)]
async fn where_the_filters_leave_none_requests_fail_and_say_so() {
    let world = World::default();
    let hosts = world.hosts(["old", "odd", "idle"]);
    let [old, odd, idle] = &hosts;
    let fleet = Fleet::of([old.instance().tag("version", "1"), odd.instance(), idle.instance().weight(0)]);
    let balanced = builder(&fleet).filter(TagSubset::new([("version", "2")])).service(world.clone());
    let error = who(&balanced).await.expect_err("none has the tag");
    let LoadBalancedError::Route(RouteError::NoInstances { reason, .. }) = error else { panic!("{error}") };
    assert_eq!(reason, "3 instances: 1 of weight 0, 2 left out by a filter");
    assert_eq!(standing(&balanced, "idle"), Standing::WeightZero);
    assert_eq!(hosts.iter().map(Host::asked).sum::<usize>(), 0, "nobody connects to what is not used");

    fleet.set([old.instance().tag("version", "2"), odd.instance(), idle.instance().weight(0)]);
    balanced.wait_until(|now| now.chosen() == 1).await;
    assert_eq!(answers(&balanced, 10).await, HashMap::from([("old".to_owned(), 10)]));
    fleet.set([old.instance(), odd.instance().tag("version", "2")]);
    balanced.wait_until(|now| now.instance("odd").is_some_and(|it| it.standing == Standing::Chosen)).await;
    all_wait().await;
    assert_eq!((who(&balanced).await.expect("there"), old.alive()), ("odd".to_owned(), 0), "it is given up");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_with_an_address_passes_filters_by() {
    let world = World::default();
    let host = world.host("there");
    let endpoint = Endpoint::builder("greeter").address(host.address()).build();
    let none = TagSubset::new([("version", "2")]);
    let builder = client_sdk::layer::LoadBalanceLayer::builder(Arc::new(Fleet::unknown()), endpoint);
    let balanced: LoadBalanced<_, _, _> = builder.filter(none).service(world.clone());
    assert_eq!(who(&balanced).await.expect("answered"), "there");
}

/// Names all of a fleet, in its order, whatever they are.
struct InOrder;

impl LoadBalance<Fleet> for InOrder {
    type InstanceIter = std::vec::IntoIter<Address>;

    async fn get_picker(&self, to: &Endpoint, fleet: &Fleet) -> Result<Self::InstanceIter, LoadBalanceError> {
        let instances = fleet.discover(to).await.expect("it never fails");
        Ok(instances.iter().map(|instance| instance.address.clone()).collect::<Vec<_>>().into_iter())
    }

    fn rebalance(&self, _: Change<()>) {}
}

#[tokio::test(start_paused = true)]
async fn of_what_a_load_balancer_names_the_filtered_are_passed_over() {
    let world = World::default();
    let [a, b] = &world.hosts(["a", "b"]);
    let fleet = Fleet::of([a.instance(), b.instance().tag("version", "2")]);
    let balanced = builder(&fleet)
        .load_balancer(InOrder)
        .filter(TagSubset::new([("version", "2")]))
        .shaper(zone_a())
        .service(world.clone());
    assert_eq!(who(&balanced).await.expect("answered"), "b");
    all_wait().await;
    assert_eq!(
        (standing(&balanced, "a"), standing(&balanced, "b")),
        (Standing::NotInSubset, Standing::Chosen)
    );
    assert_eq!(a.asked(), 0);
}

/// A policy that connects on demand learns of a cut only by trying.
#[tokio::test(start_paused = true)]
async fn a_hash_policys_keys_leave_a_zone_that_is_cut_off_and_come_back() {
    let world = World::default();
    let hosts = zones(&world, &[("a", 2), ("b", 2)]);
    let fleet = fleet(&hosts);
    let builder = builder(&fleet).policy(Maglev::new()).missing_key(MissingKey::Random);
    let balanced = builder.shaper(zone_a()).without_outlier_detection().service(world.clone());
    assert!(answers(&balanced, 50).await.keys().all(|who| who.starts_with('a')));
    for (host, _) in &hosts[..2] {
        host.makes(Makes::Errors);
        host.doom("connection reset");
    }
    balanced.wait_until(|now| now.instances[..2].iter().all(|it| it.last_error.is_some())).await;
    assert!(answers(&balanced, 50).await.keys().all(|who| who.starts_with('b')));
    hosts[..2].iter().for_each(|(host, _)| host.makes(Makes::Services));
    balanced.wait_until(|now| now.instances[..2].iter().all(|it| it.connections > 0)).await;
    all_wait().await;
    assert!(answers(&balanced, 50).await.keys().all(|who| who.starts_with('a')));
}

#[tokio::test(start_paused = true)]
async fn requests_stay_in_the_zone_and_move_when_it_is_cut_off() {
    let world = World::default();
    let hosts = zones(&world, &[("a", 4), ("b", 4), ("c", 4)]);
    let fleet = fleet(&hosts);
    let runtime = Runtime::tokio();
    let balanced = builder(&fleet)
        .policy(RoundRobin::new(&runtime))
        .shaper(zone_a())
        .without_outlier_detection()
        .service(world.clone());
    balanced.wait_until(|now| now.chosen() == 4 && now.instances.iter().all(|it| it.connections > 0)).await;
    all_wait().await;
    assert_eq!(count(&balanced, Standing::Standby), 8);
    let local = answers(&balanced, 40).await;
    assert_eq!((local.len(), local["a0"]), (4, 10), "evenly, and at home: {local:?}");

    // Half of it is lost: 1.4 times what is left stays.
    let [(a0, _), (a1, _), (a2, _), (a3, _), ..] = &hosts[..] else { panic!("12") };
    for host in [a0, a1] {
        host.makes(Makes::Errors);
        host.doom("connection reset");
    }
    balanced.wait_until(|now| now.chosen() == 10).await;
    let spilt = answers(&balanced, 10_000).await;
    let at_home = spilt["a2"] + spilt["a3"];
    assert!((6_980..=7_020).contains(&at_home), "{spilt:?}");
    assert!((365..=385).contains(&spilt["b0"]) && (365..=385).contains(&spilt["c3"]), "{spilt:?}");

    // All of it is.
    for host in [a2, a3] {
        host.makes(Makes::Errors);
        host.doom("connection reset");
    }
    balanced.wait_until(|now| now.chosen() == 8).await;
    let away = answers(&balanced, 80).await;
    assert!(away.len() == 8 && away.values().all(|requests| *requests == 10), "{away:?}");
}

#[tokio::test(start_paused = true)]
async fn what_the_near_ones_do_not_take_goes_further_away() {
    let world = World::default();
    let hosts = zones(&world, &[("a", 1), ("b", 1)]);
    let fleet = fleet(&hosts);
    let first = Failover::new(["a"]).expect("a zone");
    let [(near, _), (far, _)] = &hosts[..] else { panic!("2") };
    near.at_once(1);
    let balanced = builder(&fleet).shaper(first).service(world.clone());
    balanced.wait_until(|now| now.chosen() == 1 && now.instances.iter().all(|it| it.connections > 0)).await;
    let held = ask(&balanced, "hold");
    near.arrived().await;
    assert_eq!(who(&balanced).await.expect("answered"), "b0", "the near one is busy");
    near.open(1);
    assert_eq!(held.await.expect("no panic").expect("answered"), "a0");
    assert_eq!((near.calls(), far.calls()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_slow_start_rises_by_its_formula_at_its_times_and_then_ends() {
    let (world, runtime) = (World::default(), Runtime::tokio());
    let [a, b, new] = &world.hosts(["a", "b", "new"]);
    let fleet = Fleet::of([a.instance().weight(2), b.instance()]);
    let writes = Writes::new(&runtime);
    let balanced = builder(&fleet)
        .policy(writes.clone())
        .shaper(SlowStart::new(20 * SECOND).expect("in range"))
        .without_outlier_detection()
        .runtime(runtime.clone())
        .service(world.clone());
    balanced.wait_until(|now| now.chosen() == 2).await;
    tokio::time::sleep((100 * SECOND).saturating_sub(runtime.now())).await;
    let before = writes.seen();
    assert_eq!(before.last().expect("built").1, HashMap::from([("a".into(), 2), ("b".into(), 1)]), "warm");
    fleet.set([a.instance().weight(2), b.instance(), new.instance().weight(2)]);
    tokio::time::sleep(100 * SECOND).await;
    let after = writes.seen();
    let built = &after[before.len()..];
    // A second after it came the share is still the first one, so nothing is built then.
    let share = |age: u32| (f64::from(age) / 20.0).max(0.1);
    let mut steps = built.iter().filter(|(_, weights)| weights.contains_key("new"));
    for age in [0].into_iter().chain(3..=20) {
        let (at, weights) = steps.next().expect("one for each step");
        assert!(at.abs_diff((100 + age) * SECOND) < SECOND / 50, "step {age} at {at:?}");
        let got = f64::from(weights["new"]) / f64::from(weights["a"]);
        assert!((got - share(age)).abs() < 0.000_1, "at {at:?} {got} and not {}", share(age));
        assert_eq!(weights["a"], weights["b"] * 2, "the others as before");
    }
    assert!(steps.next().is_none(), "then it is over: {built:?}");
    assert_eq!(built.last().expect("built").1["new"], 2, "with its own weight");
}

#[tokio::test(start_paused = true)]
async fn however_many_start_slowly_pickers_are_built_twenty_times_a_window() {
    let (world, runtime) = (World::default(), Runtime::tokio());
    let old = world.host("old");
    let new: Vec<_> = (0..30).map(|number| world.host(&format!("new{number}"))).collect();
    let fleet = Fleet::of([old.instance()]);
    let writes = Writes::new(&runtime);
    let balanced = builder(&fleet)
        .policy(writes.clone())
        .shaper(SlowStart::new(20 * SECOND).expect("in range"))
        .without_outlier_detection()
        .runtime(runtime.clone())
        .service(world.clone());
    balanced.wait_until(|now| now.chosen() == 1).await;
    // One each 0.3 s, none at the same fraction of a step as another.
    for come in 1..=new.len() {
        fleet.set(std::iter::once(&old).chain(&new[..come]).map(Host::instance));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let before = writes.seen().len();
    tokio::time::sleep(40 * SECOND).await;
    let built = writes.seen().len() - before;
    assert!((10..=21).contains(&built), "{built}");
}

#[tokio::test(start_paused = true)]
async fn what_comes_back_from_being_down_or_out_of_reach_starts_slowly() {
    let (world, runtime) = (World::default(), Runtime::tokio());
    let [a, b] = &world.hosts(["a", "b"]);
    let fleet = Fleet::of([a.instance(), b.instance()]);
    let writes = Writes::new(&runtime);
    let balanced = builder(&fleet)
        .policy(writes.clone())
        .shaper(SlowStart::new(20 * SECOND).expect("in range"))
        .without_outlier_detection()
        .runtime(runtime.clone())
        .service(world.clone());
    balanced.wait_until(|now| now.chosen() == 2).await;
    let share = || {
        let (_, weights) = writes.seen().pop().expect("built");
        f64::from(weights["b"]) / f64::from(weights["a"])
    };
    assert!((share() - 1.0).abs() < 1e-9);
    fleet.set([a.instance(), b.instance().status(Status::Down)]);
    balanced.wait_until(|now| now.chosen() == 1).await;
    fleet.set([a.instance(), b.instance()]);
    balanced.wait_until(|now| now.chosen() == 2).await;
    assert!((share() - 0.1).abs() < 0.001, "it was down");
    tokio::time::sleep(30 * SECOND).await;
    assert!((share() - 1.0).abs() < 1e-9);
    b.makes(Makes::Errors);
    b.doom("connection reset");
    balanced.wait_until(|now| now.instance("b").is_some_and(|b| b.last_error.is_some())).await;
    b.makes(Makes::Services);
    balanced.wait_until(|now| now.chosen() == 2).await;
    assert!((share() - 0.1).abs() < 0.001, "nobody could reach it");
    tokio::time::sleep(30 * SECOND).await;
    fleet.set([a.instance(), b.instance().weight(3)]);
    balanced.wait_until(|now| now.instance("b").is_some_and(|b| b.instance.weight == 3)).await;
    assert!((share() - 3.0).abs() < 1e-9, "another weight is no other instance");
    fleet.set([a.instance(), b.instance().revisions(7, 7)]);
    balanced.wait_until(|now| now.instance("b").is_some_and(|b| b.instance.weight == 1)).await;
    assert!((share() - 0.1).abs() < 0.001, "another incarnation is");
}

#[tokio::test(start_paused = true)]
async fn a_policy_is_built_anew_as_often_as_it_wants_and_otherwise_never() {
    let (world, runtime) = (World::default(), Runtime::tokio());
    let [a, b] = &world.hosts(["a", "b"]);
    for (every, expected) in
        [(None, 0), (Some(SECOND), 60), (Some(7 * SECOND), 8), (Some(Duration::ZERO), 6_000)]
    {
        let writes = Writes { every, ..Writes::new(&runtime) };
        let fleet = Fleet::of([a.instance(), b.instance()]);
        let balanced = builder(&fleet)
            .policy(writes.clone())
            .without_outlier_detection()
            .runtime(runtime.clone())
            .service(world.clone());
        balanced.wait_until(|now| now.chosen() == 2).await;
        all_wait().await;
        let before = writes.seen().len();
        tokio::time::sleep(60 * SECOND).await;
        let built = writes.seen().len() - before;
        assert!(built.abs_diff(expected) <= expected / 10, "{every:?}: {built}");
        fleet.set([]);
        balanced.wait_until(|now| now.instances.is_empty()).await;
        let empty = writes.seen().len();
        tokio::time::sleep(60 * SECOND).await;
        assert_eq!(writes.seen().len(), empty, "over nobody nothing is built");
    }
}

#[tokio::test(start_paused = true)]
async fn with_fewer_than_half_healthy_held_does_not_matter_and_weight_0_and_draining_do() {
    let world = World::default();
    let names = ["a", "b", "c", "d", "e", "zero", "draining", "down"];
    let hosts = world.hosts(names);
    let fleet = Fleet::unknown();
    let balanced = builder(&fleet).without_outlier_detection().service(world.clone());
    let off = builder(&fleet)
        .without_outlier_detection()
        .panic_threshold(PanicThreshold::OFF)
        .service(world.clone());
    for (held, chosen) in [(0, 5), (2, 3), (3, 5), (5, 5), (1, 4)] {
        let [good @ .., zero, draining, down] = &hosts;
        let good = good.iter().enumerate().map(|(number, host)| host.instance().held(number < held));
        let never = [
            zero.instance().weight(0),
            draining.instance().status(Status::Draining),
            down.instance().status(Status::Down),
        ];
        fleet.set(good.chain(never));
        balanced.wait_until(|now| now.chosen() == chosen).await;
        off.wait_until(|now| now.chosen() == if held == 5 { 5 } else { 5 - held }).await;
        let got = answers(&balanced, 50).await;
        assert_eq!(got.len(), chosen, "{held} held: {got:?}");
        assert!(!names[5..].iter().any(|name| got.contains_key(*name)), "{got:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn with_fewer_than_half_healthy_an_ejection_does_not_matter() {
    let world = World::default();
    let hosts = world.hosts(["a", "b", "c", "d"]);
    let fleet = Fleet::of(hosts.iter().map(Host::instance));
    let balanced = builder(&fleet).policy(RoundRobin::with_seed(1)).service(world.clone());
    balanced.wait_until(|now| now.chosen() == 4).await;
    let [a, b, c, d] = &hosts;
    a.fails(true);
    while standing(&balanced, "a") != Standing::Ejected {
        let _ = who(&balanced).await; // by whomever
        all_wait().await;
    }
    let held = |held: usize| {
        let instances = hosts.iter().enumerate();
        fleet.set(instances.map(|(number, host)| host.instance().held((1..=held).contains(&number))));
    };
    held(1);
    balanced.wait_until(|now| now.chosen() == 2).await;
    assert_eq!(standing(&balanced, "a"), Standing::Ejected, "half are healthy");
    let calls = a.calls();
    assert_eq!(answers(&balanced, 20).await, HashMap::from([("c".to_owned(), 10), ("d".to_owned(), 10)]));
    assert_eq!(a.calls(), calls);

    a.fails(false);
    held(2);
    balanced.wait_until(|now| now.chosen() == 4).await;
    assert_eq!(answers(&balanced, 20).await["a"], 5, "a quarter is");
    assert!(
        balanced.snapshot().instance("a").expect("there").ejection.is_some(),
        "nobody said that it is well"
    );

    // Out of reach is another thing: of the two that are left one is healthy.
    held(0);
    balanced.wait_until(|now| now.chosen() == 3).await;
    for host in [b, c] {
        host.makes(Makes::Errors);
        host.doom("connection reset");
    }
    balanced.wait_until(|now| now.chosen() == 1).await;
    assert_eq!(answers(&balanced, 20).await, HashMap::from([("d".to_owned(), 20)]));
    assert_eq!((standing(&balanced, "a"), d.alive()), (Standing::Ejected, 1));
}
