//! What reaches the loop, and by which way. Owns no order: the loop does.

use tokio::sync::{mpsc, oneshot};

use crate::{
    core::{Command, Now, State},
    registry::{Renew, WriteError, Written},
};

/// Reads the state where it is.
pub(in crate::registry) type Inspection = Box<dyn FnOnce(&State, Now) + Send>;

/// A request to the loop.
pub(in crate::registry) enum Request {
    Write(Pending),
    Inspect(Inspection),
    SuspendExpiry,
}

/// A command and whoever waits for it.
#[derive(Debug)]
pub(in crate::registry) struct Pending {
    pub(in crate::registry) command: Command,
    pub(in crate::registry) reply: oneshot::Sender<Result<Written, WriteError>>,
}

impl Pending {
    pub(super) fn answer(self, answer: Result<Written, WriteError>) {
        // Whoever asked may have gone; what was done stays done.
        let _ = self.reply.send(answer);
    }
}

/// What reaches the loop.
pub(in crate::registry) struct Lanes {
    pub(in crate::registry) commands: mpsc::Receiver<Request>,
    pub(in crate::registry) renewals: mpsc::Receiver<Renew>,
    /// Resolves when the loop is to end.
    pub(in crate::registry) stopped: oneshot::Receiver<()>,
}

impl Lanes {
    /// Takes nothing more; what is in them stays.
    pub(super) fn close(&mut self) {
        self.commands.close();
        self.renewals.close();
    }
}
