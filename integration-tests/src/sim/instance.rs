//! An instance of the service: serves, is registered at every registry, and drains when it is told to.
//!
//! ```text
//!  serve, register at each ─► at work ──order to drain──► drain at each ─► nothing in flight ─► the process ends, and is started
//! ```
//!
//! Of several that wait for one thing only `Notify` and queues wake each in its turn; a `watch` draws whom it wakes first by
//! tokio's own chance, which no seed rules. So nobody here shares one.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use client_sdk::{
    client::MissingRegistry,
    model::Instance,
    registration::{Drained, Registration},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::sleep,
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
/// The last answers are still under way when nothing is in flight any more.
const CLOSING: Duration = Duration::from_secs(1);
/// Orders that wait for a registration that is busy.
const WAITING: usize = 64;

/// What is asked of an instance while it runs.
#[derive(Clone, Debug)]
pub struct Orders {
    /// The weight it is to ask for.
    pub weight: watch::Receiver<u32>,
    /// Changes whenever it is to drain.
    pub drains: watch::Receiver<u64>,
    /// Who has drained, and is to be started again.
    pub ended: mpsc::Sender<String>,
}

/// What is asked of one registration.
enum Order {
    Weight(u32),
    Drain,
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

/// The weight at a registry: to tell views of registries apart, the registry's number (from 0) times 1,000 more than was
/// asked for. A weight of 0 is one everywhere.
pub fn weight_at(number: u32, weight: u32) -> u32 {
    if weight == 0 { 0 } else { number * 1_000 + weight }
}

/// An instance: one process, until it has drained.
pub async fn instance(given: Given, settings: InstanceSettings, mut orders: Orders) -> Ended {
    orders.drains.mark_unchanged();
    let in_flight = Arc::new(InFlight::default());
    let greeter = Greeter {
        name: given.name.clone(),
        in_flight: Arc::clone(&in_flight),
        work: settings.work,
        random: Mutex::new(fastrand::Rng::with_seed(given.seed)),
    };
    let serving = Server::builder().add_service(HealthServer::new(greeter));
    tokio::spawn(serving.serve_with_incoming(incoming(SERVICE_PORT).await?));
    let weight = *orders.weight.borrow_and_update();
    let mut registrations = Vec::new();
    for (number, registry) in (0u32..).zip(settings.registries) {
        let mut given = given.clone();
        given.seed = given.seed.wrapping_add(u64::from(number) + 1);
        let in_flight = Arc::clone(&in_flight);
        let (order, orders) = mpsc::channel(WAITING);
        let registered = tokio::spawn(async move {
            // What cannot be undone here goes with its lease.
            let _ = be_registered(given, (number, registry), (weight, settings.ttl), orders, in_flight).await;
        });
        registrations.push((order, registered));
    }
    loop {
        let order: fn(u32) -> Order = tokio::select! {
            biased;
            changed = orders.drains.changed() => {
                changed?;
                |_| Order::Drain
            }
            changed = orders.weight.changed() => {
                changed?;
                Order::Weight
            }
        };
        let weight = *orders.weight.borrow_and_update();
        if matches!(order(weight), Order::Drain) {
            break;
        }
        for (registration, _) in &registrations {
            registration.send(order(weight)).await?;
        }
    }
    let saw = |step| given.trace.saw(Event::Drain { who: given.name.clone(), step });
    saw(DrainStep::Began);
    for (registration, _) in &registrations {
        registration.send(Order::Drain).await?;
    }
    for (_, registered) in registrations {
        registered.await?;
    }
    in_flight.is_nothing().await;
    saw(DrainStep::Left);
    sleep(CLOSING).await;
    orders.ended.send(given.name.clone()).await?;
    std::future::pending().await
}

/// Registered at one registry, until it has drained there.
async fn be_registered(
    given: Given,
    (number, registry): (u32, String),
    (weight, ttl): (u32, Duration),
    mut orders: mpsc::Receiver<Order>,
    in_flight: Arc<InFlight>,
) -> Result<(), String> {
    let text = |error: Box<dyn std::error::Error>| error.to_string();
    let client = client(std::slice::from_ref(&registry), &given).map_err(text)?;
    let instance = Instance::builder(address(&given.name, SERVICE_PORT).map_err(|error| error.to_string())?)
        .id(&*given.name)
        .weight(weight_at(number, weight))
        .build();
    let builder = Registration::builder(client).service(SERVICE).instance(instance).ttl(ttl);
    let mut registering = std::pin::pin!(builder.missing_registry(MissingRegistry::Wait).register());
    let mut newest = None;
    let registration = loop {
        tokio::select! {
            biased;
            registration = &mut registering => break registration.map_err(|error| error.to_string())?,
            order = orders.recv() => match order {
                Some(Order::Weight(weight)) => newest = Some(weight),
                Some(Order::Drain) | None => return Ok(()),
            }
        }
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
        let weight = match newest.take() {
            Some(weight) => weight,
            None => match orders.recv().await {
                Some(Order::Weight(weight)) => weight,
                Some(Order::Drain) | None => break,
            },
        };
        let weight = weight_at(number, weight);
        // If it did not reach the registry now, it will: the SDK keeps the words.
        let _ = registration.update(move |instance| instance.weight = weight).await;
    }
    let saw = |step| given.trace.saw(Event::Drain { who: given.name.clone(), step });
    let drained = registration.drain_after(async {
        saw(DrainStep::Told(registry.clone()));
        in_flight.is_nothing().await;
    });
    let drained = drained.await.map_err(|error| error.to_string())?;
    saw(DrainStep::Knew { registry, all: matches!(drained, Drained::Told(_)) });
    Ok(())
}

/// The requests in flight.
#[derive(Default)]
struct InFlight {
    count: AtomicUsize,
    ended: Notify,
}

impl InFlight {
    async fn is_nothing(&self) {
        loop {
            let ended = self.ended.notified();
            if self.count.load(Ordering::Relaxed) == 0 {
                return;
            }
            ended.await;
        }
    }
}

/// A request in flight.
struct Working<'a>(&'a InFlight);

impl<'a> Working<'a> {
    fn new(in_flight: &'a InFlight) -> Self {
        in_flight.count.fetch_add(1, Ordering::Relaxed);
        Self(in_flight)
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
        self.0.ended.notify_waiters();
    }
}

/// Says its name, after a while.
struct Greeter {
    name: String,
    in_flight: Arc<InFlight>,
    work: Duration,
    random: Mutex<fastrand::Rng>,
}

#[tonic::async_trait]
impl Health for Greeter {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let _working = Working::new(&self.in_flight);
        if !self.work.is_zero() {
            let share = self.random.lock().unwrap_or_else(PoisonError::into_inner).f64();
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
