//! `discover`: whole services read, by 16 callers on connections of their own.

use std::time::Duration;

use super::{FOR_LONG, Stretch, at_rest, callers, join, register_all};
use crate::{
    Plan, clock,
    failure::{Failure, Result},
    peers::{Connection, Peer, Place, floor::Floor},
    report::Report,
};

const SIZES: [u32; 4] = [10, 100, 1_000, 10_000];
const CALLERS: usize = 16;
const STRETCH: Duration = Duration::from_secs(2);
/// What our server writes for an instance, in bytes: an id of 10, an address of 18, and what it knows of it.
const BYTES: u32 = 64;

pub(super) async fn peer<P: Peer>(plan: &Plan, report: &mut Report) -> Result<()> {
    let server = P::start(&plan.setup).await?;
    server.prepare(u32::try_from(SIZES.len()).unwrap_or(u32::MAX)).await?;
    let callers = callers(&server, CALLERS).await?;
    let mut first = 0;
    for (service, size) in (0..).zip(SIZES) {
        let size = plan.size(size).max(1);
        let places = (first..first + size).map(|instance| Place { service, instance }).collect();
        register_all(&callers, places, FOR_LONG).await?;
        first += size;
        at_rest(server.process()).await?;
        let stretch = Stretch::begin(server.process())?;
        let end = clock::now() + plan.time(STRETCH);
        let tasks = callers.iter().cloned().map(|caller| {
            clock::spawn(async move {
                let mut reads = 0;
                while clock::now() < end {
                    let found = caller.discover(service).await?;
                    if found != size as usize {
                        return Err(Failure(format!("{}: {found} of {size} instances were read", P::NAME)));
                    }
                    reads += 1;
                }
                Ok(reads)
            })
        });
        let reads = join(tasks.collect()).await?.into_iter().sum();
        note(report, size, P::NAME, &stretch, server.process(), reads)?;
    }
    Ok(())
}

/// A unary call that is answered with as many bytes.
pub(super) async fn floor(plan: &Plan, report: &mut Report) -> Result<()> {
    let server = Floor::start(&plan.setup).await?;
    let mut callers = Vec::new();
    for _ in 0..CALLERS {
        callers.push(server.caller().await?);
    }
    for size in SIZES {
        let size = plan.size(size).max(1);
        let stretch = Stretch::begin(server.process())?;
        let end = clock::now() + plan.time(STRETCH);
        let tasks = callers.iter().cloned().map(|caller| {
            clock::spawn(async move {
                let mut reads = 0;
                while clock::now() < end {
                    caller.unary(size * BYTES).await?;
                    reads += 1;
                }
                Ok(reads)
            })
        });
        let reads = join(tasks.collect()).await?.into_iter().sum();
        note(report, size, Floor::NAME, &stretch, server.process(), reads)?;
    }
    Ok(())
}

fn note(
    report: &mut Report,
    size: u32,
    peer: &'static str,
    stretch: &Stretch,
    process: &crate::process::Process,
    reads: usize,
) -> Result<()> {
    let (rate, cpu) = (stretch.rate(reads), stretch.cpu_each(process, reads)?);
    let mut sheet = report.sheet("discover", format!("{size} instances"), peer);
    sheet.note("rate", "/s", rate)?;
    sheet.note("server CPU each", "µs", cpu)
}
