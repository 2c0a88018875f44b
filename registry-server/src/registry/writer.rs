//! The loop that owns the core.
//!
//! It wakes for a renewal, a finished group, a command, or the next deadline, and never polls; at the latest it wakes
//! after [`HEARTBEAT`], so that it knows how long it could not run (L1). One group is in flight at a time: while the
//! disk works, renewals go on and the next group is decided.
//!
//! ```text
//!   waiting ──► decided: gathering ──► in flight ──► settled: evolved, published, answered
//!      ▲             │                 (the store)        │
//!      └─ deferred ◄─┘ rests on what is being changed     └─► deferred ones wait again
//! ```
//!
//! Neither waits for the other: as soon as the disk is done it is given what has gathered, and only then the group before that
//! is settled. So what gathers is decided on a state that lacks the group in flight, and therefore may touch nothing
//! that this one touches, as two of one group may not.

mod alarm;
mod calm;
mod lanes;
mod settled;
mod told;

use std::{
    collections::{BTreeSet, VecDeque},
    future::pending,
    sync::Arc,
};

use tokio::{
    sync::{oneshot, watch},
    task::yield_now,
};
use tracing::{error, warn};

pub(super) use self::lanes::{Lanes, Pending, Request};
use self::{alarm::Alarm, calm::Calm};
use super::{
    Renew, StoreHealth, WriteError,
    group::{Group, Member, Part, named},
    lent::Lent,
};
use crate::{
    core::{Command, Core, LeaseId, Now, Proposal, Record, Renewal, Revision},
    hub::Hub,
    runtime::Runtime,
    store::{Store, StoreError},
};

/// The loop wakes this often at least, in milliseconds.
const HEARTBEAT: u64 = 250;
/// Instances that one revision of expiry removes at most, so that other writes come between.
pub(super) const EXPIRE_CHUNK: usize = 1_000;
/// Commands that are put off because of a conflict before a group is closed.
const MAX_DEFERRED: usize = 64;
/// Leases whose held instances are released in one group at most, so that other writes come between.
const MAX_RELEASES: usize = 512;
/// Commands taken out of the queue at most. The rest waits there, where it is counted.
const MAX_WAITING: usize = 2_048;

/// Records that a quick disk is given without waiting for more.
const ENOUGH: usize = 24;
/// A disk is quick if it took no longer than this for the last group, in milliseconds.
const QUICK: u64 = 1;
/// Turns that everything else has at most before a group goes to the store.
const MOST_TURNS: usize = 16;

type Appended = (Box<dyn Store>, Result<Vec<Revision>, StoreError>);

/// A group that the store is making durable.
struct InFlight {
    appended: oneshot::Receiver<Appended>,
    /// When the store was given it, in mono ms.
    since: u64,
    records: Arc<Vec<Record>>,
    members: Vec<Member>,
}

enum Woke {
    Renew(Renew),
    Appended(Result<Appended, oneshot::error::RecvError>),
    Command(Request),
    Deadline,
    Stopped,
    NothingLeft,
}

pub(super) struct Writer {
    /// Lent while it waits.
    core: Box<Core>,
    lent: Arc<Lent>,
    hub: Hub,
    /// `None` while it is in flight, or lost with a thread that panicked.
    store: Option<Box<dyn Store>>,
    runtime: Runtime,
    alarm: Alarm,
    calm: Calm,
    lanes: Lanes,
    health: watch::Sender<StoreHealth>,
    waiting: VecDeque<Pending>,
    /// Put off until the group in flight is settled. They go before those that wait.
    deferred: Vec<Pending>,
    /// The next group. Not empty only while one is in flight.
    gathering: Group,
    /// Leases that were renewed while instances of theirs were held. Each once, however often it renews.
    releasing: BTreeSet<LeaseId>,
    in_flight: Option<InFlight>,
    /// The disk was quick last time.
    quick: bool,
    failed: Option<Arc<str>>,
    /// Nothing falls due any more.
    suspended: bool,
}

impl Writer {
    pub(super) fn new(
        (core, lent): (Core, Arc<Lent>),
        hub: Hub,
        store: Box<dyn Store>,
        runtime: Runtime,
        lanes: Lanes,
        health: watch::Sender<StoreHealth>,
    ) -> Self {
        Self {
            core: Box::new(core),
            lent,
            hub,
            store: Some(store),
            runtime,
            alarm: Alarm::default(),
            calm: Calm::default(),
            lanes,
            health,
            waiting: VecDeque::new(),
            deferred: Vec::new(),
            gathering: Group::default(),
            releasing: BTreeSet::new(),
            in_flight: None,
            quick: false,
            failed: None,
            suspended: false,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let due = self.due();
            self.lent.lend(&mut self.core, due);
            let woke = self.wait(due).await;
            self.lent.take_back(&mut self.core);
            let now = self.runtime.now();
            let stall = self.core.wake(now, due);
            if stall > 0 {
                warn!(stall_ms = stall, "the server could not run; every lease lives that much longer");
            }
            match woke {
                Woke::Renew(renew) => self.renew(now, renew),
                Woke::Appended(appended) => {
                    self.finish(now, appended);
                    self.give_way().await;
                }
                Woke::Command(request) => self.take(now, request),
                Woke::Deadline => {}
                Woke::Stopped => self.lanes.close(),
                Woke::NothingLeft => return,
            }
            // What arrived meanwhile is taken before anything expires (L1); what arrives from now on has its turn later,
            // or writes would starve.
            let mut now = self.runtime.now();
            self.take_commands(now);
            // Where nothing is written nothing is handed over, and what can wait hears of it all the same.
            if let Some(store) = &mut self.store {
                self.calm.tell(now.mono, store.as_mut());
            }
            loop {
                self.renew_waiting(now);
                self.gather(now);
                if self.may_grow() {
                    self.let_grow().await;
                    now = self.runtime.now();
                }
                // With the disk at work there is time to decide what comes next.
                if !self.hand_over(now) {
                    break;
                }
                self.give_way().await;
                now = self.runtime.now();
                self.take_commands(now);
            }
        }
    }

    /// While much falls due there is always more to do here, and a runtime may leave whoever this thread woke to this thread:
    /// who was answered, and who writes, has a turn all the same.
    async fn give_way(&mut self) {
        let due = self.core.next_deadline().filter(|_| !self.suspended && self.failed.is_none());
        if due.is_some_and(|due| due <= self.runtime.mono()) {
            yield_now().await;
        }
    }

    fn take_commands(&mut self, now: Now) {
        while self.waiting.len() < MAX_WAITING
            && let Ok(request) = self.lanes.commands.try_recv()
        {
            self.take(now, request);
        }
    }

    fn renew_waiting(&mut self, now: Now) {
        for _ in 0..self.lanes.renewals.len() {
            let Ok(renew) = self.lanes.renewals.try_recv() else { break };
            self.renew(now, renew);
        }
    }

    /// Whether the store could be given a group now, and it would not matter if it was given it a moment later.
    fn may_grow(&self) -> bool {
        let idle = self.in_flight.is_none() && self.store.as_ref().is_some_and(|store| store.blocks());
        idle && !self.gathering.is_empty() && !self.gathering.has(Part::Due) && !self.is_enough()
    }

    /// Whether what has gathered need not grow. A slow disk is best given what everyone wants at once; with a quick one it is
    /// better if some go on while it works for the others.
    fn is_enough(&self) -> bool {
        self.gathering.is_full() || (self.quick && self.gathering.len() >= ENOUGH)
    }

    /// Lets everything that is ready to run have its turn, again and again while that brings commands: under load whoever writes is
    /// just about to, and a group costs what many writes do. Who writes alone waits for nothing.
    async fn let_grow(&mut self) {
        for _ in 0..MOST_TURNS {
            yield_now().await;
            if self.lanes.commands.is_empty() || self.is_enough() {
                return;
            }
            let now = self.runtime.now();
            self.take_commands(now);
            self.renew_waiting(now);
            self.gather(now);
        }
    }

    /// When to wake although nothing arrives. Counted from when the core was told the time last, and not from now: so whatever keeps
    /// the loop from its next turn shows, and what passed between the load and its first turn (L1).
    fn due(&self) -> u64 {
        let told = self.core.woke().unwrap_or_else(|| self.runtime.mono());
        let heartbeat = told.saturating_add(HEARTBEAT);
        // What falls due while a group is in flight goes into the next one; a failed store takes nothing any more.
        let idle = self.in_flight.is_none() && self.failed.is_none() && !self.suspended;
        self.core.next_deadline().filter(|_| idle).map_or(heartbeat, |deadline| deadline.min(heartbeat))
    }

    async fn wait(&mut self, due: u64) -> Woke {
        let Self { alarm, runtime, lanes, in_flight, waiting, .. } = self;
        let (room, busy) = (waiting.len() < MAX_WAITING, in_flight.is_some());
        let open = !lanes.commands.is_closed();
        let appended = async {
            match in_flight {
                Some(in_flight) => (&mut in_flight.appended).await,
                None => pending().await,
            }
        };
        // What happens seldom first, so that a flood of what follows cannot keep it out.
        tokio::select! {
            biased;
            _ = &mut lanes.stopped, if open => Woke::Stopped,
            appended = appended, if busy => Woke::Appended(appended),
            Some(renew) = lanes.renewals.recv() => Woke::Renew(renew),
            Some(request) = lanes.commands.recv(), if room => Woke::Command(request),
            () = alarm.rings(due, runtime), if open || busy => Woke::Deadline,
            else => Woke::NothingLeft,
        }
    }

    fn take(&mut self, now: Now, request: Request) {
        match request {
            Request::Inspect(read) => read(self.core.state(), now),
            Request::SuspendExpiry => self.suspended = true,
            Request::Write(pending) => match &self.failed {
                Some(why) => pending.answer(Err(WriteError::StoreFailed(Arc::clone(why)))),
                None => self.waiting.push_back(pending),
            },
        }
    }

    fn renew(&mut self, now: Now, renew: Renew) {
        let mut exceptions = Vec::new();
        for lease in renew.leases {
            match self.core.renew(now, &lease) {
                Renewal::RenewedHeld if self.failed.is_none() => {
                    self.releasing.insert(lease);
                }
                Renewal::Renewed | Renewal::RenewedHeld => {}
                exception => exceptions.push((lease, exception)),
            }
        }
        // Whoever asked may have gone; renewed stays renewed.
        let _ = renew.reply.send(exceptions);
    }

    /// Gives the store what has gathered, if it has nothing to do. False if nothing was given.
    fn hand_over(&mut self, now: Now) -> bool {
        if self.in_flight.is_some() || self.gathering.is_empty() {
            return false;
        }
        let Some(mut store) = self.store.take() else { return false };
        let (records, members) = self.gathering.hand_over();
        self.calm.note(records.iter().map(|record| record.events.len()).sum());
        self.calm.tell(now.mono, store.as_mut());
        if store.blocks() {
            let records = Arc::new(records);
            let lent = Arc::clone(&records);
            let appended = self.runtime.spawn_blocking(move || append(store, &lent));
            self.in_flight = Some(InFlight { appended, since: now.mono, records, members });
        } else {
            let (store, appended) = append(store, &records);
            self.store = Some(store);
            match named(appended, records.len()) {
                Ok(revisions) => self.settle(now, records, revisions, members),
                Err(failure) => self.fail(records, members, &failure),
            }
        }
        true
    }

    /// Decides what can be decided now for the next group: what is due, and what waits.
    fn gather(&mut self, now: Now) {
        if self.failed.is_some() {
            return;
        }
        let due = self.core.next_deadline().is_some_and(|deadline| deadline <= now.mono);
        if due && !self.suspended && !self.gathering.has(Part::Due) {
            if self.core.settings().guard && self.gathering.moves_the_guard() {
                // It goes first once that is settled, and nothing more comes before it.
                self.gathering.close();
            } else {
                self.gathering.note(Part::Due);
                self.gather_due(now);
            }
        }
        if !self.releasing.is_empty() && !self.gathering.has(Part::Released) {
            self.gathering.note(Part::Released);
            self.release(now);
        }
        while !self.gathering.is_full() && self.deferred.len() < MAX_DEFERRED {
            let Some(pending) = self.waiting.pop_front() else { break };
            let proposal = match self.core.decide(now, &pending.command) {
                Ok(proposal) => proposal,
                Err(rejection) => {
                    pending.answer(Err(WriteError::Rejected(rejection)));
                    continue;
                }
            };
            if self.gathering.conflicts(&proposal) {
                self.deferred.push(pending);
            } else if proposal.record.events.is_empty() {
                if let Command::Register { lease, .. } = &pending.command {
                    self.core.touch(now, lease);
                }
                let written = self.written(&pending.command, &proposal.record, None);
                pending.answer(Ok(written));
            } else {
                self.gathering.add(proposal, Some(pending));
            }
        }
        if self.in_flight.is_none() && self.gathering.is_empty() {
            self.gathering.settled();
        }
    }

    /// What is due goes into the next group, unless it rests on what is about to change.
    fn gather_due(&mut self, now: Now) {
        let Some(proposal) = self.core.tick(now, EXPIRE_CHUNK) else { return };
        if self.gathering.conflicts(&proposal) {
            self.core.abandon(&proposal);
            self.gathering.close();
        } else {
            self.gathering.add(proposal, None);
        }
    }

    /// Releases what is held of leases that were renewed.
    fn release(&mut self, now: Now) {
        let due: Vec<_> = self.releasing.iter().take(MAX_RELEASES).copied().collect();
        for lease in due {
            // Never refused; without events if it was done by other means meanwhile.
            let Ok(proposal) = self.core.decide(now, &Command::RenewHeld { lease }) else { continue };
            if self.gathering.conflicts(&proposal) {
                continue; // in the next group
            }
            self.releasing.remove(&lease);
            if !proposal.record.events.is_empty() {
                self.gathering.add(proposal, None);
            }
        }
    }

    fn finish(&mut self, now: Now, appended: Result<Appended, oneshot::error::RecvError>) {
        let Some(InFlight { since, records, members, .. }) = self.in_flight.take() else { return };
        self.quick = now.mono.saturating_sub(since) <= QUICK;
        // The store has given its share back, unless its thread is stuck or panicked.
        let records = Arc::unwrap_or_clone(records);
        let revisions = match appended {
            Ok((store, appended)) => {
                self.store = Some(store);
                named(appended, records.len())
            }
            Err(_) => Err("its thread panicked, or ended with the runtime".to_owned()),
        };
        match revisions {
            Ok(revisions) => {
                // First of all, so that the disk need not wait for what follows; writes rather wait for others like them.
                if !self.may_grow() {
                    self.hand_over(now);
                }
                self.settle(now, records, revisions, members);
            }
            Err(failure) => self.fail(records, members, &failure),
        }
    }

    fn fail(&mut self, records: Vec<Record>, members: Vec<Member>, failure: &str) {
        error!(failure, "the store failed: writes are refused until the server is restarted; reads go on");
        let why: Arc<str> = failure.into();
        self.failed = Some(Arc::clone(&why));
        self.health.send_replace(StoreHealth::Failed(Arc::clone(&why)));
        let (next_records, next_members) = self.gathering.hand_over();
        let members = members.into_iter().chain(next_members);
        for (Member { touches, pending }, record) in members.zip(records.into_iter().chain(next_records)) {
            self.core.abandon(&Proposal { record, touches });
            if let Some(pending) = pending {
                pending.answer(Err(WriteError::StoreFailed(Arc::clone(&why))));
            }
        }
        self.releasing.clear();
        for pending in self.deferred.drain(..).chain(self.waiting.drain(..)) {
            pending.answer(Err(WriteError::StoreFailed(Arc::clone(&why))));
        }
    }
}

fn append(mut store: Box<dyn Store>, records: &[Record]) -> Appended {
    let appended = store.append(records);
    (store, appended)
}

#[cfg(test)]
mod tests;
