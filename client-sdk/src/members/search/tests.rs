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
