//! Watchers, each with a stream of its own that sends what a server's stream sends: woken, it takes its marks and asks its
//! cursor for one step after the other, until there is none.
//!
//! One in ten is slow: it reads when it is asked to, whatever happens meanwhile (W10). What they all come to know is judged, never
//! what it took.

use std::{sync::Arc, task::Waker, time::Duration};

use registry_server::{
    core::Selector,
    hub::{Cursor, Hub, Signal, Start, Step},
};

use super::{
    Untrue,
    known::{Known, Pool, Ready},
    meter::spend,
    registry::Registry,
};

/// One watcher of a service in so many is slow.
const SLOW: u32 = 10;

/// What was delivered, and what it took of the processor.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Delivered {
    /// Of each service the first watcher that read: whatever is made by the first who asks was made for it.
    pub(super) first: Duration,
    pub(super) firsts: usize,
    pub(super) rest: Duration,
    pub(super) rests: usize,
    /// Of these, parts of snapshots.
    pub(super) snapshots: usize,
    pub(super) bytes: usize,
}

impl Delivered {
    /// Messages.
    pub(super) fn events(&self) -> usize {
        self.firsts + self.rests
    }

    /// Processor time of all.
    pub(super) fn spent(&self) -> Duration {
        self.first + self.rest
    }
}

/// Who is to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// Those who were woken and are not slow.
    Quick,
    /// All who were woken, the slow ones since long ago too.
    All,
}

/// What a watcher is to the server.
#[derive(Debug)]
struct Seat {
    signal: Arc<Signal>,
    cursor: Cursor,
}

/// All watchers. Services have as many each, in turn.
#[derive(Debug)]
pub(super) struct Watchers {
    services: u32,
    seats: Vec<Seat>,
    wakers: Vec<Waker>,
    ready: Arc<Ready>,
    known: Vec<Arc<Known>>,
    pool: Pool,
    /// Slow ones that were woken.
    late: Vec<u32>,
    /// Kept for their room.
    steps: Vec<(u32, Step)>,
    woken: Vec<u32>,
}

impl Watchers {
    /// So many watchers, who watch nothing yet.
    pub(super) fn new(count: u32, services: u32) -> Self {
        let ready = Arc::new(Ready::default());
        let room = usize::try_from(count).unwrap_or(0);
        let mut wakers = Vec::with_capacity(room);
        wakers.extend((0..count).map(|watcher| ready.waker(watcher)));
        let known = vec![Arc::default(); room];
        let seats = Vec::with_capacity(room);
        let (late, steps, woken) = (Vec::new(), Vec::new(), Vec::new());
        Self { services, seats, wakers, ready, known, pool: Pool::default(), late, steps, woken }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.wakers.len()
    }

    /// Opens all streams, each from what its watcher knows: all are woken, to look whether they missed anything. Says what that took.
    pub(super) fn open(&mut self, hub: &Hub) -> Result<Duration, Untrue> {
        self.late.clear();
        let selector = Selector::default();
        let mut spent = Duration::ZERO;
        let (seats, services) = (&mut self.seats, self.services);
        spend(&mut spent, || {
            for ((watcher, known), waker) in (0..).zip(&self.known).zip(&self.wakers) {
                let start = match known.revision {
                    0 => Start::Fresh,
                    revision => Start::Resume { epoch: hub.epoch().to_owned(), revision },
                };
                let signal = Signal::new();
                signal.register(waker);
                let key = Registry::key(watcher % services);
                let cursor = hub.watch(&key, &selector, false, &start, &signal, 0);
                let cursor = cursor.map_err(|refused| Untrue(refused.to_string()))?;
                seats.push(Seat { signal, cursor });
            }
            Ok(())
        })?;
        Ok(spent)
    }

    /// Ends all streams; what watchers know they know.
    pub(super) fn close(&mut self) {
        self.seats.clear();
        self.late.clear();
        self.ready.exchange(&mut self.woken);
        self.woken.clear();
    }

    /// Who was woken reads until there is nothing to read, and learns what it read.
    pub(super) fn deliver(&mut self, who: Who, delivered: &mut Delivered) -> Result<(), Untrue> {
        let mut woken = std::mem::take(&mut self.woken);
        self.ready.exchange(&mut woken);
        if who == Who::All {
            woken.append(&mut self.late);
        }
        let mut seen = vec![false; usize::try_from(self.services).unwrap_or(0)];
        let (mut firsts, mut rest) = (Vec::new(), Vec::new());
        for watcher in woken.drain(..) {
            let service = usize::try_from(watcher % self.services).unwrap_or(0);
            if who == Who::Quick && (watcher / self.services) % SLOW == SLOW - 1 {
                self.late.push(watcher);
            } else if std::mem::replace(&mut seen[service], true) {
                rest.push(watcher);
            } else {
                firsts.push(watcher);
            }
        }
        let mut steps = std::mem::take(&mut self.steps);
        spend(&mut delivered.first, || self.read(firsts, &mut woken, &mut steps));
        let by_firsts = steps.len();
        spend(&mut delivered.rest, || self.read(rest, &mut woken, &mut steps));
        delivered.firsts += by_firsts;
        delivered.rests += steps.len() - by_firsts;
        for (watcher, step) in &steps {
            let known = &mut self.known[usize::try_from(*watcher).unwrap_or(0)];
            *known = self.pool.after(known, step)?;
            delivered.bytes += step.part.as_field().len();
            delivered.snapshots += usize::from(step.reset_reason.is_some());
        }
        self.pool.forget();
        steps.clear();
        (self.steps, self.woken) = (steps, woken);
        Ok(())
    }

    /// Each reads until it waits, and once more if that woke it, as any reader that reads until it waits.
    fn read(&mut self, mut readers: Vec<u32>, woken: &mut Vec<u32>, steps: &mut Vec<(u32, Step)>) {
        while !readers.is_empty() {
            for watcher in readers.drain(..) {
                let at = usize::try_from(watcher).unwrap_or(0);
                let Seat { signal, cursor } = &mut self.seats[at];
                signal.register(&self.wakers[at]);
                while signal.take().is_some() {
                    if let Some(step) = cursor.next_step() {
                        steps.push((watcher, step));
                        signal.register(&self.wakers[at]);
                    }
                }
            }
            self.ready.exchange(woken);
            std::mem::swap(woken, &mut readers);
        }
    }

    /// Whether all know the truth.
    pub(super) fn judge(&self, registry: &Registry) -> Result<(), Untrue> {
        let state = registry.core.state();
        let wrong = (0..).zip(&self.known).find(|(watcher, known)| {
            let service = state.service(&Registry::key(watcher % self.services));
            !service.is_some_and(|service| known.is_true(service))
        });
        let Some((watcher, known)) = wrong else { return Ok(()) };
        let key = Registry::key(watcher % self.services);
        Err(Untrue(format!("W2: watcher {watcher} of {key} does not know the truth: it knows {known}")))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{registry::Spent, sizes::Sizes},
        *,
    };

    fn world() -> (Registry, Watchers) {
        let sizes = Sizes::new(100, 100, 10, 10).expect("within bounds");
        let mut took = Duration::ZERO;
        let registry = Registry::load(sizes, &mut Spent::default(), &mut took, || {}).expect("it loads");
        let mut watchers = Watchers::new(sizes.watchers, sizes.services);
        watchers.open(&registry.hub).expect("few views");
        watchers.deliver(Who::All, &mut Delivered::default()).expect("snapshots");
        (registry, watchers)
    }

    fn change(registry: &mut Registry, instance: u32) {
        let (command, mut spent) = (registry.change(instance), Spent::default());
        let changes = registry.commit(&[command], &mut spent).expect("it is allowed");
        registry.publish(changes, &mut spent);
    }

    #[test]
    fn watchers_end_at_the_truth_slow_ones_when_they_read() {
        let (mut registry, mut watchers) = world();
        change(&mut registry, 3);
        assert!(watchers.judge(&registry).is_err(), "nobody has read");
        let mut delivered = Delivered::default();
        watchers.deliver(Who::Quick, &mut delivered).expect("a delta");
        assert_eq!((delivered.firsts, delivered.rests), (1, 8), "one of ten is slow");
        assert!(watchers.judge(&registry).is_err(), "the slow one has not read");
        for _ in 0..30 {
            change(&mut registry, 4);
        }
        let mut delivered = Delivered::default();
        watchers.deliver(Who::All, &mut delivered).expect("what was missed");
        assert_eq!(delivered.events(), 10);
        assert_eq!(delivered.snapshots, 10, "further back than ten changes nothing is kept");
        watchers.judge(&registry).expect("the truth");
    }

    #[test]
    fn a_watcher_that_lost_a_message_is_found() {
        let (mut registry, mut watchers) = world();
        change(&mut registry, 3);
        // Handed over, and lost.
        watchers.ready.exchange(&mut watchers.woken);
        let readers = std::mem::take(&mut watchers.woken);
        watchers.read(readers, &mut Vec::new(), &mut Vec::new());
        let lost = watchers.judge(&registry).expect_err("somebody lost a message");
        assert!(lost.to_string().starts_with("W2: watcher 0 of default/service-000000"), "{lost}");
        change(&mut registry, 4);
        let noticed = watchers.deliver(Who::All, &mut Delivered::default()).expect_err("a gap");
        assert!(noticed.to_string().starts_with("W2: part 0 of service-000000"), "{noticed}");
    }
}
