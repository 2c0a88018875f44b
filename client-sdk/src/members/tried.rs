//! Which members one request was given to already.

use std::{ops::RangeInclusive, sync::Arc};

use super::Member;

/// The members that a request was given to, each by the numbers of its connections: one that was opened anew since is
/// another one.
pub(super) struct Tried<M>(Vec<(Arc<M>, RangeInclusive<u64>)>);

/// Which connections of one member a request was offered to, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Offered(Vec<RangeInclusive<u64>>);

impl Offered {
    pub(crate) fn has(&self, nth: u64) -> bool {
        self.0.iter().any(|which| which.contains(&nth))
    }
}

impl<M: Member> Tried<M> {
    /// The request was offered to the nth connection of this member. No connection is the 0th.
    pub(super) fn add(&mut self, member: &Arc<M>, nth: u64) {
        self.0.push((Arc::clone(member), nth..=nth));
    }

    /// This member does not want the request, whichever of its connections brings it.
    pub(super) fn add_all(&mut self, member: &Arc<M>) {
        self.0.push((Arc::clone(member), 0..=member.opened()));
    }

    /// Those of one member; nothing is allocated for one that was not tried.
    pub(super) fn of(&self, member: &Arc<M>) -> Offered {
        let its = self.0.iter().filter(|(tried, _)| Arc::ptr_eq(tried, member));
        Offered(its.map(|(_, which)| which.clone()).collect())
    }

    /// Whether the request was offered to the nth connection of this member.
    fn has(&self, member: &Arc<M>, nth: u64) -> bool {
        self.0.iter().any(|(tried, which)| Arc::ptr_eq(tried, member) && which.contains(&nth))
    }

    /// Whether the request was offered to this member, and it has no connection left to offer it to.
    pub(super) fn contains(&self, member: &Arc<M>) -> bool {
        self.0.iter().any(|(tried, _)| Arc::ptr_eq(tried, member))
            && !member.offers(&|nth| self.has(member, nth))
    }

    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }
}

impl<M> Default for Tried<M> {
    fn default() -> Self {
        Self(Vec::new())
    }
}
