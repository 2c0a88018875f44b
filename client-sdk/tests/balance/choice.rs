//! Which instances get requests, and which never do (C2).

use std::{collections::HashMap, sync::Arc};

use client_sdk::{
    balance::{
        Balancer, LeastRequest, LoadBalance, LoadBalanceError, Maglev, PeakEwma, PickContext, PickError,
        Policy, RingHash, RoundRobin, WeightedRandom,
    },
    model::{Address, Endpoint, Instance, Status},
    runtime::Runtime,
};

use crate::fake::{Fake, endpoint, eventually, instance, settle};

fn ports(addresses: impl Iterator<Item = Address>) -> Vec<String> {
    addresses.map(|address| address.to_string()).collect()
}

async fn never_tried<P: Policy>(policy: P) {
    let held_down = Instance::builder("a:5".parse().unwrap()).held(true).status(Status::Down).build();
    let fake = Fake::with(
        "s",
        &[
            instance(1, 1),
            instance(2, 0),
            Instance::builder("a:3".parse().unwrap()).status(Status::Draining).build(),
            Instance::builder("a:4".parse().unwrap()).status(Status::Down).build(),
            held_down,
            instance(6, 2),
        ],
    );
    let balancer = Balancer::builder(Arc::clone(&fake), policy).build();
    // Its own key, for policies that hash: with a key of the request's every now and then.
    let mut endpoint = endpoint();
    endpoint.hash_key = Some(7);
    let mut handle = balancer.handle(&endpoint).await.unwrap();
    for key in 0..1000 {
        let context = PickContext::new();
        let context = if key % 2 == 0 { context } else { context.hash_key(key) };
        let id = handle.pick(&context).unwrap().instance().id.clone();
        assert!(["a:1", "a:6"].contains(&&*id), "{id} was picked");
        let mut tried = ports(balancer.get_picker(&endpoint, &fake).await.unwrap());
        tried.sort();
        assert_eq!(tried, ["a:1", "a:6"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_weight_of_0_gets_no_traffic_in_first_picks_or_retries() {
    never_tried(RoundRobin::with_seed(1)).await;
    never_tried(WeightedRandom::with_seed(1)).await;
    never_tried(LeastRequest::with_seed(1)).await;
    never_tried(PeakEwma::new(&Runtime::tokio())).await;
    never_tried(RingHash::new()).await;
    never_tried(Maglev::new()).await;
    never_tried(RingHash::new().bounded()).await;
    never_tried(Maglev::new().bounded()).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_hash_key_a_policy_that_hashes_says_so_in_its_type() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let balancer = Balancer::builder(Arc::clone(&fake), Maglev::new()).build();
    let mut handle = balancer.handle(&endpoint()).await.unwrap();
    assert_eq!(handle.pick(&PickContext::new()).unwrap_err(), PickError::NoHashKey);
    let error = balancer.get(&endpoint()).await.unwrap_err();
    assert!(matches!(error, LoadBalanceError::Pick { source: PickError::NoHashKey, .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn all_weights_0_give_an_error_with_its_reason() {
    let draining = Instance::builder("a:9".parse().unwrap()).status(Status::Draining).build();
    let fake = Fake::with("s", &[instance(1, 0), instance(2, 0), draining]);
    let balancer = Balancer::builder(Arc::clone(&fake), RoundRobin::with_seed(1)).build();
    let error = balancer.get(&endpoint()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "no instance of default/s takes requests: 3 instances: 2 of weight 0, 1 draining"
    );
    let mut handle = balancer.handle(&endpoint()).await.unwrap();
    assert_eq!(handle.pick(&PickContext::default()).unwrap_err(), PickError::NoInstances);
    assert_eq!(handle.refused().weightless, 2);
}

#[tokio::test(start_paused = true)]
async fn an_empty_set_is_a_typed_error_and_never_pends() {
    let fake = Fake::with("s", &[]);
    let balancer = Balancer::builder(Arc::clone(&fake), RoundRobin::with_seed(1)).build();
    let mut handle = balancer.handle(&endpoint()).await.unwrap();
    assert_eq!(handle.pick(&PickContext::default()).unwrap_err(), PickError::NoInstances);
    let error = balancer.get(&endpoint()).await.unwrap_err();
    assert!(
        matches!(&error, LoadBalanceError::NoInstances { reason, .. } if reason == "no instance is registered")
    );
    fake.publish("s", &[instance(1, 1)]);
    eventually(|| handle.pick(&PickContext::default()).is_ok()).await;
}

#[tokio::test(start_paused = true)]
async fn held_ones_come_after_all_others() {
    let held = Instance::builder("a:1".parse().unwrap()).weight(60_000).held(true).build();
    let fake = Fake::with("s", &[held.clone(), instance(2, 1), instance(3, 1)]);
    let balancer = Balancer::builder(Arc::clone(&fake), WeightedRandom::with_seed(1)).build();
    for _ in 0..100 {
        let tried = ports(balancer.get(&endpoint()).await.unwrap());
        assert_eq!((tried.len(), &*tried[2]), (3, "a:1"));
    }
    fake.publish("s", &[held]);
    settle().await;
    assert_eq!(ports(balancer.get(&endpoint()).await.unwrap()), ["a:1"]);
}

#[tokio::test(start_paused = true)]
async fn retries_go_by_weight_and_try_everyone_once() {
    let fake = Fake::with("s", &[instance(1, 100), instance(2, 90), instance(3, 10)]);
    let balancer = Balancer::builder(fake, RoundRobin::with_seed(1)).build();
    let mut second = HashMap::new();
    for _ in 0..3000 {
        let tried = ports(balancer.get(&endpoint()).await.unwrap());
        assert_eq!(tried.iter().collect::<std::collections::HashSet<_>>().len(), 3);
        assert_eq!(tried.len(), 3);
        if tried[0] == "a:1" {
            *second.entry(tried[1].clone()).or_insert(0) += 1;
        }
    }
    // 1,500 first picks of a:1; then nine in ten go to a:2.
    let to_light = second["a:3"];
    assert!((110..190).contains(&to_light), "{second:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stale_choice_after_a_removal_is_impossible() {
    let all = [1, 2, 3, 4, 5].map(|port| instance(port, 1));
    let fake = Fake::with("s", &all);
    let balancer = Balancer::builder(Arc::clone(&fake), RoundRobin::with_seed(1)).build();
    let mut handle = balancer.handle(&endpoint()).await.unwrap();
    for already_tried in 1..4 {
        fake.publish("s", &all);
        settle().await;
        let mut under_way = balancer.get(&endpoint()).await.unwrap();
        let tried: Vec<_> =
            under_way.by_ref().take(already_tried).map(|address| address.to_string()).collect();
        let gone = all.iter().find(|instance| !tried.contains(&instance.address.to_string())).unwrap();
        let mut left: Vec<_> = all.iter().filter(|instance| instance.id != gone.id).cloned().collect();
        left.insert(0, instance(6, 1));
        fake.publish("s", &left);
        settle().await;
        for _ in 0..100 {
            assert_ne!(handle.pick(&PickContext::default()).unwrap().instance().id, gone.id);
        }
        // A request that is being retried does not go there either, but to the one that came; to each once.
        let mut told: Vec<_> = tried.into_iter().chain(ports(under_way)).collect();
        told.sort();
        let mut expected: Vec<_> = left.iter().map(|instance| instance.address.to_string()).collect();
        expected.sort();
        assert_eq!(told, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_of_weight_only_and_of_tags_only_reaches_the_picks() {
    let fake = Fake::with("s", &[instance(1, 1), instance(2, 1)]);
    let balancer = Balancer::builder(Arc::clone(&fake), RoundRobin::with_seed(1)).build();
    let mut handle = balancer.handle(&endpoint()).await.unwrap();
    let tagged = Instance::builder("a:2".parse().unwrap()).weight(3).tag("v", "2").build();
    fake.publish("s", &[instance(1, 1), tagged]);
    settle().await;
    let picks: Vec<_> =
        (0..4).map(|_| handle.pick(&PickContext::default()).unwrap().instance().clone()).collect();
    assert_eq!(picks.iter().filter(|instance| instance.tags.contains_key("v")).count(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_address_in_the_endpoint_bypasses_everything() {
    let fake = Fake::with("s", &[instance(1, 1)]);
    let balancer = Balancer::builder(Arc::clone(&fake), RoundRobin::with_seed(1)).build();
    let endpoint = Endpoint::builder("s").address("b:7".parse().unwrap()).build();
    assert_eq!(ports(balancer.get(&endpoint).await.unwrap()), ["b:7"]);
    let mut handle = balancer.handle(&endpoint).await.unwrap();
    assert_eq!(&*handle.pick(&PickContext::default()).unwrap().instance().id, "b:7");
    assert_eq!((fake.discovers(), balancer.keys()), (0, 0));
}
