//! What a call through a [`BalancedChannel`] costs its caller, beside tonic's own channels, in one run.
//!
//! Ten echo servers run in a process of their own; this one calls them and reads its own CPU time. The channels take
//! turns in rounds that are short against the noise of a machine, so that whatever else goes on meets all of them.
//! Prints a table: medians over the rounds, and the spread from the first to the third quartile.
//!
//! `cargo run --release --bin channel [rounds]`; 41 rounds unless told.

use std::{
    error::Error,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use client_sdk::{BalancedChannel, Endpoint, StaticDiscover};
use rustix::time::{ClockId, clock_gettime};
use tokio_stream::Pending;
use tonic::{
    Request, Response, Status,
    body::Body,
    client::GrpcService,
    codegen::{Body as HttpBody, Bytes},
    transport::{Channel, Endpoint as TonicEndpoint, Server, server::TcpIncoming},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};

type Failure = Box<dyn Error + Send + Sync>;

const SERVERS: usize = 10;
/// What is measured, and which of them it is measured against.
const CHANNELS: [(&str, Option<usize>); 5] = [
    ("tonic, 1 server", None),
    ("tonic with keepalive as ours has it, 1 server", Some(0)),
    ("ours, 1 server", Some(0)),
    ("tonic, 10 servers", None),
    ("ours, 10 servers", Some(3)),
];
/// Calls of a round, by how many callers make them at once.
const LOADS: [(usize, usize); 2] = [(1, 1_000), (32, 4_000)];

/// CPU and wall time of a call in one round, in µs.
#[derive(Clone, Copy)]
struct Cost {
    cpu: f64,
    wall: f64,
}

fn main() -> Result<(), Failure> {
    // One worker on each side: the machine has two cores, and the figures are CPU time.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    match std::env::args().nth(1).as_deref() {
        Some("serve") => runtime.block_on(serve()),
        rounds => {
            let rounds = rounds.map(str::parse).transpose()?.unwrap_or(41).max(7);
            runtime.block_on(measure(rounds))
        }
    }
}

struct Echo;

#[tonic::async_trait]
impl Health for Echo {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse { status: 1 }))
    }

    type WatchStream = Pending<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("only `check` is measured"))
    }
}

/// Serves until its input ends: with the process that measures.
async fn serve() -> Result<(), Failure> {
    let mut ports = Vec::new();
    for _ in 0..SERVERS {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        ports.push(listener.local_addr()?.port().to_string());
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        tokio::spawn(Server::builder().add_service(HealthServer::new(Echo)).serve_with_incoming(incoming));
    }
    let mut output = std::io::stdout();
    writeln!(output, "{}", ports.join(" "))?;
    output.flush()?;
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    Ok(())
}

async fn measure(rounds: usize) -> Result<(), Failure> {
    let mut server = Command::new(std::env::current_exe()?)
        .arg("serve")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(server.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let addresses: Vec<_> = line.split_whitespace().map(|port| format!("127.0.0.1:{port}")).collect();

    let tonic = |address: &String| -> Result<TonicEndpoint, Failure> {
        Ok(Channel::from_shared(format!("http://{address}"))?.tcp_nodelay(true))
    };
    let ours = |addresses: &[String]| -> Result<BalancedChannel, Failure> {
        let discover = StaticDiscover::parse(addresses.iter().map(String::as_str))?;
        Ok(BalancedChannel::builder(Arc::new(discover), Endpoint::new("echo")).build())
    };
    let one = HealthClient::new(tonic(&addresses[0])?.connect().await?);
    let keepalive = tonic(&addresses[0])?
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    let one_keepalive = HealthClient::new(keepalive.connect().await?);
    let ten = addresses.iter().map(tonic).collect::<Result<Vec<_>, _>>()?;
    let ten = HealthClient::new(Channel::balance_list(ten.into_iter()));
    let our_one = HealthClient::new(ours(&addresses[..1])?);
    let our_ten = HealthClient::new(ours(&addresses)?);

    println!("| calls | channel | CPU of a call, µs | spread | more than tonic's | calls/s | spread |");
    println!("|---|---|--:|--:|--:|--:|--:|");
    for (callers, calls) in LOADS {
        let mut costs: [Vec<Cost>; CHANNELS.len()] = Default::default();
        for round in 0..=rounds {
            // Each begins as often as the others.
            for turn in 0..CHANNELS.len() {
                let which = (round + turn) % CHANNELS.len();
                let cost = match which {
                    0 => run(&one, callers, calls).await?,
                    1 => run(&one_keepalive, callers, calls).await?,
                    2 => run(&our_one, callers, calls).await?,
                    3 => run(&ten, callers, calls).await?,
                    _ => run(&our_ten, callers, calls).await?,
                };
                // The first round warms up.
                if round > 0 {
                    costs[which].push(cost);
                }
            }
        }
        for (index, (name, peer)) in CHANNELS.into_iter().enumerate() {
            let [first, median, third] = quartiles(costs[index].iter().map(|cost| cost.cpu));
            let [low, rate, high] = quartiles(costs[index].iter().map(|cost| 1e6 / cost.wall));
            // Of pairs that ran side by side, so that what slowed both down falls out.
            let against = if let Some(peer) = peer {
                let pairs = costs[index].iter().zip(&costs[peer]);
                format!("{:+.2}", quartiles(pairs.map(|(ours, theirs)| ours.cpu - theirs.cpu))[1])
            } else {
                String::new()
            };
            println!(
                "| {callers} at once | {name} | {median:.1} | {first:.1} to {third:.1} | {against} | {rate:.0} \
                 | {low:.0} to {high:.0} |"
            );
        }
    }
    drop(server.stdin.take());
    server.wait()?;
    Ok(())
}

/// What a call costs, of so many made by so many callers at once.
async fn run<C>(client: &HealthClient<C>, callers: usize, calls: usize) -> Result<Cost, Failure>
where
    C: GrpcService<Body> + Clone + Send + 'static,
    C::Future: Send,
    C::Error: Into<Failure>,
    C::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <C::ResponseBody as HttpBody>::Error: Into<Failure> + Send,
{
    let (wall, cpu) = (Instant::now(), cpu());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let mut client = client.clone();
        tasks.spawn(async move {
            for _ in 0..calls / callers {
                client.check(HealthCheckRequest { service: "echo".to_owned() }).await?;
            }
            Ok::<_, Status>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let each = |time: Duration| time.as_secs_f64() * 1e6 / calls as f64;
    Ok(Cost { cpu: each(self::cpu().saturating_sub(cpu)), wall: each(wall.elapsed()) })
}

/// CPU time of this process, in user and kernel mode.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn quartiles(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[(values.len() - 1) * quarter / 4])
}
