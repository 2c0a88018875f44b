//! `churn`: a hundredth of all instances replaced every second, beside watchers of as many services as there are watchers.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::timeout};

use super::{CALLERS, FOR_LONG, Stretch, at_rest, callers, connections, join, millis, places, register_all};
use crate::{
    Plan, clock,
    failure::{During, Failure, Result},
    peers::{Connection, News, Peer, Place, Watch},
    report::Report,
    scenarios::watch::Board,
    stats::Latencies,
};

const INSTANCES: u32 = 100_000;
const SERVICES: u32 = 1_000;
const WATCHERS: u32 = 1_000;
const CONNECTIONS: u32 = 50;
const SECONDS: u32 = 15;
/// Whoever was not told by then never will be.
const PATIENCE: Duration = Duration::from_mins(1);

pub(super) async fn peer<P: Peer>(plan: &Plan, report: &mut Report) -> Result<()> {
    let instances = plan.size(INSTANCES);
    let services = plan.size(SERVICES).min(instances);
    let seconds = plan.size(SECONDS);
    let replaced = (instances / 100).max(1) * seconds;
    let server = P::start(&plan.setup).await?;
    server.prepare(services).await?;
    let callers = callers(&server, CALLERS).await?;
    let (registered, _) = register_all(&callers, places(instances, services), FOR_LONG).await?;

    // What is replaced, in the order in which it is; the new ones' numbers come after the old ones'.
    let board = Board::new(replaced);
    let watched = connections(&server, CONNECTIONS as usize).await?;
    let (ready, mut is_ready) = mpsc::channel(64);
    let mut following = Vec::new();
    for service in 0..plan.size(WATCHERS).min(services) {
        let connection = watched[(service % CONNECTIONS) as usize].clone();
        let board = Arc::clone(&board);
        let ready = ready.clone();
        let expected = (1..=replaced).filter(|change| (change - 1) % services == service).count();
        following.push(clock::spawn(async move {
            let mut watch = connection.watch(service).await?;
            let (mut latencies, mut news, mut ready) = (Latencies::default(), Vec::new(), Some(ready));
            while latencies.count() < expected {
                watch.next(&mut news).await?;
                if let Some(ready) = ready.take_if(|_| !news.is_empty()) {
                    ready.send(()).await.during("the load has ended")?;
                }
                for one in news.drain(..) {
                    let News::There(number) = one else { continue };
                    if let Some(latency) =
                        number.checked_sub(instances).and_then(|n| board.since(n + 1, clock::now()))
                    {
                        latencies.push(latency);
                    }
                }
            }
            Ok((latencies, watch))
        }));
    }
    for _ in 0..following.len() {
        timeout(PATIENCE, is_ready.recv()).await.during("a watcher has no initial state")?;
    }

    let registered = Arc::new({
        let mut registered = registered;
        registered.sort_unstable_by_key(|(place, _)| place.instance);
        registered
    });
    at_rest(server.process()).await?;
    let stretch = Stretch::begin(server.process())?;
    let began = clock::now();
    let gap = Duration::from_secs(u64::from(seconds)) / replaced.max(1);
    let step = u32::try_from(CALLERS).unwrap_or(1);
    let replacing = (0..).zip(callers).map(|(caller, connection)| {
        let (board, registered) = (Arc::clone(&board), Arc::clone(&registered));
        clock::spawn(async move {
            for change in (caller..replaced).step_by(step as usize) {
                clock::until(began + gap * change).await;
                let Some((old, lease)) = registered.get(change as usize) else { break };
                connection.deregister(*old, lease).await?;
                board.begin(change + 1);
                let new = Place { service: old.service, instance: instances + change };
                connection.register(new, FOR_LONG).await?;
            }
            Ok(())
        })
    });
    join(replacing.collect()).await?;
    let rate = stretch.rate(replaced as usize);
    let told = timeout(PATIENCE, join(following)).await;
    let told =
        told.map_err(|_| Failure(format!("watchers were not told everything after {PATIENCE:?}")))??;
    let mut latencies = Latencies::default();
    // Kept until the figures are taken: to close a watch takes time from whoever is told last.
    let mut open = Vec::with_capacity(told.len());
    for (some, watch) in told {
        latencies.append(some);
        open.push(watch);
    }
    let cpu = stretch.cpu_each(server.process(), replaced as usize)?;
    drop(open);
    let case = format!("{instances} instances of {services} services");
    let mut sheet = report.sheet("churn", case, P::NAME);
    sheet.note("replaced", "/s", rate)?;
    sheet.note("server CPU each", "µs", cpu)?;
    sheet.note("p50", "ms", millis(latencies.percentile(50)))?;
    sheet.note("p99", "ms", millis(latencies.percentile(99)))
}
