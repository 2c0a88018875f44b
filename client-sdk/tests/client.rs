//! The client: failover, deadlines, errors that keep what the registry said.
#![allow(clippy::disallowed_methods, clippy::unchecked_time_subtraction)] // the calls under test run beside the script

mod support;

use std::time::Duration;

use client_sdk::client::{CallError, ConfigError, MissingRegistry, RegisterError, RegistryClient};
use registry_proto::v1;
use support::{Fake, Net, soon};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

fn request() -> v1::RegisterRequest {
    v1::RegisterRequest { lease_id: vec![1; 16], ..v1::RegisterRequest::default() }
}

#[tokio::test(start_paused = true)]
async fn a_missing_endpoint_is_passed_over() {
    for seed in 0..8 {
        let net = Net::default();
        let mut there = net.start("there:1");
        let client = net.client_builder(&["gone:1", "there:1", "gone:2"], seed).build().expect("a client");
        let call = client.register(request(), MissingRegistry::FailFast);
        let (answer, _) = tokio::join!(call, there.registered(7));
        assert_eq!(answer.expect("registered").revision, 7);
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_endpoint_differs_between_clients() {
    let net = Net::default();
    let (mut a, mut b) = (net.start("a:1"), net.start("b:1"));
    let mut firsts = [0, 0];
    for seed in 0..32 {
        let client = net.client_builder(&["a:1", "b:1"], seed).build().expect("a client");
        let call = tokio::spawn(async move { client.register(request(), MissingRegistry::FailFast).await });
        tokio::select! {
            _ = a.registered(1) => firsts[0] += 1,
            _ = b.registered(1) => firsts[1] += 1,
        }
        call.await.expect("no panic").expect("registered");
    }
    assert!(firsts[0] > 4 && firsts[1] > 4, "{firsts:?}");
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_or_killed_replica_is_left_for_another_within_the_deadline() {
    let net = Net::default();
    let (mut a, mut b) = (net.start("a:1"), net.start("b:1"));
    let client = net.client(&["a:1", "b:1"]);
    let call = tokio::spawn(async move { client.register(request(), MissingRegistry::FailFast).await });
    let (first, mut other) = tokio::select! {
        call = a.register() => (call, b),
        call = b.register() => (call, a),
    };
    first.answer(Err(Status::unavailable("shutting down")));
    other.registered(9).await;
    assert_eq!(call.await.expect("no panic").expect("registered").revision, 9);
}

#[tokio::test(start_paused = true)]
async fn a_frozen_replica_costs_half_of_the_deadline_and_no_more() {
    let net = Net::default();
    let (a, b) = (net.start("a:1"), net.start("b:1"));
    let client = net.client(&["a:1", "b:1"]);
    a.freeze();
    b.freeze();
    let started = client.runtime().now();
    let error = client.register(request(), MissingRegistry::FailFast).await.expect_err("nobody answers");
    assert!(matches!(error, RegisterError::Failed(CallError::Timeout(_))), "{error}");
    assert!(client.runtime().now() - started <= client.request_timeout() + Duration::from_millis(10));
    drop((a, b));
    let (mut a, b) = (net.start("a:1"), net.start("b:1"));
    b.freeze();
    for _ in 0..2 {
        let (answer, _) =
            tokio::join!(client.register(request(), MissingRegistry::FailFast), a.registered(3));
        assert_eq!(answer.expect("registered").revision, 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_is_away_for_a_moment_fails_no_call() {
    for seed in 0..8 {
        for away in [50, 300, 1_000, 2_000, 3_000, 4_000, 4_400] {
            let net = Net::default();
            let client = net.client_builder(&["r:1"], seed).build().expect("a client");
            let call = tokio::spawn(async move { client.register(request(), MissingRegistry::Wait).await });
            tokio::time::sleep(Duration::from_millis(away)).await;
            let mut back = net.start("r:1");
            back.registered(7).await;
            let answer = call.await.expect("no panic");
            assert_eq!(answer.expect("registered").revision, 7, "seed {seed}, away for {away} ms");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn failing_fast_names_what_was_tried() {
    let net = Net::default();
    let client = net.client(&["a:1", "b:1"]);
    let error = client.register(request(), MissingRegistry::FailFast).await.expect_err("missing");
    let RegisterError::Failed(CallError::Unreachable(connect)) = &error else { panic!("{error}") };
    assert_eq!(connect.attempts.len(), 2);
    assert!(error.to_string().contains("a:1") && error.to_string().contains("b:1"), "{error}");
}

#[tokio::test]
async fn a_refusal_keeps_code_reason_field_and_delay_over_a_real_socket() {
    let mut fake = Fake::on_tcp().await;
    let client = RegistryClient::builder().endpoint(fake.address.clone()).build().expect("a client");
    let call = tokio::spawn(async move { client.register(request(), MissingRegistry::FailFast).await });
    let mut details = ErrorDetails::new();
    details.set_error_info("INVALID_FIELD", "registry.v1", std::collections::HashMap::new());
    details.add_bad_request_violation("registrations[0].instance.weight", "at most 65535");
    details.set_retry_info(Some(Duration::from_secs(1)));
    let status = Status::with_error_details(Code::InvalidArgument, "too heavy", details);
    fake.register().await.answer(Err(status));
    let error = soon(call).await.expect("no panic").expect_err("refused");
    let RegisterError::Failed(CallError::Refused(refusal)) = error else { panic!("{error}") };
    assert_eq!(refusal.code, Code::InvalidArgument);
    assert!(refusal.is("INVALID_FIELD"));
    assert_eq!(refusal.field.as_deref(), Some("registrations[0].instance.weight"));
    assert_eq!(refusal.retry_after, Some(Duration::from_secs(1)));
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let no_name = RegistryClient::builder().client_id("a b").build().expect_err("refused");
    assert_eq!(no_name, ConfigError::ClientId("a b".into()));
    let no_time = RegistryClient::builder().request_timeout(Duration::ZERO).build().expect_err("refused");
    assert_eq!(no_time, ConfigError::Zero("request_timeout"));
}
