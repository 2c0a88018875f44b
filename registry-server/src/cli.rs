//! The binary's body: flags and environment in, [`run`], signals. In the library, so that tests of whole processes run
//! the very same program.

use std::{
    ffi::OsString, fmt::Write as _, io::IsTerminal, net::SocketAddr, path::PathBuf, process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory as _, Parser, ValueEnum};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tracing::{error, info};

use crate::{
    core::Settings,
    grpc::{GrpcSettings, TtlBounds},
    hub::{HubSettings, LogLimits},
    runtime::Runtime,
    server::{Config, Storage, run},
    workers,
};

/// A service registry: holds instances under leases, keeps them durably, and streams every change to watchers.
///
/// It serves gRPC without TLS: `registry.v1.Registry`, the standard health service, and reflection. Stop it with
/// SIGTERM or Ctrl-C: watchers are asked to go elsewhere, calls in flight end, nothing is lost.
///
/// Durations are written like `500ms`, `15s`, `5m` or `24h`.
#[derive(Debug, Parser)]
#[command(version, name = "registry-server")]
struct Args {
    /// Address and port to listen on; port 0 takes a free one and says which
    #[arg(long, env = "REGISTRY_LISTEN", default_value = "127.0.0.1:7400")]
    listen: SocketAddr,

    /// Where to keep what is registered: `embedded` is on disk before every answer, `memory` keeps nothing
    #[arg(long, env = "REGISTRY_STORAGE", value_enum, default_value_t)]
    storage: Storage,

    /// Directory of the embedded store; made if it is not there; one server at a time
    #[arg(long, env = "REGISTRY_DATA_DIR", default_value = "registry-data")]
    data_dir: PathBuf,

    /// Shortest TTL that a lease may have, 1s or longer
    #[arg(long, env = "REGISTRY_TTL_MIN", default_value = "1s", value_parser = humantime::parse_duration)]
    ttl_min: Duration,

    /// Longest TTL that a lease may have, 24h or shorter
    #[arg(long, env = "REGISTRY_TTL_MAX", default_value = "24h", value_parser = humantime::parse_duration)]
    ttl_max: Duration,

    /// Whether to hold instances when too many of a service expire at once: more likely a cut network than a dead fleet
    #[arg(long, env = "REGISTRY_HOLD", value_enum, default_value_t = Switch::On)]
    hold: Switch,

    /// Share of a service that expiry may remove within a window before the rest is held, 0 to 1
    #[arg(long, env = "REGISTRY_HOLD_SHARE", default_value_t = 0.5, value_parser = share)]
    hold_share: f64,

    /// Services with fewer instances than this are never held
    #[arg(long, env = "REGISTRY_HOLD_MIN_INSTANCES", default_value_t = 4)]
    hold_min_instances: usize,

    /// How long held instances stay unless they renew, are deregistered, or an operator resolves them
    #[arg(long, env = "REGISTRY_HOLD_TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    hold_time: Duration,

    /// Changes kept for watchers to resume from, also after a restart; 1 to 10000000
    #[arg(long, env = "REGISTRY_HISTORY_COUNT", default_value_t = 10_000)]
    history_count: usize,

    /// Age up to which changes are kept, 1s to 7days
    #[arg(long, env = "REGISTRY_HISTORY_AGE", default_value = "10m", value_parser = humantime::parse_duration)]
    history_age: Duration,

    /// Bytes of changes that are kept at most, in memory and once more on disk; 1024 to 17179869184 (16 GiB)
    #[arg(long, env = "REGISTRY_HISTORY_BYTES", default_value_t = 64 << 20)]
    history_bytes: u64,

    /// Bytes after which the log on disk is folded, or the size of what it is folded into if that is more; 4096 to 1073741824 (1 GiB)
    #[arg(long, env = "REGISTRY_SEGMENT_BYTES", default_value_t = 16 << 20)]
    segment_bytes: u64,

    /// `Watch` and `Subscribe` streams at a time
    #[arg(long, env = "REGISTRY_MAX_STREAMS", default_value_t = 100_000)]
    max_streams: usize,

    /// How long calls in flight may take to end on shutdown; watchers are asked to leave within half of it
    #[arg(long, env = "REGISTRY_GRACE", default_value = "10s", value_parser = humantime::parse_duration)]
    grace: Duration,

    /// Whether each worker thread keeps to a processor of its own (Linux): quicker beside many watchers, for a server that has its
    /// processors to itself
    #[arg(long, env = "REGISTRY_PIN_WORKERS", value_enum, default_value_t = Switch::Off)]
    pin_workers: Switch,

    /// Form of the log on standard error
    #[arg(long, env = "REGISTRY_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,

    /// What to log: `error`, `warn`, `info`, `debug`, `trace`, or a filter like `info,registry_server::hub=debug`
    #[arg(long, env = "REGISTRY_LOG", default_value = "info")]
    log: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Runs the server as the command line and the environment say, until SIGTERM or Ctrl-C. 0: all is well; 1: it could
/// not run; 2: it was not told well.
pub fn main() -> ExitCode {
    main_with(std::env::args_os())
}

/// The same with a command line of one's own, the program's name first: for programs that are this server among other things.
pub fn main_with(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = Args::parse_from(arguments);
    match workers::start(matches!(args.pin_workers, Switch::On)) {
        Ok(runtime) => runtime.block_on(start(args)),
        Err(error) => refuse(&error.to_string()),
    }
}

/// Every flag, its environment variable, default and meaning: what documentation is checked against.
pub fn command() -> clap::Command {
    Args::command()
}

async fn start(args: Args) -> ExitCode {
    if let Err(problem) = start_log(&args) {
        return refuse(&problem);
    }
    let config = match config(&args) {
        Ok(config) => config,
        Err(problem) => return refuse(&problem),
    };
    match serve(args.listen, config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            error!("{problem}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(listen: SocketAddr, config: Config) -> Result<(), String> {
    let cannot_listen = |error| {
        format!(
            "cannot listen on {listen}: {error}; is another server running? choose another address with --listen"
        )
    };
    let listener = TcpListener::bind(listen).await.map_err(cannot_listen)?;
    let address = listener.local_addr().map_err(cannot_listen)?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let stop = stop_signal().map_err(|error| format!("cannot listen for signals: {error}"))?;
    let store = match config.storage {
        Storage::Embedded => format!("embedded in {}", config.data_dir.display()),
        Storage::Memory => "memory".to_owned(),
    };
    let started = run(config, incoming, Runtime::tokio(), stop, move |found| {
        info!("store: {store}, epoch {}, revision {}", found.epoch, found.revision);
        info!("loaded: {} services, {} instances, {} leases", found.services, found.instances, found.leases);
        info!("listening on {address}");
    });
    started.await.map_err(|error| error.to_string())
}

fn config(args: &Args) -> Result<Config, String> {
    let bounds = TtlBounds::default();
    if args.ttl_min < bounds.least || args.ttl_max > bounds.most || args.ttl_min > args.ttl_max {
        return Err(
            "--ttl-min must be 1s or longer, --ttl-max 24h or shorter, and not below --ttl-min".to_owned()
        );
    }
    if args.hold_time.is_zero() {
        return Err("--hold-time must be above 0; use --hold off to hold nothing".to_owned());
    }
    if !(1..=10_000_000).contains(&args.history_count) {
        return Err("--history-count must be 1 to 10000000 changes".to_owned());
    }
    if !(Duration::from_secs(1)..=Duration::from_hours(7 * 24)).contains(&args.history_age) {
        return Err("--history-age must be 1s to 7days".to_owned());
    }
    let bounds = 1_024..=16 << 30;
    let history_bytes =
        usize::try_from(args.history_bytes).ok().filter(|_| bounds.contains(&args.history_bytes));
    let Some(history_bytes) = history_bytes else {
        return Err("--history-bytes must be 1024 to 17179869184 bytes".to_owned());
    };
    if !(4_096..=1 << 30).contains(&args.segment_bytes) {
        return Err("--segment-bytes must be 4096 to 1073741824 bytes".to_owned());
    }
    let defaults = Config::default();
    Ok(Config {
        storage: args.storage,
        data_dir: args.data_dir.clone(),
        segment_bytes: args.segment_bytes,
        core: Settings {
            guard: matches!(args.hold, Switch::On),
            hold_share: args.hold_share,
            hold_min_instances: args.hold_min_instances,
            hold_time: u64::try_from(args.hold_time.as_millis()).unwrap_or(u64::MAX),
            ..defaults.core
        },
        hub: HubSettings {
            log: LogLimits { count: args.history_count, age: args.history_age, bytes: history_bytes },
            ..defaults.hub
        },
        grpc: GrpcSettings {
            ttl: TtlBounds { least: args.ttl_min, most: args.ttl_max },
            max_streams: args.max_streams,
        },
        grace: args.grace,
    })
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("must be from 0 to 1".to_owned()) }
}

fn start_log(args: &Args) -> Result<(), String> {
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log)
        .map_err(|error| format!("--log `{}` is not a filter: {error}", args.log))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.with_ansi(std::io::stderr().is_terminal());
    match args.log_format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// Resolves at SIGTERM or Ctrl-C.
fn stop_signal() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    #[cfg(unix)]
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    Ok(async move {
        #[cfg(unix)]
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    })
}

fn refuse(problem: &str) -> ExitCode {
    let mut message = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(message, "registry-server: {problem}");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), message.as_bytes());
    ExitCode::from(2)
}

#[cfg(test)]
mod tests;
