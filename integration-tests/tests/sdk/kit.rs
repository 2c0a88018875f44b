//! Greeters, registries and callers.

use std::{
    collections::BTreeMap,
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use client_sdk::{
    channel::{BalancedChannel, Snapshot},
    client::{MissingRegistry, RegistryClient},
    discover::{Discover, RegistryDiscover, ViewReceiver, ViewState},
    model::{Address, Endpoint, Instance, InstanceBuilder},
    registration::{Registration, RegistrationBuilder, RegistrationState},
};
use registry_proto::v1;
use tokio::{net::TcpListener, sync::Semaphore};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};

pub(crate) const SERVICE: &str = "greeter";

/// What comes within a minute.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    integration_tests::process::within(what, Duration::from_mins(1), future).await
}

pub(crate) fn greeter() -> Endpoint {
    Endpoint::new(SERVICE)
}

/// An address where nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    listener.local_addr().expect("bound")
}

pub(crate) fn client(registries: &[SocketAddr]) -> RegistryClient {
    let endpoints = registries.iter().map(|address| Address::from(*address));
    RegistryClient::builder().endpoints(endpoints).build().expect("sound settings")
}

pub(crate) fn discover(registries: &[SocketAddr]) -> Arc<RegistryDiscover> {
    Arc::new(RegistryDiscover::builder(client(registries)).build())
}

/// A channel by round robin, which spreads exactly by weight.
pub(crate) fn channel<D: Discover>(discover: &Arc<D>) -> BalancedChannel {
    BalancedChannel::builder(Arc::clone(discover), greeter()).build()
}

/// Waits until the channel spreads calls over exactly these.
pub(crate) async fn spreads(channel: &BalancedChannel, over: &[&str]) -> Snapshot {
    let chosen = |snapshot: &Snapshot| {
        snapshot.chosen() == over.len()
            && over.iter().all(|id| {
                let chosen = client_sdk::channel::Standing::Chosen;
                snapshot.instance(id).is_some_and(|instance| instance.standing == chosen)
            })
    };
    soon(&format!("calls to {over:?}"), channel.wait_until(chosen)).await
}

/// Waits until the view looks so.
pub(crate) async fn shows(view: &mut ViewReceiver, what: &str, looks: impl Fn(&[Arc<Instance>]) -> bool) {
    let looks = |state: &ViewState| state.view.as_ref().is_some_and(|view| looks(&view.instances));
    drop(soon(what, view.wait_for(looks)).await.expect("followed"));
}

/// One call; who answered it.
pub(crate) async fn call(channel: &BalancedChannel) -> Result<String, Status> {
    ask(channel, "").await
}

/// One call, which ends when the greeter's gate is opened.
pub(crate) async fn slow_call(channel: &BalancedChannel) -> Result<String, Status> {
    ask(channel, "slow").await
}

async fn ask(channel: &BalancedChannel, service: &str) -> Result<String, Status> {
    let request = HealthCheckRequest { service: service.into() };
    let answer = HealthClient::new(channel.clone()).check(request).await?;
    let who = answer.metadata().get("who").expect("said").to_str().expect("ASCII");
    Ok(who.to_owned())
}

/// Who answered so many calls, none of which may fail.
pub(crate) async fn shares(channel: &BalancedChannel, calls: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..calls {
        *shares.entry(soon("an answer", call(channel)).await.expect("no call fails")).or_default() += 1;
    }
    shares
}

/// An instance that serves and is registered, on a runtime of its own. Dropping it kills it.
pub(crate) struct Greeter {
    pub(crate) address: Address,
    pub(crate) registration: Option<Registration>,
    pub(crate) desk: Arc<Desk>,
    runtime: Option<tokio::runtime::Runtime>,
}

/// What the greeter's handlers share with the test.
pub(crate) struct Desk {
    name: &'static str,
    pub(crate) calls: AtomicUsize,
    /// Gets a permit as each slow call arrives.
    arrived: Semaphore,
    /// A permit ends one slow call.
    gate: Semaphore,
}

impl Greeter {
    /// Registered there, with its name as its id, weight 1 and the default TTL.
    pub(crate) async fn start(name: &'static str, registries: &[SocketAddr]) -> Self {
        Self::start_with(name, registries, |instance| instance, |registration| registration).await
    }

    pub(crate) async fn start_with(
        name: &'static str,
        registries: &[SocketAddr],
        instance: impl FnOnce(InstanceBuilder) -> InstanceBuilder,
        registration: impl FnOnce(RegistrationBuilder) -> RegistrationBuilder,
    ) -> Self {
        let mut greeter = Self::unregistered(name).await;
        let client = client(registries);
        let words = instance(Instance::builder(greeter.address.clone()).id(name)).build();
        let builder = Registration::builder(client).service(SERVICE).instance(words);
        // A registry that is just being restarted is waited for.
        let builder = registration(builder.missing_registry(MissingRegistry::Wait));
        let registered = greeter.runtime().spawn(builder.register());
        let registered = soon("a registration", registered).await.expect("no panic");
        greeter.registration = Some(registered.expect("registered"));
        greeter
    }

    /// One that only serves.
    pub(crate) async fn unregistered(name: &'static str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let desk = Arc::new(Desk {
            name,
            calls: AtomicUsize::new(0),
            arrived: Semaphore::new(0),
            gate: Semaphore::new(0),
        });
        let service = HealthServer::from_arc(Arc::clone(&desk));
        let (tell, told) = tokio::sync::oneshot::channel();
        runtime.spawn(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            tell.send(listener.local_addr().expect("bound")).expect("the test waits");
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpIncoming::from(listener))
                .await
                .expect("serves");
        });
        let address = told.await.expect("bound").into();
        Self { address, registration: None, desk, runtime: Some(runtime) }
    }

    pub(crate) fn registration(&self) -> &Registration {
        self.registration.as_ref().expect("registered")
    }

    /// As SIGKILL: its connections break, and nobody is told anything.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub(crate) fn calls(&self) -> usize {
        self.desk.calls.load(Ordering::SeqCst)
    }

    /// Waits for a slow call to arrive.
    pub(crate) async fn arrived(&self) {
        soon("a slow call", self.desk.arrived.acquire()).await.expect("never closed").forget();
    }

    /// Ends one slow call.
    pub(crate) fn open_gate(&self) {
        self.desk.gate.add_permits(1);
    }

    /// Waits until the registration's state is so.
    pub(crate) async fn state(&self, is: impl Fn(&RegistrationState) -> bool) {
        let mut events = self.registration().events();
        let waited = soon("the registration's state", events.wait_for(|status| is(&status.state))).await;
        drop(waited.expect("the registration lives"));
    }

    fn runtime(&self) -> &tokio::runtime::Runtime {
        self.runtime.as_ref().expect("it lives")
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.kill();
    }
}

#[tonic::async_trait]
impl Health for Desk {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if request.get_ref().service == "slow" {
            self.arrived.add_permits(1);
            self.gate.acquire().await.expect("never closed").forget();
        }
        let mut response = Response::new(HealthCheckResponse { status: 1 });
        response.metadata_mut().insert("who", self.name.parse().expect("ASCII"));
        Ok(response)
    }

    type WatchStream = tokio_stream::Pending<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(tokio_stream::pending()))
    }
}

/// What an operator does: `None` clears the override.
pub(crate) async fn override_of(client: &RegistryClient, id: &str, set: Option<v1::Override>) {
    use v1::set_override_request::Action;
    let action = set.map_or(Action::Clear(v1::ClearOverride {}), Action::Set);
    let request = v1::SetOverrideRequest {
        key: Some(integration_tests::requests::key(SERVICE)),
        id: id.to_owned(),
        action: Some(action),
        actor: "operator".to_owned(),
        reason: "a test".to_owned(),
    };
    soon("an override", client.set_override(request)).await.expect("overridden");
}
