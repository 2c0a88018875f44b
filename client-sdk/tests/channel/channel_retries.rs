//! Which calls are sent again, where to and how often, and what the caller gets if nothing comes of it.

use std::time::Duration;

use client_sdk::{
    channel::{BalancedChannel, ChannelError},
    retry::{Retries, Rule},
};
use tokio::time::Instant;
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_client::ServerReflectionClient};

use crate::{
    kit::Always,
    scripted::{Does, Stage, ask, ask_with},
    typed,
};

const UNAVAILABLE: Does = Does::Refuses(Code::Unavailable, None);

fn ruled(rule: Rule) -> Retries {
    Retries::new().default_rule(rule)
}

fn idempotent() -> Rule {
    Rule::new().idempotent()
}

/// Calls that go to the first of these hosts, if they may.
async fn scene(names: &[&'static str], retries: Retries) -> (Stage, BalancedChannel) {
    let stage = Stage::of(names);
    let channel = stage.builder().policy(Always(names[0])).retries(retries).build();
    channel.wait_until(|now| now.chosen() == names.len()).await;
    (stage, channel)
}

fn millis(since: Instant) -> u128 {
    since.elapsed().as_millis()
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_instance_costs_the_caller_nothing() {
    let (stage, channel) = scene(&["a", "b"], Retries::new()).await;
    stage.host("a").does(UNAVAILABLE);
    assert_eq!(ask(&channel).await.expect("by the other"), "b");
    assert_eq!(stage.asked(), [("a", 1), ("b", 1)]);
    assert!(stage.host("a").asked()[0].get("grpc-previous-rpc-attempts").is_none());
    let previous = stage.host("b").asked()[0].get("grpc-previous-rpc-attempts").cloned();
    assert_eq!(previous.expect("it is told"), "1");
}

#[tokio::test(start_paused = true)]
async fn other_codes_are_answers_unless_the_methods_rule_names_them() {
    for code in
        [Code::NotFound, Code::Internal, Code::ResourceExhausted, Code::DeadlineExceeded, Code::Unknown]
    {
        let (stage, channel) = scene(&["a", "b"], Retries::new()).await;
        stage.host("a").does(Does::Refuses(code, None));
        let status = ask(&channel).await.expect_err("as it says");
        assert_eq!((status.code(), status.message()), (code, "a refuses"));
        assert_eq!(stage.asked(), [("a", 1)]);
    }
    let aborted = Rule::new().codes([Code::Aborted]).expect("valid");
    let retries = Retries::new().method("/grpc.health.v1.Health/Check", aborted).expect("valid");
    let (stage, channel) = scene(&["a", "b"], retries).await;
    stage.host("a").does(Does::Refuses(Code::Aborted, None));
    assert_eq!(ask(&channel).await.expect("by the other"), "b");
    stage.host("a").does(UNAVAILABLE);
    assert_eq!(ask(&channel).await.expect_err("its rule does not name it").message(), "a refuses");
}

#[tokio::test(start_paused = true)]
async fn without_retries_the_first_answer_counts() {
    for retries in [Retries::none(), ruled(Rule::new().max_attempts(1).expect("valid"))] {
        let (stage, channel) = scene(&["a", "b"], retries).await;
        stage.host("a").does(UNAVAILABLE);
        assert_eq!(ask(&channel).await.expect_err("as it says").message(), "a refuses");
        assert_eq!(stage.asked(), [("a", 1)]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_real_answer_is_kept_when_all_had_it_when_attempts_run_out_and_when_the_budget_is_spent() {
    let all = ["a", "b", "c", "d"];
    let fail =
        |stage: &Stage, names: &[&str]| names.iter().for_each(|name| stage.host(name).does(UNAVAILABLE));
    let (stage, channel) = scene(&all, Retries::new()).await;
    fail(&stage, &all);
    let status = ask(&channel).await.expect_err("three attempts");
    assert!(status.message().ends_with(" refuses") && ChannelError::of(&status).is_none(), "{status:?}");
    assert_eq!(stage.asked().iter().map(|(_, calls)| calls).sum::<usize>(), 3);

    let (stage, channel) = scene(&["a", "b"], ruled(Rule::new().max_attempts(10).expect("valid"))).await;
    fail(&stage, &["a", "b"]);
    assert_eq!(ask(&channel).await.expect_err("all had it").message(), "b refuses");
    assert_eq!(stage.asked(), [("a", 1), ("b", 1)]);

    let (stage, channel) = scene(&["a", "b"], Retries::new().budget(0.0, 0).expect("valid")).await;
    fail(&stage, &["a", "b"]);
    let status = ask(&channel).await.expect_err("no budget");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "a refuses"));
    assert_eq!(stage.asked(), [("a", 1)]);
}

#[tokio::test(start_paused = true)]
async fn clones_of_a_channel_share_their_budget() {
    let (stage, channel) = scene(&["a", "b"], Retries::new().budget(0.5, 0).expect("valid")).await;
    stage.host("a").does(UNAVAILABLE);
    let other = channel.clone();
    ask(&other).await.expect_err("half a retry");
    assert_eq!(ask(&channel).await.expect("one for two calls"), "b");
    ask(&other).await.expect_err("it is spent");
}

#[tokio::test(start_paused = true)]
async fn the_servers_word_on_another_attempt_is_taken() {
    let (stage, channel) = scene(&["a", "b"], Retries::new()).await;
    let refuses = |word| Does::Refuses(Code::Unavailable, Some(word));
    stage.host("a").does(refuses("1500"));
    let since = Instant::now();
    assert_eq!(ask(&channel).await.expect("by the other"), "b");
    assert!((1_500..1_510).contains(&millis(since)), "{:?}", since.elapsed());
    for never in ["-1", "soon"] {
        stage.host("a").does(refuses(never));
        assert_eq!(ask(&channel).await.expect_err("it is told not to").message(), "a refuses");
    }
    // Beyond the deadline nothing is waited for.
    stage.host("a").does(refuses("5000"));
    let mut request = Request::new(HealthCheckRequest::default());
    request.set_timeout(Duration::from_secs(4));
    let since = Instant::now();
    assert_eq!(ask_with(&channel, request).await.expect_err("too late").message(), "a refuses");
    assert!(millis(since) < 10, "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn one_deadline_is_for_all_attempts_and_each_is_told_what_is_left() {
    let timed = idempotent().per_try_timeout(Duration::from_secs(1)).expect("valid");
    let (stage, channel) = scene(&["a", "b", "c"], ruled(timed)).await;
    for name in ["a", "b", "c"] {
        stage.host(name).does(Does::Hangs);
    }
    let mut request = Request::new(HealthCheckRequest::default());
    request.set_timeout(Duration::from_secs(4));
    let since = Instant::now();
    let status = ask_with(&channel, request).await.expect_err("nobody answers");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!((4_000..4_010).contains(&millis(since)), "{:?}", since.elapsed());
    let mut left: Vec<u64> = ["a", "b", "c"]
        .map(|name| {
            let asked = stage.host(name).asked();
            let left = asked[0].get("grpc-timeout").expect("said").to_str().expect("ascii").to_owned();
            left.strip_suffix('u').expect("microseconds").parse().expect("digits")
        })
        .into();
    left.sort_unstable();
    for (left, seconds) in left.iter().zip([2, 3, 4]) {
        assert!((seconds * 1_000_000 - 10_000..=seconds * 1_000_000).contains(left), "{left}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_connection_broke_is_sent_again_only_if_its_method_is_idempotent() {
    let (stage, channel) = scene(&["a", "b"], Retries::new()).await;
    stage.host("a").does(Does::Breaks);
    let status = ask(&channel).await.expect_err("it may have been processed");
    assert!(matches!(typed(&status), ChannelError::Lost { .. }), "{status:?}");
    assert_eq!(stage.asked(), [("a", 1)]);

    let retries = Retries::new().method("/grpc.health.v1.Health/*", idempotent()).expect("valid");
    let (stage, channel) = scene(&["a", "b"], retries).await;
    stage.host("a").does(Does::Breaks);
    assert_eq!(ask(&channel).await.expect("by the other"), "b");
    assert_eq!(stage.asked(), [("a", 1), ("b", 1)]);
}

#[tokio::test(start_paused = true)]
async fn an_idempotent_call_without_an_answer_in_time_goes_elsewhere_and_others_wait() {
    let timed = |rule: Rule| ruled(rule.per_try_timeout(Duration::from_millis(200)).expect("valid"));
    let (stage, channel) = scene(&["a", "b"], timed(idempotent())).await;
    stage.host("a").does(Does::Hangs);
    let since = Instant::now();
    assert_eq!(ask(&channel).await.expect("by the other"), "b");
    assert!((200..210).contains(&millis(since)), "{:?}", since.elapsed());
    let a = |channel: &BalancedChannel| channel.snapshot().instance("a").expect("there").in_flight;
    assert_eq!(a(&channel), 0, "it was given up");

    let (stage, channel) = scene(&["a", "b"], timed(Rule::new())).await;
    stage.host("a").does(Does::Late(Duration::from_secs(2)));
    assert_eq!(ask(&channel).await.expect("late"), "a");
    assert_eq!(stage.asked(), [("a", 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_sent_again_before_its_first_byte_and_not_after_it() {
    async fn watch(channel: &BalancedChannel) -> Result<String, Status> {
        let mut health = HealthClient::new(channel.clone());
        let response = health.watch(HealthCheckRequest::default()).await?;
        let who = response.metadata().get("who").expect("said").to_str().expect("ascii").to_owned();
        let mut answers = response.into_inner();
        while answers.message().await?.is_some() {}
        Ok(who)
    }
    let (stage, channel) = scene(&["a", "b"], ruled(idempotent())).await;
    stage.host("a").does(UNAVAILABLE);
    assert_eq!(watch(&channel).await.expect("by the other"), "b");
    // Its headers are an answer that the caller has already.
    stage.host("a").does(Does::Stops(Code::Unavailable));
    assert_eq!(watch(&channel).await.expect_err("it had begun").message(), "a stops");
    assert_eq!(stage.asked(), [("a", 2), ("b", 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_requests_that_was_turned_away_begins_anew_elsewhere_and_goes_on() {
    let (stage, channel) = scene(&["a", "b"], Retries::new()).await;
    stage.host("a").does(Does::TurnsAway(Code::Unavailable));
    let (send, receive) = tokio::sync::mpsc::channel(4);
    let said = |word: &str| ServerReflectionRequest { host: word.to_owned(), message_request: None };
    send.send(said("one")).await.expect("open");
    let requests = tokio_stream::wrappers::ReceiverStream::new(receive);
    let mut reflection = ServerReflectionClient::new(channel);
    let mut echo = reflection.server_reflection_info(requests).await.expect("by the other").into_inner();
    for word in ["one", "two"] {
        if word != "one" {
            send.send(said(word)).await.expect("open");
        }
        let heard = echo.message().await.expect("open").expect("some").valid_host;
        assert_eq!(heard, format!("b heard {word}"));
    }
    drop(send);
    assert!(echo.message().await.expect("ended well").is_none());
    assert_eq!(stage.asked(), [("a", 1), ("b", 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_not_kept_is_not_sent_again() {
    let stage = Stage::of(&["a", "b"]);
    let channel = stage.builder().policy(Always("a")).replay_limit(100).build();
    channel.wait_until(|now| now.chosen() == 2).await;
    stage.host("a").does(UNAVAILABLE);
    let of = |length| Request::new(HealthCheckRequest { service: "x".repeat(length) });
    assert_eq!(ask_with(&channel, of(50)).await.expect("by the other"), "b");
    assert_eq!(ask_with(&channel, of(200)).await.expect_err("it is gone").message(), "a refuses");
    assert_eq!(stage.asked(), [("a", 2), ("b", 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_is_sent_after_the_quantile_and_the_loser_is_cancelled() {
    let retries = ruled(idempotent().hedge_after(0.95).expect("valid"));
    let (stage, channel) = scene(&["a", "b"], retries).await;
    stage.host("a").does(Does::Late(Duration::from_millis(10)));
    for _ in 0..100 {
        assert_eq!(ask(&channel).await.expect("answered"), "a");
    }
    assert_eq!(stage.asked(), [("a", 100)], "nothing is known before");
    stage.host("a").does(Does::Hangs);
    let since = Instant::now();
    assert_eq!(ask(&channel).await.expect("by the hedge"), "b");
    assert!((10..20).contains(&millis(since)), "{:?}", since.elapsed());
    assert_eq!(channel.snapshot().instance("a").expect("there").in_flight, 0, "the loser is cancelled");
    // The winner may be the first, too.
    stage.host("a").does(Does::Late(Duration::from_millis(50)));
    stage.host("b").does(Does::Hangs);
    assert_eq!(ask(&channel).await.expect("answered"), "a");
    stage.host("b").arrived().await;
    assert_eq!(channel.snapshot().instance("b").expect("there").in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_lost_does_not_take_the_hedge_with_it() {
    // A lost connection is `UNAVAILABLE`, which this rule does not retry.
    let rule = idempotent().codes([Code::Aborted]).and_then(|rule| rule.hedge_after(0.95)).expect("valid");
    let (stage, channel) = scene(&["a", "b"], ruled(rule)).await;
    for _ in 0..100 {
        ask(&channel).await.expect("answered");
    }
    stage.host("a").does(Does::Hangs);
    stage.host("b").does(Does::Late(Duration::from_millis(50)));
    let call = tokio::spawn(async move { ask(&channel).await });
    stage.host("b").arrived().await;
    stage.host("a").breaks();
    assert_eq!(call.await.expect("no panic").expect("by the hedge"), "b");
}

#[tokio::test(start_paused = true)]
async fn what_takes_no_requests_gets_no_retry() {
    let stage = Stage::of(&["a", "b"]);
    let c = |weight| {
        [("a", 1), ("b", weight)].map(|(name, weight)| {
            client_sdk::Instance::builder(format!("{name}:1").parse().expect("valid")).id(name).weight(weight)
        })
    };
    stage.fleet.set(c(0));
    let channel = stage.builder().build();
    channel.wait_until(|now| now.chosen() == 1).await;
    stage.host("a").does(UNAVAILABLE);
    assert_eq!(ask(&channel).await.expect_err("nobody else").message(), "a refuses");
    assert_eq!(stage.asked(), [("a", 1)], "of weight 0");
}

#[tokio::test(start_paused = true)]
async fn retries_and_what_the_budget_refused_are_counted() {
    let recorder = metrics_util::debugging::DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let (stage, channel) = scene(&["a", "b"], Retries::new().budget(0.5, 0).expect("valid")).await;
    stage.host("a").does(UNAVAILABLE);
    ask(&channel).await.expect_err("half a retry");
    ask(&channel).await.expect("one");
    let counted: Vec<_> = snapshotter.snapshot().into_vec().into_iter().collect();
    let count = |name: &str, reason: Option<&str>| {
        counted.iter().find_map(|(key, _, _, value)| match value {
            metrics_util::debugging::DebugValue::Counter(count)
                if key.key().name() == name
                    && key
                        .key()
                        .labels()
                        .find(|label| label.key() == "reason")
                        .map(metrics::Label::value)
                        == reason =>
            {
                Some(*count)
            }
            _ => None,
        })
    };
    assert_eq!(count("client_sdk_retries_total", Some("unavailable")), Some(1));
    assert_eq!(count("client_sdk_retries_refused_total", None), Some(1));
}
