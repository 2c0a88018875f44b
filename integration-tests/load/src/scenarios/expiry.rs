//! `expiry`: leases that run out together: how long after each one's deadline a watcher knows, and what becomes of other writes.
//! A deadline is a TTL after the answer to the last renewal; early is what goes before a TTL after that was asked for.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::time::timeout;

use super::{CALLERS, FOR_LONG, callers, join, millis};
use crate::{
    Plan, clock,
    failure::{Failure, Result},
    peers::{Connection, News, Peer, Place, Renewals, Setup, Watch, ours::Ours},
    report::Report,
    stats::Latencies,
};

const FEW: u32 = 1_000;
const MANY: u32 = 100_000;
const SERVICES: u32 = 100;
const TTL: Duration = Duration::from_secs(6);
/// Long enough to register and renew many.
const LONG_TTL: Duration = Duration::from_secs(30);
/// Whoever is not gone by then is not going.
const PATIENCE: Duration = Duration::from_mins(1);
const WRITE_EVERY: Duration = Duration::from_millis(5);

/// The last renewal of a lease.
#[derive(Clone, Copy, Debug)]
struct Renewed {
    asked: Instant,
    answered: Instant,
}

pub(super) async fn peer<P: Peer>(plan: &Plan, report: &mut Report) -> Result<()> {
    expire::<P>(plan, &plan.setup, plan.size(FEW), plan.ttl(TTL), report).await?;
    if <P::Connection as Connection>::Renewals::AT_ONCE > 1 {
        expire::<P>(plan, &plan.setup, plan.size(MANY), plan.ttl(LONG_TTL), report).await?;
    }
    Ok(())
}

/// With the guard on: half of each service goes, and the rest is held.
pub(super) async fn held(plan: &Plan, report: &mut Report) -> Result<()> {
    let setup = Setup { hold: true, ..plan.setup.clone() };
    expire::<Ours>(plan, &setup, plan.size(FEW), plan.ttl(TTL), report).await
}

async fn expire<P: Peer>(
    plan: &Plan,
    setup: &Setup,
    leases: u32,
    ttl: Duration,
    report: &mut Report,
) -> Result<()> {
    let services = plan.size(SERVICES).min(leases / 10).max(1);
    let server = P::start(setup).await?;
    server.prepare(services + 1).await?;
    let callers = callers(&server, CALLERS).await?;
    // Registered for good where that can be: what counts is the last renewal.
    let renewals: Arc<Mutex<HashMap<u32, Renewed>>> = Arc::default();
    let tasks = (0..).zip(&callers).map(|(caller, connection)| {
        let connection = connection.clone();
        clock::spawn(async move {
            let mut mine = Vec::new();
            for instance in (caller..leases).step_by(CALLERS) {
                let silent = connection.silent(ttl).await?;
                let place = Place { service: instance % services, instance };
                let lease = silent.register(place, ttl).await?;
                mine.push((silent, place.instance, lease));
            }
            Ok(mine)
        })
    });
    let registered = join(tasks.collect()).await?;
    let mut following = Vec::new();
    for service in 0..services {
        let mut watch = callers[0].watch(service).await?;
        let mut left = (0..leases).filter(|instance| instance % services == service).count();
        following.push(clock::spawn(async move {
            let (mut ends, mut news) = (Vec::new(), Vec::new());
            while left > 0 {
                watch.next(&mut news).await?;
                let now = clock::now();
                for one in news.drain(..) {
                    let (News::Gone(number) | News::Held(number)) = one else { continue };
                    ends.push((number, now, matches!(one, News::Held(_))));
                    left -= 1;
                }
            }
            Ok(ends)
        }));
    }
    // The last renewal of all.
    let tasks = registered.into_iter().map(|mine| {
        let all = Arc::clone(&renewals);
        clock::spawn(async move {
            let mut kept = Vec::new();
            let mut at = 0;
            while at < mine.len() {
                let at_once = <P::Connection as Connection>::Renewals::AT_ONCE.min(1_000);
                let some = &mine[at..mine.len().min(at + at_once)];
                let leases: Vec<_> = some.iter().map(|(_, _, lease)| lease.clone()).collect();
                let mut renewals = some[0].0.renewals().await?;
                let asked = clock::now();
                renewals.renew(&leases).await?;
                let renewed = Renewed { asked, answered: clock::now() };
                let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                all.extend(some.iter().map(|(_, instance, _)| (*instance, renewed)));
                drop(all);
                kept.push(renewals);
                at += some.len();
            }
            // Open until all is over: some servers end what was registered with its connection.
            Ok((mine, kept))
        })
    });
    let kept = join(tasks.collect()).await?;
    let writes: Arc<Mutex<Latencies>> = Arc::default();
    let writer = server.connect().await?;
    writer.ready_to_call().await?;
    let writing = clock::spawn(write(writer, services, leases, Arc::clone(&writes)));
    let ends = timeout(ttl + PATIENCE, join(following)).await;
    let ends =
        ends.map_err(|_| Failure(format!("{}: leases did not end within {PATIENCE:?}", P::NAME)))??;
    writing.abort();
    drop(kept);
    let renewals = renewals.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut late = Latencies::default();
    let mut early = 0_u32;
    let mut held = 0_u32;
    for (number, at, is_held) in ends.into_iter().flatten() {
        let Some(renewed) = renewals.get(&number) else { continue };
        late.push(at.saturating_duration_since(renewed.answered + ttl));
        early += u32::from(at < renewed.asked + ttl);
        held += u32::from(is_held);
    }
    let guard = if setup.hold { ", held" } else { "" };
    let mut sheet = report.sheet("expiry", format!("{leases} leases{guard}"), P::NAME);
    sheet.note("the last is late by", "ms", millis(late.most()))?;
    sheet.note("median late by", "ms", millis(late.percentile(50)))?;
    sheet.note("early", "leases", f64::from(early))?;
    let writes = std::mem::take(&mut *writes.lock().unwrap_or_else(PoisonError::into_inner));
    sheet.note("longest other write", "ms", millis(writes.most()))?;
    if setup.hold {
        sheet.note("held", "leases", f64::from(held))?;
    }
    Ok(())
}

/// Other writes, to another service, all the while.
async fn write<C: Connection>(
    connection: C,
    service: u32,
    first: u32,
    writes: Arc<Mutex<Latencies>>,
) -> Result<()> {
    let lease = connection.register(Place { service, instance: first }, FOR_LONG).await?;
    for instance in first + 1.. {
        let began = clock::now();
        connection.register_under(Place { service, instance }, &lease).await?;
        writes.lock().unwrap_or_else(PoisonError::into_inner).push(began.elapsed());
        tokio::time::sleep(WRITE_EVERY).await;
    }
    Ok(())
}
