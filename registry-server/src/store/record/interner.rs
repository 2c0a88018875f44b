//! Names that are read again and again from a store, each kept once. Keeps nothing else: it goes when the state is loaded.

use std::{collections::HashSet, sync::Arc};

/// Gives equal strings one allocation, so that a loaded state holds one copy of its keys, tags and zones. Not for ids,
/// which differ.
#[derive(Debug, Default)]
pub(in crate::store) struct Interner(HashSet<Arc<str>>);

impl Interner {
    pub(super) fn get(&mut self, text: &str) -> Arc<str> {
        if text.is_empty() {
            return Arc::default();
        }
        if let Some(known) = self.0.get(text) {
            return Arc::clone(known);
        }
        let new: Arc<str> = text.into();
        self.0.insert(Arc::clone(&new));
        new
    }
}
