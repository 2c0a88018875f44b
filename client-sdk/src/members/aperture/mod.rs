//! How many instances are connected, decided by the demand: the aperture.
//!
//! Owns the decision, and what it goes by. Does not own who is connected: the driver takes as many as this says from the
//! caller's own order, replaces those that fail or leave, and drains what is one too many.
//!
//! ```text
//!   requests --- begin, end ---> occupancy: how many there are, and how much time they took
//!                                    |                    ^
//!              left the window, once | and when            | read, at that and at the next look
//!                                    v                    |
//!   driver <---- so many ------- control ------> sizing (pure)
//! ```
//!
//! Requests wake nobody as long as what they add up to stays where nothing would be decided by it (the *window*), and then once.
//! What there was on average since the last look is known exactly all the same, for its time is counted with each request.
//! After a look the next one is when the estimate would cross a threshold if all stayed as it is.
//!
//! | file | what it owns |
//! |---|---|
//! | `settings` | what an aperture may be told |
//! | `occupancy` | how many requests there are, over time, without a lock |
//!
//! Keeps: how often it looks does not depend on how many requests there are, and how often it looks makes no difference to
//! what it finds.

mod occupancy;
mod settings;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;

pub(super) use self::occupancy::Occupancy;
use self::occupancy::Reading;
pub use self::settings::{Aperture, ApertureBuilder};
use super::{Meters, Settings, Shared};
use crate::{
    runtime::Runtime,
    sizing::{Decision, SizeChange, Sizing, Usage},
};

/// After a signal there is no other within this part of the estimate's time constant.
const SIGNALS: u32 = 8;

/// Nor within this: time is counted in whole milliseconds here.
const SHORTEST: Duration = Duration::from_millis(1);

/// What requests add up to in time is counted with a bound, so it is looked at once in a while though nothing changes.
const LONGEST: Duration = Duration::from_hours(1);

/// What an aperture is and does right now.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ApertureSnapshot {
    /// How many instances are to be used: those that are connected, and those in whose place one is being connected.
    pub size: usize,
    /// How many there are to be used: those of the view that take requests, and that no filter left out.
    pub available: usize,
    /// Never fewer, if there are as many.
    pub min: usize,
    /// Never more.
    pub max: usize,
    /// How many requests in flight are one instance's worth.
    pub target: usize,
    /// The demand in instances, averaged over time: what the size is decided by.
    pub estimate: f64,
    /// When the size changed last, and how. `None`: never yet.
    pub last: Option<SizeChange>,
    /// How many instances it decided to add, in all.
    pub grown: u64,
    /// How many instances it decided to do without, in all.
    pub shrunk: u64,
    /// How long instances must be idle until it does without the next: as set, or longer if that was too soon.
    pub idle_time: Duration,
}

/// How many instances are connected by themselves: what requests, the driver and whoever looks share.
pub(super) struct Ahead {
    /// Without an aperture.
    fixed: usize,
    board: Option<Arc<Board>>,
}

/// Of one aperture.
struct Board {
    aperture: Aperture,
    /// How many requests in flight are one instance's worth.
    worth: usize,
    runtime: Runtime,
    occupancy: Arc<Occupancy>,
    shown: ArcSwap<State>,
}

/// What is decided, and what by.
#[derive(Clone, Copy)]
struct State {
    sizing: Sizing,
    /// What there was when the sizing was told last.
    reading: Reading,
    size: usize,
    /// How many of them take requests.
    ready: usize,
    available: usize,
    last: Option<SizeChange>,
    grown: u64,
    shrunk: u64,
}

/// The driver's part: looks, and decides.
pub(super) struct Control {
    board: Arc<Board>,
    meters: Arc<Meters>,
    endpoint: String,
    state: State,
    /// Whether requests tell when they leave the window.
    armed: bool,
    /// Until when they do not.
    quiet_until: Duration,
    /// When to look though nobody tells.
    next: Duration,
    /// The estimate, as it was told to the meters.
    metered: f64,
}

impl Ahead {
    /// `applies`: whether there is anything to decide, if an aperture is set.
    pub(super) fn new(settings: &Settings, applies: bool, runtime: &Runtime) -> Self {
        let aperture = settings.aperture.as_ref().filter(|_| applies);
        let board = aperture.map(|aperture| {
            let now = whole(runtime.now());
            let occupancy = Occupancy::new(runtime.clone());
            let sizing = Sizing::new(aperture.sizing, now).expect("the aperture's builder checked them");
            let state = State {
                sizing,
                reading: occupancy.read(now),
                size: aperture.sizing.min,
                ready: 0,
                available: 0,
                last: None,
                grown: 0,
                shrunk: 0,
            };
            Arc::new(Board {
                aperture: aperture.clone(),
                worth: settings.max_in_flight.map_or(aperture.target, |most| most.min(aperture.target)),
                runtime: runtime.clone(),
                occupancy: Arc::new(occupancy),
                shown: ArcSwap::from_pointee(state),
            })
        });
        Self { fixed: settings.connect_ahead, board }
    }

    /// How many instances are connected by themselves.
    pub(super) fn size(&self) -> usize {
        self.board.as_ref().map_or(self.fixed, |board| board.shown.load().size)
    }

    /// Where requests are counted. `None`: nobody goes by it.
    pub(super) fn occupancy(&self) -> Option<&Arc<Occupancy>> {
        self.board.as_ref().map(|board| &board.occupancy)
    }

    pub(super) fn snapshot(&self) -> Option<ApertureSnapshot> {
        let board = self.board.as_ref()?;
        let now = whole(board.runtime.now());
        let mut state = **board.shown.load();
        state.catch_up(board, &board.occupancy.read(now));
        Some(ApertureSnapshot {
            size: state.size,
            available: state.available,
            min: board.aperture.sizing.min,
            max: board.aperture.sizing.max,
            target: board.worth,
            estimate: state.sizing.estimate_at(now),
            last: state.last,
            grown: state.grown,
            shrunk: state.shrunk,
            idle_time: state.sizing.idle_time(),
        })
    }
}

impl Control {
    /// `None`: how many are connected is fixed, or left to requests.
    pub(super) fn new<M>(shared: &Shared<M>) -> Option<Self> {
        let board = shared.ahead.board.clone()?;
        Some(Self::of(board, Arc::clone(&shared.meters), shared.endpoint.to_string()))
    }

    fn of(board: Arc<Board>, meters: Arc<Meters>, endpoint: String) -> Self {
        let state = **board.shown.load();
        meters.aperture(0, state.size);
        let (armed, metered) = (false, 0.0);
        let (quiet_until, next) = (Duration::ZERO, Duration::ZERO);
        Self { board, meters, endpoint, state, armed, quiet_until, next, metered }
    }

    /// How many instances are to be connected.
    pub(super) fn size(&self) -> usize {
        self.state.size
    }

    /// So many of them are.
    pub(super) fn connected(&mut self, ready: usize) {
        let changed = std::mem::replace(&mut self.state.ready, ready) != ready;
        if changed && self.state.reading.waiting() > 0 {
            // While requests wait these count as full, so the demand is another one now, and no request tells that.
            self.next = Duration::ZERO;
        }
    }

    /// When to [`look`](Self::look) at the latest.
    pub(super) fn deadline(&self) -> Duration {
        if self.armed { self.next } else { self.next.min(self.quiet_until) }
    }

    /// Until requests tell that it is to look. For ever, if there is no aperture.
    pub(super) async fn signalled(this: Option<&Self>) {
        match this {
            Some(control) => control.board.occupancy.signalled().await,
            None => std::future::pending().await,
        }
    }

    /// Looks at what there is to do for so many instances, and decides how many of them do it.
    pub(super) fn look(&mut self, now: Duration, available: usize) -> usize {
        let now = whole(now);
        let board = Arc::clone(&self.board);
        let pause = (board.aperture.sizing.smoothing / SIGNALS).max(SHORTEST);
        if std::mem::take(&mut self.armed) && !board.occupancy.disarm() {
            self.quiet_until = now.saturating_add(pause);
        }
        let reading = board.occupancy.read(now);
        self.state.catch_up(&board, &reading);
        self.state.reading = reading;
        // Without anybody there is nothing to decide; it stays as wide as it was, for whoever comes.
        if available > 0 {
            self.state.available = available;
            let before = self.state.size;
            self.decide(now);
            self.tell(before, now);
        }
        let sizing = &self.state.sizing;
        self.next = next_look(sizing, now, board.aperture.sizing.smoothing);
        if now >= self.quiet_until {
            let window = window(sizing.band(), board.worth, reading.in_flight());
            self.armed = board.occupancy.arm(window, reading.waiting() > 0);
            if !self.armed {
                self.quiet_until = now.saturating_add(pause);
            }
        }
        board.shown.store(Arc::new(self.state));
        self.state.size
    }

    /// Takes the sizing's decisions until it has no further one.
    fn decide(&mut self, now: Duration) {
        let set = self.board.aperture.sizing;
        let state = &mut self.state;
        let (min, max) = (set.min.min(state.available), set.max.min(state.available));
        state.sizing.set_bounds(min, max);
        state.size = state.size.min(max);
        loop {
            let (in_flight, waiting) = (number(state.reading.in_flight()), number(state.reading.waiting()));
            let usage = state.usage(&self.board, in_flight, waiting);
            match state.sizing.observe(now, usage) {
                Decision::Hold => return,
                Decision::Grow { to } => {
                    let by = to.saturating_sub(state.size);
                    self.meters.aperture_grown(by);
                    state.grown += by as u64;
                    state.size = to;
                }
                Decision::Shrink => {
                    self.meters.aperture_shrunk();
                    state.shrunk += 1;
                    state.size = state.size.saturating_sub(1);
                }
            }
        }
    }

    /// Says that it changed, if it did, and how it sees the demand.
    fn tell(&mut self, before: usize, now: Duration) {
        let estimate = self.state.sizing.estimate_at(now);
        self.meters.aperture_demand(self.metered, estimate);
        self.metered = estimate;
        let (to, available) = (self.state.size, self.state.available);
        if to == before {
            return;
        }
        self.meters.aperture(before, to);
        self.state.last = Some(SizeChange { from: before, to, estimate, at: now });
        tracing::info!(endpoint = %self.endpoint, from = before, to, available, estimate, "aperture changes");
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.meters.aperture(self.state.size, 0);
        self.meters.aperture_demand(self.metered, 0.0);
    }
}

impl State {
    /// Has the sizing know what there really was since it was told last.
    fn catch_up(&mut self, board: &Board, reading: &Reading) {
        if let Some((in_flight, waiting)) = reading.averages_since(&self.reading) {
            self.sizing.revise(self.usage(board, in_flight, waiting));
        }
    }

    /// So many requests, as demand. Where requests wait those that are connected have what they can, however few that is: as
    /// far as there was always one that waited, they count as full.
    fn usage(&self, board: &Board, in_flight: f64, waiting: f64) -> Usage {
        let ready = self.ready.min(self.size);
        let (used, worth) = (in_flight / number(board.worth), number(board.worth));
        let not_used = (number(ready) - used).max(0.0);
        let used = used + waiting.min(1.0) * not_used;
        Usage::averaged(ready, self.size - ready, used, waiting / worth)
    }
}

/// How many requests there may be in flight, from and to, so that there is nothing to look at before the next look.
fn window((from, to): (f64, f64), worth: usize, in_flight: usize) -> (usize, usize) {
    let (from, to) = (from * number(worth), to * number(worth));
    let now = number(in_flight);
    if now < from {
        (0, whole_number(from.ceil()).saturating_sub(1))
    } else if now <= to {
        (whole_number(from.ceil()), whole_number(to))
    } else {
        (whole_number(to).saturating_add(1), usize::MAX)
    }
}

/// When something may be decided. While that is only a matter of time it looks now and then before that: within the window there
/// may be more to do, or less, than was taken for granted.
fn next_look(sizing: &Sizing, now: Duration, smoothing: Duration) -> Duration {
    let ((from, to), demand) = (sizing.band(), sizing.usage().demand());
    let pace = if demand > to {
        smoothing / 4
    } else if demand < from && sizing.estimate_at(now) > from {
        smoothing
    } else {
        LONGEST
    };
    let look = sizing.next_look().unwrap_or(Duration::MAX).min(now.saturating_add(pace));
    look.max(now.saturating_add(SHORTEST))
}

/// In whole milliseconds, as requests are counted.
#[allow(clippy::cast_possible_truncation)] // half a billion years
fn whole(now: Duration) -> Duration {
    Duration::from_millis(now.as_millis() as u64)
}

/// Counts of things are far below 2^52, where a float is exact.
#[allow(clippy::cast_precision_loss)]
fn number(count: usize) -> f64 {
    count as f64
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
fn whole_number(number: f64) -> usize {
    number as usize
}
