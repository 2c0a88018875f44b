//! Renewals while the loop waits: whether they are done at once shows in that they are there before anybody else runs.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use super::*;

const LEASE: LeaseId = LeaseId(1u128.to_be_bytes());

/// What a renewal comes to before anybody else runs.
fn at_once(registry: &Registry, leases: Vec<LeaseId>) -> Poll<Vec<(LeaseId, Renewal)>> {
    let renewer = registry.renewer();
    let renewing = pin!(renewer.renew(leases));
    renewing.poll(&mut Context::from_waker(Waker::noop())).map(|renewed| renewed.expect("renewed"))
}

/// A registry whose one lease is quiet, and whose loop waits.
async fn quiet(runtime: &Runtime) -> (Registry, WriterTask) {
    let (registry, task) = start(&Arc::default(), false, runtime);
    registry.write(register(1, 1, 5_000)).await.expect("written");
    assert_eq!(registry.renewer().renew(vec![LEASE]).await.expect("answered"), []);
    tokio::time::sleep(Duration::from_millis(1)).await;
    (registry, task)
}

#[tokio::test(start_paused = true)]
async fn l1_a_renewal_that_needs_no_turn_of_the_loop_counts_from_its_moment_all_the_same() {
    let runtime = simulated();
    let (registry, _task) = quiet(&runtime).await;
    let head = registry.hub().head();
    let mut renewed_at = 0;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(4_900)).await;
        assert_eq!(at_once(&registry, vec![LEASE]), Poll::Ready(vec![]));
        renewed_at = runtime.now().mono;
    }
    changed(&registry, head).await;
    let late = runtime.now().mono - (renewed_at + 5_000);
    assert!(late <= 1, "{late} ms of simulated time late");
    assert_eq!(registry.renewer().renew(vec![LEASE]).await.expect("answered"), [(LEASE, Renewal::Unknown)]);
}

#[tokio::test(start_paused = true)]
async fn what_has_something_to_tell_or_is_much_is_for_the_loop() {
    let (registry, _task) = quiet(&simulated()).await;
    let unknown = LeaseId(7u128.to_be_bytes());
    assert_eq!(at_once(&registry, vec![LEASE, unknown]), Poll::Pending);
    assert_eq!(at_once(&registry, vec![LEASE; 65]), Poll::Pending, "the loop may want its core back");
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(at_once(&registry, vec![LEASE; 64]), Poll::Ready(vec![]));
    let answered = registry.renewer().renew(vec![LEASE, unknown, LEASE]).await.expect("answered");
    assert_eq!(answered, [(unknown, Renewal::Unknown)]);
}

#[tokio::test(start_paused = true)]
async fn what_comes_while_the_loop_works_or_when_it_is_late_is_for_the_loop() {
    let clock = JumpingClock { inner: Arc::new(SimulatedClock::starting_at(0)), jumped: Arc::default() };
    let jumped = Arc::clone(&clock.jumped);
    let (registry, _task) = quiet(&Runtime::new(clock, TokioSpawn, 1)).await;
    let head = registry.hub().head();
    // An hour in which the server could not run, and the first to run again is who renews. If that counted by itself, all that is
    // found out of the hour later would be added to it.
    jumped.fetch_add(3_600_000, Ordering::Relaxed);
    assert_eq!(at_once(&registry, vec![LEASE]), Poll::Pending);
    tokio::time::sleep(Duration::from_millis(4_900)).await;
    assert_eq!(instances(&registry), 1, "it was renewed when the loop ran");
    changed(&registry, head).await;
    assert_eq!(instances(&registry), 0, "and had a TTL from then on");
}

#[tokio::test(start_paused = true)]
async fn once_the_loop_has_ended_nothing_is_renewed() {
    let (registry, task) = quiet(&simulated()).await;
    task.stop().await;
    let refused = registry.renewer().renew(vec![LEASE]).await.expect_err("there is nobody");
    assert!(matches!(refused, WriteError::ShuttingDown), "{refused}");
}
