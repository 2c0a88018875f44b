//! Hosts that speak to the first registry by the protocol alone, and write down what they asked and were told: watchers,
//! writers, registrants, an operator, a reader. What they write down proves what the SDK's clients cannot see.
//!
//! | service | who changes it | what it proves |
//! |---|---|---|
//! | `written` | writers, in batches | W4, W7, W9, D1–D3 |
//! | `leased` | a registrant that renews | L1 |
//! | `silenced` | a registrant most of whose leases it gives up | L2, L5 |
//! | `ruled` | a registrant with a new lease each time, and an operator (`super::operator`) | L3, L4 |
//! | the SDK's | the instances | W1–W9 on what the SDK is told |

use std::{collections::BTreeSet, io, time::Duration};

use hyper_util::rt::TokioIo;
use registry_proto::v1;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tonic::{Status, transport::Endpoint};
use turmoil::net::TcpStream;

use super::{
    hosts::{Ended, Given, SERVICE},
    net::REGISTRY_PORT,
    notebook::{Kept, Notebook},
    operator,
    trace::{Event as Saw, Seen, Trace},
    world,
};
use crate::{
    history::{Event, Item, LeaseRecord, MassExpiry},
    process::Client,
    requests,
    watcher::{Over, Watcher},
    writers::{Writer, read},
};

const WRITTEN: &str = "written";
const LEASED: &str = "leased";
const SILENCED: &str = "silenced";
pub(super) const RULED: &str = "ruled";

/// A stream on which nothing comes for so long is dead: three bookmarks.
const SILENCE: Duration = Duration::from_secs(15);
/// A call takes at most so long.
const PATIENCE: Duration = Duration::from_secs(3);
/// Whoever failed waits until whatever it sent is surely there or lost: more than any link takes.
pub(super) const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// The leases of `silenced`, of which all but one are given up.
const SILENT: u64 = 6;

/// How far the whole simulation is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Everyone is at work.
    #[default]
    Work,
    /// Most leases of one registrant are given up.
    Silence,
    /// Nothing is written any more.
    Quiet,
}

/// What a raw host needs.
#[derive(Clone, Debug)]
pub struct Raw {
    /// As every host.
    pub given: Given,
    /// The registry that it speaks to.
    pub registry: String,
    /// Where it writes down.
    pub notebook: Notebook,
    /// How far everyone is.
    pub stage: watch::Receiver<Stage>,
}

/// The name of the SDK's service at a registry, as a view of a history.
pub fn view_at(registry: &str) -> String {
    format!("{SERVICE}@{registry}")
}

/// Watchers of every service, by either call, quick and slow.
pub async fn watchers(raw: Raw) -> Ended {
    let views = [
        (WRITTEN, WRITTEN.to_owned(), Over::Subscribe, 0),
        (WRITTEN, WRITTEN.to_owned(), Over::Watch, 300),
        (LEASED, LEASED.to_owned(), Over::Subscribe, 0),
        (SILENCED, SILENCED.to_owned(), Over::Watch, 0),
        (RULED, RULED.to_owned(), Over::Subscribe, 50),
        (SERVICE, view_at(&raw.registry), Over::Subscribe, 100),
    ];
    let mut random = fastrand::Rng::with_seed(raw.given.seed);
    let mut tasks = Vec::new();
    for (service, view, over, pause) in views {
        let name = format!("{} {service} {over:?}", raw.given.name);
        let request = v1::WatchRequest { include_all: over == Over::Watch, ..requests::watch(service) };
        let watcher =
            raw.notebook.watcher(&name, |recorder| Watcher::new(&name, &view, request, over, recorder));
        let (registry, random) = (raw.registry.clone(), random.fork());
        tasks.push(tokio::spawn(follow(watcher, registry, random, pause, |_| {})));
    }
    for task in tasks {
        task.await?;
    }
    Ok(())
}

/// What a registry holds of the SDK's service, told on its own host: the truth, whatever the network does.
pub async fn witness(given: Given, notebook: Notebook) {
    let name = format!("{} itself", given.name);
    let watcher = notebook.watcher(&name, |recorder| {
        Watcher::new(&name, &view_at(&given.name), requests::watch(SERVICE), Over::Subscribe, recorder)
    });
    let random = fastrand::Rng::with_seed(given.seed);
    let mut last = None;
    let (trace, who): (Trace, String) = (given.trace, given.name);
    let told = move |watcher: &Watcher| {
        let (who, epoch) = (who.clone(), watcher.view().epoch.to_string());
        let all: Seen =
            watcher.view().items.values().map(|item| (item.id.to_string(), weight(item))).collect();
        let now = (epoch.clone(), all.clone());
        if last.as_ref() != Some(&now) {
            trace.saw(Saw::Holds { who, epoch, all });
            last = Some(now);
        }
    };
    follow(watcher, "127.0.0.1".to_owned(), random, 0, told).await;
}

/// Writers of batches.
pub async fn writers(raw: Raw, run: impl Fn() -> u32 + Clone + Send + 'static) -> Ended {
    let mut random = fastrand::Rng::with_seed(raw.given.seed);
    // What an earlier start sent may still be under way.
    sleep(AFTER_FAILURE).await;
    let mut tasks = Vec::new();
    for number in 1..=2 {
        let name = format!("{} {number}", raw.given.name);
        let writer = raw.notebook.writer(&name, |recorder| Writer::new(number, WRITTEN, 3, recorder));
        tasks.push(tokio::spawn(write(writer, raw.clone(), random.fork(), run.clone())));
    }
    tasks.push(tokio::spawn(renew_always(raw.clone())));
    for task in tasks {
        task.await?;
    }
    std::future::pending().await
}

/// What is best not disturbed: an operator, a registrant that falls silent, a reader.
pub async fn office(raw: Raw, run: impl Fn() -> u32 + Clone + Send + 'static) -> Ended {
    let random = fastrand::Rng::with_seed(raw.given.seed);
    tokio::spawn(fall_silent(raw.clone()));
    tokio::spawn(operator::rule(raw.clone(), random));
    let mut stage = raw.stage.clone();
    let mut clients = client(&raw.registry);
    loop {
        let pause = if *stage.borrow() == Stage::Quiet { PATIENCE } else { Duration::from_millis(1_700) };
        // It is read once more as soon as nobody writes any more, and now and then after that.
        let _ = timeout(pause, stage.changed()).await;
        for (service, view) in [
            (WRITTEN, WRITTEN.to_owned()),
            (LEASED, LEASED.to_owned()),
            (RULED, RULED.to_owned()),
            (SERVICE, view_at(&raw.registry)),
        ] {
            let reading = read(&clients, service, run(), raw.notebook.recorder());
            match timeout(PATIENCE, reading).await {
                Ok(Ok(reading)) => raw.notebook.read(crate::history::Reading { view, ..reading }),
                _ => clients = client(&raw.registry),
            }
        }
    }
}

async fn follow(
    mut watcher: Kept<Watcher>,
    registry: String,
    mut random: fastrand::Rng,
    pause: u64,
    mut told: impl FnMut(&Watcher),
) {
    loop {
        let client = client(&registry);
        if let Ok(Ok(())) = timeout(PATIENCE, watcher.open(&client)).await {
            loop {
                let change = match timeout(SILENCE, watcher.next()).await {
                    Ok(Ok(Event::Refused(_) | Event::GoAway) | Err(_)) | Err(_) => break,
                    Ok(Ok(event)) => matches!(event, Event::Told(_)),
                };
                if change {
                    told(&watcher);
                }
                if pause > 0 {
                    sleep(Duration::from_millis(random.u64(..=pause))).await;
                }
            }
        }
        watcher.close();
        sleep(Duration::from_millis(random.u64(50..500))).await;
    }
}

async fn write(
    mut writer: Kept<Writer>,
    raw: Raw,
    mut random: fastrand::Rng,
    run: impl Fn() -> u32 + Send + 'static,
) {
    let mut at = client(&raw.registry);
    while *raw.stage.borrow() < Stage::Quiet {
        let pause = if writer.write(&at, run()).await.is_ok() {
            Duration::from_millis(random.u64(20..600))
        } else {
            at = client(&raw.registry);
            AFTER_FAILURE
        };
        sleep(pause).await;
    }
}

/// Registers leases of three instances and renews each for as long as that can be done; if it can not, another.
async fn renew_always(raw: Raw) {
    let ttl = Duration::from_secs(9);
    // Told apart from those of every earlier start.
    let mut number = (raw.given.seed | 1 << 40) >> 8;
    loop {
        number += 1;
        let ids: Vec<String> = (0..3).map(|member| format!("leased-{number}-{member}")).collect();
        let mut at = client(&raw.registry);
        let instances = ids.iter().map(|id| requests::instance(id)).collect();
        let asked = world::now();
        let Ok(_) = at.register(requests::register_for(9_000, number, LEASED, instances)).await else {
            sleep(AFTER_FAILURE).await;
            continue;
        };
        let lease = LeaseRecord { view: LEASED.to_owned(), ids, ..LeaseRecord::default() };
        raw.notebook.lease(number, lease);
        let _excuse = Excuse { notebook: &raw.notebook, number };
        renew(&raw, &[number], asked, ttl, || false).await;
    }
}

/// A lease whose registrant ends proves nothing any more.
struct Excuse<'a> {
    notebook: &'a Notebook,
    number: u64,
}

impl Drop for Excuse<'_> {
    fn drop(&mut self) {
        self.notebook.excuse(self.number);
    }
}

/// Renews these leases at a third of their TTL. True: `until` said that it is enough. False: for most of a TTL no renewal
/// was acknowledged, so that they may be gone.
async fn renew(raw: &Raw, numbers: &[u64], asked: Duration, ttl: Duration, until: impl Fn() -> bool) -> bool {
    let mut at = client(&raw.registry);
    // Counted from when the last acknowledged one was sent.
    let mut renewed = asked;
    loop {
        sleep(ttl / 3).await;
        loop {
            if until() {
                return true;
            }
            let sent = world::now();
            if sent > renewed + ttl * 8 / 10 {
                return false;
            }
            match timeout(ttl / 6, send_renewal(&mut at, numbers)).await {
                Ok(Ok(exceptions)) => {
                    for (number, exception) in exceptions {
                        raw.notebook.exception(number, exception);
                    }
                    renewed = sent;
                    break;
                }
                _ => at = client(&raw.registry),
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn send_renewal(at: &mut Client, numbers: &[u64]) -> Result<Vec<(u64, String)>, Status> {
    let lease_ids = numbers.iter().map(|number| requests::lease(*number)).collect();
    let request = v1::KeepAliveRequest { lease_ids, request_id: 1 };
    let mut answers = at.keep_alive(tokio_stream::once(request)).await?.into_inner();
    let answer = answers.message().await?.ok_or_else(|| Status::cancelled("no answer"))?;
    let named = |exception: &v1::LeaseException| {
        let number = numbers.iter().find(|number| requests::lease(**number) == exception.lease_id);
        number.map(|number| (*number, format!("{exception:?}")))
    };
    Ok(answer.exceptions.iter().filter_map(named).collect())
}

/// Registers six leases, renews them, and gives up all but one when it is time.
async fn fall_silent(raw: Raw) {
    let ttl = Duration::from_secs(6);
    let numbers: Vec<u64> = (100..100 + SILENT).collect();
    let id = |number: u64| format!("silenced-{number}");
    let mut at = client(&raw.registry);
    let mut asked = None;
    for number in &numbers {
        let instance = requests::instance(&id(*number));
        let request = requests::register_for(6_000, *number, SILENCED, vec![instance]);
        asked = asked.or(Some(world::now()));
        if timeout(PATIENCE, at.register(request)).await.is_ok_and(|answer| answer.is_ok()) {
            continue;
        }
        // Not all at once: then this run proves nothing here.
        return;
    }
    let stage = raw.stage.clone();
    let silent = || *stage.borrow() >= Stage::Silence;
    let record = |number: u64, abandoned: bool| LeaseRecord {
        view: SILENCED.to_owned(),
        ids: vec![id(number)],
        abandoned,
        ..LeaseRecord::default()
    };
    for number in &numbers {
        raw.notebook.lease(*number, record(*number, false));
    }
    let asked = asked.unwrap_or_default();
    let in_time = renew(&raw, &numbers, asked, ttl, silent).await;
    for number in &numbers {
        raw.notebook.excuse(*number);
    }
    if in_time {
        let (one, given_up) = numbers.split_at(1);
        for number in given_up {
            raw.notebook.lease(*number, record(*number, true));
        }
        let ids = given_up.iter().map(|number| id(*number)).collect();
        let expiry = MassExpiry { view: SILENCED.to_owned(), ids, base: numbers.len() };
        raw.notebook.expiry(expiry);
        renew(&raw, one, world::now(), ttl, || false).await;
    }
}

/// A client with a connection of its own, made with the first call.
pub(super) fn client(host: &str) -> Client {
    let endpoint = Endpoint::from_shared(format!("http://{host}:{REGISTRY_PORT}"))
        .expect("a host's name makes a URL")
        .connect_timeout(PATIENCE)
        .timeout(PATIENCE);
    let connector = tower::service_fn(|uri: http::Uri| async move {
        let host = uri.host().unwrap_or_default().to_owned();
        let stream = TcpStream::connect((host, REGISTRY_PORT)).await?;
        Ok::<_, io::Error>(TokioIo::new(stream))
    });
    Client::new(endpoint.connect_with_connector_lazy(connector))
}

fn weight(item: &Item) -> u32 {
    if item.status == i32::from(v1::InstanceStatus::Up) { item.weight } else { 0 }
}

/// The services whose views have nobody who changes them once it is quiet, by their names in a history.
pub fn settled_views(registry: &str) -> BTreeSet<String> {
    [WRITTEN.to_owned(), RULED.to_owned(), view_at(registry)].into()
}
