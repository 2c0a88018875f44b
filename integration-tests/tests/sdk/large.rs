//! A service of 50,000 instances, with everything at its defaults.

use client_sdk::{client::MissingRegistry, discover::Discover as _};
use integration_tests::{requests, server_setup};
use registry_proto::v1;

use crate::kit::{client, discover, greeter, shows, soon};

const INSTANCES: usize = 50_000;
const BATCH: usize = 10_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_thousand_instances_are_followed_and_their_digest_is_right() {
    let registry = server_setup!().start().await;
    let at = [registry.address()];
    let registrant = client(&at);
    let instance = |number: usize, weight| v1::Instance {
        id: format!("i{number:05}"),
        address: format!("10.{}.{}.{}:80", number / 62_500, number / 250 % 250, number % 250 + 1),
        weight: Some(weight),
        tags: [("zone".to_owned(), format!("z{}", number % 3))].into(),
        ..v1::Instance::default()
    };
    let early = discover(&at);
    let mut early_view = early.view(&greeter()).expect("followed");
    for (lease, from) in (0u64..).zip((0..INSTANCES).step_by(BATCH)) {
        let batch = (from..from + BATCH).map(|number| instance(number, 1)).collect();
        let request = requests::register(lease, "greeter", batch);
        soon("a batch", registrant.register(request, MissingRegistry::FailFast)).await.expect("registered");
    }
    // One followed from the beginning, in deltas; one comes now, to a snapshot in parts.
    let late = discover(&at);
    let mut late_view = late.view(&greeter()).expect("followed");
    for view in [&mut early_view, &mut late_view] {
        shows(view, "all instances", |all| all.len() == INSTANCES).await;
    }
    // A small change, and one of 10,000 at once.
    let change = requests::register(0, "greeter", vec![instance(7, 5)]);
    soon("a change", registrant.register(change, MissingRegistry::FailFast)).await.expect("registered");
    let many = (BATCH..2 * BATCH).map(|number| instance(number, 2)).collect();
    let change = requests::register(1, "greeter", many);
    soon("a change", registrant.register(change, MissingRegistry::FailFast)).await.expect("registered");
    for view in [&mut early_view, &mut late_view] {
        shows(view, "the changes", |all| {
            all.len() == INSTANCES && all.iter().map(|i| i.weight as usize - 1).sum::<usize>() == 4 + BATCH
        })
        .await;
    }
    for discover in [early, late] {
        assert_eq!((discover.resyncs(), discover.streams()), (0, 1), "W8: every digest was right");
    }
}
