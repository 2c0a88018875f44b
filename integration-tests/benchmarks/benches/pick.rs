//! The picks of `docs/benchmarks.md` in detail, by criterion: `cargo bench`, in this folder, with a filter if one likes.
//!
//! With `--features pingora`, pingora's too.

use std::{sync::Arc, time::Duration};

use benchmarks::{
    fixture::{Feed, SIZES, instances},
    ours, peers,
    subject::Subject,
};
use client_sdk::runtime::Runtime;
use criterion::{BenchmarkId, Criterion};

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() {
    let runtime = Runtime::tokio();
    tokio::spawn(async move { all(&runtime) }).await.expect("it runs through");
}

fn all(runtime: &Runtime) {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
        .sample_size(20)
        .configure_from_args();
    bench(&mut criterion, "floor", 1, vec![ours::floor()]);
    for size in SIZES {
        let feed = Arc::new(Feed::new(instances(size)));
        bench(&mut criterion, "picker", size, ours::pickers(size, runtime));
        bench(&mut criterion, "picker, made and ended", size, ours::ended(size, runtime));
        bench(&mut criterion, "handle", size, ours::handles(&feed, runtime));
        bench(&mut criterion, "get_picker", size, ours::get_pickers(size, runtime));
        let others = vec![peers::volo_random(size).0, peers::volo_hash(size), peers::tower(size)];
        bench(&mut criterion, "others", size, others);
        bench(&mut criterion, "others", size, peers::pingora(size));
    }
    criterion.final_summary();
}

fn bench(criterion: &mut Criterion, group: &str, size: usize, subjects: Vec<Subject>) {
    if subjects.is_empty() {
        return;
    }
    let mut group = criterion.benchmark_group(group);
    for subject in subjects {
        let mut run = subject.run();
        group.bench_function(BenchmarkId::new(subject.name, size), |bencher| bencher.iter_custom(&mut run));
    }
}
