//! Whether a connection's client is still there: it is asked every [`PING_INTERVAL`], and answers within [`PING_TIMEOUT`].
//!
//! ```text
//!   greeting ──► quiet ──(PING_INTERVAL)──► asked ──(pong)──► quiet
//!      │                                      │ ▲ (PING_TIMEOUT, and it was heard of)
//!      │                                      └─┘
//!      └────────(PING_INTERVAL)──► gone ◄─────┴──(PING_TIMEOUT)
//! ```
//!
//! Whoever sends is there, although its pong may wait long behind what it sends. A client whose machine is gone says
//! nothing, not even that it is: without this its calls and its memory would stay.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use h2::{Ping, PingPong};
use tokio::time::{Sleep, sleep};

use super::bytewise::Heard;
use crate::server::{GREETS_WHEN_CLOSING, PING_INTERVAL, PING_TIMEOUT};

/// A connection's pulse.
pub(super) struct Pulse {
    /// `None`: it has not greeted yet.
    pings: Option<PingPong>,
    asked: bool,
    heard: Heard,
    timer: Pin<Box<Sleep>>,
}

impl Pulse {
    /// Of a client that is to greet.
    pub(super) fn new(heard: Heard) -> Self {
        Self { pings: None, asked: false, heard, timer: Box::pin(sleep(PING_INTERVAL)) }
    }

    /// It has greeted.
    pub(super) fn met(&mut self, pings: Option<PingPong>) {
        self.pings = pings;
        self.rest();
    }

    /// The server closes: whoever has not greeted does so soon, or is not waited for.
    pub(super) fn close(&mut self) {
        if self.pings.is_none() {
            self.timer.set(sleep(GREETS_WHEN_CLOSING));
        }
    }

    /// Ready: the client is gone.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.asked
                && let Some(pings) = &mut self.pings
                && let Poll::Ready(pong) = pings.poll_pong(cx)
            {
                if pong.is_err() {
                    // The wire says how it ended.
                    return Poll::Pending;
                }
                self.asked = false;
                self.rest();
            }
            ready!(self.timer.as_mut().poll(cx));
            if self.asked && self.heard.since() {
                self.timer.set(sleep(PING_TIMEOUT));
                continue;
            }
            let Some(pings) = self.pings.as_mut().filter(|_| !self.asked) else { return Poll::Ready(()) };
            if pings.send_ping(Ping::opaque()).is_err() {
                return Poll::Pending;
            }
            self.asked = true;
            // What counts is what comes from now on.
            self.heard.since();
            self.timer.set(sleep(PING_TIMEOUT));
        }
    }

    fn rest(&mut self) {
        self.timer.set(sleep(PING_INTERVAL));
    }
}
