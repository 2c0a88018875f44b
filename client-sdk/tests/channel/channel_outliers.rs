//! Instances that fail too much, under the channel: out, one probe, back. On paused time and without a network.

use std::time::Duration;

use client_sdk::{
    BalancedChannel,
    balance::{LoadBalance, LoadBalanceError, Maglev},
    channel::{ChannelBuilder, Standing},
    model::{Address, Change, Endpoint},
    outlier::EjectionCause,
};
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    builder,
    kit::{Act, Always, Cast, Fleet, who},
};

/// How all answer that are well, by the code of the status.
const WELL: Code = Code::NotFound;

fn fleet(cast: &Cast, ids: &[&str]) -> Fleet {
    for id in ids {
        cast.set(id, Act::NotFound);
    }
    Fleet::of(ids.iter().map(|id| Cast::instance(id)))
}

async fn connected(builder: ChannelBuilder<Fleet>, cast: &Cast, count: usize) -> BalancedChannel {
    // Each call goes to one instance, so that it can be told what becomes of that.
    let channel = builder.runtime(cast.runtime()).without_retries().build();
    channel.wait_until(|s| s.chosen() == count).await;
    channel
}

async fn code(channel: &BalancedChannel) -> Code {
    who(channel).await.expect_err("nobody answers with more than a status").code()
}

/// Until the driver had its turn.
async fn settled() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

async fn eject(channel: &BalancedChannel, cast: &Cast, id: &str) {
    cast.set(id, Act::Unavailable);
    let before = cast.seen(id);
    while cast.seen(id) < before + 5 {
        code(channel).await;
    }
    settled().await;
    assert_eq!(standing(channel, id), Standing::Ejected);
}

fn standing(channel: &BalancedChannel, id: &str) -> Standing {
    channel.snapshot().instance(id).expect("there").standing
}

async fn probing(channel: &BalancedChannel, id: &str) {
    channel.wait_until(|s| s.instance(id).expect("there").standing == Standing::Probing).await;
}

#[tokio::test(start_paused = true)]
async fn five_failures_in_a_row_eject_and_the_probe_decides() {
    let cast = Cast::default();
    let fleet = fleet(&cast, &["a", "b", "c"]);
    let channel = connected(builder(&fleet), &cast, 3).await;
    eject(&channel, &cast, "a").await;
    let seen = cast.seen("a");
    for _ in 0..30 {
        assert_eq!(code(&channel).await, WELL);
    }
    assert_eq!(cast.seen("a"), seen, "no call at all");
    probing(&channel, "a").await;
    let mut codes = Vec::new();
    while cast.seen("a") == seen {
        codes.push(code(&channel).await);
    }
    assert_eq!(codes.pop(), Some(Code::Unavailable), "the probe");
    assert!(codes.iter().all(|code| *code == WELL));
    settled().await;
    let ejection = channel.snapshot().instance("a").expect("there").ejection.expect("again");
    assert_eq!((ejection.cause, ejection.times), (EjectionCause::Probe, 2));
    cast.set("a", Act::NotFound);
    probing(&channel, "a").await;
    let seen = cast.seen("a");
    for _ in 0..30 {
        assert_eq!(code(&channel).await, WELL);
    }
    assert_eq!(standing(&channel, "a"), Standing::Chosen);
    assert!(cast.seen("a") >= seen + 9, "its third of them again");
}

#[tokio::test(start_paused = true)]
async fn lost_and_failed_connections_are_no_reason_to_eject_and_do_not_use_up_the_share() {
    let cast = Cast::default();
    let fleet = fleet(&cast, &["a", "b", "c", "d"]);
    let soon = Duration::from_millis(1);
    let channel = connected(builder(&fleet).backoff(soon, soon), &cast, 4).await;
    // Its connection is lost with each call.
    cast.set("a", Act::Close);
    for _ in 0..60 {
        code(&channel).await;
        settled().await;
    }
    assert!(cast.seen("a") >= 10, "it was tried again and again");
    assert!(channel.snapshot().instance("a").expect("there").ejection.is_none());
    // Then it cannot even be connected.
    cast.set("a", None);
    code(&channel).await;
    eject(&channel, &cast, "b").await;
    let snapshot = channel.snapshot();
    let a = snapshot.instance("a").expect("there");
    assert_eq!((a.standing, a.ejection), (Standing::NotConnected, None));
}

#[tokio::test(start_paused = true)]
async fn a_missed_keepalive_is_no_reason_to_eject() {
    let cast = Cast::default();
    let fleet = fleet(&cast, &["a", "b"]);
    let channel = connected(builder(&fleet).policy(Always("a")), &cast, 2).await;
    cast.set("a", Act::Stuck);
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let channel = channel.clone();
            tokio::spawn(async move { code(&channel).await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.expect("no panic"), Code::Unavailable, "lost with its connection");
    }
    settled().await;
    assert!(channel.snapshot().instances.iter().all(|it| it.ejection.is_none()));
}

#[tokio::test(start_paused = true)]
async fn an_ejected_instance_gets_no_retry() {
    let cast = Cast::default();
    let fleet = fleet(&cast, &["a", "b", "c"]);
    let channel = connected(builder(&fleet), &cast, 3).await;
    eject(&channel, &cast, "a").await;
    let seen = cast.seen("a");
    cast.set("b", Act::Refuse);
    cast.set("c", Act::Refuse);
    let began = tokio::time::Instant::now();
    for _ in 0..5 {
        assert_eq!(code(&channel).await, Code::Unavailable, "both refused it");
    }
    assert_eq!(began.elapsed(), Duration::ZERO, "nor is it waited for");
    assert!(cast.seen("b") >= 5 && cast.seen("c") >= 5, "each was given to both");
    assert_eq!(cast.seen("a"), seen);
}

#[tokio::test(start_paused = true)]
async fn calls_that_run_out_of_time_count_and_a_stream_that_goes_on_keeps_nobody_out() {
    let cast = Cast::default();
    let fleet = fleet(&cast, &["a", "b"]);
    let channel = connected(builder(&fleet).policy(Always("a")), &cast, 2).await;
    cast.set("a", Act::Begin);
    let within = |timeout: Option<Duration>| {
        let mut client = HealthClient::new(channel.clone());
        async move {
            let mut request = tonic::Request::new(HealthCheckRequest::default());
            if let Some(timeout) = timeout {
                request.set_timeout(timeout);
            }
            client.check(request).await.map(drop)
        }
    };
    for _ in 0..5 {
        let status: Status = within(Some(Duration::from_secs(1))).await.expect_err("never ends");
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    }
    settled().await;
    assert_eq!(standing(&channel, "a"), Standing::Ejected);
    probing(&channel, "a").await;
    let stream = tokio::spawn(within(None));
    settled().await;
    cast.set("a", Act::NotFound);
    let seen = cast.seen("a");
    assert_eq!(code(&channel).await, WELL);
    assert_eq!(cast.seen("a"), seen, "by the other, for the probe is under way");
    tokio::time::sleep(Duration::from_secs(41)).await;
    assert_eq!(code(&channel).await, WELL);
    assert_eq!(cast.seen("a"), seen + 1, "another is the probe");
    settled().await;
    assert_eq!(standing(&channel, "a"), Standing::Chosen);
    assert!(!stream.is_finished());
}

#[tokio::test(start_paused = true)]
async fn for_each_that_is_ejected_one_more_is_connected_and_given_up_when_it_is_back() {
    let cast = Cast::default();
    let fleet = fleet(&cast, &["a", "b", "c", "d", "e"]);
    let channel = connected(builder(&fleet).connect_ahead(2), &cast, 2).await;
    let chosen = || {
        let snapshot = channel.snapshot();
        let chosen = snapshot.instances.iter().filter(|it| it.standing == Standing::Chosen);
        chosen.map(|it| it.instance.id.to_string()).collect::<Vec<_>>()
    };
    let before = chosen();
    eject(&channel, &cast, &before[0]).await;
    channel.wait_until(|s| s.chosen() == 2).await;
    assert!(!chosen().contains(&before[0]), "another in its place");
    cast.set(&before[0], Act::NotFound);
    probing(&channel, &before[0]).await;
    assert_eq!(chosen().len(), 2, "until it is known to be well");
    while channel.snapshot().instance(&before[0]).expect("there").ejection.is_some() {
        code(&channel).await;
        settled().await;
    }
    assert_eq!(chosen(), before);
    let spare = channel.snapshot().instances.iter().filter(|it| it.standing == Standing::Spare).count();
    assert_eq!(spare, 3);
}

#[tokio::test(start_paused = true)]
async fn a_hash_policys_keys_go_elsewhere_meanwhile_and_come_back() {
    let cast = Cast::default();
    let fleet = fleet(&cast, &["a", "b", "c"]);
    let endpoint = Endpoint::builder("greeter").hash_key(7).build();
    let channel = BalancedChannel::builder(std::sync::Arc::new(fleet.clone()), endpoint);
    let channel = channel.policy(Maglev::new()).runtime(cast.runtime()).build();
    assert_eq!(code(&channel).await, WELL);
    let home = ["a", "b", "c"].into_iter().find(|id| cast.seen(id) == 1).expect("one of them");
    eject(&channel, &cast, home).await;
    let seen = cast.seen(home);
    for _ in 0..10 {
        assert_eq!(code(&channel).await, WELL);
    }
    assert_eq!(cast.seen(home), seen);
    cast.set(home, Act::NotFound);
    probing(&channel, home).await;
    for _ in 0..10 {
        assert_eq!(code(&channel).await, WELL);
    }
    assert_eq!(cast.seen(home), seen + 10, "the first was the probe");
}

/// Names the same addresses for ever.
struct Named(Vec<Address>);

impl LoadBalance<Fleet> for Named {
    type InstanceIter = std::vec::IntoIter<Address>;

    async fn get_picker(&self, _: &Endpoint, _: &Fleet) -> Result<Self::InstanceIter, LoadBalanceError> {
        Ok(self.0.clone().into_iter())
    }

    fn rebalance(&self, _: Change<()>) {}
}

#[tokio::test(start_paused = true)]
async fn of_a_foreign_load_balancers_addresses_those_ejected_are_skipped() {
    let cast = Cast::default();
    let fleet = fleet(&cast, &["a", "b"]);
    let named = ["a:1", "b:1"].map(|it| it.parse().expect("valid")).to_vec();
    let channel = connected(builder(&fleet).load_balancer(Named(named)), &cast, 2).await;
    eject(&channel, &cast, "a").await;
    let seen = cast.seen("a");
    for _ in 0..10 {
        assert_eq!(code(&channel).await, WELL);
    }
    assert_eq!((cast.seen("a"), cast.seen("b")), (seen, 10));
    cast.set("a", Act::NotFound);
    probing(&channel, "a").await;
    for _ in 0..10 {
        assert_eq!(code(&channel).await, WELL);
    }
    assert_eq!(cast.seen("a"), seen + 10);
}

#[tokio::test(start_paused = true)]
async fn ejections_are_counted_by_cause_and_the_gauge_ends_at_nothing() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let cast = Cast::default();
    let fleet = fleet(&cast, &["a", "b"]);
    let channel = connected(builder(&fleet), &cast, 2).await;
    let counted = || {
        let all = snapshotter.snapshot().into_vec().into_iter().filter_map(|(key, _, _, value)| {
            let key = key.key();
            let label = key.labels().find(|label| label.key() == "cause").map(metrics::Label::value);
            match (key.name(), value) {
                ("client_sdk_ejections_total", DebugValue::Counter(count)) if count > 0 => {
                    Some(format!("{count} by {}", label.expect("a cause")))
                }
                ("client_sdk_instances_ejected", DebugValue::Gauge(gauge)) => Some(format!("{gauge} out")),
                _ => None,
            }
        });
        let mut all: Vec<_> = all.collect();
        all.sort();
        all
    };
    eject(&channel, &cast, "a").await;
    assert_eq!(counted(), ["1 by consecutive_failures", "1 out"]);
    drop(channel);
    settled().await;
    assert!(counted().contains(&"-1 out".to_owned()), "as it changed since the last look");
}
