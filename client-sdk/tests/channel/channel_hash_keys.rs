//! Where a call's hash key comes from.

use std::collections::HashMap;

use client_sdk::{
    BalancedChannel,
    balance::{Cached, HashKey, HashKeys, Maglev, MissingKey, PickError, RingHash},
    channel::{ChannelError, RouteError},
    runtime::Runtime,
};
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    builder,
    kit::{Fleet, Server},
    typed,
};

/// A call of a user, named as the test likes.
async fn call(
    channel: &BalancedChannel,
    name: impl FnOnce(&mut Request<HealthCheckRequest>),
) -> Result<String, Status> {
    let mut request = Request::new(HealthCheckRequest { service: String::new() });
    name(&mut request);
    let response = HealthClient::new(channel.clone()).check(request).await?;
    Ok(response.metadata().get("who").expect("said").to_str().expect("ascii").to_owned())
}

fn fleet(servers: &[Server]) -> Fleet {
    Fleet::of(servers.iter().map(Server::instance))
}

#[tokio::test]
async fn the_key_comes_with_the_request_as_an_extension_or_in_the_named_header() {
    let servers = ["a", "b", "c", "d"].map(Server::start);
    let header = HashKeys::new().header("x-user".parse().expect("a header"));
    let runtime = Runtime::tokio();
    let fleet = fleet(&servers);
    let balancer = Cached::new(Maglev::new(), &runtime);
    for channel in [
        builder(&fleet).policy(RingHash::new()).hash_keys(header.clone()).build(),
        builder(&fleet).policy(Maglev::new()).hash_keys(header.clone()).build(),
        builder(&fleet).load_balancer(balancer).hash_keys(header).build(),
    ] {
        let mut at = HashMap::new();
        for user in (0..16).map(|number| format!("user-{number}")) {
            let by_extension = call(&channel, |request| {
                request.extensions_mut().insert(HashKey::of(&user));
            })
            .await;
            let by_header = call(&channel, |request| {
                request.metadata_mut().insert("x-user", user.parse().expect("ascii"));
            })
            .await;
            let server = by_extension.expect("answered");
            assert_eq!(by_header.expect("answered"), server, "{user}");
            *at.entry(server).or_insert(0) += 1;
        }
        assert!(at.len() > 1, "all users went to one: {at:?}");
    }
}

#[tokio::test]
async fn a_missing_key_is_a_typed_error_or_a_random_key_as_set() {
    let servers = ["a", "b"].map(Server::start);
    let fleet = fleet(&servers);
    let strict = builder(&fleet).policy(RingHash::new()).build();
    let status = call(&strict, |_| {}).await.expect_err("no key");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        matches!(typed(&status), ChannelError::Route(RouteError::Pick { source: PickError::NoHashKey, .. })),
        "{status:?}"
    );
    let random = HashKeys::new().missing(MissingKey::Random);
    let loose = builder(&fleet).policy(RingHash::new()).hash_keys(random).build();
    let mut at = std::collections::HashSet::new();
    // With two instances, sixty-four of the same are a matter of 2^-63.
    for _ in 0..64 {
        at.insert(call(&loose, |_| {}).await.expect("answered"));
    }
    assert_eq!(at.len(), 2);
}
