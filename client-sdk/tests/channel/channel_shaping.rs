//! Filters and shapers under real servers.

use std::sync::atomic::Ordering;

use client_sdk::{
    balance::{
        CallerOrder, Maglev, RoundRobin,
        shape::{Subset, TagSubset, ZoneAware},
    },
    channel::Standing,
    model::Locality,
};

use crate::{
    builder,
    kit::{Fleet, Server, who},
};

#[tokio::test]
async fn a_subset_of_two_opens_two_connections_and_calls_nobody_else() {
    let servers = ["a", "b", "c", "d", "e"].map(Server::start);
    let fleet = Fleet::of(servers.iter().map(Server::instance));
    let channel = builder(&fleet)
        .caller(CallerOrder::named("billing-1"))
        .filter(Subset::new(2).expect("above 0"))
        .build();
    channel.wait_until(|now| now.chosen() == 2).await;
    for _ in 0..20 {
        who(&channel).await.expect("answered");
    }
    let snapshot = channel.snapshot();
    let open: u64 = snapshot.instances.iter().map(|instance| instance.connects).sum();
    let out = snapshot.instances.iter().filter(|it| it.standing == Standing::NotInSubset).count();
    assert_eq!((open, out), (2, 3));
    let called = servers.iter().filter(|server| server.desk.calls.load(Ordering::SeqCst) > 0).count();
    assert_eq!(called, 2);
}

#[tokio::test]
async fn calls_stay_in_the_zone_until_its_last_instance_is_killed() {
    let (mut near, far) = ([Server::mortal("near1"), Server::mortal("near2")], Server::mortal("far"));
    let at = |server: &Server, zone: &str| server.instance().locality("r", zone);
    let fleet = Fleet::of([at(&near[0], "a"), at(&near[1], "a"), at(&far, "b").weight(2)]);
    let channel = builder(&fleet)
        .policy(RoundRobin::with_seed(1))
        .shaper(ZoneAware::new(Locality::new("r", "a")).expect("a zone"))
        .build();
    channel.wait_until(|now| now.chosen() == 2 && now.instances.iter().all(|it| it.connections > 0)).await;
    for _ in 0..20 {
        assert!(who(&channel).await.expect("answered").starts_with("near"));
    }
    near.iter_mut().for_each(Server::kill);
    channel.wait_until(|now| now.instance("far").expect("there").standing == Standing::Chosen).await;
    for _ in 0..20 {
        assert_eq!(who(&channel).await.expect("answered"), "far");
    }
    near.iter_mut().for_each(Server::revive);
    channel.wait_until(|now| now.instance("far").expect("there").standing == Standing::Standby).await;
    assert!(who(&channel).await.expect("answered").starts_with("near"));
}

/// Of a policy that connects on demand the keys stay within what the filters keep.
#[tokio::test]
async fn a_hash_policy_picks_among_those_that_the_filters_keep() {
    let servers = ["a", "b", "c"].map(Server::start);
    let [a, b, c] = &servers;
    let fleet = Fleet::of([a.instance().tag("v", "2"), b.instance().tag("v", "2"), c.instance()]);
    let channel = builder(&fleet)
        .policy(Maglev::new())
        .hash_keys(client_sdk::balance::HashKeys::new().missing(client_sdk::balance::MissingKey::Random))
        .filter(TagSubset::new([("v", "2")]))
        .build();
    for _ in 0..50 {
        assert_ne!(who(&channel).await.expect("answered"), "c");
    }
    assert_eq!(channel.snapshot().instance("c").expect("there").standing, Standing::NotInSubset);
}
