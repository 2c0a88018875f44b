//! Picks while the instances change: each subject together with what makes one change for it alone.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use client_sdk::{
    balance::{LeastRequest, LoadBalance, Maglev, PeakEwma, Policy, RingHash, RoundRobin, WeightedRandom},
    model::Change,
    runtime::Runtime,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::{
    fixture::{Contexts, Feed, changed, instances},
    measure, ours,
    peers::{self, Answers},
    subject::Subject,
};

/// Between changes.
const CHANGE_EVERY: Duration = Duration::from_millis(100);

/// A pick, and one change of what it is made on.
pub struct Changing {
    /// The pick.
    pub subject: Subject,
    /// Makes one change of one instance.
    pub change: Box<dyn FnMut() + Send>,
}

/// Every policy through a handle, weighted random through `get_picker` too, and the other balancers.
pub fn all(count: usize, runtime: &Runtime) -> Vec<Changing> {
    let mut all = vec![
        handle("round robin, by `Handle`", RoundRobin::with_seed(1), count, runtime),
        handle("weighted random, by `Handle`", WeightedRandom::with_seed(1), count, runtime),
        handle("Maglev, by `Handle`", Maglev::new(), count, runtime),
        handle("ring hash, by `Handle`", RingHash::new(), count, runtime),
        handle("least request, by `Handle`", LeastRequest::with_seed(1), count, runtime),
        handle("peak EWMA, by `Handle`", PeakEwma::new(runtime), count, runtime),
        get_picker("weighted random, by `get_picker`", WeightedRandom::with_seed(1), count, runtime),
        get_picker("Maglev, by `get_picker`", Maglev::new(), count, runtime),
        tower(count),
    ];
    let (subject, change) = peers::volo_random(count);
    all.push(Changing { subject, change: Box::new(change) });
    let (subject, change) = peers::volo_hash(count);
    all.push(Changing { subject, change: Box::new(change) });
    #[cfg(feature = "pingora")]
    all.extend(pingora::all(count));
    all
}

/// Nanoseconds until tower and pingora pick by a change of one instance.
pub fn others(count: usize, rounds: usize) -> Vec<(&'static str, f64)> {
    let mut others = vec![("tower: p2c `Balance`, by its stream", tower(count))];
    #[cfg(feature = "pingora")]
    others.extend(
        [
            "pingora: `RoundRobin`, by `update`",
            "pingora: `Random`, by `update`",
            "pingora: `Consistent`, by `update`",
        ]
        .into_iter()
        .zip(pingora::all(count)),
    );
    let took = |mut it: Changing| {
        let mut run = it.subject.run();
        run(1);
        // What follows a stream takes a change in with the next pick.
        measure::once(
            rounds,
            || (),
            |()| {
                (it.change)();
                run(1)
            },
        )
    };
    others.into_iter().map(|(name, it)| (name, took(it))).collect()
}

/// Does something while another thread makes a change every [`CHANGE_EVERY`].
pub fn while_changing<T>(mut change: impl FnMut() + Send, what: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                std::thread::park_timeout(CHANGE_EVERY);
                change();
            }
        });
        let result = what();
        done.store(true, Ordering::Relaxed);
        changing.thread().unpark();
        result
    })
}

fn handle<P: Policy>(name: &'static str, policy: P, count: usize, runtime: &Runtime) -> Changing {
    let feed = Arc::new(Feed::new(instances(count)));
    let subject = ours::through_handle(name, policy, &feed, Contexts::default, runtime);
    Changing { subject, change: Box::new(move || feed.change()) }
}

fn get_picker<P: Policy>(name: &'static str, policy: P, count: usize, runtime: &Runtime) -> Changing {
    let (subject, cached) = ours::through_get_picker(name, policy, count, Contexts::default, runtime);
    let mut now = instances(count);
    let change = move || {
        let after = changed(&now);
        let change = Change::between((), &now, Arc::clone(&after), None);
        now = after;
        LoadBalance::<Feed>::rebalance(&*cached, change);
    };
    Changing { subject, change: Box::new(change) }
}

type Told = tower::discover::Change<usize, peers::Counted>;

/// tower's balancer follows a stream of changes; each thread has a balancer, and so a stream, of its own.
fn tower(count: usize) -> Changing {
    let streams: Arc<Mutex<Vec<mpsc::UnboundedSender<Result<Told, Infallible>>>>> = Arc::default();
    let told = Arc::clone(&streams);
    let insert = |number| tower::discover::Change::Insert(number, Answers::counted());
    let make = move || {
        let (sender, receiver) = mpsc::unbounded_channel();
        for number in 0..count {
            sender.send(Ok(insert(number))).expect("it is received");
        }
        streams.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        peers::balancing(UnboundedReceiverStream::new(receiver))
    };
    let change = move || {
        let mut streams = told.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|stream| stream.send(Ok(insert(0))).is_ok());
    };
    Changing { subject: Subject::each("tower: p2c `Balance`", make).alone(), change: Box::new(change) }
}

/// pingora's load balancer, which asks a discovery for all backends whenever it is told to update.
#[cfg(feature = "pingora")]
mod pingora {
    use std::{
        collections::{BTreeSet, HashMap},
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
    };

    use pingora_load_balancing::{
        Backend, Backends, LoadBalancer,
        discovery::ServiceDiscovery,
        selection::{BackendIter, BackendSelection, Consistent, Random, RoundRobin},
    };

    use super::Changing;
    use crate::{
        fixture::{Contexts, address, ready, weight},
        subject::Subject,
    };

    /// How many backends may be looked at for one that is healthy: its own examples' number.
    const LOOKS: usize = 256;

    pub(super) fn all(count: usize) -> [Changing; 3] {
        [
            one::<RoundRobin>("pingora: `LoadBalancer<RoundRobin>`", count),
            one::<Random>("pingora: `LoadBalancer<Random>`", count),
            one::<Consistent>("pingora: `LoadBalancer<Consistent>`", count),
        ]
    }

    fn one<S>(name: &'static str, count: usize) -> Changing
    where
        S: BackendSelection + Send + Sync + 'static,
        S::Iter: BackendIter,
    {
        let backends = Backends::new(Box::new(Flips { count, asked: AtomicU64::new(0) }));
        let balancer = Arc::new(LoadBalancer::<S>::from_backends(backends));
        ready(balancer.update()).expect("it is told");
        let changed = Arc::clone(&balancer);
        let subject = Subject::each(name, move || {
            let (balancer, mut contexts) = (Arc::clone(&balancer), Contexts::default());
            move || balancer.select(&contexts.next_key().to_le_bytes(), LOOKS).expect("a backend")
        });
        Changing { subject, change: Box::new(move || ready(changed.update()).expect("it is told")) }
    }

    /// Tells the first backend's weight differently each time.
    struct Flips {
        count: usize,
        asked: AtomicU64,
    }

    #[async_trait::async_trait]
    impl ServiceDiscovery for Flips {
        async fn discover(&self) -> pingora_error::Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
            let odd = self.asked.fetch_add(1, Ordering::Relaxed) % 2 == 1;
            let backend = |number: usize| {
                let weight = if number == 0 && odd { 2 } else { weight(number) as usize };
                Backend::new_with_weight(&address(number).to_string(), weight)
            };
            let backends = (0..self.count).map(backend).collect::<Result<BTreeSet<_>, _>>()?;
            Ok((backends, HashMap::new()))
        }
    }
}
