//! The attempts of one request, whatever a request is: one; another elsewhere if it failed and may be retried; one beside it
//! if it takes long.
//!
//! ```text
//!   search ---> attempt ---> answer ---------------------------------------------> the caller
//!     ^            |  |--- failed, worth a retry ---> pause ---> another? budget? --- no ---> that failure
//!     |            |                                                  | yes
//!     |            +--- no answer in time ---> another? budget? ------+---> attempt
//!     +--- never left, at no cost ---+
//! ```
//!
//! Owns neither the choice of an instance (`crate::members`) nor the sending (a [`Sender`]: the channel's, the layer's).
//! Keeps: no instance that had the request gets it again on the same connection; an attempt that is given up is dropped;
//! what a caller gets at the end is an instance's own word, never the budget's.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use super::plan::{Course, Failure, Plan};
use crate::members::{Blame, Member, Offered, Ongoing, RouteError, Search, SharedError};

/// Sends one request, several times if need be.
pub(crate) trait Sender<M: Member>: Sync {
    /// What the caller gets, good or bad.
    type Answer: Send;

    /// Gives the request to a member. Dropping the future gives the attempt up.
    fn attempt(&self, given: Given<M>) -> impl Future<Output = Attempted<Self::Answer>> + Send;

    /// Whether the request can be sent once more, if an attempt has ended or is given up.
    fn is_repeatable(&self) -> bool;

    /// Takes the request back from the attempts that go on, which are then dropped. Whether it can be sent once more: else they
    /// go on.
    fn take_back(&self) -> bool {
        self.is_repeatable()
    }

    /// Whether it can be sent once more beside an attempt that goes on.
    fn is_repeatable_beside(&self) -> bool;

    /// What a caller is told if nothing came of giving up an attempt that took too long.
    fn too_slow(&self, member: &M, timeout: Duration) -> Self::Answer;
}

/// A request and the member that it is given to.
pub(crate) struct Given<M> {
    pub(crate) call: Ongoing,
    pub(crate) member: Arc<M>,
    /// Connections of the member that it was offered to and that did not take it.
    pub(crate) offered: Offered,
    /// How many attempts there were before.
    pub(crate) earlier: u32,
    /// Why the last one that did not take it did not.
    pub(crate) last: Option<SharedError>,
}

/// What an attempt came to.
pub(crate) enum Attempted<A> {
    /// An answer, and what is bad about it.
    Ended(A, Option<Failure>),
    /// It never left.
    NotTaken(NotTaken),
}

/// Who did not take a request, and why.
pub(crate) enum NotTaken {
    /// One of the member's connections, by its number.
    Connection(u64, Option<SharedError>),
    /// The member, whichever of its connections brings it.
    Member(SharedError),
    /// The member, which is not chosen again as it stands.
    Unready,
}

/// A request on its way.
struct Run<'a, M: Member, S> {
    search: &'a mut Search<M>,
    sender: &'a S,
    plan: &'a Plan,
    course: Course<'a>,
}

/// What one or two attempts side by side came to.
enum Step<A, M> {
    Answered(A),
    Failed(A, Failure),
    NotTaken,
    /// It took too long, and goes to this one instead.
    Moved(Next<M>, A),
}

type Next<M> = (Ongoing, Arc<M>);

/// Makes as many attempts as the plan has for the course.
pub(crate) async fn run<'a, M: Member, S: Sender<M>>(
    search: &'a mut Search<M>,
    sender: &'a S,
    plan: &'a Plan,
    course: Course<'a>,
) -> Result<S::Answer, RouteError> {
    if course.max_attempts() > 1 {
        plan.budget.request(search.shared().runtime.now());
    }
    Run { search, sender, plan, course }.run().await
}

impl<M: Member, S: Sender<M>> Run<'_, M, S> {
    async fn run(&mut self) -> Result<S::Answer, RouteError> {
        let mut next = self.search.next().await?;
        self.course.made = 1;
        // The last word of an instance.
        let mut last = None;
        loop {
            match self.step(next).await {
                Step::Answered(answer) => return Ok(answer),
                Step::Failed(answer, failure) => {
                    let Some(another) = self.again(&failure).await else { return Ok(answer) };
                    (next, last) = (another, Some(answer));
                }
                Step::Moved(another, answer) => (next, last) = (another, Some(answer)),
                Step::NotTaken => {
                    next = match last.take() {
                        None => self.search.next().await?,
                        Some(answer) if !self.sender.is_repeatable() => return Ok(answer),
                        Some(answer) => {
                            let Some(another) = self.search.another().await else { return Ok(answer) };
                            last = Some(answer);
                            another
                        }
                    }
                }
            }
        }
    }

    /// One attempt, and perhaps one beside it.
    async fn step(&mut self, (mut call, member): Next<M>) -> Step<S::Answer, M> {
        let (timeout, hedge) = (self.course.per_try_timeout(), self.course.hedge_after());
        let since = self.course.measures().then(|| self.now());
        let blame = timeout.map(|_| call.blame());
        let sender = self.sender;
        let first = sender.attempt(self.give(call, &member));
        if timeout.is_none() && hedge.is_none() {
            let attempted = first.await;
            return self.ended(attempted, &member, since);
        }
        let mut first = pin!(first);
        let mut waited = Duration::ZERO;
        if let Some(after) = hedge.filter(|after| timeout.is_none_or(|timeout| *after < timeout)) {
            match tokio::time::timeout(after, &mut first).await {
                Ok(attempted) => return self.ended(attempted, &member, since),
                Err(_) if sender.is_repeatable_beside() => {
                    if let Some((call, other)) = self.elsewhere(&member, "hedge") {
                        return self.beside((first, &member, blame), (call, other), timeout, since).await;
                    }
                }
                Err(_) => {}
            }
            waited = after;
        }
        if let Some(timeout) = timeout {
            match tokio::time::timeout(timeout.saturating_sub(waited), &mut first).await {
                Ok(attempted) => return self.ended(attempted, &member, since),
                Err(_) => {
                    if let Some(step) = self.instead(&member, timeout, blame.as_slice(), since) {
                        return step;
                    }
                }
            }
        }
        // It may go nowhere else.
        let attempted = first.await;
        self.ended(attempted, &member, since)
    }

    /// Two attempts side by side.
    async fn beside(
        &mut self,
        (first, member, blame): (impl Future<Output = Attempted<S::Answer>>, &Arc<M>, Option<Blame>),
        (mut call, other): Next<M>,
        timeout: Option<Duration>,
        since: Option<Duration>,
    ) -> Step<S::Answer, M> {
        let blamed = [blame, timeout.map(|_| call.blame())];
        let sender = self.sender;
        let second = sender.attempt(self.give(call, &other));
        let is_worth_it = self.course.judge();
        let is_good = move |attempted: &Attempted<S::Answer>| match attempted {
            // No answer at all: the other one may have one.
            Attempted::Ended(_, Some(Failure::Lost(_))) | Attempted::NotTaken(_) => false,
            Attempted::Ended(_, failure) => !failure.as_ref().is_some_and(is_worth_it),
        };
        let mut both = pin!(first_good(first, second, is_good));
        let came = match timeout {
            Some(timeout) => tokio::time::timeout(timeout, &mut both).await.ok(),
            None => None,
        };
        if let (None, Some(timeout)) = (&came, timeout) {
            let blamed: Vec<_> = blamed.into_iter().flatten().collect();
            if let Some(step) = self.instead(&other, timeout, &blamed, since) {
                return step;
            }
        }
        let came = match came {
            Some(came) => came,
            None => both.await,
        };
        let (mut best, mut has_good) = (Step::NotTaken, false);
        for (attempted, member) in came.into_iter().zip([member, &other]) {
            let Some(attempted) = attempted else { continue };
            let good = is_good(&attempted);
            let step = self.ended(attempted, member, since);
            if good || (!has_good && !matches!(step, Step::NotTaken)) {
                (best, has_good) = (step, good);
            }
        }
        best
    }

    /// An attempt has ended by itself.
    fn ended(
        &mut self,
        attempted: Attempted<S::Answer>,
        member: &Arc<M>,
        since: Option<Duration>,
    ) -> Step<S::Answer, M> {
        match attempted {
            Attempted::Ended(answer, Some(failure)) if self.course.is_worth_it(&failure) => {
                self.search.leave(member);
                Step::Failed(answer, failure)
            }
            Attempted::Ended(answer, _) => {
                self.measure(since);
                Step::Answered(answer)
            }
            Attempted::NotTaken(by) => {
                match by {
                    NotTaken::Connection(nth, error) => self.search.not_taken(member, nth, error),
                    NotTaken::Member(error) => self.search.refused(member, error),
                    NotTaken::Unready => {}
                }
                Step::NotTaken
            }
        }
    }

    /// After a failure: where to go next, if it may go anywhere.
    async fn again(&mut self, failure: &Failure) -> Option<Next<M>> {
        let runtime = self.search.shared().runtime.clone();
        let pause = self.plan.pause(&self.course, failure, &runtime)?;
        if !self.sender.is_repeatable() || !self.has_room() {
            return None;
        }
        if !pause.is_zero() {
            // Beyond its deadline nothing is worth waiting for.
            if self.search.deadline().is_some_and(|deadline| self.search.left(deadline.at) <= pause) {
                return None;
            }
            tokio::time::sleep(pause).await;
        }
        let next = self.search.another().await?;
        self.spend(next, failure.reason())
    }

    /// Where an attempt goes that took too long, if it may go anywhere. Whoever has it until now is to blame.
    fn instead(
        &mut self,
        member: &Arc<M>,
        timeout: Duration,
        blamed: &[Blame],
        since: Option<Duration>,
    ) -> Option<Step<S::Answer, M>> {
        if !self.sender.is_repeatable() {
            return None;
        }
        let next = self.elsewhere(member, "per_try_timeout")?;
        if !self.sender.take_back() {
            // Too much of it was sent in this very moment. That is paid for all the same.
            next.0.not_taken();
            return None;
        }
        blamed.iter().for_each(Blame::blame);
        self.measure(since);
        Some(Step::Moved(next, self.sender.too_slow(member, timeout)))
    }

    /// Another member right now, paid for.
    fn elsewhere(&mut self, than: &Arc<M>, reason: &'static str) -> Option<Next<M>> {
        if !self.course.has_more() || !self.has_room() {
            return None;
        }
        self.search.leave(than);
        let next = self.search.glance()?;
        self.spend(next, reason)
    }

    fn has_room(&self) -> bool {
        let room = self.plan.budget.has_room(self.now());
        if !room {
            self.search.shared().meters.retry_refused();
        }
        room
    }

    fn spend(&mut self, (call, member): Next<M>, reason: &'static str) -> Option<Next<M>> {
        let shared = self.search.shared();
        if !self.plan.budget.try_spend(self.now()) {
            // Others took what there was since.
            shared.meters.retry_refused();
            call.not_taken();
            return None;
        }
        shared.meters.retried(reason);
        tracing::debug!(endpoint = %shared.endpoint, reason, to = %member.address(), "sent once more");
        self.course.made += 1;
        Some((call, member))
    }

    fn give(&self, call: Ongoing, member: &Arc<M>) -> Given<M> {
        let (member, offered) = (Arc::clone(member), self.search.offered(member));
        Given { call, member, offered, earlier: self.course.made - 1, last: self.search.last().cloned() }
    }

    fn measure(&self, since: Option<Duration>) {
        if let Some(since) = since {
            self.course.answered(self.now().saturating_sub(since));
        }
    }

    fn now(&self) -> Duration {
        self.search.shared().runtime.now()
    }
}

/// What two attempts came to: until one of them is good, both.
async fn first_good<A>(
    first: impl Future<Output = Attempted<A>>,
    second: impl Future<Output = Attempted<A>>,
    is_good: impl Fn(&Attempted<A>) -> bool,
) -> [Option<Attempted<A>>; 2] {
    let (mut first, mut second) = (pin!(first), pin!(second));
    tokio::select! {
        biased;
        one = &mut first => {
            let other = if is_good(&one) { None } else { Some(second.await) };
            [Some(one), other]
        }
        other = &mut second => {
            let one = if is_good(&other) { None } else { Some(first.await) };
            [one, Some(other)]
        }
    }
}
