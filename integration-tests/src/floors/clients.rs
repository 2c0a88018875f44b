//! Those who use a registry, over and over, and put down what came of it: writers, registrants, watchers, readers.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use registry_server::{
    core::Renewal,
    registry::{Registry, WriteError},
    runtime::Clock,
};
use tokio::time::sleep;

use super::{
    draw::{BATCHES, Batch, Draw, Drawn, LEASES, SERVICES, lease_id},
    process::{JumpingClock, lock},
    recording::Recording,
    watching::{Read, Reader, Stream},
};
use crate::history::{Answer, Ask, Millis, Name};

/// What all tasks of a run share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) clock: JumpingClock,
    pub(super) draw: Arc<Mutex<Draw>>,
    pub(super) recording: Arc<Mutex<Recording>>,
    pub(super) streams: Arc<Mutex<Vec<Stream>>>,
}

impl Shared {
    pub(super) fn now(&self) -> Millis {
        self.clock.now().mono
    }

    pub(super) fn draw(&self) -> MutexGuard<'_, Draw> {
        lock(&self.draw)
    }

    pub(super) fn recording(&self) -> MutexGuard<'_, Recording> {
        lock(&self.recording)
    }

    /// For as long as it is drawn, in milliseconds.
    pub(super) async fn pause(&self, below: Millis) {
        let ms = self.draw().rng.u64(0..below);
        sleep(Duration::from_millis(ms)).await;
    }
}

/// Someone who uses the registry, over and over.
pub(super) struct Client {
    pub(super) shared: Shared,
    pub(super) registry: Registry,
    /// How long registrants pause at most, in milliseconds.
    pub(super) pace: Millis,
}

impl Client {
    pub(super) async fn write(self) {
        loop {
            self.shared.pause(800).await;
            let drawn = {
                let incarnations = self.shared.recording().incarnations();
                let known = |name: &Name| incarnations.get(name).copied().unwrap_or(0);
                self.shared.draw().command(&known)
            };
            self.ask(drawn).await;
        }
    }

    pub(super) async fn write_batches(self, batches: Vec<Batch>) {
        loop {
            self.shared.pause(1_500).await;
            let (drawn, batch, action) = {
                let mut draw = self.shared.draw();
                let batch = batches[draw.rng.usize(..batches.len())].clone();
                let (drawn, action) = draw.write(&batch);
                (drawn, batch, action)
            };
            self.shared.recording().writes(&drawn, &batch, action);
            self.ask(drawn).await;
        }
    }

    async fn ask(&self, drawn: Drawn) {
        let Drawn { number, ask, command } = drawn;
        self.shared.recording().asked(number, ask, self.shared.now());
        let written = self.registry.write(command).await;
        let (answer, incarnations) = match written {
            Ok(written) => (Answer::Done(written.revision), written.incarnations),
            Err(WriteError::Rejected(_)) => (Answer::Refused, vec![]),
            Err(WriteError::StoreFailed(_)) => (Answer::StoreFailed, vec![]),
            Err(WriteError::QueueFull | WriteError::ShuttingDown) => (Answer::Stopped, vec![]),
        };
        self.shared.recording().answered(number, self.shared.now(), answer, &incarnations);
    }

    /// Renews some leases in one message, each of which has an answer of its own.
    pub(super) async fn renew(self) {
        let renewer = self.registry.renewer();
        loop {
            self.shared.pause(self.pace).await;
            let leases: Vec<_> = {
                let mut draw = self.shared.draw();
                let leases = (0..LEASES).filter(|_| draw.rng.bool()).collect::<Vec<_>>();
                leases.into_iter().map(|lease| (draw.number(), lease)).collect()
            };
            for (number, lease) in &leases {
                self.shared.recording().asked(*number, Ask::Renew(*lease), self.shared.now());
            }
            let ids = leases.iter().map(|(_, lease)| lease_id(*lease)).collect();
            let renewed = renewer.renew(ids).await;
            let mut recording = self.shared.recording();
            for (number, lease) in leases {
                let answer = match &renewed {
                    Err(_) => Answer::Stopped,
                    Ok(exceptions) => {
                        let exception = exceptions.iter().find(|(id, _)| *id == lease_id(lease));
                        match exception.map(|(_, renewal)| renewal) {
                            None | Some(Renewal::Partial(_)) => Answer::Renewed,
                            Some(exception) => Answer::Exception(format!("{exception:?}")),
                        }
                    }
                };
                recording.answered(number, self.shared.now(), answer, &[]);
            }
        }
    }

    /// Follows, the higher the number the more slowly.
    pub(super) async fn watch(self, number: usize) {
        loop {
            self.shared.pause(100 + 900 * number as Millis).await;
            let (messages, close, forced) = {
                let mut draw = self.shared.draw();
                (draw.rng.usize(1..8), draw.one_in(12), draw.one_in(40))
            };
            let run = self.shared.recording().run();
            let mut streams = lock(&self.shared.streams);
            if close {
                streams[number].close();
            } else if forced || streams[number].read(messages) == Read::Closed {
                streams[number].open(self.registry.hub(), run, forced);
            }
            if number == 0 {
                self.shared.recording().gauge(self.registry.hub(), &streams);
            }
        }
    }

    pub(super) async fn read(self) {
        let services = [SERVICES[0], SERVICES[1], BATCHES];
        loop {
            self.shared.pause(1_500).await;
            let service = services[self.shared.draw().rng.usize(..services.len())];
            let (recorder, run) = {
                let recording = self.shared.recording();
                (recording.recorder.clone(), recording.run())
            };
            let mut reader = Reader::new(service, self.registry.hub(), run, &recorder);
            while let Ok(page) = reader.page(self.registry.hub(), &recorder) {
                if let Some(reading) = page {
                    self.shared.recording().readings.push(reading);
                    break;
                }
                self.shared.pause(20).await;
            }
        }
    }
}
