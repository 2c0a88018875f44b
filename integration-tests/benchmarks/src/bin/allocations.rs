//! Counts the allocations of a pick: ours, which must be none, and those of the others.
//!
//! `cargo run --release --bin allocations`, in this folder. Fails if one of our picks allocates.

use std::{process::ExitCode, sync::Arc};

use benchmarks::{
    fixture::{Feed, instances},
    ours, peers,
    subject::Subject,
};
use client_sdk::runtime::Runtime;

const PICKS: u64 = 10_000;
const INSTANCES: usize = 100;

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> ExitCode {
    let runtime = Runtime::tokio();
    tokio::spawn(async move { count_all(&runtime) }).await.expect("it runs through")
}

fn count_all(runtime: &Runtime) -> ExitCode {
    let feed = Arc::new(Feed::new(instances(INSTANCES)));
    println!("| allocations, of {INSTANCES} instances | a pick |\n|---|--:|");
    let none = [
        ("", ours::pickers(INSTANCES, runtime)),
        (", made and ended", ours::ended(INSTANCES, runtime)),
        (", by `Handle`", ours::handles(&feed, runtime)),
        (", by `Handle`, filters and shapers set", ours::shaped(&feed, INSTANCES, runtime)),
    ];
    let mut ours = 0.0;
    for (suffix, subjects) in none {
        for subject in subjects {
            ours += count(&subject, suffix);
        }
    }
    for subject in ours::get_pickers(INSTANCES, runtime) {
        count(&subject, ", by `get_picker`");
    }
    let others = [peers::volo_random(INSTANCES).0, peers::volo_hash(INSTANCES).0, peers::tower(INSTANCES)];
    for subject in others.iter().chain(&peers::pingora(INSTANCES)) {
        count(subject, "");
    }
    if ours > 0.0 {
        eprintln!("a pick of ours allocates");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

#[allow(clippy::cast_precision_loss)] // far below 2^52
fn count(subject: &Subject, suffix: &str) -> f64 {
    let mut run = subject.run();
    run(1);
    let counted = allocation_counter::measure(|| {
        run(PICKS);
    });
    let each = counted.count_total as f64 / PICKS as f64;
    println!("| {}{suffix} | {each} |", subject.name);
    each
}
