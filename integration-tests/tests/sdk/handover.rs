//! A registry that is stopped in order and started again, or whose place another takes: whoever uses it through the SDK
//! gets no error and sees no list empty, and registrants stay registered.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use client_sdk::{discover::Discover as _, model::Instance, registration::RegistrationState};
use integration_tests::{
    process::{Server, Setup},
    requests, server_setup,
};
use tokio::{sync::watch, task::JoinHandle};

use crate::kit::{Greeter, SERVICE, call, channel, client, discover, greeter, nobody, shows, soon, spreads};

/// One thing done again and again until it is told to stop; what went wrong is kept.
struct Load {
    name: &'static str,
    stop: Arc<AtomicBool>,
    /// How often. It ends with the task.
    done: watch::Receiver<usize>,
    task: JoinHandle<Vec<String>>,
}

impl Load {
    fn start<F>(name: &'static str, mut act: impl FnMut(usize) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send,
    {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (count, done) = watch::channel(0);
        let task = tokio::spawn(async move {
            let mut failures = Vec::new();
            while !stopped.load(Ordering::SeqCst) {
                let number = *count.borrow();
                failures.extend(act(number).await.err());
                count.send_replace(number + 1);
                tokio::task::yield_now().await;
            }
            failures
        });
        Self { name, stop, done, task }
    }

    /// Lets it be done so many times more.
    async fn pass(&self, times: usize) {
        let mut done = self.done.clone();
        let until = *done.borrow() + times;
        let passed = soon(self.name, done.wait_for(|done| *done >= until)).await;
        assert!(passed.is_ok(), "{}: the task is gone", self.name);
    }

    async fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        let failures = self.task.await.expect("no panic");
        assert!(failures.is_empty(), "{}: {failures:#?}", self.name);
    }
}

/// All that a service and its callers do with a registry, all the time: calls by its views, readings, and updates.
fn loads(at: &[SocketAddr], greeters: &[Arc<Greeter>]) -> Vec<Load> {
    let discover = discover(at);
    let channel = channel(&discover);
    let (reader, updated) = (client(at), Arc::clone(&greeters[0]));
    vec![
        Load::start("calls", move |_| {
            let channel = channel.clone();
            async move { call(&channel).await.map(drop).map_err(|status| status.to_string()) }
        }),
        Load::start("discover", move |_| {
            let discover = Arc::clone(&discover);
            async move {
                match discover.discover(&greeter()).await {
                    Ok(all) if all.len() == 3 => Ok(()),
                    Ok(all) => Err(format!("{} of 3 instances", all.len())),
                    Err(error) => Err(error.to_string()),
                }
            }
        }),
        Load::start("readings", move |_| {
            let reader = reader.clone();
            async move {
                let page = reader.discover_page(requests::discover(SERVICE)).await;
                page.map(drop).map_err(|error| error.to_string())
            }
        }),
        Load::start("updates", move |number| {
            let greeter = Arc::clone(&updated);
            async move {
                let weight = 1 + u32::try_from(number % 2).expect("small");
                let update = greeter.registration().update(move |instance| instance.weight = weight).await;
                update.map(drop).map_err(|error| error.to_string())
            }
        }),
    ]
}

async fn greeters(at: &[SocketAddr]) -> Vec<Arc<Greeter>> {
    let mut greeters = Vec::new();
    for name in ["a", "b", "c"] {
        greeters.push(Arc::new(Greeter::start(name, at).await));
    }
    greeters
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_stopped_and_started_again_is_noticed_by_no_caller() {
    let setup = server_setup!().with("--grace", "1s");
    let registry = setup.start().await;
    let at = registry.address();
    handed_over(&[at], registry, &[setup.at(at)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_whose_successor_is_elsewhere_is_noticed_by_no_caller() {
    let setup = server_setup!().with("--grace", "1s");
    let registry = setup.start().await;
    let (here, there) = (registry.address(), nobody().await);
    handed_over(&[here, there], registry, &[setup.clone().at(there), setup.at(here)]).await;
}

/// Stops the registry three times, and starts its successors in turn, under all that callers do.
async fn handed_over(at: &[SocketAddr], mut registry: Server, successors: &[Setup]) {
    let greeters = greeters(at).await;
    // One that only looks on: its view changes as weights do, and is never read anew.
    let watching = discover(at);
    let mut view = watching.view(&greeter()).expect("followed");
    shows(&mut view, "all", |all| all.len() == 3).await;
    let mut changes = watching.watch().expect("views change");
    let seen = channel(&watching);
    spreads(&seen, &["a", "b", "c"]).await;
    let loads = loads(at, &greeters);
    for successor in successors.iter().cycle().take(3) {
        for load in &loads {
            load.pass(20).await;
        }
        registry.terminate();
        let end = registry.ended().await;
        assert_eq!(end.status.code(), Some(0), "{}", end.log);
        assert!(!end.log.contains("cut off"), "{}", end.log);
        registry = successor.start().await;
        for load in &loads {
            load.pass(20).await;
        }
    }
    for load in loads {
        load.end().await;
    }
    while let Ok(change) = changes.try_recv() {
        assert_eq!((change.all.len(), change.removed.len()), (3, 0), "an instance was missing for a while");
    }
    // It hears of what happens now, so it is following again; and it was never reset.
    greeters[1].registration().update(|instance| instance.weight = 77).await.expect("updated");
    let last = |all: &[Arc<Instance>]| all.iter().any(|instance| instance.weight == 77);
    shows(&mut view, "the last update", last).await;
    assert_eq!(watching.resyncs(), 0);
    for greeter in &greeters {
        greeter.state(|state| matches!(state, RegistrationState::Registered { .. })).await;
    }
}
