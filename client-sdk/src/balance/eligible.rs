//! Which instances of a view may be chosen: the home of C2, for first picks and for retries alike.

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use super::{
    CallerOrder,
    shape::{Candidate, Shaping, State},
};
use crate::model::{Instance, InstanceList, Status};

/// The instances of one view that may be chosen, in two ranks, and how many may not and why.
///
/// Never in it: what is draining, down, or of weight 0, or left out by a [`Filter`](super::shape::Filter).
#[derive(Clone, Debug)]
pub struct Eligible {
    first: InstanceList,
    last: InstanceList,
    refused: Refused,
}

/// How many instances of a view may not be chosen, by reason. Displays for people: `5 instances: 3 of weight 0, 2
/// draining`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refused {
    /// All instances of the view.
    pub total: usize,
    /// Of those, up but of weight 0.
    pub weightless: usize,
    /// Of those, draining.
    pub draining: usize,
    /// Of those, down.
    pub down: usize,
    /// Of those that could be chosen, left out by a filter.
    pub filtered: usize,
}

impl Eligible {
    /// Sorts a view's instances.
    pub fn of(all: &InstanceList) -> Self {
        let mut refused = Refused { total: all.len(), ..Refused::default() };
        let mut held = 0;
        for instance in all.iter() {
            match instance.status {
                Status::Up if instance.weight == 0 => refused.weightless += 1,
                Status::Up => held += usize::from(instance.held),
                Status::Draining => refused.draining += 1,
                Status::Down => refused.down += 1,
            }
        }
        let eligible = refused.total - refused.weightless - refused.draining - refused.down;
        let (first, last) = if held == 0 || held == eligible {
            let everyone = if eligible == all.len() {
                Arc::clone(all)
            } else {
                all.iter().filter(|instance| instance.takes_requests()).cloned().collect()
            };
            (everyone, InstanceList::default())
        } else {
            let (held, rest): (Vec<_>, Vec<_>) =
                all.iter().filter(|instance| instance.takes_requests()).cloned().partition(|i| i.held);
            (rest.into(), held.into())
        };
        Self { first, last, refused }
    }

    /// The same after filters, panic threshold and shapers; and when the shapers are to be asked again.
    pub(crate) fn shaped(
        all: &InstanceList,
        shaping: &Shaping,
        caller: CallerOrder,
        state: &mut State,
        now: Duration,
    ) -> (Self, Option<Duration>) {
        let plain = Self::of(all);
        if !shaping.filters() && !shaping.shapers() && plain.last.is_empty() {
            return (plain, None);
        }
        let eligible: InstanceList =
            all.iter().filter(|instance| instance.takes_requests()).cloned().collect();
        let eligible_count = eligible.len();
        let kept = shaping.keep(eligible, caller);
        let filtered = eligible_count - kept.len();
        // Of connections and ejections nothing is known here.
        let candidates: Vec<_> = kept.iter().map(Candidate::open).collect();
        let chosen = shaping.choose(&candidates);
        let shaped = shaping.shape(state, &candidates, &chosen, now);
        let first: HashSet<usize> = shaped.from.iter().copied().collect();
        let rest = kept.iter().enumerate().filter(|(place, _)| !first.contains(place));
        let last = rest.map(|(_, instance)| Arc::clone(instance)).collect();
        (Self { first: shaped.over, last, refused: Refused { filtered, ..plain.refused } }, shaped.again)
    }

    /// What a policy chooses among: those that are not held, or the held ones if there are no others. With shapers, those of
    /// them that have a share now.
    pub fn first(&self) -> &InstanceList {
        &self.first
    }

    /// For retries, when all of [`first`](Self::first) were tried: those that the shapers gave no share, and held ones.
    pub fn last(&self) -> &InstanceList {
        &self.last
    }

    /// The instance at a place in both ranks together, the first rank first.
    pub(crate) fn get(&self, index: usize) -> Option<&Arc<Instance>> {
        self.first.get(index).or_else(|| self.last.get(index.checked_sub(self.first.len())?))
    }

    /// Whether both name the very same instances in the same order.
    pub(crate) fn equals(&self, other: &Self) -> bool {
        let same = |one: &InstanceList, other: &InstanceList| {
            one.len() == other.len()
                && one.iter().zip(other.iter()).all(|(one, other)| Arc::ptr_eq(one, other))
        };
        self.refused == other.refused && same(&self.first, &other.first) && same(&self.last, &other.last)
    }

    /// Whether both come from one sorting.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.first, &other.first) && Arc::ptr_eq(&self.last, &other.last)
    }

    /// How many may not be chosen, and why.
    pub fn refused(&self) -> Refused {
        self.refused
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.total {
            0 => return f.write_str("no instance is registered"),
            1 => f.write_str("1 instance")?,
            many => write!(f, "{many} instances")?,
        }
        let reasons = [
            (self.weightless, "of weight 0"),
            (self.draining, "draining"),
            (self.down, "down"),
            (self.filtered, "left out by a filter"),
        ];
        let mut separator = ": ";
        for (count, reason) in reasons.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{separator}{count} {reason}")?;
            separator = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(instances: &[(u32, Status, bool)]) -> InstanceList {
        let build = |(port, &(weight, status, held)): (usize, &(u32, Status, bool))| {
            let address = format!("a:{}", port + 1).parse().expect("valid");
            Arc::new(Instance::builder(address).weight(weight).status(status).held(held).build())
        };
        instances.iter().enumerate().map(build).collect()
    }

    #[test]
    fn what_takes_no_requests_is_in_neither_rank_held_or_not() {
        use Status::{Down, Draining, Up};
        let all = list(&[
            (1, Up, false),
            (0, Up, false),
            (1, Draining, false),
            (1, Down, true),
            (0, Up, true),
            (2, Up, true),
        ]);
        let eligible = Eligible::of(&all);
        assert_eq!(&**eligible.first(), &all[..1]);
        assert_eq!(&**eligible.last(), &all[5..]);
        assert_eq!(eligible.refused().to_string(), "6 instances: 2 of weight 0, 1 draining, 1 down");
    }

    #[test]
    fn held_ones_are_chosen_when_there_are_no_others() {
        let all = list(&[(1, Status::Up, true), (0, Status::Up, false)]);
        assert_eq!(&**Eligible::of(&all).first(), &all[..1]);
        assert!(Eligible::of(&all).last().is_empty());
    }

    #[test]
    fn a_view_of_which_all_may_be_chosen_is_not_copied() {
        let all = list(&[(1, Status::Up, false), (2, Status::Up, false)]);
        assert!(Arc::ptr_eq(Eligible::of(&all).first(), &all));
    }

    #[test]
    fn an_empty_view_says_so() {
        assert_eq!(Eligible::of(&InstanceList::default()).refused().to_string(), "no instance is registered");
    }
}
