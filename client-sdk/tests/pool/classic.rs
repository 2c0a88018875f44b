//! The four scenarios of the pool that tower had, on mocks, and what a builder refuses.

use client_sdk::pool::{Builder, Pool, PoolError, SettingsError};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower::load::Constant;
use tower_test::{
    assert_request_eq,
    mock::{self, Handle, Mock},
};

use crate::kit::{AT_ONCE, World};

pub type Served = Constant<Mock<(), &'static str>, usize>;
pub type Made = Handle<(), Served>;
pub type Asked = Handle<(), &'static str>;
pub type Mocked = mock::Spawn<Pool<Mock<(), Served>, (), ()>>;

/// A pool, and what is told of its maker.
pub fn mocked(builder: &Builder) -> (Mocked, Made) {
    let (maker, made) = mock::pair();
    (mock::Spawn::new(builder.build(maker, ()).unwrap()), made)
}

/// Answers the maker's one request with a service of this load, which takes so many requests for now.
pub async fn make(made: &mut Made, load: usize, takes: u64) -> Asked {
    let (service, mut asked) = mock::pair();
    asked.allow(takes);
    tokio::pin!(made);
    assert_request_eq!(made, ()).send_response(Constant::new(service, load));
    asked
}

pub async fn answer(asked: &mut Asked, text: &'static str) {
    tokio::pin!(asked);
    assert_request_eq!(asked, ()).send_response(text);
}

/// Whether the maker was asked for a further service.
pub fn asked_for_more(made: &mut Made) -> bool {
    let mut next = task::spawn(made.next_request());
    next.poll().is_ready()
}

/// Whether the service was dropped.
pub fn is_gone(asked: &mut Asked) -> bool {
    let mut next = task::spawn(asked.next_request());
    matches!(next.poll(), std::task::Poll::Ready(None))
}

fn eager() -> Builder {
    Builder::new().urgency(1.0).underutilized_below(0.0)
}

#[tokio::test]
async fn basic_pending_until_the_first_service_is_there_then_a_call_goes_through() {
    let (mut pool, mut made) = mocked(&Builder::new());
    assert_pending!(pool.poll_ready());
    let mut one = make(&mut made, 0, 1).await;
    assert_ready_ok!(pool.poll_ready());
    let mut call = task::spawn(pool.call(()));
    assert_pending!(call.poll());
    answer(&mut one, "one").await;
    assert_eq!(assert_ready_ok!(call.poll()), "one");
}

#[tokio::test]
async fn high_load_asks_for_a_second_and_for_no_third_and_each_gets_a_request() {
    let (mut pool, mut made) = mocked(&eager().max_services(2));
    assert_pending!(pool.poll_ready());
    let mut one = make(&mut made, 0, 1).await;
    assert_ready_ok!(pool.poll_ready());
    let mut first = task::spawn(pool.call(()));
    assert_pending!(pool.poll_ready());
    let mut two = make(&mut made, 0, 1).await;
    assert_ready_ok!(pool.poll_ready());
    let mut second = task::spawn(pool.call(()));
    assert_pending!(pool.poll_ready());
    assert!(!asked_for_more(&mut made), "the limit is 2");

    answer(&mut one, "one").await;
    answer(&mut two, "two").await;
    assert_eq!(assert_ready_ok!(first.poll()), "one");
    assert_eq!(assert_ready_ok!(second.poll()), "two");
}

#[tokio::test]
async fn low_load_drops_one_and_never_the_last_and_calls_go_on() {
    let (mut pool, mut made) = mocked(&Builder::new().urgency(1.0));
    assert_pending!(pool.poll_ready());
    let mut one = make(&mut made, 0, 1).await;
    assert_ready_ok!(pool.poll_ready());
    let mut call = task::spawn(pool.call(()));
    answer(&mut one, "one").await;
    assert_eq!(assert_ready_ok!(call.poll()), "one");

    assert_pending!(pool.poll_ready());
    let two = make(&mut made, 0, 1).await;
    assert_ready_ok!(pool.poll_ready());
    assert_eq!(pool.get_ref().services(), 2, "one is too many: it goes at the next poll");
    one.allow(1);
    assert_ready_ok!(pool.poll_ready());
    assert_eq!(pool.get_ref().services(), 1);
    assert_ready_ok!(pool.poll_ready());
    assert_ready_ok!(pool.poll_ready());
    assert_eq!(pool.get_ref().services(), 1, "the last one stays");

    for text in ["again", "and again"] {
        assert_ready_ok!(pool.poll_ready());
        let mut call = task::spawn(pool.call(()));
        answer(&mut one, text).await;
        assert_eq!(assert_ready_ok!(call.poll()), text);
        one.allow(1);
    }
    drop(two);
}

#[tokio::test]
async fn a_failing_service_is_replaced_and_the_next_one_serves() {
    let (mut pool, mut made) = mocked(&eager());
    assert_pending!(pool.poll_ready());
    let mut one = make(&mut made, 0, 1).await;
    assert_ready_ok!(pool.poll_ready());
    let mut call = task::spawn(pool.call(()));
    answer(&mut one, "one").await;
    assert_eq!(assert_ready_ok!(call.poll()), "one");

    one.send_error("ouch");
    assert_pending!(pool.poll_ready());
    assert_eq!(pool.get_ref().services(), 0, "it has left");
    let mut two = make(&mut made, 0, 1).await;
    assert_ready_ok!(pool.poll_ready());
    let mut call = task::spawn(pool.call(()));
    answer(&mut two, "two").await;
    assert_eq!(assert_ready_ok!(call.poll()), "two");
}

#[tokio::test]
async fn a_failed_last_service_wakes_the_caller_and_is_replaced_with_the_defaults_too() {
    let (mut pool, mut made) = mocked(&Builder::new());
    assert_pending!(pool.poll_ready());
    let mut one = make(&mut made, 0, 0).await;
    assert_pending!(pool.poll_ready());
    one.send_error("ouch");
    assert!(pool.is_woken());
    assert_pending!(pool.poll_ready());
    let _two = make(&mut made, 0, 1).await;
    assert!(pool.is_woken());
    assert_ready_ok!(pool.poll_ready());
}

#[tokio::test]
async fn a_pool_that_is_ready_again_cancels_its_wish_to_grow() {
    let (mut pool, mut made) = mocked(&eager());
    assert_pending!(pool.poll_ready());
    let mut one = make(&mut made, 0, 1).await;
    made.allow(0);
    assert_ready_ok!(pool.poll_ready());
    let mut call = task::spawn(pool.call(()));
    assert_pending!(pool.poll_ready(), "it wishes for a second, and the maker is not ready");
    answer(&mut one, "one").await;
    assert_ready_ok!(call.poll());
    one.allow(1);
    assert_ready_ok!(pool.poll_ready());
    made.allow(1);
    assert_ready_ok!(pool.poll_ready());
    assert!(!asked_for_more(&mut made), "it is ready, and wishes for no second any more");
}

#[tokio::test]
async fn of_two_that_are_ready_the_less_loaded_gets_the_request() {
    let (mut pool, mut made) = mocked(&eager().max_services(2));
    assert_pending!(pool.poll_ready());
    let mut loaded = make(&mut made, 9, 0).await;
    assert_pending!(pool.poll_ready());
    let mut idle = make(&mut made, 1, 20).await;
    loaded.allow(20);
    for _ in 0..20 {
        assert_ready_ok!(pool.poll_ready());
        let mut call = task::spawn(pool.call(()));
        answer(&mut idle, "idle").await;
        assert_eq!(assert_ready_ok!(call.poll()), "idle");
    }
}

#[tokio::test]
async fn called_before_it_is_ready_it_answers_with_an_error_and_goes_on() {
    let world = World::of(1);
    let mut pool = mock::Spawn::new(Pool::new(world.maker(), ()));
    let mut call = task::spawn(pool.call(AT_ONCE));
    let error = assert_ready!(call.poll()).expect_err("not ready");
    assert!(matches!(error, PoolError::NotReady) && error.never_left(), "{error}");
    assert_ready_ok!(pool.poll_ready());
    assert_ready_ok!(task::spawn(pool.call(AT_ONCE)).poll());
}

#[tokio::test]
async fn urgency_is_clamped_and_the_estimate_is_the_moving_average() {
    let world = World::of(1);
    let builder = Builder::new().urgency(7.0).initial(0.3);
    let mut pool = mock::Spawn::new(builder.build(world.maker(), ()).unwrap());
    assert!((pool.get_ref().estimate() - 0.3).abs() < 1e-12);
    assert_ready_ok!(pool.poll_ready());
    assert!(pool.get_ref().estimate().abs() < 1e-12, "of weight 1 only the last sample counts");

    let mut pool = mock::Spawn::new(Pool::new(world.maker(), ()));
    for polls in 1..100 {
        assert_ready_ok!(pool.poll_ready());
        assert!((pool.get_ref().estimate() - 0.1 * 0.97_f64.powi(polls)).abs() < 1e-12);
    }
}

#[test]
fn settings_that_mean_nothing_are_refused() {
    let refused =
        |builder: Builder| builder.build(World::of(1).maker(), ()).map(|_| ()).expect_err("refused");
    let share = |setting, value| SettingsError::NotAShare { setting, value };
    assert_eq!(refused(Builder::new().initial(1.1)), share("initial", 1.1));
    assert_eq!(refused(Builder::new().loaded_above(2.0)), share("loaded_above", 2.0));
    assert_eq!(refused(Builder::new().underutilized_below(-0.1)), share("underutilized_below", -0.1));
    let error = refused(Builder::new().underutilized_below(0.5).loaded_above(0.4)).to_string();
    assert_eq!(
        error,
        "underutilized_below is 0.5, above loaded_above, which is 0.4; give them the other way round"
    );
    let nan = refused(Builder::new().urgency(f64::NAN)).to_string();
    assert_eq!(nan, "urgency is NaN; it is a share: give a number between 0 and 1");
}
