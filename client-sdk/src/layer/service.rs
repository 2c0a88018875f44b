//! One request: search for a service that takes it, give it, wait for the answer; and give it to another one if that was
//! bad and may be retried (`crate::retry`).

use std::{
    marker::PhantomData,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tower::{BoxError, Service};

use super::{
    LoadBalancedError, Target,
    actor::{self, Slots},
    error::TakesNoMore,
    slot::Slot,
};
use crate::{
    balance::{MissingKey, Outcome, PickContext},
    discover::Followed,
    members::{Driver, Member, Search, Shared, Snapshot},
    retry::{self, Again, Attempted, Failure, Given, NotTaken, Plan, Retryable, Sender},
    runtime::{BoxFuture, Task},
};

/// What an answer means for its instance.
pub(super) type Judge<Res> = dyn Fn(&Res) -> Outcome + Send + Sync;

type KeyOf<Req> = dyn Fn(&Req) -> Option<u64> + Send + Sync;

/// Where the hash keys of requests come from.
pub(super) struct Keys<Req> {
    pub(super) of: Option<Arc<KeyOf<Req>>>,
    pub(super) missing: MissingKey,
}

/// One service over the services of all instances. Cheap to clone. Made by a
/// [`LoadBalanceLayer`](super::LoadBalanceLayer) or its builder.
///
/// - Always ready: a request waits in the call, for as long as the builder says.
/// - A request goes to one service. One whose service turns out not to be ready any more goes to another, for it was not
///   given away yet; one that was given to a service is given to another only where
///   [`retries`](super::LoadBalanceBuilder::retries) are set and allow it.
/// - A service is chosen among those that are made and alive. One that is busy (its `poll_ready` is pending) is passed over; if
///   all are, the request waits until one is not.
/// - The policy is told of a success if the answer is `Ok` (or of what
///   [`outcome`](super::LoadBalanceBuilder::outcome) makes of it), of a failure if it is `Err`, and of neither if the request is
///   given up. A request is in flight until its future has ended: what goes on after that (a streamed body) is not counted.
/// - A service that is ready is kept so until it is called, with whatever it reserved for that: limit what all instances
///   share outside of this, not in each service.
/// - With the last clone dropped, and the last answer given, all services are dropped.
///
/// `S` is the service that is made for each instance, `Req` what it is asked, `Res` what it answers.
pub struct LoadBalanced<S, Req, Res> {
    inner: Arc<Inner<S, Req, Res>>,
}

struct Inner<S, Req, Res> {
    shared: Arc<Shared<Slot<S>>>,
    keys: Keys<Req>,
    answers: Answers<Req, Res>,
    _driver: Task,
}

/// What answers mean, and what becomes of bad ones.
pub(super) struct Answers<Req, Res> {
    pub(super) judge: Option<Arc<Judge<Res>>>,
    pub(super) retryable: Option<Arc<dyn Retryable<Req, Res>>>,
    pub(super) plan: Plan,
}

/// One request, as it is given to services.
struct Giving<'a, Req, Res> {
    answers: &'a Answers<Req, Res>,
    /// For the next attempt. `None`: there can be none.
    request: Mutex<Option<Req>>,
    max_attempts: u32,
}

impl<S: Send + 'static, Req, Res> LoadBalanced<S, Req, Res> {
    /// What it knows and does right now.
    pub fn snapshot(&self) -> Snapshot {
        self.inner.shared.snapshot()
    }

    /// Waits until things look as asked, for example until some instances have a service. Looks again whenever the view, an
    /// instance's standing or its state changed; counts of requests alone, and being busy, wake nobody.
    pub async fn wait_until(&self, looks: impl FnMut(&Snapshot) -> bool) -> Snapshot {
        self.inner.shared.wait_until(looks).await
    }

    pub(super) fn start<M, T>(
        shared: Shared<Slot<S>>,
        settings: actor::Settings,
        followed: Followed,
        keys: Keys<Req>,
        answers: Answers<Req, Res>,
        make: M,
    ) -> Self
    where
        M: Service<T, Response = S> + Clone + Send + 'static,
        M::Error: Into<BoxError>,
        M::Future: Send,
        S: Service<Req>,
        S::Error: Into<BoxError>,
        T: Target,
        Req: 'static,
    {
        let shared = Arc::new(shared);
        let slots = Slots {
            make: Arc::new(Mutex::new(make)),
            settings,
            runtime: shared.runtime.clone(),
            room: Arc::clone(&shared.room),
            meters: Arc::clone(&shared.meters),
            kinds: PhantomData,
        };
        let driver = Driver::new(Arc::clone(&shared), slots, followed);
        let driver = shared.runtime.spawn(driver.run());
        Self { inner: Arc::new(Inner { shared, keys, answers, _driver: driver }) }
    }
}

impl<S, Req, Res> Service<Req> for LoadBalanced<S, Req, Res>
where
    S: Service<Req, Response = Res> + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    Req: Send + 'static,
    Res: Send + 'static,
{
    type Response = Res;
    type Error = LoadBalancedError;
    type Future = BoxFuture<'static, Result<Res, LoadBalancedError>>;

    /// Always ready: waiting for an instance happens in the call.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LoadBalancedError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        // Keeps the driver and its services alive while the call is made.
        let inner = Arc::clone(&self.inner);
        Box::pin(async move { inner.run(request).await })
    }
}

impl<S, Req, Res> Inner<S, Req, Res>
where
    S: Service<Req, Response = Res> + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    Req: Send + 'static,
    Res: Send + 'static,
{
    async fn run(&self, request: Req) -> Result<Res, LoadBalancedError> {
        let mut search = Search::new(Arc::clone(&self.shared), self.context(&request), None);
        let plan = &self.answers.plan;
        let mut course = plan.course("");
        if self.answers.retryable.as_ref().is_some_and(|retryable| retryable.is_idempotent(&request)) {
            course.set_idempotent();
        }
        let max_attempts = course.max_attempts();
        let giving = Giving { answers: &self.answers, request: Mutex::new(Some(request)), max_attempts };
        retry::run(&mut search, &giving, plan, course).await?
    }

    fn context(&self, request: &Req) -> PickContext {
        let shared = &self.shared;
        let key = self.keys.of.as_ref().and_then(|of| of(request)).or(shared.endpoint.hash_key);
        let hash_key = match self.keys.missing {
            MissingKey::Random if key.is_none() => Some(shared.runtime.random()),
            _ => key,
        };
        PickContext { hash_key, ..PickContext::new() }.now(shared.runtime.now())
    }
}

impl<Req: 'static, Res: 'static> Giving<'_, Req, Res> {
    fn request(&self) -> MutexGuard<'_, Option<Req>> {
        self.request.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an answer means: for whether there is to be another attempt, and for the instance.
    fn judge(&self, answer: Result<&Res, &BoxError>) -> (Option<Failure>, Outcome) {
        let again = self.answers.retryable.as_ref().map(|of| of.judge(answer.map_err(|error| &**error)));
        let failure = match again {
            None | Some(Again::No) => None,
            Some(Again::Yes) => Some(Failure::Judged(None)),
            Some(Again::After(pause)) => Some(Failure::Judged(Some(pause))),
        };
        let outcome = match (answer, &self.answers.judge) {
            (Ok(response), Some(of)) => of(response),
            (Ok(_), None) if failure.is_none() => Outcome::Success,
            _ => Outcome::Failure,
        };
        (failure, outcome)
    }
}

impl<S, Req, Res> Sender<Slot<S>> for Giving<'_, Req, Res>
where
    S: Service<Req, Response = Res> + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    Req: Send + 'static,
    Res: Send + 'static,
{
    type Answer = Result<Res, LoadBalancedError>;

    async fn attempt(&self, given: Given<Slot<S>>) -> Attempted<Self::Answer> {
        let Given { call, member: slot, earlier, .. } = given;
        let request = self.request().take().expect("only what is repeatable is given once more");
        let copy = match &self.answers.retryable {
            Some(retryable) if earlier + 1 < self.max_attempts => retryable.copy(&request),
            _ => None,
        };
        let (answer, in_flight) = match slot.call(request, call) {
            Ok(called) => called,
            Err(back) => {
                *self.request() = Some(back);
                // It was chosen a moment before the instance began to drain, and stays chosen a moment longer.
                return Attempted::NotTaken(if slot.place.is_shut() {
                    NotTaken::Member(Arc::new(TakesNoMore(slot.address().clone())))
                } else {
                    NotTaken::Unready
                });
            }
        };
        *self.request() = copy;
        let answer = answer.await.map_err(Into::into);
        slot.answered();
        let (failure, outcome) = self.judge(answer.as_ref());
        in_flight.finish(outcome);
        let of = |source| LoadBalancedError::Service { address: slot.address().clone(), source };
        Attempted::Ended(answer.map_err(of), failure)
    }

    fn is_repeatable(&self) -> bool {
        self.request().is_some()
    }

    fn is_repeatable_beside(&self) -> bool {
        self.request().is_some()
    }

    fn too_slow(&self, member: &Slot<S>, timeout: Duration) -> Self::Answer {
        Err(LoadBalancedError::TooSlow { address: member.address().clone(), timeout })
    }
}

impl<Req> Clone for Keys<Req> {
    fn clone(&self) -> Self {
        Self { of: self.of.clone(), missing: self.missing }
    }
}

impl<S, Req, Res> Clone for LoadBalanced<S, Req, Res> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<S, Req, Res> std::fmt::Debug for LoadBalanced<S, Req, Res> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadBalanced").field("endpoint", &self.inner.shared.endpoint).finish_non_exhaustive()
    }
}
