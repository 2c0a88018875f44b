//! The loop under paused time, with a store that can be held up and made to fail.

use std::{
    collections::BTreeMap,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::*;
use crate::{
    core::{Committed, Record, Registrant, Selector, ServiceKey, Spec, Status},
    hub::{Signal, Start},
    runtime::{BoxTask, BoxWork, Clock, SimulatedClock, Spawn, TokioSpawn},
    store::Loaded,
};

mod calm;
mod lent;
mod pipelined;

/// What a test does to the store, and what the store was given.
#[derive(Default)]
struct Script {
    state: Mutex<ScriptState>,
    changed: Condvar,
}

#[derive(Default)]
struct ScriptState {
    groups: Vec<Vec<Record>>,
    log: Vec<Committed>,
    held: bool,
    entered: usize,
    fail: bool,
    appends_after_failure: usize,
    busy: Option<bool>,
}

impl Script {
    fn hold(&self, held: bool) {
        self.state.lock().expect("unpoisoned").held = held;
        self.changed.notify_all();
    }

    /// Waits, on this thread, until `appends` have begun.
    fn entered(&self, appends: usize) {
        let state = self.state.lock().expect("unpoisoned");
        let waited =
            self.changed.wait_timeout_while(state, Duration::from_secs(30), |state| state.entered < appends);
        assert!(!waited.expect("unpoisoned").1.timed_out(), "the store was never asked");
    }

    /// What the store was told last of how much there is to do.
    fn busy(&self) -> Option<bool> {
        self.state.lock().expect("unpoisoned").busy
    }

    fn groups(&self) -> Vec<usize> {
        self.state.lock().expect("unpoisoned").groups.iter().map(Vec::len).collect()
    }
}

struct ScriptedStore {
    script: Arc<Script>,
    blocks: bool,
    failed: bool,
}

impl Store for ScriptedStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let tail = self.script.state.lock().expect("unpoisoned").log.clone();
        Ok(Loaded { epoch: "e".to_owned(), tail, ..Loaded::default() })
    }

    fn append(&mut self, group: &[Record]) -> Result<Vec<Revision>, StoreError> {
        let mut state = self.script.state.lock().expect("unpoisoned");
        state.entered += 1;
        self.script.changed.notify_all();
        state = self.script.changed.wait_while(state, |state| state.held).expect("unpoisoned");
        state.appends_after_failure += usize::from(self.failed);
        if state.fail {
            self.failed = true;
            return Err(StoreError::Io("the disk is full".to_owned()));
        }
        let last = state.log.last().map_or(0, |committed| committed.revision);
        let revisions: Vec<_> = (1..=group.len() as u64).map(|n| last + 2 * n).collect();
        let committed = revisions
            .iter()
            .zip(group)
            .map(|(revision, record)| Committed { revision: *revision, record: record.clone() });
        state.log.extend(committed);
        state.groups.push(group.to_vec());
        Ok(revisions)
    }

    fn set_busy(&mut self, busy: bool) {
        self.script.state.lock().expect("unpoisoned").busy = Some(busy);
    }

    fn blocks(&self) -> bool {
        self.blocks
    }
}

fn start(script: &Arc<Script>, blocks: bool, runtime: &Runtime) -> (Registry, WriterTask) {
    let store = ScriptedStore { script: Arc::clone(script), blocks, failed: false };
    let (registry, _, task) =
        Registry::start(Box::new(store), Settings::default(), HubSettings::default(), runtime)
            .expect("it loads");
    (registry, task)
}

fn simulated() -> Runtime {
    Runtime::new(SimulatedClock::starting_at(1_000_000), TokioSpawn, 1)
}

fn key() -> ServiceKey {
    ServiceKey { namespace: "n".into(), service: "s".into() }
}

fn register(id: usize, lease: u128, ttl: u64) -> Command {
    let spec = Spec {
        address: "127.0.0.1:1".into(),
        weight: 1,
        tags: BTreeMap::new().into(),
        region: "".into(),
        zone: "".into(),
        status: Status::Up,
    };
    Command::Register {
        lease: LeaseId(lease.to_be_bytes()),
        registrant: Registrant { uid: format!("r{lease}").into(), generation: 1 },
        ttl,
        instances: vec![(key(), format!("i{id}").into(), Arc::new(spec))],
    }
}

fn instances(registry: &Registry) -> usize {
    instances_of(registry, &key())
}

/// Instances of a service, as they are published.
fn instances_of(registry: &Registry, key: &ServiceKey) -> usize {
    let page = registry.hub().read(key, &Selector::default());
    page.parts
        .iter()
        .map(|part| {
            let change: registry_proto::v1::Change =
                prost::Message::decode(part.as_message()).expect("a change");
            change.all.len()
        })
        .sum()
}

/// Resolves when the view of the service has changed since the head was `seen`.
async fn changed(registry: &Registry, seen: Revision) {
    registry.hub().follow_head().wait_for(|head| *head > seen).await.expect("the hub lives");
}

#[tokio::test(start_paused = true)]
async fn d2_what_was_answered_is_read() {
    let (registry, _task) = start(&Arc::default(), true, &simulated());
    // In a task of its own, which runs as soon as it is answered.
    let reader = Runtime::tokio().spawn(async move {
        for id in 0..20 {
            let written = registry.write(register(id, id as u128, 15_000)).await.expect("written");
            assert!(registry.hub().head() >= written.revision);
            assert_eq!(instances(&registry), id + 1);
            assert_eq!(written.incarnations, [written.revision]);
        }
    });
    reader.await.expect("all is read");
}

#[tokio::test]
async fn what_waits_while_the_disk_works_is_one_group() {
    let script = Arc::new(Script::default());
    let (registry, _task) = start(&script, true, &simulated());
    script.hold(true);
    let writes: Vec<_> = (0..50)
        .map(|id| {
            let registry = registry.clone();
            Runtime::tokio().spawn(async move {
                let written = registry.write(register(id, id as u128, 15_000)).await.expect("written");
                assert_eq!(written.incarnations, [written.revision], "each names its own revision");
            })
        })
        .collect();
    let waiting = Arc::clone(&script);
    tokio::task::spawn_blocking(move || waiting.entered(1)).await.expect("entered");
    // Renewals wait for no disk: once this is answered, the loop has taken what was sent before it, too.
    while registry.commands.capacity() < QUEUE {
        registry.renewer().renew(Vec::new()).await.expect("renewed");
    }
    script.hold(false);
    for write in writes {
        write.await.expect("written");
    }
    let groups = script.groups();
    assert_eq!(groups.iter().sum::<usize>(), 50);
    assert!(groups.len() <= 3, "{groups:?}");
}

#[tokio::test]
async fn what_rests_on_the_same_thing_is_never_in_one_group() {
    let script = Arc::new(Script::default());
    let (registry, _task) = start(&script, true, &simulated());
    script.hold(true);
    let writes: Vec<_> = (0..10u128)
        .map(|lease| {
            let registry = registry.clone();
            Runtime::tokio().spawn(async move {
                // All of them register the same id under leases of their own.
                registry.write(register(1, lease, 15_000)).await.expect("written");
            })
        })
        .collect();
    let waiting = Arc::clone(&script);
    tokio::task::spawn_blocking(move || waiting.entered(1)).await.expect("entered");
    script.hold(false);
    for write in writes {
        write.await.expect("written");
    }
    assert_eq!(script.groups(), [1; 10]);
    assert_eq!(instances(&registry), 1);
}

#[tokio::test]
async fn d4_a_failed_store_stops_writes_and_nothing_else() {
    let script = Arc::new(Script::default());
    let (registry, task) = start(&script, true, &simulated());
    let before = registry.write(register(1, 1, 15_000)).await.expect("written");
    script.state.lock().expect("unpoisoned").fail = true;
    for id in 2..5 {
        let refused = registry.write(register(id, id as u128, 15_000)).await.expect_err("not durable");
        assert!(
            matches!(&refused, WriteError::StoreFailed(why) if why.contains("disk is full")),
            "{refused}"
        );
    }
    assert!(matches!(*registry.health().borrow(), StoreHealth::Failed(_)));
    assert_eq!(
        (registry.hub().head(), instances(&registry)),
        (before.revision, 1),
        "reads go on at the last commit"
    );
    let lease = LeaseId(1u128.to_be_bytes());
    assert_eq!(registry.renewer().renew(vec![lease]).await.expect("answered"), []);
    task.stop().await;
    let state = script.state.lock().expect("unpoisoned");
    assert_eq!(
        (state.appends_after_failure, state.groups.len()),
        (0, 1),
        "a failed store is not asked again"
    );
}

#[tokio::test]
async fn a_full_queue_refuses_writes_and_no_renewals() {
    let script = Arc::new(Script::default());
    let (registry, _task) = start(&script, true, &simulated());
    registry.write(register(0, 0, 15_000)).await.expect("written");
    script.hold(true);
    let mut writes = Vec::new();
    let refused = loop {
        let id = writes.len() + 1;
        assert!(id < 20_000, "the queue has no bound");
        let mut write = Box::pin({
            let registry = registry.clone();
            async move { registry.write(register(id, id as u128, 15_000)).await }
        });
        match futures_poll(&mut write).await {
            Some(answer) => break answer.expect_err("nothing is durable yet"),
            None => writes.push(write),
        }
    };
    assert_eq!(refused, WriteError::QueueFull);
    let lease = LeaseId(0u128.to_be_bytes());
    assert_eq!(
        registry.renewer().renew(vec![lease]).await.expect("answered"),
        [],
        "renewals have a lane of their own"
    );
    script.hold(false);
    for write in writes {
        write.await.expect("what was accepted is written");
    }
}

/// Polls once, after everything else had its turn.
async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    tokio::task::yield_now().await;
    let mut future = Some(future);
    std::future::poll_fn(move |cx| {
        let polled = future.take().map(|future| std::pin::Pin::new(future).poll(cx));
        std::task::Poll::Ready(match polled {
            Some(std::task::Poll::Ready(output)) => Some(output),
            _ => None,
        })
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn l1_l2_a_lease_goes_at_its_deadline_and_not_before() {
    let runtime = simulated();
    let (registry, _task) = start(&Arc::default(), false, &runtime);
    let written = registry.write(register(1, 1, 5_000)).await.expect("written");
    let lease = LeaseId(1u128.to_be_bytes());
    let mut renewed_at = runtime.now().mono;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(4_900)).await;
        assert_eq!(registry.renewer().renew(vec![lease]).await.expect("answered"), []);
        renewed_at = runtime.now().mono;
    }
    assert_eq!(instances(&registry), 1);
    changed(&registry, written.revision).await;
    let late = runtime.now().mono - (renewed_at + 5_000);
    assert!(late <= 1, "{late} ms of simulated time late");
    assert_eq!(instances(&registry), 0);
    assert_eq!(registry.renewer().renew(vec![lease]).await.expect("answered"), [(lease, Renewal::Unknown)]);
}

#[tokio::test(start_paused = true)]
async fn l1_a_server_that_stops_expires_nobody() {
    let script = Arc::default();
    let (registry, task) = start(&script, false, &simulated());
    registry.write(register(1, 1, 1_000)).await.expect("written");
    tokio::time::sleep(Duration::from_millis(900)).await;
    registry.suspend_expiry().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(instances(&registry), 1, "its renewals had nowhere to go");
    registry.write(register(2, 2, 1_000)).await.expect("everything else goes on");
    assert_eq!(registry.renewer().renew(vec![LeaseId(1u128.to_be_bytes())]).await.expect("answered"), []);
    drop(registry);
    task.stop().await;
    let (registry, _task) = start(&script, false, &simulated());
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(instances(&registry), 2, "its successor grants full TTLs");
    changed(&registry, registry.hub().head()).await;
    assert!(instances(&registry) < 2);
}

/// Tokio's scheduler, on a disk that takes [`DISK`] of simulated time for each group.
struct SlowDisk;

const DISK: Duration = Duration::from_millis(5);

impl Spawn for SlowDisk {
    fn spawn(&self, task: BoxTask) -> JoinHandle<()> {
        TokioSpawn.spawn(task)
    }

    fn spawn_blocking(&self, work: BoxWork) {
        drop(TokioSpawn.spawn(Box::pin(async move {
            tokio::time::sleep(DISK).await;
            work();
        })));
    }
}

#[tokio::test(start_paused = true)]
async fn l2_a_thousand_leases_go_promptly_in_few_revisions_and_hold_up_no_other_write() {
    const LEASES: usize = 1_000;
    const TTL: u64 = 5_000;
    let runtime = Runtime::new(SimulatedClock::starting_at(1_000_000), SlowDisk, 1);
    let script = Arc::new(Script::default());
    let (registry, _task) = start(&script, true, &runtime);
    // Three of each service: fewer than the guard (L5) looks after.
    let service_of = |id: usize| ServiceKey { namespace: "n".into(), service: format!("s{}", id / 3).into() };
    let registering: Vec<_> = (0..LEASES)
        .map(|id| {
            let (registry, mut command) = (registry.clone(), register(id, id as u128, TTL));
            let Command::Register { instances, .. } = &mut command else { unreachable!() };
            instances[0].0 = service_of(id);
            Runtime::tokio().spawn(async move { drop(registry.write(command).await.expect("written")) })
        })
        .collect();
    for registered in registering {
        registered.await.expect("written");
    }
    let left =
        |registry: &Registry| (0..LEASES).step_by(3).map(|id| instances_of(registry, &service_of(id))).sum();
    // All of them renew once more, at the same moment, and never again.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let all: Vec<_> = (0..LEASES as u128).map(|lease| LeaseId(lease.to_be_bytes())).collect();
    assert_eq!(registry.renewer().renew(all).await.expect("answered"), []);
    let deadline = runtime.now().mono + TTL;
    let until = |at: u64| tokio::time::sleep(Duration::from_millis(at - runtime.now().mono));

    until(deadline - 100).await;
    let (clock, writing) = (runtime.clone(), registry.clone());
    let other_writes = Runtime::tokio().spawn(async move {
        let mut during = 0;
        for id in 0.. {
            let asked = clock.now().mono;
            if asked > deadline + 100 {
                break;
            }
            writing.write(register(id, (LEASES + id) as u128, 3_600_000)).await.expect("written");
            let answered = clock.now().mono;
            assert!(answered - asked <= 50, "L2 prompt expiry: another write took {} ms", answered - asked);
            during += usize::from(asked >= deadline);
        }
        assert!(during >= 10, "L2 prompt expiry: {during} other writes meanwhile");
    });
    until(deadline - 1).await;
    let before: usize = left(&registry);
    assert_eq!(before, LEASES, "L1 no early expiry");
    until(deadline + 100).await;
    let after: usize = left(&registry);
    assert_eq!(after, 0, "L2 prompt expiry: instances that are there 100 ms after their deadline");
    other_writes.await.expect("no other write was held up");

    let groups = script.state.lock().expect("unpoisoned").groups.clone();
    let expiries =
        groups.iter().flatten().filter(|record| record.cause == crate::core::Cause::Expire).count();
    assert!((1..=2).contains(&expiries), "L2 prompt expiry: in few revisions, not in {expiries}");
}

/// A clock that a test can make jump, as it does for a process that was stopped.
#[derive(Clone)]
struct JumpingClock {
    inner: Arc<SimulatedClock>,
    jumped: Arc<AtomicU64>,
}

impl Clock for JumpingClock {
    fn now(&self) -> Now {
        let (now, jumped) = (self.inner.now(), self.jumped.load(Ordering::Relaxed));
        Now { mono: now.mono + jumped, wall: now.wall + jumped }
    }
}

#[tokio::test(start_paused = true)]
async fn l1_nobody_is_expired_by_the_servers_own_sleep() {
    let clock = JumpingClock { inner: Arc::new(SimulatedClock::starting_at(0)), jumped: Arc::default() };
    let jumped = Arc::clone(&clock.jumped);
    let runtime = Runtime::new(clock, TokioSpawn, 1);
    let (registry, _task) = start(&Arc::default(), false, &runtime);
    registry.write(register(1, 1, 5_000)).await.expect("written");
    tokio::time::sleep(Duration::from_secs(1)).await;
    jumped.fetch_add(3_600_000, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    assert_eq!(instances(&registry), 1, "an hour in which nobody could renew does not count");
    let lease = LeaseId(1u128.to_be_bytes());
    assert_eq!(registry.renewer().renew(vec![lease]).await.expect("answered"), []);
}

#[tokio::test(start_paused = true)]
async fn l1_what_passes_before_the_loops_first_turn_does_not_count() {
    let clock = JumpingClock { inner: Arc::new(SimulatedClock::starting_at(0)), jumped: Arc::default() };
    let jumped = Arc::clone(&clock.jumped);
    let runtime = Runtime::new(clock, TokioSpawn, 1);
    let script = Arc::default();
    let (registry, task) = start(&script, false, &runtime);
    registry.write(register(1, 1, 5_000)).await.expect("written");
    task.stop().await;
    let (registry, _task) = start(&script, false, &runtime);
    // It is loaded, and its loop has not run yet. Nothing is due when it does, so that nothing is overdue.
    jumped.fetch_add(4_900, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(4_500)).await;
    assert_eq!(instances(&registry), 1, "the time in which nobody could renew does not count");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(instances(&registry), 0, "it is over after its TTL and the spread of a restart");
}

#[tokio::test]
async fn stopping_answers_what_was_accepted() {
    let script = Arc::new(Script::default());
    let (registry, task) = start(&script, true, &simulated());
    script.hold(true);
    let writes: Vec<_> = (0..10)
        .map(|id| {
            let registry = registry.clone();
            Runtime::tokio().spawn(async move {
                registry.write(register(id, id as u128, 15_000)).await.expect("accepted before the stop");
            })
        })
        .collect();
    let waiting = Arc::clone(&script);
    tokio::task::spawn_blocking(move || waiting.entered(1)).await.expect("entered");
    while registry.commands.capacity() < QUEUE {
        registry.renewer().renew(Vec::new()).await.expect("renewed");
    }
    let stopped = Runtime::tokio().spawn(task.stop());
    script.hold(false);
    stopped.await.expect("stopped");
    for write in writes {
        write.await.expect("written");
    }
    assert_eq!(registry.write(register(99, 99, 15_000)).await, Err(WriteError::ShuttingDown));
}

#[tokio::test(start_paused = true)]
async fn w5_the_recent_log_is_there_again_after_a_restart() {
    let script = Arc::new(Script::default());
    let (registry, task) = start(&script, false, &simulated());
    let first = registry.write(register(1, 1, 15_000)).await.expect("written");
    registry.write(register(2, 2, 15_000)).await.expect("written");
    task.stop().await;
    drop(registry);
    let (registry, _task) = start(&script, false, &simulated());
    let resume = Start::Resume { epoch: "e".to_owned(), revision: first.revision };
    let watch =
        |start: &Start| registry.hub().watch(&key(), &Selector::default(), false, start, &Signal::new(), 0);
    let step = watch(&resume).expect("a view").next_step().expect("something was missed");
    assert_eq!(step.reset_reason, None, "a delta, not a snapshot");
    let current = Start::Resume { epoch: "e".to_owned(), revision: registry.hub().head() };
    assert!(watch(&current).expect("a view").next_step().is_none());
}

#[tokio::test(start_paused = true)]
async fn renewals_of_held_leases_release_each_once_and_keep_no_write_out() {
    let script = Arc::new(Script::default());
    let (registry, _task) = start(&script, true, &simulated());
    for id in 0..4 {
        registry.write(register(id, id as u128, 1_000)).await.expect("written");
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(instances(&registry), 2, "the guard holds the other half (L5)");
    script.hold(true);
    let write = |id: usize| {
        let registry = registry.clone();
        Runtime::tokio().spawn(async move {
            drop(registry.write(register(id, id as u128, 15_000)).await.expect("written"));
        })
    };
    let mut writes = vec![write(10)];
    let (waiting, begun) = (Arc::clone(&script), script.groups().len() + 1);
    tokio::task::spawn_blocking(move || waiting.entered(begun)).await.expect("entered");
    let all: Vec<_> = (0..4u128).map(|lease| LeaseId(lease.to_be_bytes())).collect();
    registry.renewer().renew(all.repeat(2_500)).await.expect("answered");
    writes.push(write(11));
    for _ in 0..100 {
        registry.renewer().renew(Vec::new()).await.expect("answered");
    }
    assert_eq!(registry.commands.capacity(), QUEUE, "the write was taken: renewals do not fill its place");
    script.hold(false);
    for write in writes {
        write.await.expect("written");
    }
    let groups = script.state.lock().expect("unpoisoned").groups.clone();
    let releases: Vec<_> = groups
        .iter()
        .map(|group| group.iter().filter(|record| record.cause == crate::core::Cause::RenewHeld).count())
        .collect();
    assert_eq!(
        releases.iter().sum::<usize>(),
        2,
        "one for each of the two leases, however often they renewed"
    );
    assert_eq!(groups.last().map(Vec::len), Some(3), "both and the write in one group");
}

#[tokio::test(start_paused = true)]
async fn as_many_empty_services_are_remembered_as_was_set() {
    let script = Arc::new(Script::default());
    let settings = Settings { remembered_services: 2, ..Settings::default() };
    for _ in 0..2 {
        // Live, and again by replay.
        let store = ScriptedStore { script: Arc::clone(&script), blocks: false, failed: false };
        let (registry, _, task) =
            Registry::start(Box::new(store), settings.clone(), HubSettings::default(), &simulated())
                .expect("it loads");
        for service in ["a", "b", "c", "d"] {
            let mut command = register(1, 1, 15_000);
            let Command::Register { instances, .. } = &mut command else { unreachable!() };
            instances[0].0.service = service.into();
            registry.write(command).await.expect("written");
            let lease = Some(LeaseId(1u128.to_be_bytes()));
            let gone = Command::Deregister { lease, instances: Vec::new(), actor: "".into() };
            registry.write(gone).await.expect("written");
        }
        let count = registry.inspect(|state, _| state.service_count()).await.expect("answered");
        assert_eq!(count, 2);
        task.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn l1_renewals_that_wait_are_applied_before_anything_expires() {
    let clock = JumpingClock { inner: Arc::new(SimulatedClock::starting_at(0)), jumped: Arc::default() };
    let jumped = Arc::clone(&clock.jumped);
    let (registry, _task) = start(&Arc::default(), false, &Runtime::new(clock, TokioSpawn, 1));
    for id in 0..2 {
        registry.write(register(id, id as u128, 1_000)).await.expect("written");
    }
    tokio::time::sleep(Duration::from_millis(900)).await;
    // Past both deadlines, and too little to be a stall. Both renewals are sent before the loop runs.
    jumped.fetch_add(200, Ordering::Relaxed);
    let renewer = registry.renewer();
    let renew = |lease: u128| renewer.renew(vec![LeaseId(lease.to_be_bytes())]);
    let (first, second) = tokio::join!(renew(0), renew(1));
    assert_eq!((first.expect("answered"), second.expect("answered")), (vec![], vec![]));
    assert_eq!(instances(&registry), 2);
}

#[tokio::test(start_paused = true)]
async fn d4_what_was_expiring_when_the_store_failed_can_still_be_renewed() {
    let script = Arc::new(Script::default());
    let (registry, _task) = start(&script, true, &simulated());
    registry.write(register(1, 1, 1_000)).await.expect("written");
    script.state.lock().expect("unpoisoned").fail = true;
    let mut health = registry.health();
    health.wait_for(|health| *health != StoreHealth::Writable).await.expect("the loop goes on");
    let lease = LeaseId(1u128.to_be_bytes());
    assert_eq!(registry.renewer().renew(vec![lease]).await.expect("answered"), []);
    assert_eq!(instances(&registry), 1, "reads go on at the last commit");
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_changes_nothing_renews() {
    let (registry, _task) = start(&Arc::default(), true, &simulated());
    let first = registry.write(register(1, 1, 1_000)).await.expect("written");
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(900)).await;
        assert_eq!(registry.write(register(1, 1, 1_000)).await, Ok(first.clone()), "and is no new revision");
    }
    assert_eq!(instances(&registry), 1);
}

/// Counts how often it is read.
#[derive(Clone)]
struct CountingClock {
    inner: JumpingClock,
    reads: Arc<AtomicU64>,
}

impl Clock for CountingClock {
    fn now(&self) -> Now {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.now()
    }
}

#[tokio::test(start_paused = true)]
async fn the_loop_does_not_spin_on_what_is_due_while_the_disk_works() {
    let (jumped, reads) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let inner = JumpingClock { inner: Arc::new(SimulatedClock::starting_at(0)), jumped: Arc::clone(&jumped) };
    let clock = CountingClock { inner, reads: Arc::clone(&reads) };
    let script = Arc::new(Script::default());
    let (registry, _task) = start(&script, true, &Runtime::new(clock, TokioSpawn, 1));
    registry.write(register(1, 1, 1_000)).await.expect("written");
    tokio::time::sleep(Duration::from_millis(900)).await;
    script.hold(true);
    let write = Runtime::tokio().spawn({
        let registry = registry.clone();
        async move { drop(registry.write(register(2, 2, 1_000)).await.expect("written")) }
    });
    let waiting = Arc::clone(&script);
    tokio::task::spawn_blocking(move || waiting.entered(2)).await.expect("entered");
    jumped.fetch_add(200, Ordering::Relaxed);
    let before = reads.load(Ordering::Relaxed);
    for _ in 0..20 {
        // Wakes the loop, and so makes it look when to wake again.
        registry.renewer().renew(Vec::new()).await.expect("answered");
    }
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    let after = reads.load(Ordering::Relaxed);
    script.hold(false);
    write.await.expect("written");
    assert!(after - before < 200, "the clock was read {} times", after - before);
}
