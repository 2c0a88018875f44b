//! What a channel says of itself at level `debug`.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{
    builder,
    kit::{Fleet, Server, who},
};

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
    let _guard = tracing::subscriber::set_default(subscriber);
    let (alive, mut dead) = (Server::start("a"), Server::mortal("dead"));
    dead.kill();
    let fleet = Fleet::of([alive.instance(), dead.instance()]);
    let backoff = Duration::from_millis(2);
    let channel = builder(&fleet).backoff(backoff, backoff).build();
    channel.wait_until(|s| s.chosen() == 1 && s.instances.iter().any(|it| it.last_error.is_some())).await;
    who(&channel).await.expect("answered");
    fleet.set([]);
    channel.wait_until(|s| s.instances.is_empty()).await;

    let address = alive.address.as_str();
    assert!(said.has(&["view changed", "endpoint=default/greeter", "instances=2 before=0"]));
    assert!(said.has(&["connected", address, "nth=1"]));
    assert!(said.has(&["not connected", dead.address.as_str()]));
    assert!(said.has(&["drains", "id=a", address]));
    assert!(said.has(&["connection takes no more requests", address]));
}
