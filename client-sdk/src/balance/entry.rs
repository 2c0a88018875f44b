//! One key of the cache: the newest view, the picker built over it, and who waits for the first one.
//!
//! ```text
//!   offer(view) ──newer?──► newest view ──build──► current (picks read it without a lock)
//!                                ▲          │
//!                   wake(now) ───┴── due ◄──┘ shapers, or the policy, want to be asked again
//! ```
//!
//! The lock is held to compare and to copy two words, never while a picker is built and never across an await. Of several
//! threads that bring views, one builds; it goes on until what it built is the newest.

use std::{
    ops::Deref,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwapOption, Cache, Guard};
use tokio::sync::{Semaphore, watch};

use super::{
    Eligible, PickError, Policy,
    recipe::Recipe,
    shape::State,
    way::{Signpost, Way},
};
use crate::discover::{Follower, SharedError, View};

/// A picker and what it was built over.
pub(crate) struct Built<P: Policy> {
    /// `None`: nothing is eligible.
    pub(crate) picker: Option<P::Picker>,
    pub(crate) eligible: Eligible,
    /// Of the view that it was built over.
    version: Option<u64>,
}

/// What an entry's picks are made on, kept by one who picks often: looked at again before each pick.
pub(crate) type Current<P> = Cache<Published<P>, Option<Arc<Built<P>>>>;

/// An entry, as the place where its newest picker is published.
pub(crate) struct Published<P: Policy>(Arc<Entry<P>>);

/// What first callers wait for.
#[derive(Clone, Debug)]
enum Progress {
    Waiting,
    Failed(SharedError),
    Ready,
}

pub(crate) struct Entry<P: Policy> {
    current: ArcSwapOption<Built<P>>,
    newest: Mutex<Newest>,
    /// What shaping remembers. Taken by whoever builds, and by nobody else.
    shaping: Mutex<State>,
    /// Of one instance that somebody named: it is neither filtered nor shaped.
    fixed: bool,
    progress: watch::Sender<Progress>,
    /// Whose turn it is to discover: one at a time. Whoever gives up its turn, cancelled or done, lets the next one in.
    pub(crate) turn: Semaphore,
    flights: AtomicU64,
    retries: AtomicU64,
    /// For requests that come to retry.
    signpost: Signpost,
    /// Who is told which version is picked from. Whoever brings views owns it, so that it does not outlive them.
    follower: Mutex<Weak<Follower>>,
}

impl<P: Policy> Deref for Published<P> {
    type Target = ArcSwapOption<Built<P>>;

    fn deref(&self) -> &Self::Target {
        &self.0.current
    }
}

impl<P: Policy> Clone for Published<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug, Default)]
struct Newest {
    view: Option<View>,
    /// Counts accepted views.
    stamp: u64,
    /// The stamp of what was built last.
    built: u64,
    building: bool,
    /// The view is an empty answer, which is asked again for at that time.
    ask_again: Option<Duration>,
    fruitless: u32,
    /// When to build again though the view is the same.
    due: Due,
    /// It is due.
    again: Option<Again>,
}

/// When what was built is to be looked at again, by the runtime's clock.
#[derive(Clone, Copy, Debug, Default)]
struct Due {
    /// As the shapers wish.
    shapers: Option<Duration>,
    /// As the policy wishes.
    policy: Option<Duration>,
}

/// Why to build again though the view is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// The shares may be others.
    Shares,
    /// The policy wants to, whether or not they are.
    Policy,
}

/// What a flight must know of the time when it began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Began(u64);

impl<P: Policy> Entry<P> {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Self::with(seed, false)
    }

    /// Of one instance that somebody named.
    pub(crate) fn fixed(seed: u64) -> Arc<Self> {
        Self::with(seed, true)
    }

    fn with(seed: u64, fixed: bool) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            current: ArcSwapOption::empty(),
            newest: Mutex::default(),
            shaping: Mutex::default(),
            fixed,
            progress: watch::Sender::new(Progress::Waiting),
            turn: Semaphore::new(1),
            flights: AtomicU64::new(0),
            retries: AtomicU64::new(seed),
            signpost: Signpost::to(me),
            follower: Mutex::default(),
        })
    }

    /// What picks are made on. `None` before the first view.
    pub(crate) fn load(&self) -> Guard<Option<Arc<Built<P>>>> {
        self.current.load()
    }

    /// The same, counted.
    pub(crate) fn load_full(&self) -> Option<Arc<Built<P>>> {
        self.current.load_full()
    }

    /// The way to what is built later.
    pub(super) fn way(&self) -> Way {
        self.signpost.way()
    }

    /// The same as [`load`](Self::load), for one who picks often.
    pub(crate) fn cached(this: &Arc<Self>) -> Current<P> {
        Cache::new(Published(Arc::clone(this)))
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.current.load().is_some()
    }

    /// Takes in a view that a change brought. True: it is newer, and must be built.
    pub(crate) fn offer(&self, view: View) -> bool {
        let mut newest = self.newest();
        let newer = match (&newest.view, view.version) {
            (Some(View { version: Some(known), .. }), Some(version)) => version > *known,
            (Some(known), None) => !Arc::ptr_eq(&known.instances, &view.instances),
            _ => true,
        };
        if newer {
            newest.accept(view);
        }
        newer
    }

    /// To be asked before a `discover` begins.
    pub(crate) fn begin(&self) -> Began {
        Began(self.newest().stamp)
    }

    /// Takes in the answer of a `discover`: a change that arrived since it began beats it, unless versions tell.
    pub(crate) fn answer(&self, began: Began, view: View, ask_again: impl FnOnce(u32) -> Duration) -> bool {
        let mut newest = self.newest();
        let newer = match (&newest.view, view.version) {
            (Some(View { version: Some(known), .. }), Some(version)) => version > *known,
            _ => newest.stamp == began.0,
        };
        let empty = view.instances.is_empty() && view.version.is_none();
        if newer {
            newest.accept(view);
        }
        if newest.stamp == began.0 + u64::from(newer) && empty {
            newest.fruitless = newest.fruitless.saturating_add(1);
            newest.ask_again = Some(ask_again(newest.fruitless));
        }
        newer
    }

    /// Whether someone must discover: nothing is known, or an empty answer that it is time to doubt.
    pub(crate) fn wants_discover(&self, now: impl FnOnce() -> Duration) -> bool {
        self.wants_more_than(self.current.load().as_deref(), now)
    }

    /// The same, of what was [loaded](Self::load).
    pub(crate) fn wants_more_than(&self, built: Option<&Built<P>>, now: impl FnOnce() -> Duration) -> bool {
        match built {
            None => true,
            Some(built) if built.eligible.refused().total > 0 => false,
            Some(_) => self.newest().ask_again.is_some_and(|at| at <= now()),
        }
    }

    /// After a doubt was not resolved: when to ask again.
    pub(crate) fn put_off(&self, ask_again: impl FnOnce(u32) -> Duration) {
        let mut newest = self.newest();
        if newest.ask_again.is_some() {
            newest.fruitless = newest.fruitless.saturating_add(1);
            newest.ask_again = Some(ask_again(newest.fruitless));
        }
    }

    /// Builds until the newest view is built, unless someone else is already at it.
    pub(crate) fn build(&self, recipe: &Recipe<P>) {
        loop {
            let (view, stamp, again) = {
                let mut newest = self.newest();
                let Some(view) = newest.view.clone() else { return };
                if newest.building || (newest.built == newest.stamp && newest.again.is_none()) {
                    return;
                }
                newest.building = true;
                // A view that is another one is built over in any case.
                let again = newest.again.take().filter(|_| newest.built == newest.stamp);
                (view, newest.stamp, again)
            };
            let building = Building(self);
            let due = match catch_unwind(AssertUnwindSafe(|| self.build_over(&view, recipe, again))) {
                Ok(due) => due,
                Err(panic) => {
                    self.fail(Arc::new(PolicyPanicked));
                    drop(building);
                    if self.newest().stamp == stamp {
                        resume_unwind(panic);
                    }
                    // Whoever brought a newer view meanwhile has left it to this one.
                    continue;
                }
            };
            {
                let mut newest = self.newest();
                (newest.built, newest.due) = (stamp, due);
            }
            recipe.alarm.set(due.soonest());
            self.progress.send_if_modified(|progress| {
                let first = !matches!(progress, Progress::Ready);
                *progress = Progress::Ready;
                first
            });
            drop(building);
        }
    }

    fn build_over(&self, view: &View, recipe: &Recipe<P>, again: Option<Again>) -> Due {
        let now = recipe.now();
        let (eligible, shapers) = if self.fixed {
            (Eligible::of(&view.instances), None)
        } else {
            let mut state = self.shaping.lock().unwrap_or_else(PoisonError::into_inner);
            recipe.eligible(&view.instances, &mut state, now)
        };
        let due = Due { shapers, policy: recipe.rebuild_every.map(|pause| now.saturating_add(pause)) };
        if again == Some(Again::Shares)
            && self.load().as_ref().is_some_and(|it| it.eligible.equals(&eligible))
        {
            return Due { policy: self.newest().due.policy, ..due };
        }
        let picker = (!eligible.first().is_empty()).then(|| recipe.policy.build(eligible.first()));
        self.current.store(Some(Arc::new(Built { picker, eligible, version: view.version })));
        due
    }

    /// Has a follower told which version is picked from.
    pub(crate) fn tell(&self, follower: &Arc<Follower>) {
        *self.follower.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(follower);
    }

    /// What was built is where it is picked from, and nothing older is.
    pub(crate) fn in_use(&self, built: &Built<P>) {
        let follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        if let Some(follower) = follower {
            follower.applied(built.version);
        }
    }

    /// When to [`wake`](Self::wake) it.
    pub(crate) fn due(&self) -> Option<Duration> {
        self.newest().due.soonest()
    }

    /// Whether it is time to build again. Then it must be.
    pub(crate) fn wake(&self, now: Duration) -> bool {
        let mut newest = self.newest();
        let is_due = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        let due = newest.due;
        if is_due(due.policy) {
            newest.due = Due::default();
            newest.again = Some(Again::Policy);
        } else if is_due(due.shapers) {
            newest.due.shapers = None;
            newest.again = newest.again.or(Some(Again::Shares));
        } else {
            return false;
        }
        true
    }

    /// Tells whoever waits that there is nothing yet, and why. What is known stays.
    pub(crate) fn fail(&self, error: SharedError) {
        self.progress.send_if_modified(|progress| {
            let waiting = !matches!(progress, Progress::Ready);
            if waiting {
                *progress = Progress::Failed(error);
            }
            waiting
        });
    }

    /// Waits until there is something to pick from, or until it is known that there is not.
    pub(crate) async fn ready(&self) -> Result<(), SharedError> {
        let mut progress = self.progress.subscribe();
        loop {
            match &*progress.borrow_and_update() {
                Progress::Ready => return Ok(()),
                Progress::Failed(error) => return Err(Arc::clone(error)),
                Progress::Waiting => {}
            }
            if progress.changed().await.is_err() {
                return Err(Arc::new(PickError::NoInstances));
            }
        }
    }

    /// Why there is nothing to pick from, if it is known.
    pub(crate) fn failure(&self) -> Option<SharedError> {
        match &*self.progress.borrow() {
            Progress::Failed(error) => Some(Arc::clone(error)),
            Progress::Waiting | Progress::Ready => None,
        }
    }

    /// How many flights have ended.
    pub(crate) fn flights(&self) -> u64 {
        self.flights.load(Ordering::Acquire)
    }

    pub(crate) fn flight_ended(&self) {
        self.flights.fetch_add(1, Ordering::AcqRel);
    }

    /// A seed for the order of one request's retries.
    pub(crate) fn retry_seed(&self) -> u64 {
        self.retries.fetch_add(super::random::GOLDEN, Ordering::Relaxed)
    }

    fn newest(&self) -> MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Newest {
    fn accept(&mut self, view: View) {
        if !view.instances.is_empty() {
            self.fruitless = 0;
        }
        self.view = Some(view);
        self.stamp += 1;
        self.ask_again = None;
    }
}

impl Due {
    fn soonest(self) -> Option<Duration> {
        [self.shapers, self.policy].into_iter().flatten().min()
    }
}

/// Someone is building. A panic must not leave the key without a builder, nor its callers waiting.
struct Building<'a, P: Policy>(&'a Entry<P>);

impl<P: Policy> Drop for Building<'_, P> {
    fn drop(&mut self) {
        self.0.newest().building = false;
        if std::thread::panicking() {
            self.0.fail(Arc::new(PolicyPanicked));
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the policy panicked while it built a picker; its panic says where")]
struct PolicyPanicked;

#[cfg(test)]
mod tests;
