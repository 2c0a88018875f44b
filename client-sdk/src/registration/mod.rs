//! Being registered, for as long as a handle lives.
//!
//! Owns the lease: registering, renewing, registering again by itself when the registry forgot, changing weight, tags and
//! status at run time, draining, deregistering. `driver` holds the state machine, `stream` what renewals go over, `lease` the words, `drain` the way out; this file
//! is the handle to them. Keeps C3's half for registrants (an unanswered renewal tries another replica after TTL/6) and C4's:
//! nothing in flight is waited for, and nothing deregistered, before the callers know.

mod builder;
mod command;
mod drain;
mod driver;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod lease;
mod stream;

use std::{sync::Arc, time::Duration};

pub use builder::RegistrationBuilder;
use command::Command;
pub use drain::{Drained, Watchers};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    client::{DeregisterError, RegisterError, RegistryClient},
    model::Instance,
};

/// Instances of this process in the registry, under one lease that is kept alive in the background.
///
/// End it with [`drain`](Self::drain) or [`deregister`](Self::deregister). If the handle is just dropped, a task
/// deregisters as well as it can within the client's request timeout, provided that the runtime lives so long;
/// failing that, the lease runs out.
///
/// ```no_run
/// use client_sdk::{client::RegistryClient, registration::Registration};
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = RegistryClient::builder().build()?;
/// let registration =
///     Registration::builder(client).service("greeter").address("10.0.0.7:8080".parse()?).register().await?;
/// registration.update(|instance| instance.weight = 3).await?;
/// registration.drain().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Registration {
    client: RegistryClient,
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<RegistrationStatus>,
    lease_id: [u8; 16],
    drain_grace: Duration,
    drain_timeout: Duration,
}

/// Where a registration stands, and what it lost.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegistrationStatus {
    /// Where it stands.
    pub state: RegistrationState,
    /// Instances that others took over or deregistered. They are not registered again.
    pub lost: Arc<[LostInstance]>,
}

/// Where a registration stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegistrationState {
    /// Registered, and renewed in time.
    Registered {
        /// The registry's revision at the last registration or update.
        revision: u64,
    },
    /// A renewal was not answered. The lease may well live; other replicas are being asked.
    Unconfirmed {
        /// Why.
        reason: Arc<str>,
    },
    /// The registry does not have these words (yet, or any longer): they are being registered.
    Reregistering {
        /// Why.
        reason: Arc<str>,
    },
    /// Final: a newer generation of this registrant, or someone newer, took everything. The application should stop.
    Superseded,
    /// Final: every instance was taken over or deregistered by others.
    Lost,
    /// Final: deregistered by this process.
    Deregistered,
}

/// An instance that is no longer under the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LostInstance {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its service.
    pub service: Arc<str>,
    /// Its id.
    pub id: Arc<str>,
    /// Why.
    pub reason: LostReason,
}

/// Why an instance is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LostReason {
    /// Another lease registered the same id.
    TakenOver,
    /// Someone deregistered it.
    Deregistered,
}

/// Why an update was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// The registry refused the new words. The old ones stay.
    #[error("the update was refused, the instance stays as it was: {0}")]
    Refused(RegisterError),
    /// The registry has not answered. The new words are kept, and sent as soon as it does; if it then refuses them, they
    /// are given up for those before them.
    #[error("the update has not reached the registry yet and will be sent as soon as it can be: {0}")]
    Pending(RegisterError),
    /// The function that was given panicked. The old words stay; nothing was sent.
    #[error("the update's own function panicked, the instance stays as it was; its panic says where")]
    Panicked,
    /// The registration has ended.
    #[error("the registration has ended ({0:?}); register anew")]
    Ended(RegistrationState),
}

/// Why a drain or a deregistration did not reach the registry. Locally it is over all the same: nothing is renewed any
/// longer, and the instances go when the lease runs out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndError {
    /// The call failed.
    #[error(transparent)]
    Failed(DeregisterError),
    /// It had ended before, and not by this process.
    #[error("the registration had ended already ({0:?})")]
    Ended(RegistrationState),
}

impl RegistrationState {
    /// Whether it stays so.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Superseded | Self::Lost | Self::Deregistered)
    }
}

impl Registration {
    /// Builds a registration.
    pub fn builder(client: RegistryClient) -> RegistrationBuilder {
        RegistrationBuilder::new(client)
    }

    /// The lease's id.
    pub fn lease_id(&self) -> [u8; 16] {
        self.lease_id
    }

    /// Where it stands now.
    pub fn status(&self) -> RegistrationStatus {
        self.status.borrow().clone()
    }

    /// Follows where it stands: the newest status, and a wake-up whenever it changes. `Superseded` and `Lost` ask
    /// something of the application; the other states pass by themselves.
    pub fn events(&self) -> watch::Receiver<RegistrationStatus> {
        self.status.clone()
    }

    /// Changes weight, tags, locality or status of the instances; `change` is called with each of them, in another task. Ids stay. What
    /// it does survives re-registration.
    pub async fn update(
        &self,
        change: impl FnMut(&mut Instance) + Send + 'static,
    ) -> Result<u64, UpdateError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Update { change: Box::new(change), reply };
        if self.commands.send(command).await.is_err() {
            return Err(UpdateError::Ended(self.status().state));
        }
        answer.await.unwrap_or_else(|_| Err(UpdateError::Ended(self.status().state)))
    }

    /// Removes the lease with all its instances, at once: callers that have not heard of it yet fail. Done already is fine.
    pub async fn deregister(&self) -> Result<(), EndError> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Deregister { reply }).await.is_err() {
            return Err(EndError::Ended(self.status().state));
        }
        answer.await.unwrap_or_else(|_| Err(EndError::Ended(self.status().state)))
    }
}
