//! What a policy has learnt, by instance: it outlives rebuilds of pickers, and goes with the last who uses it.
//!
//! Kept by id and address, so that two services that name their instances alike do not learn from each other's. Pickers
//! and picks hold what they use; this map only finds it again, so nothing has to be told that an instance left.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::model::{Address, Instance};

type Named = (Arc<str>, Address);

/// Finds what was learnt about an instance.
#[derive(Debug)]
pub(super) struct Loads<T>(Mutex<Kept<T>>);

#[derive(Debug)]
struct Kept<T> {
    by_name: HashMap<Named, Weak<T>>,
    /// How many there may be before those that nobody uses are swept out.
    sweep_at: usize,
}

impl<T> Default for Loads<T> {
    fn default() -> Self {
        Self(Mutex::new(Kept { by_name: HashMap::new(), sweep_at: 64 }))
    }
}

impl<T> Loads<T> {
    /// What was learnt about the instances, in their order; new where nothing was.
    pub(super) fn of(&self, instances: &[Arc<Instance>], new: impl Fn() -> T) -> Box<[Arc<T>]> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = instances.iter().map(|instance| {
            let named = (Arc::clone(&instance.id), instance.address.clone());
            let known = kept.by_name.entry(named).or_default();
            known.upgrade().unwrap_or_else(|| {
                let made = Arc::new(new());
                *known = Arc::downgrade(&made);
                made
            })
        });
        let found = found.collect();
        if kept.by_name.len() > kept.sweep_at {
            kept.by_name.retain(|_, load| load.strong_count() > 0);
            kept.sweep_at = 64.max(kept.by_name.len() * 2);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, port: u16) -> Arc<Instance> {
        Arc::new(Instance::builder(std::net::SocketAddr::from(([127, 0, 0, 1], port)).into()).id(id).build())
    }

    #[test]
    fn what_is_in_use_is_found_again_and_the_rest_goes() {
        let loads = Loads::default();
        let first = loads.of(&[instance("a", 1), instance("b", 2)], || 0);
        let again = loads.of(&[instance("b", 2), instance("a", 3)], || 0);
        assert!(Arc::ptr_eq(&first[1], &again[0]), "the same instance");
        assert!(!Arc::ptr_eq(&first[0], &again[1]), "the same id elsewhere is another instance");
        for port in 10..2_000 {
            drop(loads.of(&[instance("x", port)], || 0));
        }
        assert!(loads.0.lock().expect("unpoisoned").by_name.len() <= 130, "nobody uses them any more");
    }
}
