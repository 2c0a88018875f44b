//! The estimate of a classic pool, poll by poll, and what follows from it. Numbers are such that a float holds them exactly,
//! where it matters.

#![allow(clippy::float_cmp)] // see above

use std::time::Duration;

use client_sdk::pool::{Builder, Pool, SettingsError};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower_test::mock::{self, Spawn};

use crate::{
    classic::{answer, make, mocked},
    kit::{Ask, Classic, MILLI, World},
};

fn of(builder: &Builder, world: &World) -> Spawn<Classic> {
    Spawn::new(builder.build(world.maker(), ()).unwrap())
}

#[tokio::test]
async fn ready_is_a_sample_of_0_and_pending_one_of_1() {
    // Never under-provisioned, and never over-provisioned.
    let builder = Builder::new().initial(0.5).urgency(0.25).loaded_above(1.0).underutilized_below(0.0);
    let (mut pool, mut made) = mocked(&builder);
    assert_pending!(pool.poll_ready());
    let mut one = make(&mut made, 0, 1).await;
    assert_ready_ok!(pool.poll_ready());
    assert_eq!(pool.get_ref().estimate(), 0.375, "0.25 · 0 + 0.75 · 0.5");
    let _call = task::spawn(pool.call(()));
    assert_pending!(pool.poll_ready());
    assert_eq!(pool.get_ref().estimate(), 0.531_25, "0.25 · 1 + 0.75 · 0.375");
    assert_pending!(pool.poll_ready());
    assert_eq!(pool.get_ref().estimate(), 0.648_437_5, "0.25 · 1 + 0.75 · 0.53125");
    one.allow(1);
    assert_ready_ok!(pool.poll_ready());
    assert_eq!(pool.get_ref().estimate(), 0.486_328_125, "0.25 · 0 + 0.75 · 0.6484375");
}

#[tokio::test]
async fn while_a_service_is_being_made_pending_is_no_sample() {
    let (mut pool, mut made) = mocked(&Builder::new().initial(0.5).urgency(0.25).loaded_above(0.625));
    for _ in 0..50 {
        assert_pending!(pool.poll_ready());
    }
    assert_eq!(pool.get_ref().estimate(), 0.5, "the first one is being made");
    let mut one = make(&mut made, 0, 1).await;
    assert_ready_ok!(pool.poll_ready());
    let mut call = task::spawn(pool.call(()));
    assert_pending!(pool.poll_ready());
    assert_eq!(pool.get_ref().estimate(), 0.531_25);
    assert_pending!(pool.poll_ready());
    assert_eq!(pool.get_ref().estimate(), 0.625, "so a second one is made");
    // Ready is one all the time.
    answer(&mut one, "one").await;
    assert_ready_ok!(call.poll());
    one.allow(1);
    assert_ready_ok!(pool.poll_ready());
    assert_eq!(pool.get_ref().estimate(), 0.468_75, "0.75 · 0.625");
    let _call = task::spawn(pool.call(()));
    for _ in 0..50 {
        assert_pending!(pool.poll_ready());
    }
    assert_eq!(pool.get_ref().estimate(), 0.468_75, "the second one is being made");
}

#[tokio::test]
async fn an_estimate_above_the_upper_threshold_is_clamped_to_it() {
    let world = World::of(1);
    // The limit forbids to make another one, so each Pending is a sample.
    let builder = Builder::new().initial(0.0).urgency(0.5).loaded_above(0.75).max_services(1);
    let mut pool = of(&builder, &world);
    assert_ready_ok!(pool.poll_ready());
    let _held = task::spawn(pool.call(Ask::Hold));
    for estimate in [0.5, 0.75, 0.75, 0.75] {
        // 0.5 · 1 + 0.5 · 0.5 is at the threshold, and the next would be above.
        assert_pending!(pool.poll_ready());
        assert_eq!(pool.get_ref().estimate(), estimate);
    }
    assert_eq!(world.attempts(), 1);
}

#[tokio::test]
async fn only_above_the_upper_threshold_it_grows_and_only_below_the_lower_one_it_shrinks() {
    let world = World::of(1);
    let builder = Builder::new().initial(0.25).urgency(0.5);
    let mut pool = of(&builder.clone().loaded_above(0.5).underutilized_below(0.125), &world);
    assert_ready_ok!(pool.poll_ready());
    assert_eq!(pool.get_ref().estimate(), 0.125);
    let mut held = task::spawn(pool.call(Ask::Hold));
    // 0.5625 is above 0.5.
    assert_ready_ok!(pool.poll_ready());
    assert_eq!(pool.get_ref().services(), 2, "above it, and made at once");
    world.gate.add_permits(1);
    assert_ready_ok!(held.poll());
    // That poll was one sample, a Pending.
    for estimate in [0.5, 0.25, 0.125] {
        assert_eq!(pool.get_ref().estimate(), estimate);
        assert_ready_ok!(pool.poll_ready());
        assert_eq!(pool.get_ref().services(), 2, "at the threshold it stays; with the last poll it is below");
    }
    assert_ready_ok!(pool.poll_ready());
    assert_eq!(pool.get_ref().services(), 1);

    // At the upper threshold nothing is made.
    let world = World::of(1);
    let mut pool = of(&builder.loaded_above(0.5625).underutilized_below(0.0), &world);
    assert_ready_ok!(pool.poll_ready());
    let _held = task::spawn(pool.call(Ask::Hold));
    assert_pending!(pool.poll_ready());
    assert_eq!((pool.get_ref().estimate(), world.attempts()), (0.5625, 1));
    assert_ready_ok!(pool.poll_ready());
    assert_eq!(world.attempts(), 2);
}

#[tokio::test]
async fn with_one_that_is_too_many_the_estimate_goes_back_to_initial_and_with_the_last_one_it_does_not() {
    let world = World::of(1);
    let builder = Builder::new().initial(0.5).urgency(1.0).underutilized_below(0.25).loaded_above(0.75);
    let mut pool = of(&builder, &world);
    assert_ready_ok!(pool.poll_ready());
    let mut held = task::spawn(pool.call(Ask::Hold));
    assert_pending!(held.poll());
    assert_ready_ok!(pool.poll_ready(), "a Pending, which asks for a second, which is made at once");
    assert_eq!(pool.get_ref().services(), 2);
    world.gate.add_permits(1);
    assert_ready_ok!(held.poll());
    assert_ready_ok!(pool.poll_ready());
    assert_eq!((pool.get_ref().estimate(), pool.get_ref().services()), (0.5, 2), "at the next poll one goes");
    assert_ready_ok!(pool.poll_ready());
    assert_eq!((pool.get_ref().estimate(), pool.get_ref().services()), (0.0, 1), "that one stays");
    assert_ready_ok!(pool.poll_ready());
    assert_eq!((pool.get_ref().estimate(), pool.get_ref().services()), (0.0, 1));
    assert_eq!(world.alive(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_is_made_at_a_time_however_often_it_is_polled() {
    let world = World::of(1);
    let mut pool = of(&Builder::new().urgency(1.0).underutilized_below(0.0), &world);
    assert_ready_ok!(pool.poll_ready());
    let mut held = vec![task::spawn(pool.call(Ask::Hold))];
    *world.making.lock().unwrap() = 10 * MILLI;
    for services in 2..5 {
        for _ in 0..100 {
            assert_pending!(pool.poll_ready());
        }
        assert_eq!((world.attempts(), world.under_way()), (services, 1));
        tokio::time::advance(Duration::from_millis(11)).await;
        assert!(pool.is_woken());
        assert_ready_ok!(pool.poll_ready(), "of use as soon as it is made");
        held.push(task::spawn(pool.call(Ask::Hold)));
        assert_eq!((world.attempts(), world.under_way()), (services, 0));
    }
}

#[tokio::test]
async fn the_defaults_are_those_of_tower() {
    assert_eq!(
        format!("{:?}", Builder::new()),
        "Builder { initial: 0.1, low: 1e-5, high: 0.2, urgency: 0.03, max: None, runtime: None }"
    );
    let world = World::of(1);
    let defaults: [Classic; 2] =
        [Pool::new(world.maker(), ()), Builder::new().build(world.maker(), ()).unwrap()];
    for pool in defaults {
        let (before, mut pool) = (world.attempts(), mock::Spawn::new(pool));
        assert_eq!(pool.get_ref().estimate(), 0.1);
        assert_ready_ok!(pool.poll_ready());
        assert!((pool.get_ref().estimate() - 0.1 * 0.97).abs() < 1e-15, "a sample weighs 0.03");
        let mut held = task::spawn(pool.call(Ask::Hold));
        assert_pending!(held.poll());
        // 1 − 0.903 · 0.97^n is 0.1759 after three of them and 0.2006 after four.
        for _ in 0..3 {
            assert_pending!(pool.poll_ready());
            assert_eq!(world.attempts() - before, 1);
        }
        assert!(pool.poll_ready().is_ready() && world.attempts() - before == 2, "above 0.2 there are two");
        assert_eq!(pool.get_ref().estimate(), 0.2, "clamped");
        world.gate.add_permits(1);
        assert_ready_ok!(held.poll());
        let mut estimate = 0.2;
        while estimate >= 0.000_01 {
            assert!((pool.get_ref().estimate() - estimate).abs() < 1e-12);
            assert_eq!(pool.get_ref().services(), 2);
            assert_ready_ok!(pool.poll_ready());
            estimate *= 0.97;
        }
        assert_eq!(pool.get_ref().estimate(), 0.1, "below 0.00001: back to what it was at the start");
        assert_ready_ok!(pool.poll_ready());
        assert_eq!(pool.get_ref().services(), 1);
    }
}

#[tokio::test]
async fn urgency_is_clamped_to_between_0_and_1() {
    for (urgency, after) in [(-1.0, 0.5), (0.0, 0.5), (1.0, 0.0), (7.0, 0.0), (f64::INFINITY, 0.0)] {
        let world = World::of(1);
        let builder = Builder::new().urgency(urgency).initial(0.5).loaded_above(1.0).max_services(1);
        let mut pool = of(&builder, &world);
        assert_ready_ok!(pool.poll_ready());
        assert_eq!(pool.get_ref().estimate(), after, "{urgency}");
        let _held = task::spawn(pool.call(Ask::Hold));
        assert_pending!(pool.poll_ready());
        let after = if after == 0.0 { 1.0 } else { after };
        assert_eq!(pool.get_ref().estimate(), after, "{urgency}");
    }
}

#[test]
fn shares_from_0_to_1_are_taken_and_what_is_none_is_refused_by_its_name() {
    type Set = fn(Builder, f64) -> Builder;
    let build = |builder: Builder| builder.build(World::of(1).maker(), ()).map(|_: Classic| ());
    // With these the others are in order, whatever the one is.
    let shares: [(&str, Set); 3] = [
        ("initial", Builder::initial),
        ("underutilized_below", |builder, value| builder.underutilized_below(value).loaded_above(1.0)),
        ("loaded_above", |builder, value| builder.loaded_above(value).underutilized_below(0.0)),
    ];
    for (name, set) in shares {
        for value in [0.0, 0.5, 1.0] {
            assert_eq!(build(set(Builder::new(), value)), Ok(()), "{name} {value}");
        }
        for value in [-0.1, 1.1, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(
                build(set(Builder::new(), value)),
                Err(SettingsError::NotAShare { setting: name, value })
            );
        }
        let error = build(set(Builder::new(), f64::NAN)).expect_err("not a number");
        assert_eq!(error.to_string(), format!("{name} is NaN; it is a share: give a number between 0 and 1"));
    }
    let both = |low, high| build(Builder::new().underutilized_below(low).loaded_above(high));
    assert_eq!(both(0.25, 0.25), Ok(()));
    assert!(matches!(both(0.26, 0.25), Err(SettingsError::Order { .. })));
    assert_eq!(build(Builder::new().max_services(1)), Ok(()));
}

#[tokio::test]
async fn a_service_that_is_ready_serves_while_another_one_is_being_made() {
    let (mut pool, mut made) = mocked(&Builder::new().urgency(1.0).underutilized_below(0.0));
    assert_pending!(pool.poll_ready());
    let mut one = make(&mut made, 0, 1).await;
    assert_ready_ok!(pool.poll_ready());
    let mut call = task::spawn(pool.call(()));
    assert_pending!(pool.poll_ready(), "a second one is being made");
    answer(&mut one, "one").await;
    assert_ready_ok!(call.poll());
    one.allow(1);
    assert_ready_ok!(pool.poll_ready());
    let mut call = task::spawn(pool.call(()));
    answer(&mut one, "one again").await;
    assert_eq!(assert_ready_ok!(call.poll()), "one again");
}
