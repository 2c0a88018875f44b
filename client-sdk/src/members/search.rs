//! One request's way to a member: choose, and where there is none, wait for one.
//!
//! ```text
//!            none                          a change, or the time is up
//!   choose ------> something to wait for? ------------------------------> choose | error
//!     | a member
//!     v
//!   whoever searches sends ---- it was not taken ---> choose among the others
//! ```
//!
//! Each choice reads the newest routes (C2), and no member is given the same request twice on one connection.

use std::{borrow::Cow, future::Future, sync::Arc, time::Duration};

use super::{
    Chooser, Member, Ongoing, Overflow, RouteError, Shared, SharedError,
    chooser::Addresses,
    gate::Permit,
    routes::{Found, Hope},
    shared::{Pending, Place},
    standing::Outlook,
    tried::{Offered, Tried},
};
use crate::balance::{LoadBalanceError, Pick, PickContext};

/// A foreign load balancer's addresses may repeat and never end; so many times the number of instances are looked at.
const ROUNDS: usize = 4;

/// A request that looks for a member.
pub(crate) struct Search<M: Member> {
    shared: Arc<Shared<M>>,
    context: PickContext,
    deadline: Option<Deadline>,
    tried: Tried<M>,
    /// What the last attempt failed with.
    last: Option<SharedError>,
    /// When to stop waiting for an instance, if it waited for one.
    until: Option<Duration>,
    /// While it waits.
    place: Option<Place<M>>,
    /// While it waits because all are full.
    pending: Option<Pending<M>>,
    /// What a load balancer named.
    named: Option<Named>,
}

/// The caller's own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    /// The whole time that the caller gave the request.
    pub(crate) timeout: Duration,
    /// When it is up.
    pub(crate) at: Duration,
}

struct Named {
    addresses: Addresses,
    /// How many of them are still looked at.
    looks: usize,
    /// Before it was asked.
    seen: Seen,
    /// What those that were passed over were about to be.
    hope: Hope,
}

/// What a choice came to.
enum Choice<M> {
    Member(Pick<'static>, Arc<M>, Permit),
    /// None, by what was known then.
    None {
        seen: Seen,
        hope: Hope,
    },
}

/// How far the world had come when a request looked at it.
#[derive(Clone, Copy)]
struct Seen {
    /// The version of the routes.
    version: u64,
    /// How often a busy member had become free.
    turn: u64,
}

impl<M: Member> Search<M> {
    pub(crate) fn new(shared: Arc<Shared<M>>, context: PickContext, deadline: Option<Deadline>) -> Self {
        let (tried, last, until, place, pending, named) = (Tried::default(), None, None, None, None, None);
        Self { shared, context, deadline, tried, last, until, place, pending, named }
    }

    /// The next member to give the request to; waits for one if there is hope, or if it is to wait for ready.
    pub(crate) async fn next(&mut self) -> Result<(Ongoing, Arc<M>), RouteError> {
        let found = self.find(self.shared.settings.wait_for_ready).await;
        match found {
            Ok((pick, member, permit)) => Ok((Ongoing::begin(pick, permit, &self.shared.meters), member)),
            Err(error) => {
                self.shared.meters.no_instance(&error);
                Err(error)
            }
        }
    }

    /// Another member for a request that one failed. Waits for one that is about to come or to have room, but not on the
    /// chance that there may be one some day: the caller has an answer already, if a bad one.
    pub(crate) async fn another(&mut self) -> Option<(Ongoing, Arc<M>)> {
        let (pick, member, permit) = self.find(false).await.ok()?;
        Some((Ongoing::begin(pick, permit, &self.shared.meters), member))
    }

    /// Another member, if there is one right now.
    pub(crate) fn glance(&mut self) -> Option<(Ongoing, Arc<M>)> {
        match self.choose() {
            Ok(Choice::Member(pick, member, permit)) => {
                Some((Ongoing::begin(pick, permit, &self.shared.meters), member))
            }
            Ok(Choice::None { .. }) | Err(_) => None,
        }
    }

    /// `patient`: as long as there may be a member one day.
    async fn find(&mut self, patient: bool) -> Result<(Pick<'static>, Arc<M>, Permit), RouteError> {
        loop {
            let (seen, hope, refusal) = match self.ask_balancer().await? {
                Ok(()) => match self.choose() {
                    Ok(Choice::Member(pick, member, permit)) => {
                        (self.place, self.pending) = (None, None);
                        return Ok((pick, member, permit));
                    }
                    Ok(Choice::None { seen, hope }) => (seen, hope, None),
                    Err(error) => {
                        // It may have been woken for a member that another one can take.
                        self.shared.room.still_free();
                        return Err(error);
                    }
                },
                Err((seen, refusal)) => (seen, Hope::default(), Some(refusal)),
            };
            self.named = None;
            self.wait(seen, hope, refusal, patient).await?;
        }
    }

    /// The nth connection of this member did not take the request. `error`: why, if there is anything to say.
    pub(crate) fn not_taken(&mut self, member: &Arc<M>, nth: u64, error: Option<SharedError>) {
        self.tried.add(member, nth);
        if error.is_some() {
            self.last = error;
        }
    }

    /// This member does not want the request, however it is connected.
    pub(crate) fn refused(&mut self, member: &Arc<M>, error: SharedError) {
        self.tried.add_all(member);
        self.last = Some(error);
    }

    /// This member had the request and failed it, or has it still: it goes to another one.
    pub(crate) fn leave(&mut self, member: &Arc<M>) {
        self.tried.add_all(member);
    }

    /// Which of this member's connections the request was offered to.
    pub(crate) fn offered(&self, member: &Arc<M>) -> Offered {
        self.tried.of(member)
    }

    /// What it is for.
    pub(crate) fn shared(&self) -> &Arc<Shared<M>> {
        &self.shared
    }

    /// What the last attempt failed with.
    pub(crate) fn last(&self) -> Option<&SharedError> {
        self.last.as_ref()
    }

    /// The request's deadline.
    pub(crate) fn deadline(&self) -> Option<Deadline> {
        self.deadline
    }

    /// How long it is until then.
    pub(crate) fn left(&self, until: Duration) -> Duration {
        until.saturating_sub(self.shared.runtime.now())
    }

    /// Has a load balancer name addresses, if one chooses and has not named any. `Ok(Err)`: it refuses, with what it may
    /// have known.
    async fn ask_balancer(&mut self) -> Result<Result<(), (Seen, LoadBalanceError)>, RouteError> {
        if self.named.is_some() || matches!(self.shared.chooser, Chooser::Policy(..)) {
            return Ok(Ok(()));
        }
        let shared = Arc::clone(&self.shared);
        let Chooser::LoadBalance(balance) = &shared.chooser else { return Ok(Ok(())) };
        let seen = self.look();
        // A load balancer knows of the request what the endpoint says.
        let mut endpoint = Cow::Borrowed(&shared.endpoint);
        if self.context.hash_key != shared.endpoint.hash_key {
            endpoint.to_mut().hash_key = self.context.hash_key;
        }
        let answer = within(self.remaining(), balance.addresses(&endpoint)).await;
        Ok(match answer.map_err(|_| self.too_late("the load balancer's answer"))? {
            Ok(addresses) => {
                let looks = ROUNDS * shared.routes.load().entries.len();
                self.named = Some(Named { addresses, looks, seen, hope: Hope::default() });
                Ok(())
            }
            Err(refusal) => Err((seen, refusal)),
        })
    }

    /// The next instance by the newest routes.
    fn choose(&mut self) -> Result<Choice<M>, RouteError> {
        let shared = &self.shared;
        // In this order, so that nothing that happens after it is missed.
        let turn = shared.room.turn();
        let routes = shared.routes.load();
        let seen = Seen { turn, version: routes.version };
        if let Some(named) = &mut self.named {
            while named.looks > 0
                && let Some(address) = named.addresses.next()
            {
                named.looks -= 1;
                match routes.at(&address, &self.tried) {
                    Found::Open(pick, entry, permit) => {
                        return Ok(Choice::Member(pick.into_owned(), Arc::clone(&entry.member), permit));
                    }
                    Found::Nobody(hope) => named.hope |= hope,
                }
            }
            return Ok(Choice::None { seen: named.seen, hope: named.hope });
        }
        match routes.pick(&self.context, &self.tried, &shared.wake) {
            Ok(Found::Open(pick, entry, permit)) => {
                Ok(Choice::Member(pick.into_owned(), Arc::clone(&entry.member), permit))
            }
            Ok(Found::Nobody(hope)) => Ok(Choice::None { seen, hope }),
            Err(source) => Err(RouteError::Pick { endpoint: shared.endpoint.to_string(), source }),
        }
    }

    /// How far the world has come. Looked at before the routes are, so that nothing after it is missed.
    fn look(&self) -> Seen {
        Seen { turn: self.shared.room.turn(), version: self.shared.routes.load().version }
    }

    /// Waits until there is something newer than what was seen: other routes, or, if some were only busy, one that is not
    /// any more. Fails if there is nothing to wait for, or no longer.
    async fn wait(
        &mut self,
        seen: Seen,
        hope: Hope,
        refusal: Option<LoadBalanceError>,
        patient: bool,
    ) -> Result<(), RouteError> {
        let shared = Arc::clone(&self.shared);
        let settings = &shared.settings;
        let mut published = shared.published.subscribe();
        // Newer ones are looked at before anything is said of them; they are there a moment before they are told of.
        let routes = shared.routes.load_full();
        if routes.version > seen.version || (hope.of_room() && shared.room.turn() != seen.turn) {
            return Ok(());
        }
        let outlook = routes.outlook(&shared.endpoint, self.last.as_ref(), shared.ahead.size());
        drop(routes);
        let (hopeful, error) = match outlook {
            Outlook::Hopeful(error) => (true, error),
            Outlook::Bleak(error) => (false, error),
        };
        let error = match refusal {
            Some(refusal) => RouteError::refused(shared.endpoint.to_string(), refusal),
            None => error,
        };
        let error = if hope.full {
            // If it is to fail at once, it still waits for others that are about to be there.
            match &self.pending {
                None if settings.overflow == Overflow::Fail && (hopeful || hope.busy || hope.soon) => error,
                None => {
                    self.pending = Some(shared.pend()?);
                    shared.overloaded()
                }
                Some(_) => shared.overloaded(),
            }
        } else {
            self.pending = None;
            error
        };
        if !hopeful && !hope.of_room() && !hope.soon && !patient {
            return Err(error);
        }
        let until = *self.until.get_or_insert_with(|| {
            let until = shared.runtime.now().saturating_add(settings.longest_wait());
            // A caller's own deadline says how long it waits, if it chose to wait at all.
            match self.deadline {
                Some(deadline) if settings.wait_for_ready && settings.max_wait.is_none() => deadline.at,
                _ => until,
            }
        });
        if self.place.is_none() {
            self.place = Some(shared.queue()?);
        }
        let news = async {
            tokio::select! {
                biased;
                () = shared.room.vacancy(seen.turn, self.tried.len() == 0), if hope.of_room() => {}
                // Its sender lives as long as `shared`.
                _ = published.changed() => {}
            }
        };
        let changed = within(self.remaining(), tokio::time::timeout(self.left(until), news)).await;
        match changed.map_err(|_| self.too_late(&error.to_string()))? {
            Ok(()) => Ok(()),
            Err(_) => match self.deadline {
                Some(Deadline { timeout, at }) if at <= until => {
                    Err(RouteError::DeadlineExceeded { timeout, reason: error.to_string() })
                }
                _ => Err(error),
            },
        }
    }

    /// How long it is until the deadline, if there is one.
    fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| self.left(deadline.at))
    }

    fn too_late(&self, waiting_for: &str) -> RouteError {
        let timeout = self.deadline.map_or(Duration::ZERO, |deadline| deadline.timeout);
        RouteError::DeadlineExceeded { timeout, reason: format!("waiting for {waiting_for}") }
    }
}

/// Waits for something, so long at most; without a bound for as long as it takes.
pub(crate) async fn within<T>(
    left: Option<Duration>,
    future: impl Future<Output = T>,
) -> Result<T, tokio::time::error::Elapsed> {
    match left {
        Some(left) => tokio::time::timeout(left, future).await,
        None => Ok(future.await),
    }
}

#[cfg(test)]
mod tests;
