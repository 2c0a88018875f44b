//! A caller of a classic pool may go away at any moment: whatever it awaited, the pool is right afterwards, at the very next
//! poll.

use client_sdk::pool::Builder;
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower::{Service as _, ServiceExt as _};
use tower_test::mock::Spawn;

use crate::kit::{AT_ONCE, Ask, Classic, MILLI, World};

fn of(builder: &Builder, world: &World) -> Classic {
    builder.build(world.maker(), ()).unwrap()
}

/// Two services, both idle, of one request each.
fn of_two(world: &World) -> Spawn<Classic> {
    let builder = Builder::new().urgency(1.0).underutilized_below(0.0).max_services(2);
    let mut pool = Spawn::new(of(&builder, world));
    assert_ready_ok!(pool.poll_ready());
    let mut held = task::spawn(pool.call(Ask::Hold));
    assert_pending!(held.poll());
    assert_ready_ok!(pool.poll_ready());
    world.gate.add_permits(1);
    assert_ready_ok!(held.poll());
    assert_eq!((pool.get_ref().services(), world.alive()), (2, 2));
    pool
}

/// All of so many services take a request at once, and that is all that they take.
fn takes(pool: &mut Spawn<Classic>, world: &World, services: usize) {
    let mut held = Vec::new();
    for _ in 0..services {
        assert_ready_ok!(pool.poll_ready());
        let mut call = task::spawn(pool.call(Ask::Hold));
        assert_pending!(call.poll());
        held.push(call);
    }
    assert_pending!(pool.poll_ready());
    world.gate.add_permits(services);
    for mut call in held {
        assert_ready_ok!(call.poll());
    }
    assert_ready_ok!(pool.poll_ready());
    assert_eq!((pool.get_ref().services(), world.alive(), world.under_way()), (services, services, 0));
}

#[tokio::test(start_paused = true)]
async fn dropped_while_the_first_service_is_made_the_next_caller_gets_that_service() {
    let world = World::of(1);
    *world.making.lock().unwrap() = 10 * MILLI;
    let mut pool = of(&Builder::new(), &world);
    for _ in 0..5 {
        let mut ready = task::spawn(pool.ready());
        assert_pending!(ready.poll());
        drop(ready);
        assert_eq!((pool.services(), world.attempts(), world.under_way()), (0, 1, 1));
        assert!((pool.estimate() - 0.1).abs() < 1e-12, "no sample");
        tokio::time::sleep(MILLI).await;
    }
    // Nobody polls while it is done.
    tokio::time::sleep(10 * MILLI).await;
    pool.ready().await.unwrap().call(AT_ONCE).await.expect("served");
    assert_eq!((pool.services(), world.attempts(), world.made(), world.alive()), (1, 1, 1, 1));
    takes(&mut Spawn::new(pool), &world, 1);
}

#[tokio::test]
async fn dropped_while_all_are_busy_it_takes_nobodys_turn_and_leaves_no_wish_behind() {
    let world = World::of(1);
    let mut pool = of(&Builder::new().max_services(1), &world);
    let mut held = task::spawn(pool.ready().await.unwrap().call(Ask::Hold));
    assert_pending!(held.poll());
    for _ in 0..100 {
        let mut ready = task::spawn(pool.ready());
        assert_pending!(ready.poll());
    }
    let mut last = task::spawn(pool.ready());
    assert_pending!(last.poll());
    world.gate.add_permits(1);
    assert_ready_ok!(held.poll());
    drop(held);
    assert!(last.is_woken(), "the one that still waits, and not one of those that have gone");
    assert!(assert_ready!(last.poll()).is_ok());
    drop(last);
    takes(&mut Spawn::new(pool), &world, 1);
}

#[tokio::test]
async fn found_ready_and_never_called_it_holds_nothing_back() {
    let world = World::of(1);
    let mut pool = of_two(&world);
    for _ in 0..100 {
        assert_ready_ok!(pool.poll_ready());
    }
    takes(&mut pool, &world, 2);
    for _ in 0..100 {
        assert_ready_ok!(pool.poll_ready());
        assert_ready_ok!(task::spawn(pool.call(AT_ONCE)).poll());
        assert_ready_ok!(pool.poll_ready());
    }
    takes(&mut pool, &world, 2);
    assert_eq!(world.made(), 2);
}

#[tokio::test]
async fn what_was_promised_and_has_failed_meanwhile_is_not_called() {
    let world = World::of(1);
    let mut pool = of_two(&world);
    for id in [0, 1] {
        assert_ready_ok!(pool.poll_ready());
        world.kill(id);
    }
    // Both promises were broken; the next poll finds out, and makes one.
    assert_ready_ok!(pool.poll_ready());
    assert_eq!(assert_ready_ok!(task::spawn(pool.call(AT_ONCE)).poll()), 2);
    assert_eq!((pool.get_ref().services(), world.alive()), (1, 1));
}

#[tokio::test]
async fn a_response_that_is_dropped_frees_its_service_at_once() {
    for polls in 0..3 {
        let world = World::of(1);
        let mut pool = of_two(&world);
        for _ in 0..20 {
            assert_ready_ok!(pool.poll_ready());
            let mut call = task::spawn(pool.call(Ask::Hold));
            for _ in 0..polls {
                assert_pending!(call.poll());
            }
            drop(call);
        }
        takes(&mut pool, &world, 2);
        assert_eq!(world.made(), 2);
    }
}

#[tokio::test]
async fn a_response_that_is_dropped_wakes_whoever_waits_for_its_service() {
    let world = World::of(1);
    let mut pool = Spawn::new(of(&Builder::new().max_services(1), &world));
    assert_ready_ok!(pool.poll_ready());
    let mut held = task::spawn(pool.call(Ask::Hold));
    assert_pending!(held.poll());
    assert_pending!(pool.poll_ready());
    drop(held);
    assert!(pool.is_woken());
    takes(&mut pool, &world, 1);
}

#[tokio::test]
async fn a_response_outlives_its_service_and_the_pool() {
    let world = World::of(1);
    let mut pool = Spawn::new(of(&Builder::new(), &world));
    assert_ready_ok!(pool.poll_ready());
    let mut held = task::spawn(pool.call(Ask::Hold));
    assert_pending!(held.poll());
    drop(pool);
    assert_eq!(world.alive(), 0);
    world.gate.add_permits(1);
    assert_eq!(assert_ready_ok!(held.poll()), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_dropped_gives_up_what_it_makes() {
    let world = World::of(1);
    *world.making.lock().unwrap() = 10 * MILLI;
    let mut pool = of(&Builder::new(), &world);
    assert_pending!(task::spawn(pool.ready()).poll());
    assert_eq!(world.under_way(), 1);
    drop(pool);
    tokio::time::sleep(20 * MILLI).await;
    assert_eq!((world.under_way(), world.made(), world.alive()), (0, 0, 0));
}
