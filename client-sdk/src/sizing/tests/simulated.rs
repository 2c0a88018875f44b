//! Requests that arrive at random and take random times, from one event to the next: what sizing makes of noise.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use super::*;

/// How long a request takes, on average.
const TAKES: f64 = 0.05;
const MAKING: Duration = Duration::from_millis(500);
/// Until then what happens counts as settling.
const SETTLING: Duration = Duration::from_mins(5);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives,
    /// At the member of this number.
    Ends(usize),
    Made,
}

/// Members that take one request at a time each, and those who wait for one.
struct Pool {
    sizing: Sizing,
    rng: fastrand::Rng,
    /// Arrivals a second.
    rate: f64,
    now: Duration,
    events: BinaryHeap<Reverse<(Duration, usize, Event)>>,
    /// Whether each is busy.
    members: BTreeMap<usize, bool>,
    coming: usize,
    given_up: usize,
    waiting: usize,
    /// Of events and of members.
    numbers: usize,
    answered: usize,
    changes: usize,
    /// By size, in seconds after it has settled.
    held: BTreeMap<usize, f64>,
}

/// What became of it after it had settled.
struct Outcome {
    answered: usize,
    changes: usize,
    /// By size, in seconds.
    held: BTreeMap<usize, f64>,
}

impl Pool {
    /// So many requests in flight on average, as far as nobody waits.
    fn new(settings: SizingSettings, load: f64, seed: u64) -> Self {
        Self {
            sizing: Sizing::new(settings, Duration::ZERO).expect("good settings"),
            rng: fastrand::Rng::with_seed(seed),
            rate: load / TAKES,
            now: Duration::ZERO,
            events: BinaryHeap::new(),
            members: BTreeMap::new(),
            coming: 0,
            given_up: 0,
            waiting: 0,
            numbers: 0,
            answered: 0,
            changes: 0,
            held: BTreeMap::new(),
        }
    }

    /// Until so many requests were answered after it has settled.
    fn run(mut self, requests: usize) -> Outcome {
        self.after(Duration::ZERO, Event::Arrives);
        let mut settled = None;
        while settled.is_none_or(|(answered, _)| self.answered < answered + requests) {
            let event = self.next();
            if settled.is_none() && self.now >= SETTLING {
                settled = Some((self.answered, self.changes));
                self.held.clear();
            }
            if let Some(event) = event {
                self.happens(event);
            }
            self.resize();
        }
        let (answered, changes) = settled.expect("it takes longer");
        Outcome { answered: self.answered - answered, changes: self.changes - changes, held: self.held }
    }

    /// Lets time pass until something happens, or it is time to look.
    fn next(&mut self) -> Option<Event> {
        let before = self.now;
        let next = self.events.peek().expect("there is always an arrival to come").0.0;
        let look = self.sizing.next_look().filter(|look| *look < next);
        let event = if look.is_some() { None } else { self.events.pop().map(|event| event.0.2) };
        self.now = look.unwrap_or(next).max(before);
        let size = self.members.len() + self.coming;
        *self.held.entry(size).or_default() += self.now.saturating_sub(before).as_secs_f64();
        event
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Arrives => {
                self.waiting += 1;
                let next = self.drawn(1.0 / self.rate);
                self.after(next, Event::Arrives);
            }
            Event::Ends(member) => {
                self.answered += 1;
                // It may have been drained.
                if let Some(busy) = self.members.get_mut(&member) {
                    *busy = false;
                }
            }
            Event::Made if self.given_up > 0 => self.given_up -= 1,
            Event::Made => {
                self.coming -= 1;
                self.numbers += 1;
                self.members.insert(self.numbers, false);
            }
        }
    }

    fn resize(&mut self) {
        loop {
            self.dispatch();
            let members = self.members.values().map(|busy| (usize::from(*busy), false));
            let usage = Usage::of(1, members, self.coming, self.waiting);
            match self.sizing.observe(self.now, usage) {
                Decision::Hold => break,
                Decision::Grow { to } => {
                    for _ in usage.size()..to {
                        self.after(MAKING, Event::Made);
                        self.coming += 1;
                        self.changes += 1;
                    }
                }
                Decision::Shrink => {
                    self.changes += 1;
                    if self.coming > 0 {
                        self.coming -= 1;
                        self.given_up += 1;
                    } else if let Some(least) =
                        self.members.iter().min_by_key(|(_, busy)| **busy).map(|it| *it.0)
                    {
                        self.members.remove(&least);
                    }
                }
            }
        }
    }

    fn dispatch(&mut self) {
        while self.waiting > 0 {
            let Some((member, busy)) = self.members.iter_mut().find(|(_, busy)| !**busy) else { return };
            let member = *member;
            *busy = true;
            self.waiting -= 1;
            let takes = self.drawn(TAKES);
            self.after(takes, Event::Ends(member));
        }
    }

    fn after(&mut self, time: Duration, event: Event) {
        self.numbers += 1;
        self.events.push(Reverse((self.now + time, self.numbers, event)));
    }

    /// Exponentially distributed, in seconds on average.
    fn drawn(&mut self, mean: f64) -> Duration {
        Duration::from_secs_f64(-(1.0 - self.rng.f64()).ln() * mean)
    }
}

impl Outcome {
    fn changes_in_10_000(&self) -> f64 {
        10_000.0 * number(self.changes) / number(self.answered)
    }

    /// For which share of the time it held so many.
    fn share_within(&self, sizes: std::ops::RangeInclusive<usize>) -> f64 {
        let within = self.held.iter().filter(|(size, _)| sizes.contains(size)).map(|(_, time)| time);
        within.sum::<f64>() / self.held.values().sum::<f64>()
    }
}

fn many() -> SizingSettings {
    SizingSettings { max: 50, ..SizingSettings::default() }
}

/// Arrivals for k keep k members busy for 70% of the time.
#[test]
fn random_arrivals_for_k_hold_k_give_or_take_one_and_hardly_ever_change_it() {
    for k in [1_u32, 2, 3, 5, 8, 9] {
        for seed in 1..=5 {
            let outcome = Pool::new(many(), 0.7 * f64::from(k), seed).run(30_000);
            let needed = usize::try_from(k).expect("small");
            let held = outcome.share_within(needed - 1..=needed + 1);
            assert!(held >= 0.95, "{k}, seed {seed}: {held} of the time: {:?}", outcome.held);
            let changes = outcome.changes_in_10_000();
            assert!(changes <= 1.0, "{k}, seed {seed}: {changes} changes in 10,000 requests");
        }
    }
}

/// Between two sizes as well: wherever the edges are, these loads come near them.
#[test]
fn at_whatever_load_random_arrivals_hardly_ever_change_the_size() {
    let loads = (4_u32..=32).map(|quarters| f64::from(quarters) / 4.0);
    let mut all = Vec::new();
    for load in loads {
        let outcome = Pool::new(many(), load, 7).run(50_000);
        let changes = outcome.changes_in_10_000();
        assert!(changes <= 1.0, "{load}: {changes} changes in 10,000 requests: {:?}", outcome.held);
        all.push(changes);
    }
    let mean = all.iter().sum::<f64>() / number(all.len());
    assert!(mean <= 0.5, "{mean} in the mean: {all:?}");
}
