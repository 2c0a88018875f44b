//! Repeated runs, taken in turns: the fastest, or the median where one run is one event.

use std::{
    sync::Barrier,
    time::{Duration, Instant},
};

use crate::subject::{Run, Subject};

/// Picks between two looks at the clock, where it is to take a time.
const BATCH: u64 = 20_000;
/// How long one run takes at least.
const RUN: Duration = Duration::from_millis(4);

/// Nanoseconds of one, for each subject, on so many threads at once: the fastest of `rounds` runs, in which the
/// subjects take turns: whatever else the machine does meets all of them, and only adds to what it meets.
pub fn fastest(subjects: &[Subject], threads: usize, rounds: usize) -> Vec<f64> {
    let mut runs: Vec<Vec<Run>> =
        subjects.iter().map(|subject| (0..threads).map(|_| subject.run()).collect()).collect();
    let times: Vec<u64> = runs.iter_mut().map(|threads| times(threads)).collect();
    let mut results = vec![Vec::with_capacity(rounds); subjects.len()];
    for _ in 0..rounds {
        for ((threads, times), results) in runs.iter_mut().zip(&times).zip(&mut results) {
            results.push(nanos(together(threads, *times), *times));
        }
    }
    results.iter().map(|results| results.iter().copied().fold(f64::INFINITY, f64::min)).collect()
}

/// Nanoseconds of one, on so many threads at once, on the average over so long: what is rare counts as often as it comes.
pub fn mean(subject: &Subject, threads: usize, during: Duration) -> f64 {
    let mut runs: Vec<Run> = (0..threads).map(|_| subject.run()).collect();
    // The first one builds what later ones find.
    for run in &mut runs {
        run(1);
    }
    let (mut total, mut done) = (Duration::ZERO, 0);
    let start = Instant::now();
    while start.elapsed() < during {
        total += together(&mut runs, BATCH);
        done += BATCH;
    }
    nanos(total, done)
}

/// Nanoseconds that something takes: the median of `rounds` times. What is set up for each is not counted.
pub fn once<S, T>(rounds: usize, mut set_up: impl FnMut() -> S, mut what: impl FnMut(S) -> T) -> f64 {
    let mut results: Vec<f64> = (0..rounds)
        .map(|_| {
            let it = set_up();
            let start = Instant::now();
            let result = what(it);
            let took = start.elapsed();
            drop(result);
            nanos(took, 1)
        })
        .collect();
    median(&mut results)
}

/// The middle one, or the mean of the two in the middle.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[allow(clippy::cast_precision_loss)] // far below 2^52
fn nanos(total: Duration, times: u64) -> f64 {
    total.as_nanos() as f64 / times as f64
}

/// How many fill a run.
fn times(threads: &mut [Run]) -> u64 {
    // The first one builds what later ones find; one thread after the other, as it may not be built twice at once.
    for run in threads.iter_mut() {
        run(1);
    }
    let mut times = 1;
    while together(threads, times) < RUN {
        times *= 2;
    }
    times
}

/// How long a thread takes on the average, while all of them are at it.
pub fn together(threads: &mut [Run], times: u64) -> Duration {
    if let [alone] = threads {
        return alone(times);
    }
    let count = u32::try_from(threads.len()).unwrap_or(u32::MAX);
    let start = Barrier::new(threads.len());
    std::thread::scope(|scope| {
        let running: Vec<_> = threads
            .iter_mut()
            .map(|run| {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    run(times)
                })
            })
            .collect();
        let total: Duration = running.into_iter().map(|thread| thread.join().expect("it runs through")).sum();
        total / count
    })
}
