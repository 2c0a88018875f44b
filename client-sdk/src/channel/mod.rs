//! A tonic channel that balances over whatever is registered right now.
//!
//! Every generated client works on a [`BalancedChannel`] unchanged. Owns connections and what becomes of a call; does
//! not own discovery (it follows a view) nor the choice (it asks a policy or a load balancer). Built on hyper's HTTP/2
//! connection itself, whose real state it knows.
//!
//! ```text
//!   view ---> driver ---> a connection each (connects, drains: whether or not there are calls)
//!               |                |
//!               | routes         | state
//!               v                v
//!   call ---> choose ---------> send ---> response
//!               ^                 |
//!               +--- never left --+
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `builder`, `settings` | what a channel may be told |
//! | `driver` | the view, the connections, and the routes that it publishes |
//! | `connection`, `greeting`, `tls` | the connections to one instance, and their states |
//! | `routes`, `chooser` | which instance a call goes to |
//! | `service` | one call |
//! | `request_body` | a request that can be sent again |
//! | `response_body` | an answer that counts until it ends |
//! | `error`, `snapshot` | what a caller is told |
//! | `outcome` | what a policy is told |
//!
//! Keeps C2 (`routes`: what is known to be gone, draining, down or of weight 0 gets no new request; `connection`: what
//! is in flight to it finishes) and its part of C3 (HTTP/2 keepalive).

mod builder;
mod chooser;
mod connection;
mod driver;
mod error;
mod greeting;
mod outcome;
mod request_body;
mod response_body;
mod routes;
mod service;
mod settings;
mod shared;
mod snapshot;
#[cfg(feature = "tls")]
mod tls;

use std::sync::Arc;

pub use builder::ChannelBuilder;
pub use connection::{ConnectError, ConnectProblem, ConnectionState};
pub use error::ChannelError;
pub use response_body::ResponseBody;
pub use routes::Standing;
pub use snapshot::{ChannelSnapshot, InstanceSnapshot};
#[cfg(feature = "tls")]
pub use tls::{SERVER_NAME_TAG, Tls, TlsError};

use self::{chooser::Chooser, driver::Driver, settings::Settings, shared::Shared};
use crate::{
    discover::{Discover, Followed},
    model::Endpoint,
    runtime::{Runtime, Task},
};

/// Calls an endpoint's instances: give it to a generated client. Cheap to clone.
///
/// - Calls go to connected instances that take requests. A request that never left (its connection was gone, gave it
///   back, refused it, or said GOAWAY before it) goes to another instance, without the caller noticing.
/// - A call that may have been processed is never sent again; it fails, see [`ChannelError`].
/// - With the last clone dropped and the last answer begun, connections finish what is in flight and close.
#[derive(Clone)]
pub struct BalancedChannel {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    shared: Arc<Shared>,
    _driver: Task,
}

impl BalancedChannel {
    /// Builds a channel to the instances that `discover` names for `endpoint`. An endpoint with an address is called
    /// there, whatever is discovered.
    pub fn builder<D: Discover>(discover: Arc<D>, endpoint: Endpoint) -> ChannelBuilder<D> {
        ChannelBuilder::new(discover, endpoint)
    }

    /// What the channel knows and does right now.
    pub fn snapshot(&self) -> ChannelSnapshot {
        ChannelSnapshot::of(&self.inner.shared, &self.inner.shared.routes.load())
    }

    /// Waits until the channel looks as asked, for example until some instances are connected. Looks again whenever the
    /// view, an instance's standing or its connection changed; counts of calls alone wake nobody.
    pub async fn wait_until(&self, mut looks: impl FnMut(&ChannelSnapshot) -> bool) -> ChannelSnapshot {
        let mut published = self.inner.shared.published.subscribe();
        loop {
            published.mark_unchanged();
            let snapshot = self.snapshot();
            if looks(&snapshot) {
                return snapshot;
            }
            if published.changed().await.is_err() {
                // The sender lives as long as this channel.
                return snapshot;
            }
        }
    }

    fn start(
        endpoint: Endpoint,
        settings: Settings,
        runtime: Runtime,
        chooser: Chooser,
        followed: Followed,
    ) -> Self {
        let shared = Arc::new(Shared::new(endpoint, settings, runtime, chooser));
        let driver = Driver::new(Arc::clone(&shared), followed);
        let driver = shared.runtime.spawn(driver.run());
        Self { inner: Arc::new(Inner { shared, _driver: driver }) }
    }
}

impl std::fmt::Debug for BalancedChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BalancedChannel")
            .field("endpoint", &self.inner.shared.endpoint)
            .finish_non_exhaustive()
    }
}
