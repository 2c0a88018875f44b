//! A history in the making: what a floor asks, is answered and sees, put down as it happens.

use std::{collections::HashMap, sync::Arc};

use registry_server::{
    core::{Committed, Settings},
    hub::{Hub, Kept},
};

use super::{
    Floor,
    draw::{BATCHES, Batch, Drawn},
    watching::Stream,
    witness::Witness,
};
use crate::history::{
    Action, Answer, Ask, Asked, Gauge, History, Millis, Name, Outcome, Reading, Recorder, Rules, Run, Stall,
    Write,
};

/// What is put down.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) recorder: Recorder,
    pub(super) readings: Vec<Reading>,
    pub(super) stalls: Vec<Stall>,
    witness: Witness,
    asked: Vec<Asked>,
    /// Where each number is in `asked`.
    places: HashMap<u64, usize>,
    /// Writes of batches, and where each number is.
    writes: Vec<Write>,
    written: HashMap<u64, usize>,
    runs: Vec<Run>,
    gauges: Vec<Gauge>,
    rules: Rules,
}

impl Recording {
    pub(super) fn new(epoch: &str, settings: &Settings, rules: Rules) -> Self {
        let recorder = Recorder::default();
        Self {
            witness: Witness::new(epoch, settings, &recorder),
            recorder,
            readings: Vec::new(),
            stalls: Vec::new(),
            asked: Vec::new(),
            places: HashMap::new(),
            writes: Vec::new(),
            written: HashMap::new(),
            runs: Vec::new(),
            gauges: Vec::new(),
            rules,
        }
    }

    /// The number of the run that goes on.
    pub(super) fn run(&self) -> u32 {
        self.runs.last().map_or(0, |run| run.number)
    }

    /// The run that goes on.
    pub(super) fn run_mut(&mut self) -> &mut Run {
        self.runs.last_mut().expect("a run began")
    }

    /// A run begins.
    pub(super) fn began(&mut self, epoch: &str, at: Millis, base: u64, found: Vec<u64>) {
        let number = self.run() + 1;
        let began = (self.recorder.stamp(), at);
        self.runs.push(Run { number, epoch: epoch.into(), began, base, found, ..Run::default() });
    }

    /// All is lost.
    pub(super) fn begin_anew(&mut self, epoch: &str, settings: &Settings) {
        self.witness.begin_anew(epoch, settings);
    }

    /// Something is asked. Again: it is put off, and keeps its place.
    pub(super) fn asked(&mut self, number: u64, ask: Ask, at: Millis) {
        if self.places.contains_key(&number) {
            return;
        }
        self.places.insert(number, self.asked.len());
        let (run, sent) = (self.run(), (self.recorder.stamp(), at));
        if let Some(write) = self.written.get(&number) {
            self.writes[*write].started = sent.0;
        }
        self.asked.push(Asked { number, ask, run, sent, answer: None });
    }

    /// What is asked is the write of a batch.
    pub(super) fn writes(&mut self, drawn: &Drawn, batch: &Batch, action: Action) {
        self.written.insert(drawn.number, self.writes.len());
        self.writes.push(Write {
            view: BATCHES.into(),
            members: Arc::clone(&batch.members),
            action,
            started: self.recorder.stamp(),
            outcome: Outcome::Unknown,
        });
    }

    /// The instances that a registration names.
    pub(super) fn registers(&self, number: u64) -> Vec<Name> {
        match self.places.get(&number).map(|at| &self.asked[*at].ask) {
            Some(Ask::Register { names, .. }) => names.clone(),
            _ => Vec::new(),
        }
    }

    /// The answer is there.
    pub(super) fn answered(&mut self, number: u64, at: Millis, answer: Answer, incarnations: &[u64]) {
        let stamp = self.recorder.stamp();
        let asked = &mut self.asked[self.places[&number]];
        if let Some(write) = self.written.get(&number) {
            self.writes[*write].outcome = match &answer {
                Answer::Done(revision) => Outcome::Acked {
                    at: stamp,
                    run: asked.run,
                    revision: *revision,
                    incarnations: incarnations.to_vec(),
                },
                Answer::Refused => Outcome::Refused,
                _ => Outcome::Unknown,
            };
        }
        asked.answer = Some((stamp, at, answer));
    }

    /// A record is durable.
    pub(super) fn committed(&mut self, committed: &Committed, at: Millis) {
        let run = self.run();
        self.witness.saw(committed, run, at);
    }

    /// A record that nobody was answered for turns out to be durable.
    pub(super) fn survived(&mut self, committed: &Committed, at: Millis) {
        self.witness.saw(committed, 0, at);
    }

    /// The revision of the last commit.
    pub(super) fn newest(&self) -> u64 {
        self.witness.commits.last().map_or(0, |commit| commit.revision)
    }

    /// The incarnations that there are.
    pub(super) fn incarnations(&self) -> HashMap<Name, u64> {
        let services = self.witness.state().services_after(None);
        let named = services.flat_map(|(key, service)| {
            service.instances.values().map(|it| ((key.service.clone(), it.id.clone()), it.create_revision))
        });
        named.collect()
    }

    /// What the hub keeps just now.
    pub(super) fn gauge(&mut self, hub: &Hub, streams: &[Stream]) {
        let Kept { watchers, views, log_entries, log_bytes, indexed, snapshots, deltas } = hub.kept();
        let marks = streams.iter().map(|stream| stream.marks().0).sum();
        self.gauges.push(Gauge {
            watchers,
            views,
            log_entries,
            log_bytes,
            indexed,
            snapshots,
            deltas,
            marks,
        });
    }

    /// All that was put down.
    pub(super) fn conclude(self, mut streams: Vec<Stream>) -> Floor {
        let broken = streams.iter_mut().flat_map(|stream| std::mem::take(&mut stream.broken)).collect();
        let watchers = streams.into_iter().flat_map(Stream::into_records).collect();
        let history = History {
            watchers,
            writes: self.writes,
            readings: self.readings,
            asked: self.asked,
            commits: self.witness.commits,
            runs: self.runs,
            stalls: self.stalls,
            gauges: self.gauges,
            rules: self.rules,
            ..History::default()
        };
        Floor { history, broken }
    }
}
