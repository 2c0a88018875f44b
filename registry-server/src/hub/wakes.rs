//! Who is to be woken because a change concerns it, and when: a few at a time, so that whatever else there is to do comes between.
//!
//! ```text
//!   publish: marks ─► head ─► queue ─► answers to callers
//!                               └──► attend: wakes some ─► they run, and so do calls and the writer ─► wakes some more
//! ```
//!
//! A runtime's tasks wait in one line. If a change put every watcher there at once, then the next change's call, the disk's
//! answer to it and the writer would each stand behind all of them. Here they stand behind a few; and a watcher that is not
//! woken yet when the next change comes is told both as one (W6). A stream is in the queue once at most (W10). What is marked is
//! marked before the head moves, woken or not: a stream that looks by itself misses nothing (W7).

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use atomic_waker::AtomicWaker;

use super::{lock, signal::Signal};

/// Streams that are woken before others have their turn.
const AT_ONCE: usize = 128;

/// Streams to be woken, first come, first served.
#[derive(Debug, Default)]
pub(super) struct Wakes {
    queue: Mutex<VecDeque<Arc<Signal>>>,
    attended: AtomicBool,
    attendant: AtomicWaker,
}

impl Wakes {
    /// Has these woken, in this order: soon if somebody attends to it, and else now.
    pub(super) fn add(&self, signals: Vec<Arc<Signal>>) {
        if signals.is_empty() {
            return;
        }
        if self.attended.load(Ordering::Acquire) {
            lock(&self.queue).extend(signals);
            self.attendant.wake();
            // Whoever attended may have gone meanwhile, and looked at the queue before this was in it.
            if self.attended.load(Ordering::Acquire) {
                return;
            }
            while self.wake_some() {}
        } else {
            signals.iter().for_each(Signal::call);
        }
    }

    /// Wakes whoever is added from now on, until it is dropped.
    pub(super) async fn attend(&self) {
        let attending = Attending(self);
        self.attended.store(true, Ordering::Release);
        poll_fn(|cx| attending.0.poll_wake(cx)).await;
    }

    fn poll_wake(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.attendant.register(cx.waker());
        if self.wake_some() {
            // Behind those that were woken just now.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Whether there are more.
    fn wake_some(&self) -> bool {
        let mut queue = lock(&self.queue);
        let some: Vec<_> = {
            let count = queue.len().min(AT_ONCE);
            queue.drain(..count).collect()
        };
        let more = !queue.is_empty();
        drop(queue);
        some.iter().for_each(Signal::call);
        more
    }
}

/// Somebody wakes streams. When it goes, those that wait are woken at once, and later ones by whoever adds them.
struct Attending<'a>(&'a Wakes);

impl Drop for Attending<'_> {
    fn drop(&mut self) {
        self.0.attended.store(false, Ordering::Release);
        while self.0.wake_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Release);
        }
    }

    fn streams(count: usize) -> (Vec<Arc<Signal>>, Vec<Arc<Woken>>) {
        let signals: Vec<_> = (0..count).map(|_| Signal::new()).collect();
        let woken: Vec<_> = (0..count).map(|_| Arc::new(Woken::default())).collect();
        for (signal, woken) in signals.iter().zip(&woken) {
            signal.register(&Waker::from(Arc::clone(woken)));
        }
        (signals, woken)
    }

    fn count(woken: &[Arc<Woken>]) -> usize {
        woken.iter().filter(|woken| woken.0.load(Ordering::Acquire)).count()
    }

    #[test]
    fn some_are_woken_at_a_time_in_order_and_all_in_the_end() {
        let wakes = Wakes::default();
        let (signals, woken) = streams(AT_ONCE * 2 + 1);
        let attendant = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&attendant));
        let mut attending = Box::pin(wakes.attend());
        let mut turn = || {
            attendant.0.store(false, Ordering::Release);
            assert!(attending.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        };
        turn();
        wakes.add(signals);
        assert_eq!(count(&woken), 0, "whoever publishes goes on with its answers");
        for at_least in [AT_ONCE, AT_ONCE * 2] {
            assert!(attendant.0.load(Ordering::Acquire), "it has another turn");
            turn();
            assert_eq!((count(&woken), count(&woken[..at_least])), (at_least, at_least));
        }
        turn();
        assert_eq!(count(&woken), AT_ONCE * 2 + 1);
        assert!(!attendant.0.load(Ordering::Acquire), "nothing is left to do");
    }

    #[test]
    fn with_nobody_who_attends_all_are_woken_at_once_also_when_it_goes() {
        let wakes = Wakes::default();
        let (signals, woken) = streams(AT_ONCE + 1);
        wakes.add(signals);
        assert_eq!(count(&woken), AT_ONCE + 1);

        let (signals, woken) = streams(AT_ONCE + 1);
        let mut attending = Box::pin(wakes.attend());
        assert!(attending.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        wakes.add(signals);
        assert_eq!(count(&woken), 0);
        drop(attending);
        assert_eq!(count(&woken), AT_ONCE + 1);
    }
}
