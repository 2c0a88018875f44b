//! Many calls at once, given up at any moment, among instances that change what they do: all end, and nothing is left behind.

use std::time::Duration;

use client_sdk::{
    BalancedChannel,
    balance::{LeastRequest, PeakEwma, RoundRobin},
    channel::Standing,
    model::Status as Standstill,
    outlier::OutlierDetection,
    retry::{Retries, Rule},
    runtime::Runtime,
};
use tokio::time::timeout;
use tonic::{Code, Request};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    builder,
    h2_server::H2Server,
    kit::{Act, Cast, Fleet},
};

fn calling(
    channel: &BalancedChannel,
    deadline: Option<Duration>,
) -> tokio::task::JoinHandle<Result<(), tonic::Status>> {
    let mut health = HealthClient::new(channel.clone());
    let mut request = Request::new(HealthCheckRequest::default());
    if let Some(deadline) = deadline {
        request.set_timeout(deadline);
    }
    tokio::spawn(async move { health.check(request).await.map(drop) })
}

async fn nothing_in_flight(channel: &BalancedChannel) {
    let none = async {
        while channel.snapshot().instances.iter().any(|it| it.in_flight > 0) || channel.snapshot().waiting > 0
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(20), none).await.unwrap_or_else(|_| panic!("{:?}", channel.snapshot()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_calls_at_once_share_ten_places_and_those_given_up_anywhere_leave_theirs() {
    let server = H2Server::new(Some(10));
    let fleet = Fleet::of([server.instance().await]);
    let channel = builder(&fleet).queue_limit(2_000).build();
    channel.wait_until(|s| s.chosen() == 1).await;
    let mut rng = fastrand::Rng::with_seed(1);
    for round in 0..5 {
        let calls: Vec<_> = (0..1_000).map(|_| (calling(&channel, None), rng.u8(0..3) == 0)).collect();
        for (call, is_given_up) in &calls {
            if *is_given_up {
                if rng.bool() {
                    tokio::task::yield_now().await;
                }
                call.abort();
            }
        }
        for (call, is_given_up) in calls {
            let ended = timeout(Duration::from_mins(1), call).await.expect("none is forgotten");
            match ended {
                Ok(answer) => answer.unwrap_or_else(|status| panic!("round {round}: {status:?}")),
                Err(error) => assert!(is_given_up && error.is_cancelled(), "{error:?}"),
            }
        }
        nothing_in_flight(&channel).await;
    }
    assert_eq!(server.links().len(), 1, "one connection took all of it");

    // All ten places are there, and no eleventh.
    let mut health = HealthClient::new(channel.clone());
    let mut held = Vec::new();
    for _ in 0..10 {
        let watch = timeout(Duration::from_secs(10), health.watch(HealthCheckRequest::default())).await;
        held.push(watch.expect("a place").expect("begins"));
    }
    server.until(|now| now[0].held == 10).await;
    let beyond = timeout(Duration::from_millis(100), health.watch(HealthCheckRequest::default())).await;
    assert!(beyond.is_err(), "it waits");
    drop(held);
    nothing_in_flight(&channel).await;
}

/// What instances do and may do changes at random, under ejections, the panic threshold, limits, retries and time limits.
#[tokio::test(start_paused = true)]
async fn whatever_instances_do_calls_end_limits_hold_and_all_are_back_when_all_are_well() {
    const IDS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    for seed in 0..30 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let cast = Cast::default();
        for id in IDS {
            cast.set(id, Act::NotFound);
        }
        let fleet = Fleet::of(IDS.iter().map(|id| Cast::instance(id)));
        let detection = OutlierDetection::builder().max_ejection_percent(rng.u32(0..=100));
        let rule = Rule::new().idempotent().per_try_timeout(Duration::from_millis(300)).expect("valid");
        let builder = builder(&fleet)
            .runtime(cast.runtime())
            .outlier_detection(detection.build().expect("valid"))
            .retries(Retries::new().default_rule(rule))
            .max_in_flight(2);
        let runtime = Runtime::default();
        let builder = match seed % 3 {
            0 => builder.policy(RoundRobin::with_seed(seed)),
            1 => builder.policy(LeastRequest::new(&runtime)),
            _ => builder.policy(PeakEwma::new(&runtime)),
        };
        let channel = builder.build();
        channel.wait_until(|s| s.chosen() == 6).await;
        let mut calls = Vec::new();
        for _ in 0..200 {
            let id = IDS[rng.usize(0..6)];
            let acts = [Act::NotFound, Act::Unavailable, Act::Close, Act::Refuse, Act::GoAway, Act::Stuck];
            match rng.u8(0..8) {
                0 => cast.set(id, acts[rng.usize(0..6)]),
                1 => cast.set(id, None),
                2 => {
                    let statuses = [Standstill::Up, Standstill::Up, Standstill::Draining, Standstill::Down];
                    let weights = [1, 2, 0];
                    fleet.set(IDS.iter().map(|id| {
                        let instance = Cast::instance(id).status(statuses[rng.usize(0..4)]);
                        instance.weight(weights[rng.usize(0..3)]).held(rng.u8(0..4) == 0)
                    }));
                }
                _ => {}
            }
            for _ in 0..rng.usize(0..6) {
                calls.push(calling(&channel, Some(Duration::from_secs(3))));
            }
            if rng.u8(0..4) == 0 && !calls.is_empty() {
                calls.swap_remove(rng.usize(0..calls.len())).abort();
            }
            tokio::time::sleep(Duration::from_millis(rng.u64(0..400))).await;
            for instance in channel.snapshot().instances {
                assert!(instance.in_flight <= 2, "seed {seed}: {instance:?}");
            }
        }
        for call in calls {
            let ended = timeout(Duration::from_secs(20), call).await;
            let status =
                ended.unwrap_or_else(|_| panic!("seed {seed}: a call without an end")).expect("no panic");
            assert_ne!(status.expect_err("nobody answers with more").code(), Code::Internal, "seed {seed}");
        }
        nothing_in_flight(&channel).await;

        for id in IDS {
            cast.set(id, Act::NotFound);
        }
        fleet.set(IDS.iter().map(|id| Cast::instance(id)));
        // Five minutes out at most, a minute of backoff, and probes need calls.
        for _ in 0..700 {
            let _ = calling(&channel, Some(Duration::from_secs(3))).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        for instance in channel.snapshot().instances {
            assert_eq!(instance.standing, Standing::Chosen, "seed {seed}: {instance:?}");
        }
        let before = IDS.map(|id| cast.seen(id));
        for _ in 0..300 {
            let _ = calling(&channel, Some(Duration::from_secs(3))).await;
        }
        for (id, before) in IDS.iter().zip(before) {
            assert!(cast.seen(id) >= before + 10, "seed {seed}: {id} gets its share");
        }
    }
}
