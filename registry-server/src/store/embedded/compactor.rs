//! The compactor: a thread of the store that folds sealed logs into a new base, as far as no history is wanted of them
//! (`history`), and removes what is no longer needed.
//!
//! Touches only files that take no appends, so appends never wait for it. Holds the state once more while it folds, and as a
//! base beside that when it is done; of the logs one file and the records of one group. It waits for a quiet moment, up to a
//! bound (`gate`).
//!
//! Whatever goes wrong here loses nothing, since the old base and the logs stay until the new base is durable: it says so, and
//! meanwhile the log grows. What the system refused (a full disk, say) is tried again, by and by, as more logs are sealed:
//! nothing of the failed attempt is relied on, for a base is written anew as a whole, and synced, before anything goes.
//! What is damaged stays so, and is left to a restart, which says what to do. Its thread is less urgent than the others.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    vec,
};

use super::{
    EmbeddedOptions, Fold,
    files::{self, Groups, base_name, io_error, log_name, read_base, read_extents, write_base},
    gate::Gate,
    history::Bounds,
};
use crate::{
    core::{Base, Committed, Revision},
    store::{
        StoreError,
        disk::Disk,
        record::{Extent, Interner},
    },
};

/// The handle. Dropping it waits for a fold that has begun, and joins the thread; one that was put off is left to the next start.
pub(super) struct Compactor {
    /// `None` only while it is dropped.
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    gate: Arc<Gate>,
    base_size: Arc<AtomicU64>,
}

enum Job {
    /// Fold what is sealed, up to this revision.
    Fold(Revision),
    /// Answer when everything before is done.
    Settle(SyncSender<()>),
}

/// Most chances that are passed over after a failure: as many logs are sealed until the next attempt.
const LONGEST_PAUSE: u32 = 8;

/// By how much the thread is nicer than the rest: it gets about a tenth of a processor that both want, so it ends in any case.
#[cfg(target_os = "linux")]
const LESS_URGENT: i32 = 10;

/// Whether the last attempts failed. The pause is counted in what there is to fold, not in time: while nothing is
/// written the log does not grow either.
#[derive(Debug, Default, PartialEq, Eq)]
enum Trouble {
    #[default]
    None,
    /// So many chances are still passed over, and twice as many after the next failure.
    Pause { left: u32, next: u32 },
    /// It cannot pass.
    Lasting,
}

struct Worker {
    disk: Arc<dyn Disk>,
    epoch: u128,
    fold: Fold,
    history: Bounds,
    gate: Arc<Gate>,
    base_size: Arc<AtomicU64>,
}

/// The records of several sealed logs, one log after the other, each read when it is asked for.
struct Records<'a> {
    worker: &'a Worker,
    /// The logs that are left, the last one first.
    logs: Vec<Revision>,
    open: Option<Groups>,
    /// What is left of the group that was read last.
    group: vec::IntoIter<Committed>,
    /// Records after the first and up to the second.
    wanted: (Revision, Revision),
    /// The last one that was given out.
    given: Revision,
    strings: Interner,
    /// Why it ended early.
    failed: Option<StoreError>,
}

impl Compactor {
    pub(super) fn start(
        disk: Arc<dyn Disk>,
        epoch: u128,
        options: EmbeddedOptions,
    ) -> Result<Self, StoreError> {
        let base_size = files::list(disk.as_ref())?.bases.last().map_or(Ok(0), |revision| {
            let name = base_name(*revision);
            disk.size(&name).map_err(|error| io_error(disk.as_ref(), "read", &name, &error))
        })?;
        let base_size = Arc::new(AtomicU64::new(base_size));
        let gate = Arc::new(Gate::default());
        let worker = Worker {
            disk,
            epoch,
            fold: options.fold,
            history: Bounds {
                records: options.history_records,
                age: options.history_age,
                bytes: options.history_bytes,
            },
            gate: Arc::clone(&gate),
            base_size: Arc::clone(&base_size),
        };
        let (jobs, queue) = sync_channel(4);
        let thread = thread::Builder::new()
            .name("store-compactor".to_owned())
            .spawn(move || worker.run(&queue))
            .map_err(|error: io::Error| {
                StoreError::Io(format!("could not start the compactor's thread: {error}"))
            })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), gate, base_size })
    }

    /// Asks for a fold. If the queue is full it is passed over: a later one folds more.
    pub(super) fn fold(&self, through: Revision) {
        if let Some(jobs) = &self.jobs {
            self.gate.ask();
            if jobs.try_send(Job::Fold(through)).is_err() {
                self.gate.done();
            }
        }
    }

    /// The log that takes appends is half full: what is to be folded is put off no longer.
    pub(super) fn press(&self) {
        self.gate.press();
    }

    /// The loop says whether it has much to do.
    pub(super) fn set_busy(&self, busy: bool) {
        self.gate.set_busy(busy);
    }

    /// Waits until everything asked for is done.
    pub(super) fn settle(&self) {
        let (done, wait) = sync_channel(1);
        self.gate.hurry();
        if let Some(jobs) = &self.jobs
            && jobs.send(Job::Settle(done)).is_ok()
        {
            let _ = wait.recv();
        }
        self.gate.hurried();
    }

    /// The size of the newest base in bytes.
    pub(super) fn base_size(&self) -> u64 {
        self.base_size.load(Ordering::Relaxed)
    }
}

impl Drop for Compactor {
    fn drop(&mut self) {
        self.jobs = None;
        self.gate.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the compactor panicked: the log was not folded; nothing is lost");
        }
    }
}

impl Trouble {
    /// Whether this chance is to be passed over.
    fn passes_over(&mut self) -> bool {
        match self {
            Self::None | Self::Pause { left: 0, .. } => false,
            Self::Pause { left, .. } => {
                *left -= 1;
                true
            }
            Self::Lasting => true,
        }
    }

    /// An attempt failed.
    fn after(&self, error: &StoreError) -> Self {
        if !matches!(error, StoreError::Io(_)) {
            tracing::error!(%error, "the log is not folded until a restart: nothing is lost, but it grows");
            return Self::Lasting;
        }
        let left = if let Self::Pause { next, .. } = self { *next } else { 0 };
        tracing::error!(
            %error,
            logs = left + 1,
            "the log could not be folded: nothing is lost, but it grows; tried again when so many more logs are full"
        );
        Self::Pause { left, next: (2 * left).clamp(1, LONGEST_PAUSE) }
    }
}

/// Folding can wait, and takes a processor for a second; whoever writes meanwhile should not. Where threads have no priority of
/// their own it has the same as all.
fn make_way() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{getpriority_process, setpriority_process};
        // Less is always allowed, and if it was not, all would be as without it.
        if let Ok(usual) = getpriority_process(None) {
            let _ = setpriority_process(None, usual.saturating_add(LESS_URGENT));
        }
    }
}

impl Worker {
    fn run(self, queue: &Receiver<Job>) {
        make_way();
        let mut trouble = Trouble::None;
        for job in queue {
            match job {
                Job::Settle(done) => {
                    let _ = done.send(());
                }
                Job::Fold(through) => {
                    if !trouble.passes_over() && self.gate.begin() {
                        match self.compact(through) {
                            Ok(()) => trouble = Trouble::None,
                            Err(error) => trouble = trouble.after(&error),
                        }
                    }
                    self.gate.done();
                }
            }
        }
    }

    fn compact(&self, through: Revision) -> Result<(), StoreError> {
        let disk = self.disk.as_ref();
        let listing = files::list(disk)?;
        let folded = listing.bases.last().copied().unwrap_or(0);
        // A log is sealed if another follows; it ends where that one starts.
        let sealed: Vec<_> = listing.logs.windows(2).map(|pair| (pair[0], pair[1])).collect();
        let due: Vec<_> = sealed.iter().filter(|(_, end)| (folded + 1..=through).contains(end)).collect();
        let mut groups = Vec::new();
        for &&(start, end) in &due {
            groups.extend(self.extents(start, end)?.into_iter().filter(|group| group.last > folded));
        }
        let Some(new) = self.history.fold_through(&groups) else {
            return Ok(());
        };
        let mut strings = Interner::default();
        let mut base = Base::default();
        if folded > 0 {
            base = read_base(disk, folded, &mut strings)?.0;
        }
        let logs = due.iter().map(|(start, _)| *start).filter(|start| *start < new).collect();
        base = self.fold_logs(base, Records::new(self, logs, (folded, new), strings))?;
        base.revision = new;
        let size = write_base(disk, self.epoch, &base, || self.gate.pass())?;
        self.base_size.store(size, Ordering::Relaxed);
        tracing::info!(revision = new, bytes = size, instances = base.instances.len(), "compacted the log");
        let old_bases = listing.bases.into_iter().map(base_name);
        let old_logs = sealed.iter().filter(|(_, end)| *end <= new).map(|(start, _)| log_name(*start));
        for name in old_bases.chain(old_logs) {
            disk.remove(&name).map_err(|error| io_error(disk, "remove", &name, &error))?;
        }
        disk.sync_dir().map_err(|error| io_error(disk, "sync", "", &error))
    }

    /// Of the records nothing is left when this returns.
    fn fold_logs(&self, base: Base, mut records: Records<'_>) -> Result<Base, StoreError> {
        let base = (self.fold)(base, &mut records);
        let (after, through) = records.wanted;
        match records.failed {
            Some(error) => Err(error),
            None if records.given == through => Ok(base),
            // What is not in the base would be gone with the logs.
            None => Err(StoreError::Corrupt {
                file: self.disk.describe(&base_name(through)),
                offset: 0,
                what: format!(
                    "of the records after {after} up to {through} only those up to {} could be folded into it",
                    records.given
                ),
            }),
        }
    }

    /// What the groups of a sealed log cover; it has to end where the next one begins.
    fn extents(&self, start: Revision, end: Revision) -> Result<Vec<Extent>, StoreError> {
        let disk = self.disk.as_ref();
        let groups = read_extents(disk, start)?;
        let last = groups.last().map_or(start, |group| group.last);
        if last != end {
            let what = format!("it ends at revision {last}, and the next log begins after {end}");
            return Err(StoreError::Corrupt { file: disk.describe(&log_name(start)), offset: 0, what });
        }
        Ok(groups)
    }
}

impl<'a> Records<'a> {
    /// Of these logs, oldest first, the records after one revision and up to another.
    fn new(
        worker: &'a Worker,
        mut logs: Vec<Revision>,
        wanted: (Revision, Revision),
        strings: Interner,
    ) -> Self {
        logs.reverse();
        let group = Vec::new().into_iter();
        Self { worker, logs, open: None, group, wanted, given: wanted.0, strings, failed: None }
    }

    /// Reads the next group, of the next log if need be. False at the end.
    fn read(&mut self) -> Result<bool, StoreError> {
        self.worker.gate.pass();
        let mut open = match (self.open.take(), self.logs.as_slice()) {
            (Some(open), _) => open,
            (None, []) => return Ok(false),
            (None, [.., start]) => {
                let open = Groups::open(self.worker.disk.as_ref(), *start)?;
                self.logs.pop();
                open
            }
        };
        if let Some(group) = open.step_sealed(self.wanted.0, &mut self.strings)? {
            self.group = group.records.into_iter();
            self.open = Some(open);
        }
        Ok(true)
    }
}

impl Iterator for Records<'_> {
    type Item = Committed;

    fn next(&mut self) -> Option<Committed> {
        let (after, through) = self.wanted;
        loop {
            match self.group.find(|committed| committed.revision > after) {
                Some(committed) if committed.revision <= through => {
                    self.given = committed.revision;
                    return Some(committed);
                }
                // The rest is history.
                Some(_) => {
                    self.open = None;
                    self.logs.clear();
                    return None;
                }
                None => {}
            }
            match self.read() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    self.failed = Some(error);
                    return None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
