//! What opens further connections to an instance whose open ones are full.
//!
//! ```text
//!               all full              greeted
//!   enough ----------------> opening ---------> one lane more; enough, until all are full again
//!     ^                         |
//!     | backoff passed          | failed, or the last one was closed at once
//!     +---------- not now <-----+
//! ```
//!
//! One at a time, and never more than set. Calls that find no room wait for it, or for an earlier call to end; where no
//! other may be hoped for and the peer sets no limit, they go to the connection that has the fewest. A lane that was idle for
//! long closes again.

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};

use super::{
    Connection,
    actor::SETTLED,
    lane::{End, keep, until},
    open::{Opened, Opener},
};
use crate::members::Order;

/// How long a further connection stays without a call.
pub(super) const IDLE: Duration = Duration::from_mins(1);

pub(super) struct Growth {
    pub(super) connection: Arc<Connection>,
    pub(super) opener: Opener,
    /// How many connections beyond the first there may be, at least 1.
    pub(super) most: usize,
}

impl Growth {
    pub(super) async fn run(self, mut orders: watch::Receiver<Order>) {
        // Each lane says once whether it failed, so there is always room to say it.
        let (tell, mut ended) = mpsc::channel(self.most);
        let mut lanes = 0;
        let mut failures = 0;
        loop {
            let order = *orders.borrow_and_update();
            let may_grow = matches!(order, Order::Connect { .. }) && lanes < self.most;
            self.connection.may_grow(may_grow);
            tokio::select! {
                biased;
                changed = orders.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                Some(failed) = ended.recv() => {
                    lanes -= 1;
                    failures = if failed { failures + 1 } else { 0 };
                    if !failed {
                        continue;
                    }
                }
                () = self.connection.demand.notified(), if may_grow => {
                    // Calls that wait although there is room by now are told so at the top.
                    if !self.connection.is_full() {
                        continue;
                    }
                    let instance = self.connection.instance.load_full();
                    let opened = tokio::select! {
                        biased;
                        opened = self.opener.open(&instance) => opened,
                        _ = until(&mut orders, |order| !matches!(order, Order::Connect { .. })) => continue,
                    };
                    match opened {
                        Ok(opened) => {
                            lanes += 1;
                            self.add(opened, orders.clone(), tell.clone());
                            continue;
                        }
                        Err(problem) => {
                            failures += 1;
                            let address = &self.connection.address;
                            tracing::debug!(%address, %problem, failures, "no further connection");
                        }
                    }
                }
            }
            self.opener.meters.not_connected();
            self.connection.may_grow(false);
            let delay = self.opener.settings.backoff.pause(failures, &self.opener.runtime);
            tokio::select! {
                biased;
                changed = until(&mut orders, |now| *now != order) => match changed {
                    Ok(()) => failures = 0,
                    Err(_) => return,
                },
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// The lane's task ends by itself: with the lane, or with whoever gives orders.
    fn add(&self, opened: Opened, mut orders: watch::Receiver<Order>, tell: mpsc::Sender<bool>) {
        let connection = Arc::clone(&self.connection);
        let runtime = self.opener.runtime.clone();
        let (lane, closed) = connection.admit(opened, &self.opener);
        connection.changed();
        self.opener.meters.connected();
        tracing::debug!(address = %connection.address, nth = lane.nth, "connected");
        self.opener.runtime.detach(async move {
            let since = runtime.now();
            let end = keep(&connection, lane, closed, &mut orders, Some(IDLE), || {}).await;
            let failed = end == End::Closed && runtime.now().saturating_sub(since) < SETTLED;
            let _ = tell.try_send(failed); // nobody counts any more
        });
    }
}
