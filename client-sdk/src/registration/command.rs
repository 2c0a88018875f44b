//! What the handle asks of the task behind it.

use registry_proto::v1;
use tokio::sync::oneshot;

use super::{EndError, RegistrationState, UpdateError};
use crate::model::Instance;

/// What the handle asks for.
pub(super) enum Command {
    Update { change: Box<dyn FnMut(&mut Instance) + Send>, reply: oneshot::Sender<Result<u64, UpdateError>> },
    Waits { reply: oneshot::Sender<Vec<v1::WaitAppliedRequest>> },
    Deregister { reply: oneshot::Sender<Result<(), EndError>> },
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Update { .. } => "Update",
            Self::Waits { .. } => "Waits",
            Self::Deregister { .. } => "Deregister",
        })
    }
}

impl Command {
    /// Answers it after the end, which is that state.
    pub(super) fn refuse(self, state: RegistrationState) {
        match self {
            Self::Waits { reply } => {
                let _ = reply.send(Vec::new());
            }
            Self::Update { reply, .. } => {
                let _ = reply.send(Err(UpdateError::Ended(state)));
            }
            Self::Deregister { reply } => {
                let done = state == RegistrationState::Deregistered;
                let _ = reply.send(if done { Ok(()) } else { Err(EndError::Ended(state)) });
            }
        }
    }
}
