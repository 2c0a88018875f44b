//! What is asked of the servers, one scenario a file. Each starts servers of its own on empty directories, measures, and
//! ends them; each is bounded by counts or by a time.
//!
//! | file | scenarios |
//! |---|---|
//! | [`register`] | `register`: durable registrations; one caller, and 64 |
//! | [`renew`] | `renew`: leases one a message, and as many as a message takes |
//! | [`discover`] | `discover`: reading services of several sizes |
//! | [`watch`] | `watch`: paced changes to many watchers; `burst`: changes as fast as they are taken |
//! | [`churn`] | `churn`: instances replaced all the time, beside watchers of many services |
//! | [`expiry`] | `expiry`: leases that run out together |
//! | [`recover`] | `recover`: what an instance takes of memory, and a killed server's return |
//! | [`flat`] | `flat`: what a change costs beside other services, other instances, and a history |

mod churn;
mod discover;
mod expiry;
mod flat;
mod recover;
mod register;
mod renew;
mod watch;

use std::{sync::Arc, time::Duration};

use crate::{
    Plan, clock,
    failure::{Failure, Result},
    peers::{
        Connection, Peer, Place,
        etcd::{Etcd, Installed, Newer},
        ours::Ours,
        zookeeper::ZooKeeper,
    },
    process::Process,
    report::Report,
    stats::Latencies,
};

/// How long a lease is that is not to run out.
const FOR_LONG: Duration = Duration::from_hours(1);
/// How often it is looked whether a server is at rest, and for how long at most.
const LOOK: Duration = Duration::from_millis(300);
const AT_REST_WITHIN: Duration = Duration::from_secs(20);
/// Callers at a time, each on connections of its own.
const CALLERS: usize = 64;

/// A scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scenario {
    /// Durable registrations, one caller and 64
    Register,
    /// Renewals, one a message and many a message
    Renew,
    /// Reading services of 10, 100, 1,000 and 10,000 instances
    Discover,
    /// 20 changes a second to 100, 1,000, 5,000 and 10,000 watchers
    Watch,
    /// 5,000 changes at once to 500 watchers
    Burst,
    /// 1% of all instances replaced every second, beside 1,000 watchers
    Churn,
    /// 1,000 and 100,000 leases that run out together
    Expiry,
    /// What 20,000 and 100,000 instances take of memory, and the return of a killed server with them
    Recover,
    /// What a change costs beside others, in two sizes of each
    Flat,
}

/// A server that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Who {
    /// The registry of this build
    Ours,
    /// etcd, from its program
    Etcd,
    /// A newer etcd, from its program
    #[value(name = "etcd-3.7")]
    NewerEtcd,
    /// ZooKeeper, from its archive
    Zookeeper,
    /// gRPC itself
    Floor,
}

impl Who {
    /// Whether it is a server whose threads can keep to a processor each.
    pub(crate) fn may_be_pinned(self) -> bool {
        matches!(self, Self::Ours | Self::Floor)
    }
}

/// Runs one scenario against one peer.
pub(crate) async fn run(scenario: Scenario, who: Who, plan: &Plan, report: &mut Report) -> Result<()> {
    match who {
        Who::Ours => {
            if scenario == Scenario::Flat {
                return flat::run(plan, report).await;
            }
            peer::<Ours>(scenario, plan, report).await?;
            if scenario == Scenario::Expiry { expiry::held(plan, report).await } else { Ok(()) }
        }
        Who::Etcd => peer::<Etcd<Installed>>(scenario, plan, report).await,
        Who::NewerEtcd => peer::<Etcd<Newer>>(scenario, plan, report).await,
        Who::Zookeeper => peer::<ZooKeeper>(scenario, plan, report).await,
        Who::Floor => match scenario {
            Scenario::Register => register::floor(plan, report).await,
            Scenario::Renew => renew::floor(plan, report).await,
            Scenario::Discover => discover::floor(plan, report).await,
            Scenario::Watch => watch::floor(plan, report).await,
            Scenario::Burst => watch::burst_floor(plan, report).await,
            _ => Ok(()), // gRPC by itself has no such thing
        },
    }
}

async fn peer<P: Peer>(scenario: Scenario, plan: &Plan, report: &mut Report) -> Result<()> {
    match scenario {
        Scenario::Register => register::peer::<P>(plan, report).await,
        Scenario::Renew => renew::peer::<P>(plan, report).await,
        Scenario::Discover => discover::peer::<P>(plan, report).await,
        Scenario::Watch => watch::peer::<P>(plan, report).await,
        Scenario::Burst => watch::burst::<P>(plan, report).await,
        Scenario::Churn => churn::peer::<P>(plan, report).await,
        Scenario::Expiry => expiry::peer::<P>(plan, report).await,
        Scenario::Recover => recover::peer::<P>(plan, report).await,
        Scenario::Flat => Ok(()), // a promise of ours, compared with itself
    }
}

/// Instances of a service each in turn.
fn places(instances: u32, services: u32) -> Vec<Place> {
    (0..instances).map(|instance| Place { service: instance % services, instance }).collect()
}

/// Connections that are ready to be called by.
async fn callers<P: Peer>(server: &P, count: usize) -> Result<Vec<P::Connection>> {
    let callers = connections(server, count).await?;
    for caller in &callers {
        caller.ready_to_call().await?;
    }
    Ok(callers)
}

async fn connections<P: Peer>(server: &P, count: usize) -> Result<Vec<P::Connection>> {
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        connections.push(server.connect().await?);
    }
    Ok(connections)
}

/// An instance, by what it is renewed.
type Registered<C> = (Place, <C as Connection>::Lease);

/// Registers instances, each connection one after the other, and says how long each took.
async fn register_all<C: Connection>(
    connections: &[C],
    places: Vec<Place>,
    ttl: Duration,
) -> Result<(Vec<Registered<C>>, Latencies)> {
    let places = Arc::new(places);
    let callers = connections.len();
    let tasks = connections.iter().cloned().enumerate().map(|(caller, connection)| {
        let places = Arc::clone(&places);
        clock::spawn(async move {
            let mut done = Vec::new();
            let mut latencies = Latencies::default();
            for place in places.iter().skip(caller).step_by(callers) {
                let began = clock::now();
                let lease = connection.register(*place, ttl).await?;
                latencies.push(began.elapsed());
                done.push((*place, lease));
            }
            Ok((done, latencies))
        })
    });
    let mut all = (Vec::new(), Latencies::default());
    for (done, latencies) in join(tasks.collect()).await? {
        all.0.extend(done);
        all.1.append(latencies);
    }
    Ok(all)
}

/// Waits until a server that is asked nothing does next to nothing: what it does behind what was just registered is not what is
/// measured next. One that never rests is measured as it is.
async fn at_rest(process: &Process) -> Result<()> {
    let end = clock::now() + AT_REST_WITHIN;
    let mut cpu = process.cpu()?;
    while clock::now() < end {
        tokio::time::sleep(LOOK).await;
        let now = process.cpu()?;
        if now.saturating_sub(cpu) < LOOK / 10 {
            break;
        }
        cpu = now;
    }
    Ok(())
}

/// Waits for all; the first failure is theirs.
async fn join<T>(tasks: Vec<tokio::task::JoinHandle<Result<T>>>) -> Result<Vec<T>> {
    let mut results = Vec::with_capacity(tasks.len());
    for task in tasks {
        results.push(join_one(task).await?);
    }
    Ok(results)
}

async fn join_one<T>(task: tokio::task::JoinHandle<Result<T>>) -> Result<T> {
    task.await.map_err(|error| Failure(format!("a part of the load broke: {error}")))?
}

/// What a server did between two moments.
struct Stretch {
    began: std::time::Instant,
    cpu: Duration,
}

impl Stretch {
    fn begin(process: &Process) -> Result<Self> {
        Ok(Self { cpu: process.cpu()?, began: clock::now() })
    }

    /// Processor time in microseconds for each of so many.
    fn cpu_each(&self, process: &Process, count: usize) -> Result<f64> {
        Ok(each(process.cpu()?.saturating_sub(self.cpu), count))
    }

    /// How many of so many came each second.
    fn rate(&self, count: usize) -> f64 {
        rate(count, self.began.elapsed())
    }
}

/// Microseconds for each of so many.
#[allow(clippy::cast_precision_loss)] // figures for people
fn each(whole: Duration, count: usize) -> f64 {
    clock::micros(whole) / count.max(1) as f64
}

/// So many in a second.
#[allow(clippy::cast_precision_loss)] // figures for people
fn rate(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}

fn millis(duration: Duration) -> f64 {
    clock::micros(duration) / 1_000.0
}

#[allow(clippy::cast_precision_loss)] // figures for people
fn kib(bytes: u64, count: usize) -> f64 {
    bytes as f64 / 1024.0 / count.max(1) as f64
}
