//! What holds of all views of a stream whatever a registry sends and however streams come and go, as checks that panic:
//! for tests that make messages up, and for fuzzers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use registry_proto::v1::{self, subscribe_request::Request, subscribe_response::Response};

use super::{Counters, DOUBT, Heard, Sink, Update, Views, WatchError, Wish};
use crate::{
    model::{Instance, InstanceList, Selector},
    runtime::{Clock, Runtime, TokioConnect, TokioSpawn},
    view::{
        Cursor, ViewKey,
        fuzzing::{LIMITS, assert_sound, has_unreadable},
    },
    watch::{LONGEST_DELAY, Restored},
};

/// What may happen.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // made once and used up
pub(crate) enum Step {
    /// The registry sends something.
    Heard(v1::SubscribeResponse),
    /// Somebody wants a view, remembered from before or not.
    Follow(u8, bool),
    /// Nobody wants it any longer.
    Drop(u8),
    /// Requests are sent, as many as there are.
    Send,
    /// The stream is gone.
    Disconnect,
    /// There is a new one.
    Begin,
    /// Time passes, in milliseconds.
    Wait(u16),
}

#[derive(Clone, Default)]
struct ManualClock(Arc<AtomicU64>);

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// What the application is told.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<Update>>>);

impl Sink for Told {
    fn update(&mut self, update: Update) {
        self.0.lock().expect("nothing panics while it is held").push(update);
    }
}

/// Views that are checked after each step.
pub(crate) struct Checked {
    views: Views<Told>,
    clock: ManualClock,
    told: Told,
    shown: BTreeMap<ViewKey, InstanceList>,
    version: u64,
    /// What was subscribed on this stream, and not unsubscribed.
    subscribed: BTreeSet<u32>,
}

/// One of a few views: most select everything, some do not.
pub(crate) fn key(number: u8) -> ViewKey {
    let selector = if number % 4 == 3 { Selector::all().zone("z") } else { Selector::all() };
    ViewKey { namespace: "default".into(), service: format!("s{}", number % 8).into(), selector }
}

impl Checked {
    /// Nobody wants anything yet.
    pub(crate) fn new() -> Self {
        let (clock, told) = (ManualClock::default(), Told::default());
        let runtime = Runtime::new(clock.clone(), TokioConnect, TokioSpawn, 1);
        let mut views = Views::new(runtime, told.clone(), Arc::new(Counters::default()));
        views.most_pending = LIMITS.bytes;
        Self { views, clock, told, shown: BTreeMap::new(), version: 0, subscribed: BTreeSet::new() }
    }

    /// What is known of the view with this number, if it is followed: where it is, and the instances.
    #[cfg(test)]
    pub(crate) fn known(&self, id: u32) -> Option<(Option<&Cursor>, &InstanceList)> {
        let view = &self.views.by_id.get(&id)?.view;
        Some((view.cursor(), view.instances()))
    }

    /// What is half received of a view.
    #[cfg(test)]
    pub(crate) fn pending(&self, id: u32) -> usize {
        self.views.by_id[&id].view.pending_bytes()
    }

    /// How often a view was read anew.
    #[cfg(test)]
    pub(crate) fn resyncs(&self) -> u64 {
        self.views.counters.resyncs.load(Ordering::Relaxed)
    }

    /// Does one step and checks.
    pub(crate) fn step(&mut self, step: Step) {
        let now = self.clock.now();
        // Who says what empties a view: the last message, or the time for which an empty one was doubted.
        let mut may_empty = false;
        match step {
            Step::Heard(message) => {
                may_empty = match &message.response {
                    Some(Response::Change(change)) => {
                        let key = self.views.by_id.get(&message.view_id).map(|followed| followed.view.key());
                        let selects = key.is_some_and(|key| key.selector != Selector::all());
                        selects || change.service_instances == 0
                    }
                    _ => false,
                };
                let is_bookmark = matches!(message.response, Some(Response::Bookmark(_)));
                let view_id = message.view_id;
                let heard = self.views.heard(message);
                assert_eq!(matches!(heard, Heard::Bookmark), is_bookmark);
                // What is there and cannot be called is not there for callers.
                may_empty |= self.views.by_id.get(&view_id).is_some_and(|it| has_unreadable(&it.view));
            }
            Step::Follow(number, restored) => {
                let remembered = Restored {
                    cursor: Cursor { epoch: "e".into(), revision: 1 },
                    instances: [Arc::new(Instance::builder("a:1".parse().expect("valid")).build())].into(),
                };
                let wish = Wish::Follow(restored.then_some(remembered));
                self.views.wish(key(number), wish, now);
                for followed in self.views.by_id.values_mut() {
                    followed.view.limit(LIMITS);
                }
            }
            Step::Drop(number) => {
                self.views.wish(key(number), Wish::Drop, now);
                self.shown.remove(&key(number));
            }
            Step::Send => {
                let mut sent = 0;
                while let Some(request) = self.views.next_request() {
                    sent += 1;
                    match request.request {
                        Some(Request::Subscribe(view)) => {
                            self.subscribed.insert(view.view_id);
                        }
                        Some(Request::Unsubscribe(view)) => {
                            self.subscribed.remove(&view.view_id);
                        }
                        _ => {}
                    }
                }
                assert!(sent <= 1_000 && !self.views.has_requests());
                let followed = self.views.by_id.keys().copied();
                assert!(
                    followed.eq(self.subscribed.iter().copied()),
                    "C4: the registry has what is followed"
                );
            }
            Step::Disconnect => self.views.disconnected(&WatchError::Closed),
            Step::Begin => {
                self.views.stream_begins();
                self.subscribed.clear();
            }
            Step::Wait(millis) => {
                self.clock.0.fetch_add(millis.into(), Ordering::Relaxed);
                self.views.deadline_passed(self.clock.now());
                may_empty = true;
            }
        }
        self.check_told(may_empty);
        self.check_kept();
    }

    fn check_told(&mut self, may_empty: bool) {
        let told = std::mem::take(&mut *self.told.0.lock().expect("nothing panics while it is held"));
        for update in told {
            let Update::Changed { change, .. } = update else { continue };
            let version = change.version.expect("the SDK stamps what it says");
            assert!(version > self.version, "versions grow");
            self.version = version;
            assert!(change.all.is_sorted_by(|a, b| a.id < b.id));
            let before = self.shown.get(&change.key).map_or(0, |shown| shown.len());
            let emptied = change.all.is_empty() && before > 0;
            assert!(!emptied || may_empty, "C1, W9: emptied by something that does not say so");
            // From what was shown, or from nothing if it is told as a whole.
            let kept = change.all.len() - change.added.len() - change.updated.len();
            let from = kept + change.updated.len() + change.removed.len();
            assert!(from == before || from == 0, "{from} instances before, of {before} that were shown");
            self.shown.insert(change.key, change.all);
        }
    }

    fn check_kept(&self) {
        let views = &self.views;
        for followed in views.by_id.values() {
            assert_sound(&followed.view);
        }
        let pending: usize = views.by_id.values().map(|followed| followed.view.pending_bytes()).sum();
        assert!(pending <= views.most_pending, "{pending} bytes are half received");
        assert_eq!(views.ids.len(), views.by_id.len());
        assert!(views.to_subscribe.len() <= views.by_id.len());
        let gone = |id: &u32| self.subscribed.contains(id) && !views.by_id.contains_key(id);
        assert!(views.to_unsubscribe.iter().all(gone), "what is not known is not unsubscribed, nor twice");
        assert!(views.to_unsubscribe.len() <= self.subscribed.len());
        assert!(views.deadlines.len() <= 4 * views.by_id.len(), "deadlines pile up");
        let latest = self.clock.now() + DOUBT + LONGEST_DELAY;
        assert!(views.deadlines.iter().all(|(at, _)| *at <= latest), "something is due in ages");
    }
}
