//! The one writer, behind a handle.
//!
//! ```text
//!  write() ──► bounded queue ──┐                                        ┌─► core.evolve ─► hub.publish ─► answers
//!  renew() ─┬► lane of its own ┼─► loop: wake, renewals, decide a group ┴── store.append (off the loop, one fsync)
//!  tick     │  next deadline ──┘         (proposals that touch different things; one group in flight)
//!           └► while the loop waits, and the lease is quiet: the core itself, see `lent`
//! ```
//!
//! Owns the order of everything that changes: D2 (published before it is answered), D3 (one command, one revision), D4
//! (a failed store stops writes and nothing else), L1 and L2 (renewals first, then what is due). Knows core, store and
//! hub; nothing of the wire.

mod group;
mod lent;
mod renewer;
mod writer;

use std::sync::Arc;

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

pub use self::renewer::Renewer;
use self::{
    lent::Lent,
    writer::{Lanes, Pending, Request, Writer},
};
use crate::{
    core::{Command, Core, LeaseId, Now, Rejection, Renewal, Revision, Settings, State},
    hub::{Hub, HubSettings},
    runtime::Runtime,
    store::{Store, StoreError},
};

/// Writes that wait for the loop at most; a further one is refused. Renewals do not count.
pub const QUEUE: usize = 4_096;
/// Renewal messages that wait at most; a further one waits outside, and is not refused.
const RENEWALS: usize = 4_096;

/// Instances that one revision of expiry removes at most, so that other writes come between.
pub const EXPIRED_AT_ONCE: usize = writer::EXPIRE_CHUNK;

/// What a write came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Reads from now on show this revision or a later one.
    pub revision: Revision,
    /// `Register`: the incarnations, in the order of the command.
    pub incarnations: Vec<Revision>,
    /// How many instances it removed or, for `ResolveHold`, resolved.
    pub affected: usize,
}

/// Why a write was not done. It changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// By the rules.
    #[error("refused: {0:?}")]
    Rejected(Rejection),
    /// Too many writes are waiting.
    #[error("{QUEUE} writes are waiting already; try again in a moment")]
    QueueFull,
    /// The store failed: nothing is written until the server restarts (D4).
    #[error("the store failed and takes no more writes until the server is restarted: {0}")]
    StoreFailed(Arc<str>),
    /// The server is stopping.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// Whether writes are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreHealth {
    /// They are.
    Writable,
    /// They are not, and why.
    Failed(Arc<str>),
}

/// What was found when the registry started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// The history's name.
    pub epoch: String,
    /// The last revision.
    pub revision: Revision,
    /// Services with instances.
    pub services: usize,
    /// Instances.
    pub instances: usize,
    /// Leases.
    pub leases: usize,
}

/// The registry. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    commands: mpsc::Sender<Request>,
    renewals: mpsc::Sender<Renew>,
    lent: Arc<Lent>,
    runtime: Runtime,
    hub: Hub,
    health: watch::Receiver<StoreHealth>,
}

/// The running loop. It ends when it is stopped or the last [`Registry`] is gone.
#[derive(Debug)]
pub struct WriterTask {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl WriterTask {
    /// Takes nothing more, finishes what was taken, and returns when the store is closed.
    pub async fn stop(self) {
        // An error means that it has ended already.
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

/// Leases to renew, and where the exceptions go.
#[derive(Debug)]
struct Renew {
    leases: Vec<LeaseId>,
    reply: oneshot::Sender<Vec<(LeaseId, Renewal)>>,
}

impl Registry {
    /// Loads what the store keeps and starts the loop.
    pub fn start(
        mut store: Box<dyn Store>,
        settings: Settings,
        hub_settings: HubSettings,
        runtime: &Runtime,
    ) -> Result<(Self, Started, WriterTask), StoreError> {
        let loaded = store.load()?;
        let now = runtime.now();
        let mut state = State::from_base(loaded.base).with_remembered(settings.remembered_services);
        // Records that the recent log would drop at once are not published first.
        let mut tail = loaded.tail.into_iter().peekable();
        while let Some(old) = tail.next_if(|it| hub_settings.log.is_too_old(it.record.wall, now.wall)) {
            state.evolve(&old);
        }
        let hub = Hub::new(&loaded.epoch, &state, now.wall, hub_settings);
        // Replay is the same path as life: the recent log is there again as far as the records go back (W5).
        for committed in tail {
            hub.publish(&state.evolve(&committed), committed.revision);
        }
        let started = Started {
            epoch: loaded.epoch,
            revision: state.revision(),
            services: state.services_after(None).filter(|(_, service)| !service.instances.is_empty()).count(),
            instances: state.instance_count(),
            leases: state.lease_count(),
        };
        let core = Core::take_up(settings, state, now);
        let (commands, command_lane) = mpsc::channel(QUEUE);
        let (renewals, renewal_lane) = mpsc::channel(RENEWALS);
        let (status, health) = watch::channel(StoreHealth::Writable);
        let (stop, stopped) = oneshot::channel();
        let lanes = Lanes { commands: command_lane, renewals: renewal_lane, stopped };
        let lent = Arc::new(Lent::default());
        let writer =
            Writer::new((core, Arc::clone(&lent)), hub.clone(), store, runtime.clone(), lanes, status);
        let task = runtime.spawn(writer.run());
        let registry = Self { commands, renewals, lent, runtime: runtime.clone(), hub, health };
        Ok((registry, started, WriterTask { stop, task }))
    }

    /// Does one command, durably, and answers when reads show it.
    pub async fn write(&self, command: Command) -> Result<Written, WriteError> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Write(Pending { command, reply });
        self.commands.try_send(request).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => WriteError::QueueFull,
            mpsc::error::TrySendError::Closed(_) => WriteError::ShuttingDown,
        })?;
        answer.await.unwrap_or(Err(WriteError::ShuttingDown))
    }

    /// Somebody who renews leases.
    pub fn renewer(&self) -> Renewer {
        Renewer::new(self.clone())
    }

    /// Reads the state where it is, between two groups. For what the hub does not publish; `read` must be quick.
    pub async fn inspect<T: Send + 'static>(
        &self,
        read: impl FnOnce(&State, Now) -> T + Send + 'static,
    ) -> Result<T, WriteError> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Inspect(Box::new(move |state, now| {
            // Whoever asked may have gone.
            let _ = reply.send(read(state, now));
        }));
        self.commands.send(request).await.map_err(|_| WriteError::ShuttingDown)?;
        answer.await.map_err(|_| WriteError::ShuttingDown)
    }

    /// From now on no lease runs out, and no hold or override: renewals may no longer find their way here, and that time
    /// does not count (L1). A restart grants full TTLs.
    pub async fn suspend_expiry(&self) {
        // An error means that the loop has ended, and everything with it.
        let _ = self.commands.send(Request::SuspendExpiry).await;
    }

    /// What is published.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Follows whether writes are taken.
    pub fn health(&self) -> watch::Receiver<StoreHealth> {
        self.health.clone()
    }
}

#[cfg(test)]
mod history_tests;
#[cfg(test)]
mod tests;
