//! What happens before a key is known: one flight, whoever waits, gives up or fails.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Barrier, mpsc},
    time::Duration,
};

use client_sdk::{
    balance::{
        Balancer, Cached, LoadBalance, LoadBalanceError, PickContext, Policy, RoundRobin, RoundRobinPicker,
    },
    discover::Discover,
    model::{Endpoint, InstanceList},
    runtime::Runtime,
};
use tokio::{
    runtime::{Builder, Runtime as TokioRuntime},
    task::JoinSet,
};

use crate::fake::{Fake, Key, endpoint, eventually, instance, settle};

fn cached() -> Arc<Cached<RoundRobin, Key>> {
    Arc::new(Cached::new(RoundRobin::with_seed(1), &Runtime::tokio()))
}

/// Starts so many callers and waits until they wait.
async fn callers<L: LoadBalance<Fake>>(
    balancer: &Arc<L>,
    fake: &Arc<Fake>,
    count: usize,
) -> JoinSet<Result<Option<String>, LoadBalanceError>> {
    let mut callers = JoinSet::new();
    for _ in 0..count {
        let (balancer, fake) = (Arc::clone(balancer), Arc::clone(fake));
        callers.spawn(async move {
            let mut addresses = balancer.get_picker(&endpoint(), &fake).await?;
            Ok(addresses.next().map(|address| address.to_string()))
        });
    }
    settle().await;
    callers
}

async fn one_flight(balancer: Arc<impl LoadBalance<Fake>>, fake: Arc<Fake>) {
    fake.open(false);
    let callers = callers(&balancer, &fake, 500).await;
    fake.open(true);
    for answer in callers.join_all().await {
        assert_eq!(answer.unwrap().unwrap(), "a:1");
    }
    assert_eq!(fake.discovers(), 1);
}

#[tokio::test(start_paused = true)]
async fn five_hundred_first_callers_make_one_discover() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    one_flight(cached(), fake).await;
    let fake = Fake::with("s", &[instance(1, 1)]);
    one_flight(Arc::new(Balancer::builder(Arc::clone(&fake), RoundRobin::with_seed(1)).build()), fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_first_caller_that_gives_up_neither_hangs_nor_fails_the_others() {
    let (fake, cached) = (Fake::with("s", &[instance(1, 1)]), cached());
    fake.open(false);
    let mut leader = callers(&cached, &fake, 1).await;
    let others = callers(&cached, &fake, 100).await;
    leader.shutdown().await;
    settle().await;
    fake.open(true);
    assert!(others.join_all().await.into_iter().all(|answer| answer.is_ok()));
    assert_eq!(fake.discovers(), 2);
}

async fn one_failure(balancer: Arc<impl LoadBalance<Fake>>, fake: Arc<Fake>) {
    fake.fail(true);
    fake.open(false);
    let callers = callers(&balancer, &fake, 500).await;
    fake.open(true);
    for answer in callers.join_all().await {
        let error = answer.unwrap_err();
        assert!(matches!(error, LoadBalanceError::Discover { .. }), "{error}");
        assert_eq!(error.to_string(), "cannot discover default/s: the fake was told to fail");
    }
    assert_eq!(fake.discovers(), 1);
    fake.fail(false);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(balancer.get_picker(&endpoint(), &fake).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_failed_first_discover_fails_all_who_waited_for_it_and_nobody_later() {
    one_failure(cached(), Fake::with("s", &[instance(1, 1)])).await;
    let fake = Fake::with("s", &[instance(1, 1)]);
    one_failure(Arc::new(Balancer::builder(Arc::clone(&fake), RoundRobin::with_seed(1)).build()), fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_balancer_goes_on_trying_without_callers() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    fake.fail(true);
    let balancer = Balancer::builder(Arc::clone(&fake), RoundRobin::with_seed(1)).build();
    assert!(balancer.handle(&endpoint()).await.is_err());
    fake.fail(false);
    eventually(|| fake.discovers() >= 2).await;
    settle().await;
    fake.fail(true);
    assert!(balancer.handle(&endpoint()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_change_during_the_first_discover_is_not_lost() {
    for versioned in [false, true] {
        // The answer that is under way says a:1; the change says a:2.
        let fake = Fake::new(16, versioned);
        fake.set("s", &[instance(1, 1)]);
        fake.open(false);
        let balancer = Arc::new(Balancer::builder(Arc::clone(&fake), RoundRobin::with_seed(1)).build());
        let first = callers(&balancer, &fake, 1).await;
        fake.publish("s", &[instance(2, 1)]);
        settle().await;
        fake.open(true);
        settle().await;
        assert!(first.join_all().await.into_iter().all(|answer| answer.is_ok()));
        assert_eq!(balancer.get(&endpoint()).await.unwrap().next().unwrap().as_str(), "a:2");

        let (fake, cached) = (Fake::new(16, versioned), cached());
        fake.set("s", &[instance(1, 1)]);
        fake.open(false);
        let first = callers(&cached, &fake, 1).await;
        let change = fake.set("s", &[instance(2, 1)]);
        LoadBalance::<Fake>::rebalance(&*cached, change);
        fake.open(true);
        assert_eq!(first.join_all().await.remove(0).unwrap().unwrap(), "a:2");
        let mut again = cached.get_picker(&endpoint(), &*fake).await.unwrap();
        assert_eq!(again.next().unwrap().as_str(), "a:2");
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_is_newer_is_stored() {
    let (fake, cached) = (Fake::new(16, true), cached());
    fake.set("s", &[instance(1, 1)]);
    let old = fake.set("s", &[instance(2, 1)]);
    fake.set("s", &[instance(3, 1)]);
    assert!(cached.get_picker(&endpoint(), &*fake).await.is_ok());
    LoadBalance::<Fake>::rebalance(&*cached, old);
    assert_eq!(cached.get_picker(&endpoint(), &*fake).await.unwrap().next().unwrap().as_str(), "a:3");
    let new = fake.set("s", &[instance(4, 1)]);
    LoadBalance::<Fake>::rebalance(&*cached, new);
    assert_eq!(cached.get_picker(&endpoint(), &*fake).await.unwrap().next().unwrap().as_str(), "a:4");
}

/// Many callers and many changes on keys that share the map's shards.
async fn no_guard_across_an_await() {
    let fake = Fake::new(16, false);
    let cached = Arc::new(Cached::new(RoundRobin::with_seed(1), &Runtime::tokio()).idle(Duration::ZERO));
    let mut tasks = JoinSet::new();
    for key in 0..50 {
        fake.set(&format!("s{key}"), &[instance(1, 1)]);
    }
    for task in 0..200 {
        let (fake, cached) = (Arc::clone(&fake), Arc::clone(&cached));
        tasks.spawn(async move {
            for round in 0..20 {
                let service = format!("s{}", (task + round) % 50);
                if task % 2 == 0 {
                    cached.get_picker(&Endpoint::new(service), &*fake).await.unwrap();
                } else {
                    let change = fake.set(&service, &[instance(1, 1), instance(2, 1)]);
                    LoadBalance::<Fake>::rebalance(&*cached, change);
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    tasks.join_all().await;
}

/// Runs a test of locks beside the test's own thread, and fails if it hangs: whoever waits for a lock that is never given
/// back blocks the thread that a timer of the runtime would need.
fn or_fail_if_it_hangs(runtime: TokioRuntime, test: impl Future<Output = ()> + Send + 'static) {
    let (result, ended) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let _ = result.send(catch_unwind(AssertUnwindSafe(|| runtime.block_on(test))));
        runtime.shutdown_background();
    });
    match ended.recv_timeout(Duration::from_mins(1)) {
        Ok(Ok(())) => {}
        Ok(Err(panic)) => resume_unwind(panic),
        Err(error) => {
            panic!("it hangs ({error}): not over after a minute; a lock is held that the others need")
        }
    }
}

fn one_thread() -> TokioRuntime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn many_threads() -> TokioRuntime {
    Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap()
}

#[test]
fn no_map_guard_is_held_across_an_await_on_one_thread() {
    or_fail_if_it_hangs(one_thread(), no_guard_across_an_await());
}

#[test]
fn no_map_guard_is_held_across_an_await_on_many_threads() {
    or_fail_if_it_hangs(many_threads(), no_guard_across_an_await());
}

/// Builds over a list that begins with `a:666` wait for both barriers.
struct Slow {
    inner: RoundRobin,
    began: Arc<Barrier>,
    go_on: Arc<Barrier>,
}

impl Policy for Slow {
    type Picker = RoundRobinPicker;

    fn build(&self, instances: &InstanceList) -> RoundRobinPicker {
        if &*instances[0].id == "a:666" {
            self.began.wait();
            self.go_on.wait();
        }
        self.inner.build(instances)
    }
}

fn slow() -> (Slow, Arc<Barrier>, Arc<Barrier>) {
    let (began, go_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    (
        Slow { inner: RoundRobin::with_seed(1), began: Arc::clone(&began), go_on: Arc::clone(&go_on) },
        began,
        go_on,
    )
}

#[test]
fn a_slow_build_of_one_key_delays_no_other_key() {
    or_fail_if_it_hangs(many_threads(), others_go_on_during_a_slow_build());
}

async fn others_go_on_during_a_slow_build() {
    let (policy, began, go_on) = slow();
    let fake = Fake::with("slow", &[instance(666, 1)]);
    let balancer = Arc::new(Balancer::builder(Arc::clone(&fake), policy).build());
    let mut slow = JoinSet::new();
    slow.spawn({
        let balancer = Arc::clone(&balancer);
        async move { balancer.handle(&Endpoint::new("slow")).await.map(|_| ()) }
    });
    tokio::task::spawn_blocking(move || began.wait()).await.unwrap();
    // While it is being built, every other key is found, made, changed, and picked from.
    for key in 0..200 {
        let service = format!("s{key}");
        fake.set(&service, &[instance(1, 1)]);
        let mut handle = balancer.handle(&Endpoint::new(service)).await.unwrap();
        assert!(handle.pick(&PickContext::default()).is_ok());
    }
    assert!(slow.try_join_next().is_none());
    tokio::task::spawn_blocking(move || go_on.wait()).await.unwrap();
    slow.join_next().await.unwrap().unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_empty_answer_is_not_cached_for_good() {
    // Without a broadcast nothing else would ever correct it.
    let fake = Fake::new(0, false);
    let balancer = Balancer::builder(Arc::clone(&fake), RoundRobin::with_seed(1)).build();
    let cached = cached();
    let mut handle = balancer.handle(&endpoint()).await.unwrap();
    assert!(cached.get_picker(&endpoint(), &*fake).await.is_err());
    let before = fake.discovers();
    for _ in 0..100 {
        // Not at every call either.
        assert!(cached.get_picker(&endpoint(), &*fake).await.is_err());
    }
    assert_eq!(fake.discovers(), before);
    fake.set("s", &[instance(1, 1)]);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(handle.pick(&PickContext::default()).is_ok());
    assert!(cached.get_picker(&endpoint(), &*fake).await.is_ok());
    assert!(fake.watch().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_panics_hangs_nobody() {
    struct Panics;
    impl Policy for Panics {
        type Picker = RoundRobinPicker;
        fn build(&self, _: &InstanceList) -> RoundRobinPicker {
            panic!("as the test wants")
        }
    }
    let fake = Fake::with("s", &[instance(1, 1)]);
    let balancer = Balancer::builder(Arc::clone(&fake), Panics).build();
    let error = balancer.handle(&endpoint()).await.unwrap_err();
    assert!(error.to_string().contains("the policy panicked"), "{error}");
}
