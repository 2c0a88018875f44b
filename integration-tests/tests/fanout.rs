//! A thousand watchers on one service, fifty of which do not read for long stretches, and 5,000 changes as fast as they go.
//!
//! All end with the digest that the server has (W2, W6), and what the server keeps in memory does not grow with the number
//! of changes (W10).

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use integration_tests::{
    history::{History, Recorder, VALUE_TAG},
    process::{Client, MAX_MESSAGE, Server, within},
    requests, server_setup,
    validate::assert_kept,
    watcher::{Over, Watcher},
    writers,
};
use registry_proto::v1::{self, registry_client::RegistryClient};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

const WATCHERS: usize = 1_000;
const SLOW: usize = 50;
const WRITERS: usize = 16;
/// Changes before the first measurement, enough to fill the bounded log, and between it and the second.
const LEGS: [usize; 2] = [1_000, 4_000];
/// Changes that the server keeps to resume from.
const LOG: usize = 500;
const SERVICE: &str = "popular";
/// Bytes of a tag that every instance carries, so that whatever keeps changes would show.
const PAYLOAD: usize = 2_500;
/// What the server's memory may grow by between the measurements: less than seven copies of each change (10 MB a copy).
/// Queues of what the slow watchers miss would take fifty copies, and queues of all watchers a thousand. What there is
/// instead does not depend on it: the log, which is full by the first measurement, two snapshots of a few instances, and
/// the transport's buffers. Where these lie in the heap made up to 22 MB of difference from run to run, so a single kept
/// copy is not for this test to find: the hub's own `w10_not_one_copy_of_a_change…` counts them.
const MAY_GROW: u64 = 64 << 20;
const LIMIT: Duration = Duration::from_mins(15);

/// How far a watcher is to read.
#[derive(Clone, Copy, Debug, Default)]
struct Goal {
    /// Slow watchers read up to here and then stop; fast ones read on.
    revision: u64,
    /// Nothing comes after it.
    last: bool,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_watchers_cost_the_server_nothing_and_end_with_the_same_view() {
    within("all watchers", LIMIT, fan_out()).await;
}

async fn fan_out() {
    let server = server_setup!().with("--history-count", &LOG.to_string()).giving_memory_back().start().await;
    let recorder = Recorder::default();
    let writer = server.client().await;
    write(&writer, WRITERS, 0).await;

    let (goals, goal) = watch::channel(Goal::default());
    let (reports, mut reported) = mpsc::channel(WATCHERS);
    let mut watching = JoinSet::new();
    let (wide, narrow) = connect(&server).await;
    for number in 0..WATCHERS {
        let slow = number < SLOW;
        let client = if slow { &narrow[number % narrow.len()] } else { &wide[number % wide.len()] };
        let over = if number % 2 == 0 { Over::Subscribe } else { Over::Watch };
        let watcher = Watcher::of(&format!("watcher {number}"), SERVICE, over, &recorder);
        watching.spawn(follow(watcher, client.clone(), slow, goal.clone(), reports.clone()));
    }
    for _ in 0..WATCHERS {
        reported.recv().await.expect("every watcher gets the initial state");
    }

    let mut resident = Vec::new();
    for leg in 0..LEGS.len() {
        assert!(LEGS[leg] > LOG, "the log is full at each measurement");
        let first = WRITERS + LEGS[..leg].iter().sum::<usize>();
        let revision = write(&writer, LEGS[leg], first).await;
        // The fast ones are through, the slow ones have not read yet: now the server holds all that it has to hold.
        goals.send_replace(Goal { revision, last: false });
        for _ in SLOW..WATCHERS {
            reported.recv().await.expect("every fast watcher comes to the end");
        }
        resident.push(server.resident_bytes());
        goals.send_replace(Goal { revision, last: true });
        for _ in 0..SLOW {
            reported.recv().await.expect("every slow watcher comes to the end");
        }
        goals.send_replace(Goal::default());
    }
    goals.send_replace(Goal { revision: u64::MAX, last: true });
    let watchers = watching.join_all().await;

    let reading = writers::read(&writer, SERVICE, 1, &recorder).await.expect("a reading");
    for watcher in &watchers {
        assert_eq!(watcher.view().cursor, reading.revision);
        assert_eq!(watcher.view().digest, reading.digest, "W6: a watcher has another view than the server");
    }
    let told: usize = watchers.iter().map(|watcher| watcher.since_opened().len()).sum();
    assert!(told < WATCHERS * LEGS.iter().sum::<usize>(), "slow watchers get the net effect");
    let grown = resident[1].saturating_sub(resident[0]);
    assert!(
        grown < MAY_GROW,
        "W10 bounded: the server grew by {grown} bytes over {} changes of {PAYLOAD}, and may by {MAY_GROW}: {resident:?}",
        LEGS[1]
    );

    // The slow ones, and a sample of the others: what they were told keeps every promise.
    let judged = watchers.into_iter().enumerate().filter(|(number, _)| *number < SLOW || number % 50 == 0);
    let watchers = judged.map(|(_, watcher)| watcher.into_record()).collect();
    assert_kept(&History { watchers, readings: vec![reading], ..History::default() });
}

/// Follows the service. Reports once it has the initial state, and each time it has reached a goal that is its own.
async fn follow(
    mut watcher: Watcher,
    client: Client,
    slow: bool,
    mut goal: watch::Receiver<Goal>,
    reports: mpsc::Sender<()>,
) -> Watcher {
    watcher.open(&client).await.expect("a watch");
    watcher.settle().await;
    let mut done = 0;
    let report = async || reports.send(()).await.expect("the test counts");
    report().await;
    loop {
        let Goal { revision, last } = *goal.borrow_and_update();
        if revision == u64::MAX {
            return watcher;
        }
        if revision > done && (!slow || last) && (slow || watcher.view().cursor >= revision) {
            watcher.reach(revision).await;
            done = revision;
            report().await;
        }
        tokio::select! {
            changed = goal.changed() => changed.expect("the test goes on"),
            told = watcher.next(), if !slow => { told.expect("the stream goes on"); }
        }
    }
}

/// Connections for those who read, and ones with small windows for those who do not: a window that nobody empties
/// stops everyone on its connection.
async fn connect(server: &Server) -> (Vec<Client>, Vec<Client>) {
    let (mut wide, mut narrow) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        wide.push(server.client().await);
    }
    for _ in 0..10 {
        let endpoint =
            server.endpoint().initial_stream_window_size(65_535).initial_connection_window_size(65_535);
        let channel = endpoint.connect().await.expect("the server takes connections");
        narrow.push(RegistryClient::new(channel).max_decoding_message_size(MAX_MESSAGE));
    }
    (wide, narrow)
}

/// Makes changes from all writers at once, and returns the revision of the last.
async fn write(client: &Client, changes: usize, first: usize) -> u64 {
    let next = Arc::new(AtomicUsize::new(0));
    let mut writing = JoinSet::new();
    for writer in 0..WRITERS {
        let (mut client, next) = (client.clone(), Arc::clone(&next));
        writing.spawn(async move {
            let mut newest = 0;
            loop {
                let change = next.fetch_add(1, Ordering::Relaxed);
                if change >= changes {
                    return newest;
                }
                let tags = [
                    (VALUE_TAG.to_owned(), (first + change).to_string()),
                    ("payload".to_owned(), "x".repeat(PAYLOAD)),
                ];
                let instance =
                    v1::Instance { tags: tags.into(), ..requests::instance(&format!("instance-{writer}")) };
                let request = requests::register(writer as u64, SERVICE, vec![instance]);
                newest = client.register(request).await.expect("a registration").into_inner().revision;
            }
        });
    }
    writing.join_all().await.into_iter().max().unwrap_or(0)
}
