//! Simulations from seed after seed, for as long as one likes: `--minutes 30 --floor all`. Says every half minute how far it
//! is, and in the end what was run and what was broken, with how to repeat it. Ends with 1 if a promise was broken.
//!
//! Its memory is bounded by one run for each job: what a run leaves is judged and dropped.

// This program is where seeds meet the real clock and the terminal.
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::print_stderr)]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use integration_tests::{
    floors::{self, Verdict},
    validate::{Broken, Promise},
};

/// How often it says how far it is.
const PROGRESS: Duration = Duration::from_secs(30);
/// Minutes that nobody waits for: a year.
const LONGEST: f64 = 525_600.0;
/// Of a panic's message so much is repeated.
const SHORT: usize = 400;

/// Simulates the registry from seed after seed and judges every run by the promises of docs/guarantees.md.
#[derive(Debug, Parser)]
struct Args {
    /// How long to go on.
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// The first seed of every floor.
    #[arg(long, default_value_t = 1)]
    from_seed: u64,
    /// What to simulate.
    #[arg(long, value_enum, default_value_t = Which::All)]
    floor: Which,
    /// Plays only this seed, says all that it is judged to have broken, and ends. Needs a floor.
    #[arg(long, conflicts_with_all = ["minutes", "from_seed"])]
    seed: Option<u64>,
    /// With --seed and --floor system: says all that everyone saw, too, and how often what happened.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Stops after so many seeds that broke a promise.
    #[arg(long, default_value_t = 5)]
    breaks: usize,
    /// How many seeds are played at the same time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
}

/// What to simulate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Which {
    /// All floors, each for the same time.
    All,
    /// The rules and what is published, alone.
    Core,
    /// The writer's loop on a store that fails, tears and delays.
    Writer,
    /// Servers, SDK clients and registrants on a network that fails.
    System,
}

/// Plays a seed of a floor.
type Play = fn(u64) -> Verdict;

/// A floor and what became of it so far.
#[derive(Debug)]
struct Floor {
    name: &'static str,
    play: Play,
    next: u64,
    runs: u64,
    commits: usize,
    told: usize,
    spent: Duration,
    broken: Vec<Verdict>,
}

/// All floors, and how many jobs play them.
#[derive(Debug)]
struct Progress {
    floors: Vec<Floor>,
    jobs: usize,
}

/// What the jobs share.
#[derive(Debug)]
struct Soak {
    progress: Mutex<Progress>,
    ended: Condvar,
    until: Instant,
    breaks: usize,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let floors = floors(args.floor, args.from_seed);
    if let Some(seed) = args.seed {
        let [floor] = &floors[..] else {
            eprintln!("a single seed needs one floor: add --floor core, writer or system");
            return ExitCode::from(2);
        };
        let verdict = if args.trace && args.floor == Which::System {
            let run = floors::system::play(seed);
            println!("{}", run.recorded.trace);
            for (what, times) in floors::reached::reached(&run) {
                println!("{times:>6} times {what}");
            }
            run.verdict(seed)
        } else {
            (floor.play)(seed)
        };
        println!("{verdict}");
        return if verdict.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    be_short_about_panics();
    let soak = Soak {
        progress: Mutex::new(Progress { floors, jobs: args.jobs.max(1) }),
        ended: Condvar::new(),
        until: Instant::now() + Duration::from_secs_f64(args.minutes.clamp(0.0, LONGEST) * 60.0),
        breaks: args.breaks.max(1),
    };
    let began = Instant::now();
    thread::scope(|scope| {
        let mut progress = soak.progress();
        for _ in 0..progress.jobs {
            scope.spawn(|| soak.work());
        }
        while progress.jobs > 0 {
            let waited = soak.ended.wait_timeout(progress, PROGRESS).unwrap_or_else(PoisonError::into_inner);
            progress = waited.0;
            if waited.1.timed_out() {
                println!("{}", summary(&progress.floors, began.elapsed()));
            }
        }
    });
    let progress = soak.progress();
    let floors = &progress.floors;
    println!("--- in the end ---\n{}", summary(floors, began.elapsed()));
    for verdict in floors.iter().flat_map(|floor| &floor.broken) {
        println!("{verdict}");
    }
    let idle: Vec<&str> = floors.iter().filter(|floor| floor.runs == 0).map(|floor| floor.name).collect();
    if !idle.is_empty() {
        eprintln!("nothing was played of {}: give it more minutes", idle.join(", "));
        return ExitCode::FAILURE;
    }
    if floors.iter().all(|floor| floor.broken.is_empty()) {
        println!("no promise was broken");
        return ExitCode::SUCCESS;
    }
    ExitCode::FAILURE
}

impl Soak {
    /// Plays seeds until the time is over, or enough is broken.
    fn work(&self) {
        while let Some((at, play, seed)) = self.next() {
            let began = Instant::now();
            let played = catch_unwind(AssertUnwindSafe(|| play(seed)));
            let mut progress = self.progress();
            let floor = &mut progress.floors[at];
            floor.spent += began.elapsed();
            let verdict = played.unwrap_or_else(|panic| panicked(floor.name, seed, &message(&*panic)));
            floor.runs += 1;
            floor.commits += verdict.commits;
            floor.told += verdict.told;
            if !verdict.broken.is_empty() {
                println!("{verdict}");
                floor.broken.push(verdict);
            }
        }
        self.progress().jobs -= 1;
        self.ended.notify_all();
    }

    /// The next seed of the floor that had the least time.
    fn next(&self) -> Option<(usize, Play, u64)> {
        let mut progress = self.progress();
        let floors = &mut progress.floors;
        let broken: usize = floors.iter().map(|floor| floor.broken.len()).sum();
        if Instant::now() >= self.until || broken >= self.breaks {
            return None;
        }
        let (at, floor) = floors.iter_mut().enumerate().min_by_key(|(_, floor)| floor.spent)?;
        floor.next += 1;
        Some((at, floor.play, floor.next - 1))
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn floors(which: Which, from_seed: u64) -> Vec<Floor> {
    let all: [(Which, &'static str, Play); 3] = [
        (Which::Core, "core", floors::core),
        (Which::Writer, "writer", floors::writer),
        (Which::System, "system", floors::system::verdict),
    ];
    let chosen = all.into_iter().filter(|(floor, ..)| which == Which::All || which == *floor);
    let new = |(_, name, play)| Floor {
        name,
        play,
        next: from_seed,
        runs: 0,
        commits: 0,
        told: 0,
        spent: Duration::ZERO,
        broken: Vec::new(),
    };
    chosen.map(new).collect()
}

fn summary(floors: &[Floor], passed: Duration) -> String {
    let floors: Vec<String> = floors
        .iter()
        .map(|floor| {
            format!(
                "{}: {} runs, {} revisions, {} messages, {} broken",
                floor.name,
                floor.runs,
                floor.commits,
                floor.told,
                floor.broken.len()
            )
        })
        .collect();
    format!("{:>6} s  {}{}", passed.as_secs(), floors.join("; "), memory())
}

/// The most memory that this process ever had, where the system tells.
fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    most.map(|most| format!("; memory at most {}", most.trim())).unwrap_or_default()
}

/// A simulation that panics says all that happened: here the beginning will do, for the seed tells the rest.
fn be_short_about_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        eprintln!("panicked at {place}: {}", message(panic.payload()));
    }));
}

/// A seed that ended in a panic: a host that failed, or something that nobody may be told.
fn panicked(floor: &'static str, seed: u64, message: &str) -> Verdict {
    let broken = Broken { promise: Promise::Sound, what: message.to_owned() };
    Verdict { floor, seed, broken: vec![broken], commits: 0, told: 0 }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without words").chars().take(SHORT).collect()
}
