//! What was wrong with the pool that tower had and is mended in classic mode. Each fails on the old behaviour.

use std::sync::atomic::Ordering;

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
    assert_pending!(pool.poll_ready(), "the maker is asked again");
    let mut one = make(&mut made, 0, 1).await;
    assert_ready_ok!(pool.poll_ready());
    let mut call = task::spawn(pool.call(()));
    answer(&mut one, "one").await;
    assert_eq!(assert_ready_ok!(call.poll()), "one");
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

/// Or who polls would hold his thread for ever.
#[tokio::test]
async fn services_that_fail_at_once_are_made_one_a_poll() {
    let world = World::of(1);
    (0..1000).for_each(|id| world.kill(id));
    let mut pool = tower_test::mock::Spawn::new(Builder::new().build(world.maker(), ()).unwrap());
    for made in 1..=3 {
        let error = assert_ready!(pool.poll_ready()).expect_err("it has failed");
        assert!(matches!(error, PoolError::Make(_)) && error.never_left(), "{error}");
        assert!(error.to_string().ends_with("none could be made: dead"), "{error}");
        assert_eq!((world.made(), pool.get_ref().services(), world.alive()), (made, 0, 0));
    }
    world.dead.lock().unwrap().clear();
    assert_ready_ok!(pool.poll_ready());
    // One that was ready once and has failed is replaced in the same poll; so is the next one only if it lives.
    world.kill(3);
    assert_ready_ok!(pool.poll_ready());
    assert_eq!((world.made(), world.alive()), (5, 1));
    (4..1000).for_each(|id| world.kill(id));
    assert!(assert_ready!(pool.poll_ready()).is_err());
    assert_eq!((world.made(), world.alive()), (6, 0));
}

#[tokio::test]
async fn services_that_fail_at_once_fail_nobody_while_another_one_lives() {
    let world = World::of(1);
    let builder = Builder::new().urgency(1.0).underutilized_below(0.0);
    let mut pool = tower_test::mock::Spawn::new(builder.build(world.maker(), ()).unwrap());
    assert_ready_ok!(pool.poll_ready());
    let mut held = task::spawn(pool.call(Ask::Hold));
    assert_pending!(held.poll());
    (1..1000).for_each(|id| world.kill(id));
    for made in 2..5 {
        assert_pending!(pool.poll_ready());
        assert_eq!((world.made(), pool.get_ref().services()), (made, 1));
    }
    world.gate.add_permits(1);
    assert_ready_ok!(held.poll());
    drop(held);
    assert!(pool.is_woken());
    assert_ready_ok!(pool.poll_ready());
}

#[tokio::test]
async fn a_service_that_panics_when_it_is_asked_leaves_and_is_replaced() {
    let world = World::of(1);
    let builder = Builder::new().urgency(1.0).underutilized_below(0.0);
    let mut pool = tower_test::mock::Spawn::new(builder.build(world.maker(), ()).unwrap());
    assert_ready_ok!(pool.poll_ready());
    // The last one, which was promised already.
    world.panic_when_asked(0);
    assert_ready_ok!(pool.poll_ready());
    assert_eq!((world.made(), world.alive(), pool.get_ref().services()), (2, 1, 1));
    assert_eq!(assert_ready_ok!(task::spawn(pool.call(AT_ONCE)).poll()), 1);
    // The last one, which was called before.
    world.panic_when_asked(1);
    assert_ready_ok!(pool.poll_ready());
    assert_eq!((world.made(), world.alive(), pool.get_ref().services()), (3, 1, 1));
    // One of two.
    let mut held = task::spawn(pool.call(Ask::Hold));
    assert_pending!(held.poll());
    assert_ready_ok!(pool.poll_ready());
    assert_eq!(pool.get_ref().services(), 2);
    world.panic_when_asked(3);
    assert_ready_ok!(pool.poll_ready());
    assert_eq!(
        (world.made(), world.alive(), pool.get_ref().services()),
        (5, 2, 2),
        "one more for the busy one"
    );
    // And each that is made.
    world.gate.add_permits(1);
    assert_ready_ok!(held.poll());
    drop(held);
    (0..1000).for_each(|id| world.panic_when_asked(id));
    for _ in 0..3 {
        let error = assert_ready!(pool.poll_ready()).expect_err("nothing to serve with");
        assert!(matches!(error, PoolError::Make(_)) && error.to_string().ends_with("panicked"), "{error}");
        assert_eq!((pool.get_ref().services(), world.alive()), (0, 0));
    }
}

#[tokio::test]
async fn services_that_panic_when_they_are_asked_for_their_load_serve_all_the_same() {
    let world = World::of(1);
    let builder = Builder::new().urgency(1.0).underutilized_below(0.0);
    let mut pool = tower_test::mock::Spawn::new(builder.build(world.maker(), ()).unwrap());
    assert_ready_ok!(pool.poll_ready());
    let mut held = task::spawn(pool.call(Ask::Hold));
    assert_pending!(held.poll());
    assert_ready_ok!(pool.poll_ready());
    world.gate.add_permits(1);
    assert_ready_ok!(held.poll());
    drop(held);
    world.load_panics.store(true, Ordering::Relaxed);
    assert_ready_ok!(task::spawn(pool.call(AT_ONCE)).poll());
    assert_ready_ok!(pool.poll_ready());
    assert_eq!(pool.get_ref().services(), 2);
    assert_ready_ok!(task::spawn(pool.call(AT_ONCE)).poll());
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
