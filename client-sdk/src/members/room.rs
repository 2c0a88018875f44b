//! Where requests wait while all that they could go to is connected and busy.
//!
//! ```text
//!   look (turn) --> all busy --> vacancy(turn) --- a member became free ---> look again
//! ```
//!
//! No wake-up is lost: whoever waits has counted itself first and then looked whether the turn is still the one before its
//! choice, and whoever becomes free first says so in the turn and then wakes. No herd: where every request can go to every
//! member, each vacancy wakes one, and one that finds another room on its way in wakes the next. A request that was given to
//! some already cannot go to every member: it is woken beside the one, and takes nobody's turn. Nobody is promised a place: a
//! request that comes along at the right moment may be faster.

use std::{
    pin::pin,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
};

use tokio::sync::Notify;

/// The waiting room of one set of members.
#[derive(Debug)]
pub(crate) struct Room {
    /// How often a member became free.
    turn: AtomicU64,
    waiting: AtomicUsize,
    free: Notify,
    /// For requests that cannot go to every member.
    for_some: Notify,
    /// Whether one is woken at a time: any request can go to any member. Otherwise whoever is woken may want another one, so
    /// all are.
    one: bool,
}

struct Waiter<'a>(&'a Room);

impl Room {
    pub(super) fn new(one: bool) -> Self {
        Self {
            turn: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            free: Notify::new(),
            for_some: Notify::new(),
            one,
        }
    }

    /// A member is free that was busy.
    pub(crate) fn vacated(&self) {
        self.turn.fetch_add(1, SeqCst);
        self.for_some.notify_waiters();
        if self.one {
            self.free.notify_one();
        } else {
            self.free.notify_waiters();
        }
    }

    /// A member took a request and is still free: the next may come too.
    pub(crate) fn still_free(&self) {
        if self.waiting.load(SeqCst) > 0 {
            self.vacated();
        }
    }

    /// How often a member became free.
    pub(super) fn turn(&self) -> u64 {
        self.turn.load(SeqCst)
    }

    /// Until a member became free after that turn, if it is this request's turn to hear of it. `any`: whether the request can
    /// go to every member.
    pub(super) async fn vacancy(&self, after: u64, any: bool) {
        let _waiter = Waiter::new(self);
        let mut free = pin!(if any { self.free.notified() } else { self.for_some.notified() });
        free.as_mut().enable();
        if self.turn() == after {
            // One that is dropped while it waits hands on what it was told.
            free.await;
        }
    }
}

impl<'a> Waiter<'a> {
    fn new(room: &'a Room) -> Self {
        room.waiting.fetch_add(1, SeqCst);
        Self(room)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        sync::Arc,
        task::{Context, Poll, Wake, Waker},
    };

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[tokio::test]
    async fn each_vacancy_wakes_one_and_one_that_gives_up_hands_it_on() {
        let (room, woken) = (Room::new(true), Arc::new(Woken::default()));
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let (mut first, mut second) = (Box::pin(room.vacancy(0, true)), Box::pin(room.vacancy(0, true)));
        assert!(first.as_mut().poll(&mut cx).is_pending() && second.as_mut().poll(&mut cx).is_pending());
        room.vacated();
        assert_eq!(woken.0.load(SeqCst), 1, "one of them");
        drop(first);
        assert_eq!(woken.0.load(SeqCst), 2, "and when it gave up, the other");
        assert_eq!(second.as_mut().poll(&mut cx), Poll::Ready(()));
        assert_eq!(room.waiting.load(SeqCst), 0, "nobody waits any more");
    }

    #[tokio::test]
    async fn a_vacancy_between_looking_and_waiting_is_not_missed() {
        for one in [true, false] {
            let room = Room::new(one);
            let before = room.turn();
            room.vacated();
            room.vacancy(before, true).await;
        }
    }

    #[tokio::test]
    async fn one_that_cannot_go_to_every_member_takes_nobodys_turn() {
        let room = Room::new(true);
        let (mut any, mut some) = (Box::pin(room.vacancy(0, true)), Box::pin(room.vacancy(0, false)));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(some.as_mut().poll(&mut cx).is_pending() && any.as_mut().poll(&mut cx).is_pending());
        room.vacated();
        assert!(some.as_mut().poll(&mut cx).is_ready() && any.as_mut().poll(&mut cx).is_ready());
    }

    #[tokio::test]
    async fn where_requests_want_one_in_particular_all_are_woken() {
        let room = Room::new(false);
        let mut waits = [true, true, false].map(|any| Box::pin(room.vacancy(0, any)));
        let mut cx = Context::from_waker(Waker::noop());
        let mut ready =
            || waits.iter_mut().map(|wait| wait.as_mut().poll(&mut cx).is_ready()).collect::<Vec<_>>();
        assert_eq!(ready(), [false; 3]);
        room.vacated();
        assert_eq!(ready(), [true; 3]);
    }
}
