//! What survives a restart: a base, and the records since.
//!
//! Owns durability (D1) and fail-stop (D4), for whole records and groups of them (D3). Knows the core's words, and
//! nothing of clocks, networks or the writer loop.
//!
//! | where | what |
//! |---|---|
//! | [`Store`] | what the registry's loop asks of any store |
//! | [`MemoryStore`] | keeps nothing, says so |
//! | [`EmbeddedStore`] | an append-only log with bases, in one directory |
//! | [`disk`] | the few calls that the embedded store makes to a file system |
//! | `frame`, `record`, `wire` | the format: bytes to payloads, payloads to messages, messages to the core's words |
//!
//! `conformance` holds what every implementation has to pass.

#[cfg(test)]
mod conformance;
pub mod disk;
mod embedded;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod memory;
mod record;
#[cfg(test)]
pub(crate) mod samples;
mod wire;

pub use embedded::{EmbeddedOptions, EmbeddedStore, Fold};
pub use memory::MemoryStore;

use crate::core::{Base, Committed, Record, Revision};

/// What a store holds when it is opened.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The name of this history of revisions: 32 hexadecimal characters. Compared for equality only.
    pub epoch: String,
    /// The state that the tail builds on.
    pub base: Base,
    /// The records since the base, oldest first. They reach back at least as far as history is kept, so that recent
    /// changes can be told from them (W5).
    pub tail: Vec<Committed>,
}

/// Keeps records durably. Owned by one writer; calls may block.
pub trait Store: Send + 'static {
    /// What is kept. Called once, before the first `append`; a second call is refused.
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Makes a group of records durable, all of them before it returns, and names their revisions: strictly growing,
    /// one a record. After a crash the whole group is there or none of it.
    ///
    /// After an error the store is closed: nothing was acknowledged, nothing more is accepted, and every further call
    /// gives [`StoreError::Closed`] with the first cause (D4). Only [`StoreError::TooLarge`] leaves it open.
    fn append(&mut self, group: &[Record]) -> Result<Vec<Revision>, StoreError>;

    /// Starts to fold the records up to `to` into the base, so that the log does not grow for ever; those that are kept
    /// as history stay. Returns at once: the work goes on beside further appends, and changes nothing that is visible. A
    /// hint: a store may fold less, and folds by itself when its log has grown. By default, nothing.
    fn compact(&mut self, to: Revision) -> Result<(), StoreError> {
        let _ = to;
        Ok(())
    }

    /// Says whether the caller has much to do just now, so that a store puts off what can wait; it may be said again and again. A
    /// hint, and a store that is never told goes on as if there was always much. By default, nothing.
    fn set_busy(&mut self, busy: bool) {
        let _ = busy;
    }

    /// Whether `append` waits for a disk, so that the caller should not run it on a thread that others need.
    fn blocks(&self) -> bool;
}

/// Why a store cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused, while the store was opened. Carries what was done to which file, and its word.
    #[error(
        "{0}; nothing that was acknowledged is lost by this: see that the path is right, that this user may read and \
         write there, and that the disk works and has room, then start the server again"
    )]
    Io(String),
    /// A write or an fsync failed. Writes go on only after a restart, which reads what really is on the disk.
    #[error(
        "the store is closed to writes since {cause}; what was acknowledged is kept: make sure that the disk works and \
         has room, then restart the server"
    )]
    Closed {
        /// The first failure.
        cause: String,
    },
    /// Another process has the directory.
    #[error(
        "the data directory {directory} is in use by another registry server: stop that one, or give this one a \
         directory of its own"
    )]
    Locked {
        /// The directory.
        directory: String,
    },
    /// The files were written in a format that this version does not know.
    #[error(
        "{file} is in format version {found}, and this server knows version {known}: run the server version that wrote \
         it, or a newer one; nothing was changed"
    )]
    FormatVersion {
        /// The file.
        file: String,
        /// What the file says.
        found: u32,
        /// What this server knows.
        known: u32,
    },
    /// The format is known, but something in it was added by a later version.
    #[error(
        "{file} holds, at offset {offset}, {what}: it was written by a newer version; run that version or a later one; \
         nothing was changed"
    )]
    Newer {
        /// The file.
        file: String,
        /// In bytes from its start.
        offset: u64,
        /// What is not known.
        what: String,
    },
    /// The files are damaged.
    #[error(
        "{file} is corrupt at offset {offset}: {what}; nothing was changed: restore the data directory from a backup, \
         or move it away to start empty under a new epoch"
    )]
    Corrupt {
        /// The file, or the directory if a file is missing.
        file: String,
        /// In bytes from its start.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The group is larger than one frame may be. Nothing was written; the store stays open.
    #[error(
        "a group of {bytes} bytes is more than the {limit} bytes that the store takes at once: send fewer records"
    )]
    TooLarge {
        /// The encoded size.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// `load` was called before.
    #[error("the store was loaded before: open it again to load it again")]
    AlreadyLoaded,
}

/// An epoch as it is written in messages.
fn epoch_name(epoch: u128) -> String {
    format!("{epoch:032x}")
}
