//! The order in which one caller prefers instances.
//!
//! Rendezvous hashing (D. Thaler, C. Ravishankar, *A name-based mapping scheme for rendezvous*, 1996): every pair of a
//! caller and an instance has a number of its own, and the caller prefers the instances with the least ones.
//!
//! So a caller that comes back prefers the same instances as before; different callers prefer different ones, all about
//! equally; an instance that comes or goes moves no other two against each other. Weights have no part in it: they are the
//! policy's, and would count twice if a caller's few instances were chosen by them too.

use std::sync::Arc;

use xxhash_rust::xxh64::xxh64;

use crate::model::Instance;

/// One caller's order of instances.
///
/// ```
/// use std::sync::Arc;
/// use client_sdk::{balance::CallerOrder, model::Instance};
///
/// let instances: Vec<_> = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]
///     .map(|address| Arc::new(Instance::builder(address.parse().expect("an address")).build()))
///     .into();
/// let one = CallerOrder::named("billing-7f9c").sort(&instances);
/// assert_eq!(one, CallerOrder::named("billing-7f9c").sort(&instances));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallerOrder(u64);

impl CallerOrder {
    /// The order of a caller with a number.
    pub const fn new(caller: u64) -> Self {
        Self(caller)
    }

    /// The order of a caller with a name: of a process, for example. The same name gives the same order, everywhere.
    pub fn named(caller: &str) -> Self {
        Self(xxh64(caller.as_bytes(), 0))
    }

    /// The instances, the preferred ones first.
    pub fn sort(self, instances: &[Arc<Instance>]) -> Vec<Arc<Instance>> {
        let rank = |instance: &Arc<Instance>| xxh64(instance.id.as_bytes(), self.0);
        let mut ranked: Vec<_> =
            instances.iter().map(|instance| (rank(instance), Arc::clone(instance))).collect();
        ranked.sort_by(|(a, one), (b, other)| a.cmp(b).then_with(|| one.id.cmp(&other.id)));
        ranked.into_iter().map(|(_, instance)| instance).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(weights: &[u32]) -> Vec<Arc<Instance>> {
        let build = |(port, weight): (usize, &u32)| {
            let address = format!("a:{}", port + 1).parse().expect("valid");
            Arc::new(Instance::builder(address).weight(*weight).build())
        };
        weights.iter().enumerate().map(build).collect()
    }

    fn ids(instances: &[Arc<Instance>]) -> Vec<Arc<str>> {
        instances.iter().map(|instance| Arc::clone(&instance.id)).collect()
    }

    #[test]
    fn one_that_comes_or_goes_moves_no_other_two_against_each_other() {
        let all = list(&[1; 50]);
        let order = CallerOrder::named("me");
        let mut with = ids(&order.sort(&all));
        let without = ids(&order.sort(&all[1..]));
        with.retain(|id| *id != all[0].id);
        assert_eq!(with, without);
    }

    #[test]
    fn the_order_does_not_depend_on_the_order_of_the_list() {
        let mut all = list(&[3, 0, 1, 2, 0]);
        let order = CallerOrder::new(7);
        let before = ids(&order.sort(&all));
        all.reverse();
        assert_eq!(ids(&order.sort(&all)), before);
    }

    #[test]
    fn many_callers_prefer_all_about_equally_whatever_their_weights() {
        let all = list(&[1, 1, 1, 1, 4]);
        let mut first = std::collections::HashMap::new();
        for caller in 0..10_000 {
            *first.entry(CallerOrder::new(caller).sort(&all)[0].id.clone()).or_insert(0) += 1;
        }
        assert!(first.values().all(|times| (1_850..2_150).contains(times)), "{first:?}");
    }
}
