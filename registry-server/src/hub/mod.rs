//! What is published, and who has read how far.
//!
//! ```text
//!   registry ── publish(changes, head) ──► Hub ── one Feed a service ── one View a selector ──► marks subscriptions
//!                                           │                               │
//!                                        RecentLog                    Cursor::next_step() ◄── a stream that can send
//!                                  (the only history)          snapshot part │ delta part │ nothing to say
//! ```
//!
//! A watcher is a cursor, not a queue (W10): when its stream can send, it asks for what lies between its cursor and the
//! head, and gets it as one encoding shared with everyone who asks from the same place. Owns W1–W7 and W9–W10 on the
//! server's side. Knows the core's words and the wire's encoding; nothing of gRPC calls, leases or stores.

mod body;
mod cursor;
mod encode;
mod explain;
mod feed;
mod kept;
mod log;
mod logged;
mod signal;
mod view;
mod wakes;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use dashmap::DashMap;
use tokio::sync::watch;

pub(crate) use self::encode::{wire_instance, wire_key, wire_override, wire_time};
pub use self::{
    cursor::{Cursor, Start, Step},
    encode::{MAX_PART_BYTES, Part},
    explain::{Happened, Past},
    kept::Kept,
    log::LogLimits,
    signal::Signal,
};
use self::{feed::Feed, log::RecentLog, view::Page, wakes::Wakes};
use crate::core::{InstanceId, Revision, Selector, ServiceChange, ServiceKey, State};

/// Snapshots are numbered from the wall time at which the hub began, times two to this power.
const GENERATIONS_PER_MILLISECOND: u32 = 20;

/// What can be set about publishing.
#[derive(Clone, Debug)]
pub struct HubSettings {
    /// Bounds of the recent log.
    pub log: LogLimits,
    /// Different selectors on one service at a time. The view of the whole service does not count. 64.
    pub max_views_per_service: usize,
    /// Services without instances and watchers that are remembered here. 10,000.
    pub remembered_services: usize,
}

impl Default for HubSettings {
    fn default() -> Self {
        Self { log: LogLimits::default(), max_views_per_service: 64, remembered_services: 10_000 }
    }
}

/// Why a view cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewRefused {
    /// The service has as many different selectors open as it may.
    #[error(
        "{key} already has {limit} different selectors open, which is the limit; use one of those, or none"
    )]
    TooManyViews {
        /// The service.
        key: ServiceKey,
        /// The bound.
        limit: usize,
    },
}

/// One page of a reading.
#[derive(Debug)]
pub struct ReadPage {
    /// Parts of one snapshot.
    pub parts: Vec<Part>,
    /// The revision that the reading shows: the head when it began. The parts may have been encoded earlier.
    pub revision: Revision,
    /// The token of the next page; `None` on the last.
    pub next: Option<PageToken>,
}

/// Where a reading goes on: valid for as long as its snapshot is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageToken {
    /// The snapshot's number, which no snapshot of an earlier run of the server had.
    pub generation: u64,
    /// The next part.
    pub part: usize,
    /// The revision that the reading shows.
    pub revision: Revision,
}

/// What is published. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Hub {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    epoch: Arc<str>,
    settings: HubSettings,
    feeds: DashMap<ServiceKey, Arc<Feed>>,
    /// Everything up to here is published.
    head: watch::Sender<Revision>,
    /// A cursor at or past this is current for any service without a feed.
    forgotten_through: AtomicU64,
    /// The publisher's own.
    publisher: Mutex<Publisher>,
    generations: AtomicU64,
    wakes: Wakes,
}

#[derive(Debug)]
struct Publisher {
    log: RecentLog,
    /// Services that lost their last instance, oldest first.
    emptied: VecDeque<(ServiceKey, Revision)>,
}

impl Hub {
    /// A hub that shows `state`, without history.
    pub fn new(epoch: &str, state: &State, now_wall: u64, settings: HubSettings) -> Self {
        let feeds = DashMap::new();
        let mut emptied = Vec::new();
        for (key, service) in state.services_after(None) {
            feeds.insert(key.clone(), Arc::new(Feed::load(key.clone(), service)));
            if service.instances.is_empty() {
                emptied.push((service.last_change, key.clone()));
            }
        }
        emptied.sort_unstable();
        let emptied = emptied.into_iter().map(|(revision, key)| (key, revision)).collect();
        Self {
            inner: Arc::new(Inner {
                epoch: epoch.into(),
                feeds,
                head: watch::Sender::new(state.revision()),
                forgotten_through: AtomicU64::new(state.forgotten_through()),
                publisher: Mutex::new(Publisher {
                    log: RecentLog::new(settings.log.clone(), now_wall),
                    emptied,
                }),
                // So that a page token from before a restart is told from one of now.
                generations: AtomicU64::new(now_wall << GENERATIONS_PER_MILLISECOND),
                wakes: Wakes::default(),
                settings,
            }),
        }
    }

    /// The name of the history that revisions belong to.
    pub fn epoch(&self) -> &str {
        &self.inner.epoch
    }

    /// Everything up to this revision is published.
    pub fn head(&self) -> Revision {
        *self.inner.head.borrow()
    }

    /// Follows the head.
    pub fn follow_head(&self) -> watch::Receiver<Revision> {
        self.inner.head.subscribe()
    }

    /// Publishes what a group of commits did, or a part of one; `head` is the revision of the last. Called by the one writer, in order of
    /// revisions, before anybody is answered (D2).
    pub fn publish(&self, changes: &[ServiceChange], head: Revision) {
        let mut publisher = lock(&self.inner.publisher);
        // Each watcher is woken once, however much of this concerns it; in one order, so that a seed repeats.
        let mut to_mark = BTreeMap::new();
        for change in changes {
            let (feed, (logged, concerned)) = loop {
                let feed = self.feed(&change.key);
                // A reader of a service that nobody had registered may drop its feed at this very moment.
                if let Some(published) = feed.publish(change) {
                    break (feed, published);
                }
            };
            publisher.log.push(feed, logged);
            to_mark.extend(concerned.into_iter().map(|(view, watchers)| ((&change.key, view), watchers)));
            if change.instances == 0 {
                publisher.emptied.push_back((change.key.clone(), change.revision));
            }
        }
        if let Some(now) = changes.last().map(|change| change.wall) {
            publisher.log.trim(now);
        }
        self.forget(&mut publisher);
        drop(publisher);
        let mut to_call = Vec::new();
        for watchers in to_mark.values() {
            watchers.values().for_each(|subscription| subscription.mark(&mut to_call));
        }
        self.inner.head.send_if_modified(|current| {
            let grown = head > *current;
            *current = head.max(*current);
            grown
        });
        self.inner.wakes.add(to_call);
    }

    /// Wakes streams that changes concern, a few at a time, until it is dropped. Without it [`Self::publish`] wakes them all
    /// by itself, and whoever waits for its answers waits for that.
    pub(crate) async fn wake_streams(&self) {
        self.inner.wakes.attend().await;
    }

    /// Opens a cursor on one view. `slot` is how `signal` will name it when there may be something to read.
    pub fn watch(
        &self,
        key: &ServiceKey,
        selector: &Selector,
        include_all: bool,
        start: &Start,
        signal: &Arc<Signal>,
        slot: u32,
    ) -> Result<Cursor, ViewRefused> {
        let limit = self.inner.settings.max_views_per_service;
        let refused = || ViewRefused::TooManyViews { key: key.clone(), limit };
        loop {
            let feed = self.feed(key);
            let Some(view) = feed.open(selector, include_all, limit).map_err(|()| refused())? else {
                continue; // the feed was dropped between finding and locking it
            };
            if let Some(cursor) = Cursor::open(self.clone(), feed, view, start, signal, slot) {
                return Ok(cursor);
            }
        }
    }

    /// Reads one view at the head: its first page.
    pub fn read(&self, key: &ServiceKey, selector: &Selector) -> ReadPage {
        let head = self.head();
        let feed = self.feed(key);
        let (page, unused) = feed.read(selector, &self.inner.epoch, head, || self.next_generation());
        if unused {
            self.drop_if_unused(&feed);
        }
        page_of(&page, 0)
    }

    /// Reads a further page. `None`: its snapshot is no longer kept, or is one of another selection.
    pub fn read_on(&self, key: &ServiceKey, selector: &Selector, token: PageToken) -> Option<ReadPage> {
        let feed = Arc::clone(self.inner.feeds.get(key)?.value());
        // A revision that this server has not reached is not one that it gave.
        let revision = Some(token.revision).filter(|revision| *revision <= self.head())?;
        let page = feed.read_on(selector, token.generation, revision)?;
        Some(page_of(&page, token.part)).filter(|page| !page.parts.is_empty())
    }

    /// What the recent log knows of an instance.
    pub fn explain(&self, key: &ServiceKey, id: &InstanceId) -> Past {
        let feed = self.inner.feeds.get(key).map(|feed| Arc::clone(feed.value()));
        let unknown = || Past::nothing_since(self.inner.forgotten_through.load(Ordering::Acquire));
        feed.map_or_else(unknown, |feed| feed.past(id))
    }

    /// How much is kept just now. Walks all services: for tests and people.
    pub fn kept(&self) -> Kept {
        let mut kept = Kept::default();
        {
            let publisher = lock(&self.inner.publisher);
            (kept.log_entries, kept.log_bytes) = (publisher.log.len(), publisher.log.bytes());
        }
        let feeds: Vec<_> = self.inner.feeds.iter().map(|feed| Arc::clone(feed.value())).collect();
        for feed in feeds {
            feed.count(&mut kept);
        }
        kept
    }

    /// What a view had to apply so that `revision` is: the newest change, if it contained an instance of it before or
    /// after. The change is the service's at `revision`, or if that is none of the service's, whichever touched the view
    /// last before it. Of what the log no longer has, the answer is that it was touched. The revision is not ahead of the
    /// head.
    pub fn touched(&self, key: &ServiceKey, selector: &Selector, revision: Revision) -> Option<Revision> {
        let feed = Arc::clone(self.inner.feeds.get(key)?.value());
        feed.touched(selector, revision)
    }

    /// Whether anybody registered the service, for all that is known, up to `revision`.
    pub fn is_known(&self, key: &ServiceKey, revision: Revision) -> bool {
        let feed = self.inner.feeds.get(key).map(|feed| Arc::clone(feed.value()));
        let forgotten = || revision <= self.inner.forgotten_through.load(Ordering::Acquire);
        feed.map_or_else(forgotten, |feed| feed.is_known(revision))
    }

    /// How many services have a feed here.
    pub fn feeds(&self) -> usize {
        self.inner.feeds.len()
    }

    fn next_generation(&self) -> u64 {
        self.inner.generations.fetch_add(1, Ordering::Relaxed)
    }

    fn feed(&self, key: &ServiceKey) -> Arc<Feed> {
        if let Some(feed) = self.inner.feeds.get(key) {
            return Arc::clone(feed.value());
        }
        let unknown = || {
            // Read under the entry's lock: if a feed of this service was forgotten before, this is the revision then.
            let floor = self.inner.forgotten_through.load(Ordering::Acquire);
            Arc::new(Feed::unknown(key.clone(), floor))
        };
        Arc::clone(self.inner.feeds.entry(key.clone()).or_insert_with(unknown).value())
    }

    fn drop_if_unused(&self, feed: &Arc<Feed>) {
        self.inner.feeds.remove_if(&feed.key, |_, current| Arc::ptr_eq(current, feed) && current.retire());
    }

    /// Drops feeds of services that are long empty and that nobody watches.
    fn forget(&self, publisher: &mut Publisher) {
        while publisher.emptied.len() > self.inner.settings.remembered_services {
            let Some((key, emptied_at)) = publisher.emptied.pop_front() else { return };
            if !self.inner.feeds.get(&key).is_some_and(|feed| feed.forget(emptied_at)) {
                continue; // it was registered since: if it was emptied again, it stands further back in the queue
            }
            // Raised first: whoever makes a new feed for this service must take older cursors for outdated.
            self.inner.forgotten_through.fetch_max(emptied_at, Ordering::AcqRel);
            self.inner.feeds.remove_if(&key, |_, feed| feed.retire());
        }
    }
}

fn page_of(page: &Page, from: usize) -> ReadPage {
    let parts: Vec<Part> = page.parts.iter().skip(from).take(encode::PARTS_PER_PAGE).cloned().collect();
    let end = from + parts.len();
    let next = (end < page.parts.len()).then_some(PageToken {
        generation: page.generation,
        part: end,
        revision: page.revision,
    });
    ReadPage { parts, revision: page.revision, next }
}

/// No code of this module panics while it holds a lock; if it did, the data would still be whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
