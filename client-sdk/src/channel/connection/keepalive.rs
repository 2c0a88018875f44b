//! Whether a connection's peer is still there: it is asked, by a ping, after a while in which nothing came from it.
//!
//! ```text
//!           something came                nothing came, twice          answered
//!   listens ---------------> listens ... --------------------> pinged ---------> listens
//!                                                                | too late
//!                                                                v
//!                                                              given up
//! ```
//!
//! Looks twice an interval, at a count: so a read costs no clock. Whoever was heard between two looks was heard half an
//! interval ago at least when the next one finds nothing, so a ping goes out between half an interval and a whole one after
//! the last sign of life, and never sooner than an interval after the last answer.
//!
//! Keeps its part of C3: a dead peer is noticed within the interval and the timeout.

use std::{sync::Weak, time::Duration};

use h2::{Ping, PingPong};

use super::lane::Lane;
use crate::channel::{greeting::Traffic, settings::Settings};

/// A peer that did not answer a ping.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("keepalive: no answer to a ping within {} ms", .0.as_millis())]
pub(in crate::channel) struct Unanswered(pub(super) Duration);

/// Until a ping stays unanswered.
pub(super) async fn unanswered(
    settings: &Settings,
    mut pings: PingPong,
    traffic: &Traffic,
    lane: &Weak<Lane>,
) -> Unanswered {
    let pause = (settings.keepalive_interval / 2).max(Duration::from_millis(1));
    let mut seen = traffic.reads();
    // How many looks in a row found silence; the silence before one that found something is not known.
    let mut silent = 0;
    loop {
        tokio::time::sleep(pause).await;
        let reads = traffic.reads();
        let heard = std::mem::replace(&mut seen, reads) != reads;
        let rests = || lane.upgrade().is_none_or(|lane| lane.in_flight() == 0);
        silent = match (heard, silent) {
            _ if !settings.keepalive_while_idle && rests() => 0,
            (true, _) => 1,
            (false, silent) => silent + 1,
        };
        if silent < 2 {
            continue;
        }
        match tokio::time::timeout(settings.keepalive_timeout, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => (seen, silent) = (traffic.reads(), 0),
            // The connection is over, which it says itself.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return Unanswered(settings.keepalive_timeout),
        }
    }
}
