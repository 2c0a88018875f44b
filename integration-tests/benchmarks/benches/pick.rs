//! The picks of `docs/benchmarks.md` in detail, by criterion: `cargo bench`, in this folder, with a filter if one likes.
//!
//! With `--features pingora`, pingora's too.

use std::{sync::Arc, time::Duration};

use benchmarks::{
    changing::{self, Changing, while_changing},
    fixture::{Feed, SIZES, instances},
    measure::together,
    ours, peers,
    subject::Subject,
};
use client_sdk::runtime::Runtime;
use criterion::{BenchmarkId, Criterion};

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() {
    let runtime = Runtime::tokio();
    // It never yields, so that tower's stream would soon be told to, and then everything else.
    tokio::spawn(tokio::task::unconstrained(async move { all(&runtime) })).await.expect("it runs through");
}

fn all(runtime: &Runtime) {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
        .sample_size(20)
        .configure_from_args();
    for threads in [1, 2] {
        let criterion = &mut criterion;
        bench(criterion, "floor", threads, 1, vec![ours::floor()]);
        for size in SIZES {
            let feed = Arc::new(Feed::new(instances(size)));
            bench(criterion, "picker", threads, size, ours::pickers(size, runtime));
            bench(criterion, "picker, made and ended", threads, size, ours::ended(size, runtime));
            bench(criterion, "handle", threads, size, ours::handles(&feed, runtime));
            bench(criterion, "get_picker", threads, size, ours::get_pickers(size, runtime));
            let others = vec![peers::volo_random(size).0, peers::volo_hash(size).0, peers::tower(size)];
            bench(criterion, "others", threads, size, others);
            bench(criterion, "others", threads, size, peers::pingora(size));
            for Changing { subject, change } in changing::all(size, runtime) {
                while_changing(change, || bench(criterion, "changing", threads, size, vec![subject]));
            }
        }
    }
    criterion.final_summary();
}

/// Time is that of a pick on each of the threads, on the average.
fn bench(criterion: &mut Criterion, group: &str, threads: usize, size: usize, subjects: Vec<Subject>) {
    let subjects: Vec<_> = subjects.into_iter().filter(|it| threads == 1 || it.is_shared).collect();
    if subjects.is_empty() {
        return;
    }
    let mut group = criterion.benchmark_group(format!("{group}, threads: {threads}"));
    for subject in subjects {
        let mut runs: Vec<_> = (0..threads).map(|_| subject.run()).collect();
        group.bench_function(BenchmarkId::new(subject.name, size), |bencher| {
            bencher.iter_custom(|times| together(&mut runs, times));
        });
    }
}
