//! The standard health service, split by what is asked for.
//!
//! | name | serving |
//! |---|---|
//! | `""`, `registry.v1.Registry`, `registry.v1.Registry.reads` | until the server stops |
//! | `registry.v1.Registry.writes` | until the store fails (D4) or the server stops |
//!
//! Whoever follows a status is told that the server stops, and its stream ends when no more calls are taken: nobody has to
//! leave for the server to end.

use std::time::Duration;

use tokio::{sync::watch, task::JoinHandle};
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
    server::health_reporter,
};

use crate::{
    registry::{Registry, StoreHealth},
    runtime::Runtime,
};

const READS: [&str; 3] = ["", "registry.v1.Registry", "registry.v1.Registry.reads"];
const WRITES: &str = "registry.v1.Registry.writes";

/// The service, and the task that keeps it true.
pub(super) fn serve(
    registry: &Registry,
    mut stopping: watch::Receiver<Option<Duration>>,
    mut closing: watch::Receiver<bool>,
    runtime: &Runtime,
) -> (HealthServer<impl Health>, JoinHandle<()>) {
    let (mut reporter, service) = health_reporter();
    let mut store = registry.health();
    let task = runtime.spawn(async move {
        for name in READS {
            reporter.set_service_status(name, ServingStatus::Serving).await;
        }
        loop {
            let writable = *store.borrow_and_update() == StoreHealth::Writable;
            let status = if writable { ServingStatus::Serving } else { ServingStatus::NotServing };
            reporter.set_service_status(WRITES, status).await;
            tokio::select! {
                biased;
                _ = stopping.wait_for(Option::is_some) => break,
                changed = store.changed() => if changed.is_err() { break },
            }
        }
        for name in READS.into_iter().chain([WRITES]) {
            reporter.set_service_status(name, ServingStatus::NotServing).await;
        }
        // An error means that the server is gone.
        let _ = closing.wait_for(|closing| *closing).await;
        for name in READS.into_iter().chain([WRITES]) {
            reporter.clear_service_status(name).await;
        }
    });
    (service, task)
}
