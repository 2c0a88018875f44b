//! What was wrong with the pool that tower had and is mended in classic mode. Each fails on the old behaviour.

use client_sdk::pool::{Builder, PoolError, SettingsError};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower_test::assert_request_eq;

use crate::{
    classic::{answer, is_gone, make, mocked},
    kit::{AT_ONCE, Ask, Fault, World},
};

#[tokio::test]
async fn c_an_error_of_the_maker_is_told_and_polling_again_tries_again() {
    let (mut pool, mut made) = mocked(&Builder::new());
    assert_pending!(pool.poll_ready());
    {
        let made = &mut made;
        tokio::pin!(made);
        assert_request_eq!(made, ()).send_error("no hands");
    }
    let error = assert_ready!(pool.poll_ready()).expect_err("nothing to serve with");
    assert!(matches!(error, PoolError::Make(_)), "{error}");
    assert_eq!(error.to_string(), "the pool has no service, and none could be made: no hands");
}

#[tokio::test]
async fn c_an_error_of_the_making_is_told_and_polling_again_makes_again() {
    let world = World::of(1);
    world.fail_makes(true);
    let mut pool = tower_test::mock::Spawn::new(Builder::new().build(world.maker(), ()).unwrap());
    for attempt in 1..=3 {
        let error = assert_ready!(pool.poll_ready()).expect_err("nothing to serve with");
        assert!(error.to_string().contains("no more hands"), "{error}");
        assert_eq!(world.attempts(), attempt);
    }
    world.fail_makes(false);
    assert_ready_ok!(pool.poll_ready());
}

#[tokio::test]
async fn c_an_error_of_the_maker_fails_nobody_while_a_service_lives() {
    let world = World::of(1);
    let builder = Builder::new().urgency(1.0).underutilized_below(0.0);
    let mut pool = tower_test::mock::Spawn::new(builder.build(world.maker(), ()).unwrap());
    assert_ready_ok!(pool.poll_ready());
    let mut call = task::spawn(pool.call(Ask::Hold));
    assert_pending!(call.poll());
    world.fail_makes(true);
    for _ in 0..3 {
        assert_pending!(pool.poll_ready());
    }
    assert!(world.attempts() > 1, "it tried");
    world.gate.add_permits(1);
    assert!(call.is_woken());
    assert_ready_ok!(call.poll());
    drop(call);
    assert_ready_ok!(pool.poll_ready());
}

#[tokio::test]
async fn c_whatever_is_wrong_with_the_maker_is_told_as_often_as_it_is_polled_until_it_is_right() {
    let faults = [
        (Fault::ReadyFails, "no workshop"),
        (Fault::ReadyPanics, "panicked"),
        (Fault::CallPanics, "panicked"),
        (Fault::MakingPanics, "panicked"),
    ];
    for (fault, says) in faults {
        let world = World::of(1);
        world.set_fault(Some(fault));
        let mut pool = tower_test::mock::Spawn::new(Builder::new().build(world.maker(), ()).unwrap());
        for _ in 0..3 {
            let error = assert_ready!(pool.poll_ready()).expect_err("nothing to serve with");
            assert!(matches!(error, PoolError::Make(_)) && error.never_left(), "{fault:?}: {error}");
            assert!(error.to_string().ends_with(says), "{fault:?}: {error}");
            assert_eq!((pool.get_ref().services(), world.under_way()), (0, 0), "{fault:?}");
        }
        assert!((pool.get_ref().estimate() - 0.1).abs() < 1e-12, "a failure is no sample");
        world.set_fault(None);
        assert_ready_ok!(pool.poll_ready());
        assert_eq!(assert_ready_ok!(task::spawn(pool.call(AT_ONCE)).poll()), 0);
    }
}

#[tokio::test]
async fn c_whatever_is_wrong_with_the_maker_fails_nobody_while_a_service_lives() {
    for fault in [Fault::ReadyFails, Fault::ReadyPanics, Fault::CallPanics, Fault::MakingPanics] {
        let world = World::of(1);
        let builder = Builder::new().urgency(1.0).underutilized_below(0.0);
        let mut pool = tower_test::mock::Spawn::new(builder.build(world.maker(), ()).unwrap());
        assert_ready_ok!(pool.poll_ready());
        let mut held = task::spawn(pool.call(Ask::Hold));
        assert_pending!(held.poll());
        world.set_fault(Some(fault));
        for _ in 0..3 {
            assert_pending!(pool.poll_ready(), "{fault:?}");
        }
        // And when it is right again the wish arises anew.
        world.set_fault(None);
        assert_ready_ok!(pool.poll_ready());
        assert_eq!(pool.get_ref().services(), 2, "{fault:?}");
        assert_eq!(assert_ready_ok!(task::spawn(pool.call(AT_ONCE)).poll()), 1);
    }
}

#[tokio::test]
async fn d_the_one_that_is_removed_is_the_one_that_was_added_last() {
    let (mut pool, mut made) = mocked(&Builder::new().urgency(1.0));
    assert_pending!(pool.poll_ready());
    let mut oldest = make(&mut made, 0, 0).await;
    assert_pending!(pool.poll_ready());
    let mut middle = make(&mut made, 0, 0).await;
    assert_pending!(pool.poll_ready());
    let mut newest = make(&mut made, 0, 1).await;
    assert_ready_ok!(pool.poll_ready());
    oldest.allow(1);
    assert!(!is_gone(&mut newest));
    // The one that was promised to the caller is removed: another one is found, and not one at its place.
    assert_ready_ok!(pool.poll_ready());
    assert!(is_gone(&mut newest) && !is_gone(&mut middle) && !is_gone(&mut oldest));
    assert_ready_ok!(pool.poll_ready());
    assert!(is_gone(&mut middle) && !is_gone(&mut oldest));
    let mut call = task::spawn(pool.call(()));
    answer(&mut oldest, "oldest").await;
    assert_eq!(assert_ready_ok!(call.poll()), "oldest");
}

#[test]
fn f_a_limit_of_0_makes_no_service_but_an_error() {
    let world = World::of(1);
    let error = Builder::new().max_services(0).build(world.maker(), ()).map(|_| ()).expect_err("refused");
    assert_eq!(error, SettingsError::Zero { setting: "max_services" });
    assert_eq!(world.attempts(), 0);
    Builder::new().max_services(None).build(world.maker(), ()).expect("no limit at all");
}
