//! A registration with a registry that answers anything at all: registrations, renewals and waits with impossible times, epochs,
//! names and numbers, refusals with impossible details, streams that end or chatter. Seeded, on paused time.
//!
//! Nothing panics, nobody is asked in a hot loop, a drain ends in its time; and when the registry comes to its senses, the
//! registration is well again, or has ended and says how.

mod support;

use std::time::Duration;

use client_sdk::{
    client::MissingRegistry,
    registration::{Registration, RegistrationState},
};
use prost::Message as _;
use registry_proto::v1;
use support::{Fake, Net, Question, Renewals, address};
use tokio::{sync::watch, task::JoinSet};
use tonic::{Code, Status};
use tonic_types::pb;

const LYING: Duration = Duration::from_mins(2);

/// What a registry says that says anything.
struct Liar(fastrand::Rng);

impl Liar {
    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.0.usize(..of.len())].clone()
    }

    fn duration(&mut self) -> Option<prost_types::Duration> {
        let seconds = self.one(&[i64::MIN, -1, 0, 1, 15, i64::MAX]);
        let nanos = self.one(&[i32::MIN, -1, 0, 1, i32::MAX]);
        self.one(&[None, Some(prost_types::Duration { seconds, nanos })])
    }

    fn text(&mut self) -> String {
        self.one(&[String::new(), "e".into(), "x".repeat(300), "\u{e4}".repeat(2_000)])
    }

    fn number(&mut self) -> u64 {
        self.one(&[0, 1, 7, u64::MAX])
    }

    /// A refusal that may pass.
    fn status(&mut self) -> Status {
        let codes =
            [Code::Unavailable, Code::ResourceExhausted, Code::Internal, Code::Unknown, Code::Aborted];
        let code = self.one(&codes);
        let retry = pb::RetryInfo { retry_delay: self.duration() }.encode_to_vec();
        let info = pb::ErrorInfo { reason: self.text(), ..pb::ErrorInfo::default() }.encode_to_vec();
        let any = |kind: &str, value| prost_types::Any { type_url: kind.to_owned(), value };
        let details = vec![
            any(tonic_types::RetryInfo::TYPE_URL, retry),
            any(tonic_types::ErrorInfo::TYPE_URL, info),
            any("?", vec![0xff]),
        ];
        let mut details = pb::Status { details, ..pb::Status::default() }.encode_to_vec();
        if self.0.u8(..4) == 0 {
            details.truncate(self.0.usize(..=details.len()));
        }
        Status::with_details(code, self.text(), details.into())
    }

    fn registered(&mut self) -> Result<v1::RegisterResponse, Status> {
        if self.0.u8(..3) == 0 {
            return Err(self.status());
        }
        let instances = vec![v1::InstanceRef { id: self.text(), ..v1::InstanceRef::default() }; 3];
        Ok(v1::RegisterResponse {
            epoch: self.text(),
            revision: self.number(),
            ttl: self.duration(),
            instances,
        })
    }

    fn applied(&mut self) -> Result<v1::WaitAppliedResponse, Status> {
        if self.0.bool() {
            return Err(self.status());
        }
        let mut count = || self.one(&[0, 1, u32::MAX]);
        let (acked, lagging, disconnected, not_acking) = (count(), count(), count(), count());
        Ok(v1::WaitAppliedResponse { acked, lagging, disconnected, not_acking, satisfied: self.0.bool() })
    }

    fn renewed(&mut self, request: &v1::KeepAliveRequest) -> Result<v1::KeepAliveResponse, Status> {
        if self.0.u8(..8) == 0 {
            return Err(self.status());
        }
        let request_id = self.one(&[request.request_id, request.request_id, 0, u64::MAX]);
        let mut exceptions = Vec::new();
        for _ in 0..self.0.u8(..3) {
            let lost = (0..self.0.u8(..4)).map(|_| {
                let key =
                    v1::ServiceKey { namespace: self.text(), service: self.one(&["greeter", "?"]).into() };
                let id = self.one(&["a:80", "b:80", ""]).into();
                v1::LostInstance {
                    key: self.one(&[None, Some(key)]),
                    id,
                    reason: self.one(&[-1, 0, 3, 4, 99]),
                }
            });
            let lost = lost.collect();
            // Not SUPERSEDED, which ends a registration and so its own test.
            exceptions.push(v1::LeaseException {
                lease_id: self.one(&[request.lease_ids[0].clone(), Vec::new(), vec![0; 300]]),
                kind: self.one(&[-1, 0, 1, 3, 4, 99]),
                lost,
                moved_to: self.text(),
            });
        }
        Ok(v1::KeepAliveResponse { request_id, epoch: self.text(), exceptions })
    }
}

/// Answers a stream of renewals with lies, none, one or several a renewal, and then perhaps ends it.
async fn renewals(mut renewals: Renewals, mut liar: Liar) {
    while let Some(request) = renewals.heard().await {
        for _ in 0..liar.0.u8(..4) {
            let said = liar.renewed(&request);
            if !renewals.say(said).await {
                return;
            }
        }
        if liar.0.u8(..16) == 0 {
            return;
        }
    }
}

/// Answers whatever is asked with lies, for as long as it runs. Counts what was asked.
async fn lie(fake: &mut Fake, seed: u64, asked: &mut u64) {
    let mut liar = Liar(fastrand::Rng::with_seed(seed));
    let mut streams = JoinSet::new();
    loop {
        let question = fake.asked().await;
        *asked += 1;
        match question {
            Question::Register(call) => call.answer(liar.registered()),
            Question::WaitApplied(call) => call.answer(liar.applied()),
            Question::Deregister(call) => call.answer(Err(liar.status())),
            Question::KeepAlive(stream) => {
                streams.spawn(renewals(stream, Liar(liar.0.fork())));
            }
        }
    }
}

/// Answers as a registry does. Says how many renewals it has answered.
async fn tell_the_truth(fake: &mut Fake, renewed: &watch::Sender<u32>) {
    let mut streams = JoinSet::new();
    loop {
        match fake.asked().await {
            Question::Register(call) => {
                let ttl = call.request.ttl;
                call.answer(Ok(v1::RegisterResponse {
                    epoch: "e".into(),
                    revision: 9,
                    ttl,
                    instances: vec![],
                }));
            }
            Question::WaitApplied(call) => {
                call.answer(Ok(v1::WaitAppliedResponse { satisfied: true, ..Default::default() }));
            }
            Question::Deregister(call) => call.answer(Ok(v1::DeregisterResponse::default())),
            Question::KeepAlive(mut renewals) => {
                let renewed = renewed.clone();
                streams.spawn(async move {
                    while let Some(request) = renewals.heard().await {
                        renewals.answer(&request, &[]).await;
                        renewed.send_modify(|count| *count += 1);
                    }
                });
            }
        }
    }
}

async fn registered(net: &Net) -> Option<Registration> {
    let builder = Registration::builder(net.client(&["r:1"]))
        .service("greeter")
        .address(address("a:80"))
        .address(address("b:80"))
        .drain_timeout(Duration::from_secs(10));
    builder.register().await.ok()
}

#[tokio::test(start_paused = true)]
async fn whatever_a_registry_answers_a_registration_is_well_again_when_it_comes_to_its_senses() {
    let mut began = 0;
    for seed in 0..60 {
        let net = Net::default();
        let mut fake = net.start("r:1");
        let mut asked = 0;
        let registration = {
            let lying = lie(&mut fake, seed, &mut asked);
            tokio::pin!(lying);
            tokio::select! {
                () = &mut lying => unreachable!("it never ends"),
                registration = registered(&net) => registration,
            }
        };
        // Refused from the start: the caller was told.
        let Some(registration) = registration else { continue };
        began += 1;
        let _ = tokio::time::timeout(LYING, lie(&mut fake, seed + 1_000, &mut asked)).await;
        // The shortest TTL there is asks three times a second.
        assert!(asked < 10 * LYING.as_secs(), "seed {seed}: asked {asked} times within {LYING:?}");
        let (renewed, mut renewals) = watch::channel(0);
        let mut events = registration.events();
        let well = async {
            renewals.wait_for(|count| *count > 1).await.expect("the registry lives");
            let well = |state: &RegistrationState| matches!(state, RegistrationState::Registered { .. });
            events
                .wait_for(|it| it.state.is_final() || well(&it.state))
                .await
                .expect("it lives")
                .state
                .clone()
        };
        tokio::select! {
            () = tell_the_truth(&mut fake, &renewed) => unreachable!("it never ends"),
            well = tokio::time::timeout(LYING, well) => {
                let state = well.unwrap_or_else(|_| panic!("seed {seed}: {:?}", registration.status()));
                assert!(!state.is_final(), "seed {seed}: {state:?}, which nobody said");
            }
        }
    }
    assert!(began > 20, "{began} of 60 registered at all");
}

#[tokio::test(start_paused = true)]
async fn whatever_a_registry_answers_a_drain_ends_in_its_time() {
    for seed in 0..60 {
        let net = Net::default();
        let mut fake = net.start("r:1");
        let (renewed, _) = watch::channel(0);
        let registration = tokio::select! {
            () = tell_the_truth(&mut fake, &renewed) => unreachable!("it never ends"),
            registration = registered(&net) => registration.expect("registered"),
        };
        let clock = net.runtime(0);
        let start = clock.now();
        let mut asked = 0;
        tokio::select! {
            () = lie(&mut fake, seed, &mut asked) => unreachable!("it never ends"),
            // Told or not, refused or not: it returns.
            _ = registration.drain() => {}
        }
        let took = clock.now().saturating_sub(start);
        assert!(took <= Duration::from_secs(16), "seed {seed}: {took:?}");
        assert!(registration.status().state.is_final(), "seed {seed}: {:?}", registration.status());
        assert!(asked < 300, "seed {seed}: asked {asked} times");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_with_an_impossible_time_to_retry_after_is_a_refusal() {
    let net = Net::default();
    let mut fake = net.start("r:1");
    let client = net.client(&["r:1"]);
    let retry_delay = Some(prost_types::Duration { seconds: i64::MIN, nanos: 0 });
    let value = pb::RetryInfo { retry_delay }.encode_to_vec();
    let any = prost_types::Any { type_url: tonic_types::RetryInfo::TYPE_URL.to_owned(), value };
    let details = pb::Status { details: vec![any], ..pb::Status::default() }.encode_to_vec();
    let calling = client.register(v1::RegisterRequest::default(), MissingRegistry::FailFast);
    let (refused, ()) = tokio::join!(calling, async {
        let details = details.clone().into();
        fake.register().await.answer(Err(Status::with_details(Code::ResourceExhausted, "later", details)));
    });
    assert!(refused.expect_err("refused").to_string().contains("later"));
}
