//! Who is connected: ahead of calls to a bound, or with the first call that is for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use client_sdk::{
    balance::{CallerOrder, Maglev, RingHash},
    channel::{ConnectionState, Snapshot, Standing},
    model::{Address, Endpoint, Instance, InstanceBuilder, Status},
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    builder,
    h2_server::H2Server,
    kit::{Act, Fleet, Server, blocking, who, world, world_but},
    typed,
};

fn instance(n: u16) -> InstanceBuilder {
    Instance::builder(std::net::SocketAddr::from(([10, 0, 0, 1], n)).into())
}

fn standing(snapshot: &Snapshot, id: &str) -> Standing {
    snapshot.instance(id).expect("in the view").standing
}

fn connected(snapshot: &Snapshot) -> Vec<Address> {
    let ready = snapshot.instances.iter().filter(|it| it.state == ConnectionState::Ready);
    ready.map(|it| it.instance.address.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_thousand_callers_of_a_thousand_instances_do_not_open_a_million_connections() {
    let fleet = Fleet::of((1..=1000).map(instance));
    let mut times = vec![0_u32; 1000];
    for caller in 0..20 {
        let channel = builder(&fleet).caller(CallerOrder::new(caller)).runtime(world(Act::NotFound)).build();
        let snapshot = channel.wait_until(|s| s.chosen() == 100).await;
        let spare = snapshot.instances.iter().filter(|it| it.standing == Standing::Spare).count();
        assert_eq!(spare, 900);
        let who = who(&channel).await.expect_err("not found, as all of them say");
        assert_eq!(who.code(), Code::NotFound);
        for (times, it) in times.iter_mut().zip(&snapshot.instances) {
            *times += u32::from(it.state == ConnectionState::Ready);
        }
    }
    assert_eq!(times.iter().sum::<u32>(), 2_000);
    // Two on average; that one instance has more than ten of twenty callers would be no order of their own.
    assert!(times.iter().all(|times| *times <= 10), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn weights_count_once_however_few_of_the_instances_a_caller_connects_to() {
    // Half of them have four times the weight of the others.
    let fleet = Fleet::of((1..=200).map(|n| instance(n).weight(if n % 2 == 0 { 4 } else { 1 })));
    let (mut light, mut heavy) = (0.0, 0.0);
    for caller in 0..100 {
        let channel = builder(&fleet)
            .caller(CallerOrder::new(caller))
            .connect_ahead(20)
            .runtime(world(Act::NotFound))
            .build();
        let snapshot = channel.wait_until(|s| s.chosen() == 20).await;
        let chosen = snapshot.instances.iter().filter(|it| it.standing == Standing::Chosen);
        let weights: Vec<f64> = chosen.map(|it| f64::from(it.instance.weight)).collect();
        let total: f64 = weights.iter().sum();
        light += weights.iter().filter(|weight| **weight < 2.0).sum::<f64>() / total;
        heavy += weights.iter().filter(|weight| **weight > 2.0).sum::<f64>() / total;
    }
    let ratio = heavy / light;
    assert!((3.5..4.6).contains(&ratio), "the heavy ones get {ratio} times as much");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_comes_back_connects_to_the_same_instances() {
    let fleet = Fleet::of((1..=200).map(instance));
    let mut sets = Vec::new();
    for name in ["billing-1", "billing-1", "billing-2"] {
        let channel = builder(&fleet)
            .caller(CallerOrder::named(name))
            .connect_ahead(10)
            .runtime(world(Act::NotFound))
            .build();
        sets.push(connected(&channel.wait_until(|s| s.chosen() == 10).await));
    }
    assert_eq!(sets[0], sets[1]);
    assert_ne!(sets[0], sets[2]);
}

#[tokio::test]
async fn for_each_that_fails_one_more_is_connected_and_given_up_when_it_is_back() {
    let mut servers: Vec<_> = ["a", "b", "c"].map(Server::mortal).into();
    let order = CallerOrder::named("me");
    let fleet = Fleet::of(servers.iter().map(Server::instance));
    let built: Vec<_> = servers.iter().map(|server| Arc::new(server.instance().build())).collect();
    let ranked: Vec<_> = order.sort(&built).iter().map(|instance| instance.id.to_string()).collect();
    let [first, second, third] = &ranked[..] else { panic!("three") };
    let place = built.iter().position(|instance| *instance.id == **first).expect("there");
    servers[place].kill();

    let channel = builder(&fleet)
        .caller(order)
        .connect_ahead(2)
        .backoff(Duration::from_millis(2), Duration::from_millis(2))
        .build();
    let snapshot = channel.wait_until(|s| s.chosen() == 2).await;
    assert_eq!(standing(&snapshot, first), Standing::NotConnected);
    assert_eq!(standing(&snapshot, third), Standing::Chosen, "in its place");

    // A call that is in flight on what is one too many finishes.
    let third_place = built.iter().position(|instance| *instance.id == **third).expect("there");
    let mut calls = Vec::new();
    for _ in 0..2 {
        let channel = channel.clone();
        calls.push(tokio::spawn(async move { blocking(&channel).await }));
    }
    servers[third_place].arrived().await;
    servers[place].revive();
    let given_up = |it: &client_sdk::channel::InstanceSnapshot| {
        *it.instance.id == **third && it.state == ConnectionState::Draining && it.in_flight == 1
    };
    let snapshot = channel.wait_until(|s| s.instances.iter().any(given_up)).await;
    assert_eq!(standing(&snapshot, first), Standing::Chosen);
    assert_eq!(standing(&snapshot, second), Standing::Chosen);
    for server in &servers {
        server.desk.gate.add_permits(2);
    }
    for call in calls {
        call.await.expect("no panic").expect("answered");
    }
    let snapshot = channel.wait_until(|s| s.instances.len() == 3).await;
    assert_eq!(standing(&snapshot, third), Standing::Spare);
}

fn hashing(fleet: &Fleet, key: u64) -> client_sdk::channel::ChannelBuilder<Fleet> {
    let endpoint = Endpoint::builder("greeter").hash_key(key).build();
    client_sdk::BalancedChannel::builder(Arc::new(fleet.clone()), endpoint)
}

#[tokio::test]
async fn a_hash_policy_connects_to_what_it_picks_and_to_nothing_else() {
    let servers = ["a", "b", "c", "d"].map(Server::start);
    let fleet = Fleet::of(servers.iter().map(Server::instance));
    for maglev in [false, true] {
        let channel = hashing(&fleet, 42);
        let channel = if maglev { channel.policy(Maglev::new()) } else { channel.policy(RingHash::new()) };
        let channel = channel.build();
        let snapshot = channel.wait_until(|s| s.discovered).await;
        assert!(connected(&snapshot).is_empty());
        assert_eq!(snapshot.chosen(), 4, "each would be connected for a key of its own");
        let chosen = who(&channel).await.expect("answered");
        for _ in 0..20 {
            assert_eq!(who(&channel).await.expect("answered"), chosen);
        }
        let snapshot = channel.snapshot();
        assert_eq!(connected(&snapshot).len(), 1, "{snapshot:?}");
        assert_eq!(snapshot.instance(&chosen).expect("there").state, ConnectionState::Ready);
    }
}

#[tokio::test]
async fn a_key_whose_instance_is_dead_goes_to_another_and_comes_back() {
    let mut servers = ["a", "b", "c"].map(Server::mortal);
    let fleet = Fleet::of(servers.iter().map(Server::instance));
    let backoff = Duration::from_millis(2);
    let channel = hashing(&fleet, 7).policy(RingHash::new()).backoff(backoff, backoff).build();
    let home = who(&channel).await.expect("answered");
    let place = ["a", "b", "c"].iter().position(|name| *name == home).expect("there");
    servers[place].kill();
    channel.wait_until(|s| standing(s, &home) == Standing::NotConnected).await;
    let other = who(&channel).await.expect("by another");
    assert_ne!(other, home);
    assert_eq!(who(&channel).await.expect("by another"), other, "the same one for the same key");
    servers[place].revive();
    channel.wait_until(|s| s.instance(&home).expect("there").state == ConnectionState::Ready).await;
    assert_eq!(who(&channel).await.expect("answered"), home);
}

#[tokio::test]
async fn a_hash_policy_without_any_that_can_be_reached_fails_with_the_reason() {
    let mut servers = ["a", "b", "c"].map(Server::mortal);
    for server in &mut servers {
        server.kill();
    }
    let fleet = Fleet::of(servers.iter().map(Server::instance));
    let channel = hashing(&fleet, 7).policy(Maglev::new()).build();
    let status = who(&channel).await.expect_err("nobody is there");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        typed(&status).to_string().contains("3 instances of default/greeter, none connected"),
        "{status}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_outlasts_a_keys_instance_that_nobody_answers_for() {
    let fleet = Fleet::of((1..=3).map(instance));
    let channel = hashing(&fleet, 7).policy(RingHash::new()).runtime(world(Act::NotFound)).build();
    let status = who(&channel).await.expect_err("not found, as all of them say");
    assert_eq!(status.code(), Code::NotFound);
    let [home] = &connected(&channel.snapshot())[..] else { panic!("one") };
    let runtime = world_but(Act::NotFound, home);
    let channel = hashing(&fleet, 7).policy(RingHash::new()).runtime(runtime).build();
    let status = who(&channel).await.expect_err("not found, as the others say");
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_all_refused_who_are_to_be_connected_waits_for_nobody() {
    let fleet = Fleet::of((1..=3).map(instance));
    let channel = builder(&fleet).connect_ahead(2).runtime(world(Act::Refuse)).build();
    channel.wait_until(|s| s.chosen() == 2).await;
    let since = tokio::time::Instant::now();
    let status = who(&channel).await.expect_err("both refuse");
    assert!(
        typed(&status).to_string().contains("3 instances of default/greeter, 2 connected, none took"),
        "{status}"
    );
    assert_eq!(since.elapsed(), Duration::ZERO, "the third stays at rest, so there is nothing to wait for");
}

#[tokio::test(start_paused = true)]
async fn the_first_call_for_a_key_waits_for_its_connection_and_for_nothing_else() {
    let fleet = Fleet::of((1..=3).map(instance));
    let channel = hashing(&fleet, 7).policy(RingHash::new()).runtime(world(Act::NotFound)).build();
    channel.wait_until(|s| s.discovered).await;
    let since = tokio::time::Instant::now();
    let call = tokio::spawn(async move { who(&channel).await });
    let status = call.await.expect("ran").expect_err("not found, as all of them say");
    assert_eq!(
        (status.code(), since.elapsed()),
        (Code::NotFound, Duration::ZERO),
        "changes are not gathered"
    );
}

#[tokio::test(start_paused = true)]
async fn what_takes_no_requests_is_kept_while_it_lasts_and_not_opened_again() {
    let changes: [fn(InstanceBuilder) -> InstanceBuilder; 3] =
        [|a| a.status(Status::Draining), |a| a.status(Status::Down), |a| a.weight(0)];
    for change in changes {
        let server = H2Server::new(None);
        let fleet = Fleet::of([instance(1).id("a")]);
        let channel = builder(&fleet).runtime(server.world(|_| Ok(true))).build();
        channel.wait_until(|s| s.chosen() == 1).await;
        fleet.set([change(instance(1).id("a"))]);
        channel.wait_until(|s| s.chosen() == 0).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!server.now()[0].closed);
        server.links()[0].close.notify_one();
        tokio::time::sleep(Duration::from_mins(1)).await;
        let a = channel.snapshot().instance("a").cloned().expect("there");
        assert_eq!((a.state, server.links().len()), (ConnectionState::Idle, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_greets_and_closes_is_not_connected_to_in_a_hot_loop() {
    let server = H2Server::new(None);
    let fleet = Fleet::of([instance(1).id("a")]);
    let channel = builder(&fleet).runtime(server.world(|_| Ok(true))).build();
    let since = tokio::time::Instant::now();
    while since.elapsed() < Duration::from_secs(10) {
        channel.wait_until(|s| s.chosen() == 1).await;
        let links = server.links();
        assert!(links.len() <= 12, "{} after {:?}, doubling from 100 ms", links.len(), since.elapsed());
        links[links.len() - 1].close.notify_one();
        server.until(|now| now.len() > links.len()).await;
    }
    assert!(server.links().len() >= 4, "it is tried again");
}

#[tokio::test(start_paused = true)]
async fn a_new_incarnation_starts_the_backoff_over() {
    let (server, attempts) = (H2Server::new(None), Arc::new(AtomicUsize::new(0)));
    let world = server.world({
        let attempts = Arc::clone(&attempts);
        move |_| {
            attempts.fetch_add(1, Ordering::SeqCst);
            Err(std::io::Error::other("nobody is there"))
        }
    });
    let fleet = Fleet::of([instance(1).revisions(1, 1)]);
    let hour = Duration::from_hours(1);
    let _channel = builder(&fleet).runtime(world).backoff(Duration::from_millis(100), hour).build();
    tokio::time::sleep(Duration::from_mins(10)).await;
    fleet.set([instance(1).revisions(2, 2)]);
    attempts.store(0, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let attempts = attempts.load(Ordering::SeqCst);
    assert!((3..=6).contains(&attempts), "{attempts} in 1 s, doubling from 100 ms");
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_for_and_takes_no_more_requests_hurries_nobody() {
    let server = H2Server::new(None);
    let fleet = Fleet::of([instance(1).id("a")]);
    let channel = hashing(&fleet, 7).policy(RingHash::new()).runtime(server.world(|_| Ok(true))).build();
    let mut health = HealthClient::new(channel.clone());
    health.check(HealthCheckRequest::default()).await.expect("answered");
    fleet.set([instance(1).id("a").status(Status::Draining)]);
    channel.wait_until(|s| s.chosen() == 0).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let since = tokio::time::Instant::now();
    server.links()[0].close.notify_one();
    channel.wait_until(|s| s.instances[0].state == ConnectionState::Idle).await;
    assert_eq!(since.elapsed(), Duration::from_millis(5), "its changes are gathered");
}
