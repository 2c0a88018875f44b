//! Services in the making, and when the next one may be begun.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tower::{BoxError, MakeService, Service};

use super::{
    guarded::{Panicked, discard, guarded},
    member::Problem,
};
use crate::{
    backoff::Bounds,
    members::SharedError,
    runtime::{BoxFuture, Runtime},
};

type Future<S> = BoxFuture<'static, Result<S, BoxError>>;

pub(super) struct Making<MS, Target, S> {
    maker: MS,
    target: Target,
    timeout: Duration,
    backoff: Bounds,
    /// Decided, and not begun.
    wished: usize,
    /// Each with when it must be done.
    under_way: Vec<(Future<S>, Duration)>,
    /// In a row.
    failures: u32,
    failed_at: Duration,
    /// None is begun before.
    not_before: Option<Duration>,
    /// Of the last failure, until a service is ready.
    problem: Option<SharedError>,
}

/// What came of one.
pub(super) enum Made<S> {
    /// It is to be ready until then.
    Service(S, Duration),
    Failed(Problem),
}

impl<MS, Target, S> Making<MS, Target, S> {
    pub(super) fn new(maker: MS, target: Target, timeout: Duration, backoff: Bounds) -> Self {
        Self {
            maker,
            target,
            timeout,
            backoff,
            wished: 0,
            under_way: Vec::new(),
            failures: 0,
            failed_at: Duration::ZERO,
            not_before: None,
            problem: None,
        }
    }

    /// How many are wished or in the making.
    pub(super) fn coming(&self) -> usize {
        self.wished + self.under_way.len()
    }

    pub(super) fn wish(&mut self, more: usize) {
        self.wished += more;
    }

    /// Takes a wish back, or gives up one in the making. Says whether there was one.
    pub(super) fn give_up_one(&mut self) -> bool {
        if self.wished > 0 {
            self.wished -= 1;
            return true;
        }
        self.under_way.pop().map(discard).is_some()
    }

    /// Why there may be no service, if the last one that was made failed.
    pub(super) fn problem(&self) -> Option<&SharedError> {
        self.problem.as_ref()
    }

    /// One was ready: nobody is to fail of what was wrong before.
    pub(super) fn succeeded(&mut self) {
        (self.not_before, self.problem) = (None, None);
    }

    /// One that was made since the last failure was of use: the next wait is a short one again.
    pub(super) fn settled(&mut self) {
        self.failures = 0;
    }

    pub(super) fn failed_at(&self) -> Duration {
        self.failed_at
    }

    /// One could not be made, or failed before it was of use: the next one has to wait.
    pub(super) fn failed(&mut self, problem: Problem, now: Duration, runtime: &Runtime) {
        // Several are made at once: those that fail while the next one has to wait anyway are one failure.
        if self.not_before.is_none_or(|at| at <= now) {
            self.failures = self.failures.saturating_add(1);
            self.not_before = Some(now.saturating_add(self.backoff.pause(self.failures, runtime)));
        }
        self.failed_at = now;
        self.problem = Some(Arc::new(problem));
    }

    /// When something is due that nobody else wakes for.
    pub(super) fn next_look(&self, now: Duration) -> Option<Duration> {
        let begin = self.not_before.filter(|at| self.wished > 0 && *at > now);
        self.under_way.iter().map(|(_, until)| *until).chain(begin).min()
    }
}

impl<MS, Target, S> Making<MS, Target, S> {
    /// Begins what is wished and may be begun. Says what is wrong with the maker, if anything is.
    pub(super) fn begin<Req>(&mut self, now: Duration, cx: &mut Context<'_>) -> Result<(), Problem>
    where
        MS: MakeService<Target, Req, Service = S>,
        MS::MakeError: Into<BoxError>,
        MS::Future: Send + 'static,
        S: Service<Req>,
        Target: Clone,
    {
        while self.wished > 0 && self.not_before.is_none_or(|at| at <= now) {
            match guarded(|| self.maker.poll_ready(cx)) {
                Some(Poll::Pending) => return Ok(()),
                Some(Poll::Ready(Ok(()))) => {}
                Some(Poll::Ready(Err(error))) => {
                    self.wished -= 1;
                    return Err(Problem::Make(error.into()));
                }
                None => {
                    self.wished -= 1;
                    return Err(Panicked.into());
                }
            }
            self.wished -= 1;
            let (maker, target) = (&mut self.maker, &self.target);
            let making = guarded(|| maker.make_service(target.clone())).ok_or(Panicked)?;
            let making = async move { making.await.map_err(Into::into) };
            self.under_way.push((Box::pin(making), now.saturating_add(self.timeout)));
        }
        Ok(())
    }

    /// The next one of which something came.
    pub(super) fn poll_made(&mut self, now: Duration, cx: &mut Context<'_>) -> Option<Made<S>> {
        for index in 0..self.under_way.len() {
            let (making, until) = self.under_way.get_mut(index)?;
            let until = *until;
            let made = match guarded(|| making.as_mut().poll(cx)) {
                Some(Poll::Ready(Ok(service))) => Made::Service(service, until),
                Some(Poll::Ready(Err(error))) => Made::Failed(Problem::Make(error)),
                Some(Poll::Pending) if until > now => continue,
                Some(Poll::Pending) => Made::Failed(Problem::Timeout(self.timeout)),
                None => Made::Failed(Panicked.into()),
            };
            discard(self.under_way.swap_remove(index));
            return Some(made);
        }
        None
    }
}
