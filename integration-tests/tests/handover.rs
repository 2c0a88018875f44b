//! SIGTERM, as the protocol shows it: who is told what, what goes on meanwhile, and that the end comes. (That callers of
//! the SDK notice nothing is shown in `sdk/handover.rs`, that nothing acknowledged is lost in `lifecycle.rs`.)

use std::time::Duration;

use integration_tests::{
    history::{Event, History, Recorder},
    process::{Client, Server, within},
    registrant::Registrant,
    requests::{self, instance, register, register_for},
    server_setup,
    stream::Stream,
    validate::assert_kept,
    watcher::{Over, Watcher},
};
use registry_proto::v1::{self, registry_client::RegistryClient};
use tokio_stream::StreamExt;
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};
use tonic_types::StatusExt;

const SERVICE: &str = "handed-over";
const LIMIT: Duration = Duration::from_mins(1);

type Health = tonic::Streaming<HealthCheckResponse>;

async fn health(server: &Server) -> Health {
    let asked = HealthCheckRequest { service: "registry.v1.Registry.writes".into() };
    let statuses = HealthClient::new(server.channel().await).watch(asked).await.expect("health");
    let mut statuses = statuses.into_inner();
    let first = statuses.next().await.expect("a status").expect("a status");
    assert_eq!(first.status(), ServingStatus::Serving);
    statuses
}

/// Waits until health says that the server stops.
async fn stopping(health: &mut Health) {
    let next = within("health", LIMIT, health.next()).await.expect("a status").expect("a status");
    assert_eq!(next.status(), ServingStatus::NotServing);
}

/// Watchers that stay as long as they may: among so many, one is asked to leave late.
async fn watchers(client: &Client, recorder: &Recorder) -> Vec<Watcher> {
    let mut watchers = Vec::new();
    for number in 0..40 {
        let mut watcher = Watcher::of(&format!("watcher {number}"), SERVICE, Over::Subscribe, recorder);
        watcher.open(client).await.expect("a watch");
        watcher.settle().await;
        watchers.push(watcher);
    }
    watchers
}

fn assert_sent_away(refused: &Status) {
    assert_eq!((refused.code(), requests::reason(refused).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    let retry = refused.get_error_details().retry_info().and_then(|retry| retry.retry_delay);
    assert!(retry.is_some(), "it says when to try again: {refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_streams_leave_calls_and_renewals_go_on_and_new_streams_are_refused() {
    let setup = server_setup!().with("--grace", "12s");
    let server = setup.start().await;
    let client = server.client().await;
    let recorder = Recorder::default();
    // Shorter than the time that it cannot renew.
    let short = register_for(2_000, 1, SERVICE, vec![instance("a")]);
    client.clone().register(short).await.expect("a registration");
    let registrant = Registrant::start(&client, vec![requests::lease(1)], Duration::from_millis(50)).await;
    let registrant = registrant.expect("renewals");
    registrant.renewed(1).await;
    let mut watching = watchers(&client, &recorder).await;
    let mut health = health(&server).await;
    server.terminate();
    stopping(&mut health).await;

    // On the connection that is there, and on one that comes now.
    for (number, mut client) in [(2, client.clone()), (3, server.client().await)] {
        let id = format!("i{number}");
        let answer = client.register(register(number, SERVICE, vec![instance(&id)])).await;
        let written = answer.expect("writes go on").into_inner().revision;
        let read = client.discover(requests::discover(SERVICE)).await.expect("readings go on").into_inner();
        assert!(read.change.expect("a view").revision >= written, "D2");
        let refused = Stream::open(&client).await.map(drop).expect_err("no new stream");
        assert_sent_away(&refused);
        assert_sent_away(&client.watch(requests::watch(SERVICE)).await.map(drop).expect_err("no new watch"));
        let renewal = tokio_stream::once(v1::KeepAliveRequest::default());
        assert_sent_away(&client.keep_alive(renewal).await.map(drop).expect_err("no new renewals"));
    }
    // Whoever was there is told what happens for as long as it stays, and why it is to go.
    let mut told = 0;
    for watcher in &mut watching {
        watcher.drain().await;
        let since = watcher.since_opened();
        assert_eq!(since.iter().filter(|event| matches!(event, Event::GoAway)).count(), 1, "once");
        told += usize::from(watcher.view().items.len() == 3);
    }
    assert!(told > 0, "nobody who stayed was told of what was written meanwhile");
    let ended = within("the end of renewals", LIMIT, registrant.ended()).await;
    assert_sent_away(&ended);
    // The health stream ends by itself, so that whoever looks at it holds nobody up.
    assert!(within("the end of health", LIMIT, health.next()).await.is_none());
    let end = server.ended().await;
    assert_eq!(end.status.code(), Some(0), "{}", end.log);
    assert!(!end.log.contains("cut off"), "{}", end.log);
    let watchers = watching.into_iter().map(Watcher::into_record).collect();
    assert_kept(&History { watchers, ..History::default() });
    let successor = setup.start().await;
    successor.logged("loaded: 1 services, 3 instances, 3 leases").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_streams_have_left_the_server_ends_and_waits_for_nobody() {
    // A whole hour: only those who leave can end it.
    let server = server_setup!().with("--grace", "1h").start().await;
    let client = server.client().await;
    let mut watching = watchers(&client, &Recorder::default()).await;
    let mut health = health(&server).await;
    server.terminate();
    stopping(&mut health).await;
    for watcher in &mut watching {
        while !matches!(within("go_away", LIMIT, watcher.next()).await.expect("it goes on"), Event::GoAway) {}
        watcher.close();
    }
    let end = server.ended().await;
    assert_eq!(end.status.code(), Some(0), "{}", end.log);
    assert!(!end.log.contains("cut off"), "{}", end.log);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_goes_is_cut_off_at_the_end_of_the_grace_period() {
    let setup = server_setup!().with("--grace", "1s");
    let server = setup.start().await;
    let client = server.client().await;
    let big = |number: usize| v1::Instance {
        tags: [("big".to_owned(), "x".repeat(4_000))].into(),
        ..instance(&format!("i{number}"))
    };
    for hundred in 0..4_u64 {
        let instances = (0..100).map(|n| big(usize::try_from(hundred).expect("few") * 100 + n)).collect();
        client.clone().register(register(hundred, SERVICE, instances)).await.expect("a registration");
    }
    // It asks for more than fits into its window, and reads nothing: it never hears that it is to go.
    let channel = server.endpoint().initial_stream_window_size(65_535).connect().await.expect("a connection");
    let deaf = Stream::open(&RegistryClient::new(channel)).await.expect("a stream");
    deaf.ask(requests::subscribe(1, requests::watch(SERVICE))).await;
    let mut health = health(&server).await;
    server.terminate();
    stopping(&mut health).await;
    let written = client.clone().register(register(9, SERVICE, vec![instance("late")])).await;
    let end = server.ended().await;
    drop(deaf);
    assert_eq!(end.status.code(), Some(0), "{}", end.log);
    assert!(end.log.contains("cut off") && end.log.contains("stopped"), "{}", end.log);
    // Nothing acknowledged is lost with it (D1).
    let client = setup.start().await;
    let reading = client.client().await.discover(requests::discover(SERVICE)).await.expect("a reading");
    let all = reading.into_inner().change.expect("a view");
    assert!((400 + u32::from(written.is_ok())..=401).contains(&all.service_instances), "{written:?}");
}
