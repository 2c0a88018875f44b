//! Where the threads run, by the system's own word.

use std::sync::{Arc, Barrier};

use rustix::thread::{CpuSet, sched_getaffinity};

use super::*;

/// Where each worker may run. They are looked at all at once, so that none is looked at twice.
fn workers(runtime: &Runtime) -> Vec<CpuSet> {
    let count = runtime.metrics().num_workers();
    let all_here = Arc::new(Barrier::new(count));
    let looks = (0..count).map(|_| {
        let all_here = Arc::clone(&all_here);
        runtime.spawn(async move {
            all_here.wait();
            sched_getaffinity(None).expect("where it may run")
        })
    });
    let looks: Vec<_> = looks.collect();
    looks.into_iter().map(|look| runtime.block_on(look).expect("a look")).collect()
}

#[test]
fn each_worker_keeps_to_a_processor_of_its_own_and_others_to_none() {
    let whole = sched_getaffinity(None).expect("where this may run");
    let runtime = start(true).expect("threads");
    let masks = workers(&runtime);
    assert_eq!(masks.len(), thread::available_parallelism().expect("a count").get());
    let cpus = |mask: &CpuSet| (0..CpuSet::MAX_CPU).filter(|cpu| mask.is_set(*cpu)).collect::<Vec<_>>();
    let mut pinned: Vec<_> = masks.iter().map(&cpus).collect();
    assert!(pinned.iter().all(|cpus| cpus.len() == 1 && whole.is_set(cpus[0])), "{pinned:?}");
    pinned.sort_unstable();
    pinned.dedup();
    assert_eq!(pinned.len(), masks.len(), "two have the same: {pinned:?}");
    // Started by a worker, of which a thread has where it may run.
    let other = runtime.spawn(async { tokio::task::spawn_blocking(|| sched_getaffinity(None)).await });
    let other = runtime.block_on(other).expect("a task").expect("a thread").expect("where it may run");
    assert_eq!(cpus(&other), cpus(&whole));
    assert_eq!(cpus(&sched_getaffinity(None).expect("where this may run")), cpus(&whole));
}

#[test]
fn without_being_asked_they_run_anywhere() {
    let whole = sched_getaffinity(None).expect("where this may run");
    for mask in workers(&start(false).expect("threads")) {
        assert_eq!(mask.count(), whole.count());
    }
}
