//! What runs on a host: a registry, an instance, a watcher, a caller. Each is an `async fn` of what it needs, so that a
//! host can be started again.

use std::{sync::Arc, time::Duration};

use client_sdk::{
    balance::WeightedRandom,
    channel::{BalancedChannel, ChannelError, RouteError},
    client::{MissingRegistry, RegistryClient},
    discover::{Discover, RegistryDiscover},
    model::{Address, Endpoint, Instance, InstanceList, Status as InstanceStatus},
    outlier::OutlierDetection,
    registration::Registration,
    runtime::Runtime,
};
use registry_server::{
    server::{self, Config},
    store::{EmbeddedOptions, EmbeddedStore, MemoryStore, Store},
};
use tokio::{sync::watch, time::sleep};
use tonic::{Request, Response, Status, transport::Server};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};

use super::{
    disk::SimulatedDisk,
    net::{REGISTRY_PORT, SERVICE_PORT, incoming},
    trace::{Event, Seen, Trace},
    world,
};

/// The service that instances register and callers call.
pub const SERVICE: &str = "greeter";
/// A log grows in such steps.
const GROW_BYTES: u64 = 4_096;

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

/// A registry server.
pub async fn registry(name: String, storage: Storage, seed: u64, trace: Trace) -> Ended {
    let runtime = world::of_server(seed);
    let incoming = incoming(REGISTRY_PORT).await?;
    let new_epoch = runtime.random_u128();
    let (store, named): (Box<dyn Store>, _) = match storage {
        Storage::Memory => (Box::new(MemoryStore::new(new_epoch)), server::Storage::Memory),
        Storage::Disk(disk) => {
            let options = EmbeddedOptions {
                grow_bytes: GROW_BYTES,
                ..EmbeddedOptions::new(server::fold(&Config::default().core), new_epoch)
            };
            let store = EmbeddedStore::open_on(Arc::new(disk), options)?;
            // Its compactor has a thread of its own: nothing of it may be left to chance.
            store.settle();
            (Box::new(store), server::Storage::Embedded)
        }
    };
    let config = Config { storage: named, ..Config::default() };
    server::run_on(store, config, incoming, runtime, std::future::pending(), |found| {
        trace.saw(Event::Started {
            who: name,
            epoch: found.epoch.clone(),
            revision: found.revision,
            instances: found.instances,
        });
    })
    .await?;
    Ok(())
}

/// An instance of [`SERVICE`]: serves, and is registered at each of `registries`, with the weight asked for last and, so
/// that they can be told apart, the registry's number (from 0) times 1,000 on top.
pub async fn instance(
    name: String,
    registries: Vec<String>,
    mut weight: watch::Receiver<u32>,
    ttl: Duration,
    seed: u64,
    trace: Trace,
) -> Ended {
    let serving = Server::builder().add_service(HealthServer::new(Greeter(name.clone())));
    tokio::spawn(serving.serve_with_incoming(incoming(SERVICE_PORT).await?));
    let mut registrations = Vec::new();
    for (number, registry) in (0u32..).zip(registries) {
        let client = client(&[registry], seed.wrapping_add(u64::from(number)))?;
        let instance = Instance::builder(address(&name, SERVICE_PORT)?)
            .id(&*name)
            .weight(number * 1_000 + *weight.borrow())
            .build();
        let builder = Registration::builder(client).service(SERVICE).instance(instance).ttl(ttl);
        let registration = builder.missing_registry(MissingRegistry::Wait).register().await?;
        let (mut events, trace, who) = (registration.events(), trace.clone(), name.clone());
        tokio::spawn(async move {
            loop {
                let state = format!("{:?}", events.borrow_and_update().state);
                trace.saw(Event::Registration { who: who.clone(), state });
                if events.changed().await.is_err() {
                    return;
                }
            }
        });
        registrations.push((number, registration));
    }
    loop {
        weight.changed().await?;
        let weight = *weight.borrow_and_update();
        for (number, registration) in &registrations {
            let weight = number * 1_000 + weight;
            // If it did not reach the registry now, it will: the SDK keeps the words.
            let _ = registration.update(move |instance| instance.weight = weight).await;
        }
    }
}

/// Follows [`SERVICE`], and says all that it is told.
pub async fn watcher(name: String, registries: Vec<String>, seed: u64, trace: Trace) -> Ended {
    let discover = RegistryDiscover::builder(client(&registries, seed)?).build();
    follow(name, &discover, trace).await
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
pub async fn caller(
    name: String,
    registries: Vec<String>,
    seed: u64,
    pause: Duration,
    trace: Trace,
) -> Ended {
    let client = client(&registries, seed)?;
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

/// Says its name.
struct Greeter(String);

#[tonic::async_trait]
impl Health for Greeter {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let mut response = Response::new(HealthCheckResponse { status: 1 });
        let name = self.0.parse().map_err(|_| Status::internal("the name is not ASCII"))?;
        response.metadata_mut().insert("who", name);
        Ok(response)
    }

    type WatchStream = tokio_stream::Pending<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(tokio_stream::pending()))
    }
}

fn said(response: &Response<HealthCheckResponse>) -> String {
    let who = response.metadata().get("who").and_then(|who| who.to_str().ok());
    who.unwrap_or_default().to_owned()
}

fn client(registries: &[String], seed: u64) -> Result<RegistryClient, Box<dyn std::error::Error>> {
    let mut builder = RegistryClient::builder().runtime(world::of_client(seed));
    for registry in registries {
        builder = builder.endpoint(address(registry, REGISTRY_PORT)?);
    }
    Ok(builder.build()?)
}

fn address(host: &str, port: u16) -> Result<Address, client_sdk::model::AddressError> {
    format!("{host}:{port}").parse()
}

fn seen(instances: &InstanceList) -> Seen {
    let weight =
        |instance: &Instance| if instance.status == InstanceStatus::Up { instance.weight } else { 0 };
    instances.iter().map(|instance| (instance.id.to_string(), weight(instance))).collect()
}
