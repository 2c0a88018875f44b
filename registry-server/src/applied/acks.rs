//! Who has applied what: pure, told the time, knows nothing of streams but their numbers.
//!
//! A watcher is known by its client's name for as long as its views may matter. What a wait needs of a view is one
//! revision: that of the change it is about, if the view was *touched* by it, that is, contained an instance of it
//! before or after. A view that began later never had it otherwise, and does not count.
//!
//! ```text
//!   opened ─► Connected: lagging ── ack ≥ the change ─► acked
//!                │     ▲
//!    stream ends │     │ the client opens the view again: from then on it is that view
//!                ▼     │
//!              Vanished: disconnected, or acked if it was ── 20 s ─► forgotten
//! ```
//!
//! A wait keeps four numbers and no list of watchers, so that memory is O(views + waits + views that vanished within
//! 20 s). It stays true because what is held only changes in [`Acks::change`], which takes out of the counts what a
//! client was before and puts in what it is after. Each stream has at most one question open, so that an ack always
//! answers a known one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    held::{Held, Origin, Place, StreamId, Who, position},
    wait::{Counts, Standing, Touched, Wait, WaitId},
};
use crate::core::{Revision, Selector, ServiceKey};

/// How long a watcher that vanished counts, in milliseconds.
pub(super) const GRACE: u64 = 20_000;
/// Views that vanished and are remembered at most; beyond, the oldest are forgotten early.
const VANISHED: usize = 200_000;

/// What has to be done outside.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Streams that may have to be asked: see [`Acks::asking`].
    pub(super) ask: Vec<StreamId>,
    /// Waits that should look.
    pub(super) look: Vec<WaitId>,
}

/// What a wait sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Looked {
    pub(super) counts: Counts,
    pub(super) satisfied: bool,
    /// When to look again though nothing has happened.
    pub(super) until: Option<u64>,
}

/// All that is known.
pub(super) struct Acks {
    services: HashMap<ServiceKey, Service>,
    streams: HashMap<StreamId, Stream>,
    /// By when they are forgotten.
    vanished: BTreeMap<(u64, u64), (ServiceKey, Who)>,
    waits: HashMap<WaitId, ServiceKey>,
    next: u64,
    /// Until then there may be watchers that nobody here knows.
    unknown_until: u64,
    news: News,
}

#[derive(Default)]
struct Service {
    held: BTreeMap<Who, Vec<Held>>,
    waits: Vec<Wait>,
}

struct Stream {
    who: Who,
    views: BTreeMap<u32, ServiceKey>,
    /// The newest question that is not answered yet.
    asked: Option<Revision>,
}

impl Acks {
    /// Nobody watches. Until `unknown_until` no wait is satisfied: there may be watchers of an earlier life.
    pub(super) fn new(unknown_until: u64) -> Self {
        Self {
            services: HashMap::new(),
            streams: HashMap::new(),
            vanished: BTreeMap::new(),
            waits: HashMap::new(),
            next: 0,
            unknown_until,
            news: News::default(),
        }
    }

    /// What has to be done since this was asked last.
    pub(super) fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    /// A stream of somebody who does not ack, for all that is known.
    pub(super) fn joined(&mut self, now: u64) -> StreamId {
        self.pass(now);
        let id = self.number();
        self.streams.insert(id, Stream { who: Who::Stream(id), views: BTreeMap::new(), asked: None });
        id
    }

    /// The stream is of a client who acks. False, and nothing happens, if it has views already.
    pub(super) fn named(&mut self, stream: StreamId, client: Arc<str>) -> bool {
        let Some(stream) = self.streams.get_mut(&stream).filter(|stream| stream.views.is_empty()) else {
            return false;
        };
        stream.who = Who::Client(client);
        true
    }

    /// A view of a stream, in place of one of the same number. If the client had it before, it is that view.
    pub(super) fn opened(
        &mut self,
        stream: StreamId,
        view: u32,
        key: &ServiceKey,
        selector: &Selector,
        origin: Origin,
    ) {
        let Some(opening) = self.streams.get_mut(&stream) else { return };
        let (who, covered) = (opening.who.clone(), opening.asked.is_none());
        let place = Place::Connected { stream, view };
        let other = opening.views.insert(view, key.clone()).filter(|other| other != key);
        if let Some(other) = other {
            self.change(&other, &who, |held| held.retain(|it| it.place != place));
        }
        let mut returned = None;
        self.change(key, &who, |held| {
            let replaced = position(held, place).map(|at| held.remove(at));
            let replaced = replaced.filter(|it| it.selector == *selector && !it.told_nothing());
            let before = replaced.or_else(|| take_back(held, selector));
            returned = before.as_ref().and_then(Held::vanished);
            held.push(Held {
                place,
                selector: selector.clone(),
                acked: match (&before, origin) {
                    (Some(before), Origin::Cursor(cursor)) => before.acked.min(cursor),
                    _ => 0,
                },
                began: before.as_ref().map_or(0, |before| before.began),
                fresh: before.is_none() && origin == Origin::Nothing,
                covered,
            });
        });
        if let Some(returned) = returned {
            self.vanished.remove(&returned);
        }
    }

    /// The first snapshot of a view shows this revision.
    pub(super) fn began(&mut self, stream: StreamId, view: u32, revision: Revision) {
        self.held(stream, view, |held| {
            if held.fresh {
                held.began = held.began.max(revision);
            }
        });
    }

    /// The client does not want the view any more.
    pub(super) fn closed(&mut self, stream: StreamId, view: u32) {
        let Some(from) = self.streams.get_mut(&stream) else { return };
        let (who, Some(key)) = (from.who.clone(), from.views.remove(&view)) else { return };
        self.change(&key, &who, |held| held.retain(|it| it.place != Place::Connected { stream, view }));
    }

    /// To be called when a bookmark at `head` is about to be sent: whether it is to ask for an ack. If so, it does.
    pub(super) fn asking(&mut self, stream: StreamId, head: Revision) -> bool {
        let Some(from) = self.streams.get(&stream) else { return false };
        let mut wanted = Vec::new();
        for (view, key) in &from.views {
            let Some(service) = self.services.get(key).filter(|service| !service.waits.is_empty()) else {
                continue;
            };
            let Some(held) = service.held.get(&from.who) else { continue };
            let place = Place::Connected { stream, view: *view };
            for held in held.iter().filter(|held| held.place == place) {
                wanted.extend(service.waits.iter().filter_map(|it| it.to_ask(&from.who, held, from.asked)));
            }
        }
        // A wait that began after the head was read is about a later bookmark.
        if wanted.iter().any(|change| *change > head) {
            self.news.ask.push(stream);
        }
        let asks = wanted.iter().any(|change| *change <= head);
        if let Some(from) = self.streams.get_mut(&stream).filter(|_| asks) {
            from.asked = Some(head);
        }
        asks
    }

    /// The client has applied everything up to here. It was told as much.
    pub(super) fn acked(&mut self, stream: StreamId, revision: Revision) {
        let Some(from) = self.streams.get_mut(&stream) else { return };
        // Nobody asked: there is no telling of what it speaks.
        let Some(asked) = from.asked else { return };
        let answered = revision >= asked;
        from.asked = from.asked.filter(|_| !answered);
        let (who, keys) = (from.who.clone(), from.views.values().cloned().collect::<BTreeSet<_>>());
        // All views of a service at once: it costs as much as one of them.
        for key in keys {
            self.change(&key, &who, |held| {
                for held in held.iter_mut().filter(|it| it.is_on(stream)) {
                    if held.covered {
                        held.acked = held.acked.max(revision);
                    }
                    held.covered |= answered;
                }
            });
        }
    }

    /// The stream ended.
    pub(super) fn left(&mut self, stream: StreamId, now: u64) {
        self.pass(now);
        let Some(Stream { who, views, .. }) = self.streams.remove(&stream) else { return };
        let until = now + GRACE;
        for key in views.into_values().collect::<BTreeSet<_>>() {
            let (mut next, mut remembered) = (self.next, Vec::new());
            self.change(&key, &who, |held| {
                while let Some(at) = held.iter().position(|it| it.is_on(stream)) {
                    let may_act = matches!(who, Who::Client(_)) && !held[at].told_nothing();
                    if may_act && !held.iter().any(|other| other.speaks_for(&held[at], stream)) {
                        next += 1;
                        remembered.push((until, next));
                        held[at].place = Place::Vanished { until, number: next };
                    } else {
                        held.remove(at);
                    }
                }
            });
            self.next = next;
            self.vanished.extend(remembered.into_iter().map(|it| (it, (key.clone(), who.clone()))));
        }
        while self.vanished.len() > VANISHED {
            self.forget_oldest();
        }
    }

    /// Somebody waits for a share of those whose views of a service are touched.
    pub(super) fn wait(&mut self, key: &ServiceKey, share: f64, touched: Touched) -> WaitId {
        let id = self.number();
        let Self { services, streams, waits, news, .. } = self;
        let service = services.entry(key.clone()).or_default();
        let mut wait = Wait::new(id, share, touched);
        for (who, held) in &service.held {
            wait.learn(held);
            if let Some(standing) = wait.standing(who, held) {
                *wait.counts.of(standing) += 1;
            }
            ask(&wait, who, held, streams, news);
        }
        service.waits.push(wait);
        waits.insert(id, key.clone());
        id
    }

    /// What a wait sees. `None`: there is no such wait.
    pub(super) fn look(&mut self, id: WaitId, now: u64) -> Option<Looked> {
        self.pass(now);
        let waits = &self.services.get(self.waits.get(&id)?)?.waits;
        let wait = waits.iter().find(|wait| wait.id == id)?;
        let unknown = Some(self.unknown_until).filter(|until| *until > now);
        let forgotten = self.vanished.first_key_value().map(|((until, _), _)| *until);
        Some(Looked {
            counts: wait.counts,
            satisfied: unknown.is_none() && wait.counts.reached(wait.share),
            until: unknown.into_iter().chain(forgotten.filter(|_| wait.counts.disconnected > 0)).min(),
        })
    }

    /// Nobody waits for it any more.
    pub(super) fn forget(&mut self, id: WaitId) {
        let Some(key) = self.waits.remove(&id) else { return };
        let Some(service) = self.services.get_mut(&key) else { return };
        service.waits.retain(|wait| wait.id != id);
        if service.is_unused() {
            self.services.remove(&key);
        }
    }

    /// Whether nothing at all is kept, for tests of what is forgotten.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.services.is_empty()
            && self.streams.is_empty()
            && self.vanished.is_empty()
            && self.waits.is_empty()
    }

    /// The only way in which what a client holds of a service changes: keeps the counts of all who wait.
    fn change(&mut self, key: &ServiceKey, who: &Who, change: impl FnOnce(&mut Vec<Held>)) {
        let Self { services, streams, news, .. } = self;
        let service = services.entry(key.clone()).or_default();
        let held = service.held.entry(who.clone()).or_default();
        let before: Vec<_> = service.waits.iter().map(|wait| wait.standing(who, held)).collect();
        change(held);
        for (wait, before) in service.waits.iter_mut().zip(before) {
            wait.learn(held);
            let after = wait.standing(who, held);
            if let Some(before) = before {
                *wait.counts.of(before) -= 1;
            }
            if let Some(after) = after {
                *wait.counts.of(after) += 1;
            }
            ask(wait, who, held, streams, news);
            let gone = [before, after].contains(&Some(Standing::Disconnected));
            if before != after && (gone || wait.counts.reached(wait.share)) {
                news.look.push(wait.id);
            }
        }
        if held.is_empty() {
            service.held.remove(who);
        }
        if service.is_unused() {
            services.remove(key);
        }
    }

    /// Changes one view of a stream.
    fn held(&mut self, stream: StreamId, view: u32, change: impl FnOnce(&mut Held)) {
        let Some(of) = self.streams.get(&stream) else { return };
        let (who, Some(key)) = (of.who.clone(), of.views.get(&view).cloned()) else { return };
        self.change(&key, &who, |held| {
            if let Some(held) = held.iter_mut().find(|it| it.place == Place::Connected { stream, view }) {
                change(held);
            }
        });
    }

    /// Forgets whoever vanished long enough ago.
    fn pass(&mut self, now: u64) {
        while self.vanished.first_key_value().is_some_and(|((until, _), _)| *until <= now) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some(((until, number), (key, who))) = self.vanished.pop_first() else { return };
        self.change(&key, &who, |held| held.retain(|it| it.place != Place::Vanished { until, number }));
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Service {
    fn is_unused(&self) -> bool {
        self.held.is_empty() && self.waits.is_empty()
    }
}

/// Takes a view out of those that vanished. If there are several alike nobody can tell which, and each is taken for the
/// one that is the furthest behind.
fn take_back(held: &mut Vec<Held>, selector: &Selector) -> Option<Held> {
    let gone = |it: &Held| it.selector == *selector && it.vanished().is_some();
    let (acked, began) = held
        .iter()
        .filter(|it| gone(it))
        .map(|it| (it.acked, it.began))
        .reduce(|least, it| (least.0.min(it.0), least.1.min(it.1)))?;
    for it in held.iter_mut().filter(|it| gone(it)) {
        (it.acked, it.began) = (acked, began);
    }
    held.iter().position(gone).map(|at| held.remove(at))
}

/// Names the streams that are to be asked because of what a client holds.
fn ask(wait: &Wait, who: &Who, held: &[Held], streams: &HashMap<StreamId, Stream>, news: &mut News) {
    for held in held {
        let Place::Connected { stream, .. } = held.place else { continue };
        let asked = streams.get(&stream).map(|stream| stream.asked);
        if asked.is_some_and(|asked| wait.to_ask(who, held, asked).is_some()) {
            news.ask.push(stream);
        }
    }
}

#[cfg(test)]
mod tests;
