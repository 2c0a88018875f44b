//! Where instances come from.
//!
//! Owns the [`Discover`] trait and its implementations. Anyone can implement it (as `async fn`) and have it work with
//! every balancer, layer and channel of this crate.

mod applied;
pub(crate) mod broadcast;
pub(crate) mod cache_file;
mod follow;
mod read;
mod registry;
mod static_discover;
pub(crate) mod track;

pub use applied::Follower;
pub(crate) use follow::follow_to_apply;
pub use follow::{Followed, follow};
pub(crate) use read::SharedError;
pub use registry::{RegistryDiscover, RegistryDiscoverBuilder, RegistryDiscoverError};
pub use static_discover::{StaticDiscover, WeightedStaticDiscover};

use std::{error::Error, future::Future, hash::Hash, sync::Arc};

use crate::model::{Change, Endpoint, Instance, InstanceList};

/// Tells which instances an endpoint names, now and from now on.
///
/// ```
/// use std::{convert::Infallible, sync::Arc};
/// use client_sdk::{discover::Discover, model::{Change, Endpoint, Instance}};
///
/// struct Localhost;
///
/// impl Discover for Localhost {
///     type Key = ();
///     type Error = Infallible;
///     async fn discover(&self, _: &Endpoint) -> Result<Vec<Arc<Instance>>, Infallible> {
///         let address = std::net::SocketAddr::from(([127, 0, 0, 1], 8080)).into();
///         Ok(vec![Arc::new(Instance::builder(address).build())])
///     }
///     fn key(&self, _: &Endpoint) -> Self::Key {}
///     fn watch(&self) -> Option<async_broadcast::Receiver<Change<()>>> {
///         None
///     }
/// }
/// ```
pub trait Discover: Send + Sync + 'static {
    /// Names a view: equal for endpoints that name the same instances.
    type Key: Hash + PartialEq + Eq + Send + Sync + Clone + 'static;
    /// Why instances cannot be told.
    type Error: Error + Send + Sync + 'static;

    /// The instances that the endpoint names now.
    fn discover(
        &self,
        endpoint: &Endpoint,
    ) -> impl Future<Output = Result<Vec<Arc<Instance>>, Self::Error>> + Send;

    /// The view that the endpoint names.
    fn key(&self, endpoint: &Endpoint) -> Self::Key;

    /// Changes of all views, from now on. `None` if they never change.
    ///
    /// A receiver that falls behind loses the oldest changes (`RecvError::Overflowed`) and then must `discover` again.
    fn watch(&self) -> Option<async_broadcast::Receiver<Change<Self::Key>>>;

    /// As [`watch`](Self::watch), for one who holds a [`view`](Self::view) of every key that it wants to hear of: a
    /// discovery that forgets what nobody looks at need not keep any other key for it. Default: the same.
    fn watch_viewed(&self) -> Option<async_broadcast::Receiver<Change<Self::Key>>> {
        self.watch()
    }

    /// As [`discover`](Self::discover), with the version of the view if this discovery versions its views: then caches
    /// keep whatever has the greater version. Without versions, a change received after subscribing beats a `discover`
    /// begun before it.
    fn discover_versioned(
        &self,
        endpoint: &Endpoint,
    ) -> impl Future<Output = Result<View, Self::Error>> + Send {
        async move { Ok(View { instances: self.discover(endpoint).await?.into(), version: None }) }
    }

    /// The view itself as it changes, for those who need each state and not each change (the channel). It never loses
    /// the newest state. `None`: there is no such thing here; [`follow`] makes one out of the other methods.
    fn view(&self, endpoint: &Endpoint) -> Option<ViewReceiver> {
        let _ = endpoint;
        None
    }

    /// To be taken by someone who acts on the endpoint's view, before it reads it, and kept for as long: see [`Follower`].
    /// `None`: nobody wants to know what was applied.
    fn follower(&self, endpoint: &Endpoint) -> Option<Follower> {
        let _ = endpoint;
        None
    }
}

/// The instances of one view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// All of them.
    pub instances: InstanceList,
    /// Local to this process and this key, strictly growing; `None` if not versioned.
    pub version: Option<u64>,
}

/// What is known of a view: the last good state (C1), and what went wrong since.
#[derive(Clone, Debug, Default)]
pub struct ViewState {
    /// The last known good state. `None`: none yet.
    pub view: Option<View>,
    /// Why the view may be out of date, or is not there yet. Passing: whoever fills the view goes on trying.
    pub error: Option<Arc<dyn Error + Send + Sync>>,
}

/// Follows a view. It holds the newest [`ViewState`]; a closed one will not change any more.
pub type ViewReceiver = tokio::sync::watch::Receiver<ViewState>;
