//! The calls of one connection, and who of them rang since it was looked last.
//!
//! The first few dozen calls have a bit of one word each: to ring is one instruction on it, and who rang is read with one. Most
//! connections never have more. Those beyond share a bit, and are told apart by a queue of their own.

use std::{
    any::Any,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use atomic_waker::AtomicWaker;
use futures_util::stream::{FuturesUnordered, Stream};
use tracing::error;

/// Calls with a bit of their own.
pub(super) const PLACES: usize = 58;
const IN_PLACES: u64 = (1 << PLACES) - 1;
/// One of the calls beyond.
const CROWD: u64 = 1 << PLACES;
/// Any call.
pub(super) const CALLS: u64 = IN_PLACES | CROWD;
/// Something happened to the wire.
pub(super) const WIRE: u64 = 1 << 59;
/// The server may be closing.
pub(super) const DOOR: u64 = 1 << 60;
/// It is time to look whether the client is there.
pub(super) const PULSE: u64 = 1 << 61;
/// The task has its turn: it will look, nobody needs to wake it.
const RUNNING: u64 = 1 << 62;

pub(super) type Call = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Who rang since it was looked last.
#[derive(Debug)]
pub(super) struct Turn {
    rung: AtomicU64,
    task: AtomicWaker,
}

impl Turn {
    /// For a task that is about to have its first turn.
    pub(super) fn new(rung: u64) -> Arc<Self> {
        Arc::new(Self { rung: AtomicU64::new(rung), task: AtomicWaker::new() })
    }

    pub(super) fn bell(self: &Arc<Self>, rings: u64) -> Waker {
        Waker::from(Arc::new(Bell { turn: Arc::clone(self), rings }))
    }

    pub(super) fn ring(&self, whom: u64) {
        // Whoever rings first wakes the task; while it has its turn, or is about to, nobody has to.
        if self.rung.fetch_or(whom, Ordering::AcqRel) == 0 {
            self.task.wake();
        }
    }

    /// Begins a turn of this task: who rang.
    pub(super) fn begin(&self, task: &Waker) -> u64 {
        self.task.register(task);
        self.go_on()
    }

    /// Who rang since.
    pub(super) fn go_on(&self) -> u64 {
        self.rung.swap(RUNNING, Ordering::AcqRel)
    }

    /// Who of these rang, which are looked at now.
    pub(super) fn take(&self, whom: u64) -> u64 {
        self.rung.fetch_and(!whom, Ordering::AcqRel) & whom
    }

    /// False: somebody rang meanwhile, and the turn goes on.
    pub(super) fn end(&self) -> bool {
        self.rung.compare_exchange(RUNNING, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Ends the turn although somebody rang, who is looked at in the next one: the task has itself woken for it.
    pub(super) fn put_off(&self) {
        self.rung.fetch_and(!RUNNING, Ordering::AcqRel);
    }
}

#[derive(Debug)]
struct Bell {
    turn: Arc<Turn>,
    rings: u64,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.turn.ring(self.rings);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.turn.ring(self.rings);
    }
}

/// A place is kept for the next call when its call has ended; what then still rings is looked at in vain.
struct Place {
    call: Option<Call>,
    bell: Waker,
}

/// The calls that go on.
pub(super) struct Calls {
    places: Vec<Place>,
    crowd: FuturesUnordered<Call>,
    crowd_bell: Waker,
    turn: Arc<Turn>,
}

impl Calls {
    pub(super) fn new(turn: &Arc<Turn>) -> Self {
        Self {
            places: Vec::new(),
            crowd: FuturesUnordered::new(),
            crowd_bell: turn.bell(CROWD),
            turn: Arc::clone(turn),
        }
    }

    /// One more, which has its turn with the next round.
    pub(super) fn begin(&mut self, call: Call) {
        let vacant = self.places.iter().position(|place| place.call.is_none());
        let at = vacant.unwrap_or(self.places.len());
        if at == PLACES {
            self.crowd.push(call);
            self.turn.ring(CROWD);
            return;
        }
        let rings = 1 << at;
        match self.places.get_mut(at) {
            Some(place) => place.call = Some(call),
            None => self.places.push(Place { call: Some(call), bell: self.turn.bell(rings) }),
        }
        self.turn.ring(rings);
    }

    /// Moves on those that were rung for.
    pub(super) fn poll(&mut self, rung: u64) {
        let mut left = rung & IN_PLACES;
        while left != 0 {
            let at = left.trailing_zeros() as usize;
            left &= left - 1;
            if let Some(place) = self.places.get_mut(at) {
                place.poll();
            }
        }
        if rung & CROWD != 0 {
            self.poll_crowd();
        }
    }

    fn poll_crowd(&mut self) {
        let cx = &mut Context::from_waker(&self.crowd_bell);
        loop {
            let crowd = Pin::new(&mut self.crowd);
            // What panicked it has dropped by itself.
            if let Some(Poll::Ready(None) | Poll::Pending) = caught(|| crowd.poll_next(cx)) {
                return;
            }
        }
    }
}

impl Place {
    fn poll(&mut self) {
        let Some(call) = &mut self.call else { return };
        let cx = &mut Context::from_waker(&self.bell);
        if caught(|| call.as_mut().poll(cx)).is_none_or(|poll| poll.is_ready()) {
            self.call = None;
        }
    }
}

/// `None`: the call panicked. It is to be dropped, which resets its stream; the connection's other calls know nothing of it.
fn caught<T>(poll: impl FnOnce() -> T) -> Option<T> {
    let caught = catch_unwind(AssertUnwindSafe(poll));
    caught.inspect_err(|panic| error!("a call panicked: {}", said(panic.as_ref()))).ok()
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it did not say why")
}
