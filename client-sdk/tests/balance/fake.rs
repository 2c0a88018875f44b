//! A discovery under the test's control.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_broadcast::{InactiveReceiver, Receiver, Sender};
use client_sdk::{
    discover::{Discover, View},
    model::{Change, Endpoint, Instance, InstanceList},
};
use tokio::sync::watch;

pub type Key = Arc<str>;

/// The receiver keeps the channel open when nobody listens.
type Broadcast = (Sender<Change<Key>>, InactiveReceiver<Change<Key>>);

pub struct Fake {
    lists: Mutex<HashMap<Key, InstanceList>>,
    broadcast: Option<Broadcast>,
    /// Answers wait until it is open; they say what was known when they were asked for.
    open: watch::Sender<bool>,
    pub failing: AtomicBool,
    pub discovers: AtomicUsize,
    version: Option<AtomicU64>,
}

#[derive(Debug, thiserror::Error)]
#[error("the fake was told to fail")]
pub struct Told;

impl Fake {
    /// With a broadcast of that capacity, unless it is 0; with versions or not.
    pub fn new(capacity: usize, versioned: bool) -> Arc<Self> {
        let broadcast = (capacity > 0).then(|| {
            let (mut sender, receiver) = async_broadcast::broadcast(capacity);
            sender.set_overflow(true);
            sender.set_await_active(false);
            (sender, receiver.deactivate())
        });
        Arc::new(Self {
            lists: Mutex::default(),
            broadcast,
            open: watch::Sender::new(true),
            failing: AtomicBool::new(false),
            discovers: AtomicUsize::new(0),
            version: versioned.then(|| AtomicU64::new(1)),
        })
    }

    /// With a list, a broadcast of capacity 16 and no versions.
    pub fn with(service: &str, instances: &[Instance]) -> Arc<Self> {
        let fake = Self::new(16, false);
        fake.set(service, instances);
        fake
    }

    /// Changes what it answers, and tells nobody.
    pub fn set(&self, service: &str, instances: &[Instance]) -> Change<Key> {
        let all: InstanceList = instances.iter().cloned().map(Arc::new).collect();
        let before = self.lists.lock().unwrap().insert(service.into(), Arc::clone(&all)).unwrap_or_default();
        let version = self.version.as_ref().map(|version| version.fetch_add(1, Ordering::Relaxed) + 1);
        Change::between(service.into(), &before, all, version)
    }

    /// Changes what it answers, and broadcasts the change.
    pub fn publish(&self, service: &str, instances: &[Instance]) {
        let change = self.set(service, instances);
        if let Some((sender, _)) = &self.broadcast {
            let _ = sender.try_broadcast(change);
        }
    }

    pub fn close(&self) {
        if let Some((sender, _)) = &self.broadcast {
            sender.close();
        }
    }

    pub fn open(&self, open: bool) {
        self.open.send_replace(open);
    }

    pub fn fail(&self, failing: bool) {
        self.failing.store(failing, Ordering::Relaxed);
    }

    pub fn discovers(&self) -> usize {
        self.discovers.load(Ordering::Relaxed)
    }
}

impl Discover for Fake {
    type Key = Key;
    type Error = Told;

    async fn discover(&self, endpoint: &Endpoint) -> Result<Vec<Arc<Instance>>, Told> {
        self.discover_versioned(endpoint).await.map(|view| view.instances.to_vec())
    }

    fn key(&self, endpoint: &Endpoint) -> Key {
        Arc::clone(&endpoint.service)
    }

    fn watch(&self) -> Option<Receiver<Change<Key>>> {
        self.broadcast.as_ref().map(|(_, inactive)| inactive.activate_cloned())
    }

    async fn discover_versioned(&self, endpoint: &Endpoint) -> Result<View, Told> {
        self.discovers.fetch_add(1, Ordering::Relaxed);
        let instances = self.lists.lock().unwrap().get(&endpoint.service).cloned().unwrap_or_default();
        let version = self.version.as_ref().map(|version| version.load(Ordering::Relaxed));
        let failing = self.failing.load(Ordering::Relaxed);
        self.open.subscribe().wait_for(|open| *open).await.expect("it owns the sender");
        tokio::task::yield_now().await;
        if failing { Err(Told) } else { Ok(View { instances, version }) }
    }
}

pub fn instance(port: u16, weight: u32) -> Instance {
    Instance::builder(format!("a:{port}").parse().expect("valid")).weight(weight).build()
}

pub fn endpoint() -> Endpoint {
    Endpoint::new("s")
}

/// Waits on paused time until it is so.
pub async fn eventually(mut so: impl FnMut() -> bool) {
    for _ in 0..100_000 {
        if so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it never came true");
}

/// Lets everything happen that is under way: paused time goes on only when nothing else can.
pub async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}
