//! The views that a stream carries: what to ask for, what was heard, and whom to tell.
//!
//! Knows nothing of connections. A view's number is never used again, so that a late message of a dropped view finds
//! nobody. A bookmark moves only those views of which something was heard on this stream: the registry may have sent it
//! before it read the subscription of the others.
//!
//! Keeps C1 where a registry loses its data: it then truly has nothing until registrants come back, which takes them a
//! third of their TTL. So an empty view that opens a new epoch is doubted: what was known before stays, until something
//! is there or the registry has insisted for twice the default TTL.
//!
//! Whatever comes, what is kept is bounded by the number of views: of half received changes no more is kept, of all views
//! together, than one view may have.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use registry_proto::v1;

use super::{
    Counters, Sink, Update, WatchError, Wish,
    acks::{Acks, reaches},
};
use crate::{
    backoff::Backoff,
    client::Refusal,
    model::{Change, Instance, InstanceList},
    runtime::Runtime,
    view::{Cursor, LocalView, Resync, ViewKey, size, wire},
    wire_duration::from_wire,
};

/// A restored view is shown if the registry has not answered after this long.
const BRIDGE_AFTER: Duration = Duration::from_secs(1);

/// For how long an empty view of a new epoch is doubted: twice the default TTL.
const DOUBT: Duration = Duration::from_secs(30);

/// What a message was, beside what it did to the views.
pub(super) enum Heard {
    Change,
    Bookmark,
    GoAway(Duration),
    /// This replica has not caught up with what a view has seen.
    Behind(Refusal),
}

/// The views. Ordered, so that the same seed gives the same history.
pub(super) struct Views<S> {
    runtime: Runtime,
    counters: Arc<Counters>,
    sink: S,
    by_id: BTreeMap<u32, Followed>,
    ids: BTreeMap<ViewKey, u32>,
    next_id: u32,
    to_subscribe: VecDeque<u32>,
    to_unsubscribe: VecDeque<u32>,
    /// When something is due, by view. An entry that its view no longer knows of means nothing.
    deadlines: BTreeSet<(Duration, u32)>,
    acks: Acks,
    /// How many bytes of half received changes are kept, of all views together.
    most_pending: usize,
}

/// How far a view is on this stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subscription {
    /// Waits in `to_subscribe`.
    Queued,
    /// Sent; perhaps the registry has not read it yet. Or refused, and to be sent again at `retry_at`.
    Sent,
    /// Something was heard of it: from now on bookmarks cover it.
    Heard,
}

/// One view.
struct Followed {
    view: LocalView,
    backoff: Backoff,
    subscription: Subscription,
    /// The registry may have it on this stream.
    subscribed: bool,
    /// The sink was told what is known.
    announced: bool,
    /// The sink was told that something is wrong.
    failed: bool,
    /// Subscribe again then.
    retry_at: Option<Duration>,
    /// Show what was restored then.
    bridge_at: Option<Duration>,
    /// The view is empty, and that is not believed yet.
    doubt: Option<Doubt>,
}

/// What the sink goes on showing while an empty view is doubted.
struct Doubt {
    cursor: Cursor,
    instances: InstanceList,
    /// Believe it then. `None`: while there is no stream.
    until: Option<Duration>,
}

impl Followed {
    fn is_queued(&self) -> bool {
        self.subscription == Subscription::Queued
    }

    /// Whether the sink was told something that this point may have made untrue.
    fn shows_older_than(&self, point: &Cursor) -> bool {
        let is_there = !self.view.needs_snapshot()
            && self.doubt.is_none()
            && self.view.cursor().is_some_and(|cursor| reaches(cursor, point));
        self.announced && !is_there
    }
}

impl<S: Sink> Views<S> {
    pub(super) fn new(runtime: Runtime, sink: S, counters: Arc<Counters>) -> Self {
        Self {
            runtime,
            counters,
            sink,
            by_id: BTreeMap::new(),
            ids: BTreeMap::new(),
            next_id: 1,
            to_subscribe: VecDeque::new(),
            to_unsubscribe: VecDeque::new(),
            deadlines: BTreeSet::new(),
            acks: Acks::default(),
            most_pending: size::MAX_BYTES,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub(super) fn has_requests(&self) -> bool {
        !self.to_subscribe.is_empty() || !self.to_unsubscribe.is_empty() || self.acks.is_due()
    }

    /// Sees whether an ack that is asked for is only a matter of applying now.
    pub(super) fn consider_acks(&mut self) {
        let views = &self.by_id;
        self.acks.go_on(|point| views.values().all(|view| !view.shows_older_than(point)), &mut self.sink);
    }

    /// Waits until an ack is due.
    pub(super) async fn applied(&mut self) {
        self.acks.applied().await;
    }

    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    pub(super) fn wish(&mut self, key: ViewKey, wish: Wish, now: Duration) {
        match (wish, self.ids.get(&key).copied()) {
            (Wish::Follow(_), Some(id)) => {
                if let Some(followed) = self.by_id.get_mut(&id) {
                    followed.announced = false;
                }
                self.announce(id);
            }
            (Wish::Follow(restored), None) => {
                let id = self.next_id;
                self.next_id = self.next_id.wrapping_add(1);
                let bridge_at = restored.as_ref().map(|_| now + BRIDGE_AFTER);
                let view = match restored {
                    Some(restored) => {
                        LocalView::restored(key.clone(), restored.cursor, restored.instances.iter().cloned())
                    }
                    None => LocalView::new(key.clone()),
                };
                self.deadlines.extend(bridge_at.map(|at| (at, id)));
                self.to_subscribe.push_back(id);
                self.ids.insert(key, id);
                let followed = Followed {
                    view,
                    backoff: Backoff::default(),
                    subscription: Subscription::Queued,
                    subscribed: false,
                    announced: false,
                    failed: false,
                    retry_at: None,
                    bridge_at,
                    doubt: None,
                };
                self.by_id.insert(id, followed);
            }
            (Wish::Drop, Some(id)) => {
                self.ids.remove(&key);
                let subscribed = self.by_id.remove(&id).is_some_and(|followed| followed.subscribed);
                self.deadlines.retain(|(_, of)| *of != id);
                self.to_subscribe.retain(|waiting| *waiting != id);
                self.to_unsubscribe.extend(subscribed.then_some(id));
            }
            (Wish::Drop, None) => {}
        }
    }

    /// A new stream: everything is to be subscribed, from where it was.
    pub(super) fn stream_begins(&mut self) {
        self.acks.stream_begins();
        self.to_unsubscribe.clear();
        self.to_subscribe = self.by_id.keys().copied().collect();
        let doubt_until = self.runtime.now().saturating_add(DOUBT);
        self.deadlines.clear();
        for (id, followed) in &mut self.by_id {
            self.deadlines.extend(followed.bridge_at.map(|at| (at, *id)));
            if let Some(doubt) = &mut followed.doubt {
                doubt.until = Some(doubt_until);
                self.deadlines.insert((doubt_until, *id));
            }
            followed.view.stream_reset();
            (followed.subscription, followed.subscribed, followed.retry_at) =
                (Subscription::Queued, false, None);
        }
    }

    /// The stream is to be left: what the registry may have on it, to be unsubscribed.
    pub(super) fn stream_ends(&mut self) -> Vec<u32> {
        let subscribed = self.by_id.iter().filter(|(_, followed)| followed.subscribed).map(|(id, _)| *id);
        self.to_unsubscribe.drain(..).chain(subscribed).collect()
    }

    /// What to send next.
    pub(super) fn next_request(&mut self) -> Option<v1::SubscribeRequest> {
        use v1::subscribe_request::Request;
        if let Some(ack) = self.acks.next() {
            return Some(v1::SubscribeRequest { request: Some(Request::Ack(ack)) });
        }
        if let Some(view_id) = self.to_unsubscribe.pop_front() {
            let request = Request::Unsubscribe(v1::UnsubscribeView { view_id });
            return Some(v1::SubscribeRequest { request: Some(request) });
        }
        let view_id = self.to_subscribe.pop_front()?;
        let followed = self.by_id.get_mut(&view_id)?;
        (followed.subscription, followed.subscribed) = (Subscription::Sent, true);
        let watch = Some(wire::watch(&followed.view));
        let request = Request::Subscribe(v1::SubscribeView { view_id, watch });
        Some(v1::SubscribeRequest { request: Some(request) })
    }

    /// Takes a message in.
    pub(super) fn heard(&mut self, message: v1::SubscribeResponse) -> Heard {
        use v1::subscribe_response::Response;
        let view_id = message.view_id;
        match message.response {
            Some(Response::Change(change)) => self.change(view_id, change),
            Some(Response::ViewError(error)) => {
                let refusal = Refusal::from_view_error(&error);
                let behind = refusal.is("REPLICA_BEHIND").then(|| refusal.clone());
                self.failed(view_id, WatchError::Refused(refusal));
                if let Some(refusal) = behind {
                    return Heard::Behind(refusal);
                }
            }
            Some(Response::Bookmark(bookmark)) => {
                self.bookmark(&bookmark);
                if bookmark.ack_requested {
                    self.acks.ask(bookmark);
                }
                return Heard::Bookmark;
            }
            Some(Response::GoAway(go_away)) => {
                let delay = go_away.delay.and_then(from_wire);
                return Heard::GoAway(delay.unwrap_or_default());
            }
            // A kind of message that this version does not know: a sign of life, no more.
            None => {}
        }
        Heard::Change
    }

    /// The stream is gone. What was restored is shown now: the registry is missing.
    pub(super) fn disconnected(&mut self, error: &WatchError) {
        let ids: Vec<u32> = self.by_id.keys().copied().collect();
        for id in ids {
            if let Some(doubt) = self.by_id.get_mut(&id).and_then(|followed| followed.doubt.as_mut()) {
                doubt.until = None;
            }
            self.announce(id);
            self.tell_failed(id, error.clone());
        }
    }

    /// Does what is due.
    pub(super) fn deadline_passed(&mut self, now: Duration) {
        while let Some((at, id)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.remove(&(at, id));
            let Some(followed) = self.by_id.get_mut(&id) else { continue };
            if followed.retry_at.take_if(|at| *at <= now).is_some() && !followed.is_queued() {
                followed.subscription = Subscription::Queued;
                self.to_subscribe.push_back(id);
            }
            let insisted = |doubt: &Doubt| doubt.until.is_some_and(|at| at <= now);
            let believed = followed.doubt.take_if(|doubt| insisted(doubt));
            if followed.bridge_at.take_if(|at| *at <= now).is_some() {
                self.announce(id);
            }
            if let Some(Doubt { instances, .. }) = believed {
                self.tell_from(id, &instances);
            }
        }
    }

    fn change(&mut self, id: u32, message: v1::Change) {
        let Some(followed) = self.by_id.get_mut(&id) else { return };
        if !followed.is_queued() {
            followed.subscription = Subscription::Heard;
        }
        let in_parts = message.part < message.last_part;
        let before = followed.view.cursor().cloned().zip(Some(Arc::clone(followed.view.instances())));
        match followed.view.apply(message, || self.runtime.next_version()) {
            Ok(None) if in_parts => self.bound_pending(),
            Ok(None) => {}
            Ok(Some(change)) if change.all.is_empty() && followed.doubt.is_some() => {}
            // A snapshot may be a little old: what brings it to the head follows at once.
            Ok(Some(_))
                if !followed.announced
                    && followed.view.cursor().is_some_and(|at| self.acks.holds_back(at)) => {}
            Ok(Some(mut change)) => {
                let Some(cursor) = followed.view.cursor().cloned() else { return };
                if let Some((known, instances)) = before
                    && change.all.is_empty()
                    && !instances.is_empty()
                    && known.epoch != cursor.epoch
                {
                    let until = self.runtime.now().saturating_add(DOUBT);
                    self.deadlines.insert((until, id));
                    followed.doubt = Some(Doubt { cursor: known, instances, until: Some(until) });
                    self.announce(id);
                    self.tell_failed(id, WatchError::Emptied(DOUBT));
                    return;
                }
                if let Some(doubt) = followed.doubt.take() {
                    self.deadlines.retain(|(at, of)| *of != id || doubt.until != Some(*at));
                    change = Change::between(change.key, &doubt.instances, change.all, change.version);
                }
                if !followed.announced {
                    // The sink knows nothing of what was restored: to it, all of this is new.
                    change = Change::between(change.key, &[], change.all, change.version);
                }
                (followed.announced, followed.failed, followed.bridge_at) = (true, false, None);
                self.sink.update(Update::Changed { change, cursor });
            }
            Err(resync) => {
                tracing::warn!(view = %followed.view.key(), %resync, "the view is read anew");
                self.counters.resyncs.fetch_add(1, Ordering::Relaxed);
                self.failed(id, WatchError::Resync(resync));
            }
        }
    }

    /// If too much is half received, the view with the most of it starts over; the others are to go on.
    fn bound_pending(&mut self) {
        let pending = || self.by_id.iter().map(|(id, followed)| (followed.view.pending_bytes(), *id));
        if pending().map(|(bytes, _)| bytes).sum::<usize>() <= self.most_pending {
            return;
        }
        let Some((_, id)) = pending().max() else { return };
        let Some(followed) = self.by_id.get_mut(&id) else { return };
        followed.view.give_up_parts();
        self.counters.resyncs.fetch_add(1, Ordering::Relaxed);
        self.failed(id, WatchError::Resync(Resync::TooLarge));
    }

    fn bookmark(&mut self, bookmark: &v1::Bookmark) {
        let mut to_announce = Vec::new();
        for (id, followed) in &mut self.by_id {
            if followed.subscription == Subscription::Heard {
                followed.view.bookmark(&bookmark.epoch, bookmark.revision);
            }
            if followed.retry_at.is_some() || followed.is_queued() || followed.view.needs_snapshot() {
                continue;
            }
            followed.backoff.reset();
            if followed.doubt.is_none()
                && followed.view.cursor().is_some_and(|at| !self.acks.holds_back(at))
                && (followed.failed || !followed.announced)
            {
                to_announce.push(*id);
            }
        }
        for id in to_announce {
            self.announce(id);
            let Some(followed) = self.by_id.get_mut(&id) else { continue };
            if std::mem::take(&mut followed.failed) {
                self.sink.update(Update::Healthy { key: followed.view.key().clone() });
            }
        }
    }

    /// Tells the sink what is known, as a whole, if it was not told yet.
    fn announce(&mut self, id: u32) {
        let Some(followed) = self.by_id.get_mut(&id) else { return };
        if !followed.announced {
            self.tell_from(id, &[]);
        }
    }

    /// Tells the sink, which shows `before`, what is known; of a view that is doubted, what was known before it.
    fn tell_from(&mut self, id: u32, before: &[Arc<Instance>]) {
        let Some(followed) = self.by_id.get_mut(&id) else { return };
        let (cursor, all) = match &followed.doubt {
            Some(doubt) => (Some(&doubt.cursor), &doubt.instances),
            None => (followed.view.cursor(), followed.view.instances()),
        };
        let Some(cursor) = cursor.cloned() else { return };
        let version = Some(self.runtime.next_version());
        let change = Change::between(followed.view.key().clone(), before, Arc::clone(all), version);
        (followed.announced, followed.failed, followed.bridge_at) = (true, false, None);
        self.sink.update(Update::Changed { change, cursor });
    }

    /// One view failed: try again, at most once per backoff period, or when the registry said.
    fn failed(&mut self, id: u32, error: WatchError) {
        let Some(followed) = self.by_id.get_mut(&id) else { return };
        if followed.retry_at.is_none() && !followed.is_queued() {
            let pause = followed.backoff.next(&self.runtime).max(error.retry_after());
            let at = self.runtime.now().saturating_add(pause);
            followed.retry_at = Some(at);
            self.deadlines.insert((at, id));
        }
        if !followed.is_queued() {
            followed.subscription = Subscription::Sent;
        }
        self.tell_failed(id, error);
    }

    fn tell_failed(&mut self, id: u32, error: WatchError) {
        let Some(followed) = self.by_id.get_mut(&id) else { return };
        followed.failed = true;
        self.sink.update(Update::Failed { key: followed.view.key().clone(), error });
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
#[cfg(test)]
mod tests;
