//! Which members one request was given to already.

use std::sync::Arc;

use super::Member;

/// The members that a request was given to, each by how often it had been opened: one that was opened anew since is
/// another one.
pub(super) struct Tried<M>(Vec<(Arc<M>, u64)>);

impl<M: Member> Tried<M> {
    /// The request was offered to the nth connection of this member.
    pub(super) fn add(&mut self, member: &Arc<M>, nth: u64) {
        self.0.push((Arc::clone(member), nth));
    }

    pub(super) fn contains(&self, member: &Arc<M>) -> bool {
        !self.0.is_empty() && {
            let opened = member.opened();
            self.0.iter().any(|(tried, then)| Arc::ptr_eq(tried, member) && *then == opened)
        }
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
