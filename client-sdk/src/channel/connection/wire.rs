//! Drives a lane: reads and writes what h2 has for it, and pings.
//!
//! ```text
//!   drive ---- owns ---> the wire (a task of its own, woken by the socket and by every call)
//!     |                    tells the lane of what was heard: streams that ended, another limit of them, a GOAWAY
//!     +-- keepalive: a ping stayed unanswered ---> the wire is cut, its calls are lost
//! ```
//!
//! Nobody owns it, for a lane that takes no more calls still finishes those that it has. It holds the lane weakly: h2 closes
//! a connection when nobody holds a handle of it or a stream any more.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use tokio::sync::{Notify, oneshot};

use super::{
    keepalive::unanswered,
    lane::Lane,
    open::{Driven, Opened, Opener},
};
use crate::channel::greeting::Traffic;

/// Starts a lane over an open connection. `room` is told when its peer sets another limit; the receiver, by its sender
/// being dropped, when the connection is over.
pub(super) fn start(
    nth: u64,
    opened: Opened,
    opener: &Opener,
    room: Arc<Notify>,
) -> (Arc<Lane>, oneshot::Receiver<()>) {
    let Opened { sender, driven, pings, traffic, origin } = opened;
    let lane = Arc::new(Lane::new(nth, origin, sender, Arc::clone(&traffic)));
    let weak = Arc::downgrade(&lane);
    let wire = Wire { driven, lane: Weak::clone(&weak), room, traffic: Arc::clone(&traffic) };
    let (over, closed) = oneshot::channel::<()>();
    let (runtime, settings) = (opener.runtime.clone(), Arc::clone(&opener.settings));
    opener.runtime.detach(async move {
        let (tell, ended) = oneshot::channel();
        // Cutting it is dropping it: with the connection its streams break.
        let wire = runtime.spawn(async move {
            let ended = wire.await;
            tracing::trace!(?ended, nth, "connection ended");
            let _ = tell.send(()); // nobody waits for what was cut
        });
        let unanswered = tokio::select! {
            biased;
            _ = ended => None,
            why = unanswered(&settings, pings, &traffic, &weak) => Some(why),
        };
        if let Some(lane) = weak.upgrade() {
            match unanswered {
                Some(why) => lane.give_up(why),
                None => lane.retire(),
            }
        }
        drop((wire, over));
    });
    (lane, closed)
}

struct Wire {
    driven: Driven,
    lane: Weak<Lane>,
    room: Arc<Notify>,
    traffic: Arc<Traffic>,
}

impl Future for Wire {
    type Output = Result<(), h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = Pin::new(&mut self.driven).poll(cx);
        if let Some(lane) = self.lane.upgrade() {
            if lane.sweep() {
                self.room.notify_one();
            }
            if self.traffic.take_news() && lane.look() {
                self.room.notify_waiters();
            }
            if polled.is_ready() {
                lane.retire();
            }
        }
        polled
    }
}
