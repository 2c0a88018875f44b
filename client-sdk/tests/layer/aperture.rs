//! How many instances are used, decided by the demand: who that is, who is not, and what becomes of those that are left.

use std::{sync::Arc, time::Duration};

use client_sdk::{
    balance::{CallerOrder, Maglev, RoundRobin},
    layer::{ConnectionState, Snapshot, Standing},
    members::{Aperture, ApertureBuilder, ApertureSnapshot},
    model::{Instance, InstanceBuilder, Status},
    pool::{RegistryPool, registry_pool},
};

use crate::kit::{
    Always, Answer, Balanced, Fleet, Host, Makes, Req, Served, World, all_wait, ask, builder, who,
};

/// Hosts, the first the one that this caller prefers.
struct Town {
    world: World,
    fleet: Fleet,
    hosts: Vec<Host>,
    order: CallerOrder,
}

impl Town {
    fn new(hosts: usize) -> Self {
        Self::of(hosts, "me")
    }

    fn of(hosts: usize, caller: &str) -> Self {
        let (world, order) = (World::default(), CallerOrder::named(caller));
        let hosts: Vec<_> = (0..hosts).map(|n| world.host(&format!("host-{n}"))).collect();
        let hosts = ranked(&hosts, order);
        let fleet = Fleet::of(hosts.iter().map(Host::instance));
        Self { world, fleet, hosts, order }
    }

    fn pool(&self, aperture: ApertureBuilder) -> Balanced {
        let aperture = aperture.build().expect("in range");
        builder(&self.fleet).caller(self.order).aperture(aperture).service(self.world.clone())
    }

    /// Which hosts have a service, by their places in the caller's order.
    fn used(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|place| self.hosts[*place].alive() > 0).collect()
    }

    /// The view, with what becomes of the instance at each place.
    fn set(&self, change: impl Fn(usize, InstanceBuilder) -> Option<InstanceBuilder>) {
        let all = self.hosts.iter().enumerate();
        self.fleet.set(all.filter_map(|(place, host)| change(place, host.instance())).collect::<Vec<_>>());
    }
}

fn ranked(hosts: &[Host], order: CallerOrder) -> Vec<Host> {
    let instances: Vec<Arc<Instance>> = hosts.iter().map(|host| Arc::new(host.instance().build())).collect();
    let at = |instance: &Arc<Instance>| hosts.iter().find(|host| host.address() == instance.address);
    order.sort(&instances).iter().map(|instance| at(instance).expect("there").clone()).collect()
}

fn of(snapshot: &Snapshot) -> &ApertureSnapshot {
    snapshot.aperture.as_ref().expect("set")
}

/// Until so many are to be used, and are.
async fn used(pool: &Balanced, size: usize) -> Snapshot {
    // What was changed is seen first.
    all_wait().await;
    let fits = |now: &Snapshot| of(now).size == size && now.chosen() == size;
    let snapshot = tokio::time::timeout(Duration::from_hours(1), pool.wait_until(fits)).await;
    all_wait().await;
    snapshot.unwrap_or_else(|_| panic!("{size} are not used: {:?}", pool.snapshot().aperture))
}

fn asks(pool: &Balanced, request: Req, times: usize) -> Vec<Answer> {
    (0..times).map(|_| ask(pool, request)).collect()
}

async fn served(answers: Vec<Answer>) {
    for answer in answers {
        answer.await.expect("no panic").expect("served");
    }
}

#[tokio::test(start_paused = true)]
async fn it_grows_in_the_callers_order_and_shrinks_by_draining_not_below_the_least() {
    let town = Town::new(20);
    let pool = town.pool(Aperture::builder());
    let start = used(&pool, 2).await;
    assert_eq!((town.used(), of(&start).available), (vec![0, 1], 20), "the least, before any request");

    let since = tokio::time::Instant::now();
    let held = asks(&pool, "hold", 45);
    let grown = used(&pool, 5).await;
    assert!(since.elapsed() < Duration::from_secs(7), "three time constants: {:?}", since.elapsed());
    assert_eq!(town.used(), [0, 1, 2, 3, 4]);
    let last = of(&grown).last.expect("it grew");
    assert_eq!((last.to, of(&grown).grown, of(&grown).shrunk), (5, 3, 0), "{last:?}");

    // One more for each, which three of them keep.
    let kept = asks(&pool, "hold", 5);
    all_wait().await;
    town.hosts[0].open(100);
    town.hosts[1].open(100);
    served(held).await;
    used(&pool, 2).await;
    let snapshot = pool.snapshot();
    let draining = snapshot.instances.iter().filter(|it| it.standing == Standing::Removed);
    let draining: Vec<_> = draining.map(|it| (it.state, it.in_flight)).collect();
    assert_eq!(draining, [(ConnectionState::Draining, 1); 3], "they finish what they have");
    let calls = || town.hosts.iter().skip(2).map(Host::calls).sum::<usize>();
    let before = calls();
    served(asks(&pool, "", 100)).await;
    assert_eq!(calls(), before, "and get nothing more");
    town.hosts[2..5].iter().for_each(|host| host.open(1));
    served(kept).await;
    all_wait().await;
    assert_eq!(town.used(), [0, 1]);
    assert_eq!((of(&pool.snapshot()).shrunk, pool.snapshot().instances.len()), (3, 20));

    tokio::time::sleep(Duration::from_hours(2)).await;
    assert_eq!((town.used(), of(&pool.snapshot()).size), (vec![0, 1], 2), "not below the least");
}

#[tokio::test(start_paused = true)]
async fn a_hundred_callers_spread_over_all_instances() {
    let mut town = Town::new(50);
    let mut pools: Vec<Balanced> = Vec::new();
    for caller in 0..100 {
        town.order = CallerOrder::named(&format!("caller-{caller}"));
        pools.push(town.pool(Aperture::builder().min(5)));
        used(pools.last().expect("one"), 5).await;
    }
    let times: Vec<_> = town.hosts.iter().map(Host::alive).collect();
    assert_eq!(times.iter().sum::<usize>(), 500);
    // Ten on average, ± 3 by chance.
    assert!(times.iter().all(|times| (2..=20).contains(times)), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn one_that_left_the_registry_is_never_held_and_is_replaced() {
    let town = Town::new(5);
    let pool = town.pool(Aperture::builder().min(2));
    used(&pool, 2).await;
    town.set(|place, instance| (place != 0).then_some(instance));
    all_wait().await;
    assert_eq!((town.used(), pool.snapshot().chosen()), (vec![1, 2], 2));
    assert!(pool.snapshot().instances.iter().all(|it| it.instance.address != town.hosts[0].address()));
    town.set(|place, instance| (place == 4).then_some(instance));
    all_wait().await;
    assert_eq!((town.used(), of(&pool.snapshot()).size), (vec![4], 1), "there are no more");
    town.set(|_, _| None);
    all_wait().await;
    assert_eq!(town.used(), [0; 0]);
    town.set(|_, instance| Some(instance));
    used(&pool, 2).await;
    assert_eq!(town.used(), [0, 1], "as before");
}

#[tokio::test(start_paused = true)]
async fn one_that_left_the_registry_gets_nothing_more_and_finishes_what_it_has_however_long_that_takes() {
    let town = Town::new(5);
    let pool = town.pool(Aperture::builder().min(2).max(2));
    used(&pool, 2).await;
    let held = asks(&pool, "hold", 6);
    all_wait().await;
    let before = town.hosts[0].calls();
    assert!(before > 1, "{before} of six");
    town.set(|place, instance| (place != 0).then_some(instance));
    // Whoever comes next already goes elsewhere, as soon as the pool has run.
    all_wait().await;
    for _ in 0..10 {
        served(asks(&pool, "", 20)).await;
        tokio::time::sleep(Duration::from_mins(10)).await;
    }
    let left = |now: &Snapshot| {
        let left = now.instances.iter().filter(|it| it.instance.address == town.hosts[0].address());
        left.map(|it| (it.standing, it.state, it.in_flight)).collect::<Vec<_>>()
    };
    assert_eq!(left(&pool.snapshot()), [(Standing::Removed, ConnectionState::Draining, before)]);
    assert_eq!((town.hosts[0].calls(), town.hosts[0].alive()), (before, 1), "not cut, and not asked again");
    for in_flight in (0..before).rev() {
        assert_eq!(town.hosts[0].alive(), 1);
        town.hosts[0].open(1);
        all_wait().await;
        let seen: Vec<_> = left(&pool.snapshot()).iter().map(|it| it.2).collect();
        assert_eq!(seen, if in_flight > 0 { vec![in_flight] } else { vec![] });
    }
    assert_eq!((town.hosts[0].made(), town.hosts[0].alive()), (1, 0), "dropped with its last answer");
    assert_eq!(town.used(), [1, 2], "the next has its place");
    town.hosts[1].open(6);
    served(held).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_left_the_registry_is_dropped_when_its_last_caller_gives_up() {
    let town = Town::new(3);
    let pool = town.pool(Aperture::builder().min(1).max(1));
    used(&pool, 1).await;
    let held = asks(&pool, "hold", 3);
    all_wait().await;
    town.set(|place, instance| (place != 0).then_some(instance));
    all_wait().await;
    for (nth, call) in held.iter().enumerate() {
        assert_eq!(town.hosts[0].alive(), 1, "{nth}");
        call.abort();
        all_wait().await;
    }
    assert_eq!((town.used(), pool.snapshot().instances.len()), (vec![1], 2));
    // And one that comes back is used again, by a service of its own.
    town.set(|_, instance| Some(instance));
    used(&pool, 1).await;
    assert_eq!((town.used(), town.hosts[0].made(), who(&pool).await.is_ok()), (vec![0], 2, true));
}

#[tokio::test(start_paused = true)]
async fn it_makes_one_service_for_each_instance_however_busy_that_is() {
    let town = Town::new(6);
    town.hosts.iter().for_each(|host| host.at_once(1));
    let aperture = Aperture::builder().min(1).max(3).target(1).build().expect("in range");
    let waits = Duration::from_mins(10);
    let pool = builder(&town.fleet)
        .caller(town.order)
        .aperture(aperture)
        .max_wait(waits)
        .service(town.world.clone());
    served(asks(&pool, "10ms", 900)).await;
    assert_eq!(of(&pool.snapshot()).size, 3);
    let made: Vec<_> = town.hosts.iter().map(|host| (host.asked(), host.made(), host.alive())).collect();
    assert_eq!(made, [(1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0), (0, 0, 0), (0, 0, 0)]);
    drop(pool);
    all_wait().await;
    assert!(town.hosts.iter().all(|host| host.places() == Some(1)), "what was reserved is given back");
}

#[tokio::test(start_paused = true)]
async fn one_that_takes_no_requests_is_not_counted_and_is_replaced() {
    let unfit: [fn(InstanceBuilder) -> InstanceBuilder; 3] =
        [|it| it.weight(0), |it| it.status(Status::Draining), |it| it.status(Status::Down)];
    for unfit in unfit {
        let town = Town::new(5);
        let pool = town.pool(Aperture::builder().min(2));
        used(&pool, 2).await;
        let held = asks(&pool, "hold", 2);
        all_wait().await;
        town.set(|place, instance| Some(if place == 0 { unfit(instance) } else { instance }));
        let snapshot = used(&pool, 2).await;
        assert_eq!(of(&snapshot).available, 4);
        assert_eq!(town.hosts[2].alive(), 1, "in its place");
        let before = town.hosts[0].calls();
        served(asks(&pool, "", 50)).await;
        assert_eq!(town.hosts[0].calls(), before);
        town.hosts[0].open(1);
        town.hosts[1].open(1);
        served(held).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_is_replaced_and_one_that_is_ejected_too() {
    let town = Town::new(5);
    town.hosts[0].makes(Makes::Errors);
    let pool = town.pool(Aperture::builder().min(2));
    used(&pool, 2).await;
    assert_eq!(town.used(), [1, 2], "it counts those that work");
    town.hosts[1].makes(Makes::Errors);
    town.hosts[1].doom("connection reset");
    served(asks(&pool, "", 4)).await; // it shows when it is asked
    used(&pool, 2).await;
    assert_eq!(town.used(), [2, 3]);
    town.hosts[2].fails(true);
    let ejected = |now: &Snapshot| now.instances.iter().any(|it| it.standing == Standing::Ejected);
    while !ejected(&pool.snapshot()) {
        let _ = who(&pool).await; // some fail
        all_wait().await;
    }
    used(&pool, 2).await;
    assert_eq!((town.hosts[3].alive(), town.hosts[4].alive()), (1, 1), "{:?}", pool.snapshot());
    assert_eq!((of(&pool.snapshot()).size, of(&pool.snapshot()).grown), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn steady_demand_changes_nothing_and_has_no_picker_built() {
    let town = Town::new(20);
    let policy = Always::new("host-0");
    let aperture = Aperture::builder().build().expect("in range");
    let pool = builder(&town.fleet)
        .caller(town.order)
        .aperture(aperture)
        .policy(policy.clone())
        .without_outlier_detection()
        .service(town.world.clone());
    // Forty at a time.
    let rounds = async |rounds: usize| {
        for _ in 0..rounds {
            served(asks(&pool, "10ms", 40)).await;
        }
    };
    rounds(1_000).await;
    let (before, built) = (pool.snapshot(), policy.built());
    assert!((5..=6).contains(&of(&before).size), "{:?}", before.aperture);
    rounds(1_000).await;
    let after = pool.snapshot();
    assert_eq!((of(&after).size, of(&after).last), (of(&before).size, of(&before).last));
    assert_eq!(policy.built(), built, "40,000 requests");
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_given_up_leave_no_demand_behind() {
    let town = Town::new(20);
    let pool = town.pool(Aperture::builder().target(1).max(3));
    used(&pool, 2).await;
    for _ in 0..20 {
        let given_up = asks(&pool, "hold", 50);
        all_wait().await;
        given_up.iter().for_each(Answer::abort);
    }
    tokio::time::sleep(Duration::from_mins(5)).await;
    let snapshot = pool.snapshot();
    assert!(of(&snapshot).estimate < 1e-9, "{:?}", snapshot.aperture);
    assert_eq!(town.used(), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn requests_that_wait_widen_it_whatever_was_said_of_how_many_an_instance_takes() {
    let town = Town::new(20);
    town.hosts.iter().for_each(|host| host.at_once(1));
    let pool = builder(&town.fleet)
        .aperture(Aperture::default())
        .max_wait(Duration::from_mins(1))
        .service(town.world.clone());
    used(&pool, 2).await;
    let held = asks(&pool, "hold", 10);
    all_wait().await;
    assert_eq!(pool.snapshot().waiting, 8);
    while pool.snapshot().waiting > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!((10..=13).contains(&of(&pool.snapshot()).size), "{:?}", pool.snapshot().aperture);
    town.hosts.iter().for_each(|host| host.open(1));
    served(held).await;
}

#[tokio::test(start_paused = true)]
async fn the_limit_of_requests_in_flight_is_what_an_instance_is_worth_if_it_is_less() {
    let town = Town::new(20);
    let aperture = Aperture::builder().target(100).build().expect("in range");
    let pool = builder(&town.fleet).aperture(aperture).max_in_flight(4).service(town.world.clone());
    let held = asks(&pool, "hold", 18);
    let snapshot = pool.wait_until(|now| of(now).size == 5 && now.chosen() == 5).await;
    assert_eq!(of(&snapshot).target, 4);
    all_wait().await;
    assert_eq!(pool.snapshot().waiting, 0);
    town.hosts.iter().for_each(|host| host.open(4));
    served(held).await;
}

#[tokio::test(start_paused = true)]
async fn weights_are_heeded_among_those_in_use() {
    let town = Town::new(10);
    town.set(|place, instance| Some(instance.weight(if place == 1 { 4 } else { 1 })));
    let pool = registry_pool(
        Arc::new(town.fleet.clone()),
        client_sdk::Endpoint::new("greeter"),
        Aperture::builder().min(3).build().expect("in range"),
    );
    let pool: RegistryPool<Served, Req, String> =
        pool.caller(town.order).policy(RoundRobin::with_seed(1)).service(town.world.clone());
    used(&pool, 3).await;
    served(asks(&pool, "", 600)).await;
    let calls: Vec<_> = town.hosts.iter().take(4).map(Host::calls).collect();
    assert_eq!(calls, [100, 400, 100, 0]);
}

#[tokio::test(start_paused = true)]
async fn with_a_policy_that_connects_on_demand_it_is_ignored_and_says_so() {
    let town = Town::new(10);
    let aperture = Aperture::builder().min(3).build().expect("in range");
    let pool = builder(&town.fleet)
        .aperture(aperture)
        .policy(Maglev::new())
        .hash_key(|request: &Req| Some(request.len() as u64))
        .service(town.world.clone());
    all_wait().await;
    assert!(pool.snapshot().aperture.is_none());
    assert_eq!(town.used(), [0; 0], "connected with the first request for it");
    who(&pool).await.expect("served");
    assert_eq!(town.used().len(), 1);
}
