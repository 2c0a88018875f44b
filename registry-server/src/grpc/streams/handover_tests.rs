//! How a server that stops sends its streams away: spread, each told, each ended. On paused time and seeds.

use std::{collections::BTreeSet, sync::Arc};

use prost::Message as _;
use registry_proto::v1::{self, subscribe_response::Response};
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::Status;
use tonic_types::StatusExt as _;

use super::{
    fuzzing::{Asked, Publisher, watch_service},
    *,
};
use crate::{
    grpc::{
        decode,
        fields::Path,
        seats::Seat,
        until::{Until, leaving},
    },
    runtime::{Runtime, SystemClock, TokioSpawn},
};

const STREAMS: usize = 2_000;
const SPREAD: Duration = Duration::from_secs(5);

fn runtime(seed: u64) -> Runtime {
    Runtime::new(SystemClock::default(), TokioSpawn, seed)
}

/// When each stream of a server that stops was asked to leave for, and when it was ended although its client stayed.
async fn subscribers(seed: u64) -> Vec<(Duration, Duration)> {
    let (runtime, publisher, seats) = (runtime(seed), Publisher::new(), Arc::default());
    let (stop, stopping) = watch::channel(None);
    let (ended, mut ends) = tokio::sync::mpsc::channel(STREAMS);
    for number in 0..STREAMS {
        let seat = Seat::take(&seats, STREAMS).expect("free");
        let (hub, stopping) = (publisher.hub.clone(), stopping.clone());
        let mut stream =
            SubscribeStream::new(hub, &publisher.watchers, Asked::default(), stopping, runtime.clone(), seat);
        let (ended, clock) = (ended.clone(), runtime.clone());
        runtime.spawn(async move {
            let (begun, mut told) = (clock.now().mono, Vec::new());
            while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await {
                let frame = frame.expect("it ends without an error");
                let said = v1::SubscribeResponse::decode([frame.prefix, frame.shared].concat().as_slice());
                if let Some(Response::GoAway(go_away)) = said.expect("a message").response {
                    told.push(go_away.delay.and_then(|delay| delay.try_into().ok()).expect("a delay"));
                }
            }
            let [delay] = told.as_slice() else { panic!("told {told:?}, not once") };
            let lived = Duration::from_millis(clock.now().mono - begun);
            ended.send((number, (*delay, lived))).await.expect("the test goes on");
        });
    }
    stop.send_replace(Some(SPREAD));
    let mut all = Vec::new();
    for _ in 0..STREAMS {
        all.push(ends.recv().await.expect("all of them end"));
    }
    all.sort_unstable_by_key(|(number, _)| *number);
    all.into_iter().map(|(_, it)| it).collect()
}

/// Each tenth of the time has about a tenth of those who leave.
fn assert_spread(leaving: impl Iterator<Item = Duration>) {
    let mut tenths = [0; 10];
    for delay in leaving {
        assert!(delay <= SPREAD, "{delay:?} is later than all are to have left");
        let tenth = (delay.as_secs_f64() / SPREAD.as_secs_f64() * 10.0).min(9.0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 9
        let tenth = tenth as usize;
        tenths[tenth] += 1;
    }
    let even = STREAMS / 10;
    assert!(tenths.iter().all(|tenth| (even * 3 / 4..=even * 5 / 4).contains(tenth)), "{tenths:?}");
}

#[tokio::test(start_paused = true)]
async fn subscribers_are_asked_to_leave_spread_evenly_and_who_stays_is_ended() {
    let first = subscribers(1).await;
    assert_spread(first.iter().map(|(delay, _)| *delay));
    for (delay, lived) in &first {
        let late = lived.saturating_sub(*delay);
        assert!(
            lived >= delay && late <= leave_margin(SPREAD) + Duration::from_millis(2),
            "{delay:?} {lived:?}"
        );
    }
    assert_eq!(subscribers(1).await, first, "the same seed, the same delays");
    assert_ne!(subscribers(2).await, first);
}

#[tokio::test(start_paused = true)]
async fn watches_end_at_once_and_are_told_when_to_come_back_spread_evenly() {
    let (runtime, publisher, seats) = (runtime(1), Publisher::new(), Arc::default());
    let (stop, stopping) = watch::channel(None);
    let watched = decode::watch(&watch_service(), Path::Root).expect("a good request");
    let streams: Vec<_> = (0..STREAMS)
        .map(|_| {
            let seat = Seat::take(&seats, STREAMS).expect("free");
            let hub = publisher.hub.clone();
            WatchStream::open(hub, &publisher.watchers, &watched, stopping.clone(), runtime.clone(), seat)
                .expect("a watch")
        })
        .collect();
    stop.send_replace(Some(SPREAD));
    let mut delays = Vec::new();
    for mut stream in streams {
        // Tokio makes a task that never rests wait now and then.
        tokio::task::yield_now().await;
        let said = std::future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await;
        let status = said.expect("it says why").expect_err("it ends");
        assert_eq!(status.code(), tonic::Code::Unavailable);
        let details = status.get_error_details();
        assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("SHUTTING_DOWN"));
        delays.push(details.retry_info().and_then(|retry| retry.retry_delay).expect("a delay"));
        assert!(std::future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await.is_none());
    }
    assert_spread(delays.into_iter());
}

#[tokio::test(start_paused = true)]
async fn renewals_go_on_until_each_stream_of_them_is_ended_spread_evenly() {
    let runtime = runtime(1);
    let (stop, stopping) = watch::channel(None);
    let (ended, mut ends) = tokio::sync::mpsc::channel(STREAMS);
    for _ in 0..STREAMS {
        let (ended, clock) = (ended.clone(), runtime.clone());
        // An answer every 100 ms.
        let answers = answers();
        let mut stream = Until::new(answers, leaving(stopping.clone(), runtime.clone()));
        runtime.spawn(async move {
            let begun = clock.now().mono;
            let (mut answers, mut last) = (0, None);
            while let Some(said) = std::future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await {
                match said {
                    Ok(()) => answers += 1,
                    Err(status) => last = Some(status),
                }
            }
            let lived = Duration::from_millis(clock.now().mono - begun);
            let status: Status = last.expect("it says why it ends");
            assert_eq!(status.code(), tonic::Code::Unavailable);
            assert!(status.get_error_details().retry_info().is_some());
            assert!(Duration::from_millis(100) * (answers + 1) >= lived, "{answers} answers in {lived:?}");
            ended.send(lived).await.expect("the test goes on");
        });
    }
    stop.send_replace(Some(SPREAD));
    let mut lives = Vec::new();
    for _ in 0..STREAMS {
        lives.push(ends.recv().await.expect("all of them end"));
    }
    assert_eq!(lives.iter().filter(|lived| **lived > SPREAD + Duration::from_millis(2)).count(), 0);
    assert!(lives.iter().collect::<BTreeSet<_>>().len() > STREAMS / 4, "they do not end together");
    assert_spread(lives.into_iter().map(|lived| lived.min(SPREAD)));
}

fn answers() -> impl Stream<Item = Result<(), Status>> {
    let ticks =
        tokio_stream::wrappers::IntervalStream::new(tokio::time::interval(Duration::from_millis(100)));
    tokio_stream::StreamExt::map(ticks, |_| Ok(()))
}
