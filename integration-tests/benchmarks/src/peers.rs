//! Other balancers, each as its users call it: volo, tower and, with the feature `pingora`, pingora.

use std::{
    cell::RefCell,
    convert::Infallible,
    future::Ready,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use metainfo::{METAINFO, MetaInfo};
use tower::{
    Service,
    balance::p2c::Balance,
    discover::{Discover, ServiceList},
    load::{CompleteOnResponse, PendingRequests},
};
use volo::{
    context::Endpoint,
    discovery::{Change, Instance, WeightedStaticDiscover},
    loadbalance::{
        LoadBalance, RequestHash,
        consistent_hash::{ConsistentHashBalance, ConsistentHashOption},
        random::WeightedRandomBalance,
    },
};

use crate::{
    fixture::{address, ready, weight},
    measure,
    subject::Subject,
};

/// volo's weighted random choice: `get_picker` up to the first address; and what makes one change.
pub fn volo_random(count: usize) -> (Subject, impl FnMut() + Send) {
    let balance = Arc::new(WeightedRandomBalance::with_discover(&discover(count)));
    let (changed, mut changes) = (Arc::clone(&balance), changes(count));
    let change = move || LoadBalance::<WeightedStaticDiscover>::rebalance(&*changed, changes());
    (volo("volo: `WeightedRandomBalance`", balance, count), change)
}

/// volo's consistent hash: `get_picker` up to the first address. Where it takes the request's key from is set once, since
/// setting it costs more than the pick; so it searches for the same key each time.
pub fn volo_hash(count: usize) -> (Subject, impl FnMut() + Send) {
    let balance = Arc::new(consistent_hash());
    let (changed, mut changes) = (Arc::clone(&balance), changes(count));
    let change = move || LoadBalance::<WeightedStaticDiscover>::rebalance(&*changed, changes());
    (volo("volo: `ConsistentHashBalance`, one key", balance, count), change)
}

/// The same two, taking in a change of one instance: nanoseconds.
pub fn volo_changes(count: usize, rounds: usize) -> [(&'static str, f64); 2] {
    let random = WeightedRandomBalance::with_discover(&discover(count));
    [
        ("volo: `WeightedRandomBalance`", volo_change(&random, count, rounds)),
        ("volo: `ConsistentHashBalance`", volo_change(&consistent_hash(), count, rounds)),
    ]
}

/// tower's power of two choices by pending requests: `poll_ready` and `call`, over services that answer at once. It belongs
/// to one thread.
pub fn tower(count: usize) -> Subject {
    let make =
        move || balancing(ServiceList::new((0..count).map(|_| Answers::counted()).collect::<Vec<_>>()));
    Subject::each("tower: p2c `Balance`", make).alone()
}

/// A pick by tower's balancer over whatever this discovers.
pub(crate) fn balancing<D>(discover: D) -> impl FnMut() -> <Balance<D, ()> as Service<()>>::Future + Send
where
    D: Discover<Service = Counted, Error: std::error::Error + Send + Sync> + Unpin + Send + 'static,
    D::Key: std::hash::Hash + Clone + Send,
{
    let mut balance = Balance::<_, ()>::new(discover);
    move || {
        let mut context = Context::from_waker(Waker::noop());
        let is_ready = balance.poll_ready(&mut context);
        assert!(matches!(is_ready, Poll::Ready(Ok(()))));
        Service::call(&mut balance, ())
    }
}

/// pingora's selections: the first backend of the iterator, as it is before anything asks whether the backend is healthy.
#[cfg(feature = "pingora")]
pub fn pingora(count: usize) -> Vec<Subject> {
    use pingora_load_balancing::selection::{Consistent, Random, RoundRobin};
    vec![
        pingora_one::<RoundRobin>("pingora: `RoundRobin`", count),
        pingora_one::<Random>("pingora: `Random`", count),
        pingora_one::<Consistent>("pingora: `Consistent` (ketama)", count),
    ]
}

/// pingora is not built in.
#[cfg(not(feature = "pingora"))]
pub fn pingora(_: usize) -> Vec<Subject> {
    Vec::new()
}

#[cfg(feature = "pingora")]
fn pingora_one<S>(name: &'static str, count: usize) -> Subject
where
    S: pingora_load_balancing::selection::BackendSelection + Send + Sync + 'static,
    S::Iter: pingora_load_balancing::selection::BackendIter,
{
    use pingora_load_balancing::{Backend, selection::BackendIter};

    let backend = |number| {
        let weight = usize::try_from(weight(number)).expect("a small number");
        Backend::new_with_weight(&address(number).to_string(), weight).expect("an address")
    };
    let selection = Arc::new(S::build(&(0..count).map(backend).collect()));
    Subject::each(name, move || {
        let (selection, mut contexts) = (Arc::clone(&selection), crate::fixture::Contexts::default());
        move || {
            let key = contexts.next_key().to_le_bytes();
            let mut backends = selection.iter(&key);
            backends.next().map(|backend| std::ptr::from_ref(backend).addr())
        }
    })
}

/// A service that answers at once.
#[derive(Debug)]
pub(crate) struct Answers;

/// One whose pending requests are counted.
pub(crate) type Counted = PendingRequests<Answers>;

impl Answers {
    pub(crate) fn counted() -> Counted {
        PendingRequests::new(Self, CompleteOnResponse::default())
    }
}

impl Service<()> for Answers {
    type Response = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        std::future::ready(Ok(()))
    }
}

fn volo<L: LoadBalance<WeightedStaticDiscover>>(
    name: &'static str,
    balance: Arc<L>,
    count: usize,
) -> Subject {
    let discover = discover(count);
    let with_key = |timed: &mut dyn FnMut()| METAINFO.sync_scope(RefCell::new(with_key()), timed);
    Subject::within(name, with_key, move || {
        let (balance, discover) = (Arc::clone(&balance), discover.clone());
        let endpoint = Endpoint::new("service".into());
        move || {
            let mut addresses = ready(balance.get_picker(&endpoint, &discover)).expect("it is known");
            addresses.next().expect("an address")
        }
    })
}

fn volo_change<L: LoadBalance<WeightedStaticDiscover>>(balance: &L, count: usize, rounds: usize) -> f64 {
    let discover = discover(count);
    let endpoint = Endpoint::new("service".into());
    METAINFO.sync_scope(RefCell::new(with_key()), || ready(balance.get_picker(&endpoint, &discover)).ok());
    measure::once(rounds, changes(count), |change| balance.rebalance(change))
}

/// Changes of one instance's weight, to and fro.
fn changes(count: usize) -> impl FnMut() -> Change<()> + Send {
    let (mut heavier, all) = (false, list(count));
    move || {
        heavier = !heavier;
        let mut all = all.clone();
        all[0] = instance(0, 1 + u32::from(heavier));
        Change { key: (), updated: vec![Arc::clone(&all[0])], all, added: Vec::new(), removed: Vec::new() }
    }
}

fn consistent_hash() -> ConsistentHashBalance<()> {
    ConsistentHashBalance::new(ConsistentHashOption::default())
}

fn with_key() -> MetaInfo {
    let mut info = MetaInfo::new();
    info.insert(RequestHash(0x0123_4567_89AB_CDEF));
    info
}

fn discover(count: usize) -> WeightedStaticDiscover {
    WeightedStaticDiscover::new(list(count))
}

fn list(count: usize) -> Vec<Arc<Instance>> {
    (0..count).map(|number| instance(number, weight(number))).collect()
}

fn instance(number: usize, weight: u32) -> Arc<Instance> {
    Arc::new(Instance { address: volo::net::Address::Ip(address(number)), weight, tags: Default::default() })
}
