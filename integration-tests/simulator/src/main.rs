//! Runs every fleet at full size: prints the table of `docs/balancing.md`, and writes a picture of each fleet.
//!
//! `cargo run --release -p simulator -- [seconds] [seed] [directory for pictures]`
#![allow(clippy::print_stdout, clippy::print_stderr)] // a command, which prints

use std::{path::Path, process::ExitCode, time::Duration};

use simulator::{plot, report};

const USAGE: &str = "usage: simulator [seconds, 1 to 3600; default 60] [seed; default 1] [directory for pictures; default none]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| arguments.get(at).map_or(Some(default), |text| text.parse().ok());
    let (Some(seconds @ 1..=3600), Some(seed), true) = (number(0, 60), number(1, 1), arguments.len() <= 3)
    else {
        eprintln!("{USAGE}");
        return ExitCode::FAILURE;
    };
    let all = report::all(Duration::from_secs(seconds), seed);
    print!("{}", report::table(&all));
    let Some(directory) = arguments.get(2) else { return ExitCode::SUCCESS };
    for results in &all {
        let name = format!("{}.svg", results.scenario.name.replace(' ', "-"));
        if let Err(error) = std::fs::write(Path::new(directory).join(&name), plot::svg(results)) {
            eprintln!("cannot write {name} into {directory}: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
