//! The second floor: the writer's loop on simulated time, over the embedded store, on a disk that is slow, fails and
//! tears; with writers, registrants, watchers and readers beside each other.
//!
//! ```text
//!   writers, registrants ──► Registry ── group ──► after as long as the disk takes ──► Watched(EmbeddedStore) ──► BadDisk
//!   streams, readers ◄────── Hub ◄── publish ◄─────────┘                                     └─ commits, failures
//!   life: start ─► faults, stalls ─► stop │ kill │ power loss ─► the next life, on what the disk has then
//! ```

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use registry_server::{
    core::{Base, Committed, Record, Revision, Settings, State},
    hub::{HubSettings, LogLimits},
    registry::{Registry, StoreHealth, WriterTask},
    runtime::{Runtime, SimulatedClock},
    store::{EmbeddedOptions, EmbeddedStore, Loaded, Store, StoreError},
};
use tokio::task::JoinSet;

use super::{
    Floor,
    clients::{Client, Shared},
    disk::BadDisk,
    draw::{BATCHES, Draw, SERVICES},
    process::{JumpingClock, Process, lock},
    recording::Recording,
    watching::{Read, Reader, Stream},
    witness::WALL,
};
use crate::history::{Rules, Stall};

/// Lives of the server in one run.
const LIVES: usize = 4;
const WRITERS: usize = 3;
const REGISTRANTS: usize = 3;
const STREAMS: usize = 4;

/// Plays a seed.
pub(super) fn play(seed: u64) -> Floor {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without a network needs nothing");
    runtime.block_on(async {
        let mut world = World::new(seed);
        for life in 0..LIVES {
            world.live(life + 1 == LIVES).await;
        }
        world.conclude()
    })
}

/// The embedded store, and who looks on.
struct Watched {
    inner: EmbeddedStore,
    shared: Shared,
}

impl Store for Watched {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let loaded = self.inner.load()?;
        let now = self.shared.now();
        let mut recording = self.shared.recording();
        // What nobody was answered for, and is there.
        let newest = recording.newest();
        for committed in loaded.tail.iter().filter(|it| it.revision > newest) {
            recording.survived(committed, committed.record.wall.saturating_sub(WALL));
        }
        let found = loaded.tail.iter().map(|committed| committed.revision).collect();
        recording.began(&loaded.epoch, now, loaded.base.revision, found);
        Ok(loaded)
    }

    fn append(&mut self, group: &[Record]) -> Result<Vec<Revision>, StoreError> {
        let appended = self.inner.append(group);
        let now = self.shared.now();
        let mut recording = self.shared.recording();
        if recording.run_mut().failed.is_some() {
            recording.run_mut().asked_after_failure += 1;
        }
        if let Ok(revisions) = &appended {
            for (revision, record) in revisions.iter().zip(group) {
                recording.committed(&Committed { revision: *revision, record: record.clone() }, now);
            }
        } else {
            let stamp = recording.recorder.stamp();
            recording.run_mut().failed.get_or_insert((stamp, now));
        }
        appended
    }

    fn set_busy(&mut self, busy: bool) {
        self.inner.set_busy(busy);
    }

    fn blocks(&self) -> bool {
        true
    }
}

struct World {
    shared: Shared,
    process: Process,
    disk: BadDisk,
    settings: Settings,
    hub_settings: HubSettings,
    new_epoch: u128,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut draw = Draw::new(seed ^ 0xB0A7);
        let slowest = [0, 5, 60, 400][draw.rng.usize(..4)];
        let hold = [2_000, 8_000, 300_000][draw.rng.usize(..3)];
        let settings = Settings { hold_time: hold, ..Settings::default() };
        let count = [5, 40, 10_000][draw.rng.usize(..3)];
        let log = LogLimits { count, bytes: 64 << 20, age: Duration::MAX };
        let rules = Rules {
            renewal: Some(0),
            // A group is in flight, and then what is due goes one cause after the other.
            expiry: Some(100 + 6 * slowest),
            hold: Some(hold),
            log: Some((count, 64 << 20)),
            forgets: false,
        };
        let new_epoch = u128::from(seed);
        let recording = Recording::new(&format!("{new_epoch:032x}"), &settings, rules);
        let streams = (0..STREAMS).map(|n| Stream::draw(n, &mut draw.rng, &recording.recorder)).collect();
        let process = Process {
            tasks: Arc::default(),
            rng: Arc::new(Mutex::new(fastrand::Rng::with_seed(draw.rng.u64(..)))),
            slowest,
        };
        let inner = Arc::new(SimulatedClock::starting_at(WALL));
        Self {
            shared: Shared {
                clock: JumpingClock { inner, jumped: Arc::default() },
                draw: Arc::new(Mutex::new(draw)),
                recording: Arc::new(Mutex::new(recording)),
                streams: Arc::new(Mutex::new(streams)),
            },
            process,
            disk: BadDisk::default(),
            settings,
            hub_settings: HubSettings { log, ..HubSettings::default() },
            new_epoch,
        }
    }

    /// From start to end of one process, and what it leaves behind.
    async fn live(&mut self, last: bool) {
        // A fault that was drawn for the life before is its own.
        self.disk = self.disk.after_kill();
        if !last && self.shared.draw().one_in(2) {
            self.disk.fail_after(self.shared.draw().rng.usize(..60));
        }
        let (registry, writer) = self.start();
        let mut clients = self.clients(&registry);
        let (mut faults, lives) = {
            let mut draw = self.shared.draw();
            (draw.rng.usize(..3), draw.rng.u64(1_000..12_000))
        };
        let ends = self.shared.now() + lives;
        while self.shared.now() < ends {
            self.shared.pause(2_000).await;
            if faults > 0 {
                faults -= 1;
                self.stall();
            }
        }
        let health = registry.health();
        // Whoever waits for an answer is not heard of again.
        let end = if last { 0 } else { self.shared.draw().rng.u8(..3) };
        if end == 0 {
            clients.abort_all();
            while clients.join_next().await.is_some() {}
            self.observe(&registry);
            writer.stop().await;
        } else {
            self.disk = match end {
                1 => self.disk.after_kill(),
                _ => self.disk.after_power_loss(&mut self.shared.draw().rng),
            };
            self.process.end();
            clients.abort_all();
            while clients.join_next().await.is_some() {}
        }
        let failed = matches!(*health.borrow(), StoreHealth::Failed(_));
        self.shared.recording().run_mut().said_failed = failed;
        for stream in lock(&self.shared.streams).iter_mut() {
            stream.close();
        }
        drop(registry);
        // What holds the old disk ends before another takes it up.
        self.process.end();
        self.shared.pause(3_000).await;
    }

    fn start(&mut self) -> (Registry, WriterTask) {
        let remembered = self.settings.remembered_services;
        let fold = move |base: Base, records: &mut dyn Iterator<Item = Committed>| {
            let mut state = State::from_base(base).with_remembered(remembered);
            for committed in records {
                state.evolve(&committed);
            }
            state.to_base()
        };
        let options =
            EmbeddedOptions { grow_bytes: 4_096, ..EmbeddedOptions::new(Arc::new(fold), self.new_epoch) };
        let open = || EmbeddedStore::open_on(Arc::new(self.disk.clone()), options.clone());
        // If the disk fails at this very moment, somebody starts it again.
        let inner = open().or_else(|_| open()).expect("it recovers");
        // Its compactor has a thread of its own: what it does must not come between other operations by chance.
        inner.settle();
        let store = Watched { inner, shared: self.shared.clone() };
        let runtime = Runtime::new(self.shared.clock.clone(), self.process.clone(), 1);
        let started =
            Registry::start(Box::new(store), self.settings.clone(), self.hub_settings.clone(), &runtime);
        let (registry, _, writer) = started.expect("it loads");
        (registry, writer)
    }

    /// The process is stopped, and goes on.
    fn stall(&self) {
        let from = self.shared.now();
        let slept = self.shared.draw().rng.u64(1_000..10_000);
        self.shared.clock.jumped.fetch_add(slept, Ordering::Relaxed);
        self.shared.recording().stalls.push(Stall { from, until: from + slept });
    }

    fn clients(&self, registry: &Registry) -> JoinSet<()> {
        let mut clients = JoinSet::new();
        let pace = [900, 3_000, 12_000][self.shared.draw().rng.usize(..3)];
        let each = || Client { shared: self.shared.clone(), registry: registry.clone(), pace };
        for _ in 0..WRITERS {
            clients.spawn(each().write());
        }
        for batches in Draw::batches().chunks(2) {
            clients.spawn(each().write_batches(batches.to_vec()));
        }
        for _ in 0..REGISTRANTS {
            clients.spawn(each().renew());
        }
        for stream in 0..STREAMS {
            clients.spawn(each().watch(stream));
        }
        clients.spawn(each().read());
        clients
    }

    /// Everyone reads to the end.
    fn observe(&self, registry: &Registry) {
        let (hub, run) = (registry.hub(), self.shared.recording().run());
        for stream in lock(&self.shared.streams).iter_mut() {
            if stream.read(0) == Read::Closed {
                stream.open(hub, run, false);
            }
            while stream.read(1_000) == Read::More {}
        }
        let mut recording = self.shared.recording();
        let recorder = recording.recorder.clone();
        for service in [SERVICES[0], SERVICES[1], BATCHES] {
            let mut reader = Reader::new(service, hub, run, &recorder);
            while let Ok(page) = reader.page(hub, &recorder) {
                recording.readings.extend(page);
            }
        }
    }

    fn conclude(self) -> Floor {
        let streams = std::mem::take(&mut *lock(&self.shared.streams));
        let recording = std::mem::replace(
            &mut *lock(&self.shared.recording),
            Recording::new("", &self.settings, Rules::default()),
        );
        recording.conclude(streams)
    }
}
