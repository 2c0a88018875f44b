//! One connection to a set of registry endpoints, with failover, keepalive and deadlines.
//!
//! Owns the connection and the unary calls. Does not own streams: [`watch`](crate::watch) and
//! [`registration`](crate::registration) open theirs on the connection that this module hands them. Keeps the
//! transport's half of C3: a peer that is gone is noticed within 15 s by HTTP/2 keepalive, and another endpoint takes
//! its place.

mod connection;
mod endpoints;
mod error;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use connection::Keepalive;
pub(crate) use connection::{Connection, Grpc};
use endpoints::Endpoints;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use error::check;
pub use error::{CallError, ConfigError, ConnectError, DeregisterError, Refusal, RegisterError};
use registry_proto::v1;
use tonic::{Code, Response, Status};

use crate::{
    backoff::{Backoff, Bounds},
    model::Address,
    runtime::{BoxFuture, Runtime},
    wire_duration::from_wire,
};

/// What to do when no registry can be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingRegistry {
    /// Say so at once, when each endpoint was tried.
    #[default]
    FailFast,
    /// Go on trying, with growing pauses of at most 10 s.
    Wait,
}

/// A client of the registry. Cheap to clone: all clones share one connection.
///
/// Connects on first use. Calls are idempotent by the protocol's design, so a call that met a dead or unavailable
/// replica is repeated on another one until its deadline.
#[derive(Clone)]
pub struct RegistryClient {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Runtime,
    endpoints: Endpoints,
    request_timeout: Duration,
    client_id: Arc<str>,
    /// How many watchers were named after it.
    watchers: AtomicU64,
}

/// Builds a [`RegistryClient`].
#[derive(Clone, Debug)]
pub struct RegistryClientBuilder {
    endpoints: Vec<Address>,
    connect_timeout: Duration,
    request_timeout: Duration,
    keepalive: Keepalive,
    runtime: Runtime,
    client_id: Option<String>,
}

/// The pauses of a call: short, so that it finds a registry that was away for a moment well before its deadline.
const PAUSES: Bounds = Bounds { base: Duration::from_millis(100), max: Duration::from_millis(500) };
/// The registry takes 253; the rest is for the numbers of watchers.
const LONGEST_ID: usize = 240;

/// How long a call may take.
#[derive(Clone, Copy)]
struct Limits {
    /// In all.
    timeout: Duration,
    /// The registry may take so long on purpose.
    server_wait: Duration,
    /// A missing registry ends the call at once.
    fail_fast: bool,
}

/// One attempt of a call: the generated client, and how long the call may take.
type Attempt<'a, T> =
    Box<dyn FnMut(Grpc, Duration) -> BoxFuture<'static, Result<Response<T>, Status>> + Send + 'a>;

/// An attempt of the named call.
macro_rules! attempt {
    ($name:ident, $request:expr) => {{
        let message = $request;
        Box::new(move |mut grpc: Grpc, left| {
            let mut request = tonic::Request::new(message.clone());
            request.set_timeout(left);
            Box::pin(async move { grpc.$name(request).await })
        })
    }};
}

impl RegistryClient {
    /// Builds a client.
    ///
    /// ```no_run
    /// use client_sdk::client::RegistryClient;
    /// let client = RegistryClient::builder()
    ///     .endpoint("10.0.0.1:7400".parse()?)
    ///     .endpoint("10.0.0.2:7400".parse()?)
    ///     .build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn builder() -> RegistryClientBuilder {
        RegistryClientBuilder {
            endpoints: Vec::new(),
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
            keepalive: Keepalive { interval: Duration::from_secs(5), timeout: Duration::from_secs(5) },
            runtime: Runtime::default(),
            client_id: None,
        }
    }

    /// The name under which the registry knows this client's streams across reconnects.
    pub fn client_id(&self) -> &str {
        &self.inner.client_id
    }

    /// The outside world that this client lives in.
    pub fn runtime(&self) -> &Runtime {
        &self.inner.runtime
    }

    /// How long a call may take in all, retries included.
    pub fn request_timeout(&self) -> Duration {
        self.inner.request_timeout
    }

    /// Registers a batch under a lease. [`Registration`](crate::registration::Registration) does this and keeps the
    /// lease alive; this is the bare call.
    pub async fn register(
        &self,
        request: v1::RegisterRequest,
        missing: MissingRegistry,
    ) -> Result<v1::RegisterResponse, RegisterError> {
        let fail_fast = missing == MissingRegistry::FailFast;
        Ok(self.call(Limits { fail_fast, ..self.limits() }, attempt!(register, request)).await?)
    }

    /// Removes a lease, or single instances.
    pub async fn deregister(
        &self,
        request: v1::DeregisterRequest,
    ) -> Result<v1::DeregisterResponse, DeregisterError> {
        Ok(self.call(self.limits(), attempt!(deregister, request)).await?)
    }

    /// Sets or clears an operator's override.
    pub async fn set_override(
        &self,
        request: v1::SetOverrideRequest,
    ) -> Result<v1::SetOverrideResponse, CallError> {
        self.call(self.limits(), attempt!(set_override, request)).await
    }

    /// A page of the overrides in force.
    pub async fn list_overrides(
        &self,
        request: v1::ListOverridesRequest,
    ) -> Result<v1::ListOverridesResponse, CallError> {
        self.call(self.limits(), attempt!(list_overrides, request)).await
    }

    /// Releases or evicts held instances.
    pub async fn resolve_hold(
        &self,
        request: v1::ResolveHoldRequest,
    ) -> Result<v1::ResolveHoldResponse, CallError> {
        self.call(self.limits(), attempt!(resolve_hold, request)).await
    }

    /// A page of one view. [`RegistryDiscover`](crate::discover::RegistryDiscover) follows views; this reads one once.
    pub async fn discover_page(
        &self,
        request: v1::DiscoverRequest,
    ) -> Result<v1::DiscoverResponse, CallError> {
        self.call(self.limits(), attempt!(discover, request)).await
    }

    /// A page of the services that exist.
    pub async fn list_services(
        &self,
        request: v1::ListServicesRequest,
    ) -> Result<v1::ListServicesResponse, CallError> {
        self.call(self.limits(), attempt!(list_services, request)).await
    }

    /// Waits until a share of a service's watchers has applied a revision. The call's deadline is the request's own
    /// timeout (default 10 s) and the client's request timeout on top.
    pub async fn wait_applied(
        &self,
        request: v1::WaitAppliedRequest,
    ) -> Result<v1::WaitAppliedResponse, CallError> {
        let wait = request.timeout.and_then(from_wire).unwrap_or(Duration::from_secs(10));
        let timeout = wait.saturating_add(self.inner.request_timeout);
        let limits = Limits { timeout, server_wait: wait, fail_fast: false };
        self.call(limits, attempt!(wait_applied, request)).await
    }

    /// Why an instance came, changed, or left.
    pub async fn explain(&self, request: v1::ExplainRequest) -> Result<v1::ExplainResponse, CallError> {
        self.call(self.limits(), attempt!(explain, request)).await
    }

    /// A connection to begin something new on: the current one if it is usable, else one to another endpoint.
    pub(crate) async fn connect(&self) -> Result<Connection, ConnectError> {
        self.inner.endpoints.connect().await
    }

    /// A name for one more watcher: each acks for itself alone.
    pub(crate) fn watcher_name(&self) -> String {
        match self.inner.watchers.fetch_add(1, Ordering::Relaxed) {
            0 => self.inner.client_id.to_string(),
            more => format!("{}/{more}", self.inner.client_id),
        }
    }

    /// How many endpoints there are to go to.
    pub(crate) fn endpoint_count(&self) -> usize {
        self.inner.endpoints.len()
    }

    fn limits(&self) -> Limits {
        Limits { timeout: self.inner.request_timeout, server_wait: Duration::ZERO, fail_fast: false }
    }

    /// Makes a call until it succeeds, is refused, or `timeout` is over. An attempt that nobody answers is given half
    /// of the time that is left if there is another endpoint to go to.
    async fn call<T>(&self, limits: Limits, mut attempt: Attempt<'_, T>) -> Result<T, CallError> {
        let Limits { timeout, server_wait, fail_fast } = limits;
        let runtime = &self.inner.runtime;
        let deadline = runtime.now().saturating_add(timeout);
        let mut backoff = Backoff::within(PAUSES);
        let mut failures = 0;
        loop {
            let left = deadline.saturating_sub(runtime.now());
            let spare = left.saturating_sub(server_wait);
            let patience = if self.endpoint_count() > 1 && failures == 0 {
                left.saturating_sub(spare / 2)
            } else {
                left
            };
            let (error, retry_after) = match tokio::time::timeout(left, self.connect()).await {
                Err(_) => return Err(CallError::Timeout(timeout)),
                Ok(Err(error)) if fail_fast => return Err(CallError::Unreachable(error)),
                Ok(Err(error)) => (CallError::Unreachable(error), None),
                Ok(Ok(connection)) => {
                    match tokio::time::timeout(patience, attempt(connection.grpc(), patience)).await {
                        Ok(Ok(response)) => return Ok(response.into_inner()),
                        Ok(Err(status)) if status.code() == Code::Unavailable => {
                            connection.retire();
                            let refusal = Refusal::from_status(&status);
                            let retry_after = refusal.retry_after;
                            (CallError::Refused(refusal), retry_after)
                        }
                        Ok(Err(status)) => return Err(CallError::Refused(Refusal::from_status(&status))),
                        Err(_) => {
                            connection.retire();
                            (CallError::Timeout(timeout), None)
                        }
                    }
                }
            };
            failures += 1;
            // The first time round the other endpoints are tried without a pause; `connect` tried them all itself.
            let pause = if failures < self.endpoint_count() && !matches!(error, CallError::Unreachable(_)) {
                Duration::ZERO
            } else {
                backoff.next(runtime).max(retry_after.unwrap_or_default())
            };
            if runtime.now().saturating_add(pause) >= deadline {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }
}

impl fmt::Debug for RegistryClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryClient")
            .field("client_id", &self.inner.client_id)
            .field("endpoints", &self.inner.endpoints)
            .finish_non_exhaustive()
    }
}

impl RegistryClientBuilder {
    /// Adds an endpoint. Default, if none is added: `127.0.0.1:7400`.
    #[must_use]
    pub fn endpoint(mut self, endpoint: Address) -> Self {
        self.endpoints.push(endpoint);
        self
    }

    /// Adds endpoints.
    #[must_use]
    pub fn endpoints(mut self, endpoints: impl IntoIterator<Item = Address>) -> Self {
        self.endpoints.extend(endpoints);
        self
    }

    /// How long to wait for a connection to one endpoint. Default 2 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a call may take in all, retries included. Default 5 s.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Pings the registry after `interval` without a sign of life, and gives the connection up if the ping is not
    /// answered within `timeout`. Default 5 s and 5 s: together they should stay below 15 s (C3).
    #[must_use]
    pub fn keepalive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.keepalive = Keepalive { interval, timeout };
        self
    }

    /// The outside world. Default: the real one.
    #[must_use]
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = runtime;
        self
    }

    /// Names the client's streams, stable across reconnects: 1 to 240 characters of `[A-Za-z0-9._:/@-]`. By it the registry
    /// knows whose acks are missing when somebody drains, so no two processes may have the same. The first watcher (in most
    /// programs a [`RegistryDiscover`](crate::discover::RegistryDiscover)) has the very name, further ones have a number
    /// after it. Default: random, and so unique.
    #[must_use]
    pub fn client_id(mut self, client_id: impl Into<String>) -> Self {
        self.client_id = Some(client_id.into());
        self
    }

    /// The client. It connects to nobody yet.
    pub fn build(mut self) -> Result<RegistryClient, ConfigError> {
        let times = [
            ("connect_timeout", self.connect_timeout),
            ("request_timeout", self.request_timeout),
            ("keepalive.interval", self.keepalive.interval),
            ("keepalive.timeout", self.keepalive.timeout),
        ];
        if let Some((name, _)) = times.iter().find(|(_, time)| time.is_zero()) {
            return Err(ConfigError::Zero(name));
        }
        let client_id = match self.client_id {
            Some(id) if !is_name(&id) => return Err(ConfigError::ClientId(id)),
            Some(id) => id,
            None => random_name(&self.runtime),
        };
        if self.endpoints.is_empty() {
            self.endpoints.push(std::net::SocketAddr::from(([127, 0, 0, 1], 7400)).into());
        }
        let endpoints =
            Endpoints::new(self.runtime.clone(), self.endpoints, self.connect_timeout, self.keepalive);
        let inner = Inner {
            runtime: self.runtime,
            endpoints,
            request_timeout: self.request_timeout,
            client_id: client_id.into(),
            watchers: AtomicU64::new(0),
        };
        Ok(RegistryClient { inner: Arc::new(inner) })
    }
}

/// 128 random bits as text.
pub(crate) fn random_name(runtime: &Runtime) -> String {
    format!("{:016x}{:016x}", runtime.random(), runtime.random())
}

fn is_name(text: &str) -> bool {
    (1..=LONGEST_ID).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:/@-".contains(&b))
}
