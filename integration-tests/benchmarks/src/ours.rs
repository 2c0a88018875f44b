//! Our policies: on a built picker, through a handle, through `get_picker`.

use std::{
    mem,
    ptr::from_ref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use client_sdk::{
    balance::{
        Balancer, Cached, LeastRequest, LoadBalance, Maglev, PeakEwma, PickContext, Picker, Policy, RingHash,
        RoundRobin, WeightedRandom,
        shape::{PanicThreshold, SlowStart, Subset, TagSubset, ZoneAware},
    },
    model::{Change, Endpoint, Locality},
    runtime::Runtime,
};

use crate::{
    fixture::{Contexts, Feed, changed, instances, ready},
    measure,
    subject::Subject,
};

/// One atomic addition: what no pick that counts can be faster than.
pub fn floor() -> Subject {
    let counter = Arc::new(AtomicU64::new(0));
    Subject::each("one atomic addition", move || {
        let counter = Arc::clone(&counter);
        move || counter.fetch_add(1, Ordering::Relaxed)
    })
}

/// Calls a macro with each policy and its name.
macro_rules! each_policy {
    ($with:ident, $runtime:expr $(, $more:expr)*) => {
        vec![
            $with("round robin", RoundRobin::with_seed(1) $(, $more)*),
            $with("weighted random", WeightedRandom::with_seed(1) $(, $more)*),
            $with("Maglev", Maglev::new() $(, $more)*),
            $with("ring hash", RingHash::new() $(, $more)*),
            $with("least request", LeastRequest::with_seed(1) $(, $more)*),
            $with("peak EWMA", PeakEwma::new($runtime) $(, $more)*),
        ]
    };
}

/// Every policy on a built picker: making a pick. What ends a pick is not in it.
pub fn pickers(count: usize, runtime: &Runtime) -> Vec<Subject> {
    each_policy!(picking, runtime, count)
}

/// Those that count, on a built picker: making a pick and ending it.
pub fn ended(count: usize, runtime: &Runtime) -> Vec<Subject> {
    vec![
        ending("least request", LeastRequest::with_seed(1), count),
        ending("peak EWMA, which reads the clock twice", PeakEwma::new(runtime), count),
        ending("Maglev with bounded load", Maglev::new().bounded(), count),
        ending("ring hash with bounded load", RingHash::new().bounded(), count),
    ]
}

/// Every policy through a handle on what `feed` tells: making a pick.
pub fn handles(feed: &Arc<Feed>, runtime: &Runtime) -> Vec<Subject> {
    let another = Contexts::default as fn() -> Contexts;
    each_policy!(through_handle, runtime, feed, another, runtime)
}

/// Every policy through a handle, with every filter and shaper before it; all instances pass.
pub fn shaped(feed: &Arc<Feed>, count: usize, runtime: &Runtime) -> Vec<Subject> {
    each_policy!(through_shapes, runtime, feed, count, runtime)
}

/// Every policy through `get_picker`, up to the first address.
pub fn get_pickers(count: usize, runtime: &Runtime) -> Vec<Subject> {
    let another = Contexts::default as fn() -> Contexts;
    each_policy!(picked_through_cache, runtime, count, another, runtime)
}

/// The hashes through a handle and through `get_picker`, with one and the same key: what volo's is measured with.
pub fn hashes_of_one_key(feed: &Arc<Feed>, count: usize, runtime: &Runtime) -> [Vec<Subject>; 2] {
    let one = Contexts::of_one_key as fn() -> Contexts;
    [
        vec![
            through_handle("Maglev, one key", Maglev::new(), feed, one, runtime),
            through_handle("ring hash, one key", RingHash::new(), feed, one, runtime),
        ],
        vec![
            through_get_picker("Maglev, one key", Maglev::new(), count, one, runtime).0,
            through_get_picker("ring hash, one key", RingHash::new(), count, one, runtime).0,
        ],
    ]
}

/// Nanoseconds to build a picker, and to take in a change of one instance, by each policy.
pub fn building(count: usize, rounds: usize, runtime: &Runtime) -> Vec<(&'static str, f64, f64)> {
    each_policy!(building_one, runtime, count, rounds, runtime)
}

fn picking<P: Policy>(name: &'static str, policy: P, count: usize) -> Subject {
    let picker = Arc::new(policy.build(&instances(count)));
    Subject::each(name, move || {
        let (picker, mut contexts) = (Arc::clone(&picker), Contexts::default());
        move || {
            let pick = picker.pick(&contexts.next()).expect("an instance");
            let instance = from_ref(&**pick.instance()).addr();
            mem::forget(pick);
            instance
        }
    })
}

fn ending<P: Policy>(name: &'static str, policy: P, count: usize) -> Subject {
    let picker = Arc::new(policy.build(&instances(count)));
    Subject::each(name, move || {
        let (picker, mut contexts) = (Arc::clone(&picker), Contexts::default());
        move || {
            let context = PickContext::new().hash_key(contexts.next_key());
            let pick = picker.pick(&context).expect("an instance");
            from_ref(&**pick.instance()).addr()
        }
    })
}

pub(crate) fn through_handle<P: Policy>(
    name: &'static str,
    policy: P,
    feed: &Arc<Feed>,
    contexts: fn() -> Contexts,
    runtime: &Runtime,
) -> Subject {
    by_handle(name, Balancer::builder(Arc::clone(feed), policy).runtime(runtime.clone()).build(), contexts)
}

fn through_shapes<P: Policy>(
    name: &'static str,
    policy: P,
    feed: &Arc<Feed>,
    count: usize,
    runtime: &Runtime,
) -> Subject {
    let tags: [(&str, &str); 0] = [];
    let balancer = Balancer::builder(Arc::clone(feed), policy)
        .runtime(runtime.clone())
        .filter(TagSubset::new(tags).or_any())
        .filter(Subset::new(count).expect("at least one"))
        .shaper(ZoneAware::new(Locality::new("here", "a")).expect("a zone"))
        .shaper(SlowStart::new(Duration::from_secs(30)).expect("within its bounds"))
        .panic_threshold(PanicThreshold::default());
    by_handle(name, balancer.build(), Contexts::default)
}

fn by_handle<P: Policy>(
    name: &'static str,
    balancer: Balancer<Feed, P>,
    contexts: fn() -> Contexts,
) -> Subject {
    let endpoint = Endpoint::new("service");
    let handle = tokio::task::block_in_place(|| {
        tokio::runtime::Handle::current().block_on(balancer.handle(&endpoint)).expect("it is known")
    });
    let balancer = Arc::new(balancer);
    Subject::each(name, move || {
        let (balancer, mut handle, mut contexts) = (Arc::clone(&balancer), handle.clone(), contexts());
        move || {
            let _follows = &balancer;
            let pick = handle.pick(&contexts.next()).expect("an instance");
            let instance = from_ref(&**pick.instance()).addr();
            mem::forget(pick);
            instance
        }
    })
}

fn picked_through_cache<P: Policy>(
    name: &'static str,
    policy: P,
    count: usize,
    contexts: fn() -> Contexts,
    runtime: &Runtime,
) -> Subject {
    through_get_picker(name, policy, count, contexts, runtime).0
}

/// And the cache that it picks from.
pub(crate) fn through_get_picker<P: Policy>(
    name: &'static str,
    policy: P,
    count: usize,
    contexts: fn() -> Contexts,
    runtime: &Runtime,
) -> (Subject, Arc<Cached<P, ()>>) {
    let (cached, feed) = (Arc::new(Cached::new(policy, runtime)), Arc::new(Feed::new(instances(count))));
    let picked = Arc::clone(&cached);
    let subject = Subject::each(name, move || {
        let (cached, feed, mut contexts) = (Arc::clone(&cached), Arc::clone(&feed), contexts());
        let mut endpoint = Endpoint::new("service");
        move || {
            endpoint.hash_key = Some(contexts.next_key());
            let mut addresses = ready(cached.get_picker(&endpoint, &*feed)).expect("it is known");
            addresses.next().expect("an address")
        }
    });
    (subject, picked)
}

fn building_one<P: Policy>(
    name: &'static str,
    policy: P,
    count: usize,
    rounds: usize,
    runtime: &Runtime,
) -> (&'static str, f64, f64) {
    let list = instances(count);
    let build = measure::once(rounds, || (), |()| policy.build(&list));
    let cached = Cached::new(policy, runtime);
    let feed = Feed::new(Arc::clone(&list));
    ready(cached.get_picker(&Endpoint::new("service"), &feed)).ok();
    let mut now = list;
    let change = measure::once(
        rounds,
        || {
            let after = changed(&now);
            let change = Change::between((), &now, Arc::clone(&after), None);
            now = after;
            change
        },
        |change| LoadBalance::<Feed>::rebalance(&cached, change),
    );
    (name, build, change)
}
