//! A service of 50,000 instances, read and followed with the message limits that every gRPC client has by default.

use integration_tests::{
    history::{Event, History, Recorder, Told},
    process::{Client, MAX_MESSAGE, Server},
    requests, server_setup,
    validate::assert_kept,
    watcher::{Over, Watcher},
    writers,
};
use prost::Message;
use registry_proto::v1::{self, registry_client::RegistryClient};

const INSTANCES: usize = 50_000;
const REQUEST: usize = 10_000;
const SERVICE: &str = "large";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_of_50_000_is_read_and_followed_with_default_limits() {
    let server = server_setup!().start().await;
    // Refuses what has more than 4 MiB, as any client does that nobody set differently.
    let client = RegistryClient::new(server.channel().await);
    let recorder = Recorder::default();
    for lease in 0..INSTANCES / REQUEST {
        register(&client, lease, "1").await;
    }

    // Pages.
    let first = client.clone().discover(requests::discover(SERVICE)).await.expect("a page").into_inner();
    assert!(!first.next_page_token.is_empty(), "so many instances do not fit on a page");
    assert!(first.encoded_len() < MAX_MESSAGE);
    let reading = writers::read(&client, SERVICE, 1, &recorder).await.expect("all pages");
    assert_eq!(reading.items.len(), INSTANCES);
    let refusing = server.client().await;
    let same = writers::read(&refusing, SERVICE, 1, &recorder).await.expect("no page has 1 MiB");
    assert_eq!(same.items, reading.items);

    // Snapshots, in parts.
    let mut watchers = [
        followed(&client, Over::Watch, &recorder).await,
        followed(&client, Over::Subscribe, &recorder).await,
        followed(&refusing, Over::Watch, &recorder).await,
        followed(&refusing, Over::Subscribe, &recorder).await,
    ];
    for watcher in &watchers {
        assert_eq!(watcher.view().items.len(), INSTANCES);
        assert_eq!(watcher.view().digest, reading.digest);
        assert!(last_told(watcher).parts > 1);
    }

    // Thousands that change, and thousands that leave, at one revision each.
    let updated = register(&client, 0, "2").await;
    for watcher in &mut watchers {
        watcher.reach(updated).await;
        let told = last_told(watcher);
        assert!(!told.snapshot && told.parts > 1, "a delta in parts");
        assert_eq!(told.put.len(), REQUEST);
    }
    let removed = v1::DeregisterRequest { lease_id: requests::lease(1), ..v1::DeregisterRequest::default() };
    let removed = client.clone().deregister(removed).await.expect("a lease is removed").into_inner();
    assert_eq!(removed.removed as usize, REQUEST);
    for watcher in &mut watchers {
        watcher.reach(removed.revision).await;
        let told = last_told(watcher);
        assert!(!told.snapshot && told.parts > 1, "a delta in parts");
        assert_eq!(told.removed.len(), REQUEST);
        assert_eq!(watcher.view().items.len(), INSTANCES - REQUEST);
    }
    let last = writers::read(&client, SERVICE, 1, &recorder).await.expect("all pages");
    assert!(watchers.iter().all(|watcher| watcher.view().digest == last.digest));
    let watchers = watchers.map(Watcher::into_record).to_vec();
    assert_kept(&History { watchers, readings: vec![reading, last], ..History::default() });
    the_limits_are_not_the_tests_own(&server).await;
}

/// A client that refuses 1 KiB fails: the limits above are really looked at.
async fn the_limits_are_not_the_tests_own(server: &Server) {
    let mut client = RegistryClient::new(server.channel().await).max_decoding_message_size(1 << 10);
    let refused = client.discover(requests::discover(SERVICE)).await.expect_err("a page has more than 1 KiB");
    assert_eq!(refused.code(), tonic::Code::OutOfRange);
}

async fn followed(client: &Client, over: Over, recorder: &Recorder) -> Watcher {
    let mut watcher = Watcher::of(&format!("over {over:?}"), SERVICE, over, recorder);
    watcher.open(client).await.expect("a watch");
    watcher.settle().await;
    watcher
}

fn last_told(watcher: &Watcher) -> &Told {
    let told = watcher.since_opened().iter().rev().find_map(|event| match event {
        Event::Told(told) => Some(told),
        _ => None,
    });
    told.expect("the watcher was told something")
}

async fn register(client: &Client, lease: usize, tag: &str) -> u64 {
    let instance = |number: usize| {
        let id = format!("a-rather-long-name-of-an-instance-{lease}-{number:05}");
        let tags = [("tag".to_owned(), tag.to_owned())].into();
        v1::Instance { tags, ..requests::instance(&id) }
    };
    let instances = (0..REQUEST).map(instance).collect();
    let request = requests::register(lease as u64, SERVICE, instances);
    client.clone().register(request).await.expect("a full batch is taken").into_inner().revision
}
