//! `renew`: leases kept alive, one a message, and as many a message as the protocol takes.

use std::time::Duration;

use super::{CALLERS, FOR_LONG, Stretch, callers, join, places, register_all};
use crate::{
    Plan, clock,
    failure::{Failure, Result},
    peers::{Connection, Peer, Renewals, floor::Floor, grpc::frame_bytes},
    report::Report,
};

const SERVICES: u32 = 100;
/// How many leases there are; the more only where a message takes many, or registering them would take minutes.
const LEASES: [u32; 2] = [20_000, 200_000];
const A_MESSAGE: usize = 1_000;
const STRETCH: Duration = Duration::from_secs(10);
const SINGLY: &str = "one a message";

pub(super) async fn peer<P: Peer>(plan: &Plan, report: &mut Report) -> Result<()> {
    let batches = <P::Connection as Connection>::Renewals::AT_ONCE > 1;
    for leases in LEASES.iter().take(if batches { 2 } else { 1 }) {
        let server = P::start(&plan.setup).await?;
        server.prepare(SERVICES).await?;
        let connections = callers(&server, CALLERS).await?;
        let (registered, _) =
            register_all(&connections, places(plan.size(*leases), SERVICES), FOR_LONG).await?;
        let leases: Vec<_> = registered.into_iter().map(|(_, lease)| lease).collect();
        let ways: &[(&str, usize)] = &[(SINGLY, 1), ("1,000 a message", A_MESSAGE)];
        for (way, at_once) in ways.iter().take(if batches { 2 } else { 1 }) {
            let case = format!("{} leases, {way}", leases.len());
            let mut streams = Vec::new();
            for connection in &connections {
                streams.push(connection.renewals().await?);
            }
            let share = leases.len().div_ceil(CALLERS);
            let stretch = Stretch::begin(server.process())?;
            let end = clock::now() + plan.time(STRETCH);
            let mut tasks = Vec::new();
            for (mut renewals, leases) in streams.into_iter().zip(leases.chunks(share)) {
                let (leases, at_once) = (leases.to_vec(), *at_once);
                tasks.push(clock::spawn(async move {
                    let mut renewed = 0;
                    for some in leases.chunks(at_once).cycle() {
                        renewals.renew(some).await?;
                        renewed += some.len();
                        if clock::now() > end {
                            break;
                        }
                    }
                    Ok(renewed)
                }));
            }
            let renewed = join(tasks).await?.into_iter().sum();
            note(report, case, P::NAME, &stretch, server.process(), renewed)?;
        }
    }
    Ok(())
}

/// A message each way on a stream.
pub(super) async fn floor(plan: &Plan, report: &mut Report) -> Result<()> {
    let server = Floor::start(&plan.setup).await?;
    let mut streams = Vec::new();
    for _ in 0..CALLERS {
        streams.push(server.connect().echo().await?);
    }
    let stretch = Stretch::begin(server.process())?;
    let end = clock::now() + plan.time(STRETCH);
    let mut tasks = Vec::new();
    for (mut requests, mut answers) in streams {
        tasks.push(clock::spawn(async move {
            let mut echoed = 0;
            let message = frame_bytes(&[b'x'; 18])?;
            while clock::now() < end {
                requests.send(message.clone())?;
                let echo = answers.message().await?;
                echo.ok_or_else(|| Failure("the floor's stream has ended".to_owned()))?;
                echoed += 1;
            }
            Ok(echoed)
        }));
    }
    let echoed = join(tasks).await?.into_iter().sum();
    let case = format!("{} leases, {SINGLY}", plan.size(LEASES[0]));
    note(report, case, Floor::NAME, &stretch, server.process(), echoed)
}

fn note(
    report: &mut Report,
    case: String,
    peer: &'static str,
    stretch: &Stretch,
    process: &crate::process::Process,
    renewed: usize,
) -> Result<()> {
    let (rate, cpu) = (stretch.rate(renewed), stretch.cpu_each(process, renewed)?);
    let mut sheet = report.sheet("renew", case, peer);
    sheet.note("rate", "/s", rate)?;
    sheet.note("server CPU each", "µs", cpu)
}
