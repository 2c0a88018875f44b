//! What a channel says of itself at level `debug`. Alone in its process, for what is said is said to the whole of it.
#![allow(clippy::disallowed_methods)] // a test may spawn

#[allow(dead_code)] // the channel's own tests need more of it
#[path = "channel/kit.rs"]
mod kit;

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use client_sdk::{BalancedChannel, Endpoint, channel::Standing};

use crate::kit::{Act, Fleet, Peer, Server, who};

/// What was said.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl io::Write for Said {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("unpoisoned").extend(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Said {
    fn has(&self, parts: &[&str]) -> bool {
        let said = String::from_utf8(self.0.lock().expect("unpoisoned").clone()).expect("text");
        said.lines().any(|line| parts.iter().all(|part| line.contains(part)))
    }
}

#[tokio::test]
async fn views_connections_and_their_ends_are_told() {
    let said = Said::default();
    let writer = said.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).expect("the first");
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
