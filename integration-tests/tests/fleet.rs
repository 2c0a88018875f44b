//! Twenty real processes behind one channel, two hundred callers, and all that goes wrong with instances: restarts, `kill -9`,
//! errors, slowness, silence, a process that is stopped.
//!
//! What holds throughout: no call fails that a retry could have saved, which here is every call, for there are always
//! instances that are well, the method is idempotent and the deadline long. And once an instance that fails calls is
//! detected, it gets none but probes. Latencies are printed (`--nocapture`) and asserted nowhere; `docs/balancing.md` has them.

#![allow(clippy::print_stdout)] // what is measured and not judged

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use client_sdk::{
    BalancedChannel, Endpoint, RegistryClient, RegistryDiscover,
    balance::LeastRequest,
    channel::{InstanceSnapshot, Snapshot, Standing},
    model::Address,
    outlier::OutlierDetection,
    retry::{Retries, Rule},
    runtime::Runtime,
};
use integration_tests::{
    fleet::{
        METHOD, SERVICE,
        instance::Conduct,
        load::{Load, Pace, Phase, Table},
        process::Process,
    },
    process::within,
    server_setup,
};
use tonic::Code;

const PROCESSES: usize = 20;
/// About 1,900 calls a second: two cores have time to spare.
const PACE: Pace = Pace { callers: 200, pause: Duration::from_millis(100), deadline: Duration::from_secs(5) };
/// Of an attempt.
const PER_TRY: Duration = Duration::from_millis(300);
/// What takes longer than this never comes.
const PATIENCE: Duration = Duration::from_mins(1);
/// The phase in which some fail calls, and it is found out.
const UNTIL_DETECTED: &str = "four go bad, until detected";
/// The phase in which nothing but probes goes to those that fail calls.
const DETECTED: &str = "four bad, detected";
/// Of all of it.
const LIMIT: Duration = Duration::from_mins(8);

/// The processes, and the channel to them.
struct Fleet {
    registry: SocketAddr,
    processes: BTreeMap<String, Process>,
    channel: BalancedChannel,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_that_a_retry_can_save_and_bad_instances_get_but_probes() {
    within("all phases", LIMIT, all_phases()).await;
}

async fn all_phases() {
    let registry = server_setup!().start().await;
    let channel = channel(registry.address());
    let mut fleet = Fleet { registry: registry.address(), processes: BTreeMap::new(), channel };
    for nth in 0..PROCESSES {
        fleet.start(&format!("p{nth:02}")).await;
    }
    fleet.all_chosen().await;
    let names: Vec<_> = fleet.processes.keys().cloned().collect();
    let load = Load::start(&fleet.channel, PACE, "all well");
    load.calls(4_000).await;

    load.begin("each restarted in turn").await;
    for name in &names {
        fleet.take(name).leave().await;
        fleet.start(name).await;
        fleet.chosen(name).await;
    }

    load.begin("three killed at once, and later replaced").await;
    fleet.lose_and_replace(&load, ["p03", "p09", "p15"]).await;

    fleet.suffer(&load, ["p01", "p06", "p11", "p16"]).await;
    load.begin("all back").await;
    load.calls(4_000).await;

    let phases = load.end().await;
    println!("{}", Table(&phases));
    for Phase { label, calls, failed, .. } in &phases {
        let some = &failed[..failed.len().min(5)];
        assert!(failed.is_empty(), "{label}: {} of {calls} calls failed: {some:#?}", failed.len());
    }
    let phase = |label: &str| phases.iter().find(|it| it.label == label).expect("it was begun");
    let answered_by = |label: &str| phase(label).by.keys().cloned().collect::<Vec<_>>();
    assert_eq!(answered_by("all well"), names, "all take part");
    assert_eq!(answered_by("all back"), names, "all take part again");
    assert!(
        phase(UNTIL_DETECTED).retries >= 5,
        "five failures in a row and more were hidden from their callers"
    );
    let detected = phase(DETECTED);
    let by_slow = detected.by.get("p06").copied().unwrap_or_default();
    println!("the slow one answered {by_slow} of {} calls", detected.calls);
    for bad in ["p01", "p11", "p16"] {
        assert!(!detected.by.contains_key(bad), "{bad} answered a call although it is bad");
    }
    for (_, process) in fleet.processes {
        process.end().await;
    }
}

fn channel(registry: SocketAddr) -> BalancedChannel {
    let client = RegistryClient::builder().endpoint(registry.into()).build().expect("sound settings");
    let discover = Arc::new(RegistryDiscover::builder(client).build());
    let rule = Rule::new()
        .idempotent()
        .codes([Code::Unavailable, Code::Internal])
        .and_then(|rule| rule.max_attempts(5))
        .and_then(|rule| rule.per_try_timeout(PER_TRY))
        .expect("sound");
    let retries = Retries::new().method(METHOD, rule).and_then(|it| it.budget(0.5, 10)).expect("sound");
    let detection = OutlierDetection::builder()
        .interval(Duration::from_millis(500))
        .base_ejection_time(Duration::from_secs(1))
        .max_ejection_percent(50)
        .build()
        .expect("sound");
    BalancedChannel::builder(discover, Endpoint::new(SERVICE))
        .policy(LeastRequest::new(&Runtime::default()))
        .retries(retries)
        .outlier_detection(detection)
        .connect_timeout(Duration::from_secs(1))
        .backoff(Duration::from_millis(100), Duration::from_secs(1))
        .keepalive(Duration::from_secs(2), Duration::from_secs(2))
        .build()
}

/// Waits until an instance looks so.
async fn looks(channel: &BalancedChannel, name: &str, looks: impl Fn(Option<&InstanceSnapshot>) -> bool) {
    let seen = channel.wait_until(|snapshot: &Snapshot| looks(snapshot.instance(name)));
    let seen = tokio::time::timeout(PATIENCE, seen).await;
    assert!(seen.is_ok(), "waited {PATIENCE:?} in vain for {name}: {:#?}", channel.snapshot().instance(name));
}

impl Fleet {
    async fn start(&mut self, name: &str) {
        let program = env!("CARGO_BIN_EXE_fleet-instance-under-test");
        let process = Process::start(program, name, self.registry).await;
        assert!(self.processes.insert(name.to_owned(), process).is_none(), "two of one name");
    }

    fn get(&mut self, name: &str) -> &mut Process {
        self.processes.get_mut(name).expect("it was started")
    }

    fn take(&mut self, name: &str) -> Process {
        self.processes.remove(name).expect("it was started")
    }

    /// Waits until calls are spread over this process, as it is now.
    async fn chosen(&self, name: &str) {
        let address = Address::from(self.processes[name].address());
        let is_chosen =
            |it: &InstanceSnapshot| it.standing == Standing::Chosen && it.instance.address == address;
        looks(&self.channel, name, |it| it.is_some_and(is_chosen)).await;
    }

    async fn all_chosen(&self) {
        for name in self.processes.keys() {
            self.chosen(name).await;
        }
    }

    /// `kill -9`, with nobody told anything; others take their names when 4,000 calls have gone past them.
    async fn lose_and_replace(&mut self, load: &Load, names: [&str; 3]) {
        for name in names {
            self.get(name).kill();
        }
        for name in names {
            self.take(name).killed().await;
            let lost = |it: Option<&InstanceSnapshot>| it.is_none_or(|it| it.standing != Standing::Chosen);
            looks(&self.channel, name, lost).await;
        }
        load.calls(4_000).await;
        for name in names {
            self.start(name).await;
        }
        self.all_chosen().await;
    }

    /// One answers errors, one is fifty times slower, one takes calls and never answers, and of one only the kernel is left; then
    /// all are well again.
    async fn suffer(&mut self, load: &Load, [failing, slow, silent, frozen]: [&str; 4]) {
        load.begin(UNTIL_DETECTED).await;
        self.get(failing).conduct(Conduct::Errors).await;
        self.get(slow).conduct(Conduct::Slow).await;
        self.get(silent).conduct(Conduct::Silent).await;
        self.get(frozen).freeze();
        for name in [failing, silent] {
            looks(&self.channel, name, |it| it.is_some_and(|it| it.ejection.is_some())).await;
        }
        // Its connection may be given up, or its lease run out, before five calls in a row took too long.
        looks(&self.channel, frozen, |it| it.is_none_or(|it| it.standing != Standing::Chosen)).await;
        let mut before = Vec::new();
        for name in [failing, silent] {
            before.push((name, self.quiet(load, name).await));
        }

        load.begin(DETECTED).await;
        load.calls(6_000).await;
        for (name, (ejected_before, calls_before)) in before {
            let calls = self.get(name).calls().await - calls_before;
            // Each probe that failed made the ejection longer; one may be under way.
            let probes = u64::from(self.ejected(name) - ejected_before) + 1;
            println!("{name} got {calls} calls since its detection, all of them probes");
            assert!(
                calls <= probes,
                "{name} is ejected and got {calls} calls, of which at most {probes} are probes"
            );
        }

        load.begin("all well again, until all are back").await;
        for name in [failing, slow, silent] {
            self.get(name).conduct(Conduct::Well).await;
        }
        self.get(frozen).thaw();
        self.all_chosen().await;
    }

    /// Waits until nothing is on its way to an ejected process any more: in a whole turn of all callers it gets nothing. How
    /// often it was ejected by then, and how many calls it has got.
    async fn quiet(&mut self, load: &Load, name: &str) -> (u32, u64) {
        let mut calls = self.get(name).calls().await;
        for _ in 0..100 {
            load.turn().await;
            // In this order, so that each call that comes after this is a probe that comes after this.
            let ejected = self.ejected(name);
            let now = self.get(name).calls().await;
            if now == calls {
                return (ejected, calls);
            }
            calls = now;
        }
        panic!("{name} is ejected and gets calls all the time, {calls} by now");
    }

    /// How often it was ejected, probes that failed included.
    fn ejected(&self, name: &str) -> u32 {
        let snapshot = self.channel.snapshot();
        let ejection = snapshot.instance(name).and_then(|instance| instance.ejection);
        let Some(ejection) = ejection else {
            panic!("{name} is bad and was taken back: {:#?}", snapshot.instance(name))
        };
        ejection.times
    }
}
