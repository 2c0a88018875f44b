//! A million instances and a hundred thousand watchers on the server's rules and hub, without a network: what each thing takes,
//! whether it stays the same at a tenth of the size, and whether everyone ends with the truth.
//!
//! Each case runs in a process of its own, so that memory is its own. Ends with 1 if anything is not as promised.

// This program is where the simulation meets the terminal.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::{Command, ExitCode, Stdio};

use clap::Parser;
use integration_tests::scale::{self, Figure, Sizes};

/// Between the fields of a figure, from the process of a case to that of the table.
const BETWEEN: char = '\t';

/// Simulates a registry of any size on its rules and its hub, in four cases: the whole; a tenth of the services, with all that is
/// theirs; a tenth of the instances in services other than those measured; a tenth of the history. Prints what each thing took.
#[derive(Debug, Parser)]
struct Args {
    /// Instances, each under a lease of its own, alike in all services
    #[arg(long, default_value_t = 1_000_000)]
    instances: u32,
    /// Watchers, each with a stream of its own, alike over all services; one in ten is slow
    #[arg(long, default_value_t = 100_000)]
    watchers: u32,
    /// Services, in tens
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Changes that the recent log keeps
    #[arg(long, default_value_t = 10_000)]
    history: u32,
    /// Runs only this case, 1 to 4, in this process, and prints its figures, a line each
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=4))]
    case: Option<u8>,
}

fn main() -> ExitCode {
    match simulate(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("scale: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn simulate(args: &Args) -> Result<(), String> {
    let sizes = Sizes::new(args.instances, args.watchers, args.services, args.history);
    let cases = sizes.map_err(|wrong| wrong.to_string())?.cases();
    if let Some(case) = args.case {
        let (name, sizes) = cases[usize::from(case - 1)];
        let figures = scale::run(sizes, &mut |progress| eprintln!("{name}: {progress}"));
        for Figure { name, unit, value } in figures.map_err(|untrue| untrue.to_string())? {
            println!("{name}{BETWEEN}{unit}{BETWEEN}{value}");
        }
        return Ok(());
    }
    let mut columns = Vec::new();
    for (number, case) in (1..).zip(cases) {
        columns.push((case, alone(number, args)?));
    }
    println!("{}\n{}", scale::table(&columns), scale::confirmed(&columns));
    println!("all watchers end with the truth");
    Ok(())
}

/// Runs a case in a process of its own.
fn alone(case: u8, args: &Args) -> Result<Vec<Figure>, String> {
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let sizes = [args.instances, args.watchers, args.services, args.history];
    let flags = ["--instances", "--watchers", "--services", "--history"];
    let done = Command::new(program)
        .args(flags.iter().zip(sizes).flat_map(|(flag, size)| [(*flag).to_owned(), size.to_string()]))
        .args(["--case", &case.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot start case {case}: {error}"))?;
    if !done.status.success() {
        return Err(format!("case {case} ended with {}", done.status));
    }
    let text = String::from_utf8_lossy(&done.stdout);
    let figure = |line: &str| {
        let mut fields = line.split(BETWEEN);
        let (name, unit) = (fields.next()?.to_owned(), fields.next()?.to_owned());
        Some(Figure { name, unit, value: fields.next()?.parse().ok()? })
    };
    text.lines().map(|line| figure(line).ok_or_else(|| format!("case {case} says {line}"))).collect()
}
