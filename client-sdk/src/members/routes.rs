//! Where a request may go right now: what the driver publishes and every request reads, without a lock.
//!
//! Keeps C2: [`Routes`] hands out only instances of the newest view that are up and of a weight above 0. A choice is an
//! instance together with its own member, never an index that a later list could give another meaning.
//!
//! Two kinds of policies are served. Those that choose among whatever is connected have a picker over the connected
//! instances. Those that must choose the same instance whether or not it is connected (the hashes) have a picker over all
//! that may be chosen, and their choice is connected on demand.
//!
//! Who is picked from, and in which order the others come, is said by `lay`: by filters, health and shapers. What is ejected
//! is not among those that requests may go to, for neither kind, unless nobody else is there or too few are healthy. One
//! that is on probation is among them, and lets one request in at a time.

use std::{
    collections::HashMap,
    ops::BitOrAssign,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use super::{
    Chooser, Member, SharedError,
    chooser::AnyPolicy,
    gate::{Gate, Permit, Refused},
    lay::{Laid, RANKS, Rank, Turn, lay},
    member::Demand,
    tried::Tried,
};
use crate::{
    balance::{self, Connects, Eligible, Load, Pick, PickContext, PickError, Picker},
    model::{Address, Instance, InstanceList},
    outlier::Judgement,
};

/// How often the policy is asked for one that a request was not given to yet, before any other one will do.
const PROBES: u32 = 8;

/// One state of the view and of its members.
pub(crate) struct Routes<M> {
    /// Grows with each publication.
    pub(super) version: u64,
    /// The instances of the view in its order, then those that left it and still finish what they have.
    pub(super) entries: Vec<Entry<M>>,
    /// Whether a view is known at all.
    pub(super) discovered: bool,
    /// Why the view may be out of date or is not there.
    pub(super) error: Option<SharedError>,
    /// Whether what is chosen is connected only then.
    pub(super) on_demand: bool,
    /// Whether ejections matter: not where they would leave nobody, or too few.
    pub(super) heeds_ejection: bool,
    /// When they may be others though nothing changed, by the runtime's clock.
    pub(super) again: Option<Duration>,
    /// Over those that were chosen. `None`: there are none.
    built: Option<Arc<Built>>,
    /// What the picker was built over, as indices of the entries.
    places: Box<[usize]>,
    /// Of each entry.
    ranks: Box<[Rank]>,
    /// What requests may go to, as an index into the entries.
    by_id: HashMap<Arc<str>, usize>,
    by_address: HashMap<Address, usize>,
    /// Where the next search among all of them begins.
    next: AtomicUsize,
}

/// A picker, and what it was built over. It is kept as long as that stays the same, so that an instance that comes and
/// goes in vain does not start everybody's round anew.
struct Built {
    over: InstanceList,
    picker: Box<dyn Picker>,
}

/// An instance and its member.
pub(crate) struct Entry<M> {
    pub(super) instance: Arc<Instance>,
    pub(super) member: Arc<M>,
    pub(super) demand: Arc<Demand>,
    /// Whether it is to be connected.
    pub(super) wanted: bool,
    /// It left the view, or this member of it did.
    pub(super) removed: bool,
    /// No filter left it out.
    pub(super) kept: bool,
    /// How many requests it may have, and whether one of them is its probe.
    pub(super) gate: Arc<Gate>,
    /// Whether it is ejected, or on probation.
    pub(super) judgement: Judgement,
}

/// What a request finds.
pub(super) enum Found<'a, M> {
    /// An instance that takes it.
    Open(Pick<'a>, &'a Entry<M>, Permit),
    /// There is none now.
    Nobody(Hope),
}

/// What was about to come when a request found nobody. It may have come since: that is told by other routes, or by the
/// [`Room`](super::Room).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hope {
    /// Some would have been there if they were not busy.
    pub(super) busy: bool,
    /// Some would have been there if they had not as many requests as they may have.
    pub(super) full: bool,
    /// Some of those that requests go to were about to be connected.
    pub(super) soon: bool,
}

enum Takes {
    Now(Permit),
    /// Once it is not busy any more.
    Busy,
    /// Once it has fewer requests.
    Full,
    /// Once it is connected.
    Soon,
    Not,
}

impl<M: Member> Routes<M> {
    /// Nothing known yet.
    pub(super) fn unknown() -> Self {
        Self {
            version: 0,
            entries: Vec::new(),
            discovered: false,
            error: None,
            on_demand: false,
            heeds_ejection: true,
            again: None,
            built: None,
            places: Box::default(),
            ranks: Box::default(),
            by_id: HashMap::new(),
            by_address: HashMap::new(),
            next: AtomicUsize::new(0),
        }
    }

    /// Lays routes over the entries, with a new picker if the one of `before` does not fit.
    pub(super) fn build(
        before: &Self,
        entries: Vec<Entry<M>>,
        discovered: bool,
        error: Option<SharedError>,
        chooser: &Chooser,
        mut turn: Turn<'_>,
    ) -> Self {
        let on_demand = chooser.connects() == Connects::OnDemand;
        let picks = matches!(chooser, Chooser::Policy(..));
        let Laid { over, places, ranks, heeds_ejection, again } = lay(&entries, on_demand, picks, &mut turn);
        let mut by_id = HashMap::new();
        let mut by_address = HashMap::new();
        for (index, entry) in entries.iter().enumerate().filter(|(index, _)| ranks[*index] != Rank::Out) {
            by_id.insert(Arc::clone(&entry.instance.id), index);
            by_address.entry(entry.instance.address.clone()).or_insert(index);
        }
        let built = match chooser {
            Chooser::Policy(policy, _) => match &before.built {
                _ if over.is_empty() => None,
                Some(built) if !turn.anew && same(&built.over, &over) => Some(Arc::clone(built)),
                _ => built(&**policy, over).map(Arc::new),
            },
            Chooser::LoadBalance(_) => None,
        };
        let (version, next) = (before.version + 1, AtomicUsize::new(before.next.load(Ordering::Relaxed)));
        Self {
            version,
            entries,
            discovered,
            error,
            on_demand,
            heeds_ejection,
            again,
            built,
            places,
            ranks,
            by_id,
            by_address,
            next,
        }
    }

    /// Whether there is a picker.
    pub(super) fn picks(&self) -> bool {
        self.built.is_some()
    }

    /// What the entry at an index is to requests.
    pub(super) fn rank(&self, index: usize) -> Rank {
        self.ranks.get(index).copied().unwrap_or_default()
    }

    /// Whether a request could be sent somewhere.
    pub(super) fn is_open(&self) -> bool {
        self.entries.iter().any(|entry| self.routes(entry) && entry.is_open())
    }

    /// An instance that the request was not given to yet, and its member.
    ///
    /// The policy is asked a few times, each time as the next attempt of this request. If it insists on instances that did
    /// not take it, whatever else is there will do: those that were chosen, then those without a share, held ones last.
    pub(super) fn pick(
        &self,
        context: &PickContext,
        tried: &Tried<M>,
        wake: &Notify,
    ) -> Result<Found<'_, M>, PickError> {
        let Some(built) = &self.built else { return Ok(Found::Nobody(Hope::default())) };
        let mut hope = Hope::default();
        for probe in 0..PROBES {
            let attempt = tried.len().saturating_add(probe);
            let pick = match built.picker.pick(&context.attempt(attempt)) {
                Ok(pick) => pick,
                Err(error) if attempt == 0 => return Err(error),
                Err(_) => break,
            };
            let entry = self.entry(&pick)?;
            match self.takes_now(entry, tried, wake) {
                Takes::Now(permit) => return Ok(Found::Open(pick, entry, permit)),
                Takes::Soon => return Ok(Found::Nobody(Hope { soon: true, ..hope })),
                Takes::Busy => hope.busy = true,
                Takes::Full => hope.full = true,
                Takes::Not => {}
            }
        }
        Ok(self.any(context, tried, wake))
    }

    /// The instance at an address, if it is connected and may be chosen, and the request was not given to it yet.
    pub(super) fn at(&self, address: &Address, tried: &Tried<M>) -> Found<'_, M> {
        let Some(index) = self.by_address.get(address) else { return Found::Nobody(Hope::default()) };
        let entry = &self.entries[*index];
        if tried.contains(&entry.member) {
            return Found::Nobody(Hope { soon: entry.member.is_hopeful(), ..Hope::default() });
        }
        if entry.is_busy() {
            return Found::Nobody(Hope { busy: true, ..Hope::default() });
        }
        match self.enter(entry) {
            Ok(permit) => Found::Open(Pick::of(Arc::clone(&entry.instance)), entry, permit),
            Err(refused) => Found::Nobody(Hope::after(refused)),
        }
    }

    /// What the policy knows of the load of those that it chooses among, by their ids.
    pub(super) fn loads(&self) -> HashMap<&str, Load> {
        let Some(built) = &self.built else { return HashMap::new() };
        let all = built.over.iter().enumerate();
        all.filter_map(|(index, instance)| Some((&*instance.id, built.picker.load(index)?))).collect()
    }

    /// Whether requests go to the entry, connected or about to be.
    pub(super) fn takes(&self, entry: &Entry<M>) -> bool {
        self.routes(entry) && (entry.member.is_ready() || (self.on_demand && entry.member.is_hopeful()))
    }

    pub(super) fn routes(&self, entry: &Entry<M>) -> bool {
        self.by_id
            .get(&entry.instance.id)
            .is_some_and(|index| Arc::ptr_eq(&self.entries[*index].member, &entry.member))
    }

    fn entry(&self, pick: &Pick<'_>) -> Result<&Entry<M>, PickError> {
        // Compared with what the picker was given: the entry has it with its own weight.
        let given = self.built.as_ref().and_then(|built| built.over.get(pick.index()));
        if given.is_some_and(|given| Arc::ptr_eq(given, pick.instance()))
            && let Some(entry) = self.places.get(pick.index()).and_then(|place| self.entries.get(*place))
        {
            return Ok(entry);
        }
        // A policy may pick an instance that it made or kept itself.
        let index = self.by_id.get(&pick.instance().id).ok_or(PickError::NoInstances)?;
        Ok(&self.entries[*index])
    }

    /// Whether the entry takes the request. One that is connected on demand is asked for.
    fn takes_now(&self, entry: &Entry<M>, tried: &Tried<M>, wake: &Notify) -> Takes {
        if tried.contains(&entry.member) {
            return Takes::Not;
        }
        if entry.member.is_ready() {
            return match entry.member.is_free().then(|| self.enter(entry)) {
                Some(Ok(permit)) => Takes::Now(permit),
                Some(Err(Refused::Full)) => Takes::Full,
                Some(Err(Refused::Probed)) | None => Takes::Busy,
            };
        }
        if !self.on_demand {
            return Takes::Not;
        }
        if entry.is_asked_and_coming(wake) { Takes::Soon } else { Takes::Not }
    }

    /// Lets a request in, if there is room.
    fn enter(&self, entry: &Entry<M>) -> Result<Permit, Refused> {
        entry.gate.enter(entry.is_on_probation(), self.heeds_ejection)
    }

    /// Any instance that the request was not given to yet.
    fn any(&self, context: &PickContext, tried: &Tried<M>, wake: &Notify) -> Found<'_, M> {
        let count = self.entries.len();
        // The same for the same key; for requests without one, everyone's turn.
        let start = match context.hash_key {
            Some(key) => usize::try_from(key % count.max(1) as u64).unwrap_or(0),
            None => self.next.fetch_add(1, Ordering::Relaxed),
        };
        let all = || (0..count).map(|step| start.wrapping_add(step) % count);
        let mut hope = Hope::default();
        for wanted in RANKS {
            let rank = || all().filter(|index| self.rank(*index) == wanted).map(|index| &self.entries[index]);
            for entry in rank().filter(|entry| !tried.contains(&entry.member)) {
                if !entry.is_open() {
                    hope.soon |= entry.is_coming();
                } else if entry.member.is_free() {
                    match self.enter(entry) {
                        Ok(permit) => {
                            return Found::Open(Pick::of(Arc::clone(&entry.instance)), entry, permit);
                        }
                        Err(refused) => hope |= Hope::after(refused),
                    }
                } else {
                    hope.busy = true;
                }
            }
            let awaited = |entry: &Entry<M>| {
                !tried.contains(&entry.member) && !entry.member.is_ready() && entry.is_asked_and_coming(wake)
            };
            if self.on_demand && rank().any(awaited) {
                break;
            }
        }
        Found::Nobody(hope)
    }
}

impl<M: Member> Entry<M> {
    /// Whether it may be chosen at all (C2), and no filter left it out.
    pub(super) fn is_eligible(&self) -> bool {
        !self.removed && self.kept && self.instance.takes_requests()
    }

    /// Whether a request asked for it.
    pub(super) fn is_asked(&self) -> bool {
        self.demand.is_asked()
    }

    /// Whether a request asked for it, and it was not told to connect yet.
    pub(super) fn is_newly_asked(&self) -> bool {
        self.demand.is_asked() && !self.wanted && self.is_eligible()
    }

    /// Whether it is connected and takes no request at this moment.
    fn is_busy(&self) -> bool {
        self.member.is_ready() && !self.member.is_free()
    }

    /// Whether it is ejected: not to be chosen, unless nobody else is there.
    pub(super) fn is_ejected(&self) -> bool {
        matches!(self.judgement, Judgement::Ejected(_))
    }

    /// Whether its ejection is over, and one request at a time shows whether it is well.
    pub(super) fn is_on_probation(&self) -> bool {
        matches!(self.judgement, Judgement::Probing(_))
    }

    /// Whether it is neither ejected nor on probation.
    pub(super) fn is_admitted(&self) -> bool {
        self.judgement == Judgement::Admitted
    }

    /// Of one that is connected on demand: asks for it, and says whether it is about to be connected. One that failed is asked
    /// for too: it is tried again after its backoff, while the request goes elsewhere.
    fn is_asked_and_coming(&self, wake: &Notify) -> bool {
        let coming = self.is_coming();
        self.demand.ask(wake);
        coming
    }

    /// Of one that was not connected a moment ago: whether it is about to be, or has come to be since.
    pub(super) fn is_coming(&self) -> bool {
        self.member.is_hopeful() || self.member.is_ready()
    }

    /// Whether a request could be sent to it, now or once it is not busy.
    pub(super) fn is_open(&self) -> bool {
        self.is_eligible() && self.member.is_ready()
    }
}

impl Hope {
    fn after(refused: Refused) -> Self {
        match refused {
            Refused::Full => Self { full: true, ..Self::default() },
            Refused::Probed => Self { busy: true, ..Self::default() },
        }
    }

    /// Whether a place may become free, which the [`Room`](super::Room) tells.
    pub(super) fn of_room(self) -> bool {
        self.busy || self.full
    }
}

impl BitOrAssign for Hope {
    fn bitor_assign(&mut self, other: Self) {
        self.busy |= other.busy;
        self.full |= other.full;
        self.soon |= other.soon;
    }
}

/// A picker over `over`. A policy that panics must not take the driver with it.
fn built(policy: &dyn AnyPolicy, over: InstanceList) -> Option<Built> {
    let picker = catch_unwind(AssertUnwindSafe(|| policy.build(&over)));
    if picker.is_err() {
        tracing::error!("the policy panicked while it built a picker; it is asked again at the next change");
    }
    picker.ok().map(|picker| Built { over, picker })
}

/// Whether both are the very same instances in the same order.
fn same(one: &InstanceList, other: &InstanceList) -> bool {
    one.len() == other.len() && one.iter().zip(other.iter()).all(|(one, other)| Arc::ptr_eq(one, other))
}

/// How many of the entries may not be chosen, and why.
pub(super) fn refused<M>(entries: &[Entry<M>]) -> balance::Refused {
    let present = entries.iter().filter(|entry| !entry.removed);
    let instances = present.clone().map(|entry| Arc::clone(&entry.instance)).collect();
    let filtered = present.filter(|entry| !entry.kept && entry.instance.takes_requests()).count();
    balance::Refused { filtered, ..Eligible::of(&instances).refused() }
}
