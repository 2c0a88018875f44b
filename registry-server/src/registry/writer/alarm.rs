//! When the loop wakes by itself. Owns no deadline: the loop says it anew with each turn.

use std::{pin::Pin, time::Duration};

use tokio::time::{Sleep, sleep};

use crate::runtime::Runtime;

/// A timer that is set as seldom as can be. Nearly every turn puts off the loop's next deadline; that leaves the timer as it is, to
/// ring in vain and be set then.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    /// When it rings, by the runtime's clock, and the timer.
    set: Option<(u64, Pin<Box<Sleep>>)>,
}

impl Alarm {
    /// Resolves when it is `due`. May be dropped at any time.
    pub(super) async fn rings(&mut self, due: u64, runtime: &Runtime) {
        loop {
            let left = due.saturating_sub(runtime.mono());
            if left == 0 {
                return;
            }
            let left = Duration::from_millis(left);
            let (at, timer) = self.set.get_or_insert_with(|| (due, Box::pin(sleep(left))));
            if *at > due {
                timer.set(sleep(left));
                *at = due;
            }
            timer.as_mut().await;
            // It does not ring twice.
            *at = u64::MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::runtime::{SimulatedClock, TokioSpawn};

    fn runtime() -> Runtime {
        Runtime::new(SimulatedClock::starting_at(0), TokioSpawn, 1)
    }

    /// How long it takes until it rings, by the runtime's clock; `None`: it does not within 20 ms.
    async fn rang_by(alarm: &mut Alarm, due: u64, runtime: &Runtime) -> Option<u64> {
        let soon = Duration::from_millis(20);
        timeout(soon, alarm.rings(due, runtime)).await.ok().map(|()| runtime.mono())
    }

    #[tokio::test(start_paused = true)]
    async fn it_rings_when_it_is_due_whatever_was_due_before() {
        let (runtime, mut alarm) = (runtime(), Alarm::default());
        assert_eq!(rang_by(&mut alarm, 250, &runtime).await, None);
        assert_eq!(rang_by(&mut alarm, 500, &runtime).await, None, "put off");
        assert_eq!(rang_by(&mut alarm, 45, &runtime).await, Some(45), "called in, after 40 ms");
        assert_eq!(rang_by(&mut alarm, 500, &runtime).await, None);
        alarm.rings(500, &runtime).await;
        assert_eq!(runtime.mono(), 500, "although the timer was set for 250 and for 45");
        assert_eq!(rang_by(&mut alarm, 505, &runtime).await, Some(505));
        assert_eq!(rang_by(&mut alarm, 500, &runtime).await, Some(505), "it is past");
        assert_eq!(rang_by(&mut alarm, 510, &runtime).await, Some(510), "again");
    }

    /// What is put off with each turn costs no timer: the one that is set stays as it is.
    #[tokio::test(start_paused = true)]
    async fn what_is_put_off_leaves_the_timer_alone() {
        let (runtime, mut alarm) = (runtime(), Alarm::default());
        for turn in 0..10 {
            assert_eq!(rang_by(&mut alarm, 250 + turn, &runtime).await, None);
            assert_eq!(alarm.set.as_ref().map(|(at, _)| *at), Some(250));
        }
    }
}
