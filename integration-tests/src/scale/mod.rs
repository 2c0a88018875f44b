//! A registry far larger than the machine that it is tried on could serve: the rules and the hub of the server with a million
//! instances and a hundred thousand watchers, without sockets, a runtime or a disk.
//!
//! ```text
//!   Registry: decide ─► evolve ─► Hub::publish ─► marks, wakes ─► Watchers: take, next_step ─► Known: the view, by its bytes
//!      ▲ renew, tick, restore                                                                    └─ judged by the state's digest
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `sizes` | how much there is, and which two sizes of each thing are compared |
//! | `registry` | commands, renewals, time: what the writer's loop does |
//! | `watchers` | streams: what a server's streams do until bytes go to the codec |
//! | `known` | what each watcher knows, by the bytes that it was handed |
//! | `meter` | processor time and memory |
//! | `report` | the table, and what the arithmetic says beside it |
//!
//! Here are the phases of a run. What is left out is what gRPC adds: the framing, HTTP/2, sockets, and a task for each stream. The
//! numbers are of this thread alone and of memory that is resident; the result is judged whatever they are (W2, W4, W8, W10, L1, L2, W5).

mod known;
mod meter;
mod registry;
mod report;
mod sizes;
mod watchers;

use std::time::Duration;

use meter::{grown_each, micros_each, most_resident, number, resident, whole};
use registry::{GROUP, RENEWED, Registry, Spent, TTL};
use watchers::{Delivered, Watchers, Who};

pub use self::{
    meter::Figure,
    report::{Column, confirmed, table},
    sizes::{Case, Sizes, WrongSize},
};

/// Something is not as promised.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Untrue(String);

/// So many changes of each measured service are measured without watchers, and as many with them.
const ROUNDS: u32 = 20;
/// Simulated time between two looks at what is due, in ms.
const STEP: u64 = 100;
/// Changes in each of them, while everything goes on.
const CHANGES: usize = 50;
/// Deltas that a view may keep: eight of one part, eight of several.
const MOST_DELTAS: usize = 16;

/// A run, so far.
struct Run<'a> {
    registry: Registry,
    watchers: Watchers,
    figures: Vec<Figure>,
    say: &'a mut dyn FnMut(&str),
    /// Steps of simulated time that have passed, by which leases are renewed in turn.
    steps: u64,
}

/// Simulates one case and says what it took. `say` is told how far it is.
pub fn run(sizes: Sizes, say: &mut dyn FnMut(&str)) -> Result<Vec<Figure>, Untrue> {
    let mut run = Run::load(sizes, say)?;
    let silent = run.rounds(None)?;
    run.join()?;
    run.fill_the_history()?;
    run.rounds(Some(silent))?;
    run.slow_ones_catch_up("what they missed is gone")?;
    run.renew_all()?;
    run.everything_at_once()?;
    run.slow_ones_catch_up("what they missed is kept")?;
    run.expire()?;
    run.slow_ones_catch_up("after the expiry")?;
    run.restart()
}

impl<'a> Run<'a> {
    fn load(sizes: Sizes, say: &'a mut dyn FnMut(&str)) -> Result<Self, Untrue> {
        let all = count(sizes.all());
        say(&format!("registering {all} instances of {} services", sizes.services));
        let (mut spent, mut shown) = (Spent::default(), Duration::ZERO);
        // Before anything is measured, so that it does not count.
        let watchers = Watchers::new(sizes.watchers, sizes.services);
        let before = resident();
        let mut of_rules = 0.0;
        let mut between = 0;
        let registry = Registry::load(sizes, &mut spent, &mut shown, || {
            of_rules = grown_each(before, all);
            between = resident();
        })?;
        let mut run = Self { registry, watchers, figures: Vec::new(), say, steps: 0 };
        run.note("instances", "", whole(all));
        run.note("watchers", "", f64::from(sizes.watchers));
        run.note(report::RULES, "B", of_rules);
        run.note(report::PUBLISHED, "B", grown_each(between, all));
        run.note("an instance registered: decided", "µs", micros_each(spent.decided, all));
        run.note("an instance registered: applied", "µs", micros_each(spent.applied, all));
        run.expect(run.registry.core.state().instance_count() == all, "D3: an instance is missing")?;
        Ok(run)
    }

    /// Changes one instance of each measured service, again and again. The first time nobody watches: `silent` is what
    /// publishing took then, each time.
    fn rounds(&mut self, silent: Option<f64>) -> Result<f64, Untrue> {
        let sizes = self.registry.sizes;
        let audience = self.audience();
        (self.say)(&format!("{} changes, {audience}", ROUNDS * sizes.measured));
        let (mut spent, mut delivered) = (Spent::default(), Delivered::default());
        for round in 0..ROUNDS {
            let instances = (0..sizes.measured).map(|it| it * sizes.each() + round % sizes.each());
            let commands: Vec<_> = instances.map(|it| self.registry.change(it)).collect();
            for group in commands.chunks(GROUP) {
                let changes = self.registry.commit(group, &mut spent)?;
                self.registry.publish(changes, &mut spent);
            }
            self.watchers.deliver(Who::Quick, &mut delivered)?;
        }
        let changes = spent.revisions;
        let published = micros_each(spent.published, changes);
        let Some(silent) = silent else {
            self.note(report::DECIDED, "µs", micros_each(spent.decided, changes));
            self.note(report::APPLIED, "µs", micros_each(spent.applied, changes));
            self.note(report::ENCODED, "µs", published);
            return Ok(published);
        };
        let taken = micros_each(delivered.rest, delivered.rests);
        let events = delivered.events();
        self.note(report::MARKED, "µs", (published - silent).max(0.0) * whole(changes) / whole(events));
        self.note(report::TAKEN, "µs", taken);
        let first = micros_each(delivered.first, delivered.firsts);
        self.note(report::DELTA, "µs", (first - taken).max(0.0));
        self.note("a change for a watcher: its bytes", "B", whole(delivered.bytes) / whole(events));
        self.expect(delivered.snapshots == 0, "W5: a watcher that reads in time was sent a snapshot")?;
        Ok(published)
    }

    /// All watchers open their streams and read a snapshot each.
    fn join(&mut self) -> Result<(), Untrue> {
        let count = self.watchers.count();
        (self.say)(&format!("{count} watchers join"));
        let before = resident();
        let opened = self.watchers.open(&self.registry.hub)?;
        self.note(report::WATCHER, "B", grown_each(before, count));
        let mut delivered = Delivered::default();
        self.watchers.deliver(Who::All, &mut delivered)?;
        self.note("a watcher joins: its stream opened", "µs", micros_each(opened, count));
        self.note("a watcher joins: its snapshot taken", "µs", micros_each(delivered.spent(), count));
        self.note("a snapshot for a watcher: its bytes", "B", whole(delivered.bytes) / whole(count));
        self.expect(delivered.snapshots >= count, "W2: a watcher has no snapshot")?;
        self.watchers.judge(&self.registry)
    }

    /// Twice as many changes as are kept.
    fn fill_the_history(&mut self) -> Result<(), Untrue> {
        let changes = 2 * count(self.registry.sizes.history);
        (self.say)(&format!("{changes} changes of all services, of which half are kept"));
        for done in (0..changes).step_by(GROUP) {
            let commands = self.registry.changes(GROUP.min(changes - done));
            let changes = self.registry.commit(&commands, &mut Spent::default())?;
            self.registry.publish(changes, &mut Spent::default());
            self.watchers.deliver(Who::Quick, &mut Delivered::default())?;
        }
        let kept = self.registry.hub.kept();
        self.note("changes kept", "", whole(kept.log_entries));
        self.note(
            "a change kept: its encoded instances",
            "B",
            whole(kept.log_bytes) / whole(kept.log_entries),
        );
        Ok(())
    }

    fn slow_ones_catch_up(&mut self, why: &str) -> Result<(), Untrue> {
        (self.say)(&format!("the slow watchers read: {why}"));
        let mut delivered = Delivered::default();
        self.watchers.deliver(Who::All, &mut delivered)?;
        let name = format!("a slow watcher catches up, {why}");
        self.note(&name, "µs", micros_each(delivered.spent(), delivered.events()));
        let kept = self.registry.hub.kept();
        let bounded = kept.log_entries <= count(self.registry.sizes.history)
            && kept.snapshots <= 2
            && kept.deltas <= MOST_DELTAS
            && kept.watchers == self.watchers.count();
        self.expect(bounded, &format!("W10: more is kept than may be: {kept:?}"))?;
        self.watchers.judge(&self.registry)
    }

    /// A TTL in which every lease is renewed in time and nothing else happens.
    fn renew_all(&mut self) -> Result<(), Untrue> {
        (self.say)(&format!("every lease is renewed every {RENEWED} ms for {TTL} ms"));
        let mut spent = Spent::default();
        for _ in 0..TTL / STEP {
            self.step(0, &mut spent)?;
        }
        self.note(report::RENEWAL, "µs", micros_each(spent.renewed, spent.renewals));
        self.note(report::DEADLINE, "µs", micros_each(spent.due, spent.renewals));
        Ok(())
    }

    /// Another TTL, with changes of all services all the time.
    fn everything_at_once(&mut self) -> Result<(), Untrue> {
        let seconds = number(TTL) / 1_000.0;
        (self.say)(&format!("{seconds} s of renewals, changes and deliveries"));
        let (mut spent, mut delivered) = (Spent::default(), Delivered::default());
        for _ in 0..TTL / STEP {
            self.step(0, &mut spent)?;
            let commands = self.registry.changes(CHANGES);
            for group in commands.chunks(GROUP) {
                let changes = self.registry.commit(group, &mut spent)?;
                self.registry.publish(changes, &mut spent);
            }
            self.watchers.deliver(Who::Quick, &mut delivered)?;
        }
        self.note(report::RENEWALS, "/s", whole(spent.renewals) / seconds);
        self.note(report::CHANGES, "/s", whole(spent.revisions) / seconds);
        self.note(report::EVENTS, "/s", whole(delivered.events()) / seconds);
        self.note(report::SECOND, "ms", (spent.all() + delivered.spent()).as_secs_f64() * 1e3 / seconds);
        self.note(report::IN_ALL, "MiB", number(resident()) / 1_048_576.0);
        Ok(())
    }

    /// A step of simulated time. The leases from `from` on are renewed whose turn it is.
    fn step(&mut self, from: u32, spent: &mut Spent) -> Result<(), Untrue> {
        let turns = RENEWED / STEP;
        let (turn, all) = (self.steps % turns, u64::from(self.registry.sizes.all()));
        let edge = |turn: u64| u32::try_from(all * turn / turns).unwrap_or(u32::MAX).max(from);
        self.steps += 1;
        let expired = self.registry.pass(STEP, spent);
        self.expect(expired == 0, "L1: a lease that was renewed in time ran out")?;
        self.registry.renew(edge(turn)..edge(turn + 1), spent)
    }

    /// The leases of all measured services run out in the same millisecond, the others go on.
    fn expire(&mut self) -> Result<(), Untrue> {
        let ending = self.registry.sizes.in_measured();
        (self.say)(&format!("{ending} leases run out at once"));
        self.registry.renew(0..ending, &mut Spent::default())?;
        for _ in 1..TTL / STEP {
            self.step(ending, &mut Spent::default())?;
        }
        let before = self.registry.core.state().instance_count();
        let (mut spent, mut delivered) = (Spent::default(), Delivered::default());
        let concerned = self.registry.pass(STEP, &mut spent);
        self.expect(concerned == count(ending), "L2: a lease that nobody renewed did not run out")?;
        self.watchers.deliver(Who::Quick, &mut delivered)?;
        let removed = before - self.registry.core.state().instance_count();
        self.note("leases that ran out at once", "", whole(concerned));
        self.note("removed, the others held", "", number(u64::try_from(removed).unwrap_or(u64::MAX)));
        self.note("a lease that ran out: decided", "µs", micros_each(spent.due, concerned));
        self.note("a lease that ran out: applied", "µs", micros_each(spent.applied, concerned));
        self.note("a lease that ran out: published", "µs", micros_each(spent.published, concerned));
        self.note("all of them, and all watchers told", "ms", {
            (spent.all() + delivered.spent()).as_secs_f64() * 1e3
        });
        Ok(())
    }

    /// A new start with what a store would have kept. All watchers come back and have missed nothing.
    fn restart(mut self) -> Result<Vec<Figure>, Untrue> {
        (self.say)("the registry starts again, and all watchers come back");
        self.note("the most memory that it took", "MiB", number(most_resident()) / 1_048_576.0);
        let all = self.registry.core.state().instance_count();
        let (mut rules, mut shown) = (Duration::ZERO, Duration::ZERO);
        self.watchers.close();
        let Self { registry, watchers, figures, say, steps } = self;
        let registry = registry.restart(&mut rules, &mut shown);
        let mut run = Run { registry, watchers, figures, say, steps };
        run.note("start-up, an instance: the rules", "µs", micros_each(rules, all));
        run.note("start-up, an instance: what is published", "µs", micros_each(shown, all));
        let opened = run.watchers.open(&run.registry.hub)?;
        let mut delivered = Delivered::default();
        run.watchers.deliver(Who::All, &mut delivered)?;
        let watchers = run.watchers.count();
        run.note("a watcher resumes", "µs", micros_each(opened + delivered.spent(), watchers));
        run.expect(delivered.events() == 0, "W5: a watcher that had missed nothing was sent something")?;
        let commands = run.registry.changes(GROUP);
        let changes = run.registry.commit(&commands, &mut Spent::default())?;
        run.registry.publish(changes, &mut Spent::default());
        run.watchers.deliver(Who::All, &mut delivered)?;
        run.watchers.judge(&run.registry)?;
        Ok(run.figures)
    }

    fn audience(&self) -> String {
        match self.registry.hub.kept().watchers {
            0 => "nobody watching".to_owned(),
            watching => format!("{watching} watching"),
        }
    }

    fn note(&mut self, name: &str, unit: &str, value: f64) {
        self.figures.push(Figure { name: name.to_owned(), unit: unit.to_owned(), value });
    }

    fn expect(&self, holds: bool, otherwise: &str) -> Result<(), Untrue> {
        let at = self.registry.now;
        if holds { Ok(()) } else { Err(Untrue(format!("{otherwise} (at {at} ms)"))) }
    }
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
