//! What a channel says of its views, of connections, and of their ends.

use std::{sync::Arc, time::Duration};

use client_sdk::{BalancedChannel, Endpoint, channel::Standing};

use crate::{
    Said,
    servers::{Act, Fleet, Peer, Server, who},
};

#[tokio::test]
async fn views_connections_and_their_ends_are_told() {
    let said = Said::all();
    let (alive, mut dead) = (Server::start("a"), Server::mortal("dead"));
    dead.kill();
    let failing = Peer::start(|_| Act::Unavailable).await;
    let fleet = Fleet::of([alive.instance(), dead.instance(), failing.instance("failing")]);
    let backoff = Duration::from_millis(2);
    let channel = BalancedChannel::builder(Arc::new(fleet.clone()), Endpoint::new("greeter"));
    let channel = channel.backoff(backoff, backoff).build();
    channel.wait_until(|s| s.chosen() == 2 && s.instances.iter().any(|it| it.last_error.is_some())).await;
    while failing.seen() < 5 {
        let _ = who(&channel).await; // by whomever
    }
    channel.wait_until(|s| s.instance("failing").is_some_and(|it| it.standing == Standing::Ejected)).await;
    who(&channel).await.expect("answered");
    fleet.set([]);
    channel.wait_until(|s| s.instances.is_empty()).await;

    let address = alive.address.as_str();
    assert!(said.has(&["view changed", "endpoint=default/greeter", "instances=3 before=0"]));
    assert!(said.has(&["WARN", "ejected", "id=failing", "in a row", "lasts=30s"]));
    assert!(said.has(&["connected", address, "nth=1"]));
    assert!(said.has(&["not connected", dead.address.as_str()]));
    assert!(said.has(&["drains", "id=a", address]));
    assert!(said.has(&["connection takes no more requests", address]));
}
