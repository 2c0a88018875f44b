//! How a stream learns which of its views may have something to say, and that something else wants to be looked at.
//!
//! The publisher marks; the stream, when it can send, takes the marks one by one. Marking what is marked costs one
//! reading, so a stream that reads slowly costs nothing more however much is published (W10).
//!
//! Everything that comes seldom (requests, timers, the server's end) rings the stream's one bell instead: a signal is the
//! waker that those sources are polled with. So a stream that wakes for a mark polls none of them.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Wake, Waker},
};

use atomic_waker::AtomicWaker;

/// One stream's marks, and its bell.
#[derive(Debug, Default)]
pub struct Signal {
    marked: Mutex<Marks>,
    /// How many are marked: most looks find nothing, and take no lock.
    count: AtomicUsize,
    rang: AtomicBool,
    prompted: AtomicBool,
    /// It is among those that are to be woken.
    to_be_called: AtomicBool,
    waker: AtomicWaker,
}

/// Slots in the order in which they were marked. The first lies here: most streams have one view, and few have more than
/// one marked.
#[derive(Debug, Default)]
struct Marks {
    first: Option<u32>,
    others: VecDeque<u32>,
}

impl Marks {
    fn push(&mut self, slot: u32) {
        if self.first.is_none() && self.others.is_empty() {
            self.first = Some(slot);
        } else {
            self.others.push_back(slot);
        }
    }

    fn pop(&mut self) -> Option<u32> {
        self.first.take().or_else(|| self.others.pop_front())
    }
}

/// One view's place in a stream's marks.
#[derive(Debug)]
pub(super) struct Subscription {
    signal: Arc<Signal>,
    slot: u32,
    marked: AtomicBool,
}

impl Signal {
    /// Marks of no view. The bell has rung: nothing was looked at yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { rang: AtomicBool::new(true), ..Self::default() })
    }

    /// Takes the mark that was set first, in the order in which they were set.
    pub fn take(&self) -> Option<u32> {
        if self.is_clear() {
            return None;
        }
        let taken = self.marked.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if taken.is_some() {
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
        taken
    }

    /// How many marks wait to be taken.
    pub fn marked(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Whether nothing is marked.
    pub fn is_clear(&self) -> bool {
        self.marked() == 0
    }

    /// Wakes this waker at the next mark, and when the bell rings. To be called before either is looked at.
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Wakes the stream for its marks, which whoever publishes put off.
    pub(super) fn call(self: &Arc<Self>) {
        // Before the stream is woken: what is marked from now on calls again.
        self.to_be_called.store(false, Ordering::Release);
        self.waker.wake();
    }

    /// Whether the bell rang since this was asked last.
    pub fn rang(&self) -> bool {
        // Most wake-ups are for a mark: looking costs less than a swap.
        self.rang.load(Ordering::Acquire) && self.rang.swap(false, Ordering::AcqRel)
    }

    /// Has the stream look again at its next turn, which it is about to have.
    pub fn ring_again(&self) {
        self.rang.store(true, Ordering::Release);
    }

    /// Somebody may want to know how far the stream's client is.
    pub fn prompt(&self) {
        if !self.prompted.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// Whether somebody may.
    pub fn is_prompted(&self) -> bool {
        self.prompted.load(Ordering::Acquire)
    }

    /// Whether somebody might until now. Whoever comes from now on prompts again.
    pub fn take_prompt(&self) -> bool {
        self.prompted.swap(false, Ordering::AcqRel)
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rang.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl Subscription {
    pub(super) fn new(signal: Arc<Signal>, slot: u32) -> Self {
        Self { signal, slot, marked: AtomicBool::new(false) }
    }

    /// The view may have something to say. For whoever publishes: what is marked already costs one reading. Adds the stream
    /// to those that are to be woken, if it is not among them.
    pub(super) fn mark(&self, to_call: &mut Vec<Arc<Signal>>) {
        if !self.marked.load(Ordering::Acquire)
            && self.put_mark()
            && !self.signal.to_be_called.swap(true, Ordering::AcqRel)
        {
            to_call.push(Arc::clone(&self.signal));
        }
    }

    /// The same for the stream itself, which is woken at once: when this returns, its mark can be taken. A publisher that set the
    /// flag and has not put the mark there yet would let the stream believe that it has nothing more to say (W7).
    pub(super) fn mark_surely(&self) {
        if self.put_mark() {
            self.signal.waker.wake();
        }
    }

    /// False: it is there. When this returns, it can be taken.
    fn put_mark(&self) -> bool {
        let mut marks = self.signal.marked.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that whoever has it sees both or neither.
        if self.marked.swap(true, Ordering::AcqRel) {
            return false;
        }
        marks.push(self.slot);
        // What is taken was counted.
        self.signal.count.fetch_add(1, Ordering::AcqRel);
        true
    }

    /// To be called before the view is looked at: a change after this marks again.
    pub(super) fn clear(&self) {
        self.marked.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A publisher marks beside the stream, all the time.
    #[test]
    fn w7_what_a_stream_marks_for_itself_is_there_when_it_looks() {
        const ROUNDS: usize = 2_000_000;
        let signal = Signal::new();
        let subscription = Arc::new(Subscription::new(Arc::clone(&signal), 7));
        let (published, ended) = (Arc::clone(&subscription), Arc::new(AtomicBool::new(false)));
        let publisher = std::thread::spawn({
            let ended = Arc::clone(&ended);
            move || {
                let mut to_call = Vec::new();
                while !ended.load(Ordering::Relaxed) {
                    published.mark(&mut to_call);
                    to_call.drain(..).for_each(|signal| signal.call());
                }
            }
        });
        let lost = (0..ROUNDS).filter(|_| {
            while signal.take().is_some() {}
            subscription.clear();
            subscription.mark_surely();
            signal.is_clear()
        });
        let lost = lost.count();
        ended.store(true, Ordering::Relaxed);
        publisher.join().expect("it ends");
        assert_eq!(lost, 0, "of {ROUNDS} marks");
    }
}
