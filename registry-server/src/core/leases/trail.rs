//! Whoever keeps several leases commonly renews them in the same order again and again: each entry says which one came after
//! it, and so the next one is found without looking for it.
//!
//! To look for a lease is to wait for memory twice, and a third time for its entry; along a trail only the last is left. It is a
//! guess, and what it leads to is believed only if that is the lease that was asked for, and it is quiet: what is left over of a
//! lease that ended says its id still, and is not.

use super::{LeaseClock, LeaseId, Place};

/// Which lease somebody renewed last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trail(Option<Place>);

impl LeaseClock {
    /// The place of a lease: where the trail leads, or else where it is found. From now on the trail leads there.
    pub(super) fn follow(&mut self, id: &LeaseId, trail: &mut Trail) -> Option<Place> {
        // A core that was loaded anew may have fewer entries.
        let last = trail.0.filter(|last| *last < self.entries.len());
        let led = last.map(|last| self.entries[last].next).filter(|next| {
            let entry = &self.entries[*next];
            entry.id == *id && entry.is_quiet()
        });
        let place = led.or_else(|| self.places.get(id, &self.entries))?;
        if let Some(last) = last.filter(|_| led.is_none()) {
            self.entries[last].next = place;
        }
        trail.0 = Some(place);
        Some(place)
    }
}
