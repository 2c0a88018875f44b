//! What is measured: a name, and how to time so many picks on any number of threads.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// Does something so many times on one thread, and tells how long it took.
pub type Run = Box<dyn FnMut(u64) -> Duration + Send>;

/// Something to measure.
pub struct Subject {
    /// Whose it is, and which.
    pub name: &'static str,
    /// Whether several threads can do it on the same thing.
    pub is_shared: bool,
    make: Box<dyn Fn() -> Run>,
}

impl Subject {
    /// Times the loop over something that picks once; `make` makes what one thread runs.
    pub fn each<T, F>(name: &'static str, make: impl Fn() -> F + 'static) -> Self
    where
        F: FnMut() -> T + Send + 'static,
    {
        Self::within(name, |timed| timed(), make)
    }

    /// The same, where `around` calls the timed loop in surroundings that it needs.
    pub fn within<T, F>(
        name: &'static str,
        around: impl Fn(&mut dyn FnMut()) + Copy + Send + 'static,
        make: impl Fn() -> F + 'static,
    ) -> Self
    where
        F: FnMut() -> T + Send + 'static,
    {
        let make = move || {
            let mut once = make();
            let run = move |times: u64| {
                let mut took = Duration::ZERO;
                around(&mut || {
                    let start = Instant::now();
                    for _ in 0..times {
                        black_box(once());
                    }
                    took = start.elapsed();
                });
                took
            };
            Box::new(run) as Run
        };
        Self { name, is_shared: true, make: Box::new(make) }
    }

    /// One that belongs to a single thread: each run has its own.
    pub fn alone(mut self) -> Self {
        self.is_shared = false;
        self
    }

    /// What one thread runs.
    pub fn run(&self) -> Run {
        (self.make)()
    }
}
