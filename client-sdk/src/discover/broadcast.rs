//! One sender of changes to whoever listens. It never blocks, and it stays open while nobody listens.

use async_broadcast::{InactiveReceiver, Receiver, Sender};

/// So many changes wait for a slow receiver; then it loses the oldest, and is told.
pub(crate) const CAPACITY: usize = 1024;

#[derive(Debug)]
pub(crate) struct Broadcast<T> {
    sender: Sender<T>,
    /// Keeps the channel open.
    listeners: InactiveReceiver<T>,
}

impl<T: Clone> Broadcast<T> {
    pub(crate) fn new() -> Self {
        let (mut sender, receiver) = async_broadcast::broadcast(CAPACITY);
        sender.set_overflow(true);
        sender.set_await_active(false);
        Self { sender, listeners: receiver.deactivate() }
    }

    pub(crate) fn listen(&self) -> Receiver<T> {
        self.listeners.activate_cloned()
    }

    /// Whether anyone listens.
    pub(crate) fn is_heard(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// Tells all who listen now; whoever comes later begins with `discover`. Returns what a slow one lost over it.
    pub(crate) fn tell(&self, message: T) -> Option<T> {
        self.sender.try_broadcast(message).unwrap_or_default()
    }
}
