//! `flat`: what a change costs our server must not depend on how many other services there are, on how many instances others
//! have, nor on what has happened. The same burst is measured beside two sizes of each.

use std::sync::Arc;

use super::{
    FOR_LONG, Stretch, at_rest, connections, join, kib, register_all,
    watch::{Board, collect, follow_all},
};
use crate::{
    Plan, clock,
    failure::Result,
    peers::{Connection, Peer, Place, ours::Ours},
    report::Report,
};

const WATCHERS: usize = 100;
const CONNECTIONS: usize = 10;
const WRITERS: u32 = 8;
const CHANGES: u32 = 4_000;
/// Numbers of instances beyond those that are watched.
const OTHERS: u32 = 1_000_000;

/// What is beside the burst: so many other services, so many instances of them, so many changes before.
const CASES: [(&str, u32, u32, u32); 6] = [
    ("10 other services", 10, 10, 0),
    ("10,000 other services", 10_000, 10_000, 0),
    ("1,000 instances in another service", 1, 1_000, 0),
    ("100,000 instances in another service", 1, 100_000, 0),
    ("1,000 changes before", 1, 1, 1_000),
    ("50,000 changes before", 1, 1, 50_000),
];

pub(super) async fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    for (case, services, instances, before) in CASES {
        let server = Arc::new(Ours::start(&plan.setup).await?);
        let writers = connections(server.as_ref(), WRITERS as usize).await?;
        let (services, instances) = (plan.size(services).max(1), plan.size(instances).max(1));
        let others =
            (0..instances).map(|number| Place { service: 1 + number % services, instance: OTHERS + number });
        register_all(&writers, others.collect(), FOR_LONG).await?;
        // The same instance, over and over again: history without anything else.
        let lease = writers[0].register(Place { service: 1, instance: OTHERS - 1 }, FOR_LONG).await?;
        for _ in 0..plan.size(before) / 2 {
            let place = Place { service: 1, instance: OTHERS - 2 };
            writers[0].register_under(place, &lease).await?;
            writers[0].deregister(place, &lease).await?;
        }
        writers[0].register(Place { service: 0, instance: 0 }, FOR_LONG).await?;
        let changes = plan.size(CHANGES);
        let board = Board::new(changes);
        let following = follow_all(&server, plan.many(WATCHERS), CONNECTIONS, &board).await?;
        at_rest(server.process()).await?;
        let resident = server.process().resident()?;
        let stretch = Stretch::begin(server.process())?;
        let writing = (1..).zip(writers).map(|(first, writer)| {
            let board = Arc::clone(&board);
            clock::spawn(async move {
                for change in (first..=changes).step_by(WRITERS as usize) {
                    board.begin(change);
                    writer.register(Place { service: 0, instance: change }, FOR_LONG).await?;
                }
                Ok(())
            })
        });
        join(writing.collect()).await?;
        let mut told = collect(following).await?;
        let cpu = stretch.cpu_each(server.process(), changes as usize)?;
        let grown = server.process().resident()?.saturating_sub(resident);
        let mut sheet = report.sheet("flat", case, Ours::NAME);
        sheet.note("server CPU a change", "µs", cpu)?;
        sheet.note("p99", "ms", super::millis(told.latencies.percentile(99)))?;
        sheet.note("memory grown a change", "KiB", kib(grown, changes as usize))?;
    }
    Ok(())
}
