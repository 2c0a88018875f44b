//! `recover`: a server is killed with all it holds, and started again: how long until it answers a read, and whether anything
//! is lost. `memory`: what an instance takes of its memory.

use std::time::Duration;

use super::{CALLERS, FOR_LONG, connections, kib, millis, places, register_all};
use crate::{
    Plan, clock,
    failure::{Failure, Result},
    peers::{Connection, Peer},
    report::Report,
};

const SIZES: [u32; 2] = [20_000, 100_000];
const SERVICES: u32 = 100;
/// A server that does not serve by then does not come back.
const PATIENCE: Duration = Duration::from_mins(1);

pub(super) async fn peer<P: Peer>(plan: &Plan, report: &mut Report) -> Result<()> {
    for size in SIZES {
        let size = plan.size(size);
        let mut server = P::start(&plan.setup).await?;
        server.prepare(SERVICES).await?;
        let callers = connections(&server, CALLERS).await?;
        register_all(&callers, places(size, SERVICES), FOR_LONG).await?;
        let began = clock::now();
        server.process_mut().kill_and_start().await?;
        let reader = loop {
            if let Ok(connection) = server.connect().await
                && connection.discover(0).await.is_ok()
            {
                break connection;
            }
            if began.elapsed() > PATIENCE {
                return Err(Failure(format!("{} does not serve {PATIENCE:?} after its start", P::NAME)));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        let serves = began.elapsed();
        let mut found = 0;
        for service in 0..SERVICES {
            found += reader.discover(service).await?;
        }
        drop(callers);
        let lost = (size as usize).saturating_sub(found);
        let mut sheet = report.sheet("recover", format!("{size} instances"), P::NAME);
        sheet.note("serves after", "ms", millis(serves))?;
        sheet.note("lost", "instances", f64::from(u32::try_from(lost).unwrap_or(u32::MAX)))?;
    }
    Ok(())
}

pub(super) async fn memory<P: Peer>(plan: &Plan, report: &mut Report) -> Result<()> {
    let size = plan.size(SIZES[0]);
    let server = P::start(&plan.setup).await?;
    server.prepare(SERVICES).await?;
    let callers = connections(&server, CALLERS).await?;
    let empty = server.process().resident()?;
    register_all(&callers, places(size, SERVICES), FOR_LONG).await?;
    let full = server.process().resident()?;
    let each = kib(full.saturating_sub(empty), size as usize);
    report.sheet("memory", format!("{size} instances"), P::NAME).note("an instance", "KiB", each)
}
