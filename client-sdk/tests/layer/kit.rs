//! Hosts whose services do what the test says, and a view that it sets.
//!
//! Time is paused in these tests: it moves only when nobody has anything to do.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use client_sdk::{
    balance::{Pick, PickContext, PickError, Picker, Policy},
    discover::{Discover, View, ViewReceiver, ViewState},
    layer::{LoadBalanceBuilder, LoadBalanceLayer, LoadBalanced, LoadBalancedError},
    model::{Address, Change, Endpoint, Instance, InstanceBuilder, InstanceList},
    runtime::BoxFuture,
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
};
use tower::{BoxError, Service};

/// A request, which says how it is to be answered: at once, `hold` when the gate opens, `fail` with an error. Several words are
/// done in their order: `10ms` takes that long, and `hold@a` or `fail@ab` concern only the hosts whose names are there.
pub(crate) type Req = &'static str;

pub(crate) type Balanced = LoadBalanced<Served, Req, String>;

/// All that can be connected to.
#[derive(Clone, Default)]
pub(crate) struct World(Arc<Mutex<HashMap<Address, Host>>>);

/// What is behind one address.
#[derive(Clone)]
pub(crate) struct Host(Arc<Inside>);

struct Inside {
    name: String,
    state: Mutex<State>,
    /// A permit lets one `hold` go on.
    gate: Semaphore,
    /// Gets a permit with each `hold` that arrives.
    arrived: Semaphore,
    calls: AtomicUsize,
}

#[derive(Default)]
struct State {
    makes: Makes,
    /// How many requests may yet be begun; `None`: any number.
    places: Option<usize>,
    /// Whether a place is free again when its request has ended.
    places_return: bool,
    /// How often that was said: a place of an earlier time is none any more.
    times: u64,
    /// Services made until now that say so when they are asked whether they are ready.
    doom: Option<(&'static str, usize)>,
    panics: Panics,
    /// Whether it fails every request that it answers.
    fails: bool,
    /// Of each service whoever asked last, as tower has it: whoever asked before is not told.
    wakers: HashMap<usize, Waker>,
    made: usize,
    alive: usize,
    asked: usize,
    seen: Vec<Arc<Instance>>,
    /// The requests that begin with a `#`, which tell themselves apart.
    numbered: Vec<Req>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Makes {
    #[default]
    Services,
    Errors,
    /// Never comes to an end.
    Nothing,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Panics {
    #[default]
    Never,
    InMake,
    InReady,
    InCall,
}

/// A service of a host. Not `Clone`, and strict about being called only when it said that it is ready.
pub(crate) struct Served {
    host: Host,
    nth: usize,
    /// Its place, by the time of it.
    place: Option<u64>,
}

impl State {
    fn set_places(&mut self, places: usize, places_return: bool) {
        (self.places, self.places_return) = (Some(places), places_return);
        self.times += 1;
    }

    fn give_back(&mut self, time: u64) {
        if time == self.times
            && let Some(places) = &mut self.places
        {
            *places += 1;
        }
    }
}

impl World {
    /// A new host at an address of its own.
    pub(crate) fn host(&self, name: &str) -> Host {
        let host = Host(Arc::new(Inside {
            name: name.to_owned(),
            state: Mutex::default(),
            gate: Semaphore::new(0),
            arrived: Semaphore::new(0),
            calls: AtomicUsize::new(0),
        }));
        self.0.lock().expect("no panic").insert(host.address(), host.clone());
        host
    }

    pub(crate) fn hosts<const N: usize>(&self, names: [&str; N]) -> [Host; N] {
        names.map(|name| self.host(name))
    }

    fn at(&self, address: &Address) -> Host {
        self.0.lock().expect("no panic").get(address).expect("a host is there").clone()
    }
}

impl Host {
    pub(crate) fn address(&self) -> Address {
        format!("{}:1", self.0.name).parse().expect("valid")
    }

    /// An instance there, with the host's name as its id.
    pub(crate) fn instance(&self) -> InstanceBuilder {
        Instance::builder(self.address()).id(self.0.name.as_str())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let wakers = {
            let mut state = self.state();
            change(&mut state);
            std::mem::take(&mut state.wakers)
        };
        wakers.into_values().for_each(Waker::wake);
    }

    /// So many requests are let in, and no more until this is said again.
    pub(crate) fn allow(&self, places: usize) {
        self.change(|state| state.set_places(places, false));
    }

    /// So many requests at a time.
    pub(crate) fn at_once(&self, places: usize) {
        self.change(|state| state.set_places(places, true));
    }

    /// How many requests may yet be begun, if that is limited.
    pub(crate) fn places(&self) -> Option<usize> {
        self.state().places
    }

    /// The services that were made until now fail when they are asked whether they are ready. Wakes only those that
    /// wait to be.
    pub(crate) fn doom(&self, error: &'static str) {
        self.change(|state| state.doom = Some((error, state.made)));
    }

    pub(crate) fn makes(&self, makes: Makes) {
        self.state().makes = makes;
    }

    pub(crate) fn panics(&self, panics: Panics) {
        self.change(|state| state.panics = panics);
    }

    /// Whether every request fails, from now on.
    pub(crate) fn fails(&self, fails: bool) {
        self.state().fails = fails;
    }

    /// Lets so many held requests be answered.
    pub(crate) fn open(&self, requests: usize) {
        self.0.gate.add_permits(requests);
    }

    /// Nothing that is held later is let through by what was opened before.
    pub(crate) fn shut(&self) {
        self.0.gate.forget_permits(usize::MAX >> 4);
        self.0.arrived.forget_permits(usize::MAX >> 4);
    }

    /// Waits for a held request.
    pub(crate) async fn arrived(&self) {
        self.0.arrived.acquire().await.expect("never closed").forget();
    }

    /// The requests that begin with a `#`, in the order in which they came.
    #[allow(dead_code)] // for the soak of the pools
    pub(crate) fn numbered(&self) -> Vec<Req> {
        self.state().numbered.clone()
    }

    pub(crate) fn calls(&self) -> usize {
        self.0.calls.load(Ordering::SeqCst)
    }

    /// How often a service was asked for.
    pub(crate) fn asked(&self) -> usize {
        self.state().asked
    }

    pub(crate) fn made(&self) -> usize {
        self.state().made
    }

    /// How many services there are.
    pub(crate) fn alive(&self) -> usize {
        self.state().alive
    }

    /// What its services were made for, where they are made for instances.
    pub(crate) fn seen(&self) -> Vec<Arc<Instance>> {
        self.state().seen.clone()
    }

    async fn make(self, instance: Option<Arc<Instance>>) -> Result<Served, BoxError> {
        let makes = {
            let mut state = self.state();
            state.asked += 1;
            state.seen.extend(instance);
            assert!(state.panics != Panics::InMake, "as the test wants it");
            state.makes
        };
        match makes {
            Makes::Services => {}
            Makes::Errors => return Err("connection refused".into()),
            Makes::Nothing => std::future::pending().await,
        }
        let mut state = self.state();
        state.made += 1;
        state.alive += 1;
        let nth = state.made;
        drop(state);
        Ok(Served { host: self, nth, place: None })
    }
}

impl Service<Address> for World {
    type Response = Served;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Served, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, address: Address) -> Self::Future {
        Box::pin(self.at(&address).make(None))
    }
}

impl Service<Arc<Instance>> for World {
    type Response = Served;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Served, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, instance: Arc<Instance>) -> Self::Future {
        Box::pin(self.at(&instance.address).make(Some(instance)))
    }
}

impl Service<Req> for Served {
    type Response = String;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<String, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let mut state = self.host.state();
        assert!(state.panics != Panics::InReady, "as the test wants it");
        if let Some((error, made)) = state.doom
            && self.nth <= made
        {
            return Poll::Ready(Err(error.into()));
        }
        if self.place.is_some() || state.places.is_none() {
            self.place.get_or_insert(state.times);
            return Poll::Ready(Ok(()));
        }
        match state.places.as_mut() {
            Some(places) if *places > 0 => *places -= 1,
            _ => {
                state.wakers.insert(self.nth, cx.waker().clone());
                return Poll::Pending;
            }
        }
        self.place = Some(state.times);
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let place = self.place.take().expect("called only when it said that it is ready");
        let host = self.host.clone();
        assert!(host.state().panics != Panics::InCall, "as the test wants it");
        host.0.calls.fetch_add(1, Ordering::SeqCst);
        if request.starts_with('#') {
            host.state().numbered.push(request);
        }
        let place = Place(host.clone(), place);
        Box::pin(async move {
            let _place = place;
            for word in request.split(' ') {
                let (word, hosts) = word.split_once('@').unwrap_or((word, &host.0.name));
                match word {
                    _ if !hosts.contains(&host.0.name) => {}
                    "hold" => {
                        host.0.arrived.add_permits(1);
                        host.0.gate.acquire().await.expect("never closed").forget();
                    }
                    "fail" => return Err(format!("{} cannot", host.0.name).into()),
                    "10ms" => tokio::time::sleep(Duration::from_millis(10)).await,
                    _ => {}
                }
            }
            if host.state().fails {
                return Err(format!("{} fails", host.0.name).into());
            }
            Ok(host.0.name.clone())
        })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.host.state().alive -= 1;
        if let Some(time) = self.place {
            self.host.change(|state| state.give_back(time));
        }
    }
}

/// A request's place with its host.
struct Place(Host, u64);

impl Drop for Place {
    fn drop(&mut self) {
        // Nobody is woken for nothing.
        if self.0.state().places_return {
            self.0.change(|state| state.give_back(self.1));
        }
    }
}

pub(crate) fn builder<Res>(fleet: &Fleet) -> LoadBalanceBuilder<Fleet, Req, Res> {
    LoadBalanceLayer::builder(Arc::new(fleet.clone()), Endpoint::new("greeter"))
}

/// Over all these hosts, each of which has a service already.
pub(crate) async fn over<'a>(world: &World, hosts: impl IntoIterator<Item = &'a Host>) -> (Balanced, Fleet) {
    let fleet = Fleet::of(hosts.into_iter().map(Host::instance));
    let balanced = builder(&fleet).service(world.clone());
    let all = fleet.len();
    balanced.wait_until(|now| now.chosen() == all).await;
    (balanced, fleet)
}

/// Who answers.
pub(crate) async fn who(balanced: &Balanced) -> Result<String, LoadBalancedError> {
    balanced.clone().call("").await
}

pub(crate) type Answer = JoinHandle<Result<String, LoadBalancedError>>;

/// A request in a task of its own.
pub(crate) fn ask(balanced: &Balanced, request: Req) -> Answer {
    let mut balanced = balanced.clone();
    tokio::spawn(async move { balanced.call(request).await })
}

/// Until all tasks wait for something: time is paused, so it only moves on then.
pub(crate) async fn all_wait() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// A view that the test sets.
#[derive(Clone)]
pub(crate) struct Fleet(Arc<watch::Sender<ViewState>>);

impl Fleet {
    /// Nothing known yet.
    pub(crate) fn unknown() -> Self {
        Self(Arc::new(watch::channel(ViewState::default()).0))
    }

    pub(crate) fn of(instances: impl IntoIterator<Item = InstanceBuilder>) -> Self {
        let fleet = Self::unknown();
        fleet.set(instances);
        fleet
    }

    pub(crate) fn set(&self, instances: impl IntoIterator<Item = InstanceBuilder>) {
        let instances: InstanceList = instances.into_iter().map(|i| Arc::new(i.build())).collect();
        self.0.send_replace(ViewState { view: Some(View { instances, version: None }), error: None });
    }

    /// Keeps the last good view.
    pub(crate) fn fail(&self, error: &str) {
        self.0.send_modify(|state| state.error = Some(Arc::new(io::Error::other(error.to_owned()))));
    }

    fn len(&self) -> usize {
        self.0.borrow().view.as_ref().map_or(0, |view| view.instances.len())
    }
}

impl Discover for Fleet {
    type Key = ();
    type Error = Infallible;

    async fn discover(&self, _: &Endpoint) -> Result<Vec<Arc<Instance>>, Infallible> {
        Ok(self.0.borrow().view.as_ref().map(|view| view.instances.to_vec()).unwrap_or_default())
    }

    fn key(&self, _: &Endpoint) {}

    fn watch(&self) -> Option<async_broadcast::Receiver<Change<()>>> {
        None
    }

    fn view(&self, _: &Endpoint) -> Option<ViewReceiver> {
        Some(self.0.subscribe())
    }
}

/// Always the instance of this id, if it is there; else the first. Counts how often it is asked to build.
#[derive(Clone)]
pub(crate) struct Always(pub(crate) &'static str, pub(crate) Arc<AtomicUsize>);

pub(crate) struct Chosen(Arc<Instance>);

impl Always {
    pub(crate) fn new(id: &'static str) -> Self {
        Self(id, Arc::default())
    }

    pub(crate) fn built(&self) -> usize {
        self.1.load(Ordering::SeqCst)
    }
}

impl Policy for Always {
    type Picker = Chosen;

    fn build(&self, instances: &InstanceList) -> Chosen {
        self.1.fetch_add(1, Ordering::SeqCst);
        let named = instances.iter().find(|instance| &*instance.id == self.0);
        Chosen(Arc::clone(named.unwrap_or(&instances[0])))
    }
}

impl Picker for Chosen {
    fn pick(&self, _: &PickContext) -> Result<Pick<'_>, PickError> {
        Ok(Pick::of(Arc::clone(&self.0)))
    }
}
