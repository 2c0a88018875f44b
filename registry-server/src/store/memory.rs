//! A store that keeps nothing: for tests, and for registries whose registrants simply come back.
//!
//! Promises no D1, and says so through its new epoch at every start.

use super::{Loaded, Store, StoreError, epoch_name};
use crate::core::{Record, Revision};

/// Names revisions, from 1, and forgets the records.
#[derive(Debug)]
pub struct MemoryStore {
    epoch: u128,
    last: Revision,
    loaded: bool,
}

impl MemoryStore {
    /// `new_epoch` is random: it names the history that begins here.
    pub fn new(new_epoch: u128) -> Self {
        Self { epoch: new_epoch, last: 0, loaded: false }
    }
}

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        if std::mem::replace(&mut self.loaded, true) {
            return Err(StoreError::AlreadyLoaded);
        }
        Ok(Loaded { epoch: epoch_name(self.epoch), ..Loaded::default() })
    }

    fn append(&mut self, group: &[Record]) -> Result<Vec<Revision>, StoreError> {
        let first = self.last + 1;
        self.last += group.len() as Revision;
        Ok((first..=self.last).collect())
    }

    fn blocks(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::{super::conformance, *};

    struct Memory;

    impl conformance::Subject for Memory {
        type Store = MemoryStore;
        const DURABLE: bool = false;
        const HISTORY: usize = 0;

        fn open(&mut self, new_epoch: u128) -> MemoryStore {
            MemoryStore::new(new_epoch)
        }
    }

    #[test]
    fn conforms() {
        conformance::all(|| Memory);
    }
}
