//! The background task behind members: follows the view, owns the members, publishes the routes.
//!
//! It works whether or not requests are made, so idle callers connect, notice dead peers, and drain. A change of the
//! view is published at once (C2); changes of members, of which there may be a thousand in a moment, are gathered
//! for a few milliseconds: until then each request finds out for itself that a member is not ready.
//!
//! Who is connected: what a policy chooses on demand, with the first request for it; otherwise as many instances as are to
//! be connected ahead, in the caller's own order, and one more for each of them that fails. A thousand callers of a
//! thousand instances do not open a million connections. How many that is may be decided by the demand (`aperture`).
//!
//! Filters say whom it uses at all; the rest is as if it were not there, and a connection to it is given up. Shares are worked
//! out when anything changes, and when a shaper asked for it; a policy may ask for a new picker every so often.
//!
//! It judges instances by how requests to them went (`outliers`): at each interval, and at once when a request has news.
//!
//! Keeps C1 in that a failing discovery changes nothing but the error that the routes carry, and *make before break*: a
//! member ends only when its instance left the view, changed its address or is left out by a filter, or when it is one too
//! many, after what is in flight on it. Weight, tags and status by themselves never close one.

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use super::{
    Chooser, ConnectionState, Member, Open, Order, Shared,
    aperture::Control,
    lay::Turn,
    member::Owner,
    outliers::Outliers,
    routes::{Entry, Routes},
};
use crate::{
    balance::{Connects, shape::State},
    discover::{Followed, ViewState},
    model::{Instance, InstanceList},
    outlier::Judgement,
};

/// How long changes of members are gathered.
const GATHER: Duration = Duration::from_millis(5);

pub(crate) struct Driver<O: Open> {
    shared: Arc<Shared<O::Member>>,
    open: O,
    followed: Followed,
    state: ViewState,
    /// The view as it came.
    view: InstanceList,
    /// Its instances, each id once.
    instances: InstanceList,
    /// Those of them that take requests and that the filters kept, in the caller's order.
    preferred: Vec<Arc<Instance>>,
    /// Those of them that take requests and that the filters left out.
    filtered: HashSet<Arc<str>>,
    /// What shaping remembers.
    shaped: State,
    /// When the policy wants a new picker though nothing changed.
    rebuild: Option<Duration>,
    owners: HashMap<Arc<str>, Owner<O::Member>>,
    outliers: Outliers,
    /// Decides how many are connected, where that is not fixed.
    aperture: Option<Control>,
    /// What is given up and still finishes what it has.
    leaving: Vec<(Arc<Instance>, Owner<O::Member>)>,
}

impl<O: Open> Driver<O> {
    pub(crate) fn new(shared: Arc<Shared<O::Member>>, open: O, followed: Followed) -> Self {
        let (runtime, room, wake, meters) = (&shared.runtime, &shared.room, &shared.wake, &shared.meters);
        let occupancy = shared.ahead.occupancy();
        Self {
            outliers: Outliers::new(&shared.settings, runtime, room, wake, meters, occupancy),
            aperture: Control::new(&shared),
            shared,
            open,
            followed,
            state: ViewState::default(),
            view: InstanceList::default(),
            instances: InstanceList::default(),
            preferred: Vec::new(),
            filtered: HashSet::new(),
            shaped: State::default(),
            rebuild: None,
            owners: HashMap::new(),
            leaving: Vec::new(),
        }
    }

    /// Runs until it is dropped.
    pub(crate) async fn run(mut self) {
        self.take_view();
        self.direct();
        self.publish();
        let mut closed = false;
        loop {
            let shared = Arc::clone(&self.shared);
            let (interval, shares) = (self.outliers.deadline(), self.next_shares());
            let look = self.aperture.as_ref().map(Control::deadline);
            let next = [interval, shares, look].into_iter().flatten().min();
            let pause = next.map(|at| at.saturating_sub(shared.runtime.now()));
            let told = tokio::select! {
                biased;
                changed = self.followed.receiver().changed(), if !closed => {
                    closed = changed.is_err();
                    self.take_view();
                    true
                }
                () = shared.wake.notified() => {
                    let mut gathered = pin!(tokio::time::sleep(GATHER));
                    while !self.is_urgent() {
                        tokio::select! {
                            biased;
                            changed = self.followed.receiver().changed(), if !closed => {
                                closed = changed.is_err();
                                self.take_view();
                                break;
                            }
                            () = &mut gathered => break,
                            // Something that a request waits for may come among the rest.
                            () = shared.wake.notified() => {}
                        }
                    }
                    true
                }
                () = Control::signalled(self.aperture.as_ref()) => false,
                () = sleep(pause) => false,
            };
            // However much there is to do, intervals end in time.
            let now = shared.runtime.now();
            let judged = self.outliers.judge(now);
            let resized = self.resize(now);
            if told || judged || resized || shares.is_some_and(|at| at <= now) {
                self.direct();
                self.publish();
            }
        }
    }

    /// Takes in the newest state of the view.
    fn take_view(&mut self) {
        self.state = self.followed.receiver().borrow_and_update().clone();
        let Some(view) = self.state.view.clone() else { return };
        if Arc::ptr_eq(&view.instances, &self.view) {
            return;
        }
        // A list that names an id twice is answered by its first.
        let mut seen = HashSet::new();
        let instances: InstanceList =
            view.instances.iter().filter(|instance| seen.insert(&*instance.id)).cloned().collect();
        tracing::debug!(
            endpoint = %self.shared.endpoint,
            instances = instances.len(),
            before = self.instances.len(),
            "view changed"
        );
        if let Chooser::LoadBalance(balance) = &self.shared.chooser {
            balance.changed(&self.shared.endpoint, &self.view, &view);
        }
        self.view = Arc::clone(&view.instances);
        let filtered = self.filter(&instances);
        let before = std::mem::replace(&mut self.instances, Arc::clone(&instances));
        for gone in before.iter().filter(|instance| !seen.contains(&*instance.id)) {
            self.leave(gone);
        }
        let before: HashMap<&str, &Arc<Instance>> = before.iter().map(|i| (&*i.id, i)).collect();
        for instance in instances.iter() {
            let (was_out, is_out) = (filtered.contains(&instance.id), self.filtered.contains(&instance.id));
            let moved = |owner: &Owner<O::Member>| *owner.member.address() != instance.address;
            if self.owners.get(&instance.id).is_some_and(moved) || was_out != is_out {
                self.leave(before.get(&*instance.id).unwrap_or(&instance));
            }
            match self.owners.get(&instance.id) {
                Some(owner) => self.open.update(&owner.member, instance),
                None => self.start(instance),
            }
        }
    }

    /// Has the filters say which of the view's instances are used. Returns whom they had left out before.
    fn filter(&mut self, instances: &InstanceList) -> HashSet<Arc<str>> {
        let shaping = &self.shared.settings.shaping;
        shaping.note(&mut self.shaped, instances, self.shared.runtime.now());
        let takes: InstanceList =
            instances.iter().filter(|instance| instance.takes_requests()).cloned().collect();
        let mut filtered = HashSet::new();
        if shaping.filters() {
            filtered.extend(takes.iter().map(|instance| Arc::clone(&instance.id)));
            let kept = shaping.keep(takes, self.shared.caller);
            kept.iter().for_each(|instance| _ = filtered.remove(&instance.id));
            self.preferred = self.shared.caller.sort(&kept);
            // Whom this caller does not use has no part in what share of them may be ejected.
            let used = instances.iter().filter(|instance| !filtered.contains(&instance.id));
            self.outliers.follow(&used.cloned().collect::<Vec<_>>());
        } else {
            self.preferred = self.shared.caller.sort(&takes);
            self.outliers.follow(instances);
        }
        std::mem::replace(&mut self.filtered, filtered)
    }

    /// When to publish again though nothing changes.
    fn next_shares(&self) -> Option<Duration> {
        [self.shared.routes.load().again, self.rebuild].into_iter().flatten().min()
    }

    /// Tells each member what is wanted of it.
    fn direct(&mut self) {
        for instance in self.instances.iter().filter(|instance| !instance.takes_requests()) {
            if let Some(owner) = self.owners.get(&instance.id) {
                owner.order(Order::Rest);
            }
        }
        match self.shared.chooser.connects() {
            Connects::Ahead => self.connect_ahead(),
            Connects::OnDemand => {
                for instance in &self.preferred {
                    let Some(owner) = self.owners.get(&instance.id) else { continue };
                    owner.order(if owner.demand.is_asked() { connect(instance) } else { Order::Rest });
                }
            }
        }
    }

    /// Has the aperture look at the demand. Whether it is another one now.
    fn resize(&mut self, now: Duration) -> bool {
        let Some(aperture) = &mut self.aperture else { return false };
        let before = aperture.size();
        aperture.look(now, self.preferred.len()) != before
    }

    /// Connects as many as are to be, and as many more as of these fail or are ejected. Gives up what is connected beyond that, once
    /// enough of those that are to be connected are.
    fn connect_ahead(&mut self) {
        // Another view may have more or fewer.
        self.resize(self.shared.runtime.now());
        let limit = self.aperture.as_ref().map_or(self.shared.settings.connect_ahead, Control::size);
        let (mut well, mut ready, mut surplus) = (0, 0, Vec::new());
        for instance in &self.preferred {
            let Some(owner) = self.owners.get(&instance.id) else { continue };
            let is_ready = owner.member.state() == ConnectionState::Ready;
            if well < limit {
                let is_admitted = self.outliers.judgement(instance) == Judgement::Admitted;
                well += usize::from(is_admitted && (is_ready || owner.member.is_hopeful()));
                ready += usize::from(is_admitted && is_ready);
                owner.order(connect(instance));
            } else {
                owner.order(Order::Rest);
                if is_ready {
                    surplus.push(Arc::clone(instance));
                }
            }
        }
        if let Some(aperture) = &mut self.aperture {
            aperture.connected(ready);
        }
        if ready >= limit {
            for instance in surplus {
                self.leave(&instance);
                self.start(&instance);
            }
        }
    }

    /// Whether requests wait for what a member's change brings: the first that is open, or the one that they asked for. Or
    /// whether they go where they should not any more.
    fn is_urgent(&self) -> bool {
        if self.outliers.has_news() {
            return true;
        }
        let routes = self.shared.routes.load();
        if routes.on_demand {
            return self.shared.waiting() > 0 || routes.entries.iter().any(Entry::is_newly_asked);
        }
        !routes.is_open() && self.owners.values().any(|owner| owner.member.state() == ConnectionState::Ready)
    }

    fn start(&mut self, instance: &Arc<Instance>) {
        let gate = self.outliers.gate(instance);
        let owner = Owner::start(&self.open, instance, Order::Rest, &self.shared.wake, gate);
        self.owners.insert(Arc::clone(&instance.id), owner);
    }

    fn leave(&mut self, instance: &Arc<Instance>) {
        if let Some(owner) = self.owners.remove(&instance.id) {
            tracing::debug!(id = %instance.id, address = %instance.address, "drains");
            owner.order(Order::Drain);
            self.leaving.push((Arc::clone(instance), owner));
        }
    }

    fn publish(&mut self) {
        self.leaving.retain(|(_, owner)| !owner.member.is_gone());
        let present = self.instances.iter().filter_map(|instance| {
            let owner = self.owners.get(&instance.id)?;
            let kept = !self.filtered.contains(&instance.id);
            Some(Entry { kept, ..entry(instance, owner, false, self.outliers.judgement(instance)) })
        });
        let leaving =
            self.leaving.iter().map(|(instance, owner)| entry(instance, owner, true, Judgement::Admitted));
        let entries = present.chain(leaving).collect();
        let before = self.shared.routes.load();
        let now = self.shared.runtime.now();
        let anew = self.rebuild.is_some_and(|at| at <= now);
        let turn = Turn { shaping: &self.shared.settings.shaping, state: &mut self.shaped, now, anew };
        let routes = Routes::build(
            &before,
            entries,
            self.state.view.is_some(),
            self.state.error.clone(),
            &self.shared.chooser,
            turn,
        );
        if anew || self.rebuild.is_none() || !routes.picks() {
            let pause = self.shared.chooser.rebuild_every().filter(|_| routes.picks());
            self.rebuild = pause.map(|pause| now.saturating_add(pause));
        }
        self.shared.publish(routes);
        // From here on no choice is made by an older view.
        self.followed.applied(self.state.view.as_ref().and_then(|view| view.version));
    }
}

fn connect(instance: &Instance) -> Order {
    Order::Connect { incarnation: instance.create_revision }
}

/// So long; for ever, if it is not said how long.
async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

fn entry<M: Member>(
    instance: &Arc<Instance>,
    owner: &Owner<M>,
    removed: bool,
    judgement: Judgement,
) -> Entry<M> {
    Entry {
        instance: Arc::clone(instance),
        member: Arc::clone(&owner.member),
        demand: Arc::clone(&owner.demand),
        wanted: owner.is_wanted(),
        removed,
        kept: true,
        gate: Arc::clone(&owner.gate),
        judgement,
    }
}
