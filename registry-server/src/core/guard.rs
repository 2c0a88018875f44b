//! The blast-radius guard: how much of a service expiry may remove.
//!
//! Owns the windows and their counts; which instance is asked about, and what happens to it, is [`super::expiry`]'s
//! business. Keeps L5. Mass expiry is more often a broken network than a broken fleet, and a caller is better off with
//! instances that may be dead than with none.
//!
//! A service's window opens with its first expiry and lasts its longest TTL; its base is what the service had at that
//! moment, held ones, DRAINING and DOWN ones included. Windows are volatile: after a restart they start anew.

use std::{collections::BTreeSet, sync::Arc};

use super::{FixedMap, ServiceKey, Settings, State};

/// The windows that are open.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    windows: FixedMap<ServiceKey, Window>,
    /// (end, service) of every window.
    ends: BTreeSet<(u64, ServiceKey)>,
    /// How many of each service were admitted and are still there, since what was proposed of them is not committed. A window
    /// that opens meanwhile does not count them.
    leaving: FixedMap<ServiceKey, usize>,
}

#[derive(Clone, Debug)]
struct Window {
    /// Milliseconds.
    length: u64,
    /// Instances at the start, less those deregistered since.
    base: usize,
    /// Removed by expiry since the start, proposed ones included.
    removed: usize,
}

impl Guard {
    /// Asks to remove one expired instance of a service, and counts it if it may go. `false`: it is to be held.
    pub(super) fn admit(&mut self, settings: &Settings, now: u64, key: &ServiceKey, state: &State) -> bool {
        if !settings.guard {
            return true;
        }
        self.close(now);
        let window = self.windows.entry(key.clone()).or_insert_with(|| {
            let (length, there) =
                state.service(key).map_or((0, 0), |it| (it.longest_ttl(), it.instances.len()));
            let end = now.saturating_add(length);
            self.ends.insert((end, key.clone()));
            let leaving = self.leaving.get(key).copied().unwrap_or(0);
            Window { length, base: there.saturating_sub(leaving), removed: 0 }
        });
        let goes = window.base < settings.hold_min_instances
            || window.removed < share_of(window.base, settings.hold_share);
        if goes {
            window.removed += 1;
            *self.leaving.entry(key.clone()).or_default() += 1;
        }
        goes
    }

    /// Why the service's instances are held just now: for people.
    pub(super) fn reason(&self, settings: &Settings, key: &ServiceKey) -> Arc<str> {
        let Some(window) = self.windows.get(key) else { return "".into() };
        let allowed = share_of(window.base, settings.hold_share);
        format!(
            "kept although its lease ran out: of the {} instances of the service, expiry has removed {} within {} ms \
             and may remove no more than {allowed}",
            window.base, window.removed, window.length
        )
        .into()
    }

    /// An admitted instance was not removed after all.
    pub(super) fn refund(&mut self, key: &ServiceKey) {
        if let Some(window) = self.windows.get_mut(key) {
            window.removed = window.removed.saturating_sub(1);
        }
        self.left(key, 1);
    }

    /// So many that were admitted have left, by a committed record.
    pub(super) fn left(&mut self, key: &ServiceKey, count: usize) {
        if let Some(leaving) = self.leaving.get_mut(key) {
            *leaving = leaving.saturating_sub(count);
            if *leaving == 0 {
                self.leaving.remove(key);
            }
        }
    }

    /// Instances were removed on purpose: they no longer count as part of the service.
    pub(super) fn deregistered(&mut self, key: &ServiceKey, count: usize) {
        if let Some(window) = self.windows.get_mut(key) {
            window.base = window.base.saturating_sub(count);
        }
    }

    /// Forgets the windows that are over.
    fn close(&mut self, now: u64) {
        while self.ends.first().is_some_and(|(end, _)| *end <= now) {
            if let Some((_, key)) = self.ends.pop_first() {
                self.windows.remove(&key);
            }
        }
    }
}

/// `floor(base * share)`. The small addend keeps products like 0.29 * 100 from falling below the whole number.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a float cast saturates, and NaN becomes 0
fn share_of(base: usize, share: f64) -> usize {
    let base = f64::from(u32::try_from(base).unwrap_or(u32::MAX));
    (base * share.clamp(0.0, 1.0) + 1e-9) as usize
}
