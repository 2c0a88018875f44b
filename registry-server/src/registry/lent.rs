//! Renewals that need no turn of the loop: while it waits, whoever renews finds the core here, and renews by himself.
//!
//! ```text
//!   the loop works:  it has the core, and a renewal takes its lane
//!   the loop waits:  the core is lent, until when the loop wants to wake at the latest
//!                    renew ──► nobody else renews just now, and it is in time ──► those that are quiet are renewed
//!                                                                                 the others take the lane
//! ```
//!
//! A renewal of a quiet lease changes one deadline and has nothing to tell, and the way to the loop and back takes several times
//! what it takes itself. Keeps L1: nothing is renewed here that the loop would not renew the same way if it woke for it. In
//! particular what comes after the loop wanted to wake waits for it, which then finds out how long the server could not run.

use std::{
    mem,
    sync::{Mutex, MutexGuard, PoisonError, TryLockError},
};

use crate::{
    core::{Core, LeaseId, Settings, Trail},
    runtime::Runtime,
};

/// Leases of one message that are renewed here at most: the loop may be waiting for its core. With more of them the way there is
/// next to nothing for each.
const MOST: usize = 64;

/// Where the core is while the loop waits.
#[derive(Debug)]
pub(super) struct Lent(Mutex<Slot>);

#[derive(Debug)]
struct Slot {
    /// An empty one while the loop has its own.
    core: Box<Core>,
    /// When the loop wants to wake at the latest, in mono ms. `None`: it has the core.
    until: Option<u64>,
}

impl Default for Lent {
    fn default() -> Self {
        Self(Mutex::new(Slot { core: Box::new(Core::new(Settings::default())), until: None }))
    }
}

impl Lent {
    /// The loop waits, until then at the latest. What it has instead of its core is empty.
    pub(super) fn lend(&self, core: &mut Box<Core>, until: u64) {
        let mut slot = self.lock();
        mem::swap(&mut slot.core, core);
        slot.until = Some(until);
    }

    /// The loop works: it has its core again.
    pub(super) fn take_back(&self, core: &mut Box<Core>) {
        let mut slot = self.lock();
        mem::swap(&mut slot.core, core);
        slot.until = None;
    }

    /// Renews what can be renewed here. What is left is for the loop.
    pub(super) fn renew(&self, runtime: &Runtime, leases: &mut Vec<LeaseId>, trail: &mut Trail) {
        if leases.len() > MOST {
            return;
        }
        let mut slot = match self.0.try_lock() {
            Ok(slot) => slot,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        // Read while nobody else has the core, so that what happens to it happens in the order of time.
        let now = runtime.now();
        if slot.until.is_some_and(|until| now.mono <= until) {
            leases.retain(|lease| !slot.core.renew_quiet(now, lease, trail));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        // Nothing panics while it is held; if it did, the core would still be whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
