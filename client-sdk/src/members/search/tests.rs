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

fn publish(shared: &Shared<Turning>, instance: &Arc<Instance>, member: &Arc<Turning>) {
    let entry = Entry {
        instance: Arc::clone(instance),
        member: Arc::clone(member),
        demand: Arc::default(),
        wanted: true,
        removed: false,
    };
    let before = shared.routes.load();
    shared.publish(Routes::build(&before, vec![entry], true, None, &shared.chooser));
}

#[tokio::test(start_paused = true)]
async fn a_member_that_becomes_ready_while_a_request_looks_fails_no_request() {
    for (chooser, on_demand) in
        [(Chooser::policy(RoundRobin::with_seed(1)), false), (Chooser::policy(Maglev::new()), true)]
    {
        for looks in 0..12 {
            let caller = CallerOrder::new(1);
            let (settings, runtime) = (Settings::default(), Runtime::tokio());
            let shared =
                Arc::new(Shared::new(Endpoint::new("x"), settings, caller, runtime, chooser.clone()));
            let address: Address = "a:1".parse().expect("valid");
            let instance = Arc::new(Instance::builder(address.clone()).build());
            let member = Arc::new(Turning { address, looks: AtomicUsize::new(0) });
            publish(&shared, &instance, &member);
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
                    publish(&shared, &instance, &member);
                    next.await
                }
            };
            let found = found.map(drop).map_err(|error| error.to_string());
            assert_eq!(found, Ok(()), "on demand: {on_demand}, ready after {looks} looks");
        }
    }
}
