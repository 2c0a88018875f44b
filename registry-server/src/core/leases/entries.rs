//! All entries of the lease clock, each in a place that it keeps.
//!
//! In blocks of one size, so that growing copies nothing and leaves nothing behind: one block that grew with the leases would
//! leave its smaller predecessors with the allocator, for a while as much again as it takes itself.

use std::ops::{Index, IndexMut};

use super::{Entry, Place};

/// Entries of a block: 40 KiB of them, which allocators have a size for.
const BLOCK: usize = 1_024;

#[derive(Clone, Debug, Default)]
pub(super) struct Entries(Vec<Vec<Entry>>);

impl Entries {
    /// Adds one, in the next place.
    pub(super) fn push(&mut self, entry: Entry) -> Place {
        if self.0.last().is_none_or(|block| block.len() == BLOCK) {
            self.0.push(Vec::with_capacity(BLOCK));
        }
        let full = self.0.len() - 1;
        let block = &mut self.0[full];
        block.push(entry);
        let place = full * BLOCK + block.len() - 1;
        Place::try_from(place).expect("so many leases do not fit into any memory")
    }

    /// How many there are: all places are below.
    pub(super) fn len(&self) -> Place {
        let count = self.0.last().map_or(0, |block| (self.0.len() - 1) * BLOCK + block.len());
        Place::try_from(count).unwrap_or(Place::MAX)
    }

    /// All, by place.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Place, &Entry)> {
        (0..).zip(self.0.iter().flatten())
    }

    #[cfg(test)]
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.0.iter_mut().flatten()
    }
}

impl Index<Place> for Entries {
    type Output = Entry;

    fn index(&self, place: Place) -> &Entry {
        let place = place as usize;
        &self.0[place / BLOCK][place % BLOCK]
    }
}

impl IndexMut<Place> for Entries {
    fn index_mut(&mut self, place: Place) -> &mut Entry {
        let place = place as usize;
        &mut self.0[place / BLOCK][place % BLOCK]
    }
}
