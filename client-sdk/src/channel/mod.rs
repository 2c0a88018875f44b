//! A tonic channel that balances over whatever is registered right now.
//!
//! Every generated client works on a [`BalancedChannel`] unchanged. Owns connections and what becomes of a call; does
//! not own discovery (it follows a view) nor the choice (it asks a policy or a load balancer). Built on h2's connections
//! themselves: a call goes from its own task into its connection, whose real state is known.
//!
//! ```text
//!   call ---> search (crate::members) ---> attempt ---> response
//!               ^                             |
//!               +- never left, or a failure --+
//!                  worth a retry (crate::retry)
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `builder`, `settings` | what a channel may be told |
//! | `connection`, `tls` | the connections to one instance, and their states |
//! | `greeting`, `frames` | what is heard of a peer beside h2 |
//! | `service`, `attempt` | one call, and one attempt of it |
//! | `request_head` | its head, as HTTP/2 has it |
//! | `request_body`, `pump` | a request that can be sent again, and its way into a stream |
//! | `response_body` | an answer that counts until it ends |
//! | `error` | what a caller is told |
//! | `outcome` | what a policy is told |
//!
//! Keeps its part of C2 (`connection`: what is in flight to an instance that goes finishes) and of C3 (HTTP/2 keepalive);
//! which instances are connected and chosen is the business of [`crate::members`].

mod attempt;
mod builder;
mod connection;
mod error;
mod frames;
mod greeting;
pub(crate) mod outcome;
mod pump;
mod request_body;
mod request_head;
mod response_body;
mod service;
mod settings;
#[cfg(feature = "tls")]
mod tls;

use std::sync::Arc;

pub use builder::ChannelBuilder;
pub use connection::{ConnectError, ConnectProblem};
pub use error::ChannelError;
pub use response_body::ResponseBody;
#[cfg(feature = "tls")]
pub use tls::{SERVER_NAME_TAG, Tls, TlsError};

use self::{
    connection::{Connection, Connector},
    settings::Settings,
};
pub use crate::members::{
    Aperture, ConnectionState, InstanceSnapshot, Overflow, RouteError, Snapshot, Standing,
};
use crate::{
    discover::{Discover, Followed},
    members::{Driver, Shared},
    model::Endpoint,
    retry::Plan,
    runtime::Task,
};

/// Calls an endpoint's instances: give it to a generated client. Cheap to clone.
///
/// - Calls go to connected instances that take requests. A request that never left (its connection ended before it
///   was written, refused it, or said GOAWAY before it) goes to another instance, without the caller noticing.
/// - A call that was answered `UNAVAILABLE` before anything else goes to another instance too, within a budget; one that may
///   have been processed and was not answered does so only if its method is said to be idempotent. Else it fails, see
///   [`ChannelError`]. What is sent again, of which methods, and how often is set by [`ChannelBuilder::retries`]; see
///   [`crate::retry`].
/// - With the last clone dropped and the last answer begun, connections finish what is in flight and close.
#[derive(Clone)]
pub struct BalancedChannel {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    shared: Arc<Shared<Connection>>,
    settings: Arc<Settings>,
    plan: Plan,
    _driver: Task,
}

impl BalancedChannel {
    /// Builds a channel to the instances that `discover` names for `endpoint`. An endpoint with an address is called
    /// there, whatever is discovered.
    pub fn builder<D: Discover>(discover: Arc<D>, endpoint: Endpoint) -> ChannelBuilder<D> {
        ChannelBuilder::new(discover, endpoint)
    }

    /// What the channel knows and does right now.
    pub fn snapshot(&self) -> Snapshot {
        self.inner.shared.snapshot()
    }

    /// Waits until the channel looks as asked, for example until some instances are connected. Looks again whenever the
    /// view, an instance's standing or its connection changed; counts of calls alone wake nobody.
    pub async fn wait_until(&self, looks: impl FnMut(&Snapshot) -> bool) -> Snapshot {
        self.inner.shared.wait_until(looks).await
    }

    fn start(shared: Shared<Connection>, settings: Settings, followed: Followed) -> Self {
        let (shared, settings) = (Arc::new(shared), Arc::new(settings));
        let connector = Connector {
            settings: Arc::clone(&settings),
            runtime: shared.runtime.clone(),
            meters: Arc::clone(&shared.meters),
        };
        let plan = Plan::new(&settings.retries);
        let driver = Driver::new(Arc::clone(&shared), connector, followed);
        let driver = shared.runtime.spawn(driver.run());
        Self { inner: Arc::new(Inner { shared, settings, plan, _driver: driver }) }
    }
}

impl std::fmt::Debug for BalancedChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BalancedChannel")
            .field("endpoint", &self.inner.shared.endpoint)
            .finish_non_exhaustive()
    }
}
