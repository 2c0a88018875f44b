//! A request against a member whose state changes between any two looks at it.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::*;
use crate::{
    balance::{CallerOrder, Maglev, RoundRobin},
    members::{
        ConnectionState, Settings,
        routes::{Entry, Routes},
    },
    model::{Address, Endpoint, Instance},
    runtime::Runtime,
};

/// Connecting for so many looks at it, then ready.
struct Turning {
    address: Address,
    looks: AtomicUsize,
}

impl Turning {
    fn look(&self) -> ConnectionState {
        let left = self.looks.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        if left.is_ok() { ConnectionState::Connecting } else { ConnectionState::Ready }
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
        self.look() == ConnectionState::Connecting
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

/// Connecting for so many looks.
fn turning(instance: &Instance, looks: usize) -> Arc<Turning> {
    Arc::new(Turning { address: instance.address.clone(), looks: AtomicUsize::new(looks) })
}

fn routes(shared: &Shared<Turning>, instance: &Arc<Instance>, member: &Arc<Turning>) -> Routes<Turning> {
    let entry = Entry {
        instance: Arc::clone(instance),
        member: Arc::clone(member),
        demand: Arc::default(),
        wanted: true,
        removed: false,
    };
    Routes::build(&shared.routes.load(), vec![entry], true, None, &shared.chooser)
}

/// The driver lists the new routes, and tells of them only then.
#[tokio::test]
async fn routes_that_are_there_but_not_told_of_yet_are_looked_at_before_a_request_fails() {
    let shared = shared(Chooser::policy(RoundRobin::with_seed(1)), Settings::default());
    let mut search = Search::new(Arc::clone(&shared), PickContext::new(), None);
    let Ok(Choice::None { seen, hope }) = search.choose() else { panic!("nothing is known") };
    let instance = instance();
    shared.routes.store(Arc::new(routes(&shared, &instance, &turning(&instance, 0))));
    assert!(search.wait(seen, hope, None).await.is_ok(), "it looks again");
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
