//! What pickers of all keys are built by: the policy, what shapes the instances before it, and when to do so again.
//!
//! Owns the alarm, at which one task sleeps for all keys of a balancer. Whoever has no such task (a
//! [`Cached`](super::Cached) by itself) has an alarm that nobody hears.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::{
    CallerOrder, Eligible, Policy,
    shape::{SOONEST, Shaping, State},
};
use crate::{model::InstanceList, runtime::Runtime};

pub(crate) struct Recipe<P> {
    pub(crate) policy: P,
    pub(crate) shaping: Shaping,
    /// Whose instances the filters choose.
    pub(crate) caller: CallerOrder,
    pub(crate) rebuild_every: Option<Duration>,
    pub(crate) alarm: Alarm,
    runtime: Runtime,
}

/// When the first of all keys is due.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    at: Mutex<Option<Duration>>,
    changed: Notify,
}

impl<P: Policy> Recipe<P> {
    /// A policy over all instances that may be chosen.
    pub(crate) fn new(policy: P, runtime: &Runtime) -> Self {
        Self {
            rebuild_every: policy.rebuild_every().map(|pause| pause.max(SOONEST)),
            policy,
            shaping: Shaping::new(),
            caller: CallerOrder::new(runtime.random()),
            alarm: Alarm::default(),
            runtime: runtime.clone(),
        }
    }

    /// What the policy is given of a view, and when that may be something else.
    pub(super) fn eligible(
        &self,
        all: &InstanceList,
        state: &mut State,
        now: Duration,
    ) -> (Eligible, Option<Duration>) {
        self.shaping.note(state, all, now);
        Eligible::shaped(all, &self.shaping, self.caller, state, now)
    }

    /// Whether anything may ever be due.
    pub(crate) fn keeps_time(&self) -> bool {
        self.rebuild_every.is_some() || self.shaping.shapers()
    }

    pub(super) fn now(&self) -> Duration {
        self.runtime.now()
    }
}

impl Alarm {
    /// Something is due then.
    pub(crate) fn set(&self, due: Option<Duration>) {
        let Some(due) = due else { return };
        let mut at = self.at();
        if at.is_none_or(|at| due < at) {
            *at = Some(due);
            self.changed.notify_one();
        }
    }

    /// Until the first is due. Then the alarm is off, and who is due must be looked for.
    pub(crate) async fn rings(&self, runtime: &Runtime) {
        loop {
            let at = *self.at();
            let Some(at) = at else {
                self.changed.notified().await;
                continue;
            };
            let left = at.saturating_sub(runtime.now());
            if left.is_zero() {
                *self.at() = None;
                return;
            }
            tokio::select! {
                biased;
                () = self.changed.notified() => {}
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    fn at(&self) -> MutexGuard<'_, Option<Duration>> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
