//! Both pools under the same demand, on simulated time: prints the table of `docs/pool.md` and writes its plot,
//! `docs/pool.svg`.
//!
//! ```text
//! cargo run -p client-sdk --example pool_simulation
//! ```
//!
//! The same seed gives the same figures. A minute or two of work, hours of simulated time.

// Printing is what it is for; its modules are the tests', too.
#![allow(clippy::print_stdout, missing_docs, unreachable_pub, clippy::disallowed_methods)]

mod plot;
mod simulation;

use std::{error::Error, fs, path::Path};

use simulation::{Mode, Scenario, report, run};

/// Requests of each steady demand.
const REQUESTS: usize = 100_000;
const SEED: u64 = 1;

fn main() -> Result<(), Box<dyn Error>> {
    println!("{}", report(REQUESTS, SEED));
    let story = Scenario::story();
    let runs = [Mode::Steady, Mode::Classic].map(|mode| (mode, run(mode, &story, SEED)));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/pool.svg");
    fs::write(&path, plot::svg(&story, &runs))?;
    println!("the plot is in docs/pool.svg");
    Ok(())
}
