//! `watch`: paced changes to many watchers of one service. `burst`: changes as fast as they are taken.
//!
//! A change is a further instance. Its time is from before it was asked for until a watcher has it in its own set of instances.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, BytesMut};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

use super::{CALLERS, FOR_LONG, Stretch, callers, join, kib, millis, rate};
use crate::{
    Plan, clock,
    failure::{During, Failure, Result},
    peers::{
        Connection, News, Peer, Place, Watch, WatchOf,
        floor::{Client, Floor},
        grpc::Feed,
    },
    process::Process,
    report::Report,
    stats::Latencies,
};

/// Watchers, and on how many connections.
const CASES: [(usize, usize); 4] = [(100, 100), (1_000, 1_000), (5_000, 5_000), (10_000, 100)];
const CHANGES: u32 = 200;
const PACE: Duration = Duration::from_millis(50);
const BURST_WATCHERS: (usize, usize) = (500, 50);
const BURST: u32 = 5_000;
/// Whoever was not told by then never will be.
const PATIENCE: Duration = Duration::from_mins(2);
/// What our server sends for one change, in bytes.
const EVENT: usize = 150;
/// Connections that are opened at a time.
const OPENING: usize = 32;

/// When each change was asked for; instance 0 is there before.
pub(super) struct Board(Vec<OnceLock<Instant>>);

impl Board {
    pub(super) fn new(changes: u32) -> Arc<Self> {
        Arc::new(Self((0..=changes).map(|_| OnceLock::new()).collect()))
    }

    /// Says that a change is asked for now.
    pub(super) fn begin(&self, change: u32) {
        if let Some(begin) = self.0.get(change as usize) {
            let _ = begin.set(clock::now());
        }
    }

    /// How long ago it was asked for.
    pub(super) fn since(&self, change: u32, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(*self.0.get(change as usize)?.get()?))
    }
}

pub(super) async fn peer<P: Peer>(plan: &Plan, report: &mut Report) -> Result<()> {
    for (watchers, on) in CASES {
        let (watchers, on) = (plan.many(watchers), plan.many(on));
        if on < watchers && P::WATCHERS_ARE_ONE {
            continue;
        }
        let server = Arc::new(P::start(&plan.setup).await?);
        server.prepare(1).await?;
        let writer = server.connect().await?;
        writer.ready_to_call().await?;
        let lease = writer.register(Place { service: 0, instance: 0 }, FOR_LONG).await?;
        let empty = server.process().resident()?;
        let changes = plan.size(CHANGES);
        let board = Board::new(changes);
        let following = follow_all(&server, watchers, on, &board).await?;
        let full = server.process().resident()?;
        let stretch = Stretch::begin(server.process())?;
        let write = async |change| {
            board.begin(change);
            writer.register_under(Place { service: 0, instance: change }, &lease).await
        };
        let paced = pace(changes, write).await?;
        let told = collect(following).await?;
        let case = case(watchers, on);
        let memory = kib(full.saturating_sub(empty), watchers);
        note(report, case, P::NAME, &stretch, server.process(), paced, told, memory)?;
    }
    Ok(())
}

/// The same bytes, streamed to as many.
pub(super) async fn floor(plan: &Plan, report: &mut Report) -> Result<()> {
    for (watchers, on) in CASES {
        let (watchers, on) = (plan.many(watchers), plan.many(on));
        let server = Floor::start(&plan.setup).await?;
        let writer = server.caller().await?;
        let empty = server.process().resident()?;
        let changes = plan.size(CHANGES);
        let board = Board::new(changes);
        let following = follow_floor(&server, watchers, on, changes, &board).await?;
        let full = server.process().resident()?;
        let stretch = Stretch::begin(server.process())?;
        let write = async |change| {
            board.begin(change);
            writer.publish(&event(change)).await
        };
        let paced = pace(changes, write).await?;
        let told = collect(following).await?;
        let memory = kib(full.saturating_sub(empty), watchers);
        let case = case(watchers, on);
        note(report, case, Floor::NAME, &stretch, server.process(), paced, told, memory)?;
    }
    Ok(())
}

pub(super) async fn burst<P: Peer>(plan: &Plan, report: &mut Report) -> Result<()> {
    let (watchers, on) = (plan.many(BURST_WATCHERS.0), plan.many(BURST_WATCHERS.1));
    // Where watchers of one connection are one, each has its own.
    let on = if P::WATCHERS_ARE_ONE { watchers } else { on };
    let server = Arc::new(P::start(&plan.setup).await?);
    server.prepare(1).await?;
    let writers = callers(server.as_ref(), CALLERS).await?;
    let lease = writers[0].register(Place { service: 0, instance: 0 }, FOR_LONG).await?;
    drop(lease);
    let changes = plan.size(BURST);
    let board = Board::new(changes);
    let following = follow_all(&server, watchers, on, &board).await?;
    let before = server.process().resident()?;
    let stretch = Stretch::begin(server.process())?;
    let callers = u32::try_from(CALLERS).unwrap_or(1);
    let writing = (1..).zip(writers).map(|(first, writer)| {
        let board = Arc::clone(&board);
        clock::spawn(async move {
            let mut lease = None;
            for change in (first..=changes).step_by(callers as usize) {
                board.begin(change);
                let place = Place { service: 0, instance: change };
                match &lease {
                    None => lease = Some(writer.register(place, FOR_LONG).await?),
                    Some(lease) => writer.register_under(place, lease).await?,
                }
            }
            Ok(clock::now())
        })
    });
    let answered = join(writing.collect()).await?.into_iter().max().unwrap_or_else(clock::now);
    let writes = rate(changes as usize, answered.saturating_duration_since(stretch.began));
    let told = collect(following).await?;
    burst_note(
        report,
        burst_case(watchers, changes),
        P::NAME,
        &stretch,
        server.process(),
        (writes, answered, before),
        &told,
    )
}

/// The same number of messages, published as fast as they are taken.
pub(super) async fn burst_floor(plan: &Plan, report: &mut Report) -> Result<()> {
    let (watchers, on) = (plan.many(BURST_WATCHERS.0), plan.many(BURST_WATCHERS.1));
    let server = Floor::start(&plan.setup).await?;
    let writer = server.caller().await?;
    let changes = plan.size(BURST);
    let board = Board::new(changes);
    let following = follow_floor(&server, watchers, on, changes, &board).await?;
    let before = server.process().resident()?;
    let stretch = Stretch::begin(server.process())?;
    for change in 1..=changes {
        board.begin(change);
        writer.publish(&event(change)).await?;
    }
    let answered = clock::now();
    let writes = stretch.rate(changes as usize);
    let told = collect(following).await?;
    burst_note(
        report,
        burst_case(watchers, changes),
        Floor::NAME,
        &stretch,
        server.process(),
        (writes, answered, before),
        &told,
    )
}

/// A watcher that follows until it was told all.
pub(super) type Following<W> = JoinHandle<Result<Told<W>>>;

/// One was told all, or all were.
pub(super) struct Told<W> {
    pub(super) latencies: Latencies,
    /// When the last of it was told.
    at: Instant,
    /// Kept until the figures are taken: to close it takes time from whoever is told last.
    open: W,
}

/// Opens watches, and returns when each has its initial state.
pub(super) async fn follow_all<P: Peer>(
    server: &Arc<P>,
    watchers: usize,
    on: usize,
    board: &Arc<Board>,
) -> Result<Vec<Following<WatchOf<P>>>> {
    let mut shared = Vec::with_capacity(on);
    let (ready, mut is_ready) = mpsc::channel(OPENING);
    let mut following = Vec::with_capacity(watchers);
    for watcher in 0..watchers {
        let (server, board, ready) = (Arc::clone(server), Arc::clone(board), ready.clone());
        following.push(if on == watchers {
            clock::spawn(async move {
                let watch = server.watch(0).await?;
                drop(server);
                follow(watch, &board, Some(ready)).await
            })
        } else {
            if shared.len() < on {
                shared.push(server.connect().await?);
            }
            let connection: P::Connection = shared[watcher % shared.len()].clone();
            clock::spawn(async move {
                let watch = connection.watch(0).await?;
                follow(watch, &board, Some(ready)).await
            })
        });
        if watcher >= OPENING {
            await_ready(&mut is_ready, &mut following).await?;
        }
    }
    for _ in 0..watchers.min(OPENING) {
        await_ready(&mut is_ready, &mut following).await?;
    }
    Ok(following)
}

/// One more is ready, or it will be said why it is not.
async fn await_ready<W>(is_ready: &mut mpsc::Receiver<()>, following: &mut Vec<Following<W>>) -> Result<()> {
    if let Ok(Some(())) = timeout(PATIENCE, is_ready.recv()).await {
        return Ok(());
    }
    while let Some(watcher) = following.pop() {
        if watcher.is_finished() {
            join(vec![watcher]).await?;
        }
    }
    Err(Failure(format!("a watcher has no initial state after {PATIENCE:?}")))
}

async fn follow<W: Watch>(
    mut watch: W,
    board: &Board,
    mut ready: Option<mpsc::Sender<()>>,
) -> Result<Told<W>> {
    let mut latencies = Latencies::with_room(board.0.len());
    // Its own set of instances.
    let mut there = vec![false; board.0.len()];
    let mut left = there.len();
    let mut news = Vec::new();
    while left > 0 {
        watch.next(&mut news).await?;
        let now = clock::now();
        for one in news.drain(..) {
            let (News::There(number) | News::Held(number)) = one else { continue };
            let Some(seen @ false) = there.get_mut(number as usize) else { continue };
            *seen = true;
            left -= 1;
            if let Some(latency) = board.since(number, now) {
                latencies.push(latency);
            }
        }
        if let Some(ready) = ready.take_if(|_| there[0]) {
            ready.send(()).await.during("the load has ended")?;
        }
    }
    Ok(Told { latencies, at: clock::now(), open: watch })
}

async fn follow_floor(
    server: &Floor,
    watchers: usize,
    on: usize,
    changes: u32,
    board: &Arc<Board>,
) -> Result<Vec<Following<Feed>>> {
    let mut shared: Vec<Client> = Vec::with_capacity(on);
    let mut following = Vec::with_capacity(watchers);
    for watcher in 0..watchers {
        let mut feed = if on == watchers {
            server.follow().await?
        } else {
            if shared.len() < on {
                shared.push(server.connect());
            }
            shared[watcher % shared.len()].follow().await?
        };
        let board = Arc::clone(board);
        following.push(clock::spawn(async move {
            let mut latencies = Latencies::with_room(changes as usize);
            for _ in 0..changes {
                let change =
                    feed.message().await?.try_get_u32().during("the floor's events have their number")?;
                if let Some(latency) = board.since(change, clock::now()) {
                    latencies.push(latency);
                }
            }
            Ok(Told { latencies, at: clock::now(), open: feed })
        }));
    }
    Ok(following)
}

fn event(change: u32) -> BytesMut {
    let mut event = BytesMut::with_capacity(EVENT);
    event.put_u32(change);
    event.put_bytes(b'x', EVENT - 4);
    event
}

/// Makes changes at a pace, or as slowly as they are taken; the changes a second that came of it.
async fn pace(changes: u32, mut write: impl AsyncFnMut(u32) -> Result<()>) -> Result<f64> {
    let began = clock::now();
    for change in 1..=changes {
        clock::until(began + PACE * (change - 1)).await;
        write(change).await?;
    }
    // The last change's own time is over too.
    clock::until(began + PACE * changes).await;
    Ok(rate(changes as usize, began.elapsed()))
}

/// What all were told, and when the last was.
pub(super) async fn collect<W>(following: Vec<Following<W>>) -> Result<Told<Vec<W>>> {
    let each = timeout(PATIENCE, join(following)).await;
    let each =
        each.map_err(|_| Failure(format!("watchers were not told everything after {PATIENCE:?}")))??;
    let mut latencies = Latencies::with_room(each.iter().map(|one| one.latencies.count()).sum());
    let at = each.iter().map(|one| one.at).max().unwrap_or_else(clock::now);
    let mut open = Vec::with_capacity(each.len());
    for one in each {
        latencies.append(one.latencies);
        open.push(one.open);
    }
    Ok(Told { latencies, at, open })
}

fn case(watchers: usize, on: usize) -> String {
    if on == watchers {
        format!("{watchers} watchers")
    } else {
        format!("{watchers} watchers, {on} connections")
    }
}

fn burst_case(watchers: usize, changes: u32) -> String {
    format!("{watchers} watchers, {changes} changes")
}

#[allow(clippy::too_many_arguments)] // the figures of one row
fn note<W>(
    report: &mut Report,
    case: String,
    peer: &'static str,
    stretch: &Stretch,
    process: &Process,
    paced: f64,
    told: Told<W>,
    memory: f64,
) -> Result<()> {
    let mut latencies = told.latencies;
    let cpu = stretch.cpu_each(process, latencies.count())?;
    let mut sheet = report.sheet("watch", case, peer);
    sheet.note("changes", "/s", paced)?;
    sheet.note("server CPU an event", "µs", cpu)?;
    sheet.note("p50", "ms", millis(latencies.percentile(50)))?;
    sheet.note("p99", "ms", millis(latencies.percentile(99)))?;
    sheet.note("memory a watcher", "KiB", memory)
}

fn burst_note<W>(
    report: &mut Report,
    case: String,
    peer: &'static str,
    stretch: &Stretch,
    process: &Process,
    (writes, answered, before): (f64, Instant, u64),
    told: &Told<W>,
) -> Result<()> {
    let events = told.latencies.count();
    let rate = rate(events, told.at.saturating_duration_since(stretch.began));
    let cpu = stretch.cpu_each(process, events)?;
    let after = process.resident()?;
    let mut sheet = report.sheet("burst", case, peer);
    sheet.note("writes", "/s", writes)?;
    sheet.note("events", "/s", rate)?;
    sheet.note("server CPU an event", "µs", cpu)?;
    sheet.note(
        "all told after the last answer",
        "ms",
        millis(told.at.saturating_duration_since(answered)),
    )?;
    sheet.note("memory grown", "MiB", kib(after.saturating_sub(before), 1024))
}
