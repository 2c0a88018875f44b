//! The instances, the keys and a discovery that tells changes.

use std::{
    convert::Infallible,
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use client_sdk::{
    balance::PickContext,
    discover::Discover,
    model::{Change, Endpoint, Instance, InstanceList},
};

/// How many instances there are.
pub const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];

/// The address of an instance by its number.
pub fn address(number: usize) -> SocketAddr {
    let [_, _, high, low] = u32::try_from(number).expect("a small number").to_be_bytes();
    (Ipv4Addr::new(10, 0, high, low), 8080).into()
}

/// The weight of an instance by its number: 1 to 4.
pub fn weight(number: usize) -> u32 {
    1 + u32::try_from(number % 4).expect("below 4")
}

/// So many instances.
pub fn instances(count: usize) -> InstanceList {
    (0..count).map(|number| Arc::new(instance(number, weight(number)))).collect()
}

/// The same, where one has another weight than before: one change.
pub fn changed(before: &InstanceList) -> InstanceList {
    let mut after = before.to_vec();
    let heavier = if before[0].weight == 1 { 2 } else { 1 };
    after[0] = Arc::new(instance(0, heavier));
    after.into()
}

fn instance(number: usize, weight: u32) -> Instance {
    Instance::builder(address(number).into()).weight(weight).build()
}

/// Contexts of requests, with keys that are hashed already.
#[derive(Debug)]
pub struct Contexts {
    key: u64,
    step: u64,
}

impl Default for Contexts {
    /// Each with another key, all over the range, so that nothing that a look-up reads stays in a cache for its sake.
    fn default() -> Self {
        Self { key: 0, step: 0x9E37_79B9_7F4A_7C15 }
    }
}

impl Contexts {
    /// All with the same key.
    pub fn of_one_key() -> Self {
        Self { key: 0x0123_4567_89AB_CDEF, step: 0 }
    }

    /// The next request's.
    #[inline]
    pub fn next(&mut self) -> PickContext {
        PickContext::new().hash_key(self.next_key()).now(Duration::ZERO)
    }

    /// The next request's key.
    #[inline]
    pub fn next_key(&mut self) -> u64 {
        self.key = self.key.wrapping_add(self.step);
        self.key
    }
}

/// The answer of a future that has nothing to wait for.
#[inline(always)] // one that is awaited is not moved either
pub fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => unreachable!("it is known already"),
    }
}

/// A discovery of one service whose instances change.
#[derive(Debug)]
pub struct Feed {
    now: Mutex<InstanceList>,
    changes: async_broadcast::Sender<Change<()>>,
    receiver: async_broadcast::InactiveReceiver<Change<()>>,
}

impl Feed {
    /// Starts with these.
    pub fn new(instances: InstanceList) -> Self {
        let (mut changes, receiver) = async_broadcast::broadcast(16);
        changes.set_overflow(true);
        changes.set_await_active(false);
        Self { now: Mutex::new(instances), changes, receiver: receiver.deactivate() }
    }

    /// Makes one change and tells it.
    pub fn change(&self) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let after = changed(&now);
        let change = Change::between((), &now, Arc::clone(&after), None);
        *now = after;
        drop(now);
        self.changes.try_broadcast(change).expect("it overflows instead of refusing");
    }
}

impl Discover for Feed {
    type Key = ();
    type Error = Infallible;

    async fn discover(&self, _: &Endpoint) -> Result<Vec<Arc<Instance>>, Infallible> {
        Ok(self.now.lock().unwrap_or_else(PoisonError::into_inner).to_vec())
    }

    fn key(&self, _: &Endpoint) {}

    fn watch(&self) -> Option<async_broadcast::Receiver<Change<()>>> {
        Some(self.receiver.activate_cloned())
    }
}
