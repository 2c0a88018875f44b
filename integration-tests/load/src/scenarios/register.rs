//! `register`: each instance under a lease of its own, durable before its answer.

use std::time::Duration;

use super::{CALLERS, FOR_LONG, Stretch, callers, places, register_all};
use crate::{
    Plan, clock,
    failure::Result,
    peers::{
        Peer,
        floor::{Floor, syncs},
    },
    report::Report,
    scenarios::join,
    stats::Latencies,
};

const INSTANCES: u32 = 20_000;
const SERVICES: u32 = 100;
const BY_ONE: u32 = 1_000;
const ONE: &str = "one caller";
const MANY: &str = "64 callers";

pub(super) async fn peer<P: Peer>(plan: &Plan, report: &mut Report) -> Result<()> {
    let server = P::start(&plan.setup).await?;
    server.prepare(SERVICES).await?;
    let one = callers(&server, 1).await?;
    let stretch = Stretch::begin(server.process())?;
    let few = plan.size(BY_ONE);
    let (_, latencies) = register_all(&one, places(few, SERVICES), FOR_LONG).await?;
    note(report, ONE, P::NAME, &stretch, server.process(), latencies)?;

    let many = callers(&server, CALLERS).await?;
    let mut others = places(few + plan.size(INSTANCES), SERVICES);
    let others = others.split_off(few as usize);
    let stretch = Stretch::begin(server.process())?;
    let (_, latencies) = register_all(&many, others, FOR_LONG).await?;
    note(report, MANY, P::NAME, &stretch, server.process(), latencies)
}

/// A unary call, and one `fdatasync` after the other: nothing that is durable before its answer can do with less, but many can
/// share one.
pub(super) async fn floor(plan: &Plan, report: &mut Report) -> Result<()> {
    let times = plan.size(BY_ONE);
    let sync = syncs(&plan.setup.directory, 128, times)?;
    report.sheet("register", ONE, Floor::NAME).note("fdatasync of 128 bytes", "µs", clock::micros(sync))?;
    let server = Floor::start(&plan.setup).await?;
    let calls = plan.size(INSTANCES) as usize * 2 / CALLERS;
    for (case, callers, calls) in [(ONE, 1, plan.size(BY_ONE) as usize), (MANY, CALLERS, calls)] {
        let mut clients = Vec::new();
        for _ in 0..callers {
            clients.push(server.caller().await?);
        }
        let stretch = Stretch::begin(server.process())?;
        let tasks = clients.into_iter().map(|client| {
            clock::spawn(async move {
                let mut latencies = Latencies::default();
                for _ in 0..calls {
                    let began = clock::now();
                    client.unary(64).await?;
                    latencies.push(began.elapsed());
                }
                Ok(latencies)
            })
        });
        let mut all = Latencies::default();
        for latencies in join(tasks.collect()).await? {
            all.append(latencies);
        }
        note(report, case, Floor::NAME, &stretch, server.process(), all)?;
    }
    Ok(())
}

fn note(
    report: &mut Report,
    case: &str,
    peer: &'static str,
    stretch: &Stretch,
    process: &crate::process::Process,
    mut latencies: Latencies,
) -> Result<()> {
    let count = latencies.count();
    let rate = stretch.rate(count);
    let cpu = stretch.cpu_each(process, count)?;
    let mut sheet = report.sheet("register", case, peer);
    sheet.note("rate", "/s", rate)?;
    sheet.note("server CPU each", "µs", cpu)?;
    let mut percentile = |percent| -> Duration { latencies.percentile(percent) };
    let (middle, tail) = (percentile(50), percentile(99));
    sheet.note("p50", "ms", super::millis(middle))?;
    sheet.note("p99", "ms", super::millis(tail))
}
