//! The embedded store: an append-only log with bases, in one directory of one server. Keeps D1, D3 and D4.
//!
//! ```text
//!   base-R        log-A ──────────────── log-B ─────────── log-C
//!   state at R    (A, B], R within       (B, C] sealed     (C, ..] active ◄── append: one frame a group, one fdatasync
//!      │           up to R: folded │ since R: history,
//!      │                           │ lived again at a start
//!      └─ compactor thread: base-R + sealed logs ─fold, as far as they are beyond the history─► base-S, fsync, rename,
//!         fsync the directory; then the older base goes, and the logs that end before S
//! ```
//!
//! The base lags behind by the history that watchers resume from (W5), so that there is one way to come by it: what is
//! loaded is a state and the records since, however far back these go.
//!
//! A file gets its name only when its header is durable, and a log is sealed only when all of it is: so a name that
//! ends in `.tmp` means nothing, and only the end of the newest log may be incomplete. There a *torn tail*, the rest
//! of a group that was being written when the machine stopped, is cut off with a warning: it was never acknowledged.
//! It is taken for one only if nothing after it was written later (no whole frame, and nothing but zeros beyond its own
//! end) and if something of it is missing as an interrupted write leaves it: whole sectors, or all from some byte on.
//!
//! One case cannot be decided: if a log was not closed in order, what cuts it short, or fills it with zeros from some
//! place in its last group on, looks like a torn tail, and is cut off as one. A log closed in order ends with a mark, so
//! there the damage has to take away the mark as well. Any other damage is an error that leaves every file as it is.
//!
//! The last group may be in memory only, if its fsync failed and the process, not the machine, was restarted: then
//! the system would take it for durable. Opening therefore writes the last group again, in its place.

mod compactor;
mod files;
mod gate;
mod history;

use std::{fmt, io, path::Path, sync::Arc, time::Duration};

use self::{
    compactor::Compactor,
    files::{Log, create_log, io_error, log_name, read_base, read_log},
};
use super::{
    Loaded, Store, StoreError,
    disk::{Disk, DiskFile, RealDisk},
    epoch_name, frame,
    record::{Interner, encode_group},
};
use crate::core::{Base, Committed, Record, Revision};

/// Folds records into a base, as the core's state does: the base's revision becomes that of the last record. Runs on
/// the compactor's thread; each record is read when it is asked for, so whoever keeps none needs no memory for them; it has to take all of them.
pub type Fold = Arc<dyn Fn(Base, &mut dyn Iterator<Item = Committed>) -> Base + Send + Sync>;

/// How the embedded store is opened.
#[derive(Clone)]
pub struct EmbeddedOptions {
    /// The core's `evolve`, over whole runs of records.
    pub fold: Fold,
    /// Random: names the history that begins if the directory is empty. Otherwise unused.
    pub new_epoch: u128,
    /// Bytes after which a log is sealed and folded; at least the size of the base, so that folding writes no more
    /// than twice what was appended. Default 16 MiB.
    pub segment_bytes: u64,
    /// How many of the last records are kept out of the base, for watchers to resume from after a restart: whole groups,
    /// and what was not folded yet, so rather more than fewer. Whichever of the three bounds is reached first, older
    /// records are folded. Default 10,000.
    pub history_records: u64,
    /// How much older than the newest record they may be, by their wall times. Default 10 min.
    pub history_age: Duration,
    /// How many bytes they may have in sealed logs. Default 64 MiB.
    pub history_bytes: u64,
    /// The log grows in steps of so many bytes, filled with zeros, so that most appends do not change the file's size
    /// and need no journal write of the file system. 0: it grows with each append. Default 1 MiB.
    pub grow_bytes: u64,
}

impl EmbeddedOptions {
    /// The defaults.
    pub fn new(fold: Fold, new_epoch: u128) -> Self {
        Self {
            fold,
            new_epoch,
            segment_bytes: 16 << 20,
            history_records: 10_000,
            history_age: Duration::from_mins(10),
            history_bytes: 64 << 20,
            grow_bytes: 1 << 20,
        }
    }
}

impl fmt::Debug for EmbeddedOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedOptions")
            .field("segment_bytes", &self.segment_bytes)
            .field("history_records", &self.history_records)
            .field("history_age", &self.history_age)
            .field("history_bytes", &self.history_bytes)
            .field("grow_bytes", &self.grow_bytes)
            .finish_non_exhaustive()
    }
}

/// A larger buffer is not kept for the next group.
const KEPT_BUFFER: usize = 1 << 18;

/// No registry gets that far; what says that it did is damaged. Beyond it, counting would overflow some day.
const LAST_REVISION: Revision = Revision::MAX / 2;

/// Keeps records in a directory. Closing it, by dropping it, waits for a compaction that has begun.
pub struct EmbeddedStore {
    disk: Arc<dyn Disk>,
    epoch: u128,
    active: Active,
    last: Revision,
    /// Until `load` takes it.
    loaded: Option<Loaded>,
    /// The first failure: from then on the store is closed (D4).
    failed: Option<String>,
    /// Whether the log lacks the mark of an orderly end.
    unmarked: bool,
    compactor: Compactor,
    segment_bytes: u64,
    grow_bytes: u64,
    buffer: Vec<u8>,
}

/// The log that takes appends.
struct Active {
    name: String,
    /// The last revision before it.
    start: Revision,
    file: Box<dyn DiskFile>,
    /// Where the next frame goes.
    end: u64,
    /// The file's size; zeros stand between `end` and it.
    size: u64,
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore")
            .field("epoch", &epoch_name(self.epoch))
            .field("last", &self.last)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the store in `directory`, creating both if need be, and reads all of it. Files that are damaged, locked or
    /// of an unknown version are an error and stay as they are.
    pub fn open(directory: &Path, options: EmbeddedOptions) -> Result<Self, StoreError> {
        Self::open_on(Arc::new(RealDisk::open(directory)?), options)
    }

    /// As [`open`](Self::open), on any [`Disk`].
    pub fn open_on(disk: Arc<dyn Disk>, options: EmbeddedOptions) -> Result<Self, StoreError> {
        let found = Found::read(disk.as_ref())?;
        let (epoch, active, loaded) = if let Some(found) = found {
            found.recover(disk.as_ref())?
        } else {
            let epoch = options.new_epoch;
            let file = create_log(disk.as_ref(), epoch, 0)?;
            (epoch, Active::new(0, file), Loaded { epoch: epoch_name(epoch), ..Loaded::default() })
        };
        let last = loaded.tail.last().map_or(loaded.base.revision, |committed| committed.revision);
        let through = active.start;
        let (segment_bytes, grow_bytes) = (options.segment_bytes, options.grow_bytes);
        let compactor = Compactor::start(Arc::clone(&disk), epoch, options)?;
        // What was sealed before and not folded.
        compactor.fold(through);
        Ok(Self {
            disk,
            epoch,
            active,
            last,
            loaded: Some(loaded),
            failed: None,
            unmarked: false,
            compactor,
            segment_bytes,
            grow_bytes,
            buffer: Vec::new(),
        })
    }

    /// Waits until all compaction asked for so far is done. For tests and tools.
    pub fn settle(&self) {
        self.compactor.settle();
    }

    /// Begins a new log if this one is full.
    fn make_room(&mut self) -> Result<(), StoreError> {
        let full = self.segment_bytes.max(self.compactor.base_size());
        if self.active.end >= full {
            self.seal()?;
        } else if self.active.end >= full / 2 {
            self.compactor.press();
        }
        Ok(())
    }

    fn append_to_log(&mut self, group: &[Record]) -> Result<(), StoreError> {
        self.buffer.clear();
        let previous = self.last;
        frame::push(&mut self.buffer, self.active.end, |out| encode_group(out, previous, group))
            .map_err(|bytes| StoreError::TooLarge { bytes, limit: frame::MAX_PAYLOAD })?;
        let end = self.active.end + self.buffer.len() as u64;
        let failed = |error| io_error(self.disk.as_ref(), "write to", &self.active.name, &error);
        self.active.file.write_at(self.active.end, &self.buffer).map_err(failed)?;
        if end > self.active.size {
            self.active.size = end;
            if self.grow_bytes > 0 {
                let size = end.next_multiple_of(self.grow_bytes);
                write_zeros(self.active.file.as_mut(), end, size).map_err(failed)?;
                self.active.size = size;
            }
        }
        if self.buffer.capacity() > KEPT_BUFFER {
            self.buffer = Vec::new();
        }
        let failed = |error| io_error(self.disk.as_ref(), "sync", &self.active.name, &error);
        self.active.file.sync().map_err(failed)?;
        self.active.end = end;
        Ok(())
    }

    /// Begins a new log. All of the one before is durable already.
    fn seal(&mut self) -> Result<(), StoreError> {
        if self.active.start == self.last {
            return Ok(());
        }
        let file = create_log(self.disk.as_ref(), self.epoch, self.last)?;
        self.active = Active::new(self.last, file);
        self.compactor.fold(self.last);
        Ok(())
    }

    fn guard<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T, StoreError>) -> Result<T, StoreError> {
        if let Some(cause) = &self.failed {
            return Err(StoreError::Closed { cause: cause.clone() });
        }
        act(self).map_err(|error| match error {
            StoreError::TooLarge { .. } => error,
            error => {
                let cause = match error {
                    StoreError::Io(cause) => cause,
                    other => other.to_string(),
                };
                tracing::error!(%cause, "the store is closed to writes until a restart");
                self.failed = Some(cause.clone());
                StoreError::Closed { cause }
            }
        })
    }
}

impl Store for EmbeddedStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.loaded.take().ok_or(StoreError::AlreadyLoaded)
    }

    fn append(&mut self, group: &[Record]) -> Result<Vec<Revision>, StoreError> {
        self.guard(|store| {
            if group.is_empty() {
                return Ok(Vec::new());
            }
            store.make_room()?;
            store.append_to_log(group)?;
            store.unmarked = true;
            let first = store.last + 1;
            store.last += group.len() as Revision;
            Ok((first..=store.last).collect())
        })
    }

    fn compact(&mut self, to: Revision) -> Result<(), StoreError> {
        self.guard(|store| {
            if to >= store.last {
                store.seal()?;
            }
            store.compactor.fold(to.min(store.active.start));
            Ok(())
        })
    }

    fn set_busy(&mut self, busy: bool) {
        self.compactor.set_busy(busy);
    }

    fn blocks(&self) -> bool {
        true
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        if self.failed.is_none() && self.unmarked {
            // The mark of an orderly end: a group of nothing. Without it all is there too, only less certain.
            let marked = self.append_to_log(&[]);
            if let Err(error) = marked {
                tracing::warn!(%error, "the log could not be marked as closed in order");
            }
        }
    }
}

impl Active {
    /// A log that has only its header.
    fn new(start: Revision, file: Box<dyn DiskFile>) -> Self {
        let end = frame::HEADER as u64;
        Self { name: log_name(start), start, file, end, size: end }
    }
}

/// From one place of a file to another, in pieces.
fn write_zeros(file: &mut dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    let mut at = from;
    while at < to {
        let left = usize::try_from(to - at).unwrap_or(usize::MAX);
        let piece = &ZEROS[..left.min(ZEROS.len())];
        file.write_at(at, piece)?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// What a directory holds, read and checked; nothing is changed yet.
struct Found {
    epoch: u128,
    loaded: Loaded,
    newest: Log,
    /// Files that nothing needs.
    leftovers: Vec<String>,
}

impl Found {
    /// `None`: nothing, or nothing that ever took a record.
    fn read(disk: &dyn Disk) -> Result<Option<Self>, StoreError> {
        let listing = files::list(disk)?;
        let missing = |what: String| StoreError::Corrupt { file: disk.describe(""), offset: 0, what };
        let Some(&newest) = listing.logs.last() else {
            return match listing.bases.last() {
                None => Ok(None),
                Some(base) => Err(missing(format!("there is a base at revision {base} but no log"))),
            };
        };
        let mut leftovers = listing.temporary;
        let mut strings = Interner::default();
        let mut epoch = None;
        let mut base = Base::default();
        if let Some((&revision, older)) = listing.bases.split_last() {
            let (read, its) = read_base(disk, revision, &mut strings)?;
            (base, epoch) = (read, Some(its));
            leftovers.extend(older.iter().map(|revision| files::base_name(*revision)));
        }
        // Logs that end before the base: they were to be removed, in whatever order that reached the disk.
        let needed = listing.logs.partition_point(|start| *start <= base.revision).saturating_sub(1);
        leftovers.extend(listing.logs[..needed].iter().map(|start| log_name(*start)));
        let mut records: Vec<Committed> = Vec::new();
        let mut before: Option<(Revision, Revision)> = None;
        let mut last_log = None;
        for &start in &listing.logs[needed..] {
            let mut log = read_log(disk, start, start == newest, base.revision, &mut strings)?;
            if *epoch.get_or_insert(log.epoch) != log.epoch {
                let what = "it belongs to another epoch than the files before it".to_owned();
                return Err(StoreError::Corrupt { file: disk.describe(&log_name(start)), offset: 16, what });
            }
            let expected = before.map_or(start.min(base.revision), |(_, last)| last);
            if start != expected {
                return Err(missing(format!(
                    "the records from revision {expected} to {start} are missing: no log before {} holds them",
                    log_name(start)
                )));
            }
            before = Some((start, log.last));
            records.append(&mut log.records);
            last_log = Some(log);
        }
        let (Some(newest), Some(epoch)) = (last_log, epoch) else {
            return Ok(None);
        };
        // A base is made of logs that others follow.
        if newest.start < base.revision {
            return Err(missing(format!(
                "there is a base at revision {} but no log of what followed it: the newest begins after revision {}",
                base.revision, newest.start
            )));
        }
        if newest.last > LAST_REVISION {
            return Err(missing(format!("revision {} is beyond what any log reaches", newest.last)));
        }
        // The first group may begin before the base.
        records.retain(|committed| committed.revision > base.revision);
        let loaded = Loaded { epoch: epoch_name(epoch), base, tail: records };
        Ok(Some(Self { epoch, loaded, newest, leftovers }))
    }

    /// Brings the directory in order, now that all of it was found sound.
    fn recover(self, disk: &dyn Disk) -> Result<(u128, Active, Loaded), StoreError> {
        // What was found under its name is what is relied on when the rest goes: a crash may have come before its name
        // was durable, or the system may have failed to make it so.
        disk.sync_dir().map_err(|error| io_error(disk, "sync", "", &error))?;
        for leftover in self.leftovers {
            disk.remove(&leftover).map_err(|error| io_error(disk, "remove", &leftover, &error))?;
        }
        let log = self.newest;
        let name = log_name(log.start);
        let failed = |error| io_error(disk, "recover", &name, &error);
        let active = if let Some((at, frame)) = log.last_frame {
            let mut file = disk.open(&name).map_err(failed)?;
            let mut size = log.size;
            if let Some(what) = log.torn {
                let (file_name, bytes) = (disk.describe(&name), log.size - log.end);
                tracing::warn!(
                    file = file_name,
                    offset = log.end,
                    bytes,
                    "cut off the torn end of the log, a write that never finished and was never acknowledged: {what}"
                );
                file.truncate(log.end).map_err(failed)?;
                size = log.end;
            }
            file.write_at(at, &frame).map_err(failed)?;
            file.sync().map_err(failed)?;
            Active { name, start: log.start, file, end: log.end, size }
        } else {
            // Nothing in it: made anew, so that its name is certainly durable.
            Active::new(log.start, create_log(disk, self.epoch, log.start)?)
        };
        Ok((self.epoch, active, self.loaded))
    }
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod history_tests;
#[cfg(test)]
mod tests;
