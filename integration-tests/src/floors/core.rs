//! The first floor: the rules and what is published, alone, without a loop, a clock or a runtime.
//!
//! ```text
//!   Draw ──commands, renewals──► decide ─► group in flight ─► commit ─► evolve ─► Hub ──► Streams, Readers
//!   seed ──time, stalls, crashes─┘              └─ lost or kept by a crash ─► replay from a base and the records since
//! ```
//!
//! What the loop does between these is done here as the design says it, one thing after the other.

use std::collections::{BTreeSet, HashSet};

use registry_server::{
    core::{Command, Committed, Core, Now, Proposal, Renewal, Settings, State, Touched},
    hub::{Hub, HubSettings, LogLimits},
};

use super::{
    Floor,
    draw::{BATCHES, Batch, Draw, Drawn, SERVICES, lease_id},
    recording::Recording,
    watching::{Read, Reader, Stream},
    witness::WALL,
};
use crate::history::{Answer, Ask, Lease, Millis, Rules, Stall};

/// Things that happen in one run.
const STEPS: usize = 160;
/// How long a group is in flight at most.
const FLIGHT: Millis = 40;
/// Several groups may be in flight, one after the other, before what is due is committed.
const LATE: Millis = 10 * FLIGHT;
const STREAMS: usize = 4;

/// Plays a seed.
pub(super) fn play(seed: u64) -> Floor {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.conclude()
}

struct World {
    draw: Draw,
    core: Core,
    hub: Hub,
    settings: Settings,
    hub_settings: HubSettings,
    now: Millis,
    /// When it last looked what time it is.
    woke: Millis,
    log: Vec<Committed>,
    revision: u64,
    epochs: u32,
    /// Every crash loses everything.
    volatile: bool,
    /// Leases renewed while held.
    releasing: BTreeSet<Lease>,
    streams: Vec<Stream>,
    batches: Vec<Batch>,
    recording: Recording,
}

/// What is to be answered when its proposal is committed; nobody if it is the registry's own.
type Member = (Proposal, Option<u64>);

impl World {
    fn new(seed: u64) -> Self {
        let mut draw = Draw::new(seed);
        let hold = [2_000, 8_000, 300_000][draw.rng.usize(..3)];
        let mut settings = Settings { hold_time: hold, ..Settings::default() };
        if draw.one_in(8) {
            settings.remembered_services = 1;
        }
        let count = [3, 10, 40, 10_000][draw.rng.usize(..4)];
        let bytes = if draw.one_in(4) { 4_000 } else { 64 << 20 };
        let log = LogLimits { count, bytes, age: std::time::Duration::MAX };
        let hub_settings =
            HubSettings { log, remembered_services: settings.remembered_services, ..HubSettings::default() };
        let rules = Rules {
            renewal: Some(0),
            expiry: Some(LATE),
            hold: Some(hold),
            log: Some((count, bytes)),
            forgets: settings.remembered_services == 1,
        };
        let volatile = draw.one_in(10);
        let mut recording = Recording::new("e1", &settings, rules);
        let streams = (0..STREAMS).map(|n| Stream::draw(n, &mut draw.rng, &recording.recorder)).collect();
        let now = 10_000;
        let hub = Hub::new("e1", &State::default(), WALL + now, hub_settings.clone());
        let mut core = Core::new(settings.clone());
        core.wake(Now { mono: now, wall: WALL + now }, u64::MAX);
        recording.began("e1", now, 0, Vec::new());
        Self {
            draw,
            core,
            hub,
            settings,
            hub_settings,
            now,
            woke: now,
            log: Vec::new(),
            revision: 0,
            epochs: 1,
            volatile,
            releasing: BTreeSet::new(),
            streams,
            batches: Draw::batches(),
            recording,
        }
    }

    fn time(&self) -> Now {
        Now { mono: self.now, wall: WALL + self.now }
    }

    fn step(&mut self) {
        match self.draw.rng.u8(..100) {
            0..34 => {
                let mut written = BTreeSet::new();
                let commands =
                    (0..=self.draw.rng.usize(..3)).filter_map(|_| self.command(&mut written)).collect();
                self.group(commands);
            }
            34..54 => self.renew_some(),
            54..68 => {
                let ms = self.draw.rng.u64(1..1_500);
                self.advance(ms);
            }
            68..70 => self.stall(),
            70..71 => self.crash(None),
            71..75 => self.read(),
            75..80 => self.turn(),
            _ => self.follow(),
        }
        if self.draw.one_in(20) {
            self.recording.gauge(&self.hub, &self.streams);
        }
    }

    /// One more command of those that are asked together. A batch's writer waits for an answer before it writes it again: none
    /// if the batch that was drawn is `written` among them.
    fn command(&mut self, written: &mut BTreeSet<usize>) -> Option<Drawn> {
        if !self.volatile && self.draw.one_in(4) {
            let batch = self.draw.rng.usize(..self.batches.len());
            let first = written.insert(batch);
            let batch = &self.batches[batch].clone();
            let (drawn, action) = self.draw.write(batch);
            if first {
                self.recording.writes(&drawn, batch, action);
            }
            return first.then_some(drawn);
        }
        let state = self.core.state();
        let known = |name: &crate::history::Name| {
            let there = state.instance(&super::draw::key(&name.0), &name.1);
            there.map_or(0, |instance| instance.create_revision)
        };
        Some(self.draw.command(&known))
    }

    /// Decides what is due and the commands, and commits it as one group, now or a little later.
    fn group(&mut self, mut commands: Vec<Drawn>) {
        while let Some(members) = self.decide(&mut commands) {
            if self.draw.one_in(4) {
                self.now += self.draw.rng.u64(1..=FLIGHT);
                self.wake(self.now);
                self.renew_some();
            }
            if !commands.is_empty() && self.draw.one_in(60) {
                return self.crash(Some(members));
            }
            self.commit(members);
        }
    }

    /// A group of proposals that rest on different things; what conflicts stays in `commands`.
    fn decide(&mut self, commands: &mut Vec<Drawn>) -> Option<Vec<Member>> {
        let mut members: Vec<Member> = Vec::new();
        let mut touched: HashSet<Touched> = HashSet::new();
        let (now, most) = (self.time(), [1, 3, 1_000][self.draw.rng.usize(..3)]);
        if let Some(proposal) = self.core.tick(now, most) {
            touched.extend(proposal.touches.iter().cloned());
            members.push((proposal, None));
        }
        let conflicts = |touched: &HashSet<Touched>, proposal: &Proposal| {
            proposal.touches.iter().any(|it| touched.contains(it))
        };
        for lease in std::mem::take(&mut self.releasing) {
            let command = Command::RenewHeld { lease: lease_id(lease) };
            let Ok(proposal) = self.core.decide(now, &command) else { continue };
            if conflicts(&touched, &proposal) {
                self.releasing.insert(lease);
            } else if !proposal.record.events.is_empty() {
                touched.extend(proposal.touches.iter().cloned());
                members.push((proposal, None));
            }
        }
        for drawn in std::mem::take(commands) {
            // Asked when the registry first sees it; what is put off keeps its place.
            self.recording.asked(drawn.number, drawn.ask.clone(), self.now);
            let Ok(proposal) = self.core.decide(now, &drawn.command) else {
                self.recording.answered(drawn.number, self.now, Answer::Refused, &[]);
                continue;
            };
            if conflicts(&touched, &proposal) {
                commands.push(drawn);
            } else if proposal.record.events.is_empty() {
                if let Command::Register { lease, .. } = &drawn.command {
                    self.core.touch(now, lease);
                }
                self.done(drawn.number);
            } else {
                touched.extend(proposal.touches.iter().cloned());
                members.push((proposal, Some(drawn.number)));
            }
        }
        (!members.is_empty()).then_some(members)
    }

    /// Makes a group durable; the registry comes to know it if it `lives`.
    fn name_revisions(&mut self, members: &[Member], lives: bool) -> Vec<Committed> {
        let mut committed = Vec::new();
        for (proposal, _) in members {
            self.revision += self.draw.rng.u64(1..4);
            committed.push(Committed { revision: self.revision, record: proposal.record.clone() });
        }
        for it in &committed {
            if lives {
                self.recording.committed(it, self.now);
            } else {
                self.recording.survived(it, self.now);
            }
        }
        self.log.extend(committed.iter().cloned());
        committed
    }

    fn commit(&mut self, members: Vec<Member>) {
        let committed = self.name_revisions(&members, true);
        let now = self.time();
        let changes: Vec<_> = committed.iter().flat_map(|it| self.core.evolve(now, it)).collect();
        self.hub.publish(&changes, self.core.state().revision());
        for number in members.into_iter().filter_map(|(_, number)| number) {
            self.done(number);
        }
    }

    fn done(&mut self, number: u64) {
        let state = self.core.state();
        let incarnations = |name: &crate::history::Name| {
            state.instance(&super::draw::key(&name.0), &name.1).map_or(0, |it| it.create_revision)
        };
        let named: Vec<u64> = self.recording.registers(number).iter().map(incarnations).collect();
        self.recording.answered(number, self.now, Answer::Done(state.revision()), &named);
    }

    fn renew_some(&mut self) {
        for _ in 0..self.draw.rng.usize(1..4) {
            let lease = self.draw.lease();
            self.renew(lease);
        }
    }

    fn renew(&mut self, lease: Lease) {
        let number = self.draw.number();
        self.recording.asked(number, Ask::Renew(lease), self.now);
        let renewal = self.core.renew(self.time(), &lease_id(lease));
        let answer = match renewal {
            Renewal::Renewed | Renewal::Partial(_) => Answer::Renewed,
            Renewal::RenewedHeld => {
                self.releasing.insert(lease);
                Answer::Renewed
            }
            Renewal::Superseded | Renewal::Unknown => Answer::Exception(format!("{renewal:?}")),
        };
        self.recording.answered(number, self.now, answer, &[]);
    }

    fn wake(&mut self, due: Millis) {
        let from = std::mem::replace(&mut self.woke, self.now);
        if self.core.wake(self.time(), due) > 0 {
            self.recording.stalls.push(Stall { from, until: self.now });
        }
    }

    /// Sleeps from deadline to deadline, as the loop does.
    fn advance(&mut self, ms: Millis) {
        let target = self.now + ms;
        self.group(Vec::new());
        while let Some(due) = self.core.next_deadline().filter(|due| *due <= target) {
            self.now = due.max(self.now);
            self.wake(due);
            self.group(Vec::new());
        }
        self.now = target.max(self.now);
        self.wake(self.now);
        self.group(Vec::new());
    }

    /// The loop wakes far too late.
    fn stall(&mut self) {
        let due = self.core.next_deadline().unwrap_or(self.now).clamp(self.now, self.now + 250);
        self.now = due + 501 + self.draw.rng.u64(..5_000);
        self.wake(due);
        if self.draw.rng.bool() {
            self.renew_some();
        }
        self.group(Vec::new());
    }

    /// The process ends, with a group in flight or without, and another takes up what is durable.
    fn crash(&mut self, in_flight: Option<Vec<Member>>) {
        if let Some(members) = in_flight
            && self.draw.rng.bool()
        {
            self.name_revisions(&members, false);
        }
        for stream in &mut self.streams {
            stream.close();
        }
        self.releasing.clear();
        self.now += self.draw.rng.u64(..6_000);
        if self.volatile {
            self.log.clear();
            self.revision = 0;
            self.epochs += 1;
            self.recording.begin_anew(&format!("e{}", self.epochs), &self.settings);
        }
        let epoch = format!("e{}", self.epochs);
        let cut = if self.draw.rng.bool() { 0 } else { self.draw.rng.usize(..=self.log.len()) };
        let mut base = State::default().with_remembered(self.settings.remembered_services);
        for committed in &self.log[..cut] {
            base.evolve(committed);
        }
        // As a server starts: through plain data, then record by record.
        let mut state = State::from_base(base.to_base()).with_remembered(self.settings.remembered_services);
        self.hub = Hub::new(&epoch, &state, WALL + self.now, self.hub_settings.clone());
        for committed in &self.log[cut..] {
            self.hub.publish(&state.evolve(committed), committed.revision);
        }
        let found = self.log[cut..].iter().map(|committed| committed.revision).collect();
        self.recording.began(&epoch, self.now, base.revision(), found);
        self.core = Core::take_up(self.settings.clone(), state, self.time());
        self.woke = self.now;
    }

    fn read(&mut self) {
        let services = [SERVICES[0], SERVICES[1], BATCHES];
        let service = services[self.draw.rng.usize(..services.len())];
        let recorder = self.recording.recorder.clone();
        let mut reader = Reader::new(service, &self.hub, self.recording.run(), &recorder);
        loop {
            match reader.page(&self.hub, &recorder) {
                Ok(None) => {}
                Ok(Some(reading)) => return self.recording.readings.push(reading),
                Err(()) => return,
            }
            // What happens between two pages does not show in the second one.
            if self.draw.rng.bool() {
                let commands = self.command(&mut BTreeSet::new()).into_iter().collect();
                self.group(commands);
            }
        }
    }

    /// A stream is opened, closed or opened anew.
    fn turn(&mut self) {
        let stream = self.draw.rng.usize(..self.streams.len());
        if self.draw.one_in(3) {
            return self.streams[stream].close();
        }
        let forced = self.draw.one_in(6);
        self.streams[stream].open(&self.hub, self.recording.run(), forced);
    }

    /// A stream reads: the first ones mostly, the last one hardly ever.
    fn follow(&mut self) {
        let most = self.streams.len();
        let stream = self.draw.rng.usize(..most).min(self.draw.rng.usize(..most));
        let messages = self.draw.rng.usize(1..6);
        if self.streams[stream].read(messages) == Read::Closed {
            self.streams[stream].open(&self.hub, self.recording.run(), false);
        }
    }

    fn conclude(mut self) -> Floor {
        self.advance(200);
        for stream in &mut self.streams {
            if stream.read(0) == Read::Closed {
                stream.open(&self.hub, self.recording.run(), false);
            }
            while stream.read(1_000) == Read::More {}
        }
        for service in [SERVICES[0], SERVICES[1], BATCHES] {
            let recorder = self.recording.recorder.clone();
            let mut reader = Reader::new(service, &self.hub, self.recording.run(), &recorder);
            while let Ok(page) = reader.page(&self.hub, &recorder) {
                self.recording.readings.extend(page);
            }
        }
        self.recording.conclude(self.streams)
    }
}
