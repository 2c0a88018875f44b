//! The task that keeps a lease alive.
//!
//! ```text
//!                                         UNKNOWN
//!            ┌───────────────────────────────────────────────────────────┐
//!            ▼                            registered                     │
//!   Registering { at } ──────────────────────────────▶ Connecting { at } │
//!     │  ▲ refused, not answered: backoff                │  ▲            │
//!     │  └──────────────────────────────────────┐        │  │ renewal not answered for TTL/6, stream ended, MOVED:
//!     │                                         │ stream │  │ the next replica, at once the first time, then backoff
//!     │ SUPERSEDED                              │        ▼  │            │
//!     ▼                                         └──── Renewing ──────────┘
//!   Ended ◀── SUPERSEDED, all lost, deregistered, the handle dropped ──┘   every TTL/3
//! ```
//!
//! While the lease lives it is renewed, whatever becomes of the words: those that the registry has not taken (an update
//! that was not answered; instances that EXPIRED or were EVICTED) are *owed*, and sent from `Renewing`. Words that the
//! registry then refuses for good give way to those that it took before.
//!
//! Commands are served in every state. While a registration or a deregistration is under way they wait for it, at most
//! the client's request timeout.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use registry_proto::v1;
use tokio::sync::{mpsc, watch};

use super::{
    EndError, LostInstance, RegistrationState, RegistrationStatus, UpdateError, command::Command,
    lease::Lease, stream::Stream,
};
use crate::{
    backoff::Backoff,
    client::{CallError, DeregisterError, MissingRegistry, RegisterError, RegistryClient},
    runtime::Runtime,
};

/// Where the task stands.
enum Phase {
    /// The registry is to be told everything, then.
    Registering { at: Duration },
    /// A stream for renewals is to be opened, then.
    Connecting { at: Duration },
    /// Renewals go over this stream.
    Renewing(Box<Renewals>),
    /// Nothing is renewed any longer.
    Ended,
}

/// Renewals under way.
struct Renewals {
    stream: Stream,
    next_at: Duration,
    /// Which renewal is not answered yet, and until when it may be.
    waiting: Option<(u64, Duration)>,
}

/// What became of words that were sent.
enum Words {
    Taken,
    /// They are to be sent again, then.
    Again {
        at: Duration,
    },
    Superseded,
}

/// The task.
pub(super) struct Driver {
    client: RegistryClient,
    runtime: Runtime,
    lease: Lease,
    status: watch::Sender<RegistrationStatus>,
    commands: mpsc::Receiver<Command>,
    backoff: Backoff,
    /// It was registered again, and no renewal has confirmed that since.
    unproven: bool,
    request_id: u64,
    /// The last renewal or registration was answered well.
    answered_last: bool,
    /// Words that the registry has not taken yet are to be sent then.
    owed: Option<Duration>,
}

impl Driver {
    pub(super) fn new(
        client: RegistryClient,
        lease: Lease,
        status: watch::Sender<RegistrationStatus>,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        let runtime = client.runtime().clone();
        Self {
            client,
            runtime,
            lease,
            status,
            commands,
            backoff: Backoff::default(),
            unproven: false,
            request_id: 0,
            answered_last: true,
            owed: None,
        }
    }

    /// Runs until the handle is gone.
    pub(super) async fn run(mut self) {
        let mut phase = Phase::Connecting { at: self.runtime.now() };
        loop {
            let next = match phase {
                Phase::Registering { at } => self.registering(at).await,
                Phase::Connecting { at } => self.connecting(at).await,
                Phase::Renewing(renewals) => self.renewing(renewals).await,
                Phase::Ended => self.commands.recv().await.map(|command| {
                    command.refuse(self.status.borrow().state.clone());
                    Phase::Ended
                }),
            };
            match next {
                Some(next) => phase = next,
                None => break,
            }
        }
        if !self.status.borrow().state.is_final() {
            // As well as it can be done: nobody is there to be told.
            let _ = self.deregister().await;
        }
    }

    /// `None`: the handle is gone.
    async fn registering(&mut self, at: Duration) -> Option<Phase> {
        let wait = at.saturating_sub(self.runtime.now());
        tokio::select! {
            biased;
            command = self.commands.recv() => return self.command(command?, Phase::Registering { at }).await,
            () = tokio::time::sleep(wait) => {}
        }
        Some(match self.send_words(self.client.request_timeout()).await {
            Words::Taken => Phase::Connecting { at: self.runtime.now() },
            Words::Again { at } => Phase::Registering { at },
            Words::Superseded => self.end(RegistrationState::Superseded),
        })
    }

    async fn connecting(&mut self, at: Duration) -> Option<Phase> {
        let wait = at.saturating_sub(self.runtime.now());
        tokio::select! {
            biased;
            command = self.commands.recv() => return self.command(command?, Phase::Connecting { at }).await,
            () = tokio::time::sleep(wait) => {}
        }
        self.request_id += 1;
        let (sent_at, patience) = (self.runtime.now(), self.patience());
        match Stream::open(&self.client, self.renewal(), patience).await {
            Ok(stream) => Some(Phase::Renewing(Box::new(Renewals {
                stream,
                next_at: sent_at + self.between_renewals(),
                waiting: Some((self.request_id, sent_at + patience)),
            }))),
            Err(reason) => Some(self.unconfirmed(&reason)),
        }
    }

    async fn renewing(&mut self, mut renewals: Box<Renewals>) -> Option<Phase> {
        loop {
            let now = self.runtime.now();
            let due = renewals.waiting.map_or(renewals.next_at, |(_, until)| until);
            let wake = self.owed.map_or(due, |at| at.min(due));
            tokio::select! {
                biased;
                response = renewals.stream.responses.message() => {
                    let reason = match response {
                        Ok(Some(response)) => match self.answered(&mut renewals, response) {
                            None => continue,
                            Some(next) => return Some(next),
                        },
                        Ok(None) => "the registry closed the stream of renewals".to_owned(),
                        Err(status) => status.to_string(),
                    };
                    renewals.stream.connection.retire();
                    return Some(self.unconfirmed(&reason));
                }
                command = self.commands.recv() => return self.command(command?, Phase::Renewing(renewals)).await,
                () = tokio::time::sleep(wake.saturating_sub(now)) => {
                    // Words come between renewals and make none late, whether they are answered or not.
                    let left = due.saturating_sub(self.runtime.now());
                    if !left.is_zero() && self.owed.take_if(|at| *at <= wake).is_some() {
                        match self.send_words(left).await {
                            Words::Taken => {}
                            Words::Again { at } => self.owed = Some(at),
                            Words::Superseded => return Some(self.end(RegistrationState::Superseded)),
                        }
                        continue;
                    }
                    if renewals.waiting.is_some() {
                        renewals.stream.connection.retire();
                        let reason = format!("a renewal was not answered within {:?}", self.patience());
                        return Some(self.unconfirmed(&reason));
                    }
                    let now = self.runtime.now();
                    self.request_id += 1;
                    if renewals.stream.requests.try_send(self.renewal()).is_err() {
                        renewals.stream.connection.retire();
                        return Some(self.unconfirmed("the stream of renewals does not take any more"));
                    }
                    renewals.waiting = Some((self.request_id, now + self.patience()));
                    renewals.next_at = now + self.between_renewals();
                }
            }
        }
    }

    /// Takes the answer to a renewal in. `Some`: something else is to be done now.
    fn answered(&mut self, renewals: &mut Renewals, response: v1::KeepAliveResponse) -> Option<Phase> {
        use v1::lease_exception::Kind;
        if renewals.waiting.is_some_and(|(id, _)| id == response.request_id) {
            renewals.waiting = None;
        }
        let exception = response.exceptions.into_iter().find(|exception| exception.lease_id == self.lease.id);
        let Some(exception) = exception else {
            if renewals.waiting.is_none() {
                self.confirmed();
            }
            return None;
        };
        match exception.kind() {
            Kind::Unknown => {
                self.owed = None;
                Some(Phase::Registering { at: self.again("the registry does not know the lease") })
            }
            Kind::Superseded => Some(self.end(RegistrationState::Superseded)),
            Kind::Partial => {
                let losses = self.lease.lose(exception.lost);
                self.tell_lost(losses.gone);
                if self.lease.instances.is_empty() {
                    return Some(self.end(RegistrationState::Lost));
                }
                if losses.again && self.owed.is_none() {
                    let at = self.again("some instances expired or were evicted");
                    self.owed = Some(at);
                } else if !losses.again {
                    self.confirmed();
                }
                None
            }
            Kind::Moved => {
                renewals.stream.connection.retire();
                Some(self.unconfirmed("another replica holds the lease"))
            }
            // A later registry's word: the renewal was not plain, but nothing is known to be lost.
            Kind::Unspecified => None,
        }
    }

    async fn command(&mut self, command: Command, phase: Phase) -> Option<Phase> {
        match command {
            Command::Waits { reply } => {
                let _ = reply.send(self.lease.waits());
                Some(phase)
            }
            Command::Deregister { reply } => {
                let result = self.deregister().await;
                let _ = reply.send(result.map_err(EndError::Failed));
                Some(Phase::Ended)
            }
            Command::Update { mut change, reply } => {
                let before = self.lease.clone();
                // It is the caller's own: the lease outlives it.
                if catch_unwind(AssertUnwindSafe(|| self.lease.change(&mut *change))).is_err() {
                    self.lease = before;
                    let _ = reply.send(Err(UpdateError::Panicked));
                    return Some(phase);
                }
                // A registry that is away for a moment is waited for: a handover is no trouble of the caller's.
                match self.register(self.between_renewals(), MissingRegistry::Wait).await {
                    Ok(response) => {
                        self.registered(&response);
                        let _ = reply.send(Ok(response.revision));
                        // It renewed the lease, too; a stream that is open goes on.
                        Some(match phase {
                            Phase::Registering { .. } => Phase::Connecting { at: self.runtime.now() },
                            other => other,
                        })
                    }
                    Err(error) if error.is_passing() => {
                        if !matches!(phase, Phase::Registering { .. }) {
                            self.owed = Some(self.again("an update was not answered"));
                        }
                        let _ = reply.send(Err(UpdateError::Pending(error)));
                        Some(phase)
                    }
                    Err(RegisterError::Superseded(_)) => {
                        let next = self.end(RegistrationState::Superseded);
                        let _ = reply.send(Err(UpdateError::Ended(RegistrationState::Superseded)));
                        Some(next)
                    }
                    Err(error) => {
                        self.lease = before;
                        let _ = reply.send(Err(UpdateError::Refused(error)));
                        Some(phase)
                    }
                }
            }
        }
    }

    async fn deregister(&mut self) -> Result<(), DeregisterError> {
        let request = v1::DeregisterRequest {
            lease_id: self.lease.id.to_vec(),
            instances: Vec::new(),
            actor: self.lease.instance_uid.clone(),
        };
        let result = self.client.deregister(request).await;
        self.tell(RegistrationState::Deregistered);
        result.map(|_| ())
    }

    fn renewal(&self) -> v1::KeepAliveRequest {
        v1::KeepAliveRequest { lease_ids: vec![self.lease.id.to_vec()], request_id: self.request_id }
    }

    /// Registers, for at most so long.
    async fn register(
        &self,
        limit: Duration,
        missing: MissingRegistry,
    ) -> Result<v1::RegisterResponse, RegisterError> {
        let answer = self.client.register(self.lease.request(), missing);
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(RegisterError::Failed(CallError::Timeout(limit))),
        }
    }

    /// Sends words that the registry has not taken yet.
    async fn send_words(&mut self, limit: Duration) -> Words {
        let error = match self.register(limit, MissingRegistry::FailFast).await {
            Ok(response) => {
                self.registered(&response);
                return Words::Taken;
            }
            Err(RegisterError::Superseded(_)) => return Words::Superseded,
            Err(error) => error,
        };
        if !error.is_passing() && self.lease.revert() {
            tracing::error!(%error, "the update that the registry was not there for is refused, and given up");
        } else {
            tracing::warn!(%error, "cannot register; trying again");
        }
        self.tell(RegistrationState::Reregistering { reason: error.to_string().into() });
        Words::Again { at: self.runtime.now() + self.backoff.next(&self.runtime) }
    }

    /// How long from one renewal to the next, and so for anything else that is done meanwhile.
    fn between_renewals(&self) -> Duration {
        self.lease.granted / 3
    }

    /// How long a renewal may stay unanswered (C3).
    fn patience(&self) -> Duration {
        self.lease.granted / 6
    }

    fn registered(&mut self, response: &v1::RegisterResponse) {
        self.lease.granted(response);
        (self.owed, self.answered_last) = (None, true);
        self.tell(RegistrationState::Registered { revision: response.revision });
    }

    /// A renewal was answered, and all is well.
    fn confirmed(&mut self) {
        self.answered_last = true;
        if self.owed.is_none() {
            self.backoff.reset();
            self.unproven = false;
        }
        self.status.send_if_modified(|status| match status.state {
            RegistrationState::Unconfirmed { .. } => {
                // The words have not changed since the revision at which they were registered.
                status.state = RegistrationState::Registered { revision: self.lease.revision };
                true
            }
            _ => false,
        });
    }

    /// The lease may live: ask the next replica, at once the first time.
    fn unconfirmed(&mut self, reason: &str) -> Phase {
        let first = std::mem::take(&mut self.answered_last);
        tracing::warn!(reason, "a renewal was not confirmed; asking another replica");
        if self.owed.is_none() {
            self.tell(RegistrationState::Unconfirmed { reason: reason.into() });
        }
        // Far below the TTL, so that a lease is not lost to politeness.
        let longest = self.patience();
        let pause = if first { Duration::ZERO } else { self.backoff.next(&self.runtime).min(longest) };
        Phase::Connecting { at: self.runtime.now() + pause }
    }

    /// When to register again: promptly, but not all registrants of a restarted registry in the same instant; and with growing pauses at a
    /// registry that forgets what it was just told.
    fn again(&mut self, reason: &str) -> Duration {
        tracing::info!(reason, "registering again");
        self.tell(RegistrationState::Reregistering { reason: reason.into() });
        let spread = (self.lease.granted / 20).min(Duration::from_secs(1));
        let mut pause = self.runtime.jitter(spread);
        if std::mem::replace(&mut self.unproven, true) {
            pause += self.backoff.next(&self.runtime);
        }
        self.runtime.now() + pause
    }

    fn end(&self, state: RegistrationState) -> Phase {
        tracing::warn!(?state, "the registration has ended");
        self.tell(state);
        Phase::Ended
    }

    fn tell(&self, state: RegistrationState) {
        self.status.send_if_modified(|status| {
            let modified = status.state != state;
            status.state = state;
            modified
        });
    }

    fn tell_lost(&self, lost: Vec<LostInstance>) {
        if !lost.is_empty() {
            tracing::warn!(?lost, "others took over or deregistered instances of this process");
            self.status.send_modify(|status| {
                status.lost = status.lost.iter().cloned().chain(lost).collect::<Arc<[_]>>();
            });
        }
    }
}
