//! Builds a layer, or the service at once.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use tower::{BoxError, Layer, Service};

use super::{
    LoadBalanced, Target, actor,
    service::{Answers, Judge, Keys},
};
use crate::{
    backoff::Bounds,
    balance::{
        CallerOrder, LoadBalance, MissingKey, Outcome, Policy, RoundRobin,
        shape::{Filter, PanicThreshold, Shaper, Shaping},
    },
    discover::{Discover, follow_to_apply},
    members::{self, Aperture, Chooser, Overflow, Shared},
    model::{Address, Endpoint, Instance},
    outlier::OutlierDetection,
    retry::{Plan, Retries, Retryable},
    runtime::Runtime,
};

/// Balances whatever services a `MakeService` makes over the instances of an endpoint, as a [`tower::Layer`].
///
/// The inner service takes an instance's [`Address`] (or the whole [`Instance`], see
/// [`by_instance`](LoadBalanceBuilder::by_instance)) and makes a service for it: any tower `MakeService<Address, Req>` that can be
/// cloned. The services need not be `Clone`, and may be busy at times.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// use std::{convert::Infallible, sync::Arc};
/// use client_sdk::{Address, Endpoint, StaticDiscover, layer::LoadBalanceLayer};
/// use tower::{Layer, Service, service_fn};
///
/// // Makes a service for an address: a real one would connect to it.
/// let connect = service_fn(|address: Address| async move {
///     let greet = move |name: &'static str| {
///         let greeting = format!("hello {name}, this is {address}");
///         async move { Ok::<_, Infallible>(greeting) }
///     };
///     Ok::<_, Infallible>(service_fn(greet))
/// });
/// let peers = Arc::new(StaticDiscover::parse(["10.0.0.7:8080"])?);
/// let mut greeter = LoadBalanceLayer::builder(peers, Endpoint::new("greeter")).build().layer(connect);
/// assert_eq!(greeter.call("caller").await?, "hello caller, this is 10.0.0.7:8080");
/// # Ok(()) }
/// ```
///
/// Each service that it makes follows the endpoint by itself; the policy, or the load balancer, is one for all of them.
pub struct LoadBalanceLayer<D, Req, Res, T = Address> {
    recipe: LoadBalanceBuilder<D, Req, Res, T>,
}

/// Builds a [`LoadBalanceLayer`], or a [`LoadBalanced`] service at once. Made by [`LoadBalanceLayer::builder`].
pub struct LoadBalanceBuilder<D, Req, Res, T = Address> {
    discover: Arc<D>,
    endpoint: Endpoint,
    chooser: Option<Chooser>,
    settings: actor::Settings,
    members: members::Settings,
    caller: Option<CallerOrder>,
    keys: Keys<Req>,
    judge: Option<Arc<Judge<Res>>>,
    retries: Retries,
    retryable: Option<Arc<dyn Retryable<Req, Res>>>,
    runtime: Option<Runtime>,
    target: PhantomData<fn(T)>,
}

impl<D: Discover, Req, Res> LoadBalanceLayer<D, Req, Res> {
    /// Builds a layer over the instances that `discover` names for `endpoint`. An endpoint with an address is called there,
    /// whatever is discovered.
    pub fn builder(discover: Arc<D>, endpoint: Endpoint) -> LoadBalanceBuilder<D, Req, Res> {
        let members = members::Settings::default();
        let make_timeout = Duration::from_secs(5);
        let backoff = Bounds { base: Duration::from_millis(100), max: Duration::from_secs(30) };
        LoadBalanceBuilder {
            discover,
            endpoint,
            chooser: None,
            settings: actor::Settings { make_timeout, backoff },
            members,
            caller: None,
            keys: Keys { of: None, missing: MissingKey::default() },
            judge: None,
            retries: Retries::none(),
            retryable: None,
            runtime: None,
            target: PhantomData,
        }
    }
}

impl<D: Discover, Req, Res, T> LoadBalanceBuilder<D, Req, Res, T> {
    /// How to choose among the instances that have a service. Default: [`RoundRobin`].
    #[must_use]
    pub fn policy(mut self, policy: impl Policy) -> Self {
        self.chooser = Some(Chooser::policy(policy));
        self
    }

    /// Chooses by a load balancer instead of a policy. Its addresses are mapped back to instances of the view; those that
    /// have no service, are busy, or take no requests, are passed over by taking the next address. It gets no feedback but
    /// the changes of the view, from each service of the layer. An endpoint with an address bypasses it.
    #[must_use]
    pub fn load_balancer(mut self, balance: impl LoadBalance<D>) -> Self {
        self.chooser = Some(Chooser::load_balance(Arc::clone(&self.discover), balance));
        self
    }

    /// What a request is hashed by, for policies that hash. `None` leaves it to [`Endpoint::hash_key`]. Default: always
    /// that. HTTP requests may have it read from an extension or a header by [`HashKeys::key`](crate::balance::HashKeys::key).
    #[must_use]
    pub fn hash_key(mut self, key: impl Fn(&Req) -> Option<u64> + Send + Sync + 'static) -> Self {
        self.keys.of = Some(Arc::new(key));
        self
    }

    /// What it means for a policy that hashes if a request has no key. Default [`MissingKey::Error`].
    #[must_use]
    pub fn missing_key(mut self, missing: MissingKey) -> Self {
        self.keys.missing = missing;
        self
    }

    /// What an answer means for the instance that gave it, for policies that learn: without it each is a success, so one that
    /// fails fast (an HTTP 503) looks good. An error of the service is a failure in any case.
    #[must_use]
    pub fn outcome(mut self, of: impl Fn(&Res) -> Outcome + Send + Sync + 'static) -> Self {
        self.judge = Some(Arc::new(of));
        self
    }

    /// Gives requests to another instance if one failed them and `retryable` says that it is worth it, within the default
    /// rule of `retries` and their budget (see [`crate::retry`]; codes and methods are gRPC's and mean nothing here). An answer
    /// worth another attempt is a failure of its instance, unless [`outcome`](Self::outcome) says otherwise. Default: never.
    #[must_use]
    pub fn retries(mut self, retries: Retries, retryable: impl Retryable<Req, Res>) -> Self {
        self.retries = retries;
        self.retryable = Some(Arc::new(retryable));
        self
    }

    /// Has services made for the whole instance, its tags included, instead of its address alone. A service is made for
    /// what the instance is then; other tags or another weight make no new one.
    #[must_use]
    pub fn by_instance(self) -> LoadBalanceBuilder<D, Req, Res, Arc<Instance>> {
        LoadBalanceBuilder {
            discover: self.discover,
            endpoint: self.endpoint,
            chooser: self.chooser,
            settings: self.settings,
            members: self.members,
            caller: self.caller,
            keys: self.keys,
            judge: self.judge,
            retries: self.retries,
            retryable: self.retryable,
            runtime: self.runtime,
            target: PhantomData,
        }
    }

    /// Whether requests wait until some instance takes them. Default: no, they fail as soon as nothing is left to hope for;
    /// they wait for the first answer of the discovery, while services are being made of which none failed yet, and while
    /// all services are busy.
    #[must_use]
    pub fn wait_for_ready(mut self, wait: bool) -> Self {
        self.members.wait_for_ready = wait;
        self
    }

    /// The longest that a request waits for a service that takes it. Default: twice the make timeout, so that a request
    /// outlasts an instance for which none can be made and goes to another; if requests wait for ready, 30 s. Whoever wants
    /// a deadline for the whole call drops its future.
    #[must_use]
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.members.max_wait = Some(wait);
        self
    }

    /// How many requests may wait for a service at once; more fail with `QueueFull`. Default 1,024.
    #[must_use]
    pub fn queue_limit(mut self, requests: usize) -> Self {
        self.members.queue_limit = requests;
        self
    }

    /// How instances are judged by how requests to them went, and for how long one that fails too much gets none. Default:
    /// [`OutlierDetection::default`], gRFC A50's settings and five failures in a row. A request fails by
    /// its service's error, or as [`outcome`](Self::outcome) says; one that cannot be made a service for, or whose service fails
    /// without a request, is not ejected for it.
    #[must_use]
    pub fn outlier_detection(mut self, detection: OutlierDetection) -> Self {
        self.members.outlier_detection = Some(detection);
        self
    }

    /// Judges no instance: none is ever ejected.
    #[must_use]
    pub fn without_outlier_detection(mut self) -> Self {
        self.members.outlier_detection = None;
        self
    }

    /// How many requests an instance may have in flight at once, at least 1. One that has as many is passed over; what
    /// becomes of a request when all have is [`overflow`](Self::overflow). Default: any number.
    #[must_use]
    pub fn max_in_flight(mut self, requests: usize) -> Self {
        self.members.max_in_flight = Some(requests.max(1));
        self
    }

    /// How many requests may wait because all instances have as many in flight as they may; more fail with
    /// [`RouteError::Overloaded`](crate::members::RouteError::Overloaded). Default: the [`queue_limit`](Self::queue_limit),
    /// which bounds all that wait in any case.
    #[must_use]
    pub fn max_pending(mut self, requests: usize) -> Self {
        self.members.max_pending = Some(requests);
        self
    }

    /// What becomes of a request when all instances that it could go to have as many in flight as they may. Default
    /// [`Overflow::Wait`].
    #[must_use]
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.members.overflow = overflow;
        self
    }

    /// Adds a filter, after those that are there: which instances this caller uses at all, see
    /// [`shape`](crate::balance::shape). The others are not connected to, and no request goes there. Default: none. An endpoint
    /// with an address passes it by.
    #[must_use]
    pub fn filter(mut self, filter: impl Filter) -> Self {
        self.members.shaping = self.members.shaping.filter(filter);
        self
    }

    /// Adds a shaper, after those that are there: what shares instances get by their health and the time, see
    /// [`shape`](crate::balance::shape). Default: none. An endpoint with an address, and a
    /// [`load_balancer`](Self::load_balancer), pass it by.
    #[must_use]
    pub fn shaper(mut self, shaper: impl Shaper) -> Self {
        self.members.shaping = self.members.shaping.shaper(shaper);
        self
    }

    /// Sets when ejections and `held` are ignored, as too few instances are healthy. Default: with fewer than 50 %.
    #[must_use]
    pub fn panic_threshold(mut self, threshold: PanicThreshold) -> Self {
        self.members.shaping = self.members.shaping.panic_threshold(threshold);
        self
    }

    /// How many instances get a service before any request, if there are more. Default 100; at least 1. As
    /// [`ChannelBuilder::connect_ahead`](crate::channel::ChannelBuilder::connect_ahead).
    #[must_use]
    pub fn connect_ahead(mut self, instances: usize) -> Self {
        self.members.connect_ahead = instances.max(1);
        self
    }

    /// Uses as many instances as the demand asks for, instead of [`connect_ahead`](Self::connect_ahead): see [`Aperture`]. Default:
    /// none.
    ///
    /// It makes one service for each instance that it uses, however busy that is. A service that is to keep several connections
    /// to its instance does so itself (the [channel](crate::channel::ChannelBuilder::connections_per_instance) has a setting for it).
    ///
    /// A policy that connects on demand ([`Connects::OnDemand`](crate::balance::Connects): the hashes) may choose any
    /// instance at any time, so there is nothing to decide: with one an aperture is ignored, a warning says so, and
    /// [`Snapshot::aperture`](crate::members::Snapshot::aperture) is `None`.
    #[must_use]
    pub fn aperture(mut self, aperture: Aperture) -> Self {
        self.members.aperture = Some(aperture);
        self
    }

    /// In which order this caller prefers instances. Default: a random one. Give it the process's stable name, so that it
    /// prefers the same instances after a restart.
    #[must_use]
    pub fn caller(mut self, caller: CallerOrder) -> Self {
        self.caller = Some(caller);
        self
    }

    /// How long it may take until a service is made and ready for the first time; after that it is given up and tried
    /// again. Default 5 s. How long it is busy later is not bounded.
    #[must_use]
    pub fn make_timeout(mut self, timeout: Duration) -> Self {
        self.settings.make_timeout = timeout;
        self.members.default_wait = timeout.saturating_mul(2);
        self
    }

    /// How long an instance is left alone whose service could not be made, or failed (its `poll_ready`) before it was of any
    /// use: `base` after the first failure, doubling up to `max`, each time between half of it and all of it. Default
    /// 100 ms and 30 s. A new incarnation of the instance ends it. A service that answered a request, or lasted a second,
    /// is made anew at once.
    #[must_use]
    pub fn backoff(mut self, base: Duration, max: Duration) -> Self {
        self.settings.backoff = Bounds { base, max };
        self
    }

    /// The outside world, of which clock, randomness and spawning are used. Default: the real one.
    #[must_use]
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// The layer.
    pub fn build(self) -> LoadBalanceLayer<D, Req, Res, T> {
        LoadBalanceLayer { recipe: self }
    }

    /// The service itself, over what `make` makes. Must be called where its runtime can spawn: in a tokio runtime, for the
    /// default one. It starts to discover and to make services at once.
    pub fn service<M, S>(self, make: M) -> LoadBalanced<S, Req, Res>
    where
        M: Service<T, Response = S> + Clone + Send + 'static,
        M::Error: Into<BoxError>,
        M::Future: Send,
        S: Service<Req, Response = Res> + Send + 'static,
        S::Error: Into<BoxError>,
        T: Target,
        Req: 'static,
    {
        let runtime = self.runtime.unwrap_or_default();
        let bypass = self.endpoint.address.is_some();
        let chooser = match self.chooser {
            Some(Chooser::LoadBalance(_)) if bypass => None,
            chooser => chooser,
        };
        let chooser = chooser.unwrap_or_else(|| Chooser::policy(RoundRobin::new(&runtime)));
        let followed = follow_to_apply(self.discover, self.endpoint.clone(), &runtime);
        let caller = self.caller.unwrap_or_else(|| CallerOrder::new(runtime.random()));
        let mut members = self.members;
        if bypass {
            members.shaping = Shaping::default();
        }
        let shared = Shared::new(self.endpoint, members, caller, runtime, chooser);
        let answers =
            Answers { judge: self.judge, retryable: self.retryable, plan: Plan::new(&self.retries) };
        LoadBalanced::start(shared, self.settings, followed, self.keys, answers, make)
    }
}

impl<M, S, D, Req, Res, T> Layer<M> for LoadBalanceLayer<D, Req, Res, T>
where
    M: Service<T, Response = S> + Clone + Send + 'static,
    M::Error: Into<BoxError>,
    M::Future: Send,
    S: Service<Req, Response = Res> + Send + 'static,
    S::Error: Into<BoxError>,
    D: Discover,
    T: Target,
    Req: 'static,
{
    type Service = LoadBalanced<S, Req, Res>;

    /// As [`LoadBalanceBuilder::service`].
    fn layer(&self, make: M) -> LoadBalanced<S, Req, Res> {
        self.recipe.clone().service(make)
    }
}

impl<D, Req, Res, T> Clone for LoadBalanceBuilder<D, Req, Res, T> {
    fn clone(&self) -> Self {
        Self {
            discover: Arc::clone(&self.discover),
            endpoint: self.endpoint.clone(),
            chooser: self.chooser.clone(),
            settings: self.settings.clone(),
            members: self.members.clone(),
            caller: self.caller,
            keys: self.keys.clone(),
            judge: self.judge.clone(),
            retries: self.retries.clone(),
            retryable: self.retryable.clone(),
            runtime: self.runtime.clone(),
            target: PhantomData,
        }
    }
}

impl<D, Req, Res, T> Clone for LoadBalanceLayer<D, Req, Res, T> {
    fn clone(&self) -> Self {
        Self { recipe: self.recipe.clone() }
    }
}

impl<D, Req, Res, T> std::fmt::Debug for LoadBalanceBuilder<D, Req, Res, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadBalanceBuilder")
            .field("endpoint", &self.endpoint)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl<D, Req, Res, T> std::fmt::Debug for LoadBalanceLayer<D, Req, Res, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadBalanceLayer").field("endpoint", &self.recipe.endpoint).finish_non_exhaustive()
    }
}
