//! `kill -9` of the server in the middle of 64 registrants, again and again on one data directory.
//!
//! After each restart every acknowledged write is there (D1), whole (D3); every watcher resumes without a gap (W2, W5);
//! nobody is shown an empty list (W9).

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use integration_tests::{
    history::{History, Recorder},
    process::{Client, Server, within},
    server_setup,
    validate::assert_kept,
    watcher::{Over, Watcher},
    writers::{self, Writer},
};
use tokio::{sync::Notify, task::JoinSet};

const ROUNDS: u32 = 20;
const REGISTRANTS: u64 = 64;
const WATCHERS: usize = 8;
const CONNECTIONS: usize = 4;
const SERVICE: &str = "crashing";
const LIMIT: Duration = Duration::from_mins(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_comes_back_with_everything_it_acknowledged() {
    within("twenty rounds", LIMIT, rounds()).await;
}

async fn rounds() {
    let setup = server_setup!();
    let recorder = Recorder::default();
    let mut random = fastrand::Rng::with_seed(7);
    let mut history = History::default();
    let mut registrants: Vec<_> =
        (0..REGISTRANTS).map(|number| Writer::new(number, SERVICE, 4, &recorder)).collect();
    let mut watchers: Vec<_> = (0..WATCHERS)
        .map(|number| {
            let over = if number % 2 == 0 { Over::Subscribe } else { Over::Watch };
            Watcher::of(&format!("watcher {number}"), SERVICE, over, &recorder)
        })
        .collect();

    for run in 1..=ROUNDS {
        let server = setup.start().await;
        let clients = connect(&server).await;
        history.readings.push(writers::read(&clients[0], SERVICE, run, &recorder).await.expect("a reading"));

        let mut watching = JoinSet::new();
        for (number, mut watcher) in watchers.drain(..).enumerate() {
            let client = clients[number % CONNECTIONS].clone();
            watching.spawn(async move {
                watcher.open(&client).await.expect("a durable server takes the cursor that it gave");
                watcher.drain().await;
                watcher
            });
        }
        let (acked, enough) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let kill_at = random.usize(80..400);
        let mut writing = JoinSet::new();
        for (number, mut registrant) in registrants.drain(..).enumerate() {
            let client = clients[number % CONNECTIONS].clone();
            let (acked, enough) = (Arc::clone(&acked), Arc::clone(&enough));
            writing.spawn(async move {
                while registrant.write(&client, run).await.is_ok() {
                    if acked.fetch_add(1, Ordering::Relaxed) + 1 == kill_at {
                        enough.notify_one();
                    }
                }
                registrant
            });
        }
        enough.notified().await;
        server.kill().await;
        registrants = writing.join_all().await;
        watchers = watching.join_all().await;
        assert!(acked.load(Ordering::Relaxed) >= kill_at, "the kill came in the middle");
    }

    let run = ROUNDS + 1;
    let server = setup.start().await;
    let clients = connect(&server).await;
    let last = writers::read(&clients[0], SERVICE, run, &recorder).await.expect("a reading");
    for watcher in &mut watchers {
        watcher.open(&clients[0]).await.expect("a durable server takes the cursor that it gave");
        watcher.reach(last.revision).await;
        assert_eq!(watcher.view().digest, last.digest, "the watcher ends with what the server has");
        assert_eq!(watcher.view().items, last.items);
    }
    history.readings.push(last);
    history.writes = registrants.into_iter().flat_map(|registrant| registrant.writes).collect();
    history.watchers = watchers.into_iter().map(Watcher::into_record).collect();
    assert!(history.writes.len() > 80 * ROUNDS as usize);
    assert_kept(&history);
}

async fn connect(server: &Server) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(server.client().await);
    }
    clients
}
