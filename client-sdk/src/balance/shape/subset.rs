//! Some of many instances for each caller: so many callers of many instances keep few connections each.
//!
//! By rendezvous hashing, as gRFC A68 (*Random subsetting with rendezvous hashing LB policy*): a caller uses the first `k`
//! in its own order ([`CallerOrder`]). Of `n` instances and many callers, each instance is in the subsets of a share `k/n` of
//! the callers, with the spread of so many draws (a standard deviation of √(callers · k/n · (1 − k/n))). One that leaves is
//! replaced by the next in the order of those callers that used it, and nothing else moves; one that joins takes one place
//! with those that prefer it. Google's deterministic subsetting (*Site Reliability Engineering*, chapter 20) shares more
//! evenly, but needs callers that are numbered, and moves much more when either changes.

use std::{num::NonZeroUsize, sync::Arc};

use super::{Filter, ShapingError};
use crate::{balance::CallerOrder, model::InstanceList};

/// Keeps `k` instances, the same ones as long as they are there; all, if there are fewer.
///
/// Which ones is told by the caller, so give it a name that it keeps: see `caller` of the builders. It looks at nobody's
/// health, and a caller whose instances are all ill does not go to others: a `k` of 10 to 20 makes that unlikely.
///
/// ```
/// use client_sdk::balance::shape::Subset;
/// let twenty = Subset::new(20)?;
/// assert!(Subset::new(0).is_err());
/// # Ok::<(), client_sdk::balance::shape::ShapingError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Subset {
    size: NonZeroUsize,
}

impl Subset {
    /// Subsets of `k` instances: at least 1.
    pub fn new(k: usize) -> Result<Self, ShapingError> {
        NonZeroUsize::new(k).map(|size| Self { size }).ok_or(ShapingError::SubsetSize)
    }
}

impl Filter for Subset {
    fn filter(&self, instances: &InstanceList, caller: CallerOrder) -> InstanceList {
        if instances.len() <= self.size.get() {
            return Arc::clone(instances);
        }
        let mut preferred = caller.sort(instances);
        preferred.truncate(self.size.get());
        preferred.into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use crate::model::Instance;

    const CALLERS: u32 = 1_000;

    fn list(count: usize) -> InstanceList {
        let build = |port| Arc::new(Instance::builder(format!("a:{port}").parse().expect("valid")).build());
        (1..=count).map(build).collect()
    }

    fn subset(k: usize, all: &InstanceList, caller: u32) -> HashSet<Arc<str>> {
        let caller = CallerOrder::named(&format!("billing-{caller}"));
        let kept = Subset::new(k).expect("above 0").filter(all, caller);
        kept.iter().map(|instance| Arc::clone(&instance.id)).collect()
    }

    /// Over a thousand callers, the most loaded instance compared with the mean. The bounds are 4 standard deviations.
    #[test]
    fn a_thousand_callers_are_spread_evenly_over_the_instances() {
        for (n, k, bound) in [(100_u16, 20_u16, 1.26), (100, 10, 1.38), (50, 5, 1.38), (10, 5, 1.13)] {
            let all = list(n.into());
            let mut load: HashMap<_, u32> = HashMap::new();
            for caller in 0..CALLERS {
                let subset = subset(k.into(), &all, caller);
                assert_eq!(subset.len(), usize::from(k));
                for id in subset {
                    *load.entry(id).or_default() += 1;
                }
            }
            assert_eq!(load.len(), usize::from(n), "each is used");
            let mean = f64::from(CALLERS) * f64::from(k) / f64::from(n);
            let most = f64::from(*load.values().max().expect("some")) / mean;
            assert!(most < bound, "{k} of {n}: the most loaded one has {most:.3} times the mean");
        }
    }

    #[test]
    fn one_that_leaves_moves_only_its_own_callers_by_one_and_one_that_joins_at_most_one() {
        let (more, fewer) = (list(101), list(100));
        let odd = &more[100].id;
        let mut moved = 0;
        for caller in 0..CALLERS {
            let (with, without) = (subset(20, &more, caller), subset(20, &fewer, caller));
            let gone: Vec<_> = with.difference(&without).collect();
            if with.contains(odd) {
                assert_eq!((gone.as_slice(), without.difference(&with).count()), ([odd].as_slice(), 1));
                moved += 1;
            } else {
                assert_eq!(with, without, "it did not use the one that left");
            }
        }
        assert!((150..250).contains(&moved), "about a share of 20/101 used it: {moved}");
    }

    #[test]
    fn where_there_are_no_more_all_are_kept() {
        let all = list(3);
        assert!(Arc::ptr_eq(&Subset::new(3).expect("above 0").filter(&all, CallerOrder::new(1)), &all));
        assert_eq!(Subset::new(0).unwrap_err(), ShapingError::SubsetSize);
    }
}
