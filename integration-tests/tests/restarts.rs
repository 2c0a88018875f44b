//! Rolling the server under 1,000 watchers: it is stopped and killed, again and again on one data directory, while others
//! write, and its log is folded in between. Within the history nobody gets a snapshot (W5); beyond it everybody who missed
//! something gets one that says why, and nobody else does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use integration_tests::{
    history::{Event, History, Recorder},
    process::{Client, Server, Setup, within},
    requests::{self, instance, register},
    server_setup,
    validate::assert_kept,
    watcher::{Over, Watcher},
    writers::{self, Writer},
};
use registry_proto::v1::ResetReason;
use tokio::{
    sync::{Notify, Semaphore, watch},
    task::JoinSet,
};

const ROUNDS: usize = 5;
const WATCHERS: u32 = 1_000;
const CONNECTIONS: usize = 8;
const SERVICES: u64 = 16;
/// One writer of each service writes so often in a round at most, and the server goes after so many of all.
const WRITES: usize = 60;
const STOP_AFTER: usize = 300;
/// Records of a service that nobody watches, written in each round so that there is something to fold.
const FILLING: u64 = 2_000;
/// Above what is written in two rounds, and below what is written in all.
const HISTORY: &str = "6500";
const LIMIT: Duration = Duration::from_mins(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w5_rolling_the_server_under_1000_watchers_gives_nobody_a_snapshot() {
    within("all rounds", LIMIT, rounds()).await;
}

async fn rounds() {
    let setup = server_setup!()
        .with("--history-count", HISTORY)
        .with("--segment-bytes", "65536")
        .with("--grace", "1s");
    let recorder = Recorder::default();
    let mut history = History::default();
    let mut writers: Vec<_> =
        (0..SERVICES).map(|number| Writer::new(number, &service(number), 2, &recorder)).collect();
    let mut watchers: Vec<_> = (0..u64::from(WATCHERS))
        .map(|number| Watcher::of(&format!("watcher {number}"), &service(number), Over::Subscribe, &recorder))
        .collect();
    let mut folded = Vec::new();

    for round in 0..ROUNDS {
        let run = u32::try_from(round).expect("few rounds") + 1;
        let server = setup.start().await;
        let clients = connect(&server).await;
        for number in 0..SERVICES {
            let reading = writers::read(&clients[0], &service(number), run, &recorder).await;
            history.readings.push(reading.expect("a reading"));
        }
        let (gone, server_gone) = watch::channel(false);
        let opened = Arc::new(Semaphore::new(0));
        let watching = start_watching(watchers, round, &clients, &server_gone, &opened);
        fill(&clients, run).await;
        drop(opened.acquire_many(WATCHERS).await.expect("never closed"));
        let enough = Arc::new(Notify::new());
        let writing = start_writing(writers, run, &clients, &enough);
        enough.notified().await;
        if round % 2 == 0 {
            server.terminate();
            let end = server.ended().await;
            assert_eq!(end.status.code(), Some(0), "{}", end.log);
        } else {
            server.kill().await;
        }
        gone.send_replace(true);
        writers = writing.join_all().await;
        let mut back = watching.join_all().await;
        back.sort_unstable_by_key(|(number, _)| *number);
        watchers = back.into_iter().map(|(_, watcher)| watcher).collect();
        folded.push(newest_base(&setup));
    }

    assert!(folded.is_sorted() && folded[ROUNDS - 2] > 0, "the log was not folded between lives: {folded:?}");
    assert!(folded[ROUNDS - 1] > folded[ROUNDS - 2], "the log was not folded between lives: {folded:?}");
    let server = setup.start().await;
    let clients = connect(&server).await;
    let run = u32::try_from(ROUNDS).expect("few rounds") + 1;
    let mut last = Vec::new();
    for number in 0..SERVICES {
        last.push(writers::read(&clients[0], &service(number), run, &recorder).await.expect("a reading"));
    }
    let mut deltas = 0_u32;
    for (number, watcher) in watchers.iter_mut().enumerate() {
        let last = &last[number % last.len()];
        watcher.open(&clients[number % CONNECTIONS]).await.expect("its cursor is good");
        watcher.settle().await;
        assert_eq!(watcher.view().digest, last.digest, "the watcher ends with what the server has");
        deltas += u32::from(watcher.since_opened().iter().any(|event| matches!(event, Event::Told(_))));
        watcher.close();
    }
    assert!(deltas >= WATCHERS / 10, "those that lagged had something to catch up with: {deltas}");
    history.readings.extend(last);
    history.writes = writers.into_iter().flat_map(|writer| writer.writes).collect();
    history.watchers = watchers.into_iter().map(Watcher::into_record).collect();
    assert_no_snapshots(&history);
    assert_kept(&history);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w5_beyond_the_history_who_missed_something_gets_a_snapshot_that_says_so() {
    let setup =
        server_setup!().with("--history-count", "1").with("--segment-bytes", "4096").with("--grace", "1s");
    let recorder = Recorder::default();
    let server = setup.start().await;
    let clients = connect(&server).await;
    for number in 0..SERVICES {
        write(&clients[0], number, 3).await;
    }
    let mut watchers: Vec<_> = (0..u64::from(WATCHERS))
        .map(|number| Watcher::of(&format!("watcher {number}"), &service(number), Over::Subscribe, &recorder))
        .collect();
    for (number, watcher) in watchers.iter_mut().enumerate() {
        watcher.open(&clients[number % CONNECTIONS]).await.expect("a watch");
        watcher.settle().await;
        watcher.close();
    }
    // Half of the services change, two removals among the last, and are folded together with everything else.
    for number in (0..SERVICES).step_by(2) {
        write(&clients[0], number, 3).await;
    }
    for number in [0, 2] {
        let gone = requests::deregister(&service(number), &["i".to_owned()]);
        clients[0].clone().deregister(gone).await.expect("written");
    }
    fill(&clients, 1).await;
    drop(clients);
    server.kill().await;

    for stop_in_order in [true, false] {
        let server = setup.start().await;
        let clients = connect(&server).await;
        let mut said = Vec::new();
        for (number, watcher) in watchers.iter_mut().enumerate() {
            watcher.open(&clients[number % CONNECTIONS]).await.expect("an epoch that goes on");
            watcher.settle().await;
            said.push(watcher.reset_reason());
            watcher.close();
        }
        for (number, reason) in said.into_iter().enumerate() {
            // Those who were told once are current, whatever is kept.
            let missed = stop_in_order && (number as u64 % SERVICES).is_multiple_of(2);
            assert_eq!(reason, missed.then_some(ResetReason::HistoryGone), "watcher {number}");
        }
        for number in 0..SERVICES {
            let reading =
                writers::read(&clients[0], &service(number), 2, &recorder).await.expect("a reading");
            let of = |at: &usize| *at as u64 % SERVICES == number;
            for watcher in (0..watchers.len()).filter(of).map(|at| &watchers[at]) {
                assert_eq!(watcher.view().digest, reading.digest);
            }
        }
        drop(clients);
        if stop_in_order {
            server.terminate();
            server.ended().await;
        } else {
            server.kill().await;
        }
    }
    assert!(newest_base(&setup) > 0, "nothing was folded");
    let watchers = watchers.into_iter().map(Watcher::into_record).collect();
    assert_kept(&History { watchers, ..History::default() });
}

/// Opens all watchers. From the second round on a tenth of them asks, and reads nothing of what comes before the server
/// is gone: in the next round they are that far behind.
fn start_watching(
    watchers: Vec<Watcher>,
    round: usize,
    clients: &[Client],
    server_gone: &watch::Receiver<bool>,
    opened: &Arc<Semaphore>,
) -> JoinSet<(usize, Watcher)> {
    let mut watching = JoinSet::new();
    for (number, mut watcher) in watchers.into_iter().enumerate() {
        let (client, mut server_gone) = (clients[number % CONNECTIONS].clone(), server_gone.clone());
        let opened = Arc::clone(opened);
        let lags = round > 0 && (number + round).is_multiple_of(10);
        watching.spawn(async move {
            watcher.open(&client).await.expect("a durable server takes the cursor that it gave");
            opened.add_permits(1);
            if lags {
                server_gone.wait_for(|gone| *gone).await.expect("the test goes on");
                watcher.close();
            } else {
                watcher.drain().await;
            }
            (number, watcher)
        });
    }
    watching
}

/// Lets all writers write, and says when there is enough of it.
fn start_writing(
    writers: Vec<Writer>,
    run: u32,
    clients: &[Client],
    enough: &Arc<Notify>,
) -> JoinSet<Writer> {
    let (mut writing, acked) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for mut writer in writers {
        let client = clients[writing.len() % CONNECTIONS].clone();
        let (acked, enough) = (Arc::clone(&acked), Arc::clone(enough));
        writing.spawn(async move {
            for _ in 0..WRITES {
                if writer.write(&client, run).await.is_err() {
                    break;
                }
                if acked.fetch_add(1, Ordering::Relaxed) + 1 == STOP_AFTER {
                    enough.notify_one();
                }
            }
            writer
        });
    }
    writing
}

/// Nobody who came with a cursor got a snapshot.
fn assert_no_snapshots(history: &History) {
    for record in &history.watchers {
        let mut resumed = false;
        for event in &record.events {
            match event {
                Event::Opened { cursor, .. } => resumed = cursor.is_some(),
                Event::Told(told) if told.snapshot && resumed => {
                    panic!("W5 resumable: {} got a snapshot: {:?}", record.name, told.reason)
                }
                _ => {}
            }
        }
    }
}

fn service(number: u64) -> String {
    format!("rolling-{}", number % SERVICES)
}

async fn connect(server: &Server) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(server.client().await);
    }
    clients
}

/// Changes one instance of a service so many times.
async fn write(client: &Client, number: u64, times: u32) {
    for weight in 0..times {
        let changed = registry_proto::v1::Instance { weight: Some(weight), ..instance("i") };
        client.clone().register(register(number, &service(number), vec![changed])).await.expect("written");
    }
}

/// Writes to services that nobody watches.
async fn fill(clients: &[Client], run: u32) {
    let mut filling = JoinSet::new();
    for number in 0..SERVICES {
        let client = clients[filling.len() % clients.len()].clone();
        filling.spawn(async move {
            for n in 0..FILLING / SERVICES {
                let weight = Some(u32::try_from(n).expect("few") + 1_000 * run);
                let changed = registry_proto::v1::Instance { weight, ..instance("i") };
                let request = register(1_000 + number, &format!("filling-{number}"), vec![changed]);
                client.clone().register(request).await.expect("written");
            }
        });
    }
    filling.join_all().await;
}

/// The revision of the newest base in the data directory.
fn newest_base(setup: &Setup) -> u64 {
    let files = std::fs::read_dir(setup.data_dir()).expect("the data directory");
    let names = files.map(|file| file.expect("a file").file_name().into_string().expect("a name"));
    names.filter_map(|name| name.strip_prefix("base-")?.parse().ok()).max().unwrap_or(0)
}
