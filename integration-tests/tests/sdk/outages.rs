//! The registry killed, restarted, missing: callers go on (C1), registrants come back by themselves, and whoever is asked
//! for what he cannot know says so as was chosen.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use client_sdk::{
    channel::BalancedChannel,
    client::{CallError, MissingRegistry, RegisterError},
    discover::{Discover as _, RegistryDiscover, RegistryDiscoverError},
    model::Instance,
    registration::{Registration, RegistrationState},
};
use integration_tests::server_setup;
use tokio::task::JoinHandle;

use crate::kit::{
    Greeter, SERVICE, call, channel, client, discover, greeter, nobody, shares, shows, soon, spreads,
};

/// Calls without a pause until it is told to stop.
struct Calls {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    task: JoinHandle<Vec<String>>,
}

impl Calls {
    fn start(channel: BalancedChannel) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&answered));
        let task = tokio::spawn(async move {
            let mut failures = Vec::new();
            while !stopped.load(Ordering::SeqCst) {
                match call(&channel).await {
                    Ok(_) => _ = count.fetch_add(1, Ordering::SeqCst),
                    Err(status) => failures.push(status.to_string()),
                }
            }
            failures
        });
        Self { stop, answered, task }
    }

    /// Lets so many more calls pass.
    async fn pass(&self, calls: usize) {
        let until = self.answered.load(Ordering::SeqCst) + calls;
        let passed = async {
            while self.answered.load(Ordering::SeqCst) < until && !self.task.is_finished() {
                tokio::task::yield_now().await;
            }
        };
        soon("calls", passed).await;
    }

    async fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.expect("no panic")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_registry_fails_no_call_empties_no_list_and_finds_everyone_again() {
    let setup = server_setup!();
    let mut registry = setup.start().await;
    let at = [registry.address()];
    let setup = setup.at(registry.address());
    let greeters =
        [Greeter::start("a", &at).await, Greeter::start("b", &at).await, Greeter::start("c", &at).await];
    let discover = discover(&at);
    let mut changes = discover.watch().expect("views change");
    let mut view = discover.view(&greeter()).expect("followed");
    shows(&mut view, "all", |all| all.len() == 3).await;
    let channel = channel(&discover);
    spreads(&channel, &["a", "b", "c"]).await;
    let calls = Calls::start(channel.clone());
    calls.pass(50).await;
    // Killed, and then stopped in order.
    for (round, weight) in [(0, 2), (1, 3)] {
        if round == 0 {
            registry.kill().await;
        } else {
            registry.terminate();
            registry.ended().await;
        }
        drop(soon("the outage", view.wait_for(|state| state.error.is_some())).await.expect("followed"));
        calls.pass(100).await;
        registry = setup.start().await;
        drop(soon("the registry", view.wait_for(|state| state.error.is_none())).await.expect("followed"));
        calls.pass(100).await;
        // Everyone is registered, and what changes reaches the callers.
        for greeter in &greeters {
            greeter.registration().update(move |i| i.weight = weight).await.expect("the registry is back");
            greeter.state(|state| matches!(state, RegistrationState::Registered { .. })).await;
        }
        shows(&mut view, "the weights", |all| all.len() == 3 && all.iter().all(|i| i.weight == weight)).await;
    }
    assert_eq!(calls.end().await, Vec::<String>::new(), "C1: not one call failed");
    let mut told = 0;
    while let Ok(change) = changes.try_recv() {
        told += 1;
        assert!(told == 1 || !change.all.is_empty() && change.removed.is_empty(), "{change:?}");
    }
    assert!(told > 1);
    assert_eq!(discover.resyncs(), 0);
}

#[tokio::test]
async fn a_missing_registry_is_told_at_once_or_waited_for_as_chosen() {
    let missing = nobody().await;
    let builder = |missing_registry| {
        let instance = Instance::builder("127.0.0.1:9".parse().expect("an address")).id("a").build();
        Registration::builder(client(&[missing]))
            .service(SERVICE)
            .instance(instance)
            .missing_registry(missing_registry)
    };
    let refused = soon("an error", builder(MissingRegistry::FailFast).register()).await;
    assert!(matches!(refused, Err(RegisterError::Failed(CallError::Unreachable(_)))), "{refused:?}");

    let fast =
        RegistryDiscover::builder(client(&[missing])).missing_registry(MissingRegistry::FailFast).build();
    let refused = soon("an error", fast.discover(&greeter())).await;
    assert!(matches!(refused, Err(RegistryDiscoverError::Missing { .. })), "{refused:?}");

    let short = RegistryDiscover::builder(client(&[missing])).timeout(Duration::from_millis(50)).build();
    let refused = soon("an error", short.discover(&greeter())).await;
    assert!(matches!(refused, Err(RegistryDiscoverError::Timeout { .. })), "{refused:?}");

    let waiting = tokio::spawn(builder(MissingRegistry::Wait).register());
    let patient = RegistryDiscover::builder(client(&[missing])).timeout(Duration::from_mins(1)).build();
    let discovered = tokio::spawn(async move {
        let mut view = patient.view(&greeter()).expect("followed");
        shows(&mut view, "the instance", |all| all.len() == 1).await;
        patient.discover(&greeter()).await
    });
    let _registry = server_setup!().at(missing).start().await;
    let _registration = soon("the registration", waiting).await.expect("no panic").expect("registered");
    assert_eq!(soon("the view", discovered).await.expect("no panic").expect("discovered").len(), 1);
    // Those that failed fast recover too: their view is filled as soon as there is one.
    for discover in [fast, short] {
        let mut view = discover.view(&greeter()).expect("followed");
        shows(&mut view, "the instance", |all| all.len() == 1).await;
    }
}

#[tokio::test]
async fn a_client_that_is_restarted_while_the_registry_is_down_still_calls() {
    let directory = tempfile::tempdir().expect("a directory");
    let cache = directory.path().join("views");
    let registry = server_setup!().start().await;
    let at = [registry.address()];
    let (_a, _b) = (Greeter::start("a", &at).await, Greeter::start("b", &at).await);
    {
        let discover = RegistryDiscover::builder(client(&at)).cache_file(&cache).build();
        let mut view = discover.view(&greeter()).expect("followed");
        shows(&mut view, "both", |all| all.len() == 2).await;
        discover.save_cache().await.expect("written");
    }
    registry.kill().await;
    let restarted = Arc::new(RegistryDiscover::builder(client(&at)).cache_file(&cache).build());
    let channel = channel(&restarted);
    spreads(&channel, &["a", "b"]).await;
    assert_eq!(shares(&channel, 20).await.len(), 2);
}

#[tokio::test]
async fn dead_and_frozen_registry_endpoints_are_passed_over() {
    let (frozen, alive) = (server_setup!().start().await, server_setup!().start().await);
    frozen.freeze();
    let endpoints = [nobody().await, frozen.address(), alive.address()];
    // The order is random: several clients meet several orders.
    let _greeter = Greeter::start("a", &[alive.address()]).await;
    let calls = (0..6).map(|_| {
        tokio::spawn(async move {
            let discover = discover(&endpoints);
            let mut view = discover.view(&greeter()).expect("followed");
            shows(&mut view, "the instance", |all| all.len() == 1).await;
            let client = client(&endpoints);
            let services = client.list_services(registry_proto::v1::ListServicesRequest::default());
            assert_eq!(soon("an answer", services).await.expect("answered").services.len(), 1);
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.expect("no panic");
    }
    frozen.thaw();
}
