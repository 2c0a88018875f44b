//! The endpoints of a registry, of which one at a time is connected to.
//!
//! Owns the failover: the order is shuffled once, so that clients spread over the replicas, and each new connection
//! goes to the endpoint after the last one tried. How long to wait after a failed round is the caller's business.
//!
//! ```text
//!   connect() ── usable? ──▶ the current connection
//!       │ no
//!       ▼
//!   next endpoint ── fails ──▶ next … ── each failed once ──▶ ConnectError (shared by all who waited)
//!       │ connected
//!       ▼
//!   current connection ── closed, or retired by whoever found it dead ──▶ next endpoint, at the next connect()
//! ```

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{
    connection::{Connection, Keepalive},
    error::ConnectError,
};
use crate::{model::Address, runtime::Runtime};

/// The endpoints, and the connection to one of them.
#[derive(Debug)]
pub(crate) struct Endpoints {
    runtime: Runtime,
    connect_timeout: Duration,
    keepalive: Keepalive,
    order: Box<[Address]>,
    failed_rounds: AtomicU64,
    slot: tokio::sync::Mutex<Slot>,
}

#[derive(Debug)]
struct Slot {
    current: Option<Connection>,
    next: usize,
    error: Option<ConnectError>,
}

impl Endpoints {
    /// Shuffles `order` and connects to nobody yet.
    pub(crate) fn new(
        runtime: Runtime,
        mut order: Vec<Address>,
        connect_timeout: Duration,
        keepalive: Keepalive,
    ) -> Self {
        runtime.fork_rng().shuffle(&mut order);
        Self {
            runtime,
            connect_timeout,
            keepalive,
            order: order.into(),
            failed_rounds: AtomicU64::new(0),
            slot: tokio::sync::Mutex::new(Slot { current: None, next: 0, error: None }),
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// The current connection if it is usable, else a new one; each endpoint is tried once. Whoever waits while another
    /// caller's round fails gets that round's error and does not start a round of its own.
    pub(crate) async fn connect(&self) -> Result<Connection, ConnectError> {
        let before = self.failed_rounds.load(Ordering::Acquire);
        let mut slot = self.slot.lock().await;
        if let Some(connection) = slot.current.as_ref().filter(|connection| connection.is_usable()) {
            return Ok(connection.clone());
        }
        if self.failed_rounds.load(Ordering::Acquire) != before
            && let Some(error) = &slot.error
        {
            return Err(error.clone());
        }
        slot.current = None;
        let mut attempts = Vec::with_capacity(self.order.len());
        for _ in 0..self.order.len() {
            let endpoint = &self.order[slot.next % self.order.len()];
            // Moved before the attempt: a caller that gives up in the middle of it leaves the next one to the next.
            slot.next = (slot.next + 1) % self.order.len();
            match tokio::time::timeout(self.connect_timeout, self.open(endpoint)).await {
                Ok(Ok(connection)) => {
                    tracing::debug!(%endpoint, "connected to the registry");
                    slot.current = Some(connection.clone());
                    return Ok(connection);
                }
                Ok(Err(error)) => attempts.push((endpoint.clone(), error.to_string())),
                Err(_) => {
                    attempts
                        .push((endpoint.clone(), format!("no connection within {:?}", self.connect_timeout)));
                }
            }
        }
        let error = ConnectError { attempts: attempts.into() };
        slot.error = Some(error.clone());
        self.failed_rounds.fetch_add(1, Ordering::Release);
        Err(error)
    }

    async fn open(&self, endpoint: &Address) -> std::io::Result<Connection> {
        let io = self.runtime.connect(endpoint).await?;
        Connection::open(&self.runtime, endpoint, io, self.keepalive).await
    }
}
