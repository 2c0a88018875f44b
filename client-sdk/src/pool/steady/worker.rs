//! The one who owns the services: makes them, gives them requests, drains them, as the sizing decides.
//!
//! It takes a turn whenever anything may have changed: a request came, ended or was given up, a service or the maker woke
//! it, or a time has come. A turn does all that can be done, and waits for nothing.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tower::{BoxError, MakeService, Service, load::Load};

use super::{
    builder::Settings,
    guarded::discard,
    handle::Shared,
    making::{Made, Making},
    member::{Member, Problem},
    queue::{Given, Waiting},
    snapshot::{Counts, ServiceState},
    two_of,
};
use crate::{
    pool::error::PoolError,
    sizing::{Decision, SizeChange, Sizing, Usage},
};

/// How often a service that is ready, and has nothing to do, is asked whether it still is. tower has no other way to know.
const LOOK: Duration = Duration::from_secs(1);

pub(super) struct Worker<MS, Target, S: Service<Req>, Req> {
    making: Making<MS, Target, S>,
    /// In the order in which they were made.
    members: Vec<Member<S>>,
    draining: Vec<Member<S>>,
    sizing: Sizing,
    /// How many services there are to be. Fewer are there, or to come, where some failed and it is not known yet whether they
    /// are missed.
    decided: usize,
    last: Option<SizeChange>,
    limit: usize,
    max_wait: Duration,
    make_timeout: Duration,
    wait_for_ready: bool,
    looked_at: Duration,
    counts: Counts,
    /// Whether services came, went, or changed what they do since that was shown.
    changed: bool,
    rng: fastrand::Rng,
    shared: Arc<Shared<S::Future, Req>>,
}

impl<MS, Target, S: Service<Req>, Req> Worker<MS, Target, S, Req> {
    pub(super) fn new(
        maker: MS,
        target: Target,
        settings: &Settings,
        sizing: Sizing,
        shared: Arc<Shared<S::Future, Req>>,
    ) -> Self {
        Self {
            making: Making::new(maker, target, settings.make_timeout, settings.backoff),
            members: Vec::new(),
            draining: Vec::new(),
            sizing,
            decided: 0,
            last: None,
            limit: settings.limit,
            max_wait: settings.max_wait,
            make_timeout: settings.make_timeout,
            wait_for_ready: settings.wait_for_ready,
            looked_at: shared.runtime.now(),
            counts: Counts::default(),
            changed: true,
            rng: shared.runtime.fork_rng(),
            shared,
        }
    }
}

impl<MS, Target, S, Req> Worker<MS, Target, S, Req>
where
    MS: MakeService<Target, Req, Service = S>,
    MS::MakeError: Into<BoxError>,
    MS::Future: Send + 'static,
    S: Service<Req> + Load,
    S::Error: Into<BoxError>,
    Target: Clone,
{
    pub(super) async fn run(mut self) {
        let total = Arc::clone(&self.shared.total);
        loop {
            let until = poll_fn(|cx| Poll::Ready(self.turn(cx))).await;
            let mut waits = false;
            // Whoever wakes the task, for whatever reason, brings the next turn.
            let woken =
                poll_fn(
                    |_| if std::mem::replace(&mut waits, true) { Poll::Ready(()) } else { Poll::Pending },
                );
            tokio::select! {
                biased;
                () = total.work.notified() => {}
                () = woken => {}
                () = tokio::time::sleep(until) => {}
            }
        }
    }

    /// Does all that can be done now. Says how long nothing else will be, if nobody wakes us.
    fn turn(&mut self, cx: &mut Context<'_>) -> Duration {
        let now = self.shared.runtime.now();
        self.bury();
        self.look_again(now);
        loop {
            self.make(now, cx);
            self.ask(now, cx);
            self.dispatch(now, cx);
            if !self.resize(now) {
                break;
            }
        }
        self.refuse(now);
        self.show(now);
        self.next_look(now)
    }

    /// Drops those that have finished what they had.
    fn bury(&mut self) {
        for index in (0..self.draining.len()).rev() {
            if self.draining.get(index).is_some_and(|member| member.in_flight() == 0) {
                self.draining.swap_remove(index).end();
                self.changed = true;
            }
        }
    }

    /// Once in a while those that are ready are asked again.
    fn look_again(&mut self, now: Duration) {
        if now.saturating_sub(self.looked_at) >= LOOK {
            self.looked_at = now;
            self.members.iter_mut().for_each(|member| member.free = false);
            let failed_at = self.making.failed_at();
            if self.members.iter().any(|member| member.made_at >= failed_at && member.was_of_use(now)) {
                self.making.settled();
            }
        }
    }

    fn make(&mut self, now: Duration, cx: &mut Context<'_>) {
        loop {
            if let Err(problem) = self.making.begin(now, cx) {
                self.not_made(problem, now);
                continue;
            }
            match self.making.poll_made(now, cx) {
                Some(Made::Service(service, warm_by)) => {
                    self.members.push(Member::new(self.counts.made, service, now, warm_by));
                    self.counts.made += 1;
                    self.shared.meters.made.increment(1);
                }
                Some(Made::Failed(problem)) => self.not_made(problem, now),
                None => return,
            }
            self.changed = true;
        }
    }

    /// Asks those that are not free whether they are.
    fn ask(&mut self, now: Duration, cx: &mut Context<'_>) {
        // From the last on, for one that failed leaves.
        for index in (0..self.members.len()).rev() {
            if self.members.get(index).is_some_and(|member| !member.free) {
                self.ask_one(index, now, cx);
            }
        }
    }

    /// Says whether it is ready. One that failed leaves.
    fn ask_one(&mut self, index: usize, now: Duration, cx: &mut Context<'_>) -> bool {
        let Some(member) = self.members.get_mut(index) else { return false };
        match member.ask(cx) {
            Ok(first) => {
                if first {
                    self.making.succeeded();
                    self.changed = true;
                }
                let late = member.warming_until.is_some_and(|until| until <= now);
                let free = member.free;
                if late {
                    self.lose(index, Problem::Timeout(self.make_timeout), now);
                }
                free && !late
            }
            Err(problem) => {
                self.lose(index, problem, now);
                false
            }
        }
    }

    /// Gives requests to services, until there are none of the one or the other.
    fn dispatch(&mut self, now: Duration, cx: &mut Context<'_>) {
        while self.shared.queue.len() > 0 {
            let Some(index) = self.choose(now, cx) else { return };
            let (Some(member), Some(waiting)) = (self.members.get_mut(index), self.shared.queue.take())
            else {
                return;
            };
            let Waiting { request, answer, .. } = waiting;
            match member.call(request, &self.shared.total) {
                Ok((future, in_flight)) => {
                    // If the caller has just gone, what comes back ends the request.
                    discard(answer.send(Ok(Given { future, in_flight })));
                    self.ask_one(index, now, cx);
                }
                Err(problem) => {
                    discard(answer.send(Err(PoolError::Panicked)));
                    self.lose(index, problem, now);
                }
            }
        }
    }

    /// The less loaded of two that are ready, asked once more.
    fn choose(&mut self, now: Duration, cx: &mut Context<'_>) -> Option<usize> {
        loop {
            let limit = self.limit;
            let takes = |member: &Member<S>| member.free && member.in_flight() < limit;
            let nth = |nth: usize| {
                let mut those = self.members.iter().enumerate().filter(|(_, member)| takes(member));
                those.nth(nth)
            };
            let index = match self.members.iter().filter(|member| takes(member)).count() {
                0 => return None,
                1 => nth(0)?.0,
                count => {
                    let (one, other) = two_of(&mut self.rng, count);
                    let (one, other) = (nth(one)?, nth(other)?);
                    if one.1.is_no_more_loaded_than(other.1) { one.0 } else { other.0 }
                }
            };
            if self.ask_one(index, now, cx) {
                return Some(index);
            }
        }
    }

    /// Says whether something was decided: then there may be more to do.
    fn resize(&mut self, now: Duration) -> bool {
        let usage = self.usage();
        let decision = self.sizing.observe(now, usage);
        let (pool, size, estimate) = (self.shared.meters.name(), usage.size(), self.sizing.estimate_at(now));
        match decision {
            Decision::Hold => {
                // Those that were lost are not missed: what is wished for from now on is growth.
                self.decided = size;
                return false;
            }
            Decision::Grow { to } => {
                let replaced = to.min(self.decided).saturating_sub(size);
                let more = to.saturating_sub(size);
                tracing::debug!(
                    pool,
                    estimate,
                    size,
                    to,
                    replaced,
                    waiting = self.shared.queue.len(),
                    "the pool grows"
                );
                let grown = (more - replaced) as u64;
                self.counts.replaced += replaced as u64;
                self.counts.grown += grown;
                self.shared.meters.replaced.increment(replaced as u64);
                self.shared.meters.grown.increment(grown);
                if to > self.decided {
                    self.decided = to;
                    self.last = Some(SizeChange { from: size, to, estimate, at: now });
                }
                self.grow(more);
            }
            Decision::Shrink => {
                let idle_time = self.sizing.idle_time();
                tracing::debug!(pool, estimate, size, to = size - 1, ?idle_time, "the pool shrinks");
                self.decided = size - 1;
                self.last = Some(SizeChange { from: size, to: size - 1, estimate, at: now });
                self.counts.shrunk += 1;
                self.shared.meters.shrunk.increment(1);
                self.shrink();
            }
        }
        self.changed = true;
        true
    }

    /// Takes those back that drain, and wishes for as many as are missing then.
    fn grow(&mut self, more: usize) {
        let back = more.min(self.draining.len());
        self.members.extend(self.draining.drain(..back));
        self.members.sort_unstable_by_key(|member| member.seen.id);
        self.making.wish(more - back);
    }

    /// Gives up one in the making, or one that was never ready; else drains the least loaded one.
    fn shrink(&mut self) {
        if self.making.give_up_one() {
            return;
        }
        if let Some(warming) = self.members.iter().position(|member| !member.is_ready()) {
            return self.members.remove(warming).end();
        }
        // Of those with as many requests, one that takes none: it may be stuck.
        let load = |member: &Member<S>| (member.in_flight(), member.free);
        let least = (0..self.members.len()).reduce(|least, next| {
            let (Some(one), Some(other)) = (self.members.get(least), self.members.get(next)) else {
                return least;
            };
            let other_is_less = match load(one).cmp(&load(other)) {
                std::cmp::Ordering::Less => false,
                std::cmp::Ordering::Greater => true,
                std::cmp::Ordering::Equal => !one.is_no_more_loaded_than(other),
            };
            if other_is_less { next } else { least }
        });
        if let Some(least) = least {
            self.draining.push(self.members.remove(least));
            self.bury();
        }
    }

    /// Answers those that waited too long, and all if there is no service and none can be made.
    fn refuse(&mut self, now: Duration) {
        let refuse = |waiting: Waiting<S::Future, Req>, error| {
            discard(waiting.answer.send(Err(error)));
            discard(waiting.request);
        };
        let queue = &self.shared.queue;
        while queue.oldest().is_some_and(|since| now.saturating_sub(since) >= self.max_wait) {
            let Some(waiting) = queue.take() else { break };
            refuse(waiting, PoolError::Waited { after: self.max_wait });
        }
        if !self.members.is_empty() || self.wait_for_ready {
            return;
        }
        let Some(problem) = self.making.problem() else { return };
        while let Some(waiting) = queue.take() {
            refuse(waiting, PoolError::Make(Arc::clone(problem)));
        }
    }

    fn show(&mut self, now: Duration) {
        let (shared, usage) = (&self.shared, self.sizing.usage());
        let meters = &shared.meters;
        meters.demand.set(self.sizing.estimate_at(now));
        meters.in_flight.set(gauged(shared.total.in_flight()));
        meters.waiting.set(gauged(shared.queue.len()));
        let changed = std::mem::take(&mut self.changed);
        if changed {
            meters.ready.set(gauged(usage.size() - usage.coming()));
            meters.coming.set(gauged(usage.coming()));
            meters.draining.set(gauged(self.draining.len()));
        }
        shared.shown.send_if_modified(|shown| {
            shown.sizing = self.sizing;
            if changed {
                let state = |member: &Member<S>| {
                    if member.is_ready() { ServiceState::Ready } else { ServiceState::Warming }
                };
                let members = self.members.iter().map(|member| (Arc::clone(&member.seen), state(member)));
                let draining =
                    self.draining.iter().map(|member| (Arc::clone(&member.seen), ServiceState::Draining));
                shown.services.clear();
                shown.services.extend(members.chain(draining));
                shown.services.sort_unstable_by_key(|(seen, _)| seen.id);
                shown.making = self.making.coming();
                (shown.counts, shown.last) = (self.counts, self.last);
                shown.problem = self.making.problem().cloned();
            }
            changed
        });
    }

    fn next_look(&self, now: Duration) -> Duration {
        let warming = self.members.iter().filter_map(|member| member.warming_until);
        let waiting = self.shared.queue.oldest().map(|since| since.saturating_add(self.max_wait));
        let times = [
            self.sizing.next_look(),
            self.making.next_look(now),
            waiting,
            warming.min(),
            Some(self.looked_at + LOOK),
        ];
        let next = times.into_iter().flatten().min().unwrap_or(now + LOOK);
        next.saturating_sub(now).max(Duration::from_millis(1))
    }

    fn usage(&self) -> Usage {
        let warming = self.members.iter().filter(|member| !member.is_ready()).count();
        let ready = self.members.iter().filter(|member| member.is_ready());
        let used = ready.map(|member| (member.in_flight(), !member.free));
        Usage::of(self.limit, used, self.making.coming() + warming, self.shared.queue.len())
    }

    fn not_made(&mut self, problem: Problem, now: Duration) {
        tracing::debug!(pool = self.shared.meters.name(), %problem, "no service could be made");
        self.shared.meters.make_failures.increment(1);
        self.making.failed(problem, now, &self.shared.runtime);
        self.changed = true;
    }

    /// A service failed, and leaves.
    fn lose(&mut self, index: usize, problem: Problem, now: Duration) {
        let member = self.members.remove(index);
        tracing::debug!(pool = self.shared.meters.name(), id = member.seen.id, %problem, "a service is lost");
        self.counts.lost += 1;
        self.shared.meters.lost.increment(1);
        self.changed = true;
        // One that was of use is replaced at once, if it is missed.
        if !member.was_of_use(now) {
            self.not_made(problem, now);
        }
        member.end();
    }
}

impl<MS, Target, S: Service<Req>, Req> Drop for Worker<MS, Target, S, Req> {
    /// Whoever still waits, or comes later, is told so.
    fn drop(&mut self) {
        self.shared.queue.close();
        self.members.drain(..).chain(self.draining.drain(..)).for_each(Member::end);
    }
}

/// Counts of things are far below 2^52, where a float is exact.
#[allow(clippy::cast_precision_loss)]
fn gauged(count: usize) -> f64 {
    count as f64
}
