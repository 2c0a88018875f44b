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

use std::{future::Future, sync::Arc, time::Duration};

use super::{
    Chooser, Member, Ongoing, RouteError, Shared, SharedError, chooser::Addresses, routes::Found,
    shared::Place, standing::Outlook, tried::Tried,
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
    waited: Option<Waited<M>>,
    /// What a load balancer named, and how many of it are still looked at.
    addresses: Option<(Addresses, usize)>,
}

/// The caller's own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    /// The whole time that the caller gave the request.
    pub(crate) timeout: Duration,
    /// When it is up.
    pub(crate) at: Duration,
}

struct Waited<M> {
    _place: Place<M>,
    /// When to stop waiting for an instance.
    until: Duration,
}

/// What a choice came to.
enum Choice<M> {
    Member(Pick<'static>, Arc<M>),
    /// None, by the routes of this version.
    None(u64),
}

impl<M: Member> Search<M> {
    pub(crate) fn new(shared: Arc<Shared<M>>, context: PickContext, deadline: Option<Deadline>) -> Self {
        let (tried, last, waited, addresses) = (Tried::default(), None, None, None);
        Self { shared, context, deadline, tried, last, waited, addresses }
    }

    /// The next member to give the request to; waits for one if there is hope, or if it is to wait for ready.
    pub(crate) async fn next(&mut self) -> Result<(Ongoing, Arc<M>), RouteError> {
        let found = self.find().await;
        match found {
            Ok((pick, member)) => Ok((Ongoing::begin(pick, &self.shared.meters), member)),
            Err(error) => {
                self.shared.meters.no_instance(&error);
                Err(error)
            }
        }
    }

    async fn find(&mut self) -> Result<(Pick<'static>, Arc<M>), RouteError> {
        loop {
            let (version, refusal) = match self.ask_balancer().await? {
                Ok(()) => match self.choose()? {
                    Choice::Member(pick, member) => return Ok((pick, member)),
                    Choice::None(version) => (version, None),
                },
                Err((version, refusal)) => (version, Some(refusal)),
            };
            self.addresses = None;
            self.wait(version, refusal).await?;
        }
    }

    /// The nth connection of this member did not take the request. `error`: why, if there is anything to say.
    pub(crate) fn not_taken(&mut self, member: &Arc<M>, nth: u64, error: Option<SharedError>) {
        self.tried.add(member, nth);
        if error.is_some() {
            self.last = error;
        }
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

    /// Has a load balancer name addresses, if one chooses and has not named any. `Ok(Err)`: it refuses, with the version
    /// of the routes that it may have known.
    async fn ask_balancer(&mut self) -> Result<Result<(), (u64, LoadBalanceError)>, RouteError> {
        let shared = Arc::clone(&self.shared);
        let Chooser::LoadBalance(balance) = &shared.chooser else { return Ok(Ok(())) };
        if self.addresses.is_some() {
            return Ok(Ok(()));
        }
        let version = shared.routes.load().version;
        let asked = balance.addresses(&shared.endpoint);
        let answer = within(self.remaining(), asked).await;
        Ok(match answer.map_err(|_| self.too_late("the load balancer's answer"))? {
            Ok(addresses) => {
                let looks = ROUNDS * shared.routes.load().entries.len();
                self.addresses = Some((addresses, looks));
                Ok(())
            }
            Err(refusal) => Err((version, refusal)),
        })
    }

    /// The next instance by the newest routes.
    fn choose(&mut self) -> Result<Choice<M>, RouteError> {
        let shared = &self.shared;
        let routes = shared.routes.load();
        if let Some((addresses, looks)) = &mut self.addresses {
            while *looks > 0
                && let Some(address) = addresses.next()
            {
                *looks -= 1;
                if let Some((pick, entry)) = routes.at(&address, &self.tried) {
                    return Ok(Choice::Member(pick, Arc::clone(&entry.member)));
                }
            }
            return Ok(Choice::None(routes.version));
        }
        match routes.pick(&self.context, &self.tried, &shared.wake) {
            Ok(Found::Open(pick, entry)) => Ok(Choice::Member(pick.into_owned(), Arc::clone(&entry.member))),
            Ok(Found::Coming | Found::Nobody) => Ok(Choice::None(routes.version)),
            Err(source) => Err(RouteError::Pick { endpoint: shared.endpoint.to_string(), source }),
        }
    }

    /// Waits until there are newer routes than those of `version`. Fails if there is nothing to wait for, or no longer.
    async fn wait(&mut self, version: u64, refusal: Option<LoadBalanceError>) -> Result<(), RouteError> {
        let shared = Arc::clone(&self.shared);
        let settings = &shared.settings;
        let mut published = shared.published.subscribe();
        if *published.borrow_and_update() > version {
            return Ok(());
        }
        let outlook = shared.routes.load().outlook(&shared.endpoint, self.last.as_ref());
        let (hopeful, error) = match outlook {
            Outlook::Hopeful(error) => (true, error),
            Outlook::Bleak(error) => (false, error),
        };
        let error = match refusal {
            Some(refusal) => RouteError::refused(shared.endpoint.to_string(), refusal),
            None => error,
        };
        if !hopeful && !settings.wait_for_ready {
            return Err(error);
        }
        if self.waited.is_none() {
            let until = shared.runtime.now().saturating_add(settings.longest_wait());
            // A caller's own deadline says how long it waits, if it chose to wait at all.
            let until = if settings.wait_for_ready && settings.max_wait.is_none() {
                self.deadline.map_or(until, |deadline| deadline.at)
            } else {
                until
            };
            self.waited = Some(Waited { _place: shared.queue()?, until });
        }
        let until = self.waited.as_ref().map_or(Duration::ZERO, |waited| waited.until);
        let changed = tokio::time::timeout(self.left(until), published.changed());
        let changed = within(self.remaining(), changed).await;
        match changed.map_err(|_| self.too_late(&error.to_string()))? {
            Ok(_) => Ok(()),
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
