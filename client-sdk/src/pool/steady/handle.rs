//! The pool as a tower service, and one request.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::sync::{Notify, watch};
use tower::{BoxError, MakeService, Service, load::Load};

use super::{
    builder::{Settings, SteadyBuilder},
    member::Total,
    meters::Meters,
    queue::{Given, Queue},
    snapshot::{Counts, Shown, SteadySnapshot},
    worker::Worker,
};
use crate::{
    pool::error::PoolError,
    runtime::{BoxFuture, Runtime, Task},
    sizing::Sizing,
};

/// A pool that holds as many services as the demand asks for. Cheap to clone.
///
/// - Always ready: a request waits in the call, in one queue for all clones, and goes to the less loaded of two services that
///   are ready, drawn at random.
/// - The demand is what services have in flight and what waits, in services' worth, averaged over time: how often anybody polls
///   makes no difference. See [`sizing`](crate::sizing).
/// - A service that is not needed any more gets no new request, finishes what it has, and is dropped then.
/// - A service that fails leaves, and is replaced if it is missed. What cannot be made is tried again with backoff; requests fail
///   of it only if there is no service at all.
/// - A request is in flight until its future has ended: what goes on after that (a streamed body) is not counted.
/// - A service that is ready is kept so until it is called, with whatever it reserved for that; it is asked again once a second.
/// - A caller may go away at any moment. A panic of a service ends that service, and the request.
/// - With the last clone dropped, and the last answer given, all services are dropped.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// use client_sdk::pool::SteadyPool;
/// use tower::{Service, load::Constant, service_fn};
///
/// let make = service_fn(|greeting: &'static str| async move {
///     let greet = move |name: &'static str| async move { Ok::<_, std::io::Error>(format!("{greeting} {name}")) };
///     Ok::<_, std::io::Error>(Constant::new(service_fn(greet), 0))
/// });
/// let mut pool = SteadyPool::builder(make, "hello").limit(8).max(4).build()?;
/// assert_eq!(pool.call("caller").await?, "hello caller");
/// # Ok(()) }
/// ```
///
/// `S` is the service that is made, `Req` what it is asked.
pub struct SteadyPool<S: Service<Req>, Req> {
    inner: Arc<Inner<S::Future, Req>>,
}

struct Inner<F, Req> {
    shared: Arc<Shared<F, Req>>,
    _worker: Task,
}

/// What requests and the worker share.
pub(super) struct Shared<F, Req> {
    pub(super) queue: Queue<F, Req>,
    pub(super) total: Arc<Total>,
    pub(super) shown: watch::Sender<Shown>,
    pub(super) meters: Meters,
    pub(super) runtime: Runtime,
}

impl<S: Service<Req>, Req> SteadyPool<S, Req> {
    /// A pool of the services that `make_service` makes for `target`, with the defaults of [`SteadyBuilder`]. Call it within a tokio
    /// runtime.
    pub fn new<MS, Target>(make_service: MS, target: Target) -> Self
    where
        MS: MakeService<Target, Req, Service = S> + Send + 'static,
        MS::MakeError: Into<BoxError>,
        MS::Future: Send + 'static,
        S: Load + Send + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        Target: Clone + Send + 'static,
        Req: Send + 'static,
    {
        let (settings, runtime) = (Settings::default(), Runtime::default());
        let sizing = Sizing::with_defaults(runtime.now());
        Self::start(make_service, target, &settings, sizing, &runtime)
    }

    /// Builds a pool of the services that `make_service` makes for `target`.
    pub fn builder<MS, Target>(make_service: MS, target: Target) -> SteadyBuilder<MS, Target, Req>
    where
        MS: MakeService<Target, Req, Service = S>,
    {
        SteadyBuilder::new(make_service, target)
    }

    /// What it is and does right now.
    pub fn snapshot(&self) -> SteadySnapshot {
        let shared = &self.inner.shared;
        let (waiting, now) = (shared.queue.len(), shared.runtime.now());
        SteadySnapshot::of(&shared.shown.borrow(), &shared.total, waiting, now)
    }

    /// Waits until things look as asked, for example until some services are ready. Looks again whenever services come, go or
    /// begin to drain; counts of requests and the estimate alone wake nobody.
    pub async fn wait_until(&self, mut looks: impl FnMut(&SteadySnapshot) -> bool) -> SteadySnapshot {
        let mut changes = self.inner.shared.shown.subscribe();
        loop {
            changes.mark_unchanged();
            let now = self.snapshot();
            if looks(&now) {
                return now;
            }
            // The sender is kept by whoever waits here, so there is always a next change.
            if changes.changed().await.is_err() {
                return now;
            }
        }
    }

    pub(super) fn start<MS, Target>(
        maker: MS,
        target: Target,
        settings: &Settings,
        sizing: Sizing,
        runtime: &Runtime,
    ) -> Self
    where
        MS: MakeService<Target, Req, Service = S> + Send + 'static,
        MS::MakeError: Into<BoxError>,
        MS::Future: Send + 'static,
        S: Load + Send + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        Target: Clone + Send + 'static,
        Req: Send + 'static,
    {
        let work = Arc::new(Notify::new());
        let (services, counts) = (Vec::new(), Counts::default());
        let shown = Shown { sizing, services, making: 0, counts, last: None, problem: None };
        let shared = Arc::new(Shared {
            queue: Queue::new(settings.queue_limit, Arc::clone(&work)),
            total: Arc::new(Total::new(work)),
            shown: watch::Sender::new(shown),
            meters: Meters::new(&settings.name),
            runtime: runtime.clone(),
        });
        let worker = Worker::new(maker, target, settings, sizing, Arc::clone(&shared));
        Self { inner: Arc::new(Inner { shared, _worker: runtime.spawn(worker.run()) }) }
    }
}

impl<S, Req> Service<Req> for SteadyPool<S, Req>
where
    S: Service<Req>,
    S::Response: 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    Req: Send + 'static,
{
    type Response = S::Response;
    type Error = PoolError;
    type Future = BoxFuture<'static, Result<S::Response, PoolError>>;

    /// Always ready: waiting for a service happens in the call.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), PoolError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        // Keeps the worker and its services alive while the call is made.
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            let Given { future, in_flight } = inner.shared.given(request).await?;
            let answer = future.await;
            in_flight.answered();
            answer.map_err(|error| PoolError::Service(error.into()))
        })
    }
}

impl<F, Req> Shared<F, Req> {
    /// Waits until a service was given the request.
    async fn given(&self, request: Req) -> Result<Given<F>, PoolError> {
        let given = match self.queue.enter(request, self.runtime.now()) {
            Ok(mut place) => (&mut place.answer).await.unwrap_or(Err(PoolError::Ended)),
            Err(refused) => Err(refused),
        };
        given.inspect_err(|refused| self.meters.refused(refused))
    }
}

impl<S: Service<Req>, Req> Clone for SteadyPool<S, Req> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<S: Service<Req>, Req> fmt::Debug for SteadyPool<S, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = &self.inner.shared;
        f.debug_struct("SteadyPool").field("name", &shared.meters.name()).finish_non_exhaustive()
    }
}
