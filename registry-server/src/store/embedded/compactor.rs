//! The compactor: a thread of the store that folds sealed logs into a new base, as far as no history is wanted of them
//! (`history`), and removes what is no longer needed.
//!
//! Touches only files that take no appends, so appends never wait for it. Holds a second copy of the state while it
//! folds. Whatever goes wrong here loses nothing, since the old base and the logs stay until the new base is durable: it
//! says so, and meanwhile the log grows. What the system refused (a full disk, say) is tried again, by and by, as more logs are
//! sealed: nothing of the failed attempt is relied on, for a base is written anew as a whole, and synced, before anything
//! goes. What is damaged stays so, and is left to a restart, which says what to do. Its thread is less urgent than the others.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use super::{
    EmbeddedOptions, Fold,
    files::{self, base_name, io_error, log_name, read_base, read_extents, read_log, write_base},
    history::Bounds,
};
use crate::{
    core::{Base, Revision},
    store::{
        StoreError,
        disk::Disk,
        record::{Extent, Interner},
    },
};

/// The handle. Dropping it finishes what was asked for and joins the thread.
pub(super) struct Compactor {
    /// `None` only while it is dropped.
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
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
    base_size: Arc<AtomicU64>,
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
        let worker = Worker {
            disk,
            epoch,
            fold: options.fold,
            history: Bounds {
                records: options.history_records,
                age: options.history_age,
                bytes: options.history_bytes,
            },
            base_size: Arc::clone(&base_size),
        };
        let (jobs, queue) = sync_channel(4);
        let thread = thread::Builder::new()
            .name("store-compactor".to_owned())
            .spawn(move || worker.run(&queue))
            .map_err(|error: io::Error| {
                StoreError::Io(format!("could not start the compactor's thread: {error}"))
            })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), base_size })
    }

    /// Asks for a fold. If the queue is full it is passed over: a later one folds more.
    pub(super) fn fold(&self, through: Revision) {
        if let Some(jobs) = &self.jobs {
            let _ = jobs.try_send(Job::Fold(through));
        }
    }

    /// Waits until everything asked for is done.
    pub(super) fn settle(&self) {
        let (done, wait) = sync_channel(1);
        if let Some(jobs) = &self.jobs
            && jobs.send(Job::Settle(done)).is_ok()
        {
            let _ = wait.recv();
        }
    }

    /// The size of the newest base in bytes.
    pub(super) fn base_size(&self) -> u64 {
        self.base_size.load(Ordering::Relaxed)
    }
}

impl Drop for Compactor {
    fn drop(&mut self) {
        self.jobs = None;
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
                Job::Fold(_) if trouble.passes_over() => {}
                Job::Fold(through) => match self.compact(through) {
                    Ok(()) => trouble = Trouble::None,
                    Err(error) => trouble = trouble.after(&error),
                },
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
        for &&(start, end) in due.iter().filter(|(start, _)| *start < new) {
            let log = read_log(disk, start, false, folded, &mut strings)?;
            let wanted = folded + 1..=new;
            let records = log.records.into_iter().filter(|committed| wanted.contains(&committed.revision));
            base = (self.fold)(base, records.collect());
            base.revision = end.min(new);
        }
        let size = write_base(disk, self.epoch, &base)?;
        self.base_size.store(size, Ordering::Relaxed);
        tracing::info!(revision = new, bytes = size, instances = base.instances.len(), "compacted the log");
        let old_bases = listing.bases.into_iter().map(base_name);
        let old_logs = sealed.iter().filter(|(_, end)| *end <= new).map(|(start, _)| log_name(*start));
        for name in old_bases.chain(old_logs) {
            disk.remove(&name).map_err(|error| io_error(disk, "remove", &name, &error))?;
        }
        disk.sync_dir().map_err(|error| io_error(disk, "sync", "", &error))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_again_and_again_is_tried_ever_more_seldom_and_what_is_damaged_not_at_all() {
        let mut trouble = Trouble::None;
        let mut tried = Vec::new();
        for chance in 0..40 {
            if !trouble.passes_over() {
                tried.push(chance);
                trouble = trouble.after(&StoreError::Io("no room".to_owned()));
            }
        }
        assert_eq!(tried, [0, 1, 3, 6, 11, 20, 29, 38]);
        let damage = StoreError::Corrupt { file: "f".to_owned(), offset: 0, what: "w".to_owned() };
        let mut lasting = trouble.after(&damage);
        assert!((0..100).all(|_| lasting.passes_over()));
    }
}
