//! The pool that tower had until 0.4, over tower 0.5: it samples how often it is asked and not ready.
//!
//! Owns its services, in a [`ReadyCache`], and is driven by nobody but whoever polls it. Does not own time: with no poll
//! nothing happens. What it keeps of the original, and what is mended, is in `docs/pool.md`.
//!
//! ```text
//!            Pending, estimate > high                    made
//!   normal ---------------------------> one is wished ---------> normal
//!     |  ^------------------------------------'
//!     |          Ready: cancels the wish
//!     | Ready, estimate < low                next poll
//!     +-----------------------> one too many ---------> the last added is removed, normal
//! ```

mod builder;
mod served;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tower::{BoxError, MakeService, Service, load::Load, ready_cache::ReadyCache};

pub use self::builder::Builder;
use self::served::Served;
use super::{
    error::PoolError,
    steady::{Panicked, discard, guarded, two_of},
};

/// A pool of services that grows when it is too often not ready, and shrinks when it is too often ready. See
/// [`Builder`] for what that means.
///
/// - The first service is made at the first poll. One that fails leaves; the last one that does so is replaced at once.
/// - A request goes to the less loaded of two that are ready, drawn at random.
/// - Making fails a caller only if there is no service. The next poll tries again. A maker that panics fails like one that
///   returns an error, and a service that panics when it is asked whether it is ready like one that fails.
/// - A service that fails in the very poll that made it could not be made: with no other one that poll fails, and makes no
///   further one, so that no poll goes on for ever.
/// - With no limit it grows without one: set [`Builder::max_services`].
/// - It is not `Clone`, and moves only when it is polled. Under steady demand it may cycle, for polls are no measure of demand;
///   [`SteadyPool`](super::SteadyPool) does not.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// use client_sdk::pool::Builder;
/// use tower::{Service, ServiceExt, load::Constant, service_fn};
///
/// let make = service_fn(|greeting: &'static str| async move {
///     let greet = move |name: &'static str| async move { Ok::<_, std::io::Error>(format!("{greeting} {name}")) };
///     Ok::<_, std::io::Error>(Constant::new(service_fn(greet), 0))
/// });
/// let mut pool = Builder::new().max_services(4).build(make, "hello")?;
/// assert_eq!(pool.ready().await?.call("caller").await?, "hello caller");
/// # Ok(()) }
/// ```
pub struct Pool<MS, Target, Req>
where
    MS: MakeService<Target, Req>,
{
    maker: MS,
    target: Target,
    making: Option<Pin<Box<MS::Future>>>,
    services: ReadyCache<u64, Served<MS::Service>, Req>,
    /// The services' names, in the order in which they were added.
    order: Vec<u64>,
    /// The place among those that are ready of the one that was promised to the caller.
    chosen: Option<usize>,
    level: Level,
    estimate: f64,
    made: u64,
    settings: Builder,
    rng: fastrand::Rng,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// There is one service too many.
    Low,
    Normal,
    /// There is one service too few.
    High,
}

pin_project_lite::pin_project! {
    /// A request that a classic [`Pool`] gave to a service.
    pub struct ResponseFuture<F> {
        #[pin]
        inner: Option<F>,
    }
}

impl<MS, Target, Req> Pool<MS, Target, Req>
where
    MS: MakeService<Target, Req>,
    MS::Service: Load,
    MS::MakeError: Into<BoxError>,
    MS::Error: Into<BoxError>,
    Target: Clone,
{
    /// A classic pool with the defaults of [`Builder`].
    pub fn new(make_service: MS, target: Target) -> Self {
        Builder::new().assemble(make_service, target)
    }
}

impl<MS, Target, Req> Pool<MS, Target, Req>
where
    MS: MakeService<Target, Req>,
{
    fn of(maker: MS, target: Target, settings: Builder, rng: fastrand::Rng) -> Self {
        Self {
            maker,
            target,
            making: None,
            services: ReadyCache::default(),
            order: Vec::new(),
            chosen: None,
            level: Level::Normal,
            estimate: settings.initial,
            made: 0,
            settings,
            rng,
        }
    }

    /// How many services there are, ready or not. One in the making is none yet.
    pub fn services(&self) -> usize {
        self.order.len()
    }

    /// How often it was polled and not ready: 0 is never, 1 always, newer polls weigh more.
    pub fn estimate(&self) -> f64 {
        self.estimate
    }
}

impl<MS, Target, Req> Pool<MS, Target, Req>
where
    MS: MakeService<Target, Req>,
    MS::Service: Load,
    MS::MakeError: Into<BoxError>,
    MS::Error: Into<BoxError>,
    Target: Clone,
{
    /// Makes, adds and removes what is due, and finds a service that is ready.
    fn poll_services(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PoolError>> {
        loop {
            let (made, mut failure) = (self.made, None);
            self.poll_size(cx)?;
            while let Poll::Ready(Err(failed)) = self.services.poll_pending(cx) {
                tracing::debug!(%failed, "a service of the pool failed");
                failure = Some(failed.1);
            }
            loop {
                if let Some(index) = self.chosen.take() {
                    match self.services.check_ready_index(cx, index) {
                        Ok(true) => {
                            self.chosen = Some(index);
                            return Poll::Ready(Ok(()));
                        }
                        Ok(false) => {}
                        Err(failed) => {
                            tracing::debug!(%failed, "a service of the pool failed");
                            failure = Some(failed.1);
                        }
                    }
                }
                self.chosen = self.choose();
                if self.chosen.is_none() {
                    break;
                }
            }
            // If some failed just now, what is due has changed.
            if !self.forget_who_left() {
                return Poll::Pending;
            }
            // But for one that was made just now no other is: if all fail at once that would never end.
            if self.made > made
                && self.order.is_empty()
                && let Some(error) = failure
            {
                return Poll::Ready(self.cannot_make(error));
            }
        }
    }

    /// Makes a service if one is due, adds the one that was made, or removes one.
    fn poll_size(&mut self, cx: &mut Context<'_>) -> Result<(), PoolError> {
        self.forget_who_left();
        if self.making.is_none() && self.is_one_due() {
            match guarded(|| self.maker.poll_ready(cx)) {
                Some(Poll::Pending) => return Ok(()),
                Some(Poll::Ready(Err(error))) => return self.cannot_make(error.into()),
                Some(Poll::Ready(Ok(()))) => {}
                None => return self.cannot_make(Panicked.into()),
            }
            tracing::debug!(services = self.order.len(), estimate = self.estimate, "makes a service");
            let (maker, target) = (&mut self.maker, &self.target);
            match guarded(|| maker.make_service(target.clone())) {
                Some(making) => self.making = Some(Box::pin(making)),
                None => return self.cannot_make(Panicked.into()),
            }
        }
        if let Some(mut making) = self.making.take() {
            // Whatever came of it: a future that has ended, or panicked, is not polled again.
            let made = guarded(|| making.as_mut().poll(cx));
            if matches!(made, Some(Poll::Pending)) {
                self.making = Some(making);
                return Ok(());
            }
            discard(making);
            match made {
                Some(Poll::Ready(Ok(service))) => self.add(service),
                Some(Poll::Ready(Err(error))) => return self.cannot_make(error.into()),
                _ => return self.cannot_make(Panicked.into()),
            }
        } else if self.level == Level::Low
            && self.order.len() > 1
            && let Some(last) = self.order.pop()
        {
            tracing::debug!(services = self.order.len(), estimate = self.estimate, "removes the last added");
            self.level = Level::Normal;
            self.services.evict(&last);
            // Removing one moves others: the one that was promised may be elsewhere now.
            self.chosen = None;
        }
        Ok(())
    }

    fn is_one_due(&self) -> bool {
        let limit = self.settings.max.unwrap_or(usize::MAX);
        self.order.is_empty() || (self.level == Level::High && self.order.len() < limit)
    }

    fn add(&mut self, service: MS::Service) {
        self.level = Level::Normal;
        self.order.push(self.made);
        self.services.push(self.made, Served(service));
        self.made += 1;
    }

    /// Fails nobody while there is a service. The wish has to arise anew.
    fn cannot_make(&mut self, error: BoxError) -> Result<(), PoolError> {
        tracing::debug!(services = self.order.len(), %error, "no service could be made");
        self.level = Level::Normal;
        if self.order.is_empty() { Err(PoolError::Make(error.into())) } else { Ok(()) }
    }

    /// Says whether somebody left.
    fn forget_who_left(&mut self) -> bool {
        let (before, services) = (self.order.len(), &self.services);
        self.order.retain(|id| services.pending_contains(id) || services.get_ready(id).is_some());
        self.order.len() < before
    }

    /// The less loaded of two.
    fn choose(&mut self) -> Option<usize> {
        let service = |index| self.services.get_ready_index(index).map(|(_, service)| service);
        match self.services.ready_len() {
            0 => None,
            1 => Some(0),
            ready => {
                let (one, other) = two_of(&mut self.rng, ready);
                let is_other_less = service(one)
                    .zip(service(other))
                    .is_some_and(|(one, other)| !one.is_no_more_loaded_than(other));
                Some(if is_other_less { other } else { one })
            }
        }
    }
}

impl<MS, Target, Req> Service<Req> for Pool<MS, Target, Req>
where
    MS: MakeService<Target, Req>,
    MS::Service: Load,
    MS::MakeError: Into<BoxError>,
    MS::Error: Into<BoxError>,
    Target: Clone,
{
    type Response = MS::Response;
    type Error = PoolError;
    type Future = ResponseFuture<<MS::Service as Service<Req>>::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PoolError>> {
        let alpha = self.settings.urgency;
        if self.poll_services(cx)?.is_ready() {
            self.estimate *= 1.0 - alpha;
            self.level = Level::Normal;
            if self.estimate < self.settings.low {
                self.level = Level::Low;
                if self.order.len() > 1 {
                    // Or the next one would be removed right after it.
                    self.estimate = self.settings.initial;
                }
            }
            return Poll::Ready(Ok(()));
        }
        if self.making.is_none() {
            self.estimate = alpha + (1.0 - alpha) * self.estimate;
            self.level = Level::Normal;
            if self.estimate > self.settings.high {
                self.level = Level::High;
                // However long the limit forbids to make one, some polls that are ready are to bring it down again.
                self.estimate = self.settings.high;
                return self.poll_services(cx);
            }
        }
        Poll::Pending
    }

    /// Gives the request to the service that `poll_ready` found. Without that the answer is [`PoolError::NotReady`].
    fn call(&mut self, request: Req) -> Self::Future {
        let chosen = self.chosen.take();
        // A service that was called always gives its future.
        let given = chosen.map(|index| self.services.call_ready_index(index, request).into_inner());
        ResponseFuture { inner: given.and_then(Result::ok) }
    }
}

impl<F, Res, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Res, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Res, PoolError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(inner) = self.project().inner.as_pin_mut() else {
            return Poll::Ready(Err(PoolError::NotReady));
        };
        Poll::Ready(ready!(inner.poll(cx)).map_err(|error| PoolError::Service(error.into())))
    }
}

impl<MS, Target, Req> fmt::Debug for Pool<MS, Target, Req>
where
    MS: MakeService<Target, Req>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("services", &self.order.len())
            .field("making", &self.making.is_some())
            .field("estimate", &self.estimate)
            .field("level", &self.level)
            .finish_non_exhaustive()
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
