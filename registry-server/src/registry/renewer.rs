//! Somebody who renews leases, mostly the same ones again and again: a stream of renewals.

use std::sync::{Mutex, PoisonError};

use tokio::sync::oneshot;

use super::{Registry, Renew, WriteError};
use crate::core::{LeaseId, Renewal, Trail};

/// Renews leases, and knows which it renewed last.
#[derive(Debug)]
pub struct Renewer {
    registry: Registry,
    trail: Mutex<Trail>,
}

impl Renewer {
    pub(super) fn new(registry: Registry) -> Self {
        Self { registry, trail: Mutex::default() }
    }

    /// The registry whose leases these are.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Renews leases and answers with the exceptions. Changes nothing durable and waits for no disk.
    pub async fn renew(&self, mut leases: Vec<LeaseId>) -> Result<Vec<(LeaseId, Renewal)>, WriteError> {
        let asked = leases.len();
        self.renew_quiet(&mut leases);
        if leases.is_empty() && asked > 0 {
            return Ok(Vec::new());
        }
        let (reply, answer) = oneshot::channel();
        let renew = Renew { leases, reply };
        self.registry.renewals.send(renew).await.map_err(|_| WriteError::ShuttingDown)?;
        answer.await.map_err(|_| WriteError::ShuttingDown)
    }

    /// Renews what needs no turn of the loop. What is left does.
    fn renew_quiet(&self, leases: &mut Vec<LeaseId>) {
        // A guess, whoever wrote it and however far he came.
        let mut trail = self.trail.lock().unwrap_or_else(PoisonError::into_inner);
        self.registry.lent.renew(&self.registry.runtime, leases, &mut trail);
    }
}
