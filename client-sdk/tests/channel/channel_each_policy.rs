//! Each of our policies under the channel.

use std::collections::HashSet;

use client_sdk::{
    BalancedChannel,
    balance::{
        HashKey, HashKeys, LeastRequest, Maglev, MissingKey, PeakEwma, ReportedLoad, RingHash, RoundRobin,
        WeightedRandom,
    },
    channel::ChannelBuilder,
    runtime::Runtime,
};
use tonic::{Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    builder,
    kit::{Fleet, Server, blocking},
};

type Builder = ChannelBuilder<Fleet>;

async fn call(channel: &BalancedChannel, key: u64) -> Result<String, Status> {
    let mut request = Request::new(HealthCheckRequest { service: String::new() });
    request.extensions_mut().insert(HashKey(key));
    let response = HealthClient::new(channel.clone()).check(request).await?;
    Ok(response.metadata().get("who").expect("said").to_str().expect("ascii").to_owned())
}

#[tokio::test]
async fn every_policy_spreads_calls_and_none_goes_to_what_takes_none_or_is_dead() {
    let runtime = Runtime::tokio();
    let policies: [(&str, &dyn Fn(Builder) -> Builder); 9] = [
        ("round robin", &|builder| builder.policy(RoundRobin::new(&runtime))),
        ("weighted random", &|builder| builder.policy(WeightedRandom::new(&runtime))),
        ("least request", &|builder| builder.policy(LeastRequest::new(&runtime))),
        ("peak EWMA", &|builder| builder.policy(PeakEwma::new(&runtime))),
        ("reported load", &|builder| builder.policy(ReportedLoad::new(&runtime))),
        ("ring hash", &|builder| builder.policy(RingHash::new())),
        ("Maglev", &|builder| builder.policy(Maglev::new())),
        ("bounded ring hash", &|builder| builder.policy(RingHash::new().bounded())),
        ("bounded Maglev", &|builder| builder.policy(Maglev::new().bounded())),
    ];
    for (name, with) in policies {
        let mut dead = Server::mortal("dead");
        dead.kill();
        let (a, b, weightless) = (Server::start("a"), Server::start("b"), Server::start("weightless"));
        let fleet = Fleet::of([
            a.instance(),
            b.instance().weight(3),
            weightless.instance().weight(0),
            dead.instance(),
        ]);
        let channel = with(builder(&fleet)).build();
        let mut served = HashSet::new();
        for key in 0..200 {
            served.insert(call(&channel, key).await.unwrap_or_else(|error| panic!("{name}, {key}: {error}")));
        }
        assert_eq!(served, HashSet::from(["a".to_owned(), "b".to_owned()]), "{name}");
    }
}

#[tokio::test]
async fn a_hot_key_goes_beyond_its_instance_when_that_has_its_bounded_share() {
    let servers = ["a", "b", "c", "d"].map(Server::start);
    let keys = HashKeys::new().missing(MissingKey::Error);
    let fleet = Fleet::of(servers.iter().map(Server::instance));
    let endpoint = client_sdk::Endpoint::builder("greeter").hash_key(7).build();
    let channel = BalancedChannel::builder(std::sync::Arc::new(fleet), endpoint)
        .policy(Maglev::new().bounded())
        .hash_keys(keys)
        .build();
    let mut held = Vec::new();
    for _ in 0..16 {
        let channel = channel.clone();
        held.push(tokio::spawn(async move { blocking(&channel).await }));
    }
    for server in &servers {
        // One key, and yet each gets some.
        server.arrived().await;
    }
    for server in &servers {
        server.desk.gate.add_permits(16);
    }
    for call in held {
        call.await.expect("no panic").expect("answered");
    }
    let calls: Vec<_> = servers.iter().map(Server::calls).collect();
    assert!(calls.iter().all(|calls| (1..=5).contains(calls)), "{calls:?}");
}
