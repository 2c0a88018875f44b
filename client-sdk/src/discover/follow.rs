//! One view as it changes, made out of whatever a [`Discover`] can tell.
//!
//! A discovery that has a view of its own ([`Discover::view`]) is taken at its word. For any other one a
//! [`Tracker`](super::track) is run over `watch` and `discover`. Keeps C1: the last good view stays, whatever fails.

use std::{any::Any, sync::Arc};

use tokio::sync::watch;

use super::{
    Discover, Follower, SharedError, View, ViewReceiver, ViewState,
    track::{Put, Sink, Tracker},
};
use crate::{
    model::{Change, Endpoint, Instance},
    runtime::Runtime,
};

/// A view that is being followed. It keeps its discovery alive; dropping it ends the following.
#[derive(Debug)]
pub struct Followed {
    receiver: ViewReceiver,
    /// Of one who says what it has applied.
    follower: Option<Follower>,
    /// What fills the view, kept alive: the discovery, or the task that reads it. `None`: nothing does.
    _source: Option<Box<dyn Any + Send + Sync>>,
}

impl Followed {
    /// What is known now.
    pub fn state(&self) -> ViewState {
        self.receiver.borrow().clone()
    }

    /// The receiver, to read from and to wait on. After `changed()` failed once, the view does not change any more:
    /// do not wait on it again.
    pub fn receiver(&mut self) -> &mut ViewReceiver {
        &mut self.receiver
    }

    /// This version of the view is in use.
    pub(crate) fn applied(&self, version: Option<u64>) {
        if let Some(follower) = &self.follower {
            follower.applied(version);
        }
    }
}

/// Follows the view that the endpoint names.
///
/// - An endpoint with an `address` is that one instance, for ever: nothing is discovered.
/// - Changes are subscribed to before the first `discover`, so none falls between the two.
/// - Whatever fails is tried again with jittered backoff (100 ms doubling to 10 s) and shows in [`ViewState::error`]; the
///   last good view stays.
/// - An overflow of the broadcast makes it discover again; a closed broadcast leaves the last good view.
/// - An empty answer that no change would correct is asked for again.
pub fn follow<D: Discover>(discover: Arc<D>, endpoint: Endpoint, runtime: &Runtime) -> Followed {
    if let Some(address) = endpoint.address {
        let instances = [Arc::new(Instance::builder(address).build())].into();
        let state = ViewState { view: Some(View { instances, version: None }), error: None };
        return Followed { receiver: watch::channel(state).1, follower: None, _source: None };
    }
    if let Some(receiver) = discover.view(&endpoint) {
        return Followed { receiver, follower: None, _source: Some(Box::new(discover)) };
    }
    let (sender, receiver) = watch::channel(ViewState::default());
    let key = discover.key(&endpoint);
    let (sink, changes) = (ToView { sender }, discover.watch_viewed());
    let tracker = Tracker::spawn(changes, discover, sink, [(key, endpoint)], None, runtime);
    Followed { receiver, follower: None, _source: Some(Box::new(tracker)) }
}

/// As [`follow`], for one who says what it has [applied](Followed::applied).
pub(crate) fn follow_to_apply<D: Discover>(
    discover: Arc<D>,
    endpoint: Endpoint,
    runtime: &Runtime,
) -> Followed {
    // First, so that no change comes in between unasked.
    let follower = if endpoint.address.is_none() { discover.follower(&endpoint) } else { None };
    Followed { follower, ..follow(discover, endpoint, runtime) }
}

/// Fills the one view that is tracked.
struct ToView {
    sender: watch::Sender<ViewState>,
}

impl<K> Sink<K> for ToView {
    fn changed(&mut self, change: Change<K>) -> Put {
        let view = Some(View { instances: change.all, version: change.version });
        self.sender.send_replace(ViewState { view, error: None });
        Put::Later
    }

    fn failed(&mut self, _: &K, error: SharedError) {
        self.sender.send_modify(|state| state.error = Some(error));
    }

    fn recovered(&mut self, _: &K) {
        self.sender.send_if_modified(|state| state.error.take().is_some());
    }
}
