//! What runs on a host: a registry, a watcher, a caller (an instance is in [`super::instance`]). Each is an `async fn` of
//! what it needs, so that a host can be started again.

use std::{sync::Arc, time::Duration};

use client_sdk::{
    balance::WeightedRandom,
    channel::{BalancedChannel, ChannelError, RouteError},
    client::RegistryClient,
    discover::{Discover, RegistryDiscover},
    model::{Address, Endpoint, Instance, InstanceList, Status as InstanceStatus},
    outlier::OutlierDetection,
    runtime::Runtime,
};
use registry_server::{
    server::{self, Config},
    store::{EmbeddedOptions, EmbeddedStore, MemoryStore, Store},
};
use tokio::{sync::watch, time::sleep};
use tonic::{Request, Response};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};

use super::{
    disk::SimulatedDisk,
    instance::WHO,
    net::{REGISTRY_PORT, incoming},
    trace::{Event, Seen, Trace},
    world::{self, Clock},
};

/// The service that instances register and callers call.
pub const SERVICE: &str = "greeter";
/// A log grows in such steps.
const GROW_BYTES: u64 = 4_096;
/// For how long a registry that stops waits for its callers.
const GRACE: Duration = Duration::from_secs(4);
const BETWEEN_RUNS: Duration = Duration::from_millis(50);

/// What a host's software ends with.
pub type Ended = Result<(), Box<dyn std::error::Error>>;

/// Where a registry keeps what it holds.
#[derive(Clone, Debug)]
pub enum Storage {
    /// Nowhere.
    Memory,
    /// On its disk.
    Disk(SimulatedDisk),
}

/// What every host is given at a start: its name, its seed, its clock, and where it says what it sees.
#[derive(Clone, Debug)]
pub struct Given {
    /// Its name.
    pub name: String,
    /// Another one at each start.
    pub seed: u64,
    /// Its clock.
    pub clock: Clock,
    /// The record.
    pub trace: Trace,
}

/// A registry server. It stops in good order whenever `stops` changes, and is started again.
pub async fn registry(given: Given, storage: Storage, stops: watch::Receiver<u64>) -> Ended {
    let Given { name, seed, clock, trace } = given;
    for turn in 0.. {
        let runtime = world::of_server(seed.wrapping_add(turn), clock);
        let incoming = incoming(REGISTRY_PORT).await?;
        let new_epoch = runtime.random_u128();
        let (store, named): (Box<dyn Store>, _) = match &storage {
            Storage::Memory => (Box::new(MemoryStore::new(new_epoch)), server::Storage::Memory),
            Storage::Disk(disk) => {
                let options = EmbeddedOptions {
                    grow_bytes: GROW_BYTES,
                    ..EmbeddedOptions::new(server::fold(&Config::default().core), new_epoch)
                };
                let store = EmbeddedStore::open_on(Arc::new(disk.clone()), options)?;
                // Its compactor has a thread of its own: nothing of it may be left to chance.
                store.settle();
                (Box::new(store), server::Storage::Embedded)
            }
        };
        let config = Config { storage: named, grace: GRACE, ..Config::default() };
        let (mut stops, who, seen) = (stops.clone(), name.clone(), trace.clone());
        stops.mark_unchanged();
        let stop = async move {
            if stops.changed().await.is_ok() {
                seen.saw(Event::Stopping { who });
            }
        };
        server::run_on(store, config, incoming, runtime, stop, |found| {
            trace.saw(Event::Started {
                who: name.clone(),
                epoch: found.epoch.clone(),
                revision: found.revision,
                instances: found.instances,
            });
        })
        .await?;
        // Whoever listened for it has to let go of the port.
        sleep(BETWEEN_RUNS).await;
    }
    Ok(())
}

/// Follows [`SERVICE`], and says all that it is told.
pub async fn watcher(given: Given, registries: Vec<String>) -> Ended {
    let discover = RegistryDiscover::builder(client(&registries, &given)?).build();
    follow(given.name, &discover, given.trace).await
}

/// Says all that this discovery tells of [`SERVICE`].
async fn follow(name: String, discover: &RegistryDiscover, trace: Trace) -> Ended {
    let mut changes = discover.watch().ok_or("a registry's views change")?;
    let mut view = discover.view(&Endpoint::new(SERVICE)).ok_or("a registry has views")?;
    loop {
        let who = name.clone();
        tokio::select! {
            biased;
            change = changes.recv() => {
                let change = change?;
                trace.saw(Event::View {
                    who,
                    all: seen(&change.all),
                    added: seen(&change.added),
                    updated: seen(&change.updated),
                    removed: seen(&change.removed),
                });
            }
            moved = view.changed() => {
                moved?;
                let error = view.borrow_and_update().error.as_ref().map(ToString::to_string);
                trace.saw(match error {
                    Some(error) => Event::Troubled { who, error },
                    None => Event::Healthy { who, streams: discover.streams(), resyncs: discover.resyncs() },
                });
            }
        }
    }
}

/// Calls [`SERVICE`] again and again, each call within its deadline, with this pause between them; and says all that it
/// is told meanwhile of those it may call.
pub async fn caller(given: Given, registries: Vec<String>, pause: Duration) -> Ended {
    let client = client(&registries, &given)?;
    let Given { name, trace, .. } = given;
    let runtime: Runtime = client.runtime().clone();
    let discover = RegistryDiscover::builder(client).build();
    // Whoever is ejected while it is cut off is to be back within the longest backoff.
    let detection = OutlierDetection::builder()
        .interval(Duration::from_secs(1))
        .base_ejection_time(Duration::from_secs(5))
        .max_ejection_time(Duration::from_secs(5))
        .build()?;
    let channel = BalancedChannel::builder(Arc::new(discover.clone()), Endpoint::new(SERVICE))
        .policy(WeightedRandom::new(&runtime))
        .outlier_detection(detection)
        .runtime(runtime)
        .build();
    tokio::select! {
        biased;
        ended = follow(name.clone(), &discover, trace.clone()) => ended,
        () = call(name, channel, pause, trace) => Ok(()),
    }
}

async fn call(name: String, channel: BalancedChannel, pause: Duration, trace: Trace) {
    loop {
        let began = world::now();
        let mut request = Request::new(HealthCheckRequest::default());
        request.set_timeout(Duration::from_secs(1));
        let answer = HealthClient::new(channel.clone()).check(request).await;
        let nobody = answer.as_ref().err().and_then(ChannelError::of).is_some_and(|error| {
            matches!(
                error,
                ChannelError::Route(RouteError::NoInstances { .. } | RouteError::Discovery { .. })
            )
        });
        let outcome = match answer {
            Ok(answer) => Ok(said(&answer)),
            Err(status) => Err(format!("{:?}: {}", status.code(), status.message())),
        };
        trace.saw(Event::Called { who: name.clone(), began, outcome, nobody });
        sleep(pause).await;
    }
}

fn said(response: &Response<HealthCheckResponse>) -> String {
    let who = response.metadata().get(WHO).and_then(|who| who.to_str().ok());
    who.unwrap_or_default().to_owned()
}

/// A client of these registries, in the world of this host.
pub(super) fn client(
    registries: &[String],
    given: &Given,
) -> Result<RegistryClient, Box<dyn std::error::Error>> {
    let mut builder = RegistryClient::builder().runtime(world::of_client(given.seed, given.clock));
    for registry in registries {
        builder = builder.endpoint(address(registry, REGISTRY_PORT)?);
    }
    Ok(builder.build()?)
}

pub(super) fn address(host: &str, port: u16) -> Result<Address, client_sdk::model::AddressError> {
    format!("{host}:{port}").parse()
}

fn seen(instances: &InstanceList) -> Seen {
    let weight =
        |instance: &Instance| if instance.status == InstanceStatus::Up { instance.weight } else { 0 };
    instances.iter().map(|instance| (instance.id.to_string(), weight(instance))).collect()
}
