//! Callers that stop, and a drain right after that (C4): one that left in good order is not waited for, one that was killed
//! is. Whom a drain waited for is what it says, not how long it took.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use client_sdk::{
    discover::RegistryDiscover,
    registration::{Drained, Watchers},
};
use integration_tests::{process::Server, server_setup};

use crate::kit::{Greeter, call, channel, discover, soon, spreads};

/// A registry, and a greeter that waits so long for its callers when it drains.
async fn greeter(drain_timeout: Duration) -> (Server, Greeter) {
    let registry = server_setup!().start().await;
    let patience = move |r: client_sdk::registration::RegistrationBuilder| r.drain_timeout(drain_timeout);
    let greeter = Greeter::start_with("a", &[registry.address()], |instance| instance, patience).await;
    (registry, greeter)
}

/// Whom it waited for: the registry says that all know, or that somebody is missing.
async fn drains(greeter: &Greeter) -> Result<Watchers, Watchers> {
    let drained = soon("the drain", Box::pin(greeter.registration().drain())).await.expect("drained");
    match drained {
        Drained::Told(watchers) => Ok(watchers),
        Drained::TimedOut(watchers) => Err(watchers),
        other => panic!("{other:?}"),
    }
}

fn counts(watchers: Watchers) -> [u32; 3] {
    [watchers.acked, watchers.lagging, watchers.disconnected]
}

/// A caller that has called.
async fn caller(registry: SocketAddr) -> Arc<RegistryDiscover> {
    let discover = discover(&[registry]);
    let channel = channel(&discover);
    spreads(&channel, &["a"]).await;
    soon("an answer", call(&channel)).await.expect("answered");
    discover
}

#[tokio::test]
async fn c4_a_caller_that_closed_its_discovery_is_not_waited_for() {
    // Less than the registry waits for one that vanished: such a one would be missing in the end.
    let (registry, a) = greeter(Duration::from_secs(10)).await;
    let (stays, stops) = (caller(registry.address()).await, caller(registry.address()).await);
    assert_eq!(stops.close().await, Ok(()));
    let watchers = drains(&a).await.expect("nobody is missing");
    assert_eq!(counts(watchers), [1, 0, 0]);
    drop(stays);
}

#[tokio::test]
async fn c4_a_caller_that_dropped_its_last_handle_is_not_waited_for() {
    let (registry, a) = greeter(Duration::from_secs(10)).await;
    drop(caller(registry.address()).await);
    // It leaves while it is waited for, or before.
    let watchers = drains(&a).await.expect("nobody is missing");
    assert_eq!((watchers.lagging, watchers.disconnected), (0, 0));
}

#[tokio::test]
async fn c4_a_caller_that_was_killed_is_waited_for() {
    // More than it takes to hear that the connection broke, and less than the registry waits for whoever vanished.
    let (registry, a) = greeter(Duration::from_secs(2)).await;
    let process = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let process = process.expect("a runtime");
    let calling = process.spawn(caller(registry.address()));
    let calling = soon("a call", calling).await.expect("no panic");
    // As SIGKILL: nothing of it runs any more, and nobody is told anything.
    process.shutdown_background();
    let watchers = drains(&a).await.expect_err("somebody is missing");
    assert_eq!((watchers.acked, watchers.lagging + watchers.disconnected), (0, 1));
    drop(calling);
}
