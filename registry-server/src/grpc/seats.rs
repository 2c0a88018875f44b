//! Places of streams: how many there may be, and when the last one has ended.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// How many streams there are.
#[derive(Debug, Default)]
pub(super) struct Seats {
    taken: AtomicUsize,
    freed: Notify,
}

/// One stream's place.
#[derive(Debug)]
pub(super) struct Seat(Arc<Seats>);

impl Seats {
    /// Waits until there is no stream.
    pub(super) async fn all_free(&self) {
        loop {
            // Listened to before it is looked: a place that becomes free in between is not missed.
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            if self.taken.load(Ordering::Acquire) == 0 {
                return;
            }
            freed.await;
        }
    }
}

impl Seat {
    /// `None`: as many as there may be are taken.
    pub(super) fn take(seats: &Arc<Seats>, limit: usize) -> Option<Self> {
        let free = |taken: usize| (taken < limit).then_some(taken + 1);
        seats.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).ok()?;
        Some(Self(Arc::clone(seats)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.0.taken.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_to_go_is_noticed_and_no_earlier_one() {
        let seats = Arc::<Seats>::default();
        seats.all_free().await;
        let mut taken: Vec<_> = (0..3).filter_map(|_| Seat::take(&seats, 3)).collect();
        assert_eq!(taken.len(), 3);
        assert!(Seat::take(&seats, 3).is_none(), "three is the limit");
        let mut free = std::pin::pin!(seats.all_free());
        while let Some(seat) = taken.pop() {
            tokio::select! {
                biased;
                () = &mut free => panic!("there is one left"),
                () = tokio::task::yield_now() => drop(seat),
            }
        }
        free.await;
    }
}
