//! Runs filters, the panic threshold and shapers, and turns shares into the list that a picker is built over.
//!
//! Keeps C2: what comes out was among what came in, and that were only instances that take requests. A filter or a shaper
//! is somebody else's code: what it makes up is left out, what is no share counts as none, and a panic ends nothing.
//!
//! Weights are whole numbers, so where shares differ from the instances' own weights, these are scaled, to at most 65,535 (what
//! the registry allows), and the instances are cloned with them. Those whose share grew the most, or did not shrink, have their
//! own weight times a power of two: a ring, whose points follow the mean weight in powers of two, keeps theirs. The same instance with the same weight as the last
//! time stays the very same clone, so that a list that comes out as before is seen to be the one before. Nothing is cloned
//! while the shares are as the weights are.

use std::{
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use super::{Shaper, Shaping, Share, ages::Ages};
use crate::{
    balance::CallerOrder,
    model::{Instance, InstanceList},
};

/// The greatest weight.
const GREATEST: f64 = 65_535.0;
/// How much two ratios may differ that are meant to be the same.
const SAME: f64 = 1e-9;
/// The soonest that a shaper is asked again.
pub(crate) const SOONEST: Duration = Duration::from_millis(10);

/// An instance that the filters kept, and what is known of its health.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) instance: &'a Arc<Instance>,
    /// Whether a request could be sent to it now, or, for a policy that connects on demand, whether it may be picked.
    pub(crate) open: bool,
    pub(crate) reach: Reach,
    pub(crate) trust: Trust,
}

/// What is known of connections to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// There is one, or nothing is known against there being one.
    Fine,
    /// There is none any more.
    Broken,
    /// It could not be connected.
    Failed,
}

/// What is known of how requests to an instance go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Nothing is known against it.
    Admitted,
    /// Its ejection is over, and one request at a time goes to it.
    Probing,
    Ejected,
}

/// Who may be picked from.
#[derive(Debug, Default)]
pub(crate) struct Chosen {
    /// Whether ejections matter: not if too few are healthy, nor if nobody else is there.
    pub(crate) heeds_ejection: bool,
    /// Whether `held` matters.
    pub(crate) heeds_held: bool,
    /// Where those that requests may go to are among the candidates.
    pub(crate) usable: Vec<usize>,
    /// Where those that are to be picked from are.
    pub(crate) first: Vec<usize>,
}

/// What a pipeline remembers of one view.
#[derive(Debug, Default)]
pub(crate) struct State {
    ages: Ages,
    /// What was cloned the last time: by id, from what and to what.
    cloned: HashMap<Arc<str>, (Arc<Instance>, Arc<Instance>)>,
}

/// What came out.
#[derive(Debug, Default)]
pub(crate) struct Shaped {
    /// What the picker is to be built over.
    pub(crate) over: InstanceList,
    /// Where each of them was among the candidates.
    pub(crate) from: Vec<usize>,
    /// When the shapers are to be asked again though nothing changed.
    pub(crate) again: Option<Duration>,
}

impl<'a> Candidate<'a> {
    /// One that nothing is known against.
    pub(crate) fn open(instance: &'a Arc<Instance>) -> Self {
        Self { instance, open: true, reach: Reach::Fine, trust: Trust::Admitted }
    }

    fn is_lost(&self) -> bool {
        self.reach != Reach::Fine
    }
}

impl Shaping {
    /// Has the filters say who is used.
    pub(crate) fn keep(&self, eligible: InstanceList, caller: CallerOrder) -> InstanceList {
        let mut kept = eligible;
        for filter in &self.filters {
            let Ok(answer) = catch_unwind(AssertUnwindSafe(|| filter.filter(&kept, caller))) else {
                tracing::error!("a filter panicked; no instance is used until the view changes");
                return InstanceList::default();
            };
            kept = only(&kept, answer);
        }
        kept
    }

    /// Takes in a view, whole: who is new, and who came back.
    pub(crate) fn note(&self, state: &mut State, all: &[Arc<Instance>], now: Duration) {
        if self.shapers() {
            state.ages.view(all, now);
        }
    }

    /// Who is picked from: those that are open, and neither ejected nor held. If too few of all that are not known to be out of
    /// reach are healthy, all that are open. Else, if nobody is there but such as are ejected, on probation, or out of reach,
    /// ejections do not matter; and if there are none but held ones, these are picked from.
    pub(crate) fn choose(&self, candidates: &[Candidate<'_>]) -> Chosen {
        let admitted = |candidate: &Candidate<'_>| candidate.trust == Trust::Admitted;
        let reached = || candidates.iter().filter(|candidate| !candidate.is_lost());
        let healthy = reached().filter(|it| admitted(it) && !it.instance.held).count();
        let panics = self.panic.is_passed(healthy, reached().count());
        let heeds_ejection = !panics && reached().any(|it| it.open && admitted(it));
        let heeds_held = !panics;
        let goes = |it: &Candidate<'_>| it.open && !(heeds_ejection && it.trust == Trust::Ejected);
        let usable: Vec<usize> = (0..candidates.len()).filter(|place| goes(&candidates[*place])).collect();
        let mut first = usable.clone();
        if heeds_held && usable.iter().any(|place| !candidates[*place].instance.held) {
            first.retain(|place| !candidates[*place].instance.held);
        }
        Chosen { heeds_ejection, heeds_held, usable, first }
    }

    /// Has the shapers say what shares those get that were chosen.
    pub(crate) fn shape(
        &self,
        state: &mut State,
        candidates: &[Candidate<'_>],
        chosen: &Chosen,
        now: Duration,
    ) -> Shaped {
        let instances = |places: &[usize]| -> InstanceList {
            places.iter().map(|place| Arc::clone(candidates[*place].instance)).collect()
        };
        let unshaped = |again| Shaped { over: instances(&chosen.first), from: chosen.first.clone(), again };
        if !self.shapers() {
            return unshaped(None);
        }
        let mut usable = vec![false; candidates.len()];
        for place in &chosen.first {
            let candidate = &candidates[*place];
            let is_probing = chosen.heeds_ejection && candidate.trust == Trust::Probing;
            usable[*place] = !candidate.is_lost() && !is_probing;
        }
        for candidate in candidates {
            let reached = match candidate.reach {
                Reach::Fine => candidate.open.then_some(true),
                Reach::Broken => None,
                Reach::Failed => Some(false),
            };
            state.ages.reached(&candidate.instance.id, reached, now);
        }
        let known = candidates.iter().zip(&usable).map(|(candidate, usable)| Share {
            instance: candidate.instance,
            weight: f64::from(candidate.instance.weight),
            usable: *usable,
            since: state.ages.since(&candidate.instance.id),
        });
        let (places, mut shares): (Vec<_>, Vec<_>) = known
            .enumerate()
            .filter(|(place, _)| candidates[*place].open || candidates[*place].is_lost())
            .unzip();
        let again = self.shapers.iter().filter_map(|shaper| ask(&**shaper, &mut shares, now)).min();
        let mut weights = vec![0.0; candidates.len()];
        for (place, share) in places.into_iter().zip(&shares) {
            weights[place] = share.weight;
        }
        let weighed: Vec<usize> =
            chosen.first.iter().copied().filter(|place| weights[*place] > 0.0).collect();
        if weighed.is_empty() {
            return unshaped(again);
        }
        let over = instances(&weighed);
        let weights: Vec<f64> = weighed.iter().map(|place| weights[*place]).collect();
        Shaped { over: state.weigh(over, &weights), from: weighed, again }
    }
}

impl State {
    /// The instances with these weights. The very same list, if their own weights compare so already.
    fn weigh(&mut self, instances: InstanceList, weights: &[f64]) -> InstanceList {
        let ratios = instances.iter().zip(weights).map(|(it, weight)| weight / f64::from(it.weight.max(1)));
        let (least, most) =
            ratios.fold((f64::MAX, 0.0_f64), |(least, most), it| (least.min(it), most.max(it)));
        if most - least <= most * SAME {
            self.cloned.clear();
            return instances;
        }
        let greatest = weights.iter().copied().fold(0.0, f64::max) / most;
        let unit = (GREATEST / greatest).log2().floor().exp2() / most;
        let mut before = std::mem::take(&mut self.cloned);
        let weighed = instances.iter().zip(weights).map(|(instance, weight)| {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 1 to 65,535
            let weight = (weight * unit).round().clamp(1.0, GREATEST) as u32;
            if instance.weight == weight {
                return Arc::clone(instance);
            }
            let clone = match before.remove(&instance.id) {
                Some((of, clone)) if Arc::ptr_eq(&of, instance) && clone.weight == weight => clone,
                _ => Arc::new(Instance { weight, ..Instance::clone(instance) }),
            };
            self.cloned.insert(Arc::clone(&instance.id), (Arc::clone(instance), Arc::clone(&clone)));
            clone
        });
        weighed.collect()
    }
}

/// Those of the instances that the answer names, in their own order.
fn only(instances: &InstanceList, answer: InstanceList) -> InstanceList {
    if Arc::ptr_eq(instances, &answer) {
        return answer;
    }
    let named: HashSet<_> = answer.iter().map(Arc::as_ptr).collect();
    instances.iter().filter(|instance| named.contains(&Arc::as_ptr(instance))).cloned().collect()
}

/// Asks one shaper. Returns when it wants to be asked again.
fn ask(shaper: &dyn Shaper, shares: &mut [Share<'_>], now: Duration) -> Option<Duration> {
    let before: Vec<_> = shares.to_vec();
    let Ok(again) = catch_unwind(AssertUnwindSafe(|| shaper.shape(shares, now))) else {
        tracing::error!("a shaper panicked; it is passed over until it is asked the next time");
        shares.clone_from_slice(&before);
        return None;
    };
    for share in shares.iter_mut().filter(|share| !share.weight.is_finite() || share.weight < 0.0) {
        share.weight = 0.0;
    }
    again.map(|again| now.saturating_add(again.max(SOONEST)))
}

#[cfg(test)]
mod tests;
