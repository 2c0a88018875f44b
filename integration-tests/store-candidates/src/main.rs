//! Measures what the embedded store could be made of: our append-only log, redb, fjall. Same work for each.
//!
//! ```text
//! cargo run --release --manifest-path integration-tests/store-candidates/Cargo.toml [directory [rounds]]
//! ```
//!
//! - *registrations*: 64 callers in a closed loop; one writer takes what waits, commits it as one group with one fsync,
//!   then answers.
//! - *removal*: 100,000 instances, in 20 revisions of 5,000, each durable before the next.
//! - *start-up*: open, and read 100,000 instances into the map that a server answers from; files are in the page cache.
//!
//! The engines keep only the instances, one key each, in a codec of length-prefixed strings. The log keeps more: cause,
//! actor, wall time and leases; and it folds in the background while it is measured.

mod codec;

use std::{
    collections::HashMap,
    error::Error,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use fjall::PersistMode;
use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use registry_server::{
    core::{
        Base, Cause, Committed, Event, Instance, InstanceId, LeaseId, Loss, Record, Registrant, ServiceKey,
        Spec, Status,
    },
    store::{EmbeddedOptions, EmbeddedStore, Fold, Store},
};

use codec::{key_bytes, read_key, read_value, value_bytes};

type Failure = Box<dyn Error + Send + Sync>;
type Instances = HashMap<(ServiceKey, InstanceId), (Arc<Spec>, LeaseId)>;

const CALLERS: usize = 64;
const INSTANCES: usize = 100_000;
const REMOVED_AT_ONCE: usize = 5_000;
const REGISTERING: Duration = Duration::from_secs(3);

trait Candidate: Send {
    /// Makes the group durable.
    fn append(&mut self, group: &[Record]) -> Result<(), Failure>;
    /// Everything, in memory.
    fn load(&mut self) -> Result<Instances, Failure>;
    /// Brings the files into the state in which a long-running server leaves them, if that is another.
    fn rest(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}

type Open = fn(&Path) -> Result<Box<dyn Candidate>, Failure>;

const CANDIDATES: [(&str, Open); 4] = [
    ("log, grown by 1 MiB", |path| Log::open(path, 1 << 20)),
    ("log, grown by each append", |path| Log::open(path, 0)),
    ("redb 4.5", Redb::open),
    ("fjall 3.1", Fjall::open),
];

#[derive(Default)]
struct Figures {
    registrations: Vec<f64>,
    removal: Vec<f64>,
    startup: Vec<f64>,
    startup_at_rest: Vec<f64>,
    bytes: Vec<f64>,
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let rounds = arguments.next().map_or(Ok(5), |rounds| rounds.parse())?;
    let mut figures: Vec<Figures> = CANDIDATES.iter().map(|_| Figures::default()).collect();
    for round in 1..=rounds {
        for (index, (name, open)) in CANDIDATES.iter().enumerate() {
            eprintln!("round {round} of {rounds}: {name}");
            measure(*open, &directory, &mut figures[index])?;
        }
    }
    println!(
        "| candidate | registrations/s | removal of 100,000 (ms) | start-up after filling (ms) | start-up at rest (ms) | MB at rest |"
    );
    println!("|---|---|---|---|---|---|");
    for ((name, _), figures) in CANDIDATES.iter().zip(&mut figures) {
        println!(
            "| {name} | {} | {} | {} | {} | {} |",
            median(&mut figures.registrations),
            median(&mut figures.removal),
            median(&mut figures.startup),
            median(&mut figures.startup_at_rest),
            median(&mut figures.bytes),
        );
    }
    Ok(())
}

fn measure(open: Open, directory: &Path, figures: &mut Figures) -> Result<(), Failure> {
    let scratch = tempfile::tempdir_in(directory)?;
    let path = scratch.path().join("registrations");
    let mut candidate = open(&path)?;
    candidate.load()?;
    figures.registrations.push(register(candidate)?);

    let path = scratch.path().join("removal");
    let mut candidate = open(&path)?;
    candidate.load()?;
    let all: Vec<Record> = (0..INSTANCES).map(registration).collect();
    for group in all.chunks(500) {
        candidate.append(group)?;
    }
    drop(candidate);
    figures.startup.push(started(open, &path)?);
    let mut candidate = open(&path)?;
    candidate.load()?;
    candidate.rest()?;
    drop(candidate);
    figures.startup_at_rest.push(started(open, &path)?);
    figures.bytes.push(size(&path)? / 1e6);

    let mut candidate = open(&path)?;
    candidate.load()?;
    let ids: Vec<usize> = (0..INSTANCES).collect();
    let removals: Vec<Record> = ids.chunks(REMOVED_AT_ONCE).map(removal).collect();
    let start = Instant::now();
    for record in &removals {
        candidate.append(std::slice::from_ref(record))?;
    }
    figures.removal.push(start.elapsed().as_secs_f64() * 1e3);
    drop(candidate);
    assert!(open(&path)?.load()?.is_empty(), "everything was removed");
    Ok(())
}

/// Registrations a second.
fn register(mut candidate: Box<dyn Candidate>) -> Result<f64, Failure> {
    let (send, queue) = sync_channel::<(Record, SyncSender<()>)>(CALLERS);
    let start = Instant::now();
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let send = send.clone();
            thread::spawn(move || {
                let (answer, answered): (SyncSender<()>, Receiver<()>) = sync_channel(1);
                let mut done = 0;
                while start.elapsed() < REGISTERING {
                    let record = registration(done * CALLERS + caller);
                    if send.send((record, answer.clone())).is_err() || answered.recv().is_err() {
                        break;
                    }
                    done += 1;
                }
                done
            })
        })
        .collect();
    drop(send);
    while let Ok(first) = queue.recv() {
        let (group, answers): (Vec<_>, Vec<_>) = std::iter::once(first).chain(queue.try_iter()).unzip();
        candidate.append(&group)?;
        for answer in answers {
            let _ = answer.send(());
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    let done: usize = callers.into_iter().map(|caller| caller.join().unwrap_or(0)).sum();
    Ok(done as f64 / elapsed)
}

fn started(open: Open, path: &Path) -> Result<f64, Failure> {
    let start = Instant::now();
    let mut candidate = open(path)?;
    let instances = candidate.load()?;
    let elapsed = start.elapsed().as_secs_f64() * 1e3;
    assert_eq!(instances.len(), INSTANCES);
    Ok(elapsed)
}

fn size(path: &Path) -> Result<f64, Failure> {
    if path.is_file() {
        return Ok(path.metadata()?.len() as f64);
    }
    let mut sum = 0.0;
    for entry in fs::read_dir(path)? {
        sum += size(&entry?.path())?;
    }
    Ok(sum)
}

fn median(figures: &mut [f64]) -> String {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).map_or_else(String::new, |median| format!("{median:.0}"))
}

fn key(n: usize) -> (ServiceKey, InstanceId) {
    let key = ServiceKey { namespace: "default".into(), service: format!("service-{}", n % 100).into() };
    (key, format!("10.{}.{}.{}:8080", n >> 16, n >> 8 & 255, n & 255).into())
}

fn registration(n: usize) -> Record {
    let (key, id) = key(n);
    let lease =
        LeaseId((n as u128 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835).to_be_bytes());
    let registrant = Registrant { uid: format!("greeter-{n}").into(), generation: 1 };
    let spec = Spec {
        address: Arc::clone(&id),
        weight: 100,
        tags: [("version", "1.4.2"), ("team", "payments"), ("protocol", "grpc")]
            .map(|(key, value)| (key.into(), value.into()))
            .into(),
        region: "eu-central".into(),
        zone: "eu-central-1b".into(),
        status: Status::Up,
    };
    Record {
        wall: 1_700_000_000_000 + n as u64,
        cause: Cause::Register,
        actor: format!("greeter-{n}#1").into(),
        events: vec![
            Event::LeaseGranted { lease, registrant, ttl: 15_000 },
            Event::Registered { key, id, spec: Arc::new(spec), lease },
        ],
    }
}

fn removal(ids: &[usize]) -> Record {
    let removed = ids.iter().map(|n| {
        let (key, id) = key(*n);
        Event::Removed { key, id, loss: Some(Loss::Expired) }
    });
    Record { wall: 1_700_000_000_000, cause: Cause::Expire, actor: "".into(), events: removed.collect() }
}

/// Our log.
struct Log(EmbeddedStore);

impl Log {
    fn open(path: &Path, grow_bytes: u64) -> Result<Box<dyn Candidate>, Failure> {
        let options =
            EmbeddedOptions { grow_bytes, history_records: 0, ..EmbeddedOptions::new(fold(), 1) };
        Ok(Box::new(Self(EmbeddedStore::open(path, options)?)))
    }
}

impl Candidate for Log {
    fn append(&mut self, group: &[Record]) -> Result<(), Failure> {
        self.0.append(group)?;
        Ok(())
    }

    fn load(&mut self) -> Result<Instances, Failure> {
        let loaded = self.0.load()?;
        let mut instances: Instances = loaded
            .base
            .instances
            .into_iter()
            .map(|(key, instance)| ((key, instance.id), (instance.spec, instance.lease)))
            .collect();
        for committed in loaded.tail {
            apply(&mut instances, &committed);
        }
        Ok(instances)
    }

    fn rest(&mut self) -> Result<(), Failure> {
        self.0.compact(u64::MAX)?;
        self.0.settle();
        Ok(())
    }
}

fn apply(instances: &mut Instances, committed: &Committed) {
    for event in &committed.record.events {
        match event {
            Event::Registered { key, id, spec, lease } => {
                instances.insert((key.clone(), id.clone()), (Arc::clone(spec), *lease));
            }
            Event::Removed { key, id, .. } => {
                instances.remove(&(key.clone(), id.clone()));
            }
            _ => {}
        }
    }
}

fn fold() -> Fold {
    Arc::new(|base, records| {
        let mut instances: Instances = base
            .instances
            .into_iter()
            .map(|(key, instance)| ((key, instance.id), (instance.spec, instance.lease)))
            .collect();
        let mut revision = base.revision;
        for committed in records {
            apply(&mut instances, &committed);
            revision = committed.revision;
        }
        let instances = instances.into_iter().map(|((key, id), (spec, lease))| {
            let instance = Instance {
                id,
                spec,
                lease,
                create_revision: 1,
                mod_revision: revision,
                registered_at: 1_700_000_000_000,
                changed_at: 1_700_000_000_000,
                held: None,
                over: None,
            };
            (key, instance)
        });
        Base { revision, instances: instances.collect(), ..Base::default() }
    })
}

/// redb: one table, one transaction a group.
struct Redb(redb::Database);

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("instances");

impl Redb {
    fn open(path: &Path) -> Result<Box<dyn Candidate>, Failure> {
        fs::create_dir_all(path)?;
        let database = redb::Database::create(path.join("data.redb"))?;
        let transaction = database.begin_write()?;
        transaction.open_table(TABLE)?;
        transaction.commit()?;
        Ok(Box::new(Self(database)))
    }
}

impl Candidate for Redb {
    fn append(&mut self, group: &[Record]) -> Result<(), Failure> {
        let transaction = self.0.begin_write()?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for event in group.iter().flat_map(|record| &record.events) {
                match event {
                    Event::Registered { key, id, spec, lease } => {
                        table.insert(key_bytes(key, id).as_slice(), value_bytes(spec, *lease).as_slice())?;
                    }
                    Event::Removed { key, id, .. } => {
                        table.remove(key_bytes(key, id).as_slice())?;
                    }
                    _ => {}
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn load(&mut self) -> Result<Instances, Failure> {
        let table = self.0.begin_read()?.open_table(TABLE)?;
        let mut instances = Instances::new();
        for entry in table.iter()? {
            let (key, value) = entry?;
            instances.insert(read_key(key.value())?, read_value(value.value())?);
        }
        Ok(instances)
    }
}

/// fjall: one keyspace, one batch a group.
struct Fjall {
    database: fjall::Database,
    keyspace: fjall::Keyspace,
}

impl Fjall {
    fn open(path: &Path) -> Result<Box<dyn Candidate>, Failure> {
        let database = fjall::Database::builder(path).open()?;
        let keyspace = database.keyspace("instances", fjall::KeyspaceCreateOptions::default)?;
        Ok(Box::new(Self { database, keyspace }))
    }
}

impl Candidate for Fjall {
    fn append(&mut self, group: &[Record]) -> Result<(), Failure> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        for event in group.iter().flat_map(|record| &record.events) {
            match event {
                Event::Registered { key, id, spec, lease } => {
                    batch.insert(&self.keyspace, key_bytes(key, id), value_bytes(spec, *lease));
                }
                Event::Removed { key, id, .. } => batch.remove(&self.keyspace, key_bytes(key, id)),
                _ => {}
            }
        }
        batch.commit()?;
        Ok(())
    }

    fn load(&mut self) -> Result<Instances, Failure> {
        let mut instances = Instances::new();
        for guard in self.keyspace.iter() {
            let (key, value) = guard.into_inner()?;
            instances.insert(read_key(&key)?, read_value(&value)?);
        }
        Ok(instances)
    }
}
