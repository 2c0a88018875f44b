//! What opens an instance's first connection, keeps it, opens it again, and sees the instance off. The diagram is its
//! connection's.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{
    Connection, Phase,
    error::{ConnectError, ConnectProblem},
    lane::{End, keep, until},
    open::Opener,
};
use crate::members::Order;

/// A connection that breaks sooner than this after its greeting counts as a failure, so that a peer that greets and
/// closes is not connected to in a hot loop.
pub(super) const SETTLED: Duration = Duration::from_secs(1);

pub(super) struct Actor {
    pub(super) connection: Arc<Connection>,
    pub(super) opener: Opener,
}

impl Actor {
    pub(super) async fn run(self, mut orders: watch::Receiver<Order>) {
        let mut failures = 0u32;
        let mut last = None;
        loop {
            let order = *orders.borrow_and_update();
            match order {
                Order::Drain => break,
                Order::Rest => {
                    self.set(Phase::Idle);
                    (failures, last) = (0, None);
                    if orders.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                Order::Connect { .. } => {}
            }
            self.set(Phase::Connecting { last: last.clone() });
            let instance = self.connection.instance.load_full();
            let opened = tokio::select! {
                biased;
                opened = self.opener.open(&instance) => opened,
                _ = until(&mut orders, |order| !matches!(order, Order::Connect { .. })) => continue,
            };
            let problem = match opened {
                Ok(opened) => {
                    let since = self.opener.runtime.now();
                    let (lane, closed) = self.connection.admit(opened, &self.opener);
                    self.opener.meters.connected();
                    tracing::debug!(address = %self.connection.address, nth = lane.nth, "connected");
                    self.set(Phase::Open { nth: lane.nth });
                    let draining = || self.set(Phase::Draining);
                    let end = keep(&self.connection, lane, closed, &mut orders, None, draining).await;
                    if end == End::Orphaned {
                        return;
                    }
                    let lasted = self.opener.runtime.now().saturating_sub(since);
                    if lasted >= SETTLED {
                        (failures, last) = (0, None);
                        continue;
                    }
                    ConnectProblem::Brief(lasted)
                }
                Err(problem) => problem,
            };
            if *orders.borrow() == Order::Drain {
                break;
            }
            failures = failures.saturating_add(1);
            self.opener.meters.not_connected();
            let error = Arc::new(ConnectError::new(self.connection.address.clone(), problem));
            tracing::debug!(%error, failures, "not connected");
            self.set(Phase::TransientFailure { error: Arc::clone(&error) });
            last = Some(error);
            let delay = self.opener.settings.backoff.pause(failures, &self.opener.runtime);
            let before = *orders.borrow();
            tokio::select! {
                biased;
                changed = until(&mut orders, |order| *order != before) => match changed {
                    Ok(()) => (failures, last) = (0, None),
                    Err(_) => return,
                },
                () = tokio::time::sleep(delay) => {}
            }
        }
        self.set(Phase::Draining);
        self.connection.finished().await;
    }

    fn set(&self, phase: Phase) {
        self.connection.phase.store(Arc::new(phase));
        self.connection.changed();
    }
}
