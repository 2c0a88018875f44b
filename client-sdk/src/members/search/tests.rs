//! A request against a member whose state changes between any two looks at it.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::*;
use crate::{
    balance::{CallerOrder, Maglev, RoundRobin, shape::State},
    members::{
        ConnectionState, Room, Settings,
        gate::Gate,
        lay::Turn,
        routes::{Entry, Routes},
    },
    model::{Address, Endpoint, Instance},
    outlier::Judgement,
    runtime::Runtime,
};

/// Connecting for so many looks at it, then as it says.
struct Turning {
    address: Address,
    then: ConnectionState,
    looks: AtomicUsize,
}

impl Turning {
    fn look(&self) -> ConnectionState {
        let left = self.looks.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        if left.is_ok() { ConnectionState::Connecting } else { self.then }
    }
}

impl Member for Turning {
    fn address(&self) -> &Address {
        &self.address
    }

    fn state(&self) -> ConnectionState {
        self.look()
    }

    fn is_hopeful(&self) -> bool {
        matches!(self.look(), ConnectionState::Idle | ConnectionState::Connecting)
    }

    fn opened(&self) -> u64 {
        1
    }

    fn in_flight(&self) -> usize {
        0
    }

    fn is_gone(&self) -> bool {
        false
    }

    fn last_error(&self) -> Option<SharedError> {
        None
    }
}

fn shared(chooser: Chooser, settings: Settings) -> Arc<Shared<Turning>> {
    let caller = CallerOrder::new(1);
    Arc::new(Shared::new(Endpoint::new("x"), settings, caller, Runtime::tokio(), chooser))
}

fn instance() -> Arc<Instance> {
    Arc::new(Instance::builder("a:1".parse().expect("valid")).build())
}

/// Ready after so many looks.
fn turning(instance: &Instance, looks: usize) -> Arc<Turning> {
    member(instance, looks, ConnectionState::Ready)
}

fn member(instance: &Instance, looks: usize, then: ConnectionState) -> Arc<Turning> {
    Arc::new(Turning { address: instance.address.clone(), then, looks: AtomicUsize::new(looks) })
}

fn entry(instance: &Arc<Instance>, member: &Arc<Turning>, wanted: bool) -> Entry<Turning> {
    Entry {
        instance: Arc::clone(instance),
        member: Arc::clone(member),
        demand: Arc::default(),
        wanted,
        removed: false,
        kept: true,
        gate: Arc::new(Gate::new(None, None, Arc::new(Room::new(true)), Arc::default())),
        judgement: Judgement::Admitted,
    }
}

fn routes(shared: &Shared<Turning>, instance: &Arc<Instance>, member: &Arc<Turning>) -> Routes<Turning> {
    over(shared, vec![entry(instance, member, true)])
}

fn over(shared: &Shared<Turning>, entries: Vec<Entry<Turning>>) -> Routes<Turning> {
    let mut state = State::default();
    let shaping = &shared.settings.shaping;
    let turn = Turn { shaping, state: &mut state, now: shared.runtime.now(), anew: false };
    Routes::build(&shared.routes.load(), entries, true, None, &shared.chooser, turn)
}

/// The driver lists the new routes, and tells of them only then.
#[tokio::test]
async fn routes_that_are_there_but_not_told_of_yet_are_looked_at_before_a_request_fails() {
    let shared = shared(Chooser::policy(RoundRobin::with_seed(1)), Settings::default());
    let mut search = Search::new(Arc::clone(&shared), PickContext::new(), None);
    let Ok(Choice::None { seen, hope }) = search.choose() else { panic!("nothing is known") };
    let instance = instance();
    shared.routes.store(Arc::new(routes(&shared, &instance, &turning(&instance, 0))));
    assert!(search.wait(seen, hope, None, false).await.is_ok(), "it looks again");
    assert!(matches!(search.choose(), Ok(Choice::Member(..))));
}

#[tokio::test(start_paused = true)]
async fn a_member_that_becomes_ready_while_a_request_looks_fails_no_request() {
    for (chooser, on_demand) in
        [(Chooser::policy(RoundRobin::with_seed(1)), false), (Chooser::policy(Maglev::new()), true)]
    {
        for looks in 0..12 {
            let (shared, instance) = (shared(chooser.clone(), Settings::default()), instance());
            let member = turning(&instance, 0);
            shared.publish(routes(&shared, &instance, &member));
            member.looks.store(looks, SeqCst);
            let context = PickContext::new().hash_key(7);
            let mut search = Search::new(Arc::clone(&shared), context, None);
            let mut next = std::pin::pin!(search.next());
            let found = tokio::select! {
                biased;
                found = &mut next => found,
                () = tokio::task::yield_now() => {
                    // It told the driver that it changed.
                    member.looks.store(0, SeqCst);
                    shared.publish(routes(&shared, &instance, &member));
                    next.await
                }
            };
            let found = found.map(drop).map_err(|error| error.to_string());
            assert_eq!(found, Ok(()), "on demand: {on_demand}, ready after {looks} looks");
        }
    }
}

/// Between a failure and the driver's hearing of it.
#[tokio::test(start_paused = true)]
async fn a_request_waits_for_one_more_where_one_that_was_to_be_connected_failed() {
    let settings = Settings { connect_ahead: 1, ..Settings::default() };
    let shared = shared(Chooser::policy(RoundRobin::with_seed(1)), settings);
    let [a, b] = ["a:1", "b:1"].map(|it| Arc::new(Instance::builder(it.parse().expect("valid")).build()));
    let failed = member(&a, 0, ConnectionState::TransientFailure);
    let at_rest = member(&b, 0, ConnectionState::Idle);
    shared.publish(over(&shared, vec![entry(&a, &failed, true), entry(&b, &at_rest, false)]));
    let mut search = Search::new(Arc::clone(&shared), PickContext::new(), None);
    let mut next = std::pin::pin!(search.next());
    tokio::select! {
        biased;
        found = &mut next => panic!("{:?}", found.map(drop).map_err(|error| error.to_string())),
        () = tokio::task::yield_now() => {}
    }
    shared.publish(over(&shared, vec![entry(&a, &failed, true), entry(&b, &turning(&b, 0), true)]));
    let (_, found) = next.await.expect("the one more");
    assert_eq!(found.address, b.address);
}

/// A request that was given to a member already cannot use the place that becomes free there.
#[tokio::test(start_paused = true)]
async fn a_place_goes_to_a_request_that_can_use_it_though_one_that_cannot_waited_first() {
    let settings = Settings { max_in_flight: Some(1), ..Settings::default() };
    let shared = shared(Chooser::policy(RoundRobin::with_seed(1)), settings);
    let [a, b] = ["a:1", "b:1"].map(|it| Arc::new(Instance::builder(it.parse().expect("valid")).build()));
    let limited = |instance, member: &Arc<Turning>| {
        let gate = Arc::new(Gate::new(Some(1), None, Arc::clone(&shared.room), Arc::default()));
        Entry { gate, ..entry(instance, member, true) }
    };
    let (at_a, at_b) = (turning(&a, 0), turning(&b, 0));
    shared.publish(over(&shared, vec![limited(&a, &at_a), limited(&b, &at_b)]));
    let search = || Search::new(Arc::clone(&shared), PickContext::new(), None);
    let mut first = search();
    first.not_taken(&at_b, 1, None);
    let (in_a, _) = first.next().await.expect("a has a place");
    let (in_b, _) = search().next().await.expect("b has a place");

    let (mut picky, mut fresh) = (search(), search());
    picky.not_taken(&at_a, 1, None);
    let (mut picky, mut fresh) = (std::pin::pin!(picky.next()), std::pin::pin!(fresh.next()));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(picky.as_mut().poll(&mut cx).is_pending() && fresh.as_mut().poll(&mut cx).is_pending());
    drop(in_a);
    let mut next = std::pin::pin!(tokio::time::timeout(Duration::from_secs(1), fresh));
    let (_, found) = tokio::select! {
        biased;
        found = &mut picky => panic!("{:?}", found.map(drop).map_err(|error| error.to_string())),
        found = &mut next => found.expect("nobody took its turn").expect("a place"),
    };
    assert_eq!(found.address, a.address);
    drop(in_b);
    assert_eq!(picky.await.expect("b has a place again").1.address, b.address);
}

#[tokio::test(start_paused = true)]
async fn what_is_ejected_is_left_out_unless_nobody_else_is_there() {
    use crate::outlier::{Detector, OutlierDetection};

    let [a, b] = ["a:1", "b:1"].map(|it| Arc::new(Instance::builder(it.parse().expect("valid")).build()));
    let mut detector = Detector::new(OutlierDetection::default(), Duration::ZERO, 0);
    detector.follow(&[Arc::clone(&a), Arc::clone(&b)]);
    for _ in 0..5 {
        let _ = detector.tally(&a).expect("there").finished(crate::balance::Outcome::Failure, None);
    }
    detector.settle(Duration::ZERO);
    let ejected = detector.judgement(&a);
    assert!(ejected.ejection().is_some());
    for (chooser, on_demand) in
        [(Chooser::policy(RoundRobin::with_seed(1)), false), (Chooser::policy(Maglev::new()), true)]
    {
        use ConnectionState::{Connecting, Ready, TransientFailure};
        for (other, takes_a) in [(Ready, false), (TransientFailure, true), (Connecting, !on_demand)] {
            let shared = shared(chooser.clone(), Settings::default());
            let bad = Entry { judgement: ejected, ..entry(&a, &turning(&a, 0), true) };
            shared.publish(over(&shared, vec![bad, entry(&b, &member(&b, 0, other), true)]));
            let routes = shared.routes.load();
            let routed: Vec<_> = routes.entries.iter().map(|entry| routes.takes(entry)).collect();
            let takes_b = other == Ready || (on_demand && other == Connecting);
            assert_eq!(routed, [takes_a, takes_b], "on demand: {on_demand}, the other: {other:?}");
        }
    }
}
