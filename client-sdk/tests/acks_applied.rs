//! Acks (C4), of those who act on views: what was acked is what picks are made on. With real threads, for a policy may take
//! its time, which must hold up the ack and nothing else.

mod support;

use std::{
    collections::BTreeSet,
    convert::Infallible,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use client_sdk::{
    balance::{Balanced, Balancer, LoadBalance, LoadBalanceError, PickContext, Policy, RoundRobin},
    discover::{Discover, RegistryDiscover, ViewState},
    layer::LoadBalanceLayer,
    model::{Address, Change, Endpoint, InstanceList},
};
use registry_proto::v1::{self, InstanceStatus};
use support::{Fake, Net, Subscription, adding, endpoint, instance, snapshot, soon};
use tower::{Service as _, service_fn};

/// The gate opens by itself after this, which no test that holds lasts for.
const GATE: Duration = Duration::from_secs(30);

/// Lets through so many, and knows how many have come.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<(usize, usize)>, Condvar)>);

/// Round robin that builds when the gate lets it.
struct Gated {
    gate: Gate,
    panics: Arc<AtomicBool>,
    inner: RoundRobin,
}

impl Gate {
    fn open(&self, more: usize) {
        self.0.0.lock().expect("not poisoned").0 += more;
        self.0.1.notify_all();
    }

    /// What the thread's other tasks have to do is done by other threads meanwhile.
    fn pass(&self) {
        tokio::task::block_in_place(|| self.pass_blocking());
    }

    fn pass_blocking(&self) {
        let (lock, told) = &*self.0;
        let mut state = lock.lock().expect("not poisoned");
        state.1 += 1;
        told.notify_all();
        // Bounded, so that a test that fails ends, too: its runtime waits for this thread.
        let (mut state, out_of_time) =
            told.wait_timeout_while(state, GATE, |state| state.0 == 0).expect("not poisoned");
        if !out_of_time.timed_out() {
            state.0 -= 1;
        }
    }

    /// Waits until so many have come.
    async fn come(&self, count: usize) {
        let this = self.clone();
        let come = tokio::task::spawn_blocking(move || {
            let (lock, told) = &*this.0;
            let state = lock.lock().expect("not poisoned");
            // Bounded for the same reason.
            let (state, out_of_time) =
                told.wait_timeout_while(state, GATE, |state| state.1 < count).expect("not poisoned");
            assert!(!out_of_time.timed_out(), "{} of {count} came", state.1);
        });
        soon(come).await.expect("no panic");
    }
}

impl Gated {
    fn new(net: &Net) -> (Self, Gate, Arc<AtomicBool>) {
        let (gate, panics) = (Gate::default(), Arc::new(AtomicBool::new(false)));
        let inner = RoundRobin::new(&net.runtime(1));
        (Self { gate: gate.clone(), panics: Arc::clone(&panics), inner }, gate, panics)
    }
}

impl Policy for Gated {
    type Picker = <RoundRobin as Policy>::Picker;

    fn build(&self, instances: &InstanceList) -> Self::Picker {
        self.gate.pass();
        assert!(!self.panics.load(Ordering::SeqCst), "told to panic");
        self.inner.build(instances)
    }
}

/// The stream of a registry in which `s` is `{a, b}` at 5, and whoever `uses` it after that was shown.
async fn serve(fake: &mut Fake) -> (Subscription, u32) {
    let mut stream = fake.subscription().await;
    let (id, _, _) = stream.subscribe().await;
    stream.change(id, snapshot("e", 5, vec![instance("a", 1, 5), instance("b", 1, 5)])).await;
    stream.bookmark("e", 5).await;
    (stream, id)
}

/// `a` drains.
fn draining(previous: u64, revision: u64) -> v1::Change {
    let (mut a, b) = (instance("a", 1, 5), instance("b", 1, 5));
    a.mod_revision = revision;
    a.status = InstanceStatus::Draining.into();
    let mut delta = adding("e", (previous, revision), vec![], &[a.clone(), b]);
    delta.updated = vec![a];
    delta
}

/// What was asked has been taken in, and is not acked: a request that is made after that is the next one.
async fn is_not_acked(stream: &mut Subscription, discover: &RegistryDiscover) {
    for service in ["taken-in", "next"] {
        let mut view = discover.view(&endpoint(service)).expect("it has views");
        let (id, ..) = stream.subscribe().await;
        // Comes after what was asked, so whoever is shown this has taken in that.
        stream.change(id, snapshot("e", 6, vec![instance("x", 1, 6)])).await;
        let shown = |state: &ViewState| state.view.is_some();
        soon(view.wait_for(shown)).await.expect("followed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_balancers_picker_is_swapped_before_the_ack_in_both_faces() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = Arc::new(RegistryDiscover::builder(net.client(&["r:1"])).build());
    let (policy, gate, _) = Gated::new(&net);
    let balancer = Arc::new(Balancer::builder(Arc::clone(&discover), policy).runtime(net.runtime(2)).build());
    gate.open(1);
    let s = endpoint("s");
    let (handle, (mut stream, id)) = tokio::join!(balancer.handle(&s), serve(&mut fake));
    let mut handle = handle.expect("there are instances");
    stream.change(id, draining(5, 6)).await;
    stream.ask("e", 6).await;
    gate.come(2).await;
    is_not_acked(&mut stream, &discover).await;
    gate.open(1);
    assert_eq!(stream.acked().await, ("e".into(), 6));
    for _ in 0..4 {
        assert_eq!(&*handle.pick(&PickContext::new()).expect("one").instance().id, "b");
        let mut addresses = balancer.get(&s).await.expect("one");
        assert_eq!(addresses.next(), Some("b:80".parse().expect("an address")));
        assert_eq!(addresses.next(), None);
    }
    // A handle that outlives its balancer follows nothing, and holds nothing up.
    drop(balancer);
    stream.ask("e", 7).await;
    assert_eq!(stream.acked().await, ("e".into(), 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_policy_that_panics_leaves_the_old_picker_and_so_no_ack() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = Arc::new(RegistryDiscover::builder(net.client(&["r:1"])).build());
    let (policy, gate, panics) = Gated::new(&net);
    let balancer = Balancer::builder(Arc::clone(&discover), policy).runtime(net.runtime(2)).build();
    gate.open(usize::MAX / 2);
    let s = endpoint("s");
    let (handle, (mut stream, id)) = tokio::join!(balancer.handle(&s), serve(&mut fake));
    let mut handle = handle.expect("there are instances");
    panics.store(true, Ordering::SeqCst);
    stream.change(id, draining(5, 6)).await;
    stream.ask("e", 6).await;
    gate.come(2).await;
    is_not_acked(&mut stream, &discover).await;
    panics.store(false, Ordering::SeqCst);
    stream.change(id, draining(6, 7)).await;
    assert_eq!(stream.acked().await, ("e".into(), 6));
    assert_eq!(&*handle.pick(&PickContext::new()).expect("one").instance().id, "b");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn routes_are_published_before_the_ack() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = Arc::new(RegistryDiscover::builder(net.client(&["r:1"])).build());
    let (policy, gate, _) = Gated::new(&net);
    let who = service_fn(|address: Address| async move {
        Ok::<_, Infallible>(service_fn(move |()| {
            let address = address.to_string();
            async move { Ok::<_, Infallible>(address) }
        }))
    });
    let mut layered = LoadBalanceLayer::builder(Arc::clone(&discover), endpoint("s"))
        .policy(policy)
        .runtime(net.runtime(2))
        .service(who);
    // As many as there are until both are made.
    gate.open(usize::MAX / 2);
    let (mut stream, id) = serve(&mut fake).await;
    soon(layered.wait_until(|now| now.chosen() == 2)).await;
    gate.0.0.lock().expect("not poisoned").0 = 0;
    let so_far = gate.0.0.lock().expect("not poisoned").1;
    stream.change(id, draining(5, 6)).await;
    stream.ask("e", 6).await;
    gate.come(so_far + 1).await;
    is_not_acked(&mut stream, &discover).await;
    gate.open(usize::MAX / 2);
    assert_eq!(stream.acked().await, ("e".into(), 6));
    for _ in 0..8 {
        assert_eq!(layered.call(()).await.expect("answered"), "b:80");
    }
}

/// A load balancer of somebody else's.
struct Foreign {
    gate: Gate,
    known: Mutex<BTreeSet<String>>,
}

impl<D: Discover> LoadBalance<D> for Foreign {
    type InstanceIter = std::vec::IntoIter<Address>;

    async fn get_picker(
        &self,
        endpoint: &Endpoint,
        discover: &D,
    ) -> Result<Self::InstanceIter, LoadBalanceError> {
        let found = discover.discover(endpoint).await.expect("discovered");
        Ok(found.iter().map(|instance| instance.address.clone()).collect::<Vec<_>>().into_iter())
    }

    fn rebalance(&self, changes: Change<D::Key>) {
        // It is told of all services, and this is about the one that has `b`.
        if changes.all.iter().all(|instance| &*instance.id != "b") {
            return;
        }
        // What comes before that may come once or twice: read, and told.
        if changes.all.iter().any(|instance| !instance.takes_requests()) {
            self.gate.pass();
        }
        let takes = changes.all.iter().filter(|instance| instance.takes_requests());
        *self.known.lock().expect("not poisoned") = takes.map(|instance| instance.id.to_string()).collect();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_foreign_balancer_has_applied_what_its_rebalance_has_returned_from() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let discover = Arc::new(RegistryDiscover::builder(net.client(&["r:1"])).build());
    let gate = Gate::default();
    let foreign = Arc::new(Foreign { gate: gate.clone(), known: Mutex::default() });
    let balanced = Balanced::new(Arc::clone(&discover), Arc::clone(&foreign), &net.runtime(2));
    let s = endpoint("s");
    let (first, (mut stream, id)) = tokio::join!(balanced.get(&s), serve(&mut fake));
    assert_eq!(first.expect("two").count(), 2);
    stream.change(id, draining(5, 6)).await;
    stream.ask("e", 6).await;
    gate.come(1).await;
    is_not_acked(&mut stream, &discover).await;
    gate.open(usize::MAX / 2);
    assert_eq!(stream.acked().await, ("e".into(), 6));
    assert_eq!(*foreign.known.lock().expect("not poisoned"), BTreeSet::from(["b".to_owned()]));
}
