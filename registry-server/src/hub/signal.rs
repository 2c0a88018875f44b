//! How a stream learns which of its views may have something to say.
//!
//! The publisher marks; the stream, when it can send, takes the marks one by one. Marking what is marked costs one
//! atomic swap, so a stream that reads slowly costs nothing more however much is published (W10).

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::Waker,
};

use atomic_waker::AtomicWaker;

/// One stream's marks.
#[derive(Debug, Default)]
pub struct Signal {
    marked: Mutex<VecDeque<u32>>,
    waker: AtomicWaker,
}

/// One view's place in a stream's marks.
#[derive(Debug)]
pub(super) struct Subscription {
    signal: Arc<Signal>,
    slot: u32,
    marked: AtomicBool,
}

impl Signal {
    /// Marks of no view.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Takes the mark that was set first, in the order in which they were set.
    pub fn take(&self) -> Option<u32> {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// How many marks wait to be taken.
    pub fn marked(&self) -> usize {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nothing is marked.
    pub fn is_clear(&self) -> bool {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Wakes this waker at the next mark.
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Wakes the stream for a reason of its own.
    pub fn wake(&self) {
        self.waker.wake();
    }
}

impl Subscription {
    pub(super) fn new(signal: Arc<Signal>, slot: u32) -> Self {
        Self { signal, slot, marked: AtomicBool::new(false) }
    }

    pub(super) fn mark(&self) {
        if !self.marked.swap(true, Ordering::AcqRel) {
            self.signal.marked.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.slot);
            self.signal.wake();
        }
    }

    /// To be called before the view is looked at: a change after this marks again.
    pub(super) fn clear(&self) {
        self.marked.store(false, Ordering::Release);
    }
}
