//! Who of all entries is picked from, and in which rank the others are: what the routes are laid over.
//!
//! Owns how connections and ejections read to [`shape`](crate::balance::shape), which decides; keeps C2 in that only entries
//! that may be chosen at all come before it.

use std::time::Duration;

use super::{Member, routes::Entry};
use crate::{
    balance::shape::{Candidate, Chosen, Reach, Shaped, Shaping, State, Trust},
    model::InstanceList,
    outlier::Judgement,
};

/// What an entry is to requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Rank {
    /// Among those that requests are spread over.
    Chosen,
    /// It has no share now, and is there when those that have one do not take a request.
    Standby,
    /// The registry only holds it, and there are others: the last resort.
    Held,
    /// No request may go to it.
    #[default]
    Out,
}

/// The ranks that requests go to, in their order.
pub(super) const RANKS: [Rank; 3] = [Rank::Chosen, Rank::Standby, Rank::Held];

/// When routes are laid, and by what.
pub(super) struct Turn<'a> {
    pub(super) shaping: &'a Shaping,
    pub(super) state: &'a mut State,
    pub(super) now: Duration,
    /// Whether the policy is to build a picker in any case.
    pub(super) anew: bool,
}

/// Who is who.
pub(super) struct Laid {
    /// What the policy picks from.
    pub(super) over: InstanceList,
    /// Where these are among the entries.
    pub(super) places: Box<[usize]>,
    /// Of each entry.
    pub(super) ranks: Box<[Rank]>,
    pub(super) heeds_ejection: bool,
    /// When this may be another without anything having changed.
    pub(super) again: Option<Duration>,
}

/// Lays the entries out. `picks`: whether a policy picks among them, whose shares are shaped; somebody's load balancer has
/// shares of its own.
pub(super) fn lay<M: Member>(
    entries: &[Entry<M>],
    on_demand: bool,
    picks: bool,
    turn: &mut Turn<'_>,
) -> Laid {
    let (indices, candidates): (Vec<usize>, Vec<_>) = entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| entry.is_eligible())
        .map(|(index, entry)| (index, candidate(entry, on_demand)))
        .unzip();
    let chosen = turn.shaping.choose(&candidates);
    let Shaped { over, from, again } = if picks {
        turn.shaping.shape(turn.state, &candidates, &chosen, turn.now)
    } else {
        Shaped::default()
    };
    let Chosen { heeds_ejection, heeds_held, usable, first } = chosen;
    let mut ranks = vec![Rank::Out; entries.len()];
    for place in usable {
        let held = heeds_held && candidates[place].instance.held;
        ranks[indices[place]] = if held { Rank::Held } else { Rank::Standby };
    }
    for place in if picks { &from } else { &first } {
        ranks[indices[*place]] = Rank::Chosen;
    }
    let places = from.into_iter().map(|place| indices[place]).collect();
    Laid { over, places, ranks: ranks.into(), heeds_ejection, again }
}

/// What is known of an entry that may be chosen.
fn candidate<M: Member>(entry: &Entry<M>, on_demand: bool) -> Candidate<'_> {
    let open = on_demand || entry.is_open();
    // Asked for, and nothing to be hoped for: in this order, as it may just now become ready.
    let failed = (!open || on_demand) && (entry.wanted || entry.is_asked()) && !entry.is_coming();
    // One that was connected before is not about to be connected for the first time.
    let broke = !open && entry.wanted && entry.member.opened() > 0;
    let reach = match (failed, broke) {
        (true, _) => Reach::Failed,
        (false, true) => Reach::Broken,
        (false, false) => Reach::Fine,
    };
    let trust = match entry.judgement {
        Judgement::Admitted => Trust::Admitted,
        Judgement::Probing(_) => Trust::Probing,
        Judgement::Ejected(_) => Trust::Ejected,
    };
    Candidate { instance: &entry.instance, open, reach, trust }
}
