//! An instance of the service: serves, is registered at every registry, and drains when it is told to.
//!
//! ```text
//!  serve, register at each ─► at work ──order to drain──► drain at each ─► nothing in flight ─► stop serving ─► from the start
//! ```

use std::{sync::Arc, time::Duration};

use client_sdk::{client::MissingRegistry, model::Instance, registration::Registration};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tonic::{Request, Response, Status, transport::Server};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_server::{Health, HealthServer},
};

use super::{
    hosts::{Ended, Given, SERVICE, address, client},
    net::{SERVICE_PORT, incoming},
    trace::{DrainStep, Event},
};

/// The name under which an answer says who gave it.
pub(super) const WHO: &str = "who";
/// Between the end of a process that drained and the start of the next.
const BETWEEN_RUNS: Duration = Duration::from_millis(500);
/// How long connections may take to end in a process that ends.
const CLOSING: Duration = Duration::from_secs(5);

/// What is asked of an instance while it runs.
#[derive(Clone, Debug)]
pub struct Orders {
    /// The weight it is to ask for.
    pub weight: watch::Receiver<u32>,
    /// Changes whenever it is to drain.
    pub drains: watch::Receiver<u64>,
}

/// How an instance is set.
#[derive(Clone, Debug)]
pub struct InstanceSettings {
    /// Where it registers, with the weight of [`weight_at`].
    pub registries: Vec<String>,
    /// The lease's TTL.
    pub ttl: Duration,
    /// A request takes up to this long.
    pub work: Duration,
}

/// An instance.
pub async fn instance(given: Given, settings: InstanceSettings, orders: Orders) -> Ended {
    let mut given = given;
    loop {
        run(&given, &settings, orders.clone()).await?;
        sleep(BETWEEN_RUNS).await;
        given.seed = given.seed.rotate_left(17).wrapping_add(1);
    }
}

/// The weight at a registry: to tell views of registries apart, the registry's number (from 0) times 1,000 more than was
/// asked for. A weight of 0 is one everywhere.
pub fn weight_at(number: u32, weight: u32) -> u32 {
    if weight == 0 { 0 } else { number * 1_000 + weight }
}

/// One process: until it has drained.
async fn run(given: &Given, settings: &InstanceSettings, mut orders: Orders) -> Ended {
    orders.drains.mark_unchanged();
    let (in_flight, _) = watch::channel(0);
    let in_flight = Arc::new(in_flight);
    let (stop, mut stopped) = watch::channel(false);
    let greeter = Greeter {
        name: given.name.clone(),
        in_flight: Arc::clone(&in_flight),
        work: settings.work,
        random: std::sync::Mutex::new(fastrand::Rng::with_seed(given.seed)),
    };
    let serving = Server::builder().add_service(HealthServer::new(greeter)).serve_with_incoming_shutdown(
        incoming(SERVICE_PORT).await?,
        async move {
            // An error means that the process is gone.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        },
    );
    let serving = tokio::spawn(serving);
    let mut registered = Vec::new();
    for (number, registry) in (0u32..).zip(&settings.registries) {
        let mut given = given.clone();
        given.seed = given.seed.wrapping_add(u64::from(number) + 1);
        let (orders, in_flight) = (orders.clone(), in_flight.subscribe());
        let (registry, ttl) = (registry.clone(), settings.ttl);
        registered.push(tokio::spawn(async move {
            // What cannot be undone here goes with its lease.
            let _ = be_registered(given, (number, registry), ttl, orders, in_flight).await;
        }));
    }
    orders.drains.changed().await?;
    let saw = |step| given.trace.saw(Event::Drain { who: given.name.clone(), step });
    saw(DrainStep::Began);
    for registered in registered {
        registered.await?;
    }
    in_flight.subscribe().wait_for(|count| *count == 0).await?;
    saw(DrainStep::Left);
    stop.send_replace(true);
    // Callers that do not hear of it keep their connections: the process ends all the same.
    let ended = timeout(CLOSING, serving).await;
    saw(DrainStep::Ended);
    if let Ok(ended) = ended {
        ended??;
    }
    Ok(())
}

/// Registered at one registry, until it has drained there.
async fn be_registered(
    given: Given,
    (number, registry): (u32, String),
    ttl: Duration,
    mut orders: Orders,
    mut in_flight: watch::Receiver<usize>,
) -> Result<(), String> {
    let text = |error: Box<dyn std::error::Error>| error.to_string();
    let client = client(&[registry.clone()], &given).map_err(text)?;
    let weight = weight_at(number, *orders.weight.borrow_and_update());
    let instance = Instance::builder(address(&given.name, SERVICE_PORT).map_err(|error| error.to_string())?)
        .id(&*given.name)
        .weight(weight)
        .build();
    let builder = Registration::builder(client).service(SERVICE).instance(instance).ttl(ttl);
    let registration = tokio::select! {
        biased;
        registration = builder.missing_registry(MissingRegistry::Wait).register() => {
            registration.map_err(|error| error.to_string())?
        }
        _ = orders.drains.changed() => return Ok(()),
    };
    let (mut events, trace, who) = (registration.events(), given.trace.clone(), given.name.clone());
    tokio::spawn(async move {
        loop {
            let state = format!("{:?}", events.borrow_and_update().state);
            trace.saw(Event::Registration { who: who.clone(), state });
            if events.changed().await.is_err() {
                return;
            }
        }
    });
    loop {
        tokio::select! {
            biased;
            _ = orders.drains.changed() => break,
            changed = orders.weight.changed() => {
                changed.map_err(|error| error.to_string())?;
                let weight = weight_at(number, *orders.weight.borrow_and_update());
                // If it did not reach the registry now, it will: the SDK keeps the words.
                let _ = registration.update(move |instance| instance.weight = weight).await;
            }
        }
    }
    let drained = registration.drain_after(async {
        let step = DrainStep::Told(registry);
        given.trace.saw(Event::Drain { who: given.name.clone(), step });
        // An error means that the process is gone.
        let _ = in_flight.wait_for(|count| *count == 0).await;
    });
    drained.await.map_err(|error| error.to_string())
}

/// Says its name, after a while.
struct Greeter {
    name: String,
    in_flight: Arc<watch::Sender<usize>>,
    work: Duration,
    random: std::sync::Mutex<fastrand::Rng>,
}

/// A request in flight.
struct InFlight(Arc<watch::Sender<usize>>);

impl InFlight {
    fn new(count: &Arc<watch::Sender<usize>>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(Arc::clone(count))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[tonic::async_trait]
impl Health for Greeter {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let _in_flight = InFlight::new(&self.in_flight);
        if !self.work.is_zero() {
            let share = self.random.lock().unwrap_or_else(std::sync::PoisonError::into_inner).f64();
            sleep(self.work.mul_f64(share)).await;
        }
        let mut response = Response::new(HealthCheckResponse { status: 1 });
        let name = self.name.parse().map_err(|_| Status::internal("the name is not ASCII"))?;
        response.metadata_mut().insert(WHO, name);
        Ok(response)
    }

    type WatchStream = tokio_stream::Pending<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(tokio_stream::pending()))
    }
}
