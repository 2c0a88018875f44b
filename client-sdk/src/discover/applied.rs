//! Who acts on a view, and how far each of them has put it to use: what lets the registry be told that this process has
//! applied a change (C4).
//!
//! ```text
//!   view: version 7 is told ──► channel, layer, balancer ──► applied(7) each ──► all have: the registry may be told
//! ```
//!
//! A follower that joins has applied nothing; one that is dropped leaves the count. What is not a follower (a receiver of
//! [`watch`](super::Discover::watch), a plain `discover`) cannot say, and holds nothing up. Nothing here is on the way of a
//! pick.

use std::{collections::BTreeMap, fmt, sync::Arc};

use tokio::sync::watch;

/// Someone who acts on a view and says how far. As long as it lives, a registry is not told that this process has applied a
/// change of the view before [`applied`](Self::applied) was called with its version, or a later one.
///
/// The channel, the layer and the balancers of this crate hold one for each view that they use. Whoever picks from a view by
/// means of its own may get one from [`Discover::follower`](super::Discover::follower).
pub struct Follower {
    followers: Arc<Followers>,
    id: u64,
}

/// The followers of one view.
#[derive(Debug, Default)]
pub(crate) struct Followers(watch::Sender<Standing>);

/// How far each is.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    next: u64,
    applied: BTreeMap<u64, Option<u64>>,
}

impl Follower {
    /// This version is in use: from now on nothing is chosen by an older one. `None`, and whatever is older than what was
    /// said before, says nothing.
    pub fn applied(&self, version: Option<u64>) {
        self.followers.0.send_if_modified(|standing| standing.applied(self.id, version));
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.followers.0.send_modify(|standing| standing.leave(self.id));
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Followers {
    /// Adds one, which has applied nothing yet.
    pub(crate) fn join(self: &Arc<Self>) -> Follower {
        let mut id = 0;
        self.0.send_modify(|standing| id = standing.join());
        Follower { followers: Arc::clone(self), id }
    }

    /// Waits until all there are have applied this version or a later one. `None`: they have.
    pub(crate) fn wait_for(&self, version: u64) -> Option<impl Future<Output = ()> + Send + use<>> {
        let mut standing = self.0.subscribe();
        if standing.borrow().have_applied(version) {
            return None;
        }
        Some(async move {
            // An error means that the view is forgotten: nobody acts on it.
            _ = standing.wait_for(|standing| standing.have_applied(version)).await;
        })
    }
}

impl Standing {
    fn join(&mut self) -> u64 {
        self.next += 1;
        self.applied.insert(self.next, None);
        self.next
    }

    fn leave(&mut self, id: u64) {
        self.applied.remove(&id);
    }

    /// False: nothing new.
    fn applied(&mut self, id: u64, version: Option<u64>) -> bool {
        match self.applied.get_mut(&id) {
            Some(known) if version > *known => {
                *known = version;
                true
            }
            _ => false,
        }
    }

    fn have_applied(&self, version: u64) -> bool {
        self.applied.values().all(|applied| *applied >= Some(version))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Join,
        Leave(usize),
        Applied(usize, Option<u64>),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Join),
            any::<usize>().prop_map(Step::Leave),
            (any::<usize>(), proptest::option::of(0..8u64))
                .prop_map(|(who, version)| Step::Applied(who, version)),
        ]
    }

    proptest! {
        /// Whatever order they come, speak and go in: a version counts as applied if and only if each that is there said
        /// so of it or of a later one since it came.
        #[test]
        fn a_version_is_applied_when_all_that_are_there_said_so(steps in prop::collection::vec(step(), 0..60)) {
            let followers = Arc::new(Followers::default());
            let mut there: BTreeMap<u64, (Follower, Vec<u64>)> = BTreeMap::new();
            for step in steps {
                let nth = |n: usize| there.keys().nth(n % there.len().max(1)).copied();
                match step {
                    Step::Join => {
                        let follower = followers.join();
                        there.insert(follower.id, (follower, Vec::new()));
                    }
                    Step::Leave(n) => {
                        let gone = nth(n).and_then(|id| there.remove(&id));
                        drop(gone);
                    }
                    Step::Applied(n, version) => {
                        let id = nth(n);
                        if let Some((follower, said)) = id.and_then(|id| there.get_mut(&id)) {
                            follower.applied(version);
                            said.extend(version);
                        }
                    }
                }
                for version in 0..9 {
                    let all = there.values().all(|(_, said)| said.iter().any(|it| *it >= version));
                    prop_assert_eq!(followers.wait_for(version).is_none(), all, "of version {}", version);
                }
            }
        }
    }

    #[tokio::test]
    async fn whoever_waits_is_woken_by_the_last_one_or_by_its_leaving() {
        let followers = Arc::new(Followers::default());
        let (one, other) = (followers.join(), followers.join());
        let mut waiting = tokio_test::task::spawn(followers.wait_for(3).expect("nobody has"));
        assert!(waiting.poll().is_pending());
        one.applied(Some(4));
        assert!(waiting.poll().is_pending());
        other.applied(Some(2));
        assert!(waiting.poll().is_pending());
        drop(other);
        assert!(waiting.is_woken() && waiting.poll().is_ready());
    }
}
