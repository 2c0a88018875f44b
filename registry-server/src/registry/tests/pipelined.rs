//! What is decided while a group is in flight.

use std::task::{Context, Waker};

use super::*;
use crate::core::Cause::{self, Expire, Register};

/// Waits until the store was asked so often, and the loop has taken all that was sent to it before this.
async fn in_flight(script: &Arc<Script>, registry: &Registry, appends: usize) {
    let waiting = Arc::clone(script);
    tokio::task::spawn_blocking(move || waiting.entered(appends)).await.expect("entered");
    taken(registry).await;
}

async fn taken(registry: &Registry) {
    loop {
        // Renewals wait for no disk: once this is answered, the loop has had a turn.
        registry.renewer().renew(Vec::new()).await.expect("renewed");
        if registry.commands.capacity() == QUEUE {
            return;
        }
    }
}

#[allow(clippy::disallowed_methods)] // what came of it is asked for
fn write(registry: &Registry, command: Command) -> tokio::task::JoinHandle<Result<Written, WriteError>> {
    let registry = registry.clone();
    tokio::spawn(async move { registry.write(command).await })
}

fn causes(script: &Script) -> Vec<Vec<Cause>> {
    let state = script.state.lock().expect("unpoisoned");
    state.groups.iter().map(|group| group.iter().map(|record| record.cause).collect()).collect()
}

#[tokio::test]
async fn what_comes_while_the_disk_works_is_in_the_next_group_unless_it_rests_on_what_is_in_flight() {
    let script = Arc::new(Script::default());
    let (registry, _task) = start(&script, true, &simulated());
    script.hold(true);
    let first = write(&registry, register(1, 1, 15_000));
    in_flight(&script, &registry, 1).await;
    // The same instance under another lease: it takes it over, once that is registered.
    let same = write(&registry, register(1, 2, 15_000));
    let others: Vec<_> = (3..6).map(|id| write(&registry, register(id, id as u128, 15_000))).collect();
    tokio::task::yield_now().await;
    taken(&registry).await;
    script.hold(false);
    let first = first.await.expect("joined").expect("written");
    let same = same.await.expect("joined").expect("written");
    for other in others {
        let other = other.await.expect("joined").expect("written");
        assert!(first.revision < other.revision && other.revision < same.revision);
    }
    assert_eq!(script.groups(), [1, 4]);
    assert_eq!(instances(&registry), 4);
}

#[tokio::test]
async fn d4_what_had_gathered_when_the_store_failed_is_refused_too() {
    let jumped = Arc::<AtomicU64>::default();
    let inner = Arc::new(SimulatedClock::starting_at(0));
    let clock = JumpingClock { inner, jumped: Arc::clone(&jumped) };
    let script = Arc::new(Script::default());
    let store = ScriptedStore { script: Arc::clone(&script), blocks: true, failed: false };
    // With the guard the end of a lease would not be decided behind a registration.
    let settings = Settings { guard: false, ..Settings::default() };
    let runtime = Runtime::new(clock, TokioSpawn, 1);
    let (registry, _, task) =
        Registry::start(Box::new(store), settings, HubSettings::default(), &runtime).expect("it loads");
    registry.write(register(0, 9, 1_000)).await.expect("written");
    script.hold(true);
    let first = write(&registry, register(1, 1, 15_000));
    in_flight(&script, &registry, 2).await;
    // Too little to be a stall. The first lease's end gathers, and a registration.
    jumped.fetch_add(400, Ordering::Relaxed);
    taken(&registry).await;
    jumped.fetch_add(450, Ordering::Relaxed);
    taken(&registry).await;
    jumped.fetch_add(450, Ordering::Relaxed);
    let second = write(&registry, register(2, 2, 15_000));
    tokio::task::yield_now().await;
    taken(&registry).await;
    let lease = LeaseId(9u128.to_be_bytes());
    let unknown = registry.renewer().renew(vec![lease]).await.expect("answered");
    assert_eq!(unknown, [(lease, Renewal::Unknown)], "its end is proposed");
    script.state.lock().expect("unpoisoned").fail = true;
    script.hold(false);
    for write in [first, second] {
        let refused = write.await.expect("joined").expect_err("not durable");
        assert!(matches!(refused, WriteError::StoreFailed(_)), "{refused}");
    }
    assert_eq!(
        registry.renewer().renew(vec![lease]).await.expect("answered"),
        [],
        "and can be renewed again"
    );
    assert_eq!(instances(&registry), 1);
    task.stop().await;
    let state = script.state.lock().expect("unpoisoned");
    assert_eq!((state.entered, state.groups.len()), (2, 1), "what had gathered never reached the store");
}

#[tokio::test]
async fn l1_a_lease_that_is_registered_again_at_this_moment_does_not_run_out_and_holds_up_no_other() {
    let jumped = Arc::<AtomicU64>::default();
    let inner = Arc::new(SimulatedClock::starting_at(0));
    let clock = JumpingClock { inner, jumped: Arc::clone(&jumped) };
    let script = Arc::new(Script::default());
    let (registry, _task) = start(&script, true, &Runtime::new(clock, TokioSpawn, 1));
    for id in [1, 2] {
        registry.write(register(id, id as u128, 1_000)).await.expect("written");
    }
    script.hold(true);
    // One instance more under the first lease, which renews it.
    let again = write(&registry, register(3, 1, 1_000));
    in_flight(&script, &registry, 3).await;
    for _ in 0..3 {
        jumped.fetch_add(400, Ordering::Relaxed);
        taken(&registry).await;
    }
    script.hold(false);
    again.await.expect("joined").expect("written");
    registry.hub().follow_head().wait_for(|_| instances(&registry) == 2).await.expect("the hub lives");
    assert_eq!(causes(&script), [[Register], [Register], [Register], [Expire]]);
    let both = [1u128, 2].map(|lease| LeaseId(lease.to_be_bytes()));
    let unknown = registry.renewer().renew(both.to_vec()).await.expect("answered");
    assert_eq!(unknown, [(both[1], Renewal::Unknown)]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_disk_is_given_what_is_about_to_come_too_and_a_quick_one_only_enough() {
    const WAVES: usize = 10;
    const OF: usize = 8;
    for (took, waits_for_all) in [(0, false), (400, true)] {
        let jumped = Arc::<AtomicU64>::default();
        let inner = Arc::new(SimulatedClock::starting_at(0));
        let clock = JumpingClock { inner, jumped: Arc::clone(&jumped) };
        let script = Arc::new(Script::default());
        let (registry, _task) = start(&script, true, &Runtime::new(clock, TokioSpawn, 1));
        script.hold(true);
        let first = write(&registry, register(0, 1, 15_000));
        in_flight(&script, &registry, 1).await;
        jumped.fetch_add(took, Ordering::Relaxed);
        script.hold(false);
        first.await.expect("joined").expect("written");
        let mut writes = Vec::new();
        for wave in 0..WAVES {
            for id in (1..=OF).map(|n| wave * OF + n) {
                let mut write = Box::pin(registry.write(register(id, 1 + id as u128, 15_000)));
                assert!(write.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                writes.push(write);
            }
            tokio::task::yield_now().await;
        }
        for write in writes {
            write.await.expect("written");
        }
        let all = WAVES * OF;
        let second = script.groups()[1];
        assert!(if waits_for_all { second == all } else { second < all }, "{second} after {took} ms");
    }
}

/// On one thread, with a store that is done at once: there is always more that is due.
#[tokio::test(start_paused = true)]
async fn l2_other_writes_have_their_turn_while_very_many_leases_run_out() {
    const LEASES: u32 = 5_000;
    let runtime = simulated();
    let (registry, _task) = start(&Arc::default(), false, &runtime);
    for lease in 1..=LEASES {
        let command = register(lease as usize, lease.into(), 60_000);
        registry.write(command).await.expect("written");
    }
    assert!(LEASES as usize >= 5 * EXPIRED_AT_ONCE, "several revisions");
    let before = registry.hub().head();
    changed(&registry, before).await;
    let (first, all) = (registry.hub().head(), LEASES as usize);
    let written = registry.write(register(0, u128::from(LEASES) + 1, 60_000)).await.expect("written");
    let gone_or_held = registry.inspect(move |state, _| {
        let lease = |lease: u32| LeaseId(u128::from(lease).to_be_bytes());
        let held: usize = (1..=LEASES).map(|it| state.held_of(&lease(it))).sum();
        all + 1 - state.instance_count() + held
    });
    let gone_or_held = gone_or_held.await.expect("answered");
    assert!(written.revision > first, "it came after the first of them");
    assert!(gone_or_held < all, "and was answered before the last: {gone_or_held}");
}
