//! Leaving without failing a call (C4).
//!
//! Owns the order of a drain, and what is known of the callers when it goes on. Does not own the lease: it is kept alive by
//! `driver` throughout, which also tells here when it is registered anew or has ended.
//!
//! ```text
//!             revision r        all who can say so have applied r, the time is up, or nobody can tell
//!   DRAINING ────────────▶ WaitApplied(r) ──────────────────────────────▶ in flight ──▶ Deregister
//!     │   ▲                    │
//!     ▼   │ registered anew    ▼
//!   the registry is away, or has forgotten the lease ── the time is up ──▶ in flight ──▶ Deregister
//! ```
//!
//! No step sleeps where the registry can tell. The grace is for registries from before `WaitApplied` alone.

use std::{future::Future, sync::Arc, time::Duration};

use registry_proto::v1;
use tokio::sync::{oneshot, watch};
use tonic::Code;

use super::{EndError, Registration, RegistrationState, RegistrationStatus, UpdateError, command::Command};
use crate::{backoff::Backoff, client::CallError, model::Status};

/// So long before the drain's own time is up, at most, the registry is to say how far the callers are.
const ANSWER: Duration = Duration::from_millis(500);

/// What a drain knew of the callers when it went on to what was in flight. All but
/// [`Told`](Self::Told) are logged: the first two as a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Drained {
    /// The drain timeout passed, and some callers have not said that they know: they may have sent requests until the end.
    TimedOut(Watchers),
    /// Nobody could say what callers know: the registry was away or refused, or the registration had ended before (then
    /// the drain itself says so, too).
    Unknown {
        /// For people.
        reason: Arc<str>,
    },
    /// The registry is one that cannot tell: callers were given this time, which is a habit and not a promise.
    Grace(Duration),
    /// Every caller that can say so has said that it sends no further request.
    Told(Watchers),
}

/// Clients that watch the services of a registration, summed over these. A process is one for each
/// [`RegistryDiscover`](crate::RegistryDiscover) that it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Watchers {
    /// They have applied the change.
    pub acked: u32,
    /// They are connected and have not.
    pub lagging: u32,
    /// They went, or lost the registry, less than 20 s ago, and have not come back: they may go on calling, and so they are
    /// waited for. After 20 s they are forgotten.
    pub disconnected: u32,
    /// They cannot say (`grpcurl`, other clients): nobody waits for them. They were told.
    pub not_acking: u32,
}

impl Registration {
    /// [`drain_after`](Self::drain_after), with nothing in flight.
    pub async fn drain(&self) -> Result<Drained, EndError> {
        self.drain_after(std::future::ready(())).await
    }

    /// Leaves without failing a call (C4), and without a sleep: marks the instances as draining, waits until the callers have
    /// applied that, then for `in_flight`, and deregisters. The lease is kept alive meanwhile.
    ///
    /// Give it as `in_flight` what ends when the server has no more requests: serve on until it is polled for the first time,
    /// then shut down gracefully (for tonic: resolve the signal of `serve_with_shutdown`, and wait for that to return).
    ///
    /// **The promise.** With [`Drained::Told`], each caller that was connected to the registry and says what it has applied
    /// (a [`BalancedChannel`](crate::BalancedChannel), a [`LoadBalanced`](crate::layer::LoadBalanced), a
    /// [`Balancer`](crate::balance::Balancer) over a [`RegistryDiscover`](crate::RegistryDiscover), or another client that acks)
    /// had chosen other instances for all further requests before `in_flight` was polled. A request that had been chosen
    /// for this one a moment before is served, if the server shuts down gracefully, or goes elsewhere by itself, if it
    /// goes over a channel.
    ///
    /// **What it does not cover.** Callers that cannot ack ([`Watchers::not_acking`]: nobody waits for them, so theirs is a race
    /// of milliseconds); those that lost the registry more than 20 s before (they keep their last view, C1, and may call an
    /// instance that is gone; sooner they are [`Watchers::disconnected`] and waited for); those that start within the second
    /// after it; those that read `discover` or `watch` by themselves; an address that `get_picker`
    /// gave out and that is called only later; and what a caller's own service queues.
    ///
    /// It waits for the callers at most the [drain timeout](super::RegistrationBuilder::drain_timeout), the marking included;
    /// what it knew of them then is returned. While it waits:
    /// - *The registry is away*: it is waited for (for 20 s after its start it does not know who watched before, and says
    ///   so only then). If it comes back, it is told; else `in_flight` is next, and deregistering
    ///   fails with [`EndError::Failed`], within the client's request timeout.
    /// - *The lease was lost*: the instances are registered anew, as draining, and the callers waited for again.
    /// - *Superseded, or all was taken over*: nobody is waited for, `in_flight` is next, and the answer is
    ///   [`EndError::Ended`]. What others registered is not touched: the lease is the fence (L3).
    /// - *The registry does not know `WaitApplied`*: callers get the
    ///   [drain grace](super::RegistrationBuilder::drain_grace) instead.
    ///
    /// Given up in the middle, it leaves the instances registered and draining.
    pub async fn drain_after(&self, in_flight: impl Future<Output = ()>) -> Result<Drained, EndError> {
        // Boxed, so that whoever awaits a drain among other things has no large future of its own.
        let drained = Box::pin(self.until_callers_know()).await;
        match &drained {
            Drained::Told(watchers) => tracing::debug!(?watchers, "no caller sends further requests"),
            Drained::Grace(grace) => tracing::info!(?grace, "the registry cannot tell what callers know"),
            Drained::TimedOut(watchers) => {
                tracing::warn!(?watchers, "draining on although some callers have not said that they know");
            }
            Drained::Unknown { reason } => {
                tracing::warn!(%reason, "draining on although nobody knows what callers know");
            }
        }
        in_flight.await;
        Box::pin(self.deregister()).await.map(|()| drained)
    }

    async fn until_callers_know(&self) -> Drained {
        let deadline = self.client.runtime().now().saturating_add(self.drain_timeout);
        let mut reason: Arc<str> = "the registry has not answered".into();
        let told = self.tell_callers(deadline, &mut reason);
        let Ok(drained) = tokio::time::timeout(self.drain_timeout, told).await else {
            return Drained::Unknown { reason };
        };
        if let Drained::Grace(grace) = drained {
            tokio::time::sleep(grace).await;
        }
        drained
    }

    /// Marks, and waits for the callers. `reason`: what it is waiting for, should the time be up.
    async fn tell_callers(&self, deadline: Duration, reason: &mut Arc<str>) -> Drained {
        let mut revision = match self.update(|instance| instance.status = Status::Draining).await {
            Ok(revision) => Some(revision),
            // It is sent as soon as it can be, and the status tells of that.
            Err(UpdateError::Pending(error)) => {
                *reason = error.to_string().into();
                None
            }
            Err(error) => return Drained::Unknown { reason: error.to_string().into() },
        };
        let mut events = self.events();
        loop {
            let state = events.borrow_and_update().state.clone();
            match state {
                RegistrationState::Registered { revision: now } => revision = Some(now),
                RegistrationState::Unconfirmed { .. } => {}
                RegistrationState::Reregistering { reason: why } => {
                    (revision, *reason) = (None, why);
                }
                ended => {
                    let reason = format!("the registration has ended ({ended:?})").into();
                    return Drained::Unknown { reason };
                }
            }
            let waited = async {
                match revision {
                    Some(_) => self.wait_applied(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = another(&mut events, revision) => {}
                drained = waited => return drained,
            }
        }
    }

    /// Waits until every caller that can say so has applied the lease's words, in each of its services.
    async fn wait_applied(&self, deadline: Duration) -> Drained {
        let (mut sum, mut satisfied) = (Watchers::default(), true);
        for wait in self.waits().await {
            match self.wait_applied_in(wait, deadline).await {
                Ok(answer) => {
                    sum.add(&answer);
                    satisfied &= answer.satisfied;
                }
                Err(CallError::Refused(refusal)) if refusal.code == Code::Unimplemented => {
                    return Drained::Grace(self.drain_grace);
                }
                Err(error) => return Drained::Unknown { reason: error.to_string().into() },
            }
        }
        if satisfied { Drained::Told(sum) } else { Drained::TimedOut(sum) }
    }

    async fn wait_applied_in(
        &self,
        mut wait: v1::WaitAppliedRequest,
        deadline: Duration,
    ) -> Result<v1::WaitAppliedResponse, CallError> {
        let runtime = self.client.runtime();
        let mut backoff = Backoff::default();
        loop {
            let left = deadline.saturating_sub(runtime.now());
            // How far they are is to be known before the time is up.
            wait.timeout = left.saturating_sub(ANSWER.min(left / 10)).try_into().ok();
            match self.client.wait_applied(wait.clone()).await {
                Err(CallError::Refused(refusal)) if refusal.is_final() => {
                    return Err(CallError::Refused(refusal));
                }
                // Another epoch, too: then the lease is about to be registered anew.
                Err(error) => {
                    tracing::debug!(%error, "asking again what callers know");
                    tokio::time::sleep(backoff.next(runtime)).await;
                }
                answer => return answer,
            }
        }
    }

    /// What is to be applied, in each service of the lease.
    async fn waits(&self) -> Vec<v1::WaitAppliedRequest> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Waits { reply }).await.is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }
}

impl Watchers {
    pub(super) fn add(&mut self, answer: &v1::WaitAppliedResponse) {
        self.acked = self.acked.saturating_add(answer.acked);
        self.lagging = self.lagging.saturating_add(answer.lagging);
        self.disconnected = self.disconnected.saturating_add(answer.disconnected);
        self.not_acking = self.not_acking.saturating_add(answer.not_acking);
    }
}

/// Until a registration is no longer, or not yet, at this revision.
async fn another(events: &mut watch::Receiver<RegistrationStatus>, revision: Option<u64>) {
    let changed = events.wait_for(|status| match status.state {
        RegistrationState::Registered { revision: now } => Some(now) != revision,
        RegistrationState::Unconfirmed { .. } => false,
        RegistrationState::Reregistering { .. } => revision.is_some(),
        _ => true,
    });
    if changed.await.is_err() {
        // Its driver is gone with the runtime: nothing will be another.
        std::future::pending::<()>().await;
    }
}
