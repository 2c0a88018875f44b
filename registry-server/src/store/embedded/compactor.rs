//! The compactor: a thread of the store that folds sealed logs into a new base and removes what is no longer needed.
//!
//! Touches only files that take no appends, so appends never wait for it. Holds a second copy of the state while it
//! folds. Whatever goes wrong here loses nothing, since the old base and the logs stay until the new base is durable:
//! it says so, and stops until a restart (a failed fsync is not retried); meanwhile the log grows.

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
    files::{self, base_name, io_error, log_name, read_base, read_log, write_base},
};
use crate::{
    core::{Base, Revision},
    store::{StoreError, disk::Disk, record::Interner},
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

struct Worker {
    disk: Arc<dyn Disk>,
    epoch: u128,
    fold: Fold,
    history_records: u64,
    history_bytes: u64,
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
            history_records: options.history_records,
            history_bytes: options.history_bytes,
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

impl Worker {
    fn run(self, queue: &Receiver<Job>) {
        let mut stopped = false;
        for job in queue {
            match job {
                Job::Settle(done) => {
                    let _ = done.send(());
                }
                Job::Fold(_) if stopped => {}
                Job::Fold(through) => {
                    if let Err(error) = self.compact(through) {
                        stopped = true;
                        tracing::error!(
                            %error,
                            "compaction stopped until a restart: nothing is lost, but the log grows"
                        );
                    }
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
        let Some(&&(_, new)) = due.last() else {
            return Ok(());
        };
        let mut strings = Interner::default();
        let mut base = Base::default();
        if folded > 0 {
            base = read_base(disk, folded, &mut strings)?.0;
        }
        for &&(start, end) in &due {
            let log = read_log(disk, start, false, folded, &mut strings)?;
            if log.last != end {
                let what = format!("it ends at revision {}, and the next log begins after {end}", log.last);
                return Err(StoreError::Corrupt {
                    file: disk.describe(&log_name(start)),
                    offset: log.end,
                    what,
                });
            }
            let records = log.records.into_iter().filter(|committed| committed.revision > folded).collect();
            base = (self.fold)(base, records);
            base.revision = end;
        }
        let size = write_base(disk, self.epoch, &base)?;
        self.base_size.store(size, Ordering::Relaxed);
        tracing::info!(revision = new, bytes = size, instances = base.instances.len(), "compacted the log");
        let old_bases = listing.bases.into_iter().map(base_name);
        let sealed: Vec<_> = sealed.into_iter().filter(|(_, end)| *end <= new).collect();
        let old_logs = self.beyond_history(&sealed)?;
        for name in old_bases.chain(old_logs) {
            disk.remove(&name).map_err(|error| io_error(disk, "remove", &name, &error))?;
        }
        disk.sync_dir().map_err(|error| io_error(disk, "sync", "", &error))
    }

    /// The folded logs, oldest first, that are older than the history to keep.
    fn beyond_history(&self, folded: &[(Revision, Revision)]) -> Result<Vec<String>, StoreError> {
        let (mut records, mut bytes) = (0, 0);
        let mut kept = 0;
        for (start, end) in folded.iter().rev() {
            let name = log_name(*start);
            bytes +=
                self.disk.size(&name).map_err(|error| io_error(self.disk.as_ref(), "read", &name, &error))?;
            if records >= self.history_records || bytes > self.history_bytes {
                break;
            }
            records += end - start;
            kept += 1;
        }
        Ok(folded[..folded.len() - kept].iter().map(|(start, _)| log_name(*start)).collect())
    }
}
