//! The estimate and each decision, as metrics and a snapshot show them.

#![allow(clippy::float_cmp)] // small whole numbers

use std::{collections::BTreeMap, time::Duration};

use client_sdk::pool::ServiceState;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tokio::time::sleep;
use tower::Service as _;

use crate::{
    kit::{AT_ONCE, World},
    steady::{hold, settle},
};

/// Gauges, and what was counted since the last look.
fn counted(snapshotter: &Snapshotter) -> BTreeMap<String, f64> {
    let all = snapshotter.snapshot().into_vec().into_iter().filter_map(|(key, _, _, value)| {
        let key = key.key();
        assert!(key.labels().any(|label| label.key() == "pool" && label.value() == "workers"), "{key}");
        let rest: Vec<_> = key.labels().filter(|it| it.key() != "pool").map(metrics::Label::value).collect();
        let name = key.name().strip_prefix("client_sdk_pool_")?;
        let value = match value {
            DebugValue::Counter(count) => f64::from(u32::try_from(count).expect("few")),
            DebugValue::Gauge(value) => value.into_inner(),
            DebugValue::Histogram(_) => unreachable!("none"),
        };
        Some((format!("{name} {}", rest.join(" ")).trim_end().to_owned(), value))
    });
    all.collect()
}

#[tokio::test(start_paused = true)]
async fn the_snapshot_shows_services_demand_and_what_was_decided() {
    let world = World::of(1);
    let pool = world.steady().build().unwrap();
    let held = [hold(&pool), hold(&pool)];
    pool.wait_until(|now| now.ready() == 3).await;
    settle().await;
    let now = pool.snapshot();
    let states: Vec<_> = now.services.iter().map(|it| (it.id, it.state, it.in_flight)).collect();
    let (busy, ready) = (ServiceState::Busy, ServiceState::Ready);
    assert_eq!(states, [(0, busy, 1), (1, busy, 1), (2, ready, 0)]);
    assert_eq!((now.in_flight, now.waiting, now.making, now.draining()), (2, 0, 0, 0));
    assert_eq!((now.made, now.grown, now.replaced, now.shrunk, now.lost), (3, 3, 0, 0, 0));
    let last = now.last.expect("it grew");
    assert_eq!((last.from, last.to), (2, 3));
    assert!(last.estimate > 1.9 && last.estimate < 2.0, "two are not enough: {last:?}");
    assert_eq!(now.idle_time, Duration::from_secs(30));
    sleep(Duration::from_secs(20)).await;
    assert!((pool.snapshot().estimate - 2.0).abs() < 0.01, "{:?}", pool.snapshot());
    world.gate.add_permits(2);
    for call in held {
        call.await.unwrap().unwrap();
    }
    let (before, shrunk) = (last.at, pool.wait_until(|now| now.shrunk == 1).await);
    let last = shrunk.last.expect("it shrank");
    assert_eq!((last.from, last.to), (3, 2));
    assert!(last.estimate < 1.75 && last.at >= before + Duration::from_secs(30), "{last:?}");
    assert!(format!("{pool:?}").contains("SteadyPool"));
}

#[tokio::test(start_paused = true)]
async fn services_demand_decisions_failures_and_refusals_are_counted() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let world = World::of(1);
    let mut pool = world.steady().name("workers").max(3).queue_limit(1).build().unwrap();
    let held = hold(&pool);
    settle().await;
    let waits = hold(&pool);
    settle().await;
    assert!(pool.call(AT_ONCE).await.is_err());
    let then = counted(&snapshotter);
    assert_eq!(then["requests_in_flight"], 1.0);
    assert_eq!(then["requests_waiting"], 1.0);
    assert_eq!(then["requests_refused_total queue_full"], 1.0);
    pool.wait_until(|now| now.ready() == 3).await;
    world.kill(2);
    sleep(Duration::from_secs(30)).await;
    let then = counted(&snapshotter);
    assert_eq!(then["services ready"], 3.0);
    assert_eq!((then["services coming"], then["services draining"]), (0.0, 0.0));
    assert!((then["demand"] - 2.0).abs() < 0.01);
    assert_eq!((then["services_made_total"], then["services_lost_total"]), (3.0, 1.0));
    assert_eq!((then["grown_total"], then["replaced_total"]), (2.0, 1.0));
    world.gate.add_permits(2);
    held.await.unwrap().unwrap();
    waits.await.unwrap().unwrap();
    world.fail_makes(true);
    for id in 0..10 {
        world.kill(id);
    }
    sleep(Duration::from_secs(5)).await;
    assert!(counted(&snapshotter)["make_failures_total"] >= 1.0);
}

#[tokio::test(start_paused = true)]
async fn what_is_tried_again_or_replaced_is_no_growth() {
    let world = World::of(1);
    world.fail_makes(true);
    let pool = world.steady().max_wait(Duration::from_hours(1)).build().unwrap();
    sleep(Duration::from_mins(2)).await;
    let now = pool.snapshot();
    let first = now.last.expect("the first one");
    assert_eq!((now.grown, now.made, first.from, first.to), (1, 0, 0, 1), "{now:?}");
    let tried = u64::try_from(world.attempts()).unwrap();
    assert!(tried > 5 && (tried - 1..=tried).contains(&now.replaced), "{tried} attempts: {now:?}");
    world.fail_makes(false);
    pool.wait_until(|now| now.ready() == 1).await;
    let before = pool.snapshot().replaced;
    world.kill(0);
    pool.wait_until(|now| now.lost == 1 && now.ready() == 1).await;
    let now = pool.snapshot();
    assert_eq!((now.grown, now.replaced, now.last), (1, before + 1, Some(first)), "{now:?}");

    // One that was to come and could not be made is no growth when it is tried again, whatever grew meanwhile.
    world.fail_makes(true);
    let held: Vec<_> = (0..3).map(|_| hold(&pool)).collect();
    sleep(Duration::from_mins(1)).await;
    let now = pool.snapshot();
    assert_eq!((now.ready(), now.grown, now.last.map(|it| it.to)), (1, 3, Some(3)), "{now:?}");
    world.fail_makes(false);
    pool.wait_until(|now| now.ready() == 4).await;
    assert_eq!(pool.snapshot().grown, 4);
    world.gate.add_permits(3);
    for call in held {
        call.await.unwrap().unwrap();
    }
}

/// Those that were lost and not missed are gone: what comes by demand later is growth.
#[tokio::test(start_paused = true)]
async fn what_grows_after_a_loss_that_nobody_missed_is_growth() {
    let world = World::of(1);
    let pool = world.steady().build().unwrap();
    let held: Vec<_> = (0..5).map(|_| hold(&pool)).collect();
    pool.wait_until(|now| now.ready() == 6).await;
    world.gate.add_permits(5);
    for call in held {
        call.await.unwrap().unwrap();
    }
    sleep(Duration::from_secs(15)).await;
    (0..3).for_each(|id| world.kill(id));
    pool.wait_until(|now| now.lost == 3).await;
    sleep(Duration::from_secs(2)).await;
    let before = pool.snapshot();
    assert_eq!((before.ready(), before.grown, before.replaced, before.shrunk), (3, 6, 0, 0), "{before:?}");
    assert_eq!(before.last.map(|it| it.to), Some(6));
    let held: Vec<_> = (0..5).map(|_| hold(&pool)).collect();
    pool.wait_until(|now| now.ready() == 6).await;
    let now = pool.snapshot();
    assert_eq!((now.grown, now.replaced), (9, 0), "{now:?}");
    let last = now.last.expect("it grew");
    assert!(last.to == 6 && last.from >= 3 && last.at > before.last.unwrap().at, "{now:?}");
    world.gate.add_permits(5);
    for call in held {
        call.await.unwrap().unwrap();
    }
}
