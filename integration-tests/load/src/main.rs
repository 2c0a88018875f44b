//! `load`: what a registry takes, beside etcd, ZooKeeper and bare gRPC, in one run on one machine.
//!
//! ```text
//!   main ──► scenarios ──► peers ──► process: servers, started, watched, killed
//!     └────► report ◄───────┘
//! ```
//!
//! | module | what it owns |
//! |---|---|
//! | [`scenarios`] | what is asked of the servers, and what of it is measured |
//! | [`peers`] | who is asked, in one vocabulary |
//! | [`process`] | server processes, their processor time and memory |
//! | [`report`] | figures: JSON lines, and the table |
//! | [`stats`] | percentiles and medians |
//! | [`clock`] | the real clock |
//! | [`failure`] | what went wrong, for people |
//!
//! The table goes to standard output, progress to standard error. Every run measures every peer, so that the machine's moods
//! are shared; what counts is the ratio within one run.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a command, which prints

mod clock;
mod failure;
mod peers;
mod process;
mod report;
mod scenarios;
mod stats;

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};
use registry_server::workers;
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    failure::{During, Failure, Result},
    peers::Setup,
    report::Report,
    scenarios::{Scenario, Who},
};

/// Measures a registry beside etcd, ZooKeeper and bare gRPC: starts and ends the servers by itself, on empty directories,
/// on this machine only.
///
/// Everything takes about ten minutes a run. A peer whose program is not there is left out, and so is a scenario that a peer breaks
/// at; the table's end says which, and why.
#[derive(Debug, Parser)]
#[command(version, name = "load")]
struct Args {
    /// What to measure; all of it if none is named
    #[arg(value_enum)]
    scenarios: Vec<Scenario>,

    /// Whom to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Who::value_variants().to_vec())]
    peers: Vec<Who>,

    /// How often to measure everything, 1 to 100; the table has the medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,

    /// A file to write every figure to, a line of JSON each
    #[arg(long)]
    json: Option<PathBuf>,

    /// Divide all counts and times by this, 1 to 1,000: for trying out
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    less: u32,

    /// Where the servers keep their data: on the disk that is to be measured
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,

    /// Whether the threads of the registry and of the floor each keep to a processor of their own (Linux), and those of this tool
    /// beside them; etcd and ZooKeeper have no such setting, and beside them this tool's run anywhere
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pin_workers: Switch,

    /// The program of etcd
    #[arg(long, default_value = "/usr/bin/etcd")]
    etcd: PathBuf,

    /// The program of etcd 3.7, measured beside the other; by default the one that comes with `--features etcd-3.7` of this
    /// tool's build
    #[arg(long = "etcd-3.7")]
    newer_etcd: Option<PathBuf>,

    /// The archive of ZooKeeper; it needs `java`
    #[arg(long, default_value = "/usr/share/java/zookeeper.jar")]
    zookeeper: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// Servers give leases in seconds; and in less, nobody has registered and renewed anything.
const SHORTEST_TTL: Duration = Duration::from_secs(4);

/// Between one server's end and the next one's start, once the disk has what was written.
const REST: Duration = Duration::from_millis(500);

/// What is measured, and how much of it.
#[derive(Clone, Debug)]
struct Plan {
    setup: Setup,
    less: u32,
}

impl Plan {
    /// A count, of instances or changes, as the user wants it scaled; never nothing.
    fn size(&self, count: u32) -> u32 {
        (count / self.less).max(count.min(1))
    }

    /// A count of watchers or connections, likewise.
    fn many(&self, count: usize) -> usize {
        (count / self.less as usize).max(1)
    }

    /// How long a lease is that is to run out: no shorter than servers give it.
    fn ttl(&self, ttl: Duration) -> Duration {
        (ttl / self.less).max(ttl.min(SHORTEST_TTL))
    }

    /// A length of time, likewise.
    fn time(&self, time: Duration) -> Duration {
        time / self.less
    }
}

/// Says how far it is.
fn say(text: &str) {
    eprintln!("{text}");
}

/// As the registry's own binary, which this one also is; the floor has it too.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    let mut rest: Vec<_> = arguments.collect();
    let told = rest.first().and_then(|first| first.to_str()).unwrap_or_default();
    if told == peers::ours::SERVE {
        rest[0] = program;
        return registry_server::cli::main_with(rest);
    }
    let floor = told == peers::floor::SERVE;
    match if floor { serve_floor(&rest[1..]) } else { measure(Args::parse()) } {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => refuse(&failure.to_string()),
    }
}

/// Where to listen, and whether its threads are pinned.
fn serve_floor(arguments: &[OsString]) -> Result<()> {
    let [address, pinned] = arguments else {
        return Err(Failure("the floor wants an address, and whether to pin its threads".to_owned()));
    };
    let address = address.to_str().and_then(|text| text.parse::<SocketAddr>().ok());
    let address = address.ok_or_else(|| Failure("the floor wants an address".to_owned()))?;
    let runtime = workers::start(pinned == "on").during("cannot run")?;
    runtime.block_on(peers::floor::serve(address))
}

fn measure(args: Args) -> Result<()> {
    // A load that is pinned beside a server that is not would be in its way.
    let free = workers::start(false).during("cannot run")?;
    let pinned = workers::start(args.pin_workers == Switch::On).during("cannot run")?;
    let mut told = told_to_end(&free)?;
    let newer_etcd = args.newer_etcd.or_else(peers::etcd::bundled);
    let setup = Setup {
        directory: args.dir,
        etcd: args.etcd,
        newer_etcd,
        zookeeper: args.zookeeper,
        pinned: args.pin_workers == Switch::On,
        hold: false,
    };
    let mut report = Report::new(args.json.as_deref())?;
    let mut peers = args.peers;
    for (who, name, program) in [
        (Who::Etcd, "Etcd", Some(&setup.etcd)),
        (Who::NewerEtcd, "etcd-3.7", setup.newer_etcd.as_ref()),
        (Who::Zookeeper, "Zookeeper", Some(&setup.zookeeper)),
    ] {
        if !peers.contains(&who) || program.is_some_and(|program| program.is_file()) {
            continue;
        }
        let why = match program {
            Some(program) => format!("{} is not there", program.display()),
            None => "build with `--features etcd-3.7`, or name its program with `--etcd-3.7`".to_owned(),
        };
        report.leave_out(format!("{name}: {why}"));
        peers.retain(|peer| *peer != who);
    }
    let scenarios =
        if args.scenarios.is_empty() { Scenario::value_variants().to_vec() } else { args.scenarios };
    let plan = Plan { setup, less: args.less };
    for (run, before) in (1..=args.runs).zip(0..) {
        report.begin(run);
        for scenario in &scenarios {
            // Another one first each time: whoever that is measures what the scenario before has left.
            for who in peers.iter().cycle().skip(before).take(peers.len()) {
                rest();
                let runtime = if who.may_be_pinned() { &pinned } else { &free };
                let run = scenarios::run(*scenario, *who, &plan, &mut report);
                let ended = runtime.block_on(async {
                    tokio::select! {
                        biased;
                        // Whoever tells lives as long as the runtime does.
                        _ = told.wait_for(|told| *told) => None,
                        ended = run => Some(ended),
                    }
                });
                match ended {
                    Some(Ok(())) => {}
                    Some(Err(failure)) => {
                        report.broke(&format!("{scenario:?} {who:?}").to_lowercase(), &failure);
                    }
                    // The servers end with the runtimes.
                    None => {
                        print!("{}", report.table());
                        return Err(Failure(
                            "told to end; the table has what was measured by then".to_owned(),
                        ));
                    }
                }
            }
        }
    }
    print!("{}", report.table());
    if report.is_broken() {
        Err(Failure("not everything could be measured, see above".to_owned()))
    } else {
        Ok(())
    }
}

/// Becomes true when the system tells this process to end. From now on it does not end by that alone.
fn told_to_end(runtime: &Runtime) -> Result<watch::Receiver<bool>> {
    let listen = |kind| signal(kind).during("cannot listen to signals");
    let _entered = runtime.enter();
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let (tell, told) = watch::channel(false);
    clock::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tell.send_replace(true);
    });
    Ok(told)
}

/// What a server leaves, files to write and to delete and connections to close, is done with before the next one starts.
fn rest() {
    rustix::fs::sync();
    std::thread::sleep(REST);
}

fn refuse(problem: &str) -> ExitCode {
    eprintln!("load: {problem}");
    ExitCode::FAILURE
}
