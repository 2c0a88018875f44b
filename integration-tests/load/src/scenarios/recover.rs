//! `recover`: what instances take of a server's memory; then it is killed with all it holds, and started again: how long until it
//! answers a read, and whether anything is lost.

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
        // What a caller takes is taken by the first call of each.
        let mut places = places(size, SERVICES);
        let rest = places.split_off(CALLERS.min(places.len()));
        register_all(&callers, places, FOR_LONG).await?;
        let empty = server.process().resident()?;
        let registered = rest.len();
        register_all(&callers, rest, FOR_LONG).await?;
        let memory = kib(server.process().resident()?.saturating_sub(empty), registered);
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
        sheet.note("memory an instance", "KiB", memory)?;
        sheet.note("serves after", "ms", millis(serves))?;
        sheet.note("lost", "instances", f64::from(u32::try_from(lost).unwrap_or(u32::MAX)))?;
    }
    Ok(())
}
